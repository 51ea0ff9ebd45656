/* How many workers a model's backlog asks for. Arithmetic alone: it knows neither KEDA nor the
 * queue's servers, so that a simulation can drive it through a day in a second.
 *
 * An autoscaler that divides the value by target_s and rounds up has the number of workers. */
#ifndef PSEG_SERVICE_SCALE_H
#define PSEG_SERVICE_SCALE_H

#include "common/queue/queue.h"

typedef struct pseg_scale_target {
    double target_s;  /* compute-time that a worker should have before it; above 0 */
    double startup_s; /* from the wish for a worker until it computes */
    double assumed_s; /* compute-time of a job, until a worker has told; above 0 */
} pseg_scale_target;

#define PSEG_SCALE_TARGET_DEFAULT                             \
    {                                                         \
        .target_s = 30.0, .startup_s = 60.0, .assumed_s = 1.0 \
    }

/* How many of the queue's jobs are looked at for deadlines, one by one. */
enum { PSEG_SCALE_DEADLINES = 128 };

/* Seconds of compute-time that wait or run, 0 only if no job does; more where that many workers
 * would be too few for a deadline. Never more than target_s for each job: one job cannot be shared.
 * Any thread. */
double pseg_scale_backlog_s(const pseg_queue_backlog *b, const pseg_scale_target *t);

#endif
