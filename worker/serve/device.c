/* The device's thread: gathers jobs that are ready into batches, and runs these. */
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

static void add(gathered *g, pseg_task *t)
{
    g->n_new += !has_image_of(g, t) && !pseg_engine_is_encoded(&t->work);
    g->n_prompts += t->work.n_prompts;
    g->tasks[g->n++] = t;
}

/* Not more phrases than one pass of the decoder takes, nor images than one of the encoder: then
 * nobody waits for others without any gain. A job that is larger by itself is a batch by itself. */
static bool fits(const pseg_worker *w, const gathered *g, const pseg_task *t)
{
    const pseg_engine *e = w->opt.engine;

    return g->n < w->opt.batch && g->n_prompts + t->work.n_prompts <= pseg_engine_max_decode(e) &&
           (has_image_of(g, t) || pseg_engine_is_encoded(&t->work) ||
            g->n_new < pseg_engine_max_encode(e));
}

/* With the lock held. */
static void take_ready(pseg_worker *w, gathered *g)
{
    pseg_task *next;

    for (pseg_task *t = w->ready.head; t; t = next) {
        next = t->next;
        if (fits(w, g, t)) {
            pseg_line_take(&w->ready, t);
            add(g, t);
        }
    }
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
static void gather(pseg_worker *w, gathered *g)
{
    int64_t until = pseg_clock_mono_us() + (int64_t)(w->load * (double)w->opt.batch_delay_us);

    pthread_mutex_lock(&w->mu);
    bool had_company = w->ready.n > 0;
    take_ready(w, g);
    while (w->ready.n == 0 && g->n < w->opt.batch && !w->stopping && is_any_coming(w) &&
           pseg_clock_mono_us() < until) {
        pseg_cond_wait_until_us(&w->cv, &w->mu, until);
        take_ready(w, g);
    }
    for (size_t i = 0; i < g->n; i++)
        g->tasks[i]->is_in_batch = g->n > 1;
    pthread_cond_broadcast(&w->cv);
    pthread_mutex_unlock(&w->mu);
    w->load += ((had_company ? 1 : 0) - w->load) / LOAD_PASSES;
}

static bool is_cancelled(void *ud)
{
    pseg_task *t = ud;

    pseg_watch_moved(t->worker, PSEG_WATCH_DEVICE, t); /* asked before each stage */
    return atomic_load(&t->cancelled) || atomic_load(&t->lost);
}

/* True if the device is of no more use. */
static bool run_pass(pseg_worker *w, pseg_engine_job *jobs, gathered *g)
{
    pseg_engine_batch done;
    bool is_broken = false;

    for (size_t i = 0; i < g->n; i++)
        jobs[i] = (pseg_engine_job){.work = &g->tasks[i]->work, .ud = g->tasks[i]};
    pseg_watch_moved(w, PSEG_WATCH_DEVICE, g->tasks[0]);
    pseg_engine_run_batch(w->opt.engine, jobs, g->n, is_cancelled, &done);
    pseg_watch_moved(w, PSEG_WATCH_DEVICE, NULL);
    if (w->opt.on_batch)
        w->opt.on_batch(w->opt.on_ended_ud, g->n, &done);
    for (size_t i = 0; i < g->n; i++)
        if (jobs[i].rc == PSEG_EDEVICE && !is_broken) {
            is_broken = true;
            PSEG_ERROR(w->opt.log, "worker", "the device failed: %s", jobs[i].err.msg);
            atomic_store(&w->failed, true);
            pseg_worker_tell(w, &w->stopping);
        }
    return is_broken;
}

/* Its lease is left to end: the queue then tries it among fewer, and no attempt is burnt. */
static void leave(pseg_worker *w, pseg_task *t)
{
    PSEG_WARN(w->opt.log, "worker", "job=%s attempt=%lld was on the device with others", t->id,
              (long long)t->attempt);
    pseg_task_free(w, t);
}

static void run_alone(pseg_worker *w, pseg_task *t)
{
    gathered g = {.tasks = {t}, .n = 1};
    pseg_engine_job job;

    if (pseg_worker_is_stopping(w)) {
        pseg_task_end(w, t, PSEG_END_RELEASE, NULL);
        return;
    }
    run_pass(w, &job, &g);
    if (job.rc == PSEG_OK)
        pseg_line_push(w, &w->done, t);
    else
        pseg_task_end(w, t, PSEG_END_FAIL, &job.err);
}

/* A job that fails in company may not be to blame: it is run again by itself. */
static void run_together(pseg_worker *w, gathered *g)
{
    pseg_engine_job jobs[PSEG_ENGINE_MAX_JOBS];
    size_t n_stages[PSEG_ENGINE_MAX_JOBS];

    for (size_t i = 0; i < g->n; i++)
        n_stages[i] = g->tasks[i]->work.n_stages;
    bool is_broken = run_pass(w, jobs, g);
    pthread_mutex_lock(&w->mu);
    for (size_t i = 0; i < g->n; i++)
        g->tasks[i]->is_in_batch = false;
    pthread_mutex_unlock(&w->mu);
    for (size_t i = 0; i < g->n; i++) {
        pseg_task *t = g->tasks[i];
        if (jobs[i].rc == PSEG_OK) {
            pseg_line_push(w, &w->done, t);
        } else if (jobs[i].err.reason == PSEG_R_CANCELLED) {
            pseg_task_end(w, t, PSEG_END_FAIL, &jobs[i].err);
        } else if (is_broken) {
            leave(w, t);
        } else {
            t->work.n_stages = n_stages[i];
            run_alone(w, t);
        }
    }
}

void *pseg_device_main(void *arg)
{
    pseg_worker *w = arg;
    pseg_task *t;

    while ((t = pseg_line_pop(w, &w->ready, &w->ready_is_over))) {
        gathered g = {.n = 0};
        if (pseg_worker_is_stopping(w)) {
            pseg_task_end(w, t, PSEG_END_RELEASE, NULL);
            continue;
        }
        add(&g, t);
        gather(w, &g);
        if (g.n > 1)
            run_together(w, &g);
        else
            run_alone(w, t);
    }
    return NULL;
}
