#include "common/trace/trace.h"
#include "common/base/alloc.h"
#include "common/base/arena.h"
#include "common/base/clock.h"
#include "common/rpc/rpc_client.h"
#include "opentelemetry/proto/collector/trace/v1/trace_service.pb-c.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define METHOD  "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
#define O(name) Opentelemetry__Proto__##name

enum {
    MAX_SPANS = 4096,   /* waiting, or being sent */
    FULL = 512,         /* then they are sent at once */
    MAX_TEXT = 256,     /* of a value */
    WAIT_MS = 1000,     /* from the first span to the sending */
    EXPORT_MS = 5000,   /* for one answer */
    FAREWELL_MS = 2000, /* for all of them at the end */
};

/* Spans of one sending lie in one arena, as messages. */
typedef struct heap {
    pseg_arena *arena;
    O(Trace__V1__Span) * spans[MAX_SPANS];
    size_t n;
    int64_t since_mono_us;
} heap;

struct pseg_trace {
    pseg_rpc_channel *channel;
    const pseg_log *log;
    char *endpoint, *values[3];
    pthread_t thread;
    pthread_mutex_t mu; /* guards all below */
    pthread_cond_t cv;
    heap *waiting;
    size_t n_under_way;
    pseg_series *n_sent, *n_dropped;
    bool is_closing, told_lost;
};

/* ---- spans as messages ---- */

static O(Common__V1__KeyValue) *
    note_of(pseg_arena *a, const char *key, const char *text, int64_t number)
{
    O(Common__V1__KeyValue) *kv = pseg_arena_calloc(a, 1, sizeof *kv);
    O(Common__V1__AnyValue) *v = pseg_arena_calloc(a, 1, sizeof *v);
    char *k = pseg_arena_strdup(a, key),
         *s = text ? pseg_arena_strndup(a, text, strnlen(text, MAX_TEXT)) : NULL;

    if (!kv || !v || !k || (text && !s))
        return NULL;
    opentelemetry__proto__common__v1__key_value__init(kv);
    opentelemetry__proto__common__v1__any_value__init(v);
    kv->key = k;
    kv->value = v;
    if (text) {
        v->value_case = OPENTELEMETRY__PROTO__COMMON__V1__ANY_VALUE__VALUE_STRING_VALUE;
        v->string_value = s;
    } else {
        v->value_case = OPENTELEMETRY__PROTO__COMMON__V1__ANY_VALUE__VALUE_INT_VALUE;
        v->int_value = number;
    }
    return kv;
}

static ProtobufCBinaryData bytes_of(pseg_arena *a, const uint8_t *x, size_t n)
{
    uint8_t *copy = pseg_arena_alloc(a, n);

    if (copy)
        memcpy(copy, x, n);
    return (ProtobufCBinaryData){copy ? n : 0, copy};
}

static bool set_fault(O(Trace__V1__Span) * m, pseg_arena *a, const char *fault)
{
    if (!fault)
        return true;
    m->status = pseg_arena_calloc(a, 1, sizeof *m->status);
    if (!m->status)
        return false;
    opentelemetry__proto__trace__v1__status__init(m->status);
    m->status->code = OPENTELEMETRY__PROTO__TRACE__V1__STATUS__STATUS_CODE__STATUS_CODE_ERROR;
    m->status->message = pseg_arena_strndup(a, fault, strnlen(fault, MAX_TEXT));
    return m->status->message != NULL;
}

/* NULL: no memory. */
static O(Trace__V1__Span) * message_of(pseg_arena *a, const pseg_span *s)
{
    O(Trace__V1__Span) *m = pseg_arena_calloc(a, 1, sizeof *m);
    int64_t end = s->end_unix_us > s->begin_unix_us ? s->end_unix_us : s->begin_unix_us;

    if (!m)
        return NULL;
    opentelemetry__proto__trace__v1__span__init(m);
    m->name = pseg_arena_strdup(a, s->name);
    m->trace_id = bytes_of(a, s->context.trace_id, sizeof s->context.trace_id);
    m->span_id = bytes_of(a, s->context.span_id, sizeof s->context.span_id);
    if (s->parent)
        m->parent_span_id = bytes_of(a, s->parent, sizeof s->context.span_id);
    m->flags = 1;
    m->kind = (O(Trace__V1__Span__SpanKind))s->kind;
    m->start_time_unix_nano = (uint64_t)s->begin_unix_us * 1000;
    m->end_time_unix_nano = (uint64_t)end * 1000;
    m->attributes = pseg_arena_calloc(a, PSEG_SPAN_MAX_NOTES, sizeof *m->attributes);
    if (!m->name || !m->trace_id.data || !m->span_id.data || !m->attributes ||
        (s->parent && !m->parent_span_id.data) || !set_fault(m, a, s->fault))
        return NULL;
    for (; m->n_attributes < PSEG_SPAN_MAX_NOTES && s->notes[m->n_attributes].key;
         m->n_attributes++) {
        const pseg_span_note *n = &s->notes[m->n_attributes];
        m->attributes[m->n_attributes] = note_of(a, n->key, n->text, n->number);
        if (!m->attributes[m->n_attributes])
            return NULL;
    }
    return m;
}

static heap *heap_new(void)
{
    heap *h = pseg_calloc(1, sizeof *h);

    if (h)
        h->arena = pseg_arena_new((size_t)64 << 20);
    if (h && !h->arena) {
        pseg_free(h);
        h = NULL;
    }
    return h;
}

static void heap_free(heap *h)
{
    if (h)
        pseg_arena_free(h->arena);
    pseg_free(h);
}

void pseg_trace_tell(pseg_trace *t, const pseg_span *s, size_t n)
{
    if (!t || n == 0 || !s->context.is_sampled)
        return;
    pthread_mutex_lock(&t->mu);
    if (!t->waiting && t->n_under_way + n <= MAX_SPANS)
        t->waiting = heap_new();
    heap *h = t->waiting;
    size_t before = h ? h->n : 0;
    bool fits = h && h->n + t->n_under_way + n <= MAX_SPANS;
    for (size_t i = 0; fits && i < n; i++) {
        h->spans[h->n] = message_of(h->arena, &s[i]);
        fits = h->spans[h->n] != NULL;
        h->n += fits;
    }
    if (fits && before == 0)
        h->since_mono_us = pseg_clock_mono_us();
    if (!fits) {
        pseg_series_add(t->n_dropped, (double)n);
        if (h)
            h->n = before;
    }
    if (fits && (before == 0 || h->n >= FULL))
        pthread_cond_signal(&t->cv);
    pthread_mutex_unlock(&t->mu);
}

void pseg_trace_count_in(pseg_trace *t, pseg_metrics *registry)
{
    static const pseg_metric_desc spans = {
        "pseg_spans_total",
        "Spans for the collector: sent, or dropped since it was away or slow.",
        PSEG_METRIC_COUNTER,
        {"outcome"}};

    if (!t)
        return;
    pseg_metric *f = pseg_metrics_add(registry, &spans);
    t->n_sent = pseg_metric_with(f, (const char *[]){"sent"});
    t->n_dropped = pseg_metric_with(f, (const char *[]){"dropped"});
}

/* ---- sending ---- */

static pseg_status export(pseg_trace *t, heap *h, int64_t timeout_ms, pseg_err *err)
{
    static const char *const keys[] = {"service.name", "service.instance.id", "service.version"};
    pseg_status rc = PSEG_OK;
    O(Collector__Trace__V1__ExportTraceServiceRequest)
    q = OPENTELEMETRY__PROTO__COLLECTOR__TRACE__V1__EXPORT_TRACE_SERVICE_REQUEST__INIT;
    O(Trace__V1__ResourceSpans) of_us = OPENTELEMETRY__PROTO__TRACE__V1__RESOURCE_SPANS__INIT;
    O(Trace__V1__ResourceSpans) * all[] = {&of_us};
    O(Trace__V1__ScopeSpans) spans = OPENTELEMETRY__PROTO__TRACE__V1__SCOPE_SPANS__INIT;
    O(Trace__V1__ScopeSpans) * scopes[] = {&spans};
    O(Common__V1__InstrumentationScope)
    scope = OPENTELEMETRY__PROTO__COMMON__V1__INSTRUMENTATION_SCOPE__INIT;
    O(Resource__V1__Resource) resource = OPENTELEMETRY__PROTO__RESOURCE__V1__RESOURCE__INIT;
    O(Common__V1__KeyValue) * notes[3];
    ProtobufCMessage *reply = NULL;

    q.n_resource_spans = 1;
    q.resource_spans = all;
    of_us.n_scope_spans = 1;
    of_us.scope_spans = scopes;
    of_us.resource = &resource;
    scope.name = (char[]){"pseg"};
    spans.scope = &scope;
    spans.n_spans = h->n;
    spans.spans = h->spans;
    resource.attributes = notes;
    for (; resource.n_attributes < 3; resource.n_attributes++) {
        notes[resource.n_attributes] =
            note_of(h->arena, keys[resource.n_attributes], t->values[resource.n_attributes], 0);
        if (!notes[resource.n_attributes])
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the request");
    }
    PSEG_TRY(pseg_rpc_unary(
        &reply, t->channel, METHOD, &q.base,
        &opentelemetry__proto__collector__trace__v1__export_trace_service_response__descriptor,
        timeout_ms, err));
out:
    pseg_rpc_message_free(reply);
    return rc;
}

/* One line when the collector is lost, and one when it is back. */
static void tell_outcome(pseg_trace *t, bool good, const pseg_err *e)
{
    if (!good && !t->told_lost)
        PSEG_WARN(t->log, "trace", "spans are dropped, the collector %s does not take them: %s",
                  t->endpoint, e->msg);
    if (good && t->told_lost)
        PSEG_INFO(t->log, "trace", "the collector %s takes spans again", t->endpoint);
    t->told_lost = !good;
}

/* With the mutex held: what is to be sent now; NULL: nothing yet. */
static heap *take_due(pseg_trace *t)
{
    heap *h = t->waiting;

    if (!h || h->n == 0)
        return NULL;
    if (h->n < FULL && !t->is_closing &&
        pseg_clock_mono_us() < h->since_mono_us + (int64_t)WAIT_MS * 1000)
        return NULL;
    t->waiting = NULL;
    t->n_under_way = h->n;
    return h;
}

static void *send_main(void *arg)
{
    pseg_trace *t = arg;

    pthread_mutex_lock(&t->mu);
    for (;;) {
        heap *h = take_due(t);
        if (!h && t->is_closing)
            break;
        if (!h && t->waiting && t->waiting->n) {
            pseg_cond_wait_until_us(&t->cv, &t->mu,
                                    t->waiting->since_mono_us + (int64_t)WAIT_MS * 1000);
            continue;
        }
        if (!h) {
            pthread_cond_wait(&t->cv, &t->mu);
            continue;
        }
        int64_t timeout_ms = t->is_closing ? FAREWELL_MS : EXPORT_MS;
        pthread_mutex_unlock(&t->mu);
        pseg_err e = PSEG_ERR_INIT;
        bool good = export(t, h, timeout_ms, &e) == PSEG_OK;
        tell_outcome(t, good, &e);
        pthread_mutex_lock(&t->mu);
        t->n_under_way = 0;
        pseg_series_add(good ? t->n_sent : t->n_dropped, (double)h->n);
        heap_free(h);
    }
    pthread_mutex_unlock(&t->mu);
    return NULL;
}

/* ---- open and close ---- */

static void trace_free(pseg_trace *t)
{
    if (!t)
        return;
    pseg_rpc_hangup(t->channel);
    heap_free(t->waiting);
    pseg_free(t->endpoint);
    for (int i = 0; i < 3; i++)
        pseg_free(t->values[i]);
    pthread_cond_destroy(&t->cv);
    pthread_mutex_destroy(&t->mu);
    pseg_free(t);
}

/* http:// is plain, as OTEL_EXPORTER_OTLP_ENDPOINT has it; and so is none. */
static pseg_status dial(pseg_trace *t, const char *endpoint, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_channel_options o = PSEG_RPC_CHANNEL_OPTIONS_DEFAULT;
    const char *rest = endpoint;

    if (strncmp(endpoint, "http://", 7) == 0) {
        rest += 7;
    } else if (strncmp(endpoint, "https://", 8) == 0) {
        rest += 8;
        o.use_tls = true;
    }
    size_t n = strlen(rest);
    if (n > 0 && rest[n - 1] == '/')
        n--;
    if (n == 0 || memchr(rest, '/', n) || !memchr(rest, ':', n))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "otlp endpoint \"%s\" must be [http://|https://]host:port of a collector that "
                  "takes OTLP over gRPC, for instance http://127.0.0.1:4317",
                  endpoint);
    t->endpoint = pseg_asprintf("%.*s", (int)n, rest);
    if (!t->endpoint)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for tracing");
    o.target = t->endpoint;
    PSEG_TRY(pseg_rpc_dial(&t->channel, &o, err));
out:
    return rc;
}

pseg_status pseg_trace_open(pseg_trace **out, const pseg_trace_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_trace *t = pseg_calloc(1, sizeof *t);
    const char *const values[] = {o->service, o->instance, o->version};

    *out = NULL;
    if (!t)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for tracing");
    pthread_mutex_init(&t->mu, NULL);
    pseg_cond_init(&t->cv);
    t->log = o->log;
    for (int i = 0; i < 3; i++)
        if (!(t->values[i] = pseg_asprintf("%s", values[i])))
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for tracing");
    PSEG_TRY(dial(t, o->endpoint, err));
    int e = pthread_create(&t->thread, NULL, send_main, t);
    if (e)
        PSEG_FAIL(PSEG_R_INTERNAL, e, "cannot start the thread that sends spans: %s", strerror(e));
    *out = t;
    t = NULL;
out:
    trace_free(t);
    return rc;
}

void pseg_trace_close(pseg_trace *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->mu);
    t->is_closing = true;
    pthread_cond_signal(&t->cv);
    pthread_mutex_unlock(&t->mu);
    pthread_join(t->thread, NULL);
    trace_free(t);
}
