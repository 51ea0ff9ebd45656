#include "worker/serve/internal.h"
#include "common/base/clock.h"
#include "common/base/version.h"

#include <stdio.h>
#include <string.h>

/* One name, or several with those that failed. */
static void name_devices(pseg_worker *w, char *out, size_t cap)
{
    size_t n = 0, many = pseg_engine_n_devices(w->opt.engine);

    for (size_t i = 0; i < many && n < cap; i++)
        n += (size_t)snprintf(out + n, cap - n, "%s%s%s", i ? ", " : "",
                              pseg_engine_device(w->opt.engine, i),
                              pseg_worker_is_out(w, i) ? ": failed" : "");
}

void pseg_lease_register(pseg_worker *w)
{
    pseg_queue_sync sync;
    char log[1500] = "", devices[PSEG_MAX_DEVICES * 200];

    name_devices(w, devices, sizeof devices);
    if (w->opt.log && w->opt.log->tail)
        pseg_log_tail_read(w->opt.log->tail, log, sizeof log);
    pseg_queue_worker me = {.id = w->opt.id,
                            .model = pseg_engine_name(w->opt.engine),
                            .digest = pseg_engine_digest(w->opt.engine),
                            .device = devices,
                            .version = PSEG_VERSION,
                            .log = log};

    pseg_queue_sync_init(&sync);
    pseg_queue_register(w->queue, &me, pseg_queue_sync_done, &sync);
    pseg_queue_reply_free(pseg_queue_sync_take(&sync));
}

static void mark(pseg_task *t, pseg_lease_state s, const pseg_log *log)
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
    for (pseg_task *t = w->held; t && n < MAX; t = t->next_held, n++) {
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
    for (pseg_task *t = w->held; t; t = t->next_held)
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

void pseg_lease_give_back(pseg_worker *w, const char *kept, const pseg_err *why)
{
    enum { MAX = 256 };
    char ids[MAX][PSEG_JOB_ID_LEN + 1];
    int64_t fences[MAX], attempts[MAX];
    size_t n = 0;

    pthread_mutex_lock(&w->mu);
    const pseg_task *unclear = NULL;
    for (pseg_task *t = w->held; kept && t; t = t->next_held)
        if (t->is_in_batch && strcmp(t->id, kept) == 0)
            unclear = t;
    for (pseg_task *t = w->held; t && n < MAX; t = t->next_held) {
        if (unclear && t->is_in_batch && t->device == unclear->device)
            continue;
        memcpy(ids[n], t->id, sizeof ids[n]);
        fences[n] = t->fence;
        attempts[n++] = t->attempt;
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
        pseg_queue_reply_free(pseg_queue_sync_take(&sync));
    }
}

void *pseg_heartbeat_main(void *arg)
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
               pseg_cond_wait_until_us(&w->over, &w->mu, until)) {
        }
        bool over = w->stopping && w->done_is_over && !w->held;
        pthread_mutex_unlock(&w->mu);
        if (over || pseg_watch_check(w))
            return NULL;
        renew_all(w);
        pseg_lease_register(w);
        sweep(w);
    }
}
