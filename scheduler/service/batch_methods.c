/* The table of pseg.v1.BatchService. */
#include "pseg/v1/batch.pb-c.h"
#include "scheduler/service/internal.h"

#define METHOD(name, kind, type, ...)                           \
    {                                                           \
        .path = "/pseg.v1.BatchService/" name, .flags = kind,   \
        .request = &pseg__v1__##type##__descriptor, __VA_ARGS__ \
    }

const pseg_rpc_method pseg_batch_methods[] = {
    METHOD("CreateBatch", PSEG_RPC_UNARY, create_batch_request, .on_message = create_batch),
    METHOD("GetBatch", PSEG_RPC_UNARY, get_batch_request, .on_message = get_batch),
    METHOD("ListBatches", PSEG_RPC_UNARY, list_batches_request, .on_message = list_batches),
    METHOD("CancelBatch", PSEG_RPC_UNARY, cancel_batch_request, .on_message = cancel_batch),
    METHOD("SubmitJobs", PSEG_RPC_CLIENT_STREAM | PSEG_RPC_SERVER_STREAM, submit_jobs_request,
           .on_message = submit_jobs, .on_writable = submit_writable, .on_drain = submit_drain,
           .on_end = submit_end),
    METHOD("StreamBatchResults", PSEG_RPC_SERVER_STREAM, stream_batch_results_request,
           .on_message = stream_results, .on_writable = results_writable, .on_drain = results_drain,
           .on_end = results_end),
    METHOD("WatchJobs", PSEG_RPC_SERVER_STREAM, watch_jobs_request, .on_message = watch_jobs,
           .on_writable = watch_writable, .on_drain = watch_drain, .on_end = watch_end),
    {0}};
