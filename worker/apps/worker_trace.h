/* The worker's jobs as spans. Names: docs/operations.md. */
#ifndef PSEG_APPS_WORKER_TRACE_H
#define PSEG_APPS_WORKER_TRACE_H

#include "common/trace/trace.h"
#include "worker/serve/serve.h"

/* A span for the job, below that of whoever made it, one for each of its stages below that, and one
 * beside it for the wait in line; below a stage its launches, where the work has them. t = NULL, or
 * a job that is not traced: nothing happens. Any thread. */
void pseg_worker_trace_on_ended(pseg_trace *t, const pseg_engine *engine,
                                const pseg_worker_ended *e);

#endif
