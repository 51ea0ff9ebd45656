/* A device's thread: gathers jobs that are ready into batches, and runs these. Where there are
 * several devices they take from the same line, whichever is free. */
#include "worker/serve/internal.h"
#include "common/base/clock.h"

#define LOAD_PASSES 8.0 /* over about so many is the load averaged */

typedef struct gathered {
    pseg_task *tasks[PSEG_ENGINE_MAX_JOBS];
    size_t n, n_prompts, n_new; /* n_new: images that are still to be encoded */
} gathered;

static bool has_image_of(const gathered *g, const pseg_task *t)
{
    for (size_t i = 0; i < g->n; i++)
        if (t->work.picture && g->tasks[i]->work.picture == t->work.picture)
            return true;
    return false;
}

static void add(pseg_runner *r, gathered *g, pseg_task *t)
{
    g->n_new += !has_image_of(g, t) && !pseg_engine_is_encoded(r->worker->opt.engine, &t->work);
    g->n_prompts += t->work.n_prompts;
    t->device = r->device;
    g->tasks[g->n++] = t;
}

/* Not more phrases than one pass of the decoder takes, nor images than one of the encoder: then
 * nobody waits for others without any gain. A job that is larger by itself is a batch by itself. */
static bool fits(const pseg_runner *r, const gathered *g, const pseg_task *t)
{
    pseg_engine *e = r->worker->opt.engine;

    return g->n < r->worker->opt.batch && !t->runs_alone && !g->tasks[0]->runs_alone &&
           g->n_prompts + t->work.n_prompts <= pseg_engine_max_decode(e) &&
           (has_image_of(g, t) || pseg_engine_is_encoded(e, &t->work) ||
            g->n_new < pseg_engine_max_encode(e, r->device));
}

/* With the lock held. */
static void take_ready(pseg_runner *r, gathered *g)
{
    pseg_worker *w = r->worker;
    pseg_task *next;

    for (pseg_task *t = w->ready.head; t; t = next) {
        next = t->next;
        if (fits(r, g, t) && pseg_engine_claim(w->opt.engine, r->device, &t->work)) {
            pseg_line_take(&w->ready, t);
            add(r, g, t);
        }
    }
}

/* Waits for the first that no other device has at work; false: there will be none any more. */
static bool take_first(pseg_runner *r, gathered *g)
{
    pseg_worker *w = r->worker;
    pseg_task *t;

    pthread_mutex_lock(&w->mu);
    for (;;) {
        for (t = w->ready.head; t; t = t->next)
            if (pseg_engine_claim(w->opt.engine, r->device, &t->work))
                break;
        if (t || (!w->ready.head && w->ready_is_over))
            break;
        pthread_cond_wait(&w->ready.more, &w->mu);
    }
    if (t) {
        pseg_line_take(&w->ready, t);
        add(r, g, t);
    }
    pthread_mutex_unlock(&w->mu);
    pseg_claim_if_due(w); /* one stands ready less */
    return t != NULL;
}

/* With the lock held. */
static bool is_any_coming(const pseg_worker *w)
{
    for (const pseg_task *t = w->held; t; t = t->next_held)
        if (t->is_coming)
            return true;
    return false;
}

/* More that goes with the first. What stands ready is taken at once; what is still being prepared
 * is waited for, the longer the more often there was company lately, and not at all if there was
 * none. */
static void gather(pseg_runner *r, gathered *g)
{
    pseg_worker *w = r->worker;
    int64_t until = pseg_clock_mono_us() + (int64_t)(r->load * (double)w->opt.batch_delay_us);

    pthread_mutex_lock(&w->mu);
    bool had_company = w->ready.n > 0;
    take_ready(r, g);
    while (w->ready.n == 0 && g->n < w->opt.batch && !g->tasks[0]->runs_alone && !w->stopping &&
           is_any_coming(w) && pseg_clock_mono_us() < until) {
        pseg_cond_wait_until_us(&w->ready.more, &w->mu, until);
        take_ready(r, g);
    }
    for (size_t i = 0; i < g->n; i++)
        g->tasks[i]->is_in_batch = g->n > 1;
    pthread_mutex_unlock(&w->mu);
    pseg_claim_if_due(w);
    r->load += ((had_company ? 1 : 0) - r->load) / LOAD_PASSES;
}

static bool is_cancelled(void *ud)
{
    pseg_task *t = ud;

    /* Asked before each stage; t is on its device, so nobody writes this now. */
    pseg_watch_moved(t->worker, PSEG_WATCH_DEVICE + t->device, t);
    return atomic_load(&t->cancelled) || atomic_load(&t->lost);
}

/* No more jobs for this device. What the last one leaves is handed back, and the process ends. */
static void take_out(pseg_runner *r, const pseg_err *why)
{
    pseg_worker *w = r->worker;

    PSEG_ERROR(w->opt.log, "worker", "the device failed: %s", why->msg);
    pthread_mutex_lock(&w->mu);
    r->is_out = true;
    bool is_last = ++w->n_out == pseg_engine_n_devices(w->opt.engine);
    pthread_mutex_unlock(&w->mu);
    if (is_last) {
        atomic_store(&w->failed, true);
        pseg_worker_tell(w, &w->stopping);
    }
}

static void run_pass(pseg_runner *r, pseg_engine_job *jobs, gathered *g)
{
    pseg_worker *w = r->worker;
    size_t watch = PSEG_WATCH_DEVICE + r->device;
    pseg_engine_batch done;
    bool is_broken = false;

    for (size_t i = 0; i < g->n; i++)
        jobs[i] = (pseg_engine_job){.work = &g->tasks[i]->work, .ud = g->tasks[i]};
    pseg_watch_moved(w, watch, g->tasks[0]);
    pseg_engine_run_batch(w->opt.engine, r->device, jobs, g->n, is_cancelled, &done);
    pseg_watch_moved(w, watch, NULL);
    if (pseg_engine_n_devices(w->opt.engine) > 1) {
        pthread_mutex_lock(&w->mu);
        pthread_cond_broadcast(&w->ready.more); /* images that this device had at work are free */
        pthread_mutex_unlock(&w->mu);
    }
    if (w->opt.on_batch)
        w->opt.on_batch(w->opt.on_ended_ud, r->device, g->n, &done);
    for (size_t i = 0; i < g->n; i++)
        if (jobs[i].rc == PSEG_EDEVICE) {
            pseg_err_prefix(&jobs[i].err, "%s", pseg_engine_device(w->opt.engine, r->device));
            if (!is_broken)
                take_out(r, &jobs[i].err);
            is_broken = true;
        }
}

/* Its lease is left to end: the queue then tries it among fewer, and no attempt is burnt. */
static void leave(pseg_worker *w, pseg_task *t)
{
    PSEG_WARN(w->opt.log, "worker", "job=%s attempt=%lld was on the device with others", t->id,
              (long long)t->attempt);
    pseg_task_free(w, t);
}

/* A job that fails in company may not be to blame: it is run again by itself. */
static void run(pseg_runner *r, gathered *g)
{
    pseg_worker *w = r->worker;
    pseg_engine_job jobs[PSEG_ENGINE_MAX_JOBS];
    size_t n_stages[PSEG_ENGINE_MAX_JOBS];
    bool is_alone = g->n == 1;

    for (size_t i = 0; i < g->n; i++)
        n_stages[i] = g->tasks[i]->work.n_stages;
    run_pass(r, jobs, g);
    pthread_mutex_lock(&w->mu);
    for (size_t i = 0; i < g->n; i++)
        g->tasks[i]->is_in_batch = false;
    pthread_mutex_unlock(&w->mu);
    for (size_t i = 0; i < g->n; i++) {
        pseg_task *t = g->tasks[i];
        if (jobs[i].rc == PSEG_OK) {
            pseg_line_push(w, &w->done, t);
        } else if (is_alone || jobs[i].err.reason == PSEG_R_CANCELLED) {
            pseg_task_end(w, t, PSEG_END_FAIL, &jobs[i].err);
        } else if (r->is_out) {
            leave(w, t);
        } else {
            t->work.n_stages = n_stages[i];
            t->runs_alone = true;
            pseg_line_push(w, &w->ready, t);
        }
    }
}

void *pseg_device_main(void *arg)
{
    pseg_runner *r = arg;
    pseg_worker *w = r->worker;

    for (;;) {
        gathered g = {.n = 0};
        /* The last one stays to hand back what nobody can run any more. */
        if ((r->is_out && !pseg_worker_has_failed(w)) || !take_first(r, &g))
            return NULL;
        if (pseg_worker_is_stopping(w)) {
            pseg_engine_unclaim(w->opt.engine, r->device, &g.tasks[0]->work);
            pseg_task_end(w, g.tasks[0], PSEG_END_RELEASE, NULL);
            continue;
        }
        gather(r, &g);
        run(r, &g);
    }
}
