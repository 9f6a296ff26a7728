package logmesh.example;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.Context;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.ForwardingClientCallListener.SimpleForwardingClientCallListener;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.stub.StreamObserver;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import logmesh.search.v1.SearchServiceGrpc;
import logmesh.search.v1.TailRequest;
import logmesh.search.v1.TailResponse;

import static java.util.concurrent.TimeUnit.SECONDS;

/** A live tail that waits for messages. Closing it cancels the stream. */
final class Tail implements AutoCloseable, StreamObserver<TailResponse>, ClientInterceptor {
    private final Context.CancellableContext stream = Context.current().withCancellation();
    private final CompletableFuture<Void> open = new CompletableFuture<>();
    private final CompletableFuture<Void> all = new CompletableFuture<>();
    /** Used by one thread at a time: gRPC calls an observer so. */
    private final Set<String> missing;

    Tail(Channel channel, String query, List<String> messages) {
        missing = new HashSet<>(messages);
        TailRequest request = TailRequest.newBuilder().setQuery(query).addTopics(Example.TOPIC).build();
        var stub = SearchServiceGrpc.newStub(channel).withDeadlineAfter(Example.STREAM, SECONDS).withInterceptors(this);
        stream.run(() -> stub.tail(request, this));
    }

    /** Waits until the server has answered: from then on the tail shows all that is written. */
    void awaitOpen() throws Exception {
        await(open);
    }

    void awaitAll() throws Exception {
        await(all);
    }

    private static void await(CompletableFuture<Void> future) throws Exception {
        try {
            future.get(); // the call's deadline bounds it
        } catch (ExecutionException error) {
            throw error.getCause() instanceof Exception cause ? cause : error;
        }
    }

    @Override
    public void close() {
        stream.cancel(null);
    }

    @Override
    public void onNext(TailResponse response) {
        response.getHitsList().forEach(hit -> missing.remove(Example.show("tailed", hit)));
        if (missing.isEmpty()) {
            all.complete(null);
        }
    }

    @Override
    public void onError(Throwable error) {
        open.completeExceptionally(error);
        all.completeExceptionally(error);
    }

    @Override
    public void onCompleted() {
        onError(Status.UNAVAILABLE.withDescription("the server ended the tail").asRuntimeException());
    }

    /** Hears of the answer's headers, which stubs keep to themselves. */
    @Override
    public <Q, A> ClientCall<Q, A> interceptCall(MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
        return new SimpleForwardingClientCall<>(next.newCall(method, options)) {
            @Override
            public void start(Listener<A> listener, Metadata headers) {
                super.start(
                        new SimpleForwardingClientCallListener<>(listener) {
                            @Override
                            public void onHeaders(Metadata headers) {
                                open.complete(null);
                                super.onHeaders(headers);
                            }
                        },
                        headers);
            }
        };
    }
}
