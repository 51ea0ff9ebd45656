/* What each tenant may have: a file of lines "TENANT name=value ...", '#' begins a comment. Names:
 * weight (1 to 1000: its share of the compute-time while others wait), jobs (alive at once), bytes
 * (of images held; K, M or G may follow), rate (jobs a second) and burst (at once; default: rate).
 * What is not named has no limit. The tenant * stands for all that have no line. The file is read
 * again when it changes. */
#ifndef PSEG_SCHEDULER_TENANTS_H
#define PSEG_SCHEDULER_TENANTS_H

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/queue/queue.h"

typedef struct pseg_tenants pseg_tenants;

/* log: borrowed until pseg_tenants_free. Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_CONFIG_INVALID with
 * the line's number. */
pseg_status pseg_tenants_open(pseg_tenants **out, const char *path, const pseg_log *log,
                              pseg_err *err);
void pseg_tenants_free(pseg_tenants *t);

/* Reads the file again if it has changed; from one thread. One that does not parse or is gone
 * leaves the earlier limits in force, and is logged. */
void pseg_tenants_refresh(pseg_tenants *t);

/* The limits of `tenant`, all 0 if it has none. ud: a pseg_tenants. Any thread. */
void pseg_tenants_limits(void *ud, const char *tenant, pseg_queue_tenant *out);

/* Tells f of each line of the file, in its order. f must not call this module. Any thread. */
void pseg_tenants_each(void *ud,
                       void (*f)(void *to, const char *tenant, const pseg_queue_tenant *limits),
                       void *to);

#endif
