/* The methods of pseg.v1.SegmentationService, BatchService and AdminService: decode, check, act on
 * the queue, encode.
 *
 * Handlers run on the loop of their call and never wait: what takes time (Redis, masks) happens on
 * another thread and comes back by a ticket. This folder knows neither gRPC nor Redis, and it keeps
 * nothing that another scheduler would miss.
 *
 *     pseg_service_new(&s, &options, &err);
 *     queue_options.on_event = pseg_service_on_event;   // ud: s
 *     pseg_queue_open(&q, &queue_options, &err);
 *     pseg_service_start(s, q, &err);
 *     pseg_rpc_server_add(server, pseg_service_methods, s, &err);
 *     pseg_rpc_server_add(server, pseg_batch_methods, s, &err);
 *     ... pseg_rpc_server_stop(server, ...); pseg_queue_close(q); pseg_service_free(s);
 */
#ifndef PSEG_SERVICE_SERVICE_H
#define PSEG_SERVICE_SERVICE_H

#include "common/base/log.h"
#include "common/queue/queue.h"
#include "common/rpc/rpc.h"

typedef struct pseg_service pseg_service;

#define PSEG_MAX_MASK_THREADS 64

typedef struct pseg_service_options {
    const char *default_model;     /* of jobs that name none */
    int64_t max_image_bytes;       /* of one uploaded image */
    int64_t max_upload_bytes;      /* of all uploads under way; beyond: SERVER_BUSY */
    bool has_tenants;              /* callers have names: none of them gets all of it */
    int64_t mask_threads;          /* that encode masks, 1..PSEG_MAX_MASK_THREADS */
    int64_t max_encode_queue;      /* masks that wait to be encoded; beyond: SERVER_BUSY */
    int64_t max_mask_bytes;        /* of encoded masks not sent yet; beyond: SERVER_BUSY */
    int64_t stall_ms;              /* a stream whose client neither sends nor reads ends after it */
    int64_t upload_drain_ms;       /* how long uploads may go on once the server stops */
    int64_t default_result_ttl_ms; /* of jobs that name none */
    pseg_durability durability;    /* of the queue, told with each job that is made */
    bool refuse_infeasible; /* of new jobs: deadlines that are not met as things stand */
    /* What a tenant may have; any thread. NULL: no limits. */
    void (*limits_of)(void *ud, const char *tenant, pseg_queue_tenant *out);
    /* Tells f of all limits; f must not call back. NULL: there are none. */
    void (*each_limit)(void *ud,
                       void (*f)(void *to, const char *tenant, const pseg_queue_tenant *limits),
                       void *to);
    void *limits_ud; /* of both */
    const pseg_log *log;
} pseg_service_options;

#define PSEG_SERVICE_OPTIONS_DEFAULT                                                    \
    {                                                                                   \
        .default_model = "scenes", .max_image_bytes = (int64_t)64 << 20,                \
        .max_upload_bytes = (int64_t)512 << 20, .mask_threads = 2,                      \
        .max_encode_queue = 1000,                                                       \
        .max_mask_bytes = (int64_t)1 << 30, .stall_ms = 60000, .upload_drain_ms = 5000, \
        .default_result_ttl_ms = 86400000                                               \
    }

/* Strings are borrowed until pseg_service_free. Errors: PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_service_new(pseg_service **out, const pseg_service_options *o, pseg_err *err);
/* Starts the threads that encode masks. q is borrowed until pseg_service_free. */
pseg_status pseg_service_start(pseg_service *s, pseg_queue *q, pseg_err *err);
/* After the server has stopped and the queue is closed. */
void pseg_service_free(pseg_service *s);

/* For pseg_queue_options.on_event; ud is the service. */
void pseg_service_on_event(void *ud, const pseg_queue_event *e);

/* For pseg_rpc_server_options.text_reason: a prompt that is no text has a reason of its own. */
pseg_reason pseg_service_text_reason(const ProtobufCMessageDescriptor *message,
                                     const ProtobufCFieldDescriptor *field);

extern const pseg_rpc_method pseg_service_methods[];
/* Of pseg.v1.BatchService, on the same server; ud is the same service. */
extern const pseg_rpc_method pseg_batch_methods[];
/* Of inference.GRPCInferenceService, for the same server; ud is the same service. */
extern const pseg_rpc_method pseg_open_inference_methods[];
/* Of pseg.v1.AdminService, for a server of its own; ud is the same service. */
extern const pseg_rpc_method pseg_admin_methods[];
/* Of externalscaler.ExternalScaler, likewise. */
extern const pseg_rpc_method pseg_scaler_methods[];

#endif
