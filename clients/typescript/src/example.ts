// A tour of logmesh from TypeScript: makes a rule, watches the fleet, writes events, tails them and finds them.
//
// Usage: example.js [HOST:PORT]. The exit code is 0 only if all that was written was tailed and found.
import { randomBytes } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { type CallOptions, type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { type Rule, RuleService } from "./gen/logmesh/config/v1/rule_service_pb.js";
import { FleetService } from "./gen/logmesh/fleet/v1/fleet_service_pb.js";
import { IngestService } from "./gen/logmesh/ingest/v1/ingest_service_pb.js";
import { type Hit, SearchService } from "./gen/logmesh/search/v1/search_service_pb.js";

const TOPIC = "examples";
// Milliseconds that one call may take, and that a stream is followed or events are searched for.
const CALL = 10_000;
const STREAM = 60_000;

const run = randomBytes(4).toString("hex");
const query = `labels.run:${run}`;
const messages = [0, 1, 2].map((number) => `hello ${number} from TypeScript`);

/** Code and text of what a server refused, its stable reason, and the path of each field to correct. */
function explain(reason: unknown): string {
  const error = ConnectError.from(reason);
  const lines = [`${Code[error.code]}: ${error.rawMessage}`];
  for (const info of error.findDetails(ErrorInfoSchema)) {
    lines.push(`  reason: ${info.reason}`);
  }
  for (const violation of error.findDetails(BadRequestSchema).flatMap((bad) => bad.fieldViolations)) {
    lines.push(`  ${violation.field}: ${violation.description}`);
  }
  return lines.join("\n");
}

async function showRefusal(rules: Client<typeof RuleService>): Promise<void> {
  const rule = { name: "rules/bad", paths: ["not/absolute"], topic: TOPIC };
  try {
    await rules.createRule({ rule, validateOnly: true });
  } catch (error) {
    if (ConnectError.from(error).code !== Code.InvalidArgument) {
      throw error;
    }
    console.log(`refused, as it should be: ${explain(error)}`);
  }
}

async function makeRule(rules: Client<typeof RuleService>): Promise<Rule> {
  const rule = await rules.createRule({
    rule: {
      name: `rules/example-${run}`,
      // A label that no agent is likely to have, so that nobody's files are collected by an example.
      selector: `example=${run}`,
      paths: ["/var/log/example/*.log"],
      topic: TOPIC,
    },
  });
  console.log(`made ${rule.name}, revision ${rule.revision}`);
  return rule;
}

/** Reads a stream until it has `all`, then cancels it. A stream that was only left would wait for its deadline. */
async function follow<T>(
  open: (options: CallOptions) => AsyncIterable<T>,
  all: (message: T) => boolean,
  onHeader?: () => void,
): Promise<void> {
  const stop = new AbortController();
  try {
    for await (const message of open({ signal: stop.signal, timeoutMs: STREAM, onHeader })) {
      if (all(message)) {
        stop.abort();
      }
    }
  } catch (error) {
    if (!stop.signal.aborted) {
      throw error;
    }
  }
  if (!stop.signal.aborted) {
    throw new Error("the server ended a stream before its time");
  }
}

/** Prints all agents. The stream would go on with each change. */
function watchFleet(fleet: Client<typeof FleetService>): Promise<void> {
  return follow(
    (options) => fleet.watchAgents({}, options),
    (update) => {
      for (const agent of update.agents) {
        console.log(`agent ${agent.id}: ${agent.online ? "online" : "offline"}, ${agent.rules.length} rules`);
      }
      return update.complete;
    },
  );
}

/** Tails until all messages came. Once `opened` is called, the tail shows all that is written from then on. */
function tail(search: Client<typeof SearchService>, opened: () => void): Promise<void> {
  const missing = new Set(messages);
  return follow(
    (options) => search.tail({ query, topics: [TOPIC] }, options),
    (response) => {
      show("tailed", response.hits).forEach((message) => missing.delete(message));
      return missing.size === 0;
    },
    opened,
  );
}

async function write(ingest: Client<typeof IngestService>): Promise<void> {
  const events = messages.map((message, number) => ({
    // With an id of its own an event may be sent again, after UNAVAILABLE say, and is still one document.
    eventId: `${run}-${number}`,
    message,
    level: "INFO",
    service: "example",
    labels: { run },
  }));
  const written = await ingest.write({ topic: TOPIC, events });
  console.log(`wrote ${written.positions.length} events`);
}

async function writeAndTail(ingest: Client<typeof IngestService>, search: Client<typeof SearchService>): Promise<void> {
  let tailed = Promise.resolve();
  await new Promise<void>((opened, failed) => {
    tailed = tail(search, opened);
    tailed.catch(failed); // before it was opened, or while events are written
  });
  await Promise.all([write(ingest), tailed]);
}

/** Searches until all messages are there: the index has them a moment after the bus. */
async function find(search: Client<typeof SearchService>): Promise<void> {
  const giveUp = Date.now() + STREAM;
  let answer = await search.search({ query, topics: [TOPIC] });
  while (answer.total < messages.length) {
    if (Date.now() > giveUp) {
      throw new Error(`only ${answer.total} of ${messages.length} events were found`);
    }
    await pause(100);
    answer = await search.search({ query, topics: [TOPIC] });
  }
  const found = new Set(show("found", answer.hits));
  if (!messages.every((message) => found.has(message))) {
    throw new Error("what was found isn't what was written");
  }
}

/** Prints the hits' messages, and gives them back. A document is JSON with flat names. */
function show(what: string, hits: Hit[]): string[] {
  return hits.map((hit) => {
    const { message } = JSON.parse(hit.document) as { message: string };
    console.log(`${what}: ${message}`);
    return message;
  });
}

async function tour(sessionManager: Http2SessionManager, baseUrl: string): Promise<void> {
  const transport = createGrpcTransport({ baseUrl, sessionManager, defaultTimeoutMs: CALL });
  const rules = createClient(RuleService, transport);
  const search = createClient(SearchService, transport);
  await showRefusal(rules);
  const rule = await makeRule(rules);
  try {
    await watchFleet(createClient(FleetService, transport));
    await writeAndTail(createClient(IngestService, transport), search);
    await find(search);
  } finally {
    await rules.deleteRule({ name: rule.name, etag: rule.etag });
    console.log(`removed ${rule.name}`);
  }
}

const baseUrl = `http://${process.argv[2] ?? "127.0.0.1:7400"}`;
const connection = new Http2SessionManager(baseUrl);
try {
  await tour(connection, baseUrl);
} catch (error) {
  console.error(explain(error));
  process.exitCode = 1;
} finally {
  connection.abort();
}
