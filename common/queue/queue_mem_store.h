/* The jobs of an in-memory queue: the transitions of lua/ in C. Private to this folder.
 * Every function runs with the store's mutex held; `changed` and `ready` are called in it. */
#ifndef PSEG_QUEUE_QUEUE_MEM_STORE_H
#define PSEG_QUEUE_QUEUE_MEM_STORE_H

#include "common/queue/queue_impl.h"

typedef struct mem_job mem_job;
typedef struct mem_image mem_image;
typedef struct mem_worker mem_worker;
typedef struct mem_model mem_model;
typedef struct mem_share mem_share;
typedef struct mem_case mem_case;
typedef struct mem_rate mem_rate;
typedef struct mem_event mem_event;
typedef struct mem_batch mem_batch;
typedef struct mem_feature mem_feature;
typedef struct mem_holder mem_holder;

typedef struct mem_store {
    mem_job *jobs; /* by id, newest first */
    mem_image *images;
    mem_worker *workers;
    mem_model *models;
    mem_share *shares;
    mem_case *cases; /* by id, newest first */
    mem_rate *rates;
    mem_batch *batches;    /* newest first */
    mem_feature *features; /* used last first */
    mem_holder *holders;   /* who has which image at hand */
    int64_t last_place, image_bytes, skew_us;
    int64_t submitted, ended[PSEG_JOB_EXPIRED + 1];
    mem_event *first_event, *last_event; /* in their order */
    size_t n_events;
    pseg_queue_place last_place_told; /* of the newest event, gone or not */
    bool has_lost_events;
    void (*changed)(void *ud, const pseg_queue_event *e);
    void (*ready)(void *ud, const char *model);
    void *ud;
} mem_store;

void mem_free(mem_store *s);

void mem_submit(mem_store *s, const pseg_queue_options *o, const pseg_queue_submit_args *a,
                pseg_queue_reply *r);
void mem_put_image(mem_store *s, const pseg_queue_options *o, const char *tenant,
                   const char *sha256, pseg_bytes data, int64_t tenant_bytes, pseg_queue_reply *r);
void mem_has_images(mem_store *s, const pseg_queue_options *o, const char *tenant,
                    const char *const *sha256, size_t n, pseg_queue_reply *r);
void mem_get(mem_store *s, const char *tenant, const char *const *ids, size_t n,
             pseg_queue_reply *r);
void mem_list(mem_store *s, const char *tenant, const char *after_id, size_t limit,
              pseg_queue_reply *r);
void mem_masks(mem_store *s, const char *tenant, const char *id, const uint32_t *indexes, size_t n,
               pseg_queue_reply *r);
void mem_cancel(mem_store *s, const char *tenant, const char *id, pseg_queue_reply *r);
void mem_events(mem_store *s, const char *tenant, const char *batch, pseg_queue_place from,
                size_t limit, pseg_queue_reply *r);
void mem_states(mem_store *s, const char *tenant, const char *const *ids, size_t n,
                pseg_queue_reply *r);
void mem_workers(mem_store *s, pseg_queue_reply *r);
void mem_stats(mem_store *s, pseg_queue_reply *r);
void mem_uses(mem_store *s, pseg_queue_reply *r);
void mem_estimate(mem_store *s, const pseg_queue_estimate_args *a, pseg_queue_reply *r);
void mem_backlog(mem_store *s, const char *model, size_t limit, pseg_queue_reply *r);
void mem_sweep(mem_store *s, const pseg_queue_options *o);
void mem_register(mem_store *s, const pseg_queue_options *o, const pseg_queue_worker *w,
                  pseg_queue_reply *r);
void mem_unregister(mem_store *s, const char *worker);
void mem_claim(mem_store *s, const pseg_queue_options *o, const char *worker, const char *model,
               size_t max, size_t held, int64_t near_ms, pseg_queue_reply *r);
void mem_fetch_image(mem_store *s, const char *image, pseg_queue_reply *r);
void mem_get_features(mem_store *s, const char *key, int64_t ttl_ms, pseg_queue_reply *r);
void mem_put_features(mem_store *s, const char *key, pseg_bytes data, int64_t budget,
                      int64_t ttl_ms, pseg_queue_reply *r);
void mem_free_features(mem_store *s);
void mem_renew(mem_store *s, const pseg_queue_options *o, const char *worker,
               const pseg_queue_lease *l, size_t n, pseg_queue_reply *r);
void mem_publish(mem_store *s, const char *worker, pseg_queue_lease l, pseg_bytes result,
                 const pseg_bytes *masks, size_t n, int64_t cost_us, pseg_queue_reply *r);
void mem_list_cases(mem_store *s, const char *after_id, size_t limit, pseg_queue_reply *r);
void mem_get_case(mem_store *s, const char *id, pseg_queue_reply *r);
void mem_drop_case(mem_store *s, const char *id, pseg_queue_reply *r);
void mem_requeue_case(mem_store *s, const pseg_queue_options *o, const char *id, const char *new_id,
                      pseg_queue_reply *r);
void mem_fail(mem_store *s, const pseg_queue_options *o, const char *worker, pseg_queue_lease l,
              const pseg_err *why, int64_t delay_ms, pseg_queue_reply *r);
void mem_create_batch(mem_store *s, const char *tenant, const char *id, int64_t ttl_ms,
                      pseg_bytes labels, pseg_queue_reply *r);
void mem_get_batch(mem_store *s, const char *tenant, const char *id, pseg_queue_reply *r);
void mem_list_batches(mem_store *s, const char *tenant, const char *token, size_t limit,
                      pseg_queue_reply *r);
void mem_seal_batch(mem_store *s, const char *tenant, const char *id, pseg_queue_reply *r);
void mem_cancel_batch(mem_store *s, const char *tenant, const char *id, pseg_queue_reply *r);
void mem_batch_ends(mem_store *s, const char *tenant, const char *id, int64_t from, size_t limit,
                    bool with_jobs, int64_t masks_from, pseg_queue_reply *r);
void mem_submit_item(mem_store *s, const pseg_queue_options *o, const pseg_queue_item_args *a,
                     pseg_queue_reply *r);
void mem_release(mem_store *s, const char *worker, pseg_queue_lease l, pseg_queue_reply *r);

#endif
