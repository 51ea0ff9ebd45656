/* The queue in memory, for tests: url "mem:". Handles of one name and process share one queue,
 * which ends with the last of them. It keeps the contract of queue.h to the letter (the same cases
 * run against both forms), with a clock that tests can move and faults that they can order. */
#ifndef PSEG_QUEUE_QUEUE_MEM_H
#define PSEG_QUEUE_QUEUE_MEM_H

#include "common/queue/queue.h"

/* Time passes in the queue. q: opened with "mem:". */
void pseg_queue_mem_advance_ms(pseg_queue *q, int64_t ms);

/* The request number n from now (1: the next) through this handle is answered with `reason`; 0
 * switches it off. is_done: it takes effect all the same, as when an answer is lost. */
void pseg_queue_mem_fail_nth(pseg_queue *q, uint64_t n, pseg_reason reason, bool is_done);

/* Of the events only the `keep` newest are kept. */
void pseg_queue_mem_trim_events(pseg_queue *q, size_t keep);

#endif
