/* trace: spans of this process, sent to an OpenTelemetry collector over OTLP/gRPC.
 *
 * A span is told once, when it has ended. Telling never waits: spans go into a buffer, a thread
 * sends them together every second or when there are many, and what finds the buffer full, or the
 * collector away, is dropped and counted. Nothing of the service hangs on it.
 *
 *     pseg_trace_open(&t, &(pseg_trace_options){.endpoint = "127.0.0.1:4317",
 *                                               .service = "pseg-worker", ...}, &err);
 *     pseg_span s = {.name = "encode_image", .context = own, .parent = job.span_id, ...};
 *     pseg_trace_tell(t, &s, 1);
 *     pseg_trace_close(t);     // sends what is left, for two seconds at most
 *
 * The protocol: opentelemetry/proto/collector/trace/v1. pseg_rpc_init first. */
#ifndef PSEG_TRACE_TRACE_H
#define PSEG_TRACE_TRACE_H

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/trace_context.h"

#include "common/metrics/metrics.h"

#include <stddef.h>

typedef struct pseg_trace pseg_trace;

typedef struct pseg_trace_options {
    const char *endpoint; /* [http://|https://]host:port of a collector that takes OTLP/gRPC */
    const char *service;  /* service.name */
    const char *instance; /* service.instance.id */
    const char *version;  /* service.version */
    const pseg_log *log;  /* borrowed */
} pseg_trace_options;

/* Starts the thread; a collector that is not there yet is no error. Strings are copied.
 * Errors: PSEG_R_CONFIG_INVALID (endpoint), PSEG_R_OUT_OF_MEMORY, PSEG_R_INTERNAL. */
pseg_status pseg_trace_open(pseg_trace **out, const pseg_trace_options *o, pseg_err *err);
/* NULL is accepted. Nobody may be telling. */
void pseg_trace_close(pseg_trace *t);

typedef enum pseg_span_kind {
    PSEG_SPAN_INTERNAL = 1, /* as the protocol counts them */
    PSEG_SPAN_SERVER = 2,
    PSEG_SPAN_CONSUMER = 5,
} pseg_span_kind;

/* text, or (NULL) number. Borrowed. */
typedef struct pseg_span_note {
    const char *key;
    const char *text;
    int64_t number;
} pseg_span_note;

enum { PSEG_SPAN_MAX_NOTES = 8 };

typedef struct pseg_span {
    const char *name;
    pseg_trace_context context;
    const uint8_t *parent; /* 8 bytes; NULL: the trace's first */
    pseg_span_kind kind;
    int64_t begin_unix_us, end_unix_us;
    const char *fault;                         /* what went wrong; NULL: nothing */
    pseg_span_note notes[PSEG_SPAN_MAX_NOTES]; /* up to the first without a key */
} pseg_span;

/* All n or none. Those that are not sampled are skipped. Copied. t = NULL: nothing happens. Any
 * thread. */
void pseg_trace_tell(pseg_trace *t, const pseg_span *s, size_t n);

/* pseg_spans_total{outcome="sent"|"dropped"} from now on; the registry outlives t. Before the first
 * span. t = NULL: nothing happens. */
void pseg_trace_count_in(pseg_trace *t, pseg_metrics *registry);

#endif
