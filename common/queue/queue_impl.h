/* Between queue.c and the forms of the queue behind it. Private to this folder. */
#ifndef PSEG_QUEUE_QUEUE_IMPL_H
#define PSEG_QUEUE_QUEUE_IMPL_H

#include "common/queue/queue.h"

#define PSEG_QUEUE_MAX_NAME 32

/* Each member is the function of the same name in queue.h. */
typedef struct queue_ops {
    void (*close)(pseg_queue *q);
    int64_t (*silence_ms)(const pseg_queue *q);
    void (*submit)(pseg_queue *q, const pseg_queue_submit_args *a, pseg_queue_done done, void *ud);
    void (*put_image)(pseg_queue *q, const char *tenant, const char *sha256, pseg_bytes data,
                      int64_t tenant_bytes, pseg_queue_done done, void *ud);
    void (*has_images)(pseg_queue *q, const char *tenant, const char *const *sha256, size_t n,
                       pseg_queue_done done, void *ud);
    void (*get)(pseg_queue *q, const char *tenant, const char *const *ids, size_t n,
                pseg_queue_done done, void *ud);
    void (*list)(pseg_queue *q, const char *tenant, const char *after_id, size_t limit,
                 pseg_queue_done done, void *ud);
    void (*masks)(pseg_queue *q, const char *tenant, const char *id, const uint32_t *indexes,
                  size_t n, pseg_queue_done done, void *ud);
    void (*cancel)(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                   void *ud);
    void (*events)(pseg_queue *q, const char *tenant, const char *batch, pseg_queue_place from,
                   size_t limit, pseg_queue_done done, void *ud);
    void (*states)(pseg_queue *q, const char *tenant, const char *const *ids, size_t n,
                   pseg_queue_done done, void *ud);
    void (*workers)(pseg_queue *q, pseg_queue_done done, void *ud);
    void (*get_stats)(pseg_queue *q, pseg_queue_done done, void *ud);
    void (*get_uses)(pseg_queue *q, pseg_queue_done done, void *ud);
    void (*get_estimate)(pseg_queue *q, const pseg_queue_estimate_args *a, pseg_queue_done done,
                         void *ud);
    void (*get_backlog)(pseg_queue *q, const char *model, size_t limit, pseg_queue_done done,
                        void *ud);
    void (*sweep)(pseg_queue *q, pseg_queue_done done, void *ud);
    void (*list_cases)(pseg_queue *q, const char *after_id, size_t limit, pseg_queue_done done,
                       void *ud);
    void (*get_case)(pseg_queue *q, const char *id, pseg_queue_done done, void *ud);
    void (*drop_case)(pseg_queue *q, const char *id, pseg_queue_done done, void *ud);
    void (*requeue_case)(pseg_queue *q, const char *id, const char *new_id, pseg_queue_done done,
                         void *ud);
    void (*register_worker)(pseg_queue *q, const pseg_queue_worker *w, pseg_queue_done done,
                            void *ud);
    void (*unregister)(pseg_queue *q, const char *worker, pseg_queue_done done, void *ud);
    void (*claim_jobs)(pseg_queue *q, const char *worker, const char *model, size_t max,
                       size_t held, int64_t near_ms, pseg_queue_done done, void *ud);
    void (*fetch_image)(pseg_queue *q, const char *image, pseg_queue_done done, void *ud);
    void (*get_features)(pseg_queue *q, const char *key, int64_t ttl_ms, pseg_queue_done done,
                         void *ud);
    void (*put_features)(pseg_queue *q, const char *key, pseg_bytes data, int64_t budget,
                         int64_t ttl_ms, pseg_queue_done done, void *ud);
    void (*renew)(pseg_queue *q, const char *worker, const pseg_queue_lease *l, size_t n,
                  pseg_queue_done done, void *ud);
    void (*publish)(pseg_queue *q, const char *worker, pseg_queue_lease l, pseg_bytes result,
                    const pseg_bytes *masks, size_t n, int64_t cost_us, pseg_queue_done done,
                    void *ud);
    void (*fail)(pseg_queue *q, const char *worker, pseg_queue_lease l, const pseg_err *why,
                 int64_t delay_ms, pseg_queue_done done, void *ud);
    void (*release)(pseg_queue *q, const char *worker, pseg_queue_lease l, pseg_queue_done done,
                    void *ud);
    void (*create_batch)(pseg_queue *q, const char *tenant, const char *id, int64_t ttl_ms,
                         pseg_bytes labels, pseg_queue_done done, void *ud);
    void (*get_batch)(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                      void *ud);
    void (*list_batches)(pseg_queue *q, const char *tenant, const char *token, size_t limit,
                         pseg_queue_done done, void *ud);
    void (*seal_batch)(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                       void *ud);
    void (*cancel_batch)(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                         void *ud);
    void (*batch_ends)(pseg_queue *q, const char *tenant, const char *id, int64_t from,
                       size_t limit, bool with_jobs, int64_t masks_from, pseg_queue_done done,
                       void *ud);
    void (*submit_item)(pseg_queue *q, const pseg_queue_item_args *a, pseg_queue_done done,
                        void *ud);
} queue_ops;

/* The first member of each form's own struct. */
struct pseg_queue {
    const queue_ops *ops;
    pseg_queue_options opt; /* strings are copied into the arena */
    pseg_arena *arena;      /* of the handle; used while it is opened only */
    size_t n_layout;        /* in how many parts the queue is laid out, this handle's among them */
    pseg_queue **parts;     /* of a queue that is laid out in several: a handle each; or NULL */
    size_t n_parts;
};

/* Opens a form. `base` has opt and arena set; on success the form owns the arena. */
pseg_status queue_redis_open(pseg_queue **out, const pseg_queue *base, pseg_err *err);
pseg_status queue_mem_open(pseg_queue **out, const pseg_queue *base, pseg_err *err);
/* One handle on one server. o: checked. n_layout: see struct pseg_queue. */
pseg_status queue_open_one(pseg_queue **out, const pseg_queue_options *o, size_t n_layout,
                           pseg_err *err);

/* An answer that says *err, or nothing yet if err is NULL. Never NULL: when memory is short it is a
 * constant that says so, known by arena = NULL. Caller frees with pseg_queue_reply_free. */
pseg_queue_reply *queue_reply_new(const pseg_err *err);
/* r borrows from `from`, which is freed with it. */
void queue_reply_lend(pseg_queue_reply *r, pseg_queue_reply *from);
/* Answers at once that a request could not be built. */
void queue_answer_no_memory(pseg_queue_done done, void *ud);

#endif
