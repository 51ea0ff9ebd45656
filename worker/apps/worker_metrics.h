/* What a worker counts, and the HTTP server that shows it. Names: docs/metrics.md. */
#ifndef PSEG_APPS_WORKER_METRICS_H
#define PSEG_APPS_WORKER_METRICS_H

#include "common/base/log.h"
#include "common/metrics/metrics.h"
#include "worker/serve/serve.h"

typedef struct pseg_worker_metrics pseg_worker_metrics;

typedef struct pseg_worker_metrics_options {
    const char *listen; /* as pseg_metrics_http_start */
    const char *worker; /* id */
    const pseg_log *log;
} pseg_worker_metrics_options;

/* Serves at once: not ready, until a worker is watched. Errors: those of pseg_metrics_http_start.
 */
pseg_status pseg_worker_metrics_new(pseg_worker_metrics **out, const pseg_worker_metrics_options *o,
                                    pseg_err *err);
/* After the worker is stopped. NULL: nothing happens. */
void pseg_worker_metrics_free(pseg_worker_metrics *m);

/* What the worker will run, borrowed until the metrics are freed. To be said before the worker is
 * started: from then on its threads count. m = NULL: nothing happens. */
void pseg_worker_metrics_runs(pseg_worker_metrics *m, const pseg_engine *engine);
/* From now on probes and gauges ask this worker, of whose engine was told before. w = NULL: no
 * worker any more, to be said before it is stopped. Borrowed until then. m = NULL: nothing happens.
 */
void pseg_worker_metrics_watch(pseg_worker_metrics *m, pseg_worker *w);

/* For whoever else counts in this process. */
pseg_metrics *pseg_worker_metrics_registry(pseg_worker_metrics *m);

/* For pseg_worker_options.on_ended; ud is the metrics. */
void pseg_worker_metrics_on_ended(void *ud, const pseg_worker_ended *e);
/* For pseg_worker_options.on_batch. */
void pseg_worker_metrics_on_batch(void *ud, size_t device, size_t n_jobs,
                                  const pseg_engine_batch *done);

#endif
