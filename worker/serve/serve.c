#include "worker/serve/serve.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/version.h"
#include "pseg/internal/v1/record.pb-c.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define TASK_ARENA_BYTES ((size_t)256 << 20)
#define MAX_PREPARERS    64u

/* A job that this worker holds. It is in `held` from claim to the end, and in at most one line. */
typedef struct task {
    struct task *next_held, *next;
    pseg_arena *arena;
    char id[PSEG_JOB_ID_LEN + 1];
    int64_t fence, attempt;
    size_t group;  /* while it is held, no more jobs than that may be; 0: any number */
    uint64_t turn; /* in the order of claims */
    const char *image;
    pseg_bytes spec;
    int64_t created_unix_us;
    pseg_work work;
    _Atomic bool cancelled, lost;
    struct pseg_worker *worker;
} task;

enum { WATCH_DEVICE, WATCH_PREPARE, N_WATCHES = WATCH_PREPARE + MAX_PREPARERS };

/* What a thread is at, for the watchdog. */
typedef struct watch {
    task *at; /* guarded by mu; NULL: nothing */
    int64_t since_us;
} watch;

/* A thread that gets images ready. */
typedef struct preparer {
    struct pseg_worker *worker;
    pthread_t thread;
    size_t watch;
} preparer;

typedef struct task_line {
    task *head, *tail;
    size_t n;
} task_line;

struct pseg_worker {
    pseg_worker_options opt;
    pseg_queue *queue;
    pthread_t claim, device, publish, heartbeat;
    bool has_claim, has_device, has_publish, has_heartbeat; /* which of them run */
    preparer preparers[MAX_PREPARERS];
    size_t n_preparers;
    pthread_mutex_t mu;
    pthread_cond_t cv; /* anything below changed */
    task *held;
    size_t n_held;
    uint64_t turn;
    task_line claimed, ready, done;
    bool stopping;                                     /* no more claims */
    bool claims_are_over, ready_is_over, done_is_over; /* nothing more comes into these lines */
    bool may_claim;                                    /* something may wait in line */
    watch watches[N_WATCHES];
    int64_t longest_us[2]; /* of the device, of preparing */
    _Atomic bool failed, hung;
    _Atomic uint64_t n_done, n_failed, n_lost, n_released;
};

/* ---- lines and tasks ---- */

/* Behind those that were claimed before it, however long each took to get here. */
static void push(pseg_worker *w, task_line *l, task *t)
{
    pthread_mutex_lock(&w->mu);
    task **at = l->tail && l->tail->turn < t->turn ? &l->tail->next : &l->head;
    while (*at && (*at)->turn < t->turn)
        at = &(*at)->next;
    t->next = *at;
    *at = t;
    if (!t->next)
        l->tail = t;
    l->n++;
    pthread_cond_broadcast(&w->cv);
    pthread_mutex_unlock(&w->mu);
}

/* Waits for the next; NULL once *is_over and the line is empty. */
static task *pop(pseg_worker *w, task_line *l, const bool *is_over)
{
    pthread_mutex_lock(&w->mu);
    while (!l->head && !*is_over)
        pthread_cond_wait(&w->cv, &w->mu);
    task *t = l->head;
    if (t) {
        l->head = t->next;
        if (!l->head)
            l->tail = NULL;
        l->n--;
        pthread_cond_broadcast(&w->cv); /* the next claim waits for a line that is empty */
    }
    pthread_mutex_unlock(&w->mu);
    return t;
}

static void tell(pseg_worker *w, bool *flag)
{
    pthread_mutex_lock(&w->mu);
    *flag = true;
    pthread_cond_broadcast(&w->cv);
    pthread_mutex_unlock(&w->mu);
}

static bool is_stopping(pseg_worker *w)
{
    pthread_mutex_lock(&w->mu);
    bool s = w->stopping;
    pthread_mutex_unlock(&w->mu);
    return s;
}

static void task_end(pseg_worker *w, task *t)
{
    pthread_mutex_lock(&w->mu);
    for (size_t i = 0; i < N_WATCHES; i++)
        if (w->watches[i].at == t)
            w->watches[i].at = NULL;
    for (task **p = &w->held; *p; p = &(*p)->next_held)
        if (*p == t) {
            *p = t->next_held;
            break;
        }
    w->n_held--;
    if (w->n_held == 0 || t->group)
        w->may_claim = true; /* what was not given while others were held */
    pthread_cond_broadcast(&w->cv);
    pthread_mutex_unlock(&w->mu);
    pseg_work_free(&t->work);
    pseg_arena_free(t->arena);
    pseg_free(t);
}

static pseg_queue_lease lease_of(const task *t)
{
    return (pseg_queue_lease){t->id, t->fence};
}

/* ---- ending a job: publish, fail, release ---- */

typedef enum ending { PUBLISH, FAIL, RELEASE } ending;

static void tell_ended(pseg_worker *w, const task *t, ending how, const pseg_err *why, bool is_lost)
{
    static const char *const outcomes[] = {"published", "failed", "released"};
    const pseg_worker_ended e = {.outcome = is_lost ? "lost" : outcomes[how],
                                 .reason = how == FAIL ? pseg_reason_name(why->reason) : "",
                                 .attempt = t->attempt,
                                 .work = &t->work};

    if (w->opt.on_ended)
        w->opt.on_ended(w->opt.on_ended_ud, &e);
}

/* What the job took on this machine: all stages but the waiting in line. */
static int64_t cost_of(const task *t)
{
    int64_t us = 0;

    for (size_t i = 0; i < t->work.n_stages; i++)
        if (strcmp(t->work.stages[i].name, "queue") != 0)
            us += t->work.stages[i].us;
    return us;
}

/* Tells the queue, again and again while Redis is away and the lease may still be ours. */
static void end_job(pseg_worker *w, task *t, ending how, const pseg_err *why)
{
    const char *id = w->opt.id;
    int64_t until = pseg_clock_mono_ms() + 2 * w->opt.queue.lease_ms;

    for (;;) {
        pseg_queue_sync sync;
        pseg_queue_sync_init(&sync);
        if (how == PUBLISH)
            pseg_queue_publish(w->queue, id, lease_of(t), t->work.result, t->work.masks,
                               t->work.n_prompts, cost_of(t), pseg_queue_sync_done, &sync);
        else if (how == FAIL)
            pseg_queue_fail(w->queue, id, lease_of(t), why, pseg_job_retry_delay_ms(t->attempt),
                            pseg_queue_sync_done, &sync);
        else
            pseg_queue_release(w->queue, id, lease_of(t), pseg_queue_sync_done, &sync);
        pseg_queue_reply *r = pseg_queue_sync_take(&sync);
        pseg_reason reason = r->err.code == PSEG_OK ? PSEG_R_NONE : r->err.reason;
        pseg_job_state state = r->state;
        if (reason == PSEG_R_NONE) {
            PSEG_INFO(w->opt.log, "worker", "job=%s attempt=%lld state=%s%s%s", t->id,
                      (long long)t->attempt, pseg_job_state_name(state), how == FAIL ? " why=" : "",
                      how == FAIL ? why->msg : "");
            atomic_fetch_add(how == PUBLISH ? &w->n_done
                             : how == FAIL  ? &w->n_failed
                                            : &w->n_released,
                             1);
        } else if (reason == PSEG_R_BROKER_UNAVAILABLE && pseg_clock_mono_ms() < until) {
            pseg_queue_reply_free(r);
            pthread_mutex_lock(&w->mu);
            pseg_cond_wait_until_us(&w->cv, &w->mu, pseg_clock_mono_us() + 200000);
            pthread_mutex_unlock(&w->mu);
            continue;
        } else {
            PSEG_WARN(w->opt.log, "worker", "job=%s attempt=%lld not %s: %s", t->id,
                      (long long)t->attempt,
                      how == PUBLISH ? "published"
                      : how == FAIL  ? "failed"
                                     : "released",
                      r->err.msg);
            atomic_fetch_add(&w->n_lost, 1);
        }
        tell_ended(w, t, how, why, reason != PSEG_R_NONE);
        pseg_queue_reply_free(r);
        break;
    }
    task_end(w, t);
}

/* ---- the watch over preparing and device ---- */

/* A thread begins with a job, comes to its next stage, or (t = NULL) is done with it. */
static void moved(pseg_worker *w, size_t which, task *t)
{
    watch *x = &w->watches[which];
    int64_t now = pseg_clock_mono_us();

    pthread_mutex_lock(&w->mu);
    int64_t *longest = &w->longest_us[which >= WATCH_PREPARE];
    if (x->at && now - x->since_us > *longest)
        *longest = now - x->since_us;
    x->at = t;
    x->since_us = now;
    pthread_mutex_unlock(&w->mu);
}

/* ---- claim and prepare ---- */

static void *unpack_alloc(void *arena, size_t n)
{
    return pseg_arena_alloc(arena, n);
}

static void unpack_free(void *arena, void *p)
{
    (void)arena;
    (void)p;
}

static task *task_new(pseg_worker *w, const pseg_queue_claim *c)
{
    task *t = pseg_calloc(1, sizeof *t);

    if (!t)
        return NULL;
    t->arena = pseg_arena_new(TASK_ARENA_BYTES);
    t->image = t->arena ? pseg_arena_strdup(t->arena, c->image) : NULL;
    uint8_t *spec = t->image ? pseg_arena_alloc(t->arena, c->spec.len + 1) : NULL;
    if (!spec) {
        pseg_arena_free(t->arena);
        pseg_free(t);
        return NULL;
    }
    if (c->spec.len > 0)
        memcpy(spec, c->spec.data, c->spec.len);
    t->spec = (pseg_bytes){spec, c->spec.len};
    t->created_unix_us = c->created_unix_us;
    snprintf(t->id, sizeof t->id, "%s", c->id);
    t->fence = c->fence;
    t->attempt = c->attempt;
    t->group = (size_t)c->group;
    t->worker = w;
    t->work.arena = t->arena;
    pthread_mutex_lock(&w->mu);
    t->turn = ++w->turn;
    t->next_held = w->held;
    w->held = t;
    w->n_held++;
    pthread_mutex_unlock(&w->mu);
    return t;
}

static pseg_status read_spec(task *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    ProtobufCAllocator alloc = {unpack_alloc, unpack_free, t->arena};
    Pseg__Internal__V1__JobSpec *s =
        pseg__internal__v1__job_spec__unpack(&alloc, t->spec.len, t->spec.data);

    if (!s || s->n_prompts == 0)
        PSEG_FAIL(PSEG_R_JOB_CORRUPT, 0, "the stored job does not parse");
    t->work.prompts = (const char *const *)s->prompts;
    t->work.n_prompts = s->n_prompts;
    t->work.threshold = s->mask_threshold > 0 && s->mask_threshold < 1 ? s->mask_threshold : 0.5f;
out:
    return rc;
}

static pseg_status prepare_task(pseg_worker *w, task *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_queue_reply *r = NULL;
    int64_t begin = pseg_clock_mono_us();
    pseg_queue_sync sync;

    pseg_work_stage(&t->work, "queue", pseg_clock_unix_us() - t->created_unix_us);
    PSEG_TRY(read_spec(t, err));
    pseg_queue_sync_init(&sync);
    pseg_queue_fetch_image(w->queue, t->image, pseg_queue_sync_done, &sync);
    r = pseg_queue_sync_take(&sync);
    if (r->err.code != PSEG_OK) {
        rc = r->err.code;
        if (err)
            *err = r->err;
        goto out;
    }
    if (r->n_blobs == 0 || !r->blobs[0].data)
        PSEG_FAIL(PSEG_R_IMAGE_NOT_HELD, 0,
                  "the image of the job is no longer held; upload it and submit again");
    pseg_work_stage(&t->work, "fetch", pseg_clock_mono_us() - begin);
    PSEG_TRY(pseg_engine_prepare(w->opt.engine, &t->work, r->blobs[0], NULL, err));
out:
    pseg_queue_reply_free(r);
    return rc;
}

static void on_ready(void *ud)
{
    pseg_worker *w = ud;

    tell(w, &w->may_claim);
}

/* How many jobs may be held at once, given those that are. With the lock held. */
static size_t may_hold(const pseg_worker *w)
{
    size_t most = w->opt.ahead + 1;

    for (const task *t = w->held; t; t = t->next_held)
        if (t->group && t->group < most)
            most = t->group;
    return most;
}

/* How many more jobs may be held; waits while there is no room or nothing to claim. 0: stop. */
static size_t wait_for_room(pseg_worker *w)
{
    size_t room = 0;

    pthread_mutex_lock(&w->mu);
    /* A missed wake-up costs a second at most. */
    int64_t until = pseg_clock_mono_us() + 1000000;
    for (;;) {
        if (w->stopping) {
            room = 0;
            break;
        }
        size_t most = may_hold(w);
        room = w->n_held < most ? most - w->n_held : 0;
        /* A call for several jobs once those at hand are being prepared, not one for each. */
        if (room && w->may_claim && w->claimed.n == 0)
            break;
        if (!pseg_cond_wait_until_us(&w->cv, &w->mu, until)) {
            w->may_claim = true;
            until = pseg_clock_mono_us() + 1000000;
        }
    }
    w->may_claim = false;
    pthread_mutex_unlock(&w->mu);
    return room;
}

static void claim_some(pseg_worker *w, size_t room)
{
    pseg_queue_sync sync;

    pthread_mutex_lock(&w->mu);
    size_t held = w->n_held;
    pthread_mutex_unlock(&w->mu);
    pseg_queue_sync_init(&sync);
    pseg_queue_claim_jobs(w->queue, w->opt.id, pseg_engine_name(w->opt.engine), room, held,
                          pseg_queue_sync_done, &sync);
    pseg_queue_reply *r = pseg_queue_sync_take(&sync);
    task *tasks[64];
    size_t n = r->n_claims < 64 ? r->n_claims : 64;
    /* All of them are held from now on, so that the heartbeat renews those that wait here. */
    for (size_t i = 0; i < n; i++)
        tasks[i] = task_new(w, &r->claims[i]);
    if (n == room)
        tell(w, &w->may_claim);
    for (size_t i = 0; i < n; i++)
        if (tasks[i]) /* else no memory: its lease ends by itself */
            push(w, &w->claimed, tasks[i]);
    pseg_queue_reply_free(r);
}

static void *claim_main(void *arg)
{
    pseg_worker *w = arg;
    size_t room;

    while ((room = wait_for_room(w)) > 0)
        claim_some(w, room < 64 ? room : 64);
    return NULL;
}

static void *prepare_main(void *arg)
{
    preparer *p = arg;
    pseg_worker *w = p->worker;
    task *t;

    while ((t = pop(w, &w->claimed, &w->claims_are_over))) {
        pseg_err e = PSEG_ERR_INIT;
        if (is_stopping(w)) {
            end_job(w, t, RELEASE, NULL);
            continue;
        }
        moved(w, p->watch, t);
        pseg_status rc = prepare_task(w, t, &e);
        moved(w, p->watch, NULL);
        if (rc != PSEG_OK)
            end_job(w, t, FAIL, &e);
        else
            push(w, &w->ready, t);
    }
    return NULL;
}

/* ---- device ---- */

static bool is_cancelled(void *ud)
{
    task *t = ud;

    moved(t->worker, WATCH_DEVICE, t); /* asked before each stage */
    return atomic_load(&t->cancelled) || atomic_load(&t->lost);
}

static void *device_main(void *arg)
{
    pseg_worker *w = arg;
    task *t;

    while ((t = pop(w, &w->ready, &w->ready_is_over))) {
        pseg_err e = PSEG_ERR_INIT;
        if (is_stopping(w)) {
            end_job(w, t, RELEASE, NULL);
            continue;
        }
        moved(w, WATCH_DEVICE, t);
        pseg_status rc = pseg_engine_run(w->opt.engine, &t->work, is_cancelled, t, &e);
        moved(w, WATCH_DEVICE, NULL);
        if (rc == PSEG_OK) {
            push(w, &w->done, t);
            continue;
        }
        if (rc == PSEG_EDEVICE) {
            PSEG_ERROR(w->opt.log, "worker", "the device failed: %s", e.msg);
            atomic_store(&w->failed, true);
            tell(w, &w->stopping);
        }
        end_job(w, t, FAIL, &e);
    }
    return NULL;
}

/* ---- publish ---- */

static void *publish_main(void *arg)
{
    pseg_worker *w = arg;
    task *t;

    while ((t = pop(w, &w->done, &w->done_is_over))) {
        pseg_err e = PSEG_ERR_INIT;
        pseg_status rc = pseg_engine_finish(w->opt.engine, &t->work, &e);
        end_job(w, t, rc == PSEG_OK ? PUBLISH : FAIL, &e);
    }
    return NULL;
}

/* ---- heartbeat ---- */

static void register_self(pseg_worker *w)
{
    pseg_queue_sync sync;
    char log[1500] = "";

    if (w->opt.log && w->opt.log->tail)
        pseg_log_tail_read(w->opt.log->tail, log, sizeof log);
    pseg_queue_worker me = {.id = w->opt.id,
                            .model = pseg_engine_name(w->opt.engine),
                            .digest = pseg_engine_digest(w->opt.engine),
                            .device = pseg_engine_device(w->opt.engine),
                            .version = PSEG_VERSION,
                            .log = log};

    pseg_queue_sync_init(&sync);
    pseg_queue_register(w->queue, &me, pseg_queue_sync_done, &sync);
    pseg_queue_reply_free(pseg_queue_sync_take(&sync));
}

static void mark(task *t, pseg_lease_state s, const pseg_log *log)
{
    if (s == PSEG_LEASE_CANCEL)
        atomic_store(&t->cancelled, true);
    else if (s != PSEG_LEASE_OK && !atomic_exchange(&t->lost, true))
        PSEG_WARN(log, "worker", "job=%s %s", t->id,
                  s == PSEG_LEASE_EXPIRED ? "is past its deadline" : "lost its lease");
}

static void renew_all(pseg_worker *w)
{
    enum { MAX = 256 };
    pseg_queue_lease leases[MAX];
    char ids[MAX][PSEG_JOB_ID_LEN + 1];
    size_t n = 0;

    pthread_mutex_lock(&w->mu);
    for (task *t = w->held; t && n < MAX; t = t->next_held, n++) {
        memcpy(ids[n], t->id, sizeof ids[n]);
        leases[n] = (pseg_queue_lease){ids[n], t->fence};
    }
    pthread_mutex_unlock(&w->mu);
    if (n == 0)
        return;
    pseg_queue_sync sync;
    pseg_queue_sync_init(&sync);
    pseg_queue_renew(w->queue, w->opt.id, leases, n, pseg_queue_sync_done, &sync);
    pseg_queue_reply *r = pseg_queue_sync_take(&sync);
    pthread_mutex_lock(&w->mu);
    for (task *t = w->held; t; t = t->next_held)
        for (size_t i = 0; i < r->n_leases; i++)
            if (strcmp(t->id, ids[i]) == 0 && t->fence == leases[i].fence)
                mark(t, r->leases[i], w->opt.log);
    pthread_mutex_unlock(&w->mu);
    pseg_queue_reply_free(r);
}

static void sweep(pseg_worker *w)
{
    pseg_queue_sync sync;

    pseg_queue_sync_init(&sync);
    pseg_queue_sweep(w->queue, pseg_queue_sync_done, &sync);
    pseg_queue_reply_free(pseg_queue_sync_take(&sync));
}

static void wait_and_free(pseg_queue_sync *s)
{
    pseg_queue_reply_free(pseg_queue_sync_take(s));
}

/* Gives every lease back but `kept`'s, if not NULL, which is charged with *why. */
static void give_back(pseg_worker *w, const char *kept, const pseg_err *why)
{
    enum { MAX = 256 };
    char ids[MAX][PSEG_JOB_ID_LEN + 1];
    int64_t fences[MAX], attempts[MAX];
    size_t n = 0;

    pthread_mutex_lock(&w->mu);
    for (task *t = w->held; t && n < MAX; t = t->next_held, n++) {
        memcpy(ids[n], t->id, sizeof ids[n]);
        fences[n] = t->fence;
        attempts[n] = t->attempt;
    }
    pthread_mutex_unlock(&w->mu);
    for (size_t i = 0; i < n; i++) {
        pseg_queue_lease l = {ids[i], fences[i]};
        pseg_queue_sync sync;
        pseg_queue_sync_init(&sync);
        if (kept && strcmp(ids[i], kept) == 0)
            pseg_queue_fail(w->queue, w->opt.id, l, why, pseg_job_retry_delay_ms(attempts[i]),
                            pseg_queue_sync_done, &sync);
        else
            pseg_queue_release(w->queue, w->opt.id, l, pseg_queue_sync_done, &sync);
        wait_and_free(&sync);
    }
}

/* True if a job hangs: it is charged, the others are handed back. */
static bool check_watches(pseg_worker *w)
{
    static const char *const what[] = {"the device", "preparing its image"};
    pseg_err e = PSEG_ERR_INIT;
    char id[PSEG_JOB_ID_LEN + 1] = "";

    if (w->opt.watchdog_ms <= 0)
        return false;
    pthread_mutex_lock(&w->mu);
    for (size_t i = 0; i < N_WATCHES && !*id; i++) {
        const watch *x = &w->watches[i];
        size_t kind = i >= WATCH_PREPARE;
        int64_t limit = w->opt.watchdog_ms * 1000, for_us = pseg_clock_mono_us() - x->since_us;
        if (10 * w->longest_us[kind] > limit)
            limit = 10 * w->longest_us[kind];
        if (!x->at || for_us < limit)
            continue;
        memcpy(id, x->at->id, sizeof id);
        pseg_err_set(&e, PSEG_R_DEVICE_HUNG, 0, PSEG_HERE,
                     "no progress on %s for %lld ms, the limit is %lld ms", what[kind],
                     (long long)(for_us / 1000), (long long)(limit / 1000));
        w->stopping = true;
    }
    pthread_mutex_unlock(&w->mu);
    if (!*id)
        return false;
    PSEG_ERROR(w->opt.log, "worker", "job=%s hangs: %s", id, e.msg);
    register_self(w); /* with this line as evidence */
    give_back(w, id, &e);
    atomic_store(&w->hung, true);
    return true;
}

static void *heartbeat_main(void *arg)
{
    pseg_worker *w = arg;
    /* Three chances to renew within a lease; a sweep once a second. */
    int64_t beat_us = w->opt.queue.lease_ms * 1000 / 3;
    if (beat_us > 1000000)
        beat_us = 1000000;

    for (;;) {
        pthread_mutex_lock(&w->mu);
        int64_t until = pseg_clock_mono_us() + beat_us;
        while (!(w->stopping && w->done_is_over && !w->held) &&
               pseg_cond_wait_until_us(&w->cv, &w->mu, until)) {
        }
        bool over = w->stopping && w->done_is_over && !w->held;
        pthread_mutex_unlock(&w->mu);
        if (over || check_watches(w))
            return NULL;
        renew_all(w);
        register_self(w);
        sweep(w);
    }
}

/* ---- start and stop ---- */

bool pseg_worker_has_failed(const pseg_worker *w)
{
    return atomic_load(&((pseg_worker *)(uintptr_t)w)->failed);
}

bool pseg_worker_is_hung(const pseg_worker *w)
{
    return atomic_load(&((pseg_worker *)(uintptr_t)w)->hung);
}

void pseg_worker_drain(pseg_worker *w)
{
    tell(w, &w->stopping);
}

void pseg_worker_abandon(pseg_worker *w)
{
    pseg_queue_sync sync;

    tell(w, &w->stopping);
    if (!pseg_worker_is_hung(w))
        give_back(w, NULL, NULL);
    pseg_queue_sync_init(&sync);
    pseg_queue_unregister(w->queue, w->opt.id, pseg_queue_sync_done, &sync);
    wait_and_free(&sync);
}

bool pseg_worker_is_connected(const pseg_worker *w)
{
    return pseg_queue_silence_ms(w->queue) < w->opt.queue.lease_ms;
}

size_t pseg_worker_n_held(const pseg_worker *cw)
{
    pseg_worker *w = (pseg_worker *)(uintptr_t)cw;

    pthread_mutex_lock(&w->mu);
    size_t n = w->n_held;
    pthread_mutex_unlock(&w->mu);
    return n;
}

void pseg_worker_get_stats(const pseg_worker *cw, pseg_worker_stats *out)
{
    pseg_worker *w = (pseg_worker *)(uintptr_t)cw;

    *out = (pseg_worker_stats){atomic_load(&w->n_done), atomic_load(&w->n_failed),
                               atomic_load(&w->n_lost), atomic_load(&w->n_released)};
}

static pseg_status start_thread(bool *runs, pthread_t *thread, void *(*run)(void *), void *arg,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (pthread_create(thread, NULL, run, arg))
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "cannot start the worker's threads");
    *runs = true;
out:
    return rc;
}

static pseg_status start_threads(pseg_worker *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = w->opt.preparers ? w->opt.preparers : 1;

    PSEG_TRY(start_thread(&w->has_publish, &w->publish, publish_main, w, err));
    PSEG_TRY(start_thread(&w->has_device, &w->device, device_main, w, err));
    while (w->n_preparers < n) {
        preparer *p = &w->preparers[w->n_preparers];
        bool runs = false;
        *p = (preparer){.worker = w, .watch = WATCH_PREPARE + w->n_preparers};
        PSEG_TRY(start_thread(&runs, &p->thread, prepare_main, p, err));
        w->n_preparers++;
    }
    PSEG_TRY(start_thread(&w->has_claim, &w->claim, claim_main, w, err));
    PSEG_TRY(start_thread(&w->has_heartbeat, &w->heartbeat, heartbeat_main, w, err));
out:
    return rc;
}

pseg_status pseg_worker_start(pseg_worker **out, const pseg_worker_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_worker *w = NULL;

    *out = NULL;
    if (o->preparers > MAX_PREPARERS)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%zu threads to prepare images: the limits are 0..%u",
                  o->preparers, MAX_PREPARERS);
    w = pseg_calloc(1, sizeof *w);
    if (!w)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the worker");
    w->opt = *o;
    w->may_claim = true;
    pthread_mutex_init(&w->mu, NULL);
    pseg_cond_init(&w->cv);
    w->opt.queue.on_ready = on_ready;
    w->opt.queue.watch_model = pseg_engine_name(o->engine);
    w->opt.queue.ud = w;
    PSEG_TRY(pseg_queue_open(&w->queue, &w->opt.queue, err));
    register_self(w);
    PSEG_TRY(start_threads(w, err));
    *out = w;
    w = NULL;
out:
    pseg_worker_stop(w);
    return rc;
}

/* In the order in which jobs go through them: what is in a line is taken from it before its reader
 * ends. */
static void join_threads(pseg_worker *w)
{
    if (w->has_claim)
        pthread_join(w->claim, NULL);
    tell(w, &w->claims_are_over);
    for (size_t i = 0; i < w->n_preparers; i++)
        pthread_join(w->preparers[i].thread, NULL);
    tell(w, &w->ready_is_over);
    if (w->has_device)
        pthread_join(w->device, NULL);
    tell(w, &w->done_is_over);
    if (w->has_publish)
        pthread_join(w->publish, NULL);
    if (w->has_heartbeat)
        pthread_join(w->heartbeat, NULL);
}

void pseg_worker_stop(pseg_worker *w)
{
    if (!w)
        return;
    tell(w, &w->stopping);
    join_threads(w);
    if (w->queue) {
        pseg_queue_sync sync;
        pseg_queue_sync_init(&sync);
        pseg_queue_unregister(w->queue, w->opt.id, pseg_queue_sync_done, &sync);
        pseg_queue_reply_free(pseg_queue_sync_take(&sync));
    }
    pseg_queue_close(w->queue);
    pthread_cond_destroy(&w->cv);
    pthread_mutex_destroy(&w->mu);
    pseg_free(w);
}
