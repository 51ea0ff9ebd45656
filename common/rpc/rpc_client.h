/* rpc_client: blocking gRPC calls, straight-line code, no gRPC types.
 *
 *     pseg_rpc_channel *ch = NULL;
 *     pseg_rpc_channel_options o = PSEG_RPC_CHANNEL_OPTIONS_DEFAULT;
 *     o.target = "127.0.0.1:7433";
 *     PSEG_TRY(pseg_rpc_dial(&ch, &o, err));
 *     PSEG_TRY(pseg_rpc_unary((ProtobufCMessage **)&job, ch, "/pseg.v1.SegmentationService/GetJob",
 *                             &q.base, &pseg__v1__job__descriptor, 5000, err));
 *     pseg_rpc_message_free(&job->base);
 *
 * A channel may be used by many threads. A stream is one thread's, but for cancelling, and but for
 * streams of both ways: there one thread may send while another receives. pseg_rpc_init first.
 *
 * Errors of a call: the reason that the server gave in google.rpc.Status, its field, and in
 * err->detail the gRPC code. Without details: SERVER_UNAVAILABLE ("cannot reach HOST: ..."),
 * DEADLINE_EXCEEDED, CANCELLED, UNSUPPORTED (no such method), REQUEST_TOO_LARGE and so on. */
#ifndef PSEG_RPC_RPC_CLIENT_H
#define PSEG_RPC_RPC_CLIENT_H

#include "common/base/err.h"

#include <protobuf-c/protobuf-c.h>
#include <stdint.h>

typedef struct pseg_rpc_channel pseg_rpc_channel;
typedef struct pseg_rpc_stream pseg_rpc_stream;

typedef struct pseg_rpc_channel_options {
    const char *target;               /* "host:port", "unix:/path", "dns:///host:port" */
    bool use_tls;                     /* implied by ca_file and cert_file */
    const char *ca_file;              /* PEM; NULL: the system's authorities */
    const char *cert_file, *key_file; /* PEM, both or neither: our own certificate */
    const char *authority;            /* name to expect in the server's certificate; NULL: host */
    const char *bearer;               /* sent as `authorization: Bearer ...`; NULL: none */
    const char *traceparent;          /* W3C: the span that calls are made for; NULL: none */
    size_t max_message_bytes;         /* of a reply */
    bool retry;                       /* UNAVAILABLE is tried 4 times in about a second */
    bool wait_for_ready;              /* calls wait for the server to come up, to their deadline */
} pseg_rpc_channel_options;

#define PSEG_RPC_CHANNEL_OPTIONS_DEFAULT                     \
    {                                                        \
        .max_message_bytes = (size_t)64 << 20, .retry = true \
    }

/* Connects at the first call, not here. Options are copied. Caller frees with pseg_rpc_hangup.
 * Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_CONFIG_INVALID (certificates), PSEG_R_INVALID_ARGUMENT. */
pseg_status pseg_rpc_dial(pseg_rpc_channel **out, const pseg_rpc_channel_options *options,
                          pseg_err *err);
/* No call may be in flight. NULL is accepted. */
void pseg_rpc_hangup(pseg_rpc_channel *ch);
/* Cancels every call in flight; they end with PSEG_R_CANCELLED. Any thread, not a signal handler.
 */
void pseg_rpc_cancel_all(pseg_rpc_channel *ch);

/* One request, one reply. timeout_ms < 0: no deadline. Caller frees *reply with
 * pseg_rpc_message_free; it is NULL on failure. */
pseg_status pseg_rpc_unary(ProtobufCMessage **reply, pseg_rpc_channel *ch, const char *method,
                           const ProtobufCMessage *request,
                           const ProtobufCMessageDescriptor *reply_type, int64_t timeout_ms,
                           pseg_err *err);
void pseg_rpc_message_free(ProtobufCMessage *m); /* NULL is accepted */

/* Streams of any kind: open, send*, half_close, recv*, close. One that goes both ways at once has a
 * thread that does nothing but recv, to its NULL; the other one sends, half_closes, waits for that
 * thread's end and closes. `method` and `reply_type` are borrowed until close. */
pseg_status pseg_rpc_open(pseg_rpc_stream **out, pseg_rpc_channel *ch, const char *method,
                          const ProtobufCMessageDescriptor *reply_type, int64_t timeout_ms,
                          pseg_err *err);
/* Blocks while the server does not read. false: the server has ended the call already, and close
 * tells how (that may be a success: an upload that is held already). */
bool pseg_rpc_stream_send(pseg_rpc_stream *s, const ProtobufCMessage *m);
void pseg_rpc_stream_half_close(pseg_rpc_stream *s);
/* The next reply, or NULL at the end, for which close gives the reason. Caller frees it with
 * pseg_rpc_message_free. */
ProtobufCMessage *pseg_rpc_stream_recv(pseg_rpc_stream *s);
void pseg_rpc_stream_cancel(pseg_rpc_stream *s); /* any thread, before close */
/* Reads and drops what is left, waits for the status and frees the stream. To end early, cancel
 * first. *retry_after_ms (may be NULL): what the server asked for, or -1. NULL stream: PSEG_OK. */
pseg_status pseg_rpc_close(pseg_rpc_stream *s, int64_t *retry_after_ms, pseg_err *err);

#endif
