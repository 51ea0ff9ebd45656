/* The scheduler's calls as spans. Names: docs/operations.md. */
#ifndef PSEG_SCHEDULER_TRACE_H
#define PSEG_SCHEDULER_TRACE_H

#include "common/rpc/rpc.h"
#include "common/trace/trace.h"

/* Tells of a call of a server that traces; any thread. t = NULL: nothing happens. */
void pseg_scheduler_trace_on_ended(pseg_trace *t, const pseg_rpc_ended *e);

#endif
