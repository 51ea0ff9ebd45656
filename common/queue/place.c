/* Places in the events as text. */
#include "common/queue/queue.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

void pseg_queue_place_format(char out[PSEG_QUEUE_PLACE_BYTES], pseg_queue_place p)
{
    if (p.n == PSEG_QUEUE_WHOLE)
        snprintf(out, PSEG_QUEUE_PLACE_BYTES, "%llu-%llu", (unsigned long long)p.ms,
                 (unsigned long long)p.seq);
    else
        snprintf(out, PSEG_QUEUE_PLACE_BYTES, "%llu-%llu.%u", (unsigned long long)p.ms,
                 (unsigned long long)p.seq, (unsigned)p.n);
}

/* Digits from *at on, at most `max`. */
static bool take_number(uint64_t *out, const char **at, uint64_t max)
{
    char *end;

    if (**at < '0' || **at > '9')
        return false;
    errno = 0;
    unsigned long long x = strtoull(*at, &end, 10);
    *at = end;
    *out = x;
    return errno == 0 && x <= max;
}

bool pseg_queue_place_parse(pseg_queue_place *out, const char *text)
{
    uint64_t n = PSEG_QUEUE_WHOLE;

    if (!take_number(&out->ms, &text, UINT64_MAX) || *text++ != '-' ||
        !take_number(&out->seq, &text, UINT64_MAX))
        return false;
    if (*text == '.') {
        text++;
        if (!take_number(&n, &text, PSEG_QUEUE_WHOLE - 1))
            return false;
    }
    out->n = (uint32_t)n;
    return *text == '\0';
}

int pseg_queue_place_compare(pseg_queue_place a, pseg_queue_place b)
{
    if (a.ms != b.ms)
        return a.ms < b.ms ? -1 : 1;
    if (a.seq != b.seq)
        return a.seq < b.seq ? -1 : 1;
    return a.n == b.n ? 0 : a.n < b.n ? -1 : 1;
}
