/* What a scheduler counts, and the HTTP server that shows it. Names: docs/metrics.md. */
#ifndef PSEG_SCHEDULER_METRICS_H
#define PSEG_SCHEDULER_METRICS_H

#include "common/base/log.h"
#include "common/metrics/metrics.h"
#include "common/queue/queue.h"
#include "common/rpc/rpc.h"

typedef struct pseg_scheduler_metrics pseg_scheduler_metrics;

/* listen: as pseg_metrics_http_start. Errors: those of it. */
pseg_status pseg_scheduler_metrics_new(pseg_scheduler_metrics **out, const char *listen,
                                       const pseg_log *log, pseg_err *err);
/* After the RPC server is freed and the queue closed. NULL: nothing happens. */
void pseg_scheduler_metrics_free(pseg_scheduler_metrics *m);

/* For pseg_rpc_server_options.on_ended; ud is the metrics. */
void pseg_scheduler_metrics_on_ended(void *ud, const pseg_rpc_ended *e);

/* For whoever else counts in this process. */
pseg_metrics *pseg_scheduler_metrics_registry(pseg_scheduler_metrics *m);

/* To be called about once a second: is Redis there (is_ready; of a part: if it answered within
 * silence_ms), and asks the queue for its counts, which the next readings show. */
void pseg_scheduler_metrics_tick(pseg_scheduler_metrics *m, pseg_queue *q, pseg_rpc_server *server,
                                 bool is_ready, int64_t silence_ms);

#endif
