#include "worker/apps/latency.h"
#include "common/base/alloc.h"

#include <string.h>

/* Below 2 * HALF microseconds each has a row of its own; then HALF rows for each doubling. */
enum { HALF = 512, LAST_BIT = 40, DOUBLINGS = LAST_BIT - 10, ROWS = 2 * HALF + DOUBLINGS * HALF };

struct pseg_latency {
    uint64_t n, rows[ROWS];
    int64_t max_us;
};

static size_t row_of(int64_t us)
{
    if (us < 2 * HALF)
        return (size_t)us;
    int shift =
        63 - __builtin_clzll((unsigned long long)us) - 9; /* us >> shift is in [512, 1024) */
    return (size_t)(2 * HALF + (shift - 1) * HALF + (us >> shift) - HALF);
}

/* The longest time of a row. */
static int64_t end_of(size_t row)
{
    if (row < 2 * HALF)
        return (int64_t)row;
    size_t shift = (row - 2 * HALF) / HALF + 1, at = (row - 2 * HALF) % HALF + HALF;
    return ((int64_t)(at + 1) << shift) - 1;
}

pseg_status pseg_latency_new(pseg_latency **out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *out = pseg_calloc(1, sizeof **out);
    if (!*out)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a histogram");
out:
    return rc;
}

void pseg_latency_free(pseg_latency *h)
{
    pseg_free(h);
}

void pseg_latency_clear(pseg_latency *h)
{
    memset(h, 0, sizeof *h);
}

void pseg_latency_add(pseg_latency *h, int64_t us)
{
    const int64_t longest = ((int64_t)1 << LAST_BIT) - 1;

    us = us < 0 ? 0 : us > longest ? longest : us;
    h->rows[row_of(us)]++;
    h->n++;
    if (us > h->max_us)
        h->max_us = us;
}

void pseg_latency_merge(pseg_latency *into, const pseg_latency *from)
{
    for (size_t i = 0; i < ROWS; i++)
        into->rows[i] += from->rows[i];
    into->n += from->n;
    if (from->max_us > into->max_us)
        into->max_us = from->max_us;
}

uint64_t pseg_latency_count(const pseg_latency *h)
{
    return h->n;
}

double pseg_latency_percentile(const pseg_latency *h, double p)
{
    uint64_t want = (uint64_t)(p / 100 * (double)h->n + 0.999999), seen = 0;

    if (h->n == 0)
        return 0;
    want = want < 1 ? 1 : want > h->n ? h->n : want;
    for (size_t i = 0; i < ROWS; i++) {
        seen += h->rows[i];
        if (seen >= want) {
            int64_t us = end_of(i);
            return (double)(us < h->max_us ? us : h->max_us) / 1e3;
        }
    }
    return (double)h->max_us / 1e3;
}

bool pseg_latency_next(const pseg_latency *h, size_t *row, double *ms, uint64_t *n)
{
    for (; *row < ROWS; (*row)++)
        if (h->rows[*row]) {
            *ms = (double)end_of(*row) / 1e3;
            *n = h->rows[(*row)++];
            return true;
        }
    return false;
}
