#include "common/base/trace_context.h"
#include "common/base/hash.h"

#include <stdio.h>
#include <string.h>

static int digit_of(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* n bytes in lower-case hexadecimal; false if it is something else. */
static bool unhex(uint8_t *out, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int high = digit_of(text[2 * i]), low = high < 0 ? -1 : digit_of(text[2 * i + 1]);
        if (low < 0)
            return false;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static bool is_zero(const uint8_t *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (x[i])
            return false;
    return true;
}

bool pseg_trace_context_parse(pseg_trace_context *out, const char *traceparent)
{
    pseg_trace_context c;
    uint8_t version, flags;
    const char *s = traceparent;

    if (!s || strnlen(s, PSEG_TRACEPARENT_LEN) < PSEG_TRACEPARENT_LEN || s[2] != '-' ||
        s[35] != '-' || s[52] != '-')
        return false;
    if (!unhex(&version, s, 1) || !unhex(c.trace_id, s + 3, 16) || !unhex(c.span_id, s + 36, 8) ||
        !unhex(&flags, s + 53, 1))
        return false;
    if (version == 0xff || (s[55] && (version == 0 || s[55] != '-')))
        return false;
    if (is_zero(c.trace_id, sizeof c.trace_id) || is_zero(c.span_id, sizeof c.span_id))
        return false;
    c.is_sampled = flags & 1;
    *out = c;
    return true;
}

void pseg_trace_context_format(char out[PSEG_TRACEPARENT_LEN + 1], const pseg_trace_context *c)
{
    char trace[33], span[17];

    pseg_hex(trace, c->trace_id, sizeof c->trace_id);
    pseg_hex(span, c->span_id, sizeof c->span_id);
    snprintf(out, PSEG_TRACEPARENT_LEN + 1, "00-%.32s-%.16s-%02x", trace, span, c->is_sampled);
}

/* The last 56 bits of a trace's id are as good as random numbers (W3C Trace Context Level 2, 4.4).
 */
static bool is_chosen(const uint8_t trace_id[16], double ratio)
{
    uint64_t x = 0;

    for (int i = 9; i < 16; i++)
        x = x << 8 | trace_id[i];
    return (double)x < ratio * (double)((uint64_t)1 << 56);
}

bool pseg_trace_context_begin(pseg_trace_context *out, const pseg_trace_context *parent,
                              double ratio)
{
    pseg_trace_context c;

    if (!pseg_random_bytes(c.trace_id, sizeof c.trace_id) ||
        !pseg_random_bytes(c.span_id, sizeof c.span_id))
        return false;
    if (parent)
        memcpy(c.trace_id, parent->trace_id, sizeof c.trace_id);
    c.trace_id[0] |= !parent && is_zero(c.trace_id, sizeof c.trace_id);
    c.span_id[0] |= is_zero(c.span_id, sizeof c.span_id);
    c.is_sampled = parent ? parent->is_sampled : is_chosen(c.trace_id, ratio);
    *out = c;
    return true;
}
