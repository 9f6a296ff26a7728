package logmesh.example;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.StringJoiner;

/** What a server says when it refuses a call. */
final class Errors {
    private Errors() {}

    /** Code and text, the stable reason, and the path of each field to correct. */
    static String explain(StatusRuntimeException error) {
        var lines = new StringJoiner("\n").add(error.getStatus().getCode() + ": " + error.getStatus().getDescription());
        try {
            for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
                if (detail.is(BadRequest.class)) {
                    for (var violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
                        lines.add("  " + violation.getField() + ": " + violation.getDescription());
                    }
                } else if (detail.is(ErrorInfo.class)) {
                    lines.add("  reason: " + detail.unpack(ErrorInfo.class).getReason());
                }
            }
        } catch (InvalidProtocolBufferException unreadable) {
            lines.add("  its details can't be read: " + unreadable.getMessage());
        }
        return lines.toString();
    }
}
