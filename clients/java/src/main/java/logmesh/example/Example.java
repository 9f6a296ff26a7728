package logmesh.example;

import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Struct;
import com.google.protobuf.util.JsonFormat;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.security.SecureRandom;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import logmesh.config.v1.CreateRuleRequest;
import logmesh.config.v1.DeleteRuleRequest;
import logmesh.config.v1.Rule;
import logmesh.config.v1.RuleServiceGrpc;
import logmesh.config.v1.RuleServiceGrpc.RuleServiceBlockingStub;
import logmesh.fleet.v1.Agent;
import logmesh.fleet.v1.FleetServiceGrpc;
import logmesh.fleet.v1.WatchAgentsRequest;
import logmesh.fleet.v1.WatchAgentsResponse;
import logmesh.ingest.v1.Event;
import logmesh.ingest.v1.IngestServiceGrpc;
import logmesh.ingest.v1.WriteRequest;
import logmesh.ingest.v1.WriteResponse;
import logmesh.search.v1.Hit;
import logmesh.search.v1.SearchRequest;
import logmesh.search.v1.SearchResponse;
import logmesh.search.v1.SearchServiceGrpc;

/**
 * A tour of logmesh from Java: makes a rule, watches the fleet, writes events, tails them and finds them.
 *
 * <p>Usage: Example [HOST:PORT]. The exit code is 0 only if all that was written was tailed and found.
 */
public final class Example {
    static final String TOPIC = "examples";
    /** Seconds that one call may take. */
    static final int CALL = 10;
    /** Seconds that a stream is followed, and that events are searched for. */
    static final int STREAM = 60;

    private final ManagedChannel channel;
    private final String run;
    private final List<String> messages = List.of("hello 0 from Java", "hello 1 from Java", "hello 2 from Java");

    private Example(ManagedChannel channel) {
        this.channel = channel;
        byte[] random = new byte[4];
        new SecureRandom().nextBytes(random);
        run = HexFormat.of().formatHex(random);
    }

    public static void main(String[] args) throws Exception {
        String address = args.length > 0 ? args[0] : "127.0.0.1:7400";
        ManagedChannel channel = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build();
        int code = 0;
        try {
            new Example(channel).tour();
        } catch (StatusRuntimeException error) {
            System.err.println(Errors.explain(error));
            code = 1;
        } finally {
            channel.shutdownNow().awaitTermination(CALL, TimeUnit.SECONDS);
        }
        System.exit(code);
    }

    private void tour() throws Exception {
        showRefusal();
        Rule rule = makeRule();
        try {
            watchFleet();
            writeAndTail();
            find();
        } finally {
            rules().deleteRule(DeleteRuleRequest.newBuilder().setName(rule.getName()).setEtag(rule.getEtag()).build());
            System.out.println("removed " + rule.getName());
        }
    }

    /** A stub is made anew for each call, since its deadline is a point in time. */
    private RuleServiceBlockingStub rules() {
        return RuleServiceGrpc.newBlockingStub(channel).withDeadlineAfter(CALL, TimeUnit.SECONDS);
    }

    private void showRefusal() {
        Rule bad = Rule.newBuilder().setName("rules/bad").addPaths("not/absolute").setTopic(TOPIC).build();
        try {
            rules().createRule(CreateRuleRequest.newBuilder().setRule(bad).setValidateOnly(true).build());
        } catch (StatusRuntimeException error) {
            if (error.getStatus().getCode() != Status.Code.INVALID_ARGUMENT) {
                throw error;
            }
            System.out.println("refused, as it should be: " + Errors.explain(error));
        }
    }

    private Rule makeRule() {
        Rule wanted = Rule.newBuilder()
                .setName("rules/example-" + run)
                // A label that no agent is likely to have, so that nobody's files are collected by an example.
                .setSelector("example=" + run)
                .addPaths("/var/log/example/*.log")
                .setTopic(TOPIC)
                .build();
        Rule rule = rules().createRule(CreateRuleRequest.newBuilder().setRule(wanted).build());
        System.out.println("made " + rule.getName() + ", revision " + rule.getRevision());
        return rule;
    }

    /** Prints all agents. The stream would go on with each change; leaving the context cancels it. */
    private void watchFleet() {
        Context.CancellableContext stream = Context.current().withCancellation();
        Context before = stream.attach();
        try {
            var updates = FleetServiceGrpc.newBlockingStub(channel)
                    .withDeadlineAfter(STREAM, TimeUnit.SECONDS)
                    .watchAgents(WatchAgentsRequest.getDefaultInstance());
            WatchAgentsResponse update;
            do {
                update = updates.next();
                for (Agent agent : update.getAgentsList()) {
                    String state = agent.getOnline() ? "online" : "offline";
                    System.out.printf("agent %s: %s, %d rules%n", agent.getId(), state, agent.getRulesCount());
                }
            } while (!update.getComplete());
        } finally {
            stream.detachAndCancel(before, null);
        }
    }

    private void writeAndTail() throws Exception {
        try (Tail tail = new Tail(channel, query(), messages)) {
            tail.awaitOpen();
            write();
            tail.awaitAll();
        }
    }

    private void write() {
        WriteRequest.Builder request = WriteRequest.newBuilder().setTopic(TOPIC);
        for (int number = 0; number < messages.size(); number++) {
            request.addEvents(Event.newBuilder()
                    // With an id of its own an event may be sent again, after UNAVAILABLE say, and is still one document.
                    .setEventId(run + "-" + number)
                    .setMessage(messages.get(number))
                    .setLevel("INFO")
                    .setService("example")
                    .putLabels("run", run));
        }
        WriteResponse written = IngestServiceGrpc.newBlockingStub(channel)
                .withDeadlineAfter(CALL, TimeUnit.SECONDS)
                .write(request.build());
        System.out.println("wrote " + written.getPositionsCount() + " events");
    }

    /** Searches until all messages are there: the index has them a moment after the bus. */
    private void find() throws InterruptedException {
        SearchRequest request = SearchRequest.newBuilder().setQuery(query()).addTopics(TOPIC).build();
        long giveUp = System.nanoTime() + TimeUnit.SECONDS.toNanos(STREAM);
        SearchResponse answer;
        while ((answer = search(request)).getTotal() < messages.size()) {
            if (System.nanoTime() > giveUp) {
                throw new IllegalStateException("only " + answer.getTotal() + " of the events were found");
            }
            Thread.sleep(100);
        }
        Set<String> missing = new HashSet<>(messages);
        answer.getHitsList().forEach(hit -> missing.remove(show("found", hit)));
        if (!missing.isEmpty()) {
            throw new IllegalStateException("not found: " + missing);
        }
    }

    private SearchResponse search(SearchRequest request) {
        return SearchServiceGrpc.newBlockingStub(channel).withDeadlineAfter(CALL, TimeUnit.SECONDS).search(request);
    }

    private String query() {
        return "labels.run:" + run;
    }

    /** Prints a hit's message, and gives it back. A document is JSON with flat names. */
    static String show(String what, Hit hit) {
        Struct.Builder document = Struct.newBuilder();
        try {
            JsonFormat.parser().merge(hit.getDocument(), document);
        } catch (InvalidProtocolBufferException error) {
            throw new IllegalStateException("document " + hit.getId() + " isn't JSON", error);
        }
        String message = document.getFieldsOrThrow("message").getStringValue();
        System.out.println(what + ": " + message);
        return message;
    }
}
