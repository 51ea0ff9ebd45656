/* What each request says to Redis. */
#include "common/queue/queue_redis_call.h"

#include <stdio.h>
#include <string.h>

/* ---- requests ---- */

static const batch_kind submit_kind = {"pseg1_submit", KIND_SUBMIT, true, 64},
                        publish_kind = {"pseg1_publish", KIND_PUBLISH, false, 120};

int queue_batch_head(const redis_queue *q, const batch_kind *kind, char head[6][24])
{
    const pseg_queue_options *o = &q->base.opt;
    const int64_t numbers[] = {o->max_age_ms, o->max_jobs, o->max_bytes, o->image_ttl_ms};

    if (kind->index == KIND_PUBLISH)
        return 0;
    for (int i = 0; i < 4; i++)
        snprintf(head[i], 24, "%lld", (long long)numbers[i]);
    return 4;
}

bool queue_terms(char *out, size_t size, const pseg_queue_submit_args *a)
{
    static const pseg_queue_tenant none;
    const pseg_queue_tenant *t = a->limits ? a->limits : &none;

    int n = snprintf(out, size, "%s %s %d %lld %lld %lld %lld %lld %lld %lld", a->tenant, a->model,
                     a->model_is_default, (long long)a->ttl_ms, (long long)a->priority,
                     (long long)(t->weight > 0 ? t->weight : 1), (long long)t->max_jobs,
                     (long long)t->max_bytes, (long long)t->rate,
                     (long long)(t->burst > 0 ? t->burst : 1));
    return n < (int)size && !strpbrk(a->tenant, " \t\n\v\f\r") && !strpbrk(a->model, " \t\n\v\f\r");
}

/* False: see queue_terms. */
static bool add_submit(call *c, const pseg_queue_submit_args *a)
{
    bool good = queue_terms(c->terms, sizeof c->terms, a);

    call_add(c, c->terms);
    call_add(c, a->id);
    call_add(c, a->request_id);
    call_add(c, a->fingerprint);
    call_add(c, a->image_sha256);
    call_add_bytes(c, a->spec);
    call_add_bytes(c, a->content);
    call_add_number(c, a->deadline_unix_us);
    return good;
}

void queue_answer_bad_name(const pseg_queue_submit_args *a, pseg_queue_done done, void *ud)
{
    pseg_err e = PSEG_ERR_INIT;

    pseg_err_set(&e, PSEG_R_INTERNAL, 0, PSEG_HERE,
                 "tenant \"%.80s\" or model \"%.80s\" is no name: blanks, or over 63 bytes",
                 a->tenant, a->model);
    done(ud, queue_reply_new(&e));
}

/* What the answer to a submit does not repeat, for it is as it was asked for. NULL: no memory. */
static pseg_queue_reply *echo_of(const pseg_queue_submit_args *a)
{
    pseg_queue_reply *r = queue_reply_new(NULL);
    pseg_job *j = r->arena ? pseg_arena_calloc(r->arena, 1, sizeof *j) : NULL;
    uint8_t *spec = j ? pseg_arena_alloc(r->arena, a->spec.len + 1) : NULL;

    if (spec) {
        memcpy(spec, a->spec.len ? a->spec.data : spec, a->spec.len);
        *j = (pseg_job){.id = pseg_arena_strdup(r->arena, a->id),
                        .tenant = pseg_arena_strdup(r->arena, a->tenant),
                        .request_id = pseg_arena_strdup(r->arena, a->request_id),
                        .model = pseg_arena_strdup(r->arena, a->model),
                        .worker = "",
                        .message = "",
                        .state = PSEG_JOB_QUEUED,
                        .spec = {spec, a->spec.len},
                        .result = {(const uint8_t *)"", 0}};
    }
    if (!spec || !j->id || !j->tenant || !j->request_id || !j->model) {
        pseg_queue_reply_free(r);
        return NULL;
    }
    r->jobs = j;
    r->n_jobs = 1;
    return r;
}

static void redis_submit(pseg_queue *q, const pseg_queue_submit_args *a, pseg_queue_done done,
                         void *ud)
{
    call c;

    item_begin(&c);
    if (!add_submit(&c, a)) {
        queue_answer_bad_name(a, done, ud);
        return;
    }
    pseg_queue_reply *echo = echo_of(a);
    if (!echo)
        queue_answer_no_memory(done, ud);
    else
        item_send(&c, q, &submit_kind, queue_parse_submit, echo, done, ud);
}

static void redis_put_image(pseg_queue *q, const char *tenant, const char *sha256, pseg_bytes data,
                            int64_t tenant_bytes, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_put_image", 0);
    call_add(&c, tenant);
    call_add(&c, sha256);
    call_add_bytes(&c, data);
    call_add_number(&c, q->opt.max_bytes);
    call_add_number(&c, q->opt.image_ttl_ms);
    call_add_number(&c, tenant_bytes);
    call_send(&c, q, true, queue_parse_put, 1, done, ud);
}

static void redis_has_images(pseg_queue *q, const char *tenant, const char *const *sha256, size_t n,
                             pseg_queue_done done, void *ud)
{
    call c;

    if (!call_begin(&c, q, "pseg1_has_images", n)) {
        call_no_memory(&c, done, ud);
        return;
    }
    call_add(&c, tenant);
    call_add_number(&c, q->opt.image_ttl_ms);
    for (size_t i = 0; i < n; i++)
        call_add(&c, sha256[i]);
    call_send(&c, q, false, queue_parse_has, n, done, ud);
}

static void redis_get(pseg_queue *q, const char *tenant, const char *const *ids, size_t n,
                      pseg_queue_done done, void *ud)
{
    call c;

    if (!call_begin(&c, q, "pseg1_get", n)) {
        call_no_memory(&c, done, ud);
        return;
    }
    call_add(&c, tenant);
    for (size_t i = 0; i < n; i++)
        call_add(&c, ids[i]);
    call_send(&c, q, false, queue_parse_get, n, done, ud);
}

static void redis_list(pseg_queue *q, const char *tenant, const char *after_id, size_t limit,
                       pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_list", 0);
    call_add(&c, tenant);
    call_add(&c, after_id);
    call_add_number(&c, (int64_t)limit);
    call_send(&c, q, false, queue_parse_list, limit, done, ud);
}

static void redis_masks(pseg_queue *q, const char *tenant, const char *id, const uint32_t *indexes,
                        size_t n, pseg_queue_done done, void *ud)
{
    call c;

    if (!call_begin(&c, q, "pseg1_masks", n)) {
        call_no_memory(&c, done, ud);
        return;
    }
    call_add(&c, tenant);
    call_add(&c, id);
    for (size_t i = 0; i < n; i++)
        call_add_number(&c, indexes[i]);
    call_send(&c, q, false, queue_parse_masks, n, done, ud);
}

static void redis_cancel(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                         void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_cancel", 0);
    call_add(&c, tenant);
    call_add(&c, id);
    call_send(&c, q, true, queue_parse_view, 1, done, ud);
}

static void redis_workers(pseg_queue *q, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_workers", 0);
    call_send(&c, q, false, queue_parse_workers, 0, done, ud);
}

static void redis_get_stats(pseg_queue *q, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_stats", 0);
    call_send(&c, q, false, queue_parse_stats, 0, done, ud);
}

static void redis_get_uses(pseg_queue *q, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_uses", 0);
    call_send(&c, q, false, queue_parse_uses, 0, done, ud);
}

static void redis_sweep(pseg_queue *q, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_sweep", 0);
    call_add_number(&c, q->opt.max_attempts);
    call_add_number(&c, 200);
    call_add_number(&c, q->opt.lease_ms);
    call_add_number(&c, q->opt.image_ttl_ms);
    call_send(&c, q, true, queue_parse_nothing, 0, done, ud);
}

static void redis_register(pseg_queue *q, const pseg_queue_worker *w, pseg_queue_done done,
                           void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_register", 0);
    call_add(&c, w->id);
    call_add_number(&c, q->opt.lease_ms);
    call_add(&c, w->model);
    call_add(&c, w->digest);
    call_add(&c, w->device);
    call_add(&c, w->version);
    call_add(&c, w->log ? w->log : "");
    call_send(&c, q, true, queue_parse_nothing, 0, done, ud);
}

static void redis_unregister(pseg_queue *q, const char *worker, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_unregister", 0);
    call_add(&c, worker);
    call_send(&c, q, true, queue_parse_nothing, 0, done, ud);
}

static void redis_claim_jobs(pseg_queue *q, const char *worker, const char *model, size_t max,
                             size_t held, int64_t near_ms, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_claim", 0);
    call_add(&c, worker);
    call_add(&c, model);
    call_add_number(&c, (int64_t)max);
    call_add_number(&c, q->opt.lease_ms);
    call_add_number(&c, q->opt.max_attempts);
    call_add_number(&c, (int64_t)held);
    if (near_ms > 0)
        call_add_number(&c, near_ms);
    call_send(&c, q, true, queue_parse_claims, max, done, ud);
}

static void redis_fetch_image(pseg_queue *q, const char *image, pseg_queue_done done, void *ud)
{
    char key[192];
    int n = snprintf(key, sizeof key, "%simage:%s", ((redis_queue *)q)->prefix, image);

    queue_send((redis_queue *)q, false, queue_parse_image, 1, 2, (const char *[]){"GET", key},
               (size_t[]){3, (size_t)n}, done, ud);
}

static void redis_renew(pseg_queue *q, const char *worker, const pseg_queue_lease *l, size_t n,
                        pseg_queue_done done, void *ud)
{
    call c;

    if (!call_begin(&c, q, "pseg1_renew", 2 * n)) {
        call_no_memory(&c, done, ud);
        return;
    }
    call_add(&c, worker);
    call_add_number(&c, q->opt.lease_ms);
    for (size_t i = 0; i < n; i++) {
        call_add(&c, l[i].id);
        call_add_number(&c, l[i].fence);
    }
    call_send(&c, q, true, queue_parse_leases, n, done, ud);
}

static void add_lease(call *c, const char *worker, pseg_queue_lease l)
{
    call_add(c, worker);
    call_add(c, l.id);
    call_add_number(c, l.fence);
}

static void redis_publish(pseg_queue *q, const char *worker, pseg_queue_lease l, pseg_bytes result,
                          const pseg_bytes *masks, size_t n, int64_t cost_us, pseg_queue_done done,
                          void *ud)
{
    call c;

    if (!call_room(&c, n)) {
        call_no_memory(&c, done, ud);
        return;
    }
    add_lease(&c, worker, l);
    call_add_number(&c, cost_us);
    call_add_number(&c, (int64_t)n);
    call_add_bytes(&c, result);
    for (size_t i = 0; i < n; i++)
        call_add_bytes(&c, masks[i]);
    item_send(&c, q, &publish_kind, queue_parse_state, NULL, done, ud);
}

static void redis_fail(pseg_queue *q, const char *worker, pseg_queue_lease l, const pseg_err *why,
                       int64_t delay_ms, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_fail", 0);
    add_lease(&c, worker, l);
    call_add(&c, pseg_reason_name(why->reason));
    call_add(&c, why->msg);
    call_add(&c, pseg_reason_is_retryable(why->reason) ? "1" : "0");
    call_add_number(&c, delay_ms);
    call_add_number(&c, q->opt.max_attempts);
    call_send(&c, q, true, queue_parse_state, 1, done, ud);
}

static void redis_release(pseg_queue *q, const char *worker, pseg_queue_lease l,
                          pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_release", 0);
    add_lease(&c, worker, l);
    call_send(&c, q, true, queue_parse_state, 1, done, ud);
}

static void redis_list_cases(pseg_queue *q, const char *after_id, size_t limit,
                             pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_cases", 0);
    call_add(&c, after_id);
    call_add_number(&c, (int64_t)limit);
    call_send(&c, q, false, queue_parse_cases, limit, done, ud);
}

static void redis_get_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_case", 0);
    call_add(&c, id);
    call_send(&c, q, false, queue_parse_case, 1, done, ud);
}

static void redis_drop_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_case_drop", 0);
    call_add(&c, id);
    call_send(&c, q, true, queue_parse_dropped, 1, done, ud);
}

static void redis_requeue_case(pseg_queue *q, const char *id, const char *new_id,
                               pseg_queue_done done, void *ud)
{
    char head[6][24];
    call c;

    call_begin(&c, q, "pseg1_case_requeue", 0);
    call_add(&c, id);
    call_add(&c, new_id);
    int n = queue_batch_head((redis_queue *)q, &submit_kind, head);
    for (int i = 0; i < n; i++)
        call_add(&c, head[i]);
    call_send(&c, q, true, queue_parse_requeued, 1, done, ud);
}

const queue_ops queue_redis_ops = {
    .close = queue_redis_close,
    .silence_ms = queue_redis_silence_ms,
    .submit = redis_submit,
    .put_image = redis_put_image,
    .has_images = redis_has_images,
    .get = redis_get,
    .list = redis_list,
    .masks = redis_masks,
    .events = redis_events,
    .states = redis_states,
    .cancel = redis_cancel,
    .workers = redis_workers,
    .get_stats = redis_get_stats,
    .get_uses = redis_get_uses,
    .get_backlog = queue_redis_backlog,
    .get_estimate = queue_redis_estimate,
    .sweep = redis_sweep,
    .list_cases = redis_list_cases,
    .get_case = redis_get_case,
    .drop_case = redis_drop_case,
    .requeue_case = redis_requeue_case,
    .register_worker = redis_register,
    .unregister = redis_unregister,
    .claim_jobs = redis_claim_jobs,
    .fetch_image = redis_fetch_image,
    .get_features = redis_get_features,
    .put_features = redis_put_features,
    .renew = redis_renew,
    .publish = redis_publish,
    .fail = redis_fail,
    .release = redis_release,
    .create_batch = redis_create_batch,
    .get_batch = redis_get_batch,
    .list_batches = redis_list_batches,
    .seal_batch = redis_seal_batch,
    .cancel_batch = redis_cancel_batch,
    .batch_ends = redis_batch_ends,
    .submit_item = redis_submit_item,
};
