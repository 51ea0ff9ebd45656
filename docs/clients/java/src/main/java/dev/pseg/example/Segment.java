package dev.pseg.example;

import com.google.protobuf.ByteString;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import dev.pseg.v1.CreateJobRequest;
import dev.pseg.v1.FetchMasksRequest;
import dev.pseg.v1.Job;
import dev.pseg.v1.JobSpec;
import dev.pseg.v1.MaskEncoding;
import dev.pseg.v1.MaskFormat;
import dev.pseg.v1.Prompt;
import dev.pseg.v1.SegmentationServiceGrpc;
import dev.pseg.v1.SegmentationServiceGrpc.SegmentationServiceBlockingStub;
import dev.pseg.v1.State;
import dev.pseg.v1.WaitJobRequest;
import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.CompositeChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.StatusProto;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;

/**
 * One phrase in one image: {@code Segment IMAGE PROMPT OUT.png}, against PSEG_SERVER; PSEG_CA (PEM) and
 * PSEG_KEY for TLS and a bearer key.
 */
public final class Segment {
    /** What a request id makes safe to repeat, the library repeats. */
    private static final Map<String, ?> SERVICE_CONFIG = Map.of("methodConfig", List.of(Map.of(
            "name", List.of(Map.of("service", "pseg.v1.SegmentationService")),
            "retryPolicy", Map.of("maxAttempts", 5.0, "initialBackoff", "0.1s", "maxBackoff", "2s",
                    "backoffMultiplier", 2.0, "retryableStatusCodes", List.of("UNAVAILABLE")))));

    /** The bearer key, on every call. */
    private static final class Bearer extends CallCredentials {
        private final Metadata headers = new Metadata();

        Bearer(String key) {
            headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + key);
        }

        @Override
        public void applyRequestMetadata(RequestInfo info, Executor executor, MetadataApplier applier) {
            applier.apply(headers);
        }
    }

    private static ManagedChannel connect() throws IOException {
        Map<String, String> env = System.getenv();
        ChannelCredentials credentials = InsecureChannelCredentials.create();
        if (env.containsKey("PSEG_CA")) {
            credentials = TlsChannelCredentials.newBuilder().trustManager(new File(env.get("PSEG_CA"))).build();
            if (env.containsKey("PSEG_KEY")) {
                credentials = CompositeChannelCredentials.create(credentials, new Bearer(env.get("PSEG_KEY")));
            }
        }
        return Grpc.newChannelBuilder(env.getOrDefault("PSEG_SERVER", "127.0.0.1:7433"), credentials)
                .defaultServiceConfig(SERVICE_CONFIG).build();
    }

    private static SegmentationServiceBlockingStub timed(SegmentationServiceBlockingStub stub) {
        return stub.withDeadlineAfter(30, TimeUnit.SECONDS);
    }

    private static Job segment(SegmentationServiceBlockingStub stub, byte[] image, String prompt) {
        Job job = timed(stub).createJob(CreateJobRequest.newBuilder()
                .setRequestId(UUID.randomUUID().toString())
                .setJob(JobSpec.newBuilder().setContent(ByteString.copyFrom(image))
                        .addPrompts(Prompt.newBuilder().setText(prompt))).build());
        while (job.getState() == State.STATE_QUEUED || job.getState() == State.STATE_RUNNING) {
            job = timed(stub).waitJob(WaitJobRequest.newBuilder().setName(job.getName()).build());
        }
        return job;
    }

    private static byte[] mask(SegmentationServiceBlockingStub stub, Job job) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        timed(stub).fetchMasks(FetchMasksRequest.newBuilder().setName(job.getName())
                        .setFormat(MaskFormat.newBuilder().setEncoding(MaskEncoding.MASK_ENCODING_PNG)).build())
                .forEachRemaining(part -> out.writeBytes(part.getMask().getData().toByteArray()));
        return out.toByteArray();
    }

    /** What the details of a failed call say. */
    private static String explain(StatusRuntimeException error) throws InvalidProtocolBufferException {
        com.google.rpc.Status status = StatusProto.fromThrowable(error);
        String reason = "UNKNOWN";
        StringBuilder fields = new StringBuilder();
        for (Any any : status == null ? List.<Any>of() : status.getDetailsList()) {
            if (any.is(ErrorInfo.class)) {
                reason = any.unpack(ErrorInfo.class).getReason();
            } else if (any.is(BadRequest.class)) {
                any.unpack(BadRequest.class).getFieldViolationsList().forEach(v -> fields.append(v.getField()).append(' '));
            }
        }
        return reason + " " + fields + error.getStatus().getDescription();
    }

    public static void main(String[] args) throws Exception {
        if (args.length != 3) {
            System.err.println("usage: Segment IMAGE PROMPT OUT.png");
            System.exit(2);
        }
        ManagedChannel channel = connect();
        int exit = 0;
        try {
            SegmentationServiceBlockingStub stub = SegmentationServiceGrpc.newBlockingStub(channel);
            Job job = segment(stub, Files.readAllBytes(Path.of(args[0])), args[1]);
            if (job.getState() == State.STATE_SUCCEEDED) {
                Files.write(Path.of(args[2]), mask(stub, job));
                System.out.printf("%s iou=%.4f area=%d%n", job.getName(), job.getResults(0).getPredictedIou(),
                        job.getResults(0).getAreaPx());
            } else {
                System.err.printf("error: %s: %s: %s%n", job.getName(), job.getState(), job.getError().getMessage());
                exit = 1;
            }
        } catch (StatusRuntimeException e) {
            System.err.println("error: " + explain(e));
            exit = 1;
        } finally {
            channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
        }
        System.exit(exit);
    }
}
