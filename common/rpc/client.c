#include "common/rpc/internal.h"
#include "common/rpc/rpc_client.h"

#include "common/base/trace_context.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"

#include <grpc/support/alloc.h>
#include <grpc/support/time.h>

#include <limits.h>
#include <string.h>

#define PEM_BYTES ((size_t)1 << 20)

/* Only UNAVAILABLE: everything else either was decided by the server or may have been done. */
static const char retry_config[] =
    "{\"methodConfig\":[{\"name\":[{}],\"retryPolicy\":{\"maxAttempts\":4,"
    "\"initialBackoff\":\"0.1s\",\"maxBackoff\":\"1s\",\"backoffMultiplier\":2,"
    "\"retryableStatusCodes\":[\"UNAVAILABLE\"]}}]}";

struct pseg_rpc_channel {
    grpc_channel *core;
    char *target, *bearer, *traceparent; /* bearer: "Bearer KEY" or NULL */
    bool wait_for_ready;
    size_t max_message_bytes;
    pthread_mutex_t mu;
    pseg_rpc_stream *streams; /* in flight; under mu */
};

struct pseg_rpc_stream {
    pseg_rpc_stream *next, **slot;
    pseg_rpc_channel *channel;
    const ProtobufCMessageDescriptor *reply_type;
    const char *method;
    grpc_completion_queue *cq; /* pluck: one thread waits for one tag */
    grpc_call *call;
    grpc_metadata_array headers, trailers;
    grpc_status_code code;
    grpc_slice text;
    pseg_err broken; /* a reply that does not parse; overrides the server's status */
    bool at_end, half_closed;
    bool cancelled;                                 /* by us; under the channel's mu */
    char tag_start, tag_send, tag_recv, tag_status; /* their addresses are the tags */
};

/* ---- channel ---- */

static pseg_status read_pem(char **out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n;

    if (!path)
        return PSEG_OK;
    PSEG_TRY(pseg_file_read((uint8_t **)out, &n, path, PEM_BYTES, err));
    if (!strstr(*out, "-----BEGIN "))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s is no PEM file; convert it with openssl", path);
out:
    return rc;
}

static pseg_status credentials(grpc_channel_credentials **out, const pseg_rpc_channel_options *o,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *ca = NULL, *cert = NULL, *key = NULL;

    if (!o->use_tls && !o->ca_file && !o->cert_file && !o->key_file) {
        *out = grpc_insecure_credentials_create();
        return PSEG_OK;
    }
    if (!o->cert_file != !o->key_file)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "a client certificate needs its key, and only one of the files is given");
    PSEG_TRY(read_pem(&ca, o->ca_file, err));
    PSEG_TRY(read_pem(&cert, o->cert_file, err));
    PSEG_TRY(read_pem(&key, o->key_file, err));
    grpc_ssl_pem_key_cert_pair pair = {key, cert};
    *out = grpc_ssl_credentials_create_ex(ca, cert ? &pair : NULL, NULL, NULL);
    if (!*out)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "the certificates cannot be used");
out:
    if (key)
        explicit_bzero(key, strlen(key));
    pseg_free(ca);
    pseg_free(cert);
    pseg_free(key);
    return rc;
}

static grpc_channel *create_core(const pseg_rpc_channel_options *o,
                                 grpc_channel_credentials *credentials)
{
    const struct {
        const char *key;
        int value;
    } ints[] = {
        {GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
         o->max_message_bytes > INT_MAX ? INT_MAX : (int)o->max_message_bytes},
        {GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, INT_MAX},
        {GRPC_ARG_KEEPALIVE_TIME_MS, 30000}, /* above the least that our servers allow */
        {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000},
        {GRPC_ARG_ENABLE_HTTP_PROXY, 0}, /* no environment variable decides where calls go */
        {GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100},
        {GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000},
        {GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5000},
        {GRPC_ARG_ENABLE_RETRIES, o->retry},
    };
    enum { N_INTS = sizeof ints / sizeof *ints };
    grpc_arg list[N_INTS + 2];
    grpc_channel_args args = {0, list};

    for (size_t i = 0; i < N_INTS; i++)
        list[args.num_args++] = (grpc_arg){
            .type = GRPC_ARG_INTEGER, .key = (char *)ints[i].key, .value.integer = ints[i].value};
    if (o->authority)
        list[args.num_args++] = (grpc_arg){.type = GRPC_ARG_STRING,
                                           .key = (char *)GRPC_SSL_TARGET_NAME_OVERRIDE_ARG,
                                           .value.string = (char *)o->authority};
    if (o->retry)
        list[args.num_args++] = (grpc_arg){.type = GRPC_ARG_STRING,
                                           .key = (char *)GRPC_ARG_SERVICE_CONFIG,
                                           .value.string = (char *)retry_config};
    return grpc_channel_create(o->target, credentials, &args);
}

pseg_status pseg_rpc_dial(pseg_rpc_channel **out, const pseg_rpc_channel_options *options,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_channel *ch = NULL;
    grpc_channel_credentials *creds = NULL;

    *out = NULL;
    if (!options->target || !*options->target)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "no server is named; give HOST:PORT");
    if (options->bearer && options->bearer[strcspn(options->bearer, "\r\n")])
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "the bearer key holds a line break; remove it");
    pseg_trace_context ignored;
    if (options->traceparent && !pseg_trace_context_parse(&ignored, options->traceparent))
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "traceparent \"%s\" is not 00-TRACE-SPAN-FLAGS (W3C Trace Context)",
                  options->traceparent);
    PSEG_TRY(credentials(&creds, options, err));
    ch = pseg_calloc(1, sizeof *ch);
    if (!ch)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    pthread_mutex_init(&ch->mu, NULL);
    ch->wait_for_ready = options->wait_for_ready;
    ch->max_message_bytes = options->max_message_bytes;
    ch->target = pseg_strdup(options->target);
    ch->bearer = options->bearer ? pseg_asprintf("Bearer %s", options->bearer) : NULL;
    ch->traceparent = options->traceparent ? pseg_strdup(options->traceparent) : NULL;
    if (!ch->target || (options->bearer && !ch->bearer) ||
        (options->traceparent && !ch->traceparent))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    ch->core = create_core(options, creds);
    *out = ch;
    ch = NULL;
out:
    if (creds)
        grpc_channel_credentials_release(creds);
    pseg_rpc_hangup(ch);
    return rc;
}

void pseg_rpc_hangup(pseg_rpc_channel *ch)
{
    if (!ch)
        return;
    if (ch->core)
        grpc_channel_destroy(ch->core);
    if (ch->bearer)
        explicit_bzero(ch->bearer, strlen(ch->bearer));
    pthread_mutex_destroy(&ch->mu);
    pseg_free(ch->bearer);
    pseg_free(ch->traceparent);
    pseg_free(ch->target);
    pseg_free(ch);
}

static void cancel(pseg_rpc_stream *s) /* the channel's mu is held */
{
    s->cancelled = true;
    grpc_call_cancel(s->call, NULL);
}

void pseg_rpc_cancel_all(pseg_rpc_channel *ch)
{
    pthread_mutex_lock(&ch->mu);
    for (pseg_rpc_stream *s = ch->streams; s; s = s->next)
        cancel(s);
    pthread_mutex_unlock(&ch->mu);
}

/* ---- streams ---- */

/* The core ends every wait by itself, at the deadline of the call at the latest. */
static bool wait_for(pseg_rpc_stream *s, void *tag)
{
    return grpc_completion_queue_pluck(s->cq, tag, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL)
        .success;
}

static bool run(pseg_rpc_stream *s, const grpc_op *ops, size_t n, void *tag)
{
    return grpc_call_start_batch(s->call, ops, n, tag, NULL) == GRPC_CALL_OK && wait_for(s, tag);
}

static void start(pseg_rpc_stream *s)
{
    const char *const values[] = {s->channel->bearer, s->channel->traceparent};
    static const char *const keys[] = {"authorization", "traceparent"};
    grpc_metadata all[2];
    size_t n = 0;
    grpc_op send = {.op = GRPC_OP_SEND_INITIAL_METADATA};
    grpc_op receive[2] = {{.op = GRPC_OP_RECV_INITIAL_METADATA,
                           .data.recv_initial_metadata.recv_initial_metadata = &s->headers},
                          {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                           .data.recv_status_on_client = {.trailing_metadata = &s->trailers,
                                                          .status = &s->code,
                                                          .status_details = &s->text}}};

    for (int i = 0; i < 2; i++)
        if (values[i])
            all[n++] = (grpc_metadata){.key = grpc_slice_from_static_string(keys[i]),
                                       .value = grpc_slice_from_copied_string(values[i])};
    send.data.send_initial_metadata.count = n;
    send.data.send_initial_metadata.metadata = all;
    if (s->channel->wait_for_ready)
        send.flags = GRPC_INITIAL_METADATA_WAIT_FOR_READY |
                     GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET;
    grpc_call_start_batch(s->call, receive, 2, &s->tag_status, NULL);
    (void)run(s, &send, 1, &s->tag_start);
    while (n)
        grpc_slice_unref(all[--n].value);
}

pseg_status pseg_rpc_open(pseg_rpc_stream **out, pseg_rpc_channel *ch, const char *method,
                          const ProtobufCMessageDescriptor *reply_type, int64_t timeout_ms,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_REALTIME);
    pseg_rpc_stream *s = pseg_calloc(1, sizeof *s);

    *out = NULL;
    if (!s)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    if (timeout_ms >= 0)
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_REALTIME),
                                gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
    s->channel = ch;
    s->method = method;
    s->reply_type = reply_type;
    s->text = grpc_empty_slice();
    s->cq = grpc_completion_queue_create_for_pluck(NULL);
    grpc_metadata_array_init(&s->headers);
    grpc_metadata_array_init(&s->trailers);
    grpc_slice path = grpc_slice_from_copied_string(method);
    s->call = grpc_channel_create_call(ch->core, NULL, GRPC_PROPAGATE_DEFAULTS, s->cq, path, NULL,
                                       deadline, NULL);
    grpc_slice_unref(path);
    pthread_mutex_lock(&ch->mu);
    s->next = ch->streams;
    s->slot = &ch->streams;
    if (s->next)
        s->next->slot = &s->next;
    ch->streams = s;
    pthread_mutex_unlock(&ch->mu);
    start(s);
    *out = s;
out:
    return rc;
}

bool pseg_rpc_stream_send(pseg_rpc_stream *s, const ProtobufCMessage *m)
{
    grpc_byte_buffer *b = pseg_rpc_buffer(pseg_rpc_pack(m));
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = b};
    bool ok = !s->half_closed && run(s, &op, 1, &s->tag_send);

    grpc_byte_buffer_destroy(b);
    return ok;
}

void pseg_rpc_stream_half_close(pseg_rpc_stream *s)
{
    grpc_op op = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};

    if (!s->half_closed)
        (void)run(s, &op, 1, &s->tag_send);
    s->half_closed = true;
}

/* The next reply's bytes, to be unreffed; false at the end. */
static bool receive(pseg_rpc_stream *s, grpc_slice *out)
{
    grpc_byte_buffer *b = NULL;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &b};
    bool ok = !s->at_end && run(s, &op, 1, &s->tag_recv) && b;

    s->at_end = !ok;
    if (ok && !pseg_rpc_flatten(b, out)) {
        pseg_err_set(&s->broken, PSEG_R_INTERNAL, 0, PSEG_HERE, "a reply cannot be read");
        ok = false;
    }
    if (b)
        grpc_byte_buffer_destroy(b);
    return ok;
}

ProtobufCMessage *pseg_rpc_stream_recv(pseg_rpc_stream *s)
{
    ProtobufCMessage *m = NULL;
    grpc_slice bytes;

    if (s->broken.code != PSEG_OK || !receive(s, &bytes))
        return NULL;
    size_t len = GRPC_SLICE_LENGTH(bytes);
    if (pseg_rpc_check_strings(s->reply_type, GRPC_SLICE_START_PTR(bytes), len, NULL, NULL) ==
        PSEG_OK)
        m = protobuf_c_message_unpack(s->reply_type, NULL, len, GRPC_SLICE_START_PTR(bytes));
    grpc_slice_unref(bytes);
    if (!m) {
        pseg_err_set(&s->broken, PSEG_R_INTERNAL, 0, PSEG_HERE,
                     "the server's reply of %zu bytes is no %s; are client and server of one "
                     "release?",
                     len, s->reply_type->name);
        grpc_call_cancel(s->call, NULL);
    }
    return m;
}

void pseg_rpc_stream_cancel(pseg_rpc_stream *s)
{
    pthread_mutex_lock(&s->channel->mu);
    cancel(s);
    pthread_mutex_unlock(&s->channel->mu);
}

/* ---- the end ---- */

/* A status without details comes from the core, ours or the server's, or from a server of others.
 */
static pseg_status bare_status(pseg_rpc_stream *s, const char *text, pseg_err *err)
{
    static const char refused[] = "Failed to connect to remote host: ";
    Google__Rpc__Status st = GOOGLE__RPC__STATUS__INIT;
    const char *cause = strstr(text, refused);

    switch (s->code) {
    case GRPC_STATUS_UNAVAILABLE:
        return pseg_err_set(err, PSEG_R_SERVER_UNAVAILABLE, s->code, PSEG_HERE,
                            "cannot reach %s: %s; is the server running there?", s->channel->target,
                            cause ? cause + sizeof refused - 1 : text);
    case GRPC_STATUS_CANCELLED:
        /* A server that stops cancels what it has not taken up yet, and what outlives its grace. */
        pthread_mutex_lock(&s->channel->mu);
        bool by_us = s->cancelled;
        pthread_mutex_unlock(&s->channel->mu);
        if (!by_us)
            return pseg_err_set(
                err, PSEG_R_SERVER_UNAVAILABLE, s->code, PSEG_HERE,
                "%s ended the call without an answer; it may be stopping, try again",
                s->channel->target);
        break;
    case GRPC_STATUS_DEADLINE_EXCEEDED:
        return pseg_err_set(err, PSEG_R_DEADLINE_EXCEEDED, s->code, PSEG_HERE,
                            "%s gave no answer to %s before the deadline", s->channel->target,
                            s->method);
    case GRPC_STATUS_RESOURCE_EXHAUSTED:
        if (strstr(text, "larger than max"))
            return pseg_err_set(err, PSEG_R_REQUEST_TOO_LARGE, s->code, PSEG_HERE,
                                "a message of %s is over a size limit: %s", s->method, text);
        break;
    case GRPC_STATUS_UNIMPLEMENTED:
        return pseg_err_set(err, PSEG_R_UNSUPPORTED, s->code, PSEG_HERE,
                            "%s does not have %s: %s; its version may be older", s->channel->target,
                            s->method, text);
    default:
        break;
    }
    st.code = s->code;
    st.message = (char *)text;
    return pseg_rpc_status_read(err, NULL, &st);
}

static pseg_status read_status(pseg_rpc_stream *s, int64_t *retry_after_ms, pseg_err *err)
{
    Google__Rpc__Status *st = NULL;
    pseg_status rc;

    for (size_t i = 0; i < s->trailers.count && !st; i++)
        if (grpc_slice_str_cmp(s->trailers.metadata[i].key, "grpc-status-details-bin") == 0) {
            grpc_slice v = s->trailers.metadata[i].value;
            st = google__rpc__status__unpack(NULL, GRPC_SLICE_LENGTH(v), GRPC_SLICE_START_PTR(v));
        }
    if (st && st->code == (int)s->code) {
        rc = pseg_rpc_status_read(err, retry_after_ms, st);
    } else {
        char *text = grpc_slice_to_c_string(s->text);
        rc = bare_status(s, text, err);
        gpr_free(text);
    }
    if (st)
        google__rpc__status__free_unpacked(st, NULL);
    return rc;
}

static void stream_free(pseg_rpc_stream *s)
{
    pthread_mutex_lock(&s->channel->mu);
    *s->slot = s->next;
    if (s->next)
        s->next->slot = s->slot;
    pthread_mutex_unlock(&s->channel->mu);
    grpc_slice_unref(s->text);
    grpc_metadata_array_destroy(&s->headers);
    grpc_metadata_array_destroy(&s->trailers);
    grpc_call_unref(s->call);
    grpc_completion_queue_shutdown(s->cq);
    grpc_completion_queue_destroy(s->cq);
    pseg_free(s);
}

pseg_status pseg_rpc_close(pseg_rpc_stream *s, int64_t *retry_after_ms, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    grpc_slice bytes;

    if (retry_after_ms)
        *retry_after_ms = -1;
    if (!s)
        return PSEG_OK;
    pseg_rpc_stream_half_close(s);
    while (receive(s, &bytes)) /* the status comes behind the last reply */
        grpc_slice_unref(bytes);
    (void)wait_for(s, &s->tag_status);
    if (s->broken.code != PSEG_OK) {
        rc = s->broken.code;
        if (err)
            *err = s->broken;
    } else if (s->code != GRPC_STATUS_OK) {
        rc = read_status(s, retry_after_ms, err);
    }
    stream_free(s);
    return rc;
}

pseg_status pseg_rpc_unary(ProtobufCMessage **reply, pseg_rpc_channel *ch, const char *method,
                           const ProtobufCMessage *request,
                           const ProtobufCMessageDescriptor *reply_type, int64_t timeout_ms,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_stream *s = NULL;
    ProtobufCMessage *m = NULL;

    *reply = NULL;
    PSEG_TRY(pseg_rpc_open(&s, ch, method, reply_type, timeout_ms, err));
    if (pseg_rpc_stream_send(s, request)) {
        pseg_rpc_stream_half_close(s);
        m = pseg_rpc_stream_recv(s);
    }
    PSEG_TRY(pseg_rpc_close(s, NULL, err));
    if (!m)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "%s answered %s without a message", ch->target, method);
    *reply = m;
    m = NULL;
out:
    pseg_rpc_message_free(m);
    return rc;
}

void pseg_rpc_message_free(ProtobufCMessage *m)
{
    if (m)
        protobuf_c_message_free_unpacked(m, NULL);
}
