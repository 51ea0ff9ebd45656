/* Where in a trace one is: the W3C Trace Context that callers, jobs and spans carry.
 *
 *     pseg_trace_context caller, own;
 *     bool is_traced = pseg_trace_context_parse(&caller, header);
 *     pseg_trace_context_begin(&own, is_traced ? &caller : NULL, 0.1);
 *     char text[PSEG_TRACEPARENT_LEN + 1];
 *     pseg_trace_context_format(text, &own);   // for whom we call next
 *
 * The format: W3C Trace Context, section 3.2 (traceparent). All functions from any thread. */
#ifndef PSEG_BASE_TRACE_CONTEXT_H
#define PSEG_BASE_TRACE_CONTEXT_H

#include <stdbool.h>
#include <stdint.h>

#define PSEG_TRACEPARENT_LEN 55

typedef struct pseg_trace_context {
    uint8_t trace_id[16], span_id[8]; /* neither is all zeros */
    bool is_sampled;                  /* is anybody to keep the spans of this trace? */
} pseg_trace_context;

/* Of "00-TRACE-SPAN-FLAGS", also of later versions, which may have more behind it. False, and *out
 * as it was: not well formed, or NULL. */
bool pseg_trace_context_parse(pseg_trace_context *out, const char *traceparent);
/* Version 00, with a NUL. */
void pseg_trace_context_format(char out[PSEG_TRACEPARENT_LEN + 1], const pseg_trace_context *c);
/* A span below parent, which decides whether it is kept; or (NULL) a trace's first, kept with
 * probability `ratio` in [0, 1]. False: no random bytes. */
bool pseg_trace_context_begin(pseg_trace_context *out, const pseg_trace_context *parent,
                              double ratio);

#endif
