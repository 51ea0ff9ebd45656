/* A call from its arrival to its end. Everything here runs on the loop of the call, except
 * pseg_rpc_post. */
#include "common/rpc/internal.h"

#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/rpc/status.h"

#include <grpc/byte_buffer.h>

#include <stdlib.h>
#include <string.h>

#define CALL_OF(t, member) ((pseg_rpc_call *)((char *)(t)-offsetof(pseg_rpc_call, member)))
#define ARENA_BYTES        ((size_t)64 << 20)
#define REQUESTS_RETRY_MS  50
#define PUBLIC_CALLS \
    256 /* of health and reflection, unary and streams each, or a quarter of max_live_calls */
#define PATH_SHOWN 200

static void start_finish(pseg_rpc_call *c, grpc_byte_buffer *message);

/* ---- life ---- */

static void call_free(pseg_rpc_call *c)
{
    pseg_rpc_loop *l = c->loop;

    pseg_arena_free(c->arena); /* its clean-ups may look at the call */
    if (c->call) {
        if (c->prev)
            c->prev->next = c->next;
        else
            l->calls = c->next;
        if (c->next)
            c->next->prev = c->prev;
        atomic_fetch_sub(&l->n_live, 1);
        l->n_of[c->class] -= c->is_counted;
        grpc_call_unref(c->call);
    }
    if (c->in)
        grpc_byte_buffer_destroy(c->in);
    if (c->out)
        grpc_byte_buffer_destroy(c->out);
    grpc_slice_unref(c->text);
    grpc_slice_unref(c->details_bin);
    grpc_metadata_array_destroy(&c->headers);
    grpc_call_details_destroy(&c->details);
    pseg_free(c);
    pseg_rpc_loop_unref(l);
}

static void unref(pseg_rpc_call *c)
{
    if (--c->refs == 0)
        call_free(c);
}

static bool start_batch(pseg_rpc_call *c, const grpc_op *ops, size_t n, pseg_rpc_tag *t)
{
    c->refs++;
    grpc_call_error e = grpc_call_start_batch(c->call, ops, n, t, NULL);
    if (e == GRPC_CALL_OK)
        return true;
    c->refs--;
    PSEG_ERROR(c->loop->server->options.log, "rpc", "batch refused: %s",
               grpc_call_error_to_string(e));
    return false;
}

bool pseg_rpc_is_over(const pseg_rpc_call *c)
{
    return c->closed || c->finish_started || c->finish_wanted;
}

bool pseg_rpc_is_cancelled(const pseg_rpc_call *c)
{
    return c->closed && c->cancelled;
}

/* ---- receiving ---- */

static void deliver(pseg_rpc_call *c)
{
    const pseg_rpc_method *m = c->row->method;
    bool is_stream = m->flags & PSEG_RPC_CLIENT_STREAM;
    pseg_err err = PSEG_ERR_INIT;
    ProtobufCMessage *msg = NULL;
    pseg_arena *once = NULL; /* a stream's messages must not pile up in the call's arena */
    grpc_slice bytes;

    if (!c->in) {
        c->eof = true;
        if (is_stream) {
            m->on_message(c, NULL);
        } else {
            pseg_err_set(&err, PSEG_R_REQUEST_MALFORMED, 0, PSEG_HERE, "the request is missing");
            pseg_rpc_fail(c, &err);
        }
        return;
    }
    bool ok = pseg_rpc_flatten(c->in, &bytes);
    grpc_byte_buffer_destroy(c->in);
    c->in = NULL;
    if (!ok) {
        pseg_err_set(&err, PSEG_R_REQUEST_MALFORMED, 0, PSEG_HERE, "the message cannot be read");
        pseg_rpc_fail(c, &err);
        return;
    }
    size_t len = GRPC_SLICE_LENGTH(bytes);
    if (is_stream)
        once = pseg_arena_new(len * PSEG_RPC_MEMORY_PER_BYTE + 2 * PSEG_RPC_MEMORY_PER_REQUEST);
    if (is_stream && !once)
        pseg_err_set(&err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "out of memory");
    else
        (void)pseg_rpc_unpack(&msg, c, once ? once : c->arena, GRPC_SLICE_START_PTR(bytes), len,
                              &err);
    if (msg) {
        m->on_message(c, msg);
    } else {
        atomic_fetch_add(&c->loop->n_refused, 1);
        pseg_rpc_fail(c, &err);
    }
    pseg_arena_free(once);
    grpc_slice_unref(bytes);
}

static void on_received(pseg_rpc_tag *t, bool ok)
{
    pseg_rpc_call *c = CALL_OF(t, on_received);

    c->reading = false;
    pseg_rpc_timer_cancel(c->loop, &c->first);
    if (ok && !pseg_rpc_is_over(c))
        deliver(c);
    unref(c);
}

void pseg_rpc_read(pseg_rpc_call *c)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->in};

    if (!c->reading && !c->eof && !pseg_rpc_is_over(c))
        c->reading = start_batch(c, &op, 1, &c->on_received);
}

/* ---- sending ---- */

static bool fits(pseg_rpc_call *c, const ProtobufCMessage *msg)
{
    size_t n = protobuf_c_message_get_packed_size(msg),
           max = c->loop->server->options.max_reply_bytes;
    pseg_err err = PSEG_ERR_INIT;

    if (n <= max)
        return true;
    pseg_err_set(&err, PSEG_R_INTERNAL, 0, PSEG_HERE,
                 "a reply of %zu bytes is over the limit of %zu", n, max);
    pseg_rpc_fail(c, &err);
    return false;
}

static void on_sent(pseg_rpc_tag *t, bool ok)
{
    pseg_rpc_call *c = CALL_OF(t, on_sent);

    c->sending = false;
    grpc_byte_buffer_destroy(c->out);
    c->out = NULL;
    if (c->finish_wanted && !c->closed)
        start_finish(c, NULL);
    else if (ok && !pseg_rpc_is_over(c) && c->row->method->on_writable)
        c->row->method->on_writable(c);
    unref(c);
}

void pseg_rpc_send(pseg_rpc_call *c, const ProtobufCMessage *msg)
{
    grpc_op ops[2] = {{0}};
    size_t n = 0;

    if (c->sending || pseg_rpc_is_over(c) || !fits(c, msg))
        return;
    if (!c->sent_headers)
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    c->out = pseg_rpc_buffer(pseg_rpc_pack(msg));
    ops[n].op = GRPC_OP_SEND_MESSAGE;
    ops[n++].data.send_message.send_message = c->out;
    c->sent_headers = true;
    c->sent_us = pseg_clock_mono_us();
    c->sending = start_batch(c, ops, n, &c->on_sent);
}

static void on_finished(pseg_rpc_tag *t, bool ok)
{
    (void)ok; /* on_closed tells */
    unref(CALL_OF(t, on_finished));
}

/* The status, and before it the message of a unary reply, in one batch. */
static void start_finish(pseg_rpc_call *c, grpc_byte_buffer *message)
{
    grpc_op ops[3] = {{0}}, *o = ops;
    grpc_metadata details = {.key = grpc_slice_from_static_string("grpc-status-details-bin"),
                             .value = c->details_bin};

    c->finish_started = true;
    if (!c->sent_headers)
        (o++)->op = GRPC_OP_SEND_INITIAL_METADATA;
    c->sent_headers = true;
    if (message) {
        o->op = GRPC_OP_SEND_MESSAGE;
        (o++)->data.send_message.send_message = message;
    }
    o->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    struct grpc_op_send_status_from_server *st = &(o++)->data.send_status_from_server;
    st->status = (grpc_status_code)c->code;
    st->status_details = c->code ? &c->text : NULL;
    if (GRPC_SLICE_LENGTH(c->details_bin) > 0) {
        st->trailing_metadata_count = 1;
        st->trailing_metadata = &details;
    }
    (void)start_batch(c, ops, (size_t)(o - ops), &c->on_finished); /* takes its own references */
}

static void finish(pseg_rpc_call *c)
{
    if (c->sending)
        c->finish_wanted = true; /* after the message in flight */
    else
        start_finish(c, NULL);
}

void pseg_rpc_reply(pseg_rpc_call *c, const ProtobufCMessage *msg)
{
    if (c->sending || pseg_rpc_is_over(c) || !fits(c, msg))
        return;
    c->out = pseg_rpc_buffer(pseg_rpc_pack(msg));
    start_finish(c, c->out);
}

void pseg_rpc_finish(pseg_rpc_call *c)
{
    if (!pseg_rpc_is_over(c))
        finish(c);
}

void pseg_rpc_fail_code(pseg_rpc_call *c, int code, const char *text)
{
    if (pseg_rpc_is_over(c))
        return;
    c->code = code;
    c->text = grpc_slice_from_copied_string(text);
    finish(c);
}

void pseg_rpc_fail_after(pseg_rpc_call *c, const pseg_err *err, int64_t retry_after_ms)
{
    if (pseg_rpc_is_over(c))
        return;
    pseg_arena *a = pseg_arena_new((size_t)64 << 10);
    Google__Rpc__Status *st = a ? pseg_rpc_status_of(a, err, retry_after_ms) : NULL;
    if (st)
        c->details_bin = pseg_rpc_pack(&st->base);
    pseg_rpc_fail_code(c, pseg_reason_grpc(err->reason), st ? st->message : "out of memory");
    pseg_arena_free(a);
}

void pseg_rpc_fail(pseg_rpc_call *c, const pseg_err *err)
{
    pseg_rpc_fail_after(c, err, -1);
}

void pseg_rpc_abort(pseg_rpc_call *c)
{
    if (!c->closed)
        grpc_call_cancel(c->call, NULL);
}

/* ---- away from the loop and back ---- */

static void on_posted(pseg_rpc_tag *tag, bool ok)
{
    pseg_rpc_ticket *t = (pseg_rpc_ticket *)tag;
    pseg_rpc_call *c = t->call;

    (void)ok;
    t->fn(c, t->arg);
    pseg_free(t);
    unref(c);
}

pseg_rpc_ticket *pseg_rpc_hold(pseg_rpc_call *c)
{
    pseg_rpc_ticket *t = pseg_malloc(sizeof *t);

    if (t) {
        *t = (pseg_rpc_ticket){.tag.fn = on_posted, .call = c};
        c->refs++;
    }
    return t;
}

void pseg_rpc_post(pseg_rpc_ticket *t, void (*fn)(pseg_rpc_call *c, void *arg), void *arg)
{
    t->fn = fn;
    t->arg = arg;
    /* An empty batch completes at once, on the queue of the call, from any thread. It is refused
     * for no reason but a call or a queue that is gone, and the ticket keeps both. */
    (void)grpc_call_start_batch(t->call->call, NULL, 0, &t->tag, NULL);
}

void pseg_rpc_ticket_drop(pseg_rpc_ticket *t)
{
    pseg_rpc_call *c = t->call;

    pseg_free(t);
    unref(c);
}

/* ---- arrival ---- */

static int row_cmp(const void *path, const void *row)
{
    return grpc_slice_str_cmp(*(const grpc_slice *)path, ((const pseg_rpc_row *)row)->method->path);
}

static void tell_ended(pseg_rpc_call *c)
{
    const pseg_rpc_server_options *o = &c->loop->server->options;

    if (!o->on_ended || !c->row)
        return;
    pseg_rpc_ended e = {.path = c->row->method->path,
                        .tenant = c->tenant[0] ? c->tenant : "default",
                        .code = pseg_rpc_code_name(c->cancelled ? GRPC_STATUS_CANCELLED : c->code),
                        .us = pseg_clock_mono_us() - c->began_us};
    /* Probes come every few seconds, and nobody wants to see them unless he asks. */
    bool is_wanted = o->trace_ratio >= 0 && pseg_rpc_trace(c) && c->has_trace;
    if (is_wanted && (c->has_caller || !(c->row->method->flags & PSEG_RPC_PUBLIC))) {
        e.trace = &c->trace;
        e.trace_parent = c->has_caller ? c->caller.span_id : NULL;
    }
    o->on_ended(o->on_ended_ud, &e);
}

static void on_closed(pseg_rpc_tag *t, bool ok)
{
    pseg_rpc_call *c = CALL_OF(t, on_closed);

    (void)ok;
    c->closed = true;
    if (c->dispatched && c->row->method->on_end)
        c->row->method->on_end(c);
    tell_ended(c);
    unref(c);
}

/* Calls that are opened and left alone would use up max_live_calls. */
static void first_is_late(pseg_rpc_timer *t, void *ud)
{
    pseg_rpc_call *c = ud;
    pseg_err err = PSEG_ERR_INIT;
    int64_t ms = c->loop->server->options.first_message_ms;

    (void)t;
    pseg_err_set(&err, PSEG_R_DEADLINE_EXCEEDED, 0, PSEG_HERE,
                 "the call was opened, and no request has come for %lld ms", (long long)ms);
    pseg_err_value(&err, "%lld", (long long)ms);
    pseg_err_limit(&err, "%lld", (long long)ms);
    pseg_rpc_fail(c, &err);
}

static pseg_rpc_class class_of(const pseg_rpc_method *m)
{
    if (!(m->flags & PSEG_RPC_PUBLIC))
        return PSEG_RPC_ORDINARY;
    return m->flags & (PSEG_RPC_CLIENT_STREAM | PSEG_RPC_SERVER_STREAM) ? PSEG_RPC_PUBLIC_STREAM
                                                                        : PSEG_RPC_PUBLIC_UNARY;
}

static const char *const class_name[PSEG_RPC_N_CLASSES] = {"", "public unary ",
                                                           "public streaming "};

/* May this call be answered by a handler? */
static pseg_status admit(pseg_rpc_call *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_loop *l = c->loop;
    pseg_rpc_server *s = l->server;
    int max = s->options.max_live_calls;

    c->row = bsearch(&c->details.method, s->rows, s->n_rows, sizeof *s->rows, row_cmp);
    if (!c->row)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "unknown method %.*s; the server's version may be older",
                  GRPC_SLICE_LENGTH(c->details.method) < PATH_SHOWN
                      ? (int)GRPC_SLICE_LENGTH(c->details.method)
                      : PATH_SHOWN,
                  (const char *)GRPC_SLICE_START_PTR(c->details.method));
    c->class = class_of(c->row->method);
    if (c->class != PSEG_RPC_ORDINARY)
        max = max / 4 > PUBLIC_CALLS ? max / 4 : PUBLIC_CALLS;
    if (l->n_of[c->class] >= max)
        PSEG_FAIL(PSEG_R_SERVER_BUSY, 0, "the server has %d %scalls at once, its limit; try later",
                  max, class_name[c->class]);
    if (l->draining)
        PSEG_FAIL(PSEG_R_DRAINING, 0, "the server is stopping; try again, another may answer");
    c->arena =
        pseg_arena_new(ARENA_BYTES + s->options.max_message_bytes * PSEG_RPC_MEMORY_PER_BYTE);
    if (!c->arena)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    if (!(c->row->method->flags & PSEG_RPC_PUBLIC))
        PSEG_TRY(pseg_rpc_authorize(c, err));
    c->is_counted = true;
    l->n_of[c->class]++;
out:
    return rc;
}

static void on_new(pseg_rpc_tag *t, bool ok)
{
    pseg_rpc_call *c = CALL_OF(t, on_new);
    pseg_rpc_loop *l = c->loop;
    pseg_rpc_server *s = l->server;
    pseg_err err = PSEG_ERR_INIT;
    grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                     .data.recv_close_on_server.cancelled = &c->cancelled};

    if (!ok) {
        c->call = NULL;
        pseg_rpc_drain(l);
        call_free(c);
        return;
    }
    c->began_us = pseg_clock_mono_us();
    atomic_fetch_add(&l->n_calls, 1);
    atomic_fetch_add(&l->n_live, 1);
    c->next = l->calls;
    if (c->next)
        c->next->prev = c;
    l->calls = c;
    pseg_rpc_call_request(l); /* always, also while stopping: see pseg_rpc_drain */
    if (!start_batch(c, &close, 1, &c->on_closed)) {
        grpc_call_cancel(c->call, NULL);
    } else if (admit(c, &err) == PSEG_OK) {
        c->dispatched = true;
        pseg_rpc_read(c);
        if (c->reading)
            pseg_rpc_timer_set(l, &c->first, s->options.first_message_ms, first_is_late, c);
    } else {
        atomic_fetch_add(&l->n_refused, 1);
        pseg_rpc_fail(c, &err);
    }
    unref(c);
}

static void retry_requests(pseg_rpc_timer *t, void *ud)
{
    pseg_rpc_loop *l = ud;
    int n = l->n_missing;

    (void)t;
    l->n_missing = 0;
    while (n-- > 0)
        pseg_rpc_call_request(l);
}

void pseg_rpc_call_request(pseg_rpc_loop *l)
{
    pseg_rpc_call *c = pseg_calloc(1, sizeof *c);

    if (!c) {
        l->n_missing++;
        pseg_rpc_timer_set(l, &l->retry, REQUESTS_RETRY_MS, retry_requests, l);
        return;
    }
    l->n_open++;
    c->loop = l;
    c->refs = 1;
    c->on_new.fn = on_new;
    c->on_received.fn = on_received;
    c->on_sent.fn = on_sent;
    c->on_closed.fn = on_closed;
    c->on_finished.fn = on_finished;
    c->text = c->details_bin = grpc_empty_slice();
    memcpy(c->tenant, "default", sizeof "default");
    grpc_metadata_array_init(&c->headers);
    grpc_call_details_init(&c->details);
    grpc_call_error e = grpc_server_request_call(l->server->server, &c->call, &c->details,
                                                 &c->headers, l->cq, l->cq, &c->on_new);
    if (e != GRPC_CALL_OK) {
        PSEG_ERROR(l->server->options.log, "rpc", "cannot ask for calls: %s",
                   grpc_call_error_to_string(e));
        c->call = NULL;
        call_free(c);
    }
}
