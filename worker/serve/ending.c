#include "worker/serve/internal.h"
#include "common/base/clock.h"

#include <string.h>

enum {
    MAX_OUTBOX = 64,     /* results of one call */
    AGE_SHARE = 50,      /* a result waits for others no longer than 1/50 of its job's age, */
    MAX_WAIT_US = 20000, /* nor than this */
};

static void tell_ended(pseg_worker *w, const pseg_task *t, pseg_ending how, const pseg_err *why,
                       bool is_lost)
{
    static const char *const outcomes[] = {"published", "failed", "released"};
    const pseg_worker_ended e = {.outcome = is_lost ? "lost" : outcomes[how],
                                 .reason =
                                     how == PSEG_END_FAIL ? pseg_reason_name(why->reason) : "",
                                 .attempt = t->attempt,
                                 .job = t->id,
                                 .traceparent = t->traceparent ? t->traceparent : "",
                                 .work = &t->work};

    if (w->opt.on_ended)
        w->opt.on_ended(w->opt.on_ended_ud, &e);
}

/* What the job took on this machine: all stages but the waiting in line. */
static int64_t cost_of(const pseg_task *t)
{
    int64_t us = 0;

    for (size_t i = 0; i < t->work.n_stages; i++)
        if (strcmp(t->work.stages[i].name, "queue") != 0)
            us += t->work.stages[i].us;
    return us;
}

static void begin(pseg_worker *w, const pseg_task *t, pseg_ending how, const pseg_err *why,
                  pseg_queue_sync *sync)
{
    const char *id = w->opt.id;

    pseg_queue_sync_init(sync);
    if (how == PSEG_END_PUBLISH)
        pseg_queue_publish(w->queue, id, pseg_task_lease(t), t->work.result, t->work.masks,
                           t->work.n_prompts, cost_of(t), pseg_queue_sync_done, sync);
    else if (how == PSEG_END_FAIL)
        pseg_queue_fail(w->queue, id, pseg_task_lease(t), why, pseg_job_retry_delay_ms(t->attempt),
                        pseg_queue_sync_done, sync);
    else
        pseg_queue_release(w->queue, id, pseg_task_lease(t), pseg_queue_sync_done, sync);
}

/* Takes the answer and frees t; false if Redis is away, and it may be tried again. */
static bool is_ended(pseg_worker *w, pseg_task *t, pseg_ending how, const pseg_err *why,
                     pseg_queue_sync *sync, bool may_try_again)
{
    pseg_queue_reply *r = pseg_queue_sync_take(sync);
    pseg_reason reason = r->err.code == PSEG_OK ? PSEG_R_NONE : r->err.reason;
    bool is_over = reason != PSEG_R_BROKER_UNAVAILABLE || !may_try_again;

    if (reason == PSEG_R_NONE)
        PSEG_INFO(w->opt.log, "worker", "job=%s attempt=%lld state=%s%s%s", t->id,
                  (long long)t->attempt, pseg_job_state_name(r->state),
                  how == PSEG_END_FAIL ? " why=" : "", how == PSEG_END_FAIL ? why->msg : "");
    else if (is_over)
        PSEG_WARN(w->opt.log, "worker", "job=%s attempt=%lld not %s: %s", t->id,
                  (long long)t->attempt,
                  how == PSEG_END_PUBLISH ? "published"
                  : how == PSEG_END_FAIL  ? "failed"
                                          : "released",
                  r->err.msg);
    if (is_over) {
        tell_ended(w, t, how, why, reason != PSEG_R_NONE);
        pseg_task_free(w, t);
    }
    pseg_queue_reply_free(r);
    return is_over;
}

void pseg_task_end(pseg_worker *w, pseg_task *t, pseg_ending how, const pseg_err *why)
{
    int64_t until = pseg_clock_mono_ms() + 2 * w->opt.queue.lease_ms;

    for (;;) {
        pseg_queue_sync sync;
        begin(w, t, how, why, &sync);
        if (is_ended(w, t, how, why, &sync, pseg_clock_mono_ms() < until))
            return;
        pthread_mutex_lock(&w->mu);
        pseg_cond_wait_until_us(&w->over, &w->mu, pseg_clock_mono_us() + 200000);
        pthread_mutex_unlock(&w->mu);
    }
}

static void on_kept(void *ud, pseg_queue_reply *r)
{
    pseg_worker *w = ud;

    if (r->err.code != PSEG_OK)
        PSEG_DBG(w->opt.log, "worker", "features are not kept: %s", r->err.msg);
    pseg_queue_reply_free(r);
}

/* To the queue, for the next phrase on any worker; nobody waits for it. */
static void keep_features(pseg_worker *w, pseg_task *t)
{
    char key[PSEG_ENGINE_MAX_KEY + 1];
    pseg_bytes packed = pseg_engine_take_features(w->opt.engine, &t->work);

    if (!packed.data)
        return;
    pseg_task_features_key(w, t, key);
    pseg_queue_put_features(w->queue, key, packed, w->opt.feature_bytes, PSEG_FEATURE_TTL_MS,
                            on_kept, w);
}

/* ---- results, several in one call ---- */

typedef struct publication {
    pseg_task *t;
    pseg_ending how;
    pseg_err why;
    pseg_queue_sync sync;
} publication;

typedef struct outbox {
    publication all[MAX_OUTBOX];
    size_t n;
    int64_t until_us; /* when it goes at the latest */
} outbox;

static void put(pseg_worker *w, outbox *o, pseg_task *t)
{
    publication *p = &o->all[o->n++];
    int64_t wait_us = (pseg_clock_unix_us() - t->created_unix_us) / AGE_SHARE;

    p->t = t;
    p->why = (pseg_err)PSEG_ERR_INIT;
    p->how = pseg_engine_finish(w->opt.engine, &t->work, &p->why) == PSEG_OK ? PSEG_END_PUBLISH
                                                                             : PSEG_END_FAIL;
    if (w->opt.feature_bytes > 0)
        keep_features(w, t);
    wait_us = wait_us < 0 ? 0 : wait_us < MAX_WAIT_US ? wait_us : MAX_WAIT_US;
    wait_us += pseg_clock_mono_us();
    if (o->n == 1 || wait_us < o->until_us)
        o->until_us = wait_us;
}

static void send_all(pseg_worker *w, outbox *o)
{
    for (size_t i = 0; i < o->n; i++)
        begin(w, o->all[i].t, o->all[i].how, &o->all[i].why, &o->all[i].sync);
    for (size_t i = 0; i < o->n; i++) {
        publication *p = &o->all[i];
        if (!is_ended(w, p->t, p->how, &p->why, &p->sync, true))
            pseg_task_end(w, p->t, p->how, &p->why);
    }
    o->n = 0;
}

/* Is there a job at hand that may soon be done, too, and room for it? With the lock held. */
static bool is_more_to_come(const pseg_worker *w, const outbox *o)
{
    return o->n < w->n_held && o->n < MAX_OUTBOX && o->n < w->window / 4 && !w->stopping;
}

/* The next that is done; NULL: the outbox is to be sent (or, if it is empty, all is over). */
static pseg_task *next_done(pseg_worker *w, const outbox *o)
{
    pthread_mutex_lock(&w->mu);
    while (!w->done.head && !w->done_is_over) {
        if (o->n == 0)
            pthread_cond_wait(&w->done.more, &w->mu);
        else if (!is_more_to_come(w, o) ||
                 !pseg_cond_wait_until_us(&w->done.more, &w->mu, o->until_us))
            break;
    }
    pseg_task *t = o->n < MAX_OUTBOX ? pseg_line_first(&w->done) : NULL;
    pthread_mutex_unlock(&w->mu);
    return t;
}

void *pseg_publish_main(void *arg)
{
    pseg_worker *w = arg;
    static const outbox empty;
    outbox o = empty;

    for (;;) {
        pseg_task *t = next_done(w, &o);
        if (t) {
            put(w, &o, t);
        } else if (o.n > 0) {
            send_all(w, &o);
        } else {
            return NULL;
        }
    }
}
