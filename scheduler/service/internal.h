/* Shared by the files of this folder. */
#ifndef PSEG_SERVICE_INTERNAL_H
#define PSEG_SERVICE_INTERNAL_H

#include "common/queue/queue.h"
#include "common/rpc/rpc.h"
#include "pseg/internal/v1/record.pb-c.h"
#include "pseg/v1/batch.pb-c.h"
#include "pseg/v1/pseg.pb-c.h"
#include "scheduler/service/held_images.h"
#include "scheduler/service/results.h"
#include "scheduler/service/service.h"
#include "scheduler/service/upload_share.h"
#include "scheduler/service/watch.h"

#include <pthread.h>

/* ---- asking the queue ---- */

/* One request to the queue on behalf of a call. `then` runs on the call's loop with the answer,
 * which is freed after it; it does not run if the call is over by then. */
typedef struct op {
    pseg_rpc_call *call;
    pseg_rpc_ticket *ticket;
    pseg_rpc_timer guard; /* fails the call if the answer would come after its deadline */
    pseg_queue_reply *reply;
    void (*then)(pseg_rpc_call *c, pseg_queue_reply *r);
} op;

/* NULL: memory is short, and the call has been failed. */
op *op_new(pseg_rpc_call *c, void (*then)(pseg_rpc_call *c, pseg_queue_reply *r));
/* The same in memory of the caller, zeroed before first use, that lives as long as the call: for
 * calls that ask again and again, one request at a time. */
op *op_begin(op *o, pseg_rpc_call *c, void (*then)(pseg_rpc_call *c, pseg_queue_reply *r));
void op_done(void *op, pseg_queue_reply *r); /* a pseg_queue_done */

/* Fails the call with the answer's error, which gets the field and the resource that the call's
 * state names; false if there is none. */
bool fail_if_error(pseg_rpc_call *c, const pseg_queue_reply *r);
/* Fails the call: there is no job of the state's job_id. */
void fail_job_not_found(pseg_rpc_call *c);
void fail_no_memory(pseg_rpc_call *c);
/* How long before the client's deadline, left_ms from now, an answer must be on its way. */
int64_t deadline_margin_ms(int64_t left_ms);

/* ---- waiting for jobs ---- */

/* A call that waits for the end of a job. Lives in the call's arena. */
typedef struct waiter {
    struct waiter *next, **slot; /* in the table, under its mutex */
    pseg_rpc_call *call;
    pseg_rpc_ticket *ticket; /* while in the table */
    pseg_rpc_timer timer;
    char id[PSEG_JOB_ID_LEN + 1];
    const char *tenant;
    bool is_last_look;     /* time is up: answer with the job as it is */
    bool has_seen;         /* the job is there: from now on Redis may come and go while we wait */
    bool is_before_submit; /* it may not be there yet: nothing that is heard of it counts, */
    bool is_due;           /* but is looked at once it is */
    size_t n_masks;
    pseg_queue_reply *reply; /* on its way to the loop with the ticket */
    void (*then)(pseg_rpc_call *c, pseg_queue_reply *r); /* with the job: terminal, or time is up */
} waiter;

enum { N_WAITER_SLOTS = 4096 };
typedef struct waiter_table {
    pthread_mutex_t mu;
    waiter *slots[N_WAITER_SLOTS];
} waiter_table;

/* Calls `then` with the job once it is terminal, shortly before the call's deadline, or when the
 * server stops (the call's on_drain must be wait_drain and its on_end wait_end). n_masks: that the
 * job has; they come with it as blobs where it ends while it is waited for. 0: they are not wanted.
 */
void wait_for_job(pseg_rpc_call *c, const char *id, size_t n_masks,
                  void (*then)(pseg_rpc_call *c, pseg_queue_reply *r));
/* The same for a job that is about to be submitted with this id, which saves the question whether
 * it has ended already. False: the call has failed. */
bool wait_for_new_job(pseg_rpc_call *c, const char *id, size_t n_masks,
                      void (*then)(pseg_rpc_call *c, pseg_queue_reply *r));
/* After it: the submit went well, and the job is j. */
void wait_submitted(pseg_rpc_call *c, const pseg_job *j);
/* The part of pseg_service_on_event for these calls. */
void wait_on_event(pseg_service *s, const pseg_queue_event *e);
void wait_drain(pseg_rpc_call *c);
void wait_end(pseg_rpc_call *c);

/* ---- the service ---- */

typedef struct encode_task encode_task;

struct pseg_service {
    pseg_service_options opt;
    pseg_queue *queue;
    waiter_table waiters;
    watch_table watches;
    result_table results;
    upload_shares uploads;
    held_images held;
    _Atomic int64_t mask_bytes;
    /* the threads that encode masks */
    pthread_t encoders[PSEG_MAX_MASK_THREADS];
    size_t n_encoders;
    pthread_mutex_t encode_mu;
    pthread_cond_t encode_cv;
    encode_task *encode_head, *encode_tail;
    int64_t n_encode;
    bool stopping;
    _Atomic int64_t encode_here_us; /* from when a loop may encode, too */
};

static inline pseg_service *service_of(const pseg_rpc_call *c)
{
    return pseg_rpc_ud(c);
}

/* What the calls of this folder keep as their state. */
typedef struct call_state {
    pseg_rpc_timer stall; /* streams: set while it is the client's turn */
    waiter *waiter;
    watch *watch;
    struct upload *upload;
    struct fetch *fetch;
    struct infer *infer;
    const void *own;                    /* of a handler whose file knows what it is */
    const Pseg__V1__MaskFormat *format; /* Segment */
    Pseg__V1__Job *done;                /* Segment: the job at its end, while its masks are made */
    pseg_rpc_timer late;                /* Segment: too late for the masks */
    encode_task *task;                  /* under way */
    const Pseg__V1__ListJobsRequest *list;
    int page_size; /* of a list of cases */
    const Pseg__V1__BatchCheckImagesRequest *check;
    pseg_queue_reply *kept;        /* an answer that outlives its op: encode_masks took it */
    struct submission *submission; /* that waits for its estimate */
    struct submit_stream *submit;
    result_stream *results;
    const char *batch;                             /* that the call is about, or NULL */
    char job_id[PSEG_JOB_ID_LEN + 1];              /* that the call is about, or "" */
    const char *request_id, *model, *image_sha256; /* of the job to be made, or NULL */
    char new_id[PSEG_JOB_ID_LEN + 1];              /* of the job being made, before it is there */
} call_state;
/* Made on first use; NULL: memory is short. */
call_state *state_of(pseg_rpc_call *c);

/* ---- views ---- */

/* The public form of a stored job, in the arena; NULL and *err set if its record does not parse. */
Pseg__V1__Job *job_view(pseg_arena *a, const pseg_job *j, pseg_err *err);
Google__Protobuf__Timestamp *timestamp_of(pseg_arena *a, int64_t unix_us); /* NULL for 0 */
/* An allocator for unpacking into an arena. */
ProtobufCAllocator arena_allocator(pseg_arena *a);
/* Replies with jobs[0] of the answer, or fails. */
void reply_with_job(pseg_rpc_call *c, pseg_queue_reply *r);

/* ---- masks ---- */

/* Beside those of the API: a byte a pixel, 1 inside, 0 outside. */
enum { MASK_ENCODING_RAW = 1000 };

/* Encodes masks of a SUCCEEDED job, few and small ones at once, others on threads for that, then
 * runs `then` on the loop.
 * result: unpacked record; grids: float16 logits per entry. */
struct encode_task {
    encode_task *next;
    pseg_rpc_ticket *ticket;
    pseg_queue_reply *reply; /* NULL, or owns job and blobs and is freed after `then` */
    const pseg_bytes *blobs; /* float16 logits */
    Pseg__Internal__V1__JobResult *result;
    const uint32_t *indexes; /* prompt index of each blob */
    float threshold;
    int encoding;          /* Pseg__V1__MaskEncoding */
    Pseg__V1__Mask *masks; /* filled: data is freed with pseg_free after `then` */
    size_t n;
    size_t max_bytes;         /* of all masks; 0: no limit */
    bool is_cut;              /* they were more: not all masks are there */
    _Atomic bool is_unwanted; /* the call is over */
    bool is_of_many;          /* see encode_begin */
    pseg_err err;
    void (*then)(pseg_rpc_call *c, encode_task *t);
    void *ud;
};
/* From within an op's `then`, whose answer r is kept until `then` of the task has run. Fails the
 * call itself where the task cannot be queued; otherwise `then` runs, with t->err set on failure.
 */
void encode_masks(pseg_rpc_call *c, pseg_queue_reply *r, const uint32_t *indexes, size_t n,
                  const Pseg__V1__MaskFormat *format, size_t max_bytes,
                  void (*then)(pseg_rpc_call *, encode_task *));
typedef struct encode_order {
    const pseg_job *job;
    const pseg_bytes *blobs; /* like job and indexes, to live until the task has been freed */
    const uint32_t *indexes;
    size_t n, max_bytes;
    const Pseg__V1__MaskFormat *format; /* NULL: as the job says */
    void (*then)(pseg_rpc_call *c, encode_task *t);
    void *ud; /* the task's */
} encode_order;
/* The same for a call of many tasks at once; memory is the caller's, and of the arena, in which the
 * task lies. `then` runs in any case, be the call over, and whoever has the task frees it. Errors:
 * SERVER_BUSY and OUT_OF_MEMORY, then later; what else is wrong stays so. */
pseg_status encode_begin(encode_task **out, pseg_rpc_call *c, pseg_arena *a,
                         const encode_order *order, pseg_err *err);
/* The masks, but not the task's own memory. */
void encode_free(pseg_service *s, encode_task *t);
/* Part of the on_end of calls that encode: what is still to be encoded need not be. */
void encode_end(pseg_rpc_call *c);
/* Frees a mask's data, which the task counted. */
void mask_free(pseg_service *s, Pseg__V1__Mask *m);
pseg_status encoders_start(pseg_service *s, pseg_err *err);
void encoders_stop(pseg_service *s);

/* ---- making jobs ---- */

/* What a job is submitted as; what it points to lies here, in the arena and in the message. */
typedef struct made_job {
    pseg_queue_submit_args args; /* tenant and limits are the caller's to set */
    char sha256[65], fingerprint[33], id[PSEG_JOB_ID_LEN + 1];
} made_job;
/* Checks the spec, whose path in the request is `field`, and makes a job of it. A job without a
 * request_id ("") gets no fingerprint; its trace is that of the call. Errors: as pseg_check_spec.
 */
pseg_status job_make(made_job *out, pseg_rpc_call *c, pseg_arena *a, const Pseg__V1__JobSpec *q,
                     const char *field, const char *request_id, pseg_err *err);

/* Labels as the map that they are on the wire, sorted by key. Pointers into q. */
pseg_status labels_take(Pseg__Internal__V1__JobSpec *s, pseg_arena *a, const Pseg__V1__JobSpec *q,
                        pseg_err *err);

/* ---- estimates ---- */

/* Asks the queue on behalf of o for what lies before such a job of the caller's. */
void estimate_for(op *o, const char *request_id, const char *model, int64_t phrases,
                  int64_t priority);
/* Would the job not be done by its deadline? *err says so then, as DEADLINE_INFEASIBLE. False also
 * where that cannot be told, and where the job is there already. */
bool is_infeasible(pseg_err *err, const pseg_queue_estimate *e, int64_t deadline_unix_us);

/* ---- batches ---- */

/* The public form of a batch, in the arena; NULL and *err set if its record does not parse. */
Pseg__V1__Batch *batch_view(pseg_arena *a, const pseg_queue_batch *b, pseg_err *err);
/* Fails the call: there is no batch of this id. */
void fail_batch_not_found(pseg_rpc_call *c, const char *id);

/* ---- handlers, by file ---- */

/* Checks q and submits it; `then` runs with the answer. Otherwise the call has failed, with fields
 * of q below "job". ended, if not NULL, runs as of wait_for_job after it, if that is good. */
void submit_job(pseg_rpc_call *c, const char *request_id, const Pseg__V1__JobSpec *q,
                void (*then)(pseg_rpc_call *, pseg_queue_reply *), size_t n_masks,
                void (*ended)(pseg_rpc_call *, pseg_queue_reply *));
/* Fails the call by what became of the job instead of success; NULL: there is none. */
void fail_not_succeeded(pseg_rpc_call *c, const pseg_job *j);
void create_job(pseg_rpc_call *c, const void *msg);
void segment(pseg_rpc_call *c, const void *msg);
void segment_end(pseg_rpc_call *c);
void upload_image(pseg_rpc_call *c, const void *msg);
void upload_end(pseg_rpc_call *c);
void upload_drain(pseg_rpc_call *c);
void batch_check_images(pseg_rpc_call *c, const void *msg);
void get_job(pseg_rpc_call *c, const void *msg);
void wait_job(pseg_rpc_call *c, const void *msg);
void list_jobs(pseg_rpc_call *c, const void *msg);
void cancel_job(pseg_rpc_call *c, const void *msg);
void fetch_masks(pseg_rpc_call *c, const void *msg);
void fetch_writable(pseg_rpc_call *c);
void fetch_end(pseg_rpc_call *c);
void list_models(pseg_rpc_call *c, const void *msg);
void estimate_job(pseg_rpc_call *c, const void *msg);
void create_batch(pseg_rpc_call *c, const void *msg);
void get_batch(pseg_rpc_call *c, const void *msg);
void list_batches(pseg_rpc_call *c, const void *msg);
void cancel_batch(pseg_rpc_call *c, const void *msg);
void submit_jobs(pseg_rpc_call *c, const void *msg);
void submit_writable(pseg_rpc_call *c);
void submit_drain(pseg_rpc_call *c);
void submit_end(pseg_rpc_call *c);

#endif
