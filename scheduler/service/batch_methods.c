/* The table of pseg.v1.BatchService. */
#include "pseg/v1/batch.pb-c.h"
#include "scheduler/service/internal.h"

#define METHOD(name, kind, type, ...)                           \
    {                                                           \
        .path = "/pseg.v1.BatchService/" name, .flags = kind,   \
        .request = &pseg__v1__##type##__descriptor, __VA_ARGS__ \
    }

const pseg_rpc_method pseg_batch_methods[] = {
    METHOD("WatchJobs", PSEG_RPC_SERVER_STREAM, watch_jobs_request, .on_message = watch_jobs,
           .on_writable = watch_writable, .on_drain = watch_drain, .on_end = watch_end),
    {0}};
