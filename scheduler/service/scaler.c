/* externalscaler.ExternalScaler: KEDA asks how much work waits, and starts and stops workers by it.
 * The answers come from the queue, so every scheduler gives the same ones. */
#include "keda/externalscaler.pb-c.h"
#include "scheduler/service/internal.h"
#include "scheduler/service/scale_aim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef Externalscaler__ScaledObjectRef object_ref;

/* How often a stream asks whether a job came or the last one went. Submits are no events, and may
 * come through any scheduler. */
enum { ASK_MS = 250 };

static char metric_name[] = "backlog-seconds";

/* NULL: the call has failed. */
static scale_aim *aim_of(pseg_rpc_call *c, const object_ref *q)
{
    pseg_err e = PSEG_ERR_INIT;
    scale_aim *a = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *a);

    if (!a) {
        fail_no_memory(c);
    } else if (scale_aim_of(a, q, service_of(c)->opt.default_model, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        a = NULL;
    }
    return a;
}

/* ---- single answers ---- */

static void is_active_known(pseg_rpc_call *c, pseg_queue_reply *r)
{
    Externalscaler__IsActiveResponse out = EXTERNALSCALER__IS_ACTIVE_RESPONSE__INIT;

    if (fail_if_error(c, r))
        return;
    out.result = r->backlog.live > 0;
    pseg_rpc_reply(c, &out.base);
}

static void is_active(pseg_rpc_call *c, const void *msg)
{
    const scale_aim *a = aim_of(c, msg);
    op *o = a ? op_new(c, is_active_known) : NULL;

    if (o)
        pseg_queue_get_backlog(service_of(c)->queue, a->model, 0, op_done, o);
}

static void get_metric_spec(pseg_rpc_call *c, const void *msg)
{
    Externalscaler__GetMetricSpecResponse out = EXTERNALSCALER__GET_METRIC_SPEC_RESPONSE__INIT;
    Externalscaler__MetricSpec spec = EXTERNALSCALER__METRIC_SPEC__INIT, *specs[] = {&spec};
    const scale_aim *a = aim_of(c, msg);

    if (!a)
        return;
    spec.metricname = metric_name;
    spec.targetsizefloat = a->target.target_s;
    spec.targetsize = (int64_t)ceil(a->target.target_s);
    out.n_metricspecs = 1;
    out.metricspecs = specs;
    pseg_rpc_reply(c, &out.base);
}

static void metrics_known(pseg_rpc_call *c, pseg_queue_reply *r)
{
    Externalscaler__GetMetricsResponse out = EXTERNALSCALER__GET_METRICS_RESPONSE__INIT;
    Externalscaler__MetricValue value = EXTERNALSCALER__METRIC_VALUE__INIT, *values[] = {&value};
    const scale_aim *a = state_of(c)->own;

    if (fail_if_error(c, r))
        return;
    value.metricname = metric_name;
    value.metricvaluefloat = pseg_scale_backlog_s(&r->backlog, &a->target);
    value.metricvalue = (int64_t)ceil(value.metricvaluefloat);
    out.n_metricvalues = 1;
    out.metricvalues = values;
    pseg_rpc_reply(c, &out.base);
}

static void get_metrics(pseg_rpc_call *c, const void *msg)
{
    const Externalscaler__GetMetricsRequest *q = msg;
    scale_aim *a = aim_of(c, q->scaledobjectref);
    pseg_err e = PSEG_ERR_INIT;

    if (!a)
        return;
    if (*q->metricname && strcmp(q->metricname, metric_name) != 0) {
        pseg_err_set(&e, PSEG_R_INVALID_ARGUMENT, 0, PSEG_HERE,
                     "there is no metric \"%.60s\"; GetMetricSpec names the one there is, %s",
                     q->metricname, metric_name);
        pseg_err_field(&e, "metricName");
        pseg_err_value(&e, "%.60s", q->metricname);
        pseg_err_limit(&e, "%s", metric_name);
        pseg_rpc_fail(c, &e);
        return;
    }
    call_state *state = state_of(c);
    op *o = state ? op_new(c, metrics_known) : NULL;
    if (!o) {
        fail_no_memory(c);
        return;
    }
    state->own = a;
    pseg_queue_get_backlog(service_of(c)->queue, a->model, PSEG_SCALE_DEADLINES, op_done, o);
}

/* ---- the stream ---- */

/* A stream's own op, used again and again: it may last for months, and what a call takes from its
 * arena comes back at its end. */
typedef struct active_stream {
    const scale_aim *aim;
    pseg_rpc_call *call;
    pseg_rpc_ticket *ticket;
    pseg_queue_reply *reply;
    pseg_rpc_timer timer;
    bool is_told, told; /* what the client knows */
    bool is_writing;
    bool active; /* what the queue said last */
} active_stream;

static void stream_ask(active_stream *s);

static void stream_timer(pseg_rpc_timer *t, void *ud)
{
    (void)t;
    stream_ask(ud);
}

/* A client that reads slowly gets the present state, not all there were. */
static void stream_tell(active_stream *s)
{
    Externalscaler__IsActiveResponse out = EXTERNALSCALER__IS_ACTIVE_RESPONSE__INIT;

    if (s->is_writing || (s->is_told && s->told == s->active))
        return;
    s->is_told = s->is_writing = true;
    s->told = s->active;
    out.result = s->active;
    pseg_rpc_send(s->call, &out.base);
}

/* Without an answer of Redis the last state holds: stopping workers for it would be wrong, and the
 * queue dials again by itself. */
static void stream_answered(pseg_rpc_call *c, void *arg)
{
    active_stream *s = arg;
    pseg_queue_reply *r = s->reply;

    if (!pseg_rpc_is_over(c)) {
        pseg_rpc_timer_set(pseg_rpc_loop_of(c), &s->timer, ASK_MS, stream_timer, s);
        if (r->err.code == PSEG_OK) {
            s->active = r->backlog.live > 0;
            stream_tell(s);
        }
    }
    pseg_queue_reply_free(r);
}

static void stream_done(void *ud, pseg_queue_reply *r)
{
    active_stream *s = ud;

    s->reply = r;
    pseg_rpc_post(s->ticket, stream_answered, s);
}

static void stream_ask(active_stream *s)
{
    s->ticket = pseg_rpc_hold(s->call);
    if (s->ticket)
        pseg_queue_get_backlog(service_of(s->call)->queue, s->aim->model, 0, stream_done, s);
    else
        fail_no_memory(s->call);
}

static void stream_is_active(pseg_rpc_call *c, const void *msg)
{
    const scale_aim *a = aim_of(c, msg);
    active_stream *s = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *s);

    if (!a)
        return;
    if (!s) {
        fail_no_memory(c);
        return;
    }
    s->aim = a;
    s->call = c;
    pseg_rpc_set_state(c, s);
    stream_ask(s);
}

static void stream_writable(pseg_rpc_call *c)
{
    active_stream *s = pseg_rpc_state(c);

    s->is_writing = false;
    stream_tell(s);
}

static void stream_end(pseg_rpc_call *c)
{
    active_stream *s = pseg_rpc_state(c);

    if (s)
        pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &s->timer);
}

#define METHOD(name, kind, type, ...)                                  \
    {                                                                  \
        .path = "/externalscaler.ExternalScaler/" name, .flags = kind, \
        .request = &externalscaler__##type##__descriptor, __VA_ARGS__  \
    }

const pseg_rpc_method pseg_scaler_methods[] = {
    METHOD("IsActive", PSEG_RPC_UNARY, scaled_object_ref, .on_message = is_active),
    METHOD("StreamIsActive", PSEG_RPC_SERVER_STREAM, scaled_object_ref,
           .on_message = stream_is_active, .on_writable = stream_writable,
           .on_drain = pseg_rpc_finish, .on_end = stream_end),
    METHOD("GetMetricSpec", PSEG_RPC_UNARY, scaled_object_ref, .on_message = get_metric_spec),
    METHOD("GetMetrics", PSEG_RPC_UNARY, get_metrics_request, .on_message = get_metrics),
    {0}};
