/* What every form of the queue must do, as cases that run against any URL. */
#ifndef PSEG_TESTS_SUPPORT_QUEUE_CASES_H
#define PSEG_TESTS_SUPPORT_QUEUE_CASES_H

#include "common/queue/queue.h"

/* Runs all cases against url, each in a queue of its own; the number of failures. `group` names
 * them in the output. */
int queue_cases_run(const char *group, const char *url);

/* ---- also of use to other tests of the queue ---- */

/* CALL(r, pseg_queue_get, q, "default", ids, 1): waits for the answer. Free it. */
#define CALL(r, fn, ...)                                   \
    do {                                                   \
        pseg_queue_sync call_sync;                         \
        pseg_queue_sync_init(&call_sync);                  \
        fn(__VA_ARGS__, pseg_queue_sync_done, &call_sync); \
        (r) = pseg_queue_sync_take(&call_sync);            \
    } while (0)

/* Submits a job with an image of its own; id gets its name. */
pseg_reason queue_try_submit(pseg_queue *q, char id[PSEG_JOB_ID_LEN + 1]);
pseg_job_state queue_state_of(pseg_queue *q, const char *id);
void queue_pause_ms(int ms);

#endif
