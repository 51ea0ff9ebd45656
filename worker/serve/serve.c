#include "worker/serve/serve.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "worker/serve/internal.h"

bool pseg_worker_has_failed(const pseg_worker *w)
{
    return atomic_load(&((pseg_worker *)(uintptr_t)w)->failed);
}

bool pseg_worker_is_out(const pseg_worker *cw, size_t device)
{
    pseg_worker *w = (pseg_worker *)(uintptr_t)cw;

    pthread_mutex_lock(&w->mu);
    bool is_out = w->runners[device].is_out;
    pthread_mutex_unlock(&w->mu);
    return is_out;
}

bool pseg_worker_is_hung(const pseg_worker *w)
{
    return atomic_load(&((pseg_worker *)(uintptr_t)w)->hung);
}

void pseg_worker_drain(pseg_worker *w)
{
    pseg_worker_tell(w, &w->stopping);
}

void pseg_worker_abandon(pseg_worker *w)
{
    pseg_queue_sync sync;

    pseg_worker_tell(w, &w->stopping);
    if (!pseg_worker_is_hung(w))
        pseg_lease_give_back(w, NULL, NULL);
    pseg_queue_sync_init(&sync);
    pseg_queue_unregister(w->queue, w->opt.id, pseg_queue_sync_done, &sync);
    pseg_queue_reply_free(pseg_queue_sync_take(&sync));
}

bool pseg_worker_is_connected(const pseg_worker *w)
{
    return pseg_queue_silence_ms(w->queue) < w->opt.queue.lease_ms;
}

size_t pseg_worker_n_parts(const pseg_worker *w)
{
    return pseg_queue_n_parts(w->queue);
}

bool pseg_worker_reaches(const pseg_worker *w, size_t part)
{
    return pseg_queue_part_silence_ms(w->queue, part) < w->opt.queue.lease_ms;
}

size_t pseg_worker_n_held(const pseg_worker *cw)
{
    pseg_worker *w = (pseg_worker *)(uintptr_t)cw;

    pthread_mutex_lock(&w->mu);
    size_t n = w->n_held;
    pthread_mutex_unlock(&w->mu);
    return n;
}

int64_t pseg_worker_oldest_us(const pseg_worker *cw)
{
    pseg_worker *w = (pseg_worker *)(uintptr_t)cw;
    int64_t now = pseg_clock_mono_us(), oldest_us = 0;

    pthread_mutex_lock(&w->mu);
    for (const pseg_task *t = w->held; t; t = t->next_held)
        oldest_us = now - t->claimed_mono_us > oldest_us ? now - t->claimed_mono_us : oldest_us;
    pthread_mutex_unlock(&w->mu);
    return oldest_us;
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

    PSEG_TRY(start_thread(&w->has_publish, &w->publish, pseg_publish_main, w, err));
    while (w->n_runners < pseg_engine_n_devices(w->opt.engine)) {
        pseg_runner *r = &w->runners[w->n_runners];
        bool runs = false;
        r->worker = w;
        r->device = w->n_runners;
        PSEG_TRY(start_thread(&runs, &r->thread, pseg_device_main, r, err));
        w->n_runners++;
    }
    while (w->n_preparers < n) {
        pseg_preparer *p = &w->preparers[w->n_preparers];
        bool runs = false;
        *p = (pseg_preparer){.worker = w, .watch = PSEG_WATCH_PREPARE + w->n_preparers};
        PSEG_TRY(start_thread(&runs, &p->thread, pseg_prepare_main, p, err));
        w->n_preparers++;
    }
    PSEG_TRY(start_thread(&w->has_claim, &w->claim, pseg_claim_main, w, err));
    PSEG_TRY(start_thread(&w->has_heartbeat, &w->heartbeat, pseg_heartbeat_main, w, err));
out:
    return rc;
}

pseg_status pseg_worker_start(pseg_worker **out, const pseg_worker_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_worker *w = NULL;

    *out = NULL;
    if (o->preparers > PSEG_MAX_PREPARERS)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%zu threads to prepare images: the limits are 0..%u",
                  o->preparers, PSEG_MAX_PREPARERS);
    if (o->batch > PSEG_ENGINE_MAX_JOBS)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "batches of %zu jobs: the limits are 0..%d", o->batch,
                  PSEG_ENGINE_MAX_JOBS);
    w = pseg_calloc(1, sizeof *w);
    if (!w)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the worker");
    w->opt = *o;
    w->opt.batch = o->batch ? o->batch : 1;
    w->window = o->ahead + pseg_engine_n_devices(o->engine);
    w->is_claiming = true; /* until there are threads for what it brings */
    pthread_mutex_init(&w->mu, NULL);
    pthread_cond_t *all[] = {&w->over, &w->timer, &w->claimed.more, &w->ready.more, &w->done.more};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        pseg_cond_init(all[i]);
    w->opt.queue.on_ready = pseg_claim_on_ready;
    w->opt.queue.watch_model = pseg_engine_name(o->engine);
    w->opt.queue.ud = w;
    PSEG_TRY(pseg_queue_open(&w->queue, &w->opt.queue, err));
    pseg_lease_register(w);
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
    pseg_worker_tell(w, &w->claims_are_over);
    for (size_t i = 0; i < w->n_preparers; i++)
        pthread_join(w->preparers[i].thread, NULL);
    pseg_worker_tell(w, &w->ready_is_over);
    for (size_t i = 0; i < w->n_runners; i++)
        pthread_join(w->runners[i].thread, NULL);
    pseg_worker_tell(w, &w->done_is_over);
    if (w->has_publish)
        pthread_join(w->publish, NULL);
    if (w->has_heartbeat)
        pthread_join(w->heartbeat, NULL);
}

void pseg_worker_stop(pseg_worker *w)
{
    if (!w)
        return;
    pseg_worker_tell(w, &w->stopping);
    join_threads(w);
    if (w->queue) {
        pseg_queue_sync sync;
        pseg_queue_sync_init(&sync);
        pseg_queue_unregister(w->queue, w->opt.id, pseg_queue_sync_done, &sync);
        pseg_queue_reply_free(pseg_queue_sync_take(&sync));
    }
    pseg_queue_close(w->queue);
    pthread_cond_destroy(&w->over);
    pthread_cond_destroy(&w->timer);
    pthread_cond_destroy(&w->claimed.more);
    pthread_cond_destroy(&w->ready.more);
    pthread_cond_destroy(&w->done.more);
    pthread_mutex_destroy(&w->mu);
    pseg_free(w);
}
