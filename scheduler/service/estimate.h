/* When a job would be done, from the queue's figures. Pure; any thread. */
#ifndef PSEG_SERVICE_ESTIMATE_H
#define PSEG_SERVICE_ESTIMATE_H

#include "common/queue/queue.h"

typedef struct job_outlook {
    bool is_known;                                  /* the times can be told */
    int64_t wait_us, start_unix_us, finish_unix_us; /* by the queue's clock */
} job_outlook;

/* Each worker does one job after the other, and every job that runs counts as if it had just begun:
 * of `busy` and `ahead` together all but workers - 1 must have ended before this one is begun, and
 * one ends every mean / workers. */
job_outlook outlook_of(const pseg_queue_estimate *e);

#endif
