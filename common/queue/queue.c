/* What all forms of the queue share: options, answers, waiting; the rest goes to the form. */
#include "common/queue/queue_parts.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <string.h>

#define MAX_ANSWER ((size_t)512 << 20)

/* ---- answers ---- */

/* Shared by all who get it, and never written to. */
static pseg_queue_reply no_memory_reply = {.err = {.code = PSEG_ENOMEM,
                                                   .reason = PSEG_R_OUT_OF_MEMORY,
                                                   .where = PSEG_HERE,
                                                   .msg = "no memory for an answer of the queue"}};

pseg_queue_reply *queue_reply_new(const pseg_err *err)
{
    pseg_arena *a = pseg_arena_new(MAX_ANSWER);
    pseg_queue_reply *r = a ? pseg_arena_calloc(a, 1, sizeof *r) : NULL;

    if (!r) {
        pseg_arena_free(a);
        return &no_memory_reply;
    }
    r->arena = a;
    if (err)
        r->err = *err;
    return r;
}

void pseg_queue_reply_free(pseg_queue_reply *r)
{
    for (pseg_queue_reply *lent; r; r = lent) {
        lent = r->lent;
        pseg_arena_free(r->arena);
    }
}

void queue_reply_lend(pseg_queue_reply *r, pseg_queue_reply *from)
{
    pseg_queue_reply *last = from;

    if (from == &no_memory_reply)
        return;
    while (last->lent)
        last = last->lent;
    last->lent = r->lent;
    r->lent = from;
}

void queue_answer_no_memory(pseg_queue_done done, void *ud)
{
    done(ud, &no_memory_reply);
}

/* ---- waiting ---- */

void pseg_queue_sync_init(pseg_queue_sync *s)
{
    pthread_mutex_init(&s->mu, NULL);
    pseg_cond_init(&s->cv);
    s->reply = NULL;
}

void pseg_queue_sync_done(void *sync, pseg_queue_reply *r)
{
    pseg_queue_sync *s = sync;

    pthread_mutex_lock(&s->mu);
    s->reply = r;
    pthread_cond_signal(&s->cv);
    pthread_mutex_unlock(&s->mu);
}

pseg_queue_reply *pseg_queue_sync_take(pseg_queue_sync *s)
{
    pthread_mutex_lock(&s->mu);
    while (!s->reply)
        pthread_cond_wait(&s->cv, &s->mu);
    pthread_mutex_unlock(&s->mu);
    pthread_cond_destroy(&s->cv);
    pthread_mutex_destroy(&s->mu);
    return s->reply;
}

/* ---- open and close ---- */

static pseg_status check_options(const pseg_queue_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const struct {
        const char *name;
        int64_t value;
    } positive[] = {{"timeout_ms", o->timeout_ms},     {"lease_ms", o->lease_ms},
                    {"max_attempts", o->max_attempts}, {"max_jobs", o->max_jobs},
                    {"max_bytes", o->max_bytes},       {"image_ttl_ms", o->image_ttl_ms},
                    {"max_age_ms", o->max_age_ms}};

    PSEG_REQUIRE(o->url && o->name, "url and name");
    size_t n = strlen(o->name);
    if (n < 1 || n > PSEG_QUEUE_MAX_NAME ||
        strspn(o->name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != n)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "queue name \"%s\" must be 1 to %d of a-z 0-9 _ -",
                  o->name, PSEG_QUEUE_MAX_NAME);
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++)
        if (positive[i].value < 1)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "the queue's %s is %lld, must be 1 or more",
                      positive[i].name, (long long)positive[i].value);
    PSEG_REQUIRE(!o->on_ready || o->watch_model, "watch_model, if on_ready is set");
out:
    return rc;
}

pseg_status queue_open_one(pseg_queue **out, const pseg_queue_options *o, size_t n_layout,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_queue base = {.opt = *o, .n_layout = n_layout};

    base.arena = pseg_arena_new(1 << 16);
    if (base.arena) {
        base.opt.url = pseg_arena_strdup(base.arena, o->url);
        base.opt.name = pseg_arena_strdup(base.arena, o->name);
        base.opt.watch_model = pseg_arena_strdup(base.arena, o->watch_model ? o->watch_model : "");
    }
    if (!base.arena || !base.opt.url || !base.opt.name || !base.opt.watch_model)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the queue");
    if (strncmp(o->url, "mem:", 4) == 0)
        PSEG_TRY(queue_mem_open(out, &base, err));
    else
        PSEG_TRY(queue_redis_open(out, &base, err));
    base.arena = NULL;
out:
    pseg_arena_free(base.arena);
    return rc;
}

pseg_status pseg_queue_open(pseg_queue **out, const pseg_queue_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_queue base = {.opt = *o};
    const char *const *urls;
    size_t n;

    *out = NULL;
    PSEG_TRY(check_options(o, err));
    base.arena = pseg_arena_new(1 << 16);
    if (!base.arena)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the queue");
    PSEG_TRY(queue_split_urls(&urls, &n, base.arena, o->url, err));
    if (n > 1) {
        PSEG_TRY(queue_parts_open(out, &base, urls, n, err));
        base.arena = NULL;
    } else {
        base.opt.url = urls[0];
        PSEG_TRY(queue_open_one(out, &base.opt, 1, err));
    }
out:
    pseg_arena_free(base.arena);
    return rc;
}

void pseg_queue_close(pseg_queue *q)
{
    if (q)
        q->ops->close(q);
}

int64_t pseg_queue_silence_ms(const pseg_queue *q)
{
    return q->ops->silence_ms(q);
}

size_t pseg_queue_n_parts(const pseg_queue *q)
{
    return q->n_parts ? q->n_parts : 1;
}

int64_t pseg_queue_part_silence_ms(const pseg_queue *q, size_t part)
{
    return pseg_queue_silence_ms(q->n_parts ? q->parts[part] : q);
}

/* ---- requests ---- */

void pseg_queue_submit(pseg_queue *q, const pseg_queue_submit_args *a, pseg_queue_done done,
                       void *ud)
{
    q = queue_part(q, a->tenant);
    q->ops->submit(q, a, done, ud);
}

void pseg_queue_put_image(pseg_queue *q, const char *tenant, const char *sha256, pseg_bytes data,
                          int64_t tenant_bytes, pseg_queue_done done, void *ud)
{
    q = queue_part(q, tenant);
    q->ops->put_image(q, tenant, sha256, data, tenant_bytes, done, ud);
}

void pseg_queue_has_images(pseg_queue *q, const char *tenant, const char *const *sha256, size_t n,
                           pseg_queue_done done, void *ud)
{
    q = queue_part(q, tenant);
    q->ops->has_images(q, tenant, sha256, n, done, ud);
}

void pseg_queue_get(pseg_queue *q, const char *tenant, const char *const *ids, size_t n,
                    pseg_queue_done done, void *ud)
{
    q = queue_part(q, tenant);
    q->ops->get(q, tenant, ids, n, done, ud);
}

void pseg_queue_list(pseg_queue *q, const char *tenant, const char *after_id, size_t limit,
                     pseg_queue_done done, void *ud)
{
    q = queue_part(q, tenant);
    q->ops->list(q, tenant, after_id, limit, done, ud);
}

void pseg_queue_masks(pseg_queue *q, const char *tenant, const char *id, const uint32_t *indexes,
                      size_t n, pseg_queue_done done, void *ud)
{
    q = queue_part(q, tenant);
    q->ops->masks(q, tenant, id, indexes, n, done, ud);
}

void pseg_queue_cancel(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                       void *ud)
{
    q = queue_part(q, tenant);
    q->ops->cancel(q, tenant, id, done, ud);
}

void pseg_queue_events(pseg_queue *q, const char *tenant, const char *batch, pseg_queue_place from,
                       size_t limit, pseg_queue_done done, void *ud)
{
    q = queue_part(q, tenant);
    q->ops->events(q, tenant, batch, from, limit, done, ud);
}

void pseg_queue_states(pseg_queue *q, const char *tenant, const char *const *ids, size_t n,
                       pseg_queue_done done, void *ud)
{
    q = queue_part(q, tenant);
    q->ops->states(q, tenant, ids, n, done, ud);
}

void pseg_queue_workers(pseg_queue *q, pseg_queue_done done, void *ud)
{
    q->ops->workers(q, done, ud);
}

void pseg_queue_get_stats(pseg_queue *q, pseg_queue_done done, void *ud)
{
    q->ops->get_stats(q, done, ud);
}

void pseg_queue_get_uses(pseg_queue *q, pseg_queue_done done, void *ud)
{
    q->ops->get_uses(q, done, ud);
}

void pseg_queue_get_estimate(pseg_queue *q, const pseg_queue_estimate_args *a, pseg_queue_done done,
                             void *ud)
{
    q->ops->get_estimate(q, a, done, ud);
}

void pseg_queue_get_backlog(pseg_queue *q, const char *model, size_t limit, pseg_queue_done done,
                            void *ud)
{
    q->ops->get_backlog(q, model, limit, done, ud);
}

void pseg_queue_sweep(pseg_queue *q, pseg_queue_done done, void *ud)
{
    q->ops->sweep(q, done, ud);
}

void pseg_queue_list_cases(pseg_queue *q, const char *after_id, size_t limit, pseg_queue_done done,
                           void *ud)
{
    q->ops->list_cases(q, after_id, limit, done, ud);
}

void pseg_queue_get_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud)
{
    q->ops->get_case(q, id, done, ud);
}

void pseg_queue_drop_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud)
{
    q->ops->drop_case(q, id, done, ud);
}

void pseg_queue_requeue_case(pseg_queue *q, const char *id, const char *new_id,
                             pseg_queue_done done, void *ud)
{
    q->ops->requeue_case(q, id, new_id, done, ud);
}

void pseg_queue_register(pseg_queue *q, const pseg_queue_worker *w, pseg_queue_done done, void *ud)
{
    q->ops->register_worker(q, w, done, ud);
}

void pseg_queue_unregister(pseg_queue *q, const char *worker, pseg_queue_done done, void *ud)
{
    q->ops->unregister(q, worker, done, ud);
}

void pseg_queue_claim_jobs(pseg_queue *q, const char *worker, const char *model, size_t max,
                           size_t held, int64_t near_ms, pseg_queue_done done, void *ud)
{
    q->ops->claim_jobs(q, worker, model, max, held, near_ms, done, ud);
}

void pseg_queue_fetch_image(pseg_queue *q, const char *image, pseg_queue_done done, void *ud)
{
    q->ops->fetch_image(q, image, done, ud);
}

void pseg_queue_get_features(pseg_queue *q, const char *key, int64_t ttl_ms, pseg_queue_done done,
                             void *ud)
{
    q->ops->get_features(q, key, ttl_ms, done, ud);
}

void pseg_queue_put_features(pseg_queue *q, const char *key, pseg_bytes data, int64_t budget,
                             int64_t ttl_ms, pseg_queue_done done, void *ud)
{
    q->ops->put_features(q, key, data, budget, ttl_ms, done, ud);
}

void pseg_queue_renew(pseg_queue *q, const char *worker, const pseg_queue_lease *l, size_t n,
                      pseg_queue_done done, void *ud)
{
    q->ops->renew(q, worker, l, n, done, ud);
}

void pseg_queue_publish(pseg_queue *q, const char *worker, pseg_queue_lease l, pseg_bytes result,
                        const pseg_bytes *masks, size_t n, int64_t cost_us, pseg_queue_done done,
                        void *ud)
{
    q = queue_part_of_lease(q, &l);
    q->ops->publish(q, worker, l, result, masks, n, cost_us, done, ud);
}

void pseg_queue_fail(pseg_queue *q, const char *worker, pseg_queue_lease l, const pseg_err *why,
                     int64_t delay_ms, pseg_queue_done done, void *ud)
{
    q = queue_part_of_lease(q, &l);
    q->ops->fail(q, worker, l, why, delay_ms, done, ud);
}

void pseg_queue_release(pseg_queue *q, const char *worker, pseg_queue_lease l, pseg_queue_done done,
                        void *ud)
{
    q = queue_part_of_lease(q, &l);
    q->ops->release(q, worker, l, done, ud);
}

void pseg_queue_create_batch(pseg_queue *q, const char *tenant, const char *id, int64_t ttl_ms,
                             pseg_bytes labels, pseg_queue_done done, void *ud)
{
    q = queue_part(q, tenant);
    q->ops->create_batch(q, tenant, id, ttl_ms, labels, done, ud);
}

void pseg_queue_get_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                          void *ud)
{
    q = queue_part(q, tenant);
    q->ops->get_batch(q, tenant, id, done, ud);
}

void pseg_queue_list_batches(pseg_queue *q, const char *tenant, const char *token, size_t limit,
                             pseg_queue_done done, void *ud)
{
    q = queue_part(q, tenant);
    q->ops->list_batches(q, tenant, token, limit, done, ud);
}

void pseg_queue_seal_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                           void *ud)
{
    q = queue_part(q, tenant);
    q->ops->seal_batch(q, tenant, id, done, ud);
}

void pseg_queue_cancel_batch(pseg_queue *q, const char *tenant, const char *id,
                             pseg_queue_done done, void *ud)
{
    q = queue_part(q, tenant);
    q->ops->cancel_batch(q, tenant, id, done, ud);
}

void pseg_queue_batch_ends(pseg_queue *q, const char *tenant, const char *id, int64_t from,
                           size_t limit, bool with_jobs, int64_t masks_from, pseg_queue_done done,
                           void *ud)
{
    q = queue_part(q, tenant);
    q->ops->batch_ends(q, tenant, id, from, limit, with_jobs, masks_from, done, ud);
}

void pseg_queue_submit_item(pseg_queue *q, const pseg_queue_item_args *a, pseg_queue_done done,
                            void *ud)
{
    q = queue_part(q, a->job.tenant);
    q->ops->submit_item(q, a, done, ud);
}
