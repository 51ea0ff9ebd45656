/* The queue in memory: handles, their threads, and the registry by which they share a store. */
#include "common/queue/queue_mem.h"
#include "common/queue/queue_mem_impl.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <string.h>

typedef struct shared shared;
typedef struct mem_queue mem_queue;

/* Something for a handle's thread to tell. */
typedef struct item {
    struct item *next;
    pseg_queue_done done; /* an answer, or: */
    void *ud;
    pseg_queue_reply *reply;
    mem_event *event; /* or an event; NULL: look at everything */
    bool is_ready;
} item;

struct mem_queue {
    pseg_queue base;
    mem_queue *next;
    shared *shared;
    pthread_t thread;
    pthread_cond_t cv;
    item *first, *last; /* guarded by shared->mu, as all below */
    bool stopping;
    uint64_t fail_nth;
    pseg_reason fail_reason;
    bool fail_is_done;
};

struct shared {
    shared *next;
    char name[PSEG_QUEUE_MAX_NAME + 1];
    pthread_mutex_t mu;
    mem_store store;
    mem_queue *handles;
};

/* The one global thing: it stands for the server that the handles would share. */
static pthread_mutex_t registry_mu = PTHREAD_MUTEX_INITIALIZER;
static shared *registry;

static void post(mem_queue *q, item *i)
{
    i->next = NULL;
    if (q->last)
        q->last->next = i;
    else
        q->first = i;
    q->last = i;
    pthread_cond_signal(&q->cv);
}

/* An event that finds no memory is lost, as one is whose connection breaks: tests that fail
 * allocations must not count on events. */
static void post_event(mem_queue *q, const pseg_queue_event *e, bool is_ready)
{
    item *i = pseg_calloc(1, sizeof *i);

    if (i && e && !(i->event = mem_event_new(e))) {
        pseg_free(i);
        i = NULL;
    }
    if (!i)
        return;
    i->is_ready = is_ready;
    post(q, i);
}

static void item_free(item *i)
{
    pseg_free(i->event);
    pseg_free(i);
}

static void on_changed(void *ud, const pseg_queue_event *e)
{
    shared *s = ud;

    for (mem_queue *q = s->handles; q; q = q->next)
        if (q->base.opt.on_event)
            post_event(q, e, false);
}

static void on_ready(void *ud, const char *model)
{
    shared *s = ud;

    for (mem_queue *q = s->handles; q; q = q->next)
        if (q->base.opt.on_ready && strcmp(q->base.opt.watch_model, model) == 0)
            post_event(q, NULL, true);
}

static void *run(void *arg)
{
    mem_queue *q = arg;
    shared *s = q->shared;
    const pseg_queue_options *o = &q->base.opt;

    pthread_mutex_lock(&s->mu);
    for (;;) {
        while (!q->first && !q->stopping)
            pthread_cond_wait(&q->cv, &s->mu);
        item *i = q->first;
        if (!i)
            break;
        q->first = i->next;
        if (!q->first)
            q->last = NULL;
        pthread_mutex_unlock(&s->mu);
        if (i->done)
            i->done(i->ud, i->reply);
        else if (i->is_ready)
            o->on_ready(o->ud);
        else
            o->on_event(o->ud, i->event ? &i->event->e : NULL);
        item_free(i);
        pthread_mutex_lock(&s->mu);
    }
    pthread_mutex_unlock(&s->mu);
    return NULL;
}

/* ---- a request: begin, act on the store, end ---- */

typedef struct request {
    mem_queue *q;
    item *i;
    pseg_queue_reply *r;
    bool acts, fails;
    pseg_reason reason;
} request;

/* Locks the store; if it answers false, the request has been answered. */
static bool begin(request *t, pseg_queue *base, pseg_queue_done done, void *ud)
{
    mem_queue *q = (mem_queue *)base;

    *t = (request){.q = q, .acts = true};
    t->i = pseg_calloc(1, sizeof *t->i);
    t->r = queue_reply_new(NULL);
    if (!t->i || !t->r->arena) {
        pseg_free(t->i);
        pseg_queue_reply_free(t->r);
        queue_answer_no_memory(done, ud);
        return false;
    }
    t->i->done = done;
    t->i->ud = ud;
    pthread_mutex_lock(&q->shared->mu);
    if (q->fail_nth && --q->fail_nth == 0) {
        t->fails = true;
        t->reason = q->fail_reason;
        t->acts = q->fail_is_done;
    }
    return true;
}

static void end(request *t)
{
    pseg_err e = PSEG_ERR_INIT;

    if (t->fails) {
        pseg_err_set(&e, t->reason, 0, PSEG_HERE, "a fault that the test ordered");
        pseg_queue_reply_free(t->r);
        t->r = queue_reply_new(&e);
    }
    t->i->reply = t->r;
    post(t->q, t->i);
    pthread_mutex_unlock(&t->q->shared->mu);
}

#define ACT(expr)                              \
    do {                                       \
        request t;                             \
        if (!begin(&t, q, done, ud))           \
            return;                            \
        mem_store *s = &t.q->shared->store;    \
        const pseg_queue_options *o = &q->opt; \
        pseg_queue_reply *r = t.r;             \
        (void)o;                               \
        (void)r;                               \
        if (t.acts)                            \
            expr;                              \
        end(&t);                               \
    } while (0)

static void submit(pseg_queue *q, const pseg_queue_submit_args *a, pseg_queue_done done, void *ud)
{
    ACT(mem_submit(s, o, a, r));
}

static void put_image(pseg_queue *q, const char *tenant, const char *sha256, pseg_bytes data,
                      int64_t tenant_bytes, pseg_queue_done done, void *ud)
{
    ACT(mem_put_image(s, o, tenant, sha256, data, tenant_bytes, r));
}

static void has_images(pseg_queue *q, const char *tenant, const char *const *sha256, size_t n,
                       pseg_queue_done done, void *ud)
{
    ACT(mem_has_images(s, o, tenant, sha256, n, r));
}

static void get(pseg_queue *q, const char *tenant, const char *const *ids, size_t n,
                pseg_queue_done done, void *ud)
{
    ACT(mem_get(s, tenant, ids, n, r));
}

static void list(pseg_queue *q, const char *tenant, const char *after_id, size_t limit,
                 pseg_queue_done done, void *ud)
{
    ACT(mem_list(s, tenant, after_id, limit, r));
}

static void masks(pseg_queue *q, const char *tenant, const char *id, const uint32_t *indexes,
                  size_t n, pseg_queue_done done, void *ud)
{
    ACT(mem_masks(s, tenant, id, indexes, n, r));
}

static void cancel(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                   void *ud)
{
    ACT(mem_cancel(s, tenant, id, r));
}

static void events(pseg_queue *q, const char *tenant, const char *batch, pseg_queue_place from,
                   size_t limit, pseg_queue_done done, void *ud)
{
    ACT(mem_events(s, tenant, batch, from, limit, r));
}

static void states(pseg_queue *q, const char *tenant, const char *const *ids, size_t n,
                   pseg_queue_done done, void *ud)
{
    ACT(mem_states(s, tenant, ids, n, r));
}

static void workers(pseg_queue *q, pseg_queue_done done, void *ud)
{
    ACT(mem_workers(s, r));
}

static void get_stats(pseg_queue *q, pseg_queue_done done, void *ud)
{
    ACT(mem_stats(s, r));
}

static void get_uses(pseg_queue *q, pseg_queue_done done, void *ud)
{
    ACT(mem_uses(s, r));
}

static void get_estimate(pseg_queue *q, const pseg_queue_estimate_args *a, pseg_queue_done done,
                         void *ud)
{
    ACT(mem_estimate(s, a, r));
}

static void get_backlog(pseg_queue *q, const char *model, size_t limit, pseg_queue_done done,
                        void *ud)
{
    ACT(mem_backlog(s, model, limit, r));
}

static void sweep(pseg_queue *q, pseg_queue_done done, void *ud)
{
    ACT(mem_sweep(s, o));
}

static void list_cases(pseg_queue *q, const char *after_id, size_t limit, pseg_queue_done done,
                       void *ud)
{
    ACT(mem_list_cases(s, after_id, limit, r));
}

static void get_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud)
{
    ACT(mem_get_case(s, id, r));
}

static void drop_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud)
{
    ACT(mem_drop_case(s, id, r));
}

static void requeue_case(pseg_queue *q, const char *id, const char *new_id, pseg_queue_done done,
                         void *ud)
{
    ACT(mem_requeue_case(s, o, id, new_id, r));
}

static void register_worker(pseg_queue *q, const pseg_queue_worker *w, pseg_queue_done done,
                            void *ud)
{
    ACT(mem_register(s, o, w, r));
}

static void unregister(pseg_queue *q, const char *worker, pseg_queue_done done, void *ud)
{
    ACT(mem_unregister(s, worker));
}

static void claim_jobs(pseg_queue *q, const char *worker, const char *model, size_t max,
                       size_t held, int64_t near_ms, pseg_queue_done done, void *ud)
{
    ACT(mem_claim(s, o, worker, model, max, held, near_ms, r));
}

static void fetch_image(pseg_queue *q, const char *image, pseg_queue_done done, void *ud)
{
    ACT(mem_fetch_image(s, image, r));
}

static void get_features(pseg_queue *q, const char *key, int64_t ttl_ms, pseg_queue_done done,
                         void *ud)
{
    ACT(mem_get_features(s, key, ttl_ms, r));
}

static void put_features(pseg_queue *q, const char *key, pseg_bytes data, int64_t budget,
                         int64_t ttl_ms, pseg_queue_done done, void *ud)
{
    ACT(mem_put_features(s, key, data, budget, ttl_ms, r));
}

static void renew(pseg_queue *q, const char *worker, const pseg_queue_lease *l, size_t n,
                  pseg_queue_done done, void *ud)
{
    ACT(mem_renew(s, o, worker, l, n, r));
}

static void publish(pseg_queue *q, const char *worker, pseg_queue_lease l, pseg_bytes result,
                    const pseg_bytes *m, size_t n, int64_t cost_us, pseg_queue_done done, void *ud)
{
    ACT(mem_publish(s, worker, l, result, m, n, cost_us, r));
}

static void fail(pseg_queue *q, const char *worker, pseg_queue_lease l, const pseg_err *why,
                 int64_t delay_ms, pseg_queue_done done, void *ud)
{
    ACT(mem_fail(s, o, worker, l, why, delay_ms, r));
}

static void release(pseg_queue *q, const char *worker, pseg_queue_lease l, pseg_queue_done done,
                    void *ud)
{
    ACT(mem_release(s, worker, l, r));
}

static void create_batch(pseg_queue *q, const char *tenant, const char *id, int64_t ttl_ms,
                         pseg_bytes labels, pseg_queue_done done, void *ud)
{
    ACT(mem_create_batch(s, tenant, id, ttl_ms, labels, r));
}

static void get_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                      void *ud)
{
    ACT(mem_get_batch(s, tenant, id, r));
}

static void list_batches(pseg_queue *q, const char *tenant, const char *token, size_t limit,
                         pseg_queue_done done, void *ud)
{
    ACT(mem_list_batches(s, tenant, token, limit, r));
}

static void seal_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                       void *ud)
{
    ACT(mem_seal_batch(s, tenant, id, r));
}

static void cancel_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                         void *ud)
{
    ACT(mem_cancel_batch(s, tenant, id, r));
}

static void batch_ends(pseg_queue *q, const char *tenant, const char *id, int64_t from,
                       size_t limit, bool with_jobs, int64_t masks_from, pseg_queue_done done,
                       void *ud)
{
    ACT(mem_batch_ends(s, tenant, id, from, limit, with_jobs, masks_from, r));
}

static void submit_item(pseg_queue *q, const pseg_queue_item_args *a, pseg_queue_done done,
                        void *ud)
{
    ACT(mem_submit_item(s, o, a, r));
}

static int64_t silence_ms(const pseg_queue *q)
{
    (void)q;
    return 0;
}

/* ---- open and close ---- */

/* With registry_mu held. */
static shared *shared_of(const char *name)
{
    shared *s = registry;

    while (s && strcmp(s->name, name) != 0)
        s = s->next;
    if (s)
        return s;
    s = pseg_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    snprintf(s->name, sizeof s->name, "%s", name);
    pthread_mutex_init(&s->mu, NULL);
    s->store.changed = on_changed;
    s->store.ready = on_ready;
    s->store.ud = s;
    s->next = registry;
    registry = s;
    return s;
}

/* Frees s if no handle is left. With registry_mu held. */
static void shared_drop(shared *s)
{
    if (s->handles)
        return;
    for (shared **p = &registry; *p; p = &(*p)->next)
        if (*p == s) {
            *p = s->next;
            break;
        }
    mem_free(&s->store);
    pthread_mutex_destroy(&s->mu);
    pseg_free(s);
}

static void unlink_handle(mem_queue *q)
{
    for (mem_queue **p = &q->shared->handles; *p; p = &(*p)->next)
        if (*p == q) {
            *p = q->next;
            break;
        }
}

static void mem_close(pseg_queue *base)
{
    mem_queue *q = (mem_queue *)base;
    shared *s = q->shared;

    pthread_mutex_lock(&s->mu);
    q->stopping = true;
    pthread_cond_signal(&q->cv);
    pthread_mutex_unlock(&s->mu);
    pthread_join(q->thread, NULL);
    pthread_mutex_lock(&registry_mu);
    pthread_mutex_lock(&s->mu);
    unlink_handle(q);
    /* Events that came after the thread's end. */
    for (item *i = q->first, *next; i; i = next) {
        next = i->next;
        item_free(i);
    }
    pthread_mutex_unlock(&s->mu);
    shared_drop(s);
    pthread_mutex_unlock(&registry_mu);
    pthread_cond_destroy(&q->cv);
    pseg_arena_free(base->arena);
    pseg_free(q);
}

static const queue_ops mem_ops = {.close = mem_close,
                                  .silence_ms = silence_ms,
                                  .submit = submit,
                                  .put_image = put_image,
                                  .has_images = has_images,
                                  .get = get,
                                  .list = list,
                                  .masks = masks,
                                  .events = events,
                                  .states = states,
                                  .cancel = cancel,
                                  .workers = workers,
                                  .get_stats = get_stats,
                                  .get_uses = get_uses,
                                  .get_backlog = get_backlog,
                                  .get_estimate = get_estimate,
                                  .sweep = sweep,
                                  .list_cases = list_cases,
                                  .get_case = get_case,
                                  .drop_case = drop_case,
                                  .requeue_case = requeue_case,
                                  .register_worker = register_worker,
                                  .unregister = unregister,
                                  .claim_jobs = claim_jobs,
                                  .fetch_image = fetch_image,
                                  .get_features = get_features,
                                  .put_features = put_features,
                                  .renew = renew,
                                  .publish = publish,
                                  .fail = fail,
                                  .release = release,
                                  .create_batch = create_batch,
                                  .get_batch = get_batch,
                                  .list_batches = list_batches,
                                  .seal_batch = seal_batch,
                                  .cancel_batch = cancel_batch,
                                  .batch_ends = batch_ends,
                                  .submit_item = submit_item};

pseg_status queue_mem_open(pseg_queue **out, const pseg_queue *base, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    mem_queue *q = pseg_calloc(1, sizeof *q);

    pthread_mutex_lock(&registry_mu);
    shared *s = q ? shared_of(base->opt.name) : NULL;
    if (!s)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the queue");
    q->base = *base;
    q->base.ops = &mem_ops;
    q->shared = s;
    pseg_cond_init(&q->cv);
    pthread_mutex_lock(&s->mu);
    q->next = s->handles;
    s->handles = q;
    if (q->base.opt.on_event)
        post_event(q, NULL, false);
    if (q->base.opt.on_ready)
        post_event(q, NULL, true);
    int e = pthread_create(&q->thread, NULL, run, q);
    if (e)
        unlink_handle(q);
    pthread_mutex_unlock(&s->mu);
    if (e) {
        shared_drop(s);
        PSEG_FAIL(PSEG_R_INTERNAL, e, "cannot start the queue's thread: %s", strerror(e));
    }
    *out = &q->base;
    q = NULL;
out:
    pthread_mutex_unlock(&registry_mu);
    pseg_free(q);
    return rc;
}

/* ---- for tests ---- */

void pseg_queue_mem_advance_ms(pseg_queue *base, int64_t ms)
{
    mem_queue *q = (mem_queue *)base;

    pthread_mutex_lock(&q->shared->mu);
    q->shared->store.skew_us += ms * 1000;
    pthread_mutex_unlock(&q->shared->mu);
}

void pseg_queue_mem_fail_nth(pseg_queue *base, uint64_t n, pseg_reason reason, bool is_done)
{
    mem_queue *q = (mem_queue *)base;

    pthread_mutex_lock(&q->shared->mu);
    q->fail_nth = n;
    q->fail_reason = reason;
    q->fail_is_done = is_done;
    pthread_mutex_unlock(&q->shared->mu);
}

void pseg_queue_mem_trim_events(pseg_queue *base, size_t keep)
{
    mem_queue *q = (mem_queue *)base;

    pthread_mutex_lock(&q->shared->mu);
    mem_trim_events(&q->shared->store, keep);
    pthread_mutex_unlock(&q->shared->mu);
}
