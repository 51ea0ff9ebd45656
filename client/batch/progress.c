#include "client/batch/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SAMPLE_MS 500

static void add_sample(batch_progress *p, int64_t now_ms, uint64_t done)
{
    size_t last = (p->first + p->n - 1) % BATCH_PROGRESS_SAMPLES;

    if (p->n && now_ms - p->samples[last].ms < SAMPLE_MS)
        return;
    if (p->n == BATCH_PROGRESS_SAMPLES)
        p->first = (p->first + 1) % BATCH_PROGRESS_SAMPLES;
    else
        p->n++;
    last = (p->first + p->n - 1) % BATCH_PROGRESS_SAMPLES;
    p->samples[last].ms = now_ms;
    p->samples[last].done = done;
}

/* 1234567 as "1,234,567". */
static void put_number(char out[32], uint64_t n)
{
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%" PRIu64, n), at = 0;

    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0)
            out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = '\0';
}

static void put_time(char out[32], double s)
{
    if (s < 99.5)
        snprintf(out, 32, "%.0f s", s);
    else if (s < 99.5 * 60)
        snprintf(out, 32, "%.0f min", s / 60);
    else if (s < 99.5 * 3600)
        snprintf(out, 32, "%.0f h", s / 3600);
    else
        snprintf(out, 32, "%.0f days", s / 86400);
}

void batch_progress_text(char *out, size_t size, batch_progress *p, int64_t now_ms, uint64_t done,
                         uint64_t failed, const char *trouble)
{
    char done_text[32], items[32], failed_text[32], left[32];
    size_t at;

    add_sample(p, now_ms, done);
    put_number(done_text, done);
    put_number(items, p->items);
    put_number(failed_text, failed);
    at = (size_t)snprintf(out, size, "%s of %s (%.1f %%)", done_text, items,
                          p->items ? 100.0 * (double)done / (double)p->items : 100.0);
    int64_t span = now_ms - p->samples[p->first].ms;
    double rate = span > 0 ? (double)(done - p->samples[p->first].done) * 1e3 / (double)span : 0;
    if (rate > 0 && at < size) {
        put_time(left, (double)(p->items - done) / rate);
        at += (size_t)snprintf(out + at, size - at, ", %.*f/s, %s left", rate < 100 ? 1 : 0, rate,
                               left);
    }
    if (failed && at < size)
        at += (size_t)snprintf(out + at, size - at, ", %s failed", failed_text);
    if (*trouble && at < size)
        snprintf(out + at, size - at, "; trying again: %s", trouble);
}
