"""A tour of logmesh from Python: makes a rule, watches the fleet, writes events, tails them and finds them.

Usage: example.py [HOST:PORT]. The exit code is 0 only if all that was written was tailed and found.
"""

import json
import secrets
import sys
import time

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_status import rpc_status

from logmesh.config.v1.rule_service_pb2 import CreateRuleRequest, DeleteRuleRequest, Rule
from logmesh.config.v1.rule_service_pb2_grpc import RuleServiceStub
from logmesh.fleet.v1.fleet_service_pb2 import WatchAgentsRequest
from logmesh.fleet.v1.fleet_service_pb2_grpc import FleetServiceStub
from logmesh.ingest.v1.ingest_service_pb2 import Event, WriteRequest
from logmesh.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from logmesh.search.v1.search_service_pb2 import Hit, SearchRequest, TailRequest
from logmesh.search.v1.search_service_pb2_grpc import SearchServiceStub

TOPIC = "examples"
CALL = 10  # seconds that one call may take
STREAM = 60  # seconds that a stream is followed, and that events are searched for


def explain(error: grpc.RpcError) -> str:
    """Code and text of what a server refused, its stable reason, and the path of each field to correct."""
    lines = [f"{error.code().name}: {error.details()}"]
    status = rpc_status.from_call(error)  # None where the server never saw the call
    for detail in status.details if status else []:
        if detail.Is(BadRequest.DESCRIPTOR):
            bad = BadRequest()
            detail.Unpack(bad)
            lines += [f"  {violation.field}: {violation.description}" for violation in bad.field_violations]
        elif detail.Is(ErrorInfo.DESCRIPTOR):
            info = ErrorInfo()
            detail.Unpack(info)
            lines.append(f"  reason: {info.reason}")
    return "\n".join(lines)


def show_refusal(rules: RuleServiceStub) -> None:
    bad = Rule(name="rules/bad", paths=["not/absolute"], topic=TOPIC)
    try:
        rules.CreateRule(CreateRuleRequest(rule=bad, validate_only=True), timeout=CALL)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.INVALID_ARGUMENT:
            raise
        print("refused, as it should be:", explain(error))


def make_rule(rules: RuleServiceStub, run: str) -> Rule:
    # It selects agents with a label that none is likely to have, so that nobody's files are collected by an example.
    wanted = Rule(name=f"rules/example-{run}", selector=f"example={run}", paths=["/var/log/example/*.log"], topic=TOPIC)
    rule = rules.CreateRule(CreateRuleRequest(rule=wanted), timeout=CALL)
    print(f"made {rule.name}, revision {rule.revision}")
    return rule


def watch_fleet(fleet: FleetServiceStub) -> None:
    """Prints all agents. The stream would go on with each change; it's left once all were told."""
    updates = fleet.WatchAgents(WatchAgentsRequest(), timeout=STREAM)
    for update in updates:
        for agent in update.agents:
            print(f"agent {agent.id}: {'online' if agent.online else 'offline'}, {len(agent.rules)} rules")
        if update.complete:
            break
    updates.cancel()


def write_and_tail(ingest: IngestServiceStub, search: SearchServiceStub, run: str, messages: list[str]) -> None:
    tail = search.Tail(TailRequest(query=f"labels.run:{run}", topics=[TOPIC]), timeout=STREAM)
    tail.initial_metadata()  # once it's here, the tail shows all that is written from now on

    # With an id of its own an event may be sent again, after UNAVAILABLE say, and is still one document.
    events = [
        Event(event_id=f"{run}-{number}", message=message, level="INFO", service="example", labels={"run": run})
        for number, message in enumerate(messages)
    ]
    written = ingest.Write(WriteRequest(topic=TOPIC, events=events), timeout=CALL)
    print(f"wrote {len(written.positions)} events")

    missing = set(messages)
    for response in tail:
        missing -= show("tailed", response.hits)
        if not missing:
            break
    tail.cancel()


def find(search: SearchServiceStub, run: str, messages: list[str]) -> None:
    """Searches until all messages are there: the index has them a moment after the bus."""
    request = SearchRequest(query=f"labels.run:{run}", topics=[TOPIC])
    give_up = time.monotonic() + STREAM
    while (answer := search.Search(request, timeout=CALL)).total < len(messages):
        if time.monotonic() > give_up:
            raise SystemExit(f"only {answer.total} of {len(messages)} events were found")
        time.sleep(0.1)
    if show("found", answer.hits) != set(messages):
        raise SystemExit("what was found isn't what was written")


def show(what: str, hits: list[Hit]) -> set[str]:
    """Prints the hits' messages, and gives them back. A document is JSON with flat names."""
    messages = [json.loads(hit.document)["message"] for hit in hits]
    for message in messages:
        print(f"{what}: {message}")
    return set(messages)


def tour(channel: grpc.Channel) -> None:
    rules, run = RuleServiceStub(channel), secrets.token_hex(4)
    messages = [f"hello {number} from Python" for number in range(3)]
    show_refusal(rules)
    rule = make_rule(rules, run)
    try:
        watch_fleet(FleetServiceStub(channel))
        search = SearchServiceStub(channel)
        write_and_tail(IngestServiceStub(channel), search, run, messages)
        find(search, run, messages)
    finally:
        rules.DeleteRule(DeleteRuleRequest(name=rule.name, etag=rule.etag), timeout=CALL)
        print(f"removed {rule.name}")


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7400"
    try:
        with grpc.insecure_channel(address) as channel:
            tour(channel)
    except grpc.RpcError as error:
        raise SystemExit(explain(error)) from None


if __name__ == "__main__":
    main()
