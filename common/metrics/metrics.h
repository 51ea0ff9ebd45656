/* metrics: what a process counts, in the text format that Prometheus reads.
 *
 * A family has a name, a help and label names; a series is one combination of label values in it.
 * Looking a series up takes a lock, counting in it does not: keep the pointer where the values are
 * known beforehand. This module knows neither jobs nor models; http.h serves what it renders.
 *
 *     static const double bounds[] = {0.001, 0.01, 0.1, 1, 10};
 *     static const pseg_metric_desc calls = {"pseg_rpc_seconds", "Time of a call.",
 *         PSEG_METRIC_HISTOGRAM, {"method", "code"}, bounds, 5};
 *     pseg_metrics_new(&m, &err);
 *     pseg_metric *f = pseg_metrics_add(m, &calls);
 *     pseg_series_observe(pseg_metric_with(f, (const char *[]){"GetJob", "OK"}), 0.0021);
 *
 * Whatever cannot be had for want of memory is NULL, and counting in NULL does nothing: a process
 * goes on without its figures. Threads: all functions from any thread, but new, add and free. */
#ifndef PSEG_METRICS_METRICS_H
#define PSEG_METRICS_METRICS_H

#include "common/base/buf.h"
#include "common/base/err.h"

#include <stdint.h>

typedef struct pseg_metrics pseg_metrics;
typedef struct pseg_metric pseg_metric; /* a family */
typedef struct pseg_series pseg_series;

typedef enum pseg_metric_kind {
    PSEG_METRIC_COUNTER, /* never falls; its name ends in _total */
    PSEG_METRIC_GAUGE,
    PSEG_METRIC_HISTOGRAM,
} pseg_metric_kind;

#define PSEG_METRIC_MAX_LABELS 4
/* Series of one family. More share one whose every label is "other": a label that a client chooses
 * cannot fill the memory. */
#define PSEG_METRIC_MAX_SERIES 2000

/* All of it static. */
typedef struct pseg_metric_desc {
    const char *name, *help; /* [a-z_:][a-z0-9_:]*; one line */
    pseg_metric_kind kind;
    const char *labels[PSEG_METRIC_MAX_LABELS]; /* names, up to the first NULL */
    const double *bounds;                       /* HISTOGRAM: upper bounds, rising, without +Inf */
    size_t n_bounds;
} pseg_metric_desc;

pseg_status pseg_metrics_new(pseg_metrics **out, pseg_err *err);
void pseg_metrics_free(pseg_metrics *m); /* NULL: nothing happens */

/* A family; rendered in the order of adding. NULL when memory is short. */
pseg_metric *pseg_metrics_add(pseg_metrics *m, const pseg_metric_desc *d);
/* The series of these label values, as many as the family has labels; made at the first call. Bytes
 * that are not UTF-8 are rendered as '?'. */
pseg_series *pseg_metric_with(pseg_metric *f, const char *const *values);

/* COUNTER (by 0 or more) and GAUGE. */
void pseg_series_add(pseg_series *s, double by);
/* GAUGE, and a COUNTER that is a copy of one kept elsewhere. */
void pseg_series_set(pseg_series *s, double value);
/* HISTOGRAM; NaN is not counted. */
void pseg_series_observe(pseg_series *s, double value);

/* fn(ud) runs before each rendering, one at a time, to bring gauges up to date. At most 8;
 * more are not asked. */
void pseg_metrics_before(pseg_metrics *m, void (*fn)(void *ud), void *ud);

/* Everything, as text format 0.0.4. Errors: PSEG_R_REQUEST_TOO_LARGE (past out's maximum),
 * PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_metrics_render(pseg_buf *out, pseg_metrics *m, pseg_err *err);

/* Adds what every process has, with the names that Prometheus' own clients use
 * (process_cpu_seconds_total, process_resident_memory_bytes, process_open_fds, process_max_fds,
 * process_start_time_seconds), and pseg_build_info{program, version} 1. program: static. */
void pseg_metrics_add_process(pseg_metrics *m, const char *program);

#endif
