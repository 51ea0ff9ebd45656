/* latency: a histogram of times whose percentiles are true to a thousandth, in constant memory (the
 * layout of Gil Tene's HdrHistogram: every doubling of the time has as many rows). One thread at a
 * time. */
#ifndef PSEG_APPS_LATENCY_H
#define PSEG_APPS_LATENCY_H

#include "common/base/err.h"

#include <stddef.h>
#include <stdint.h>

typedef struct pseg_latency pseg_latency;

pseg_status pseg_latency_new(pseg_latency **out, pseg_err *err);
void pseg_latency_free(pseg_latency *h); /* NULL is accepted */
void pseg_latency_clear(pseg_latency *h);
void pseg_latency_add(pseg_latency *h, int64_t us); /* below 0: 0; over 12 days: that */
void pseg_latency_merge(pseg_latency *into, const pseg_latency *from);

uint64_t pseg_latency_count(const pseg_latency *h);
/* Milliseconds that p percent (0 to 100) of all times do not exceed; 0 if there are none. 100: the
 * longest, exactly. */
double pseg_latency_percentile(const pseg_latency *h, double p);
/* Rows that hold anything, in order: times up to ms, and how many. Begin with *row = 0; false: no
 * more. */
bool pseg_latency_next(const pseg_latency *h, size_t *row, double *ms, uint64_t *n);

#endif
