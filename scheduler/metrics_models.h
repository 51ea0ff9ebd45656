/* What waits for each model, as gauges: how much work, what a job costs, how many workers there
 * are. */
#ifndef PSEG_SCHEDULER_METRICS_MODELS_H
#define PSEG_SCHEDULER_METRICS_MODELS_H

#include "common/metrics/metrics.h"
#include "common/queue/queue.h"

typedef struct pseg_model_metrics pseg_model_metrics;

/* Adds the families to the registry. Errors: PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_model_metrics_new(pseg_model_metrics **out, pseg_metrics *registry, pseg_err *err);
/* After the queue is closed. NULL: nothing happens. */
void pseg_model_metrics_free(pseg_model_metrics *m);

/* Asks the queue, unless it is being asked still; the next readings show the answers. Models are
 * those that any worker has served since the start, the first 64 of them: one whose workers have
 * gone is shown on. From one thread. q is borrowed until it is closed. */
void pseg_model_metrics_tick(pseg_model_metrics *m, pseg_queue *q);

#endif
