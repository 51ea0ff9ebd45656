/* Any bytes as a traceparent header: what is taken says the same when it is written down again, and
 * begins a span below it. */
#include "common/base/trace_context.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[512], again[PSEG_TRACEPARENT_LEN + 1];
    pseg_trace_context c, same, below;

    if (size >= sizeof text)
        return 0;
    if (size)
        memcpy(text, data, size);
    text[size] = '\0';
    memset(&c, 0x5a, sizeof c);
    memset(&same, 0x5a, sizeof same);
    if (!pseg_trace_context_parse(&c, text)) {
        if (memcmp(&c, &same, sizeof c) != 0) /* as it was */
            abort();
        return 0;
    }
    pseg_trace_context_format(again, &c);
    if (strlen(again) != PSEG_TRACEPARENT_LEN || !pseg_trace_context_parse(&same, again) ||
        memcmp(c.trace_id, same.trace_id, sizeof c.trace_id) != 0 ||
        memcmp(c.span_id, same.span_id, sizeof c.span_id) != 0 || c.is_sampled != same.is_sampled)
        abort();
    /* Identifiers of zeros are none. */
    static const char zeros[32];
    if (memcmp(c.trace_id, zeros, sizeof c.trace_id) == 0 ||
        memcmp(c.span_id, zeros, sizeof c.span_id) == 0)
        abort();
    if (pseg_trace_context_begin(&below, &c, 0) &&
        (memcmp(c.trace_id, below.trace_id, sizeof c.trace_id) != 0 ||
         below.is_sampled != c.is_sampled))
        abort();
    return 0;
}
