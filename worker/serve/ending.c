#include "worker/serve/internal.h"
#include "common/base/clock.h"

#include <string.h>

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

void pseg_task_end(pseg_worker *w, pseg_task *t, pseg_ending how, const pseg_err *why)
{
    const char *id = w->opt.id;
    int64_t until = pseg_clock_mono_ms() + 2 * w->opt.queue.lease_ms;

    for (;;) {
        pseg_queue_sync sync;
        pseg_queue_sync_init(&sync);
        if (how == PSEG_END_PUBLISH)
            pseg_queue_publish(w->queue, id, pseg_task_lease(t), t->work.result, t->work.masks,
                               t->work.n_prompts, cost_of(t), pseg_queue_sync_done, &sync);
        else if (how == PSEG_END_FAIL)
            pseg_queue_fail(w->queue, id, pseg_task_lease(t), why,
                            pseg_job_retry_delay_ms(t->attempt), pseg_queue_sync_done, &sync);
        else
            pseg_queue_release(w->queue, id, pseg_task_lease(t), pseg_queue_sync_done, &sync);
        pseg_queue_reply *r = pseg_queue_sync_take(&sync);
        pseg_reason reason = r->err.code == PSEG_OK ? PSEG_R_NONE : r->err.reason;
        pseg_job_state state = r->state;
        if (reason == PSEG_R_NONE) {
            PSEG_INFO(w->opt.log, "worker", "job=%s attempt=%lld state=%s%s%s", t->id,
                      (long long)t->attempt, pseg_job_state_name(state),
                      how == PSEG_END_FAIL ? " why=" : "", how == PSEG_END_FAIL ? why->msg : "");
        } else if (reason == PSEG_R_BROKER_UNAVAILABLE && pseg_clock_mono_ms() < until) {
            pseg_queue_reply_free(r);
            pthread_mutex_lock(&w->mu);
            pseg_cond_wait_until_us(&w->cv, &w->mu, pseg_clock_mono_us() + 200000);
            pthread_mutex_unlock(&w->mu);
            continue;
        } else {
            PSEG_WARN(w->opt.log, "worker", "job=%s attempt=%lld not %s: %s", t->id,
                      (long long)t->attempt,
                      how == PSEG_END_PUBLISH ? "published"
                      : how == PSEG_END_FAIL  ? "failed"
                                              : "released",
                      r->err.msg);
        }
        tell_ended(w, t, how, why, reason != PSEG_R_NONE);
        pseg_queue_reply_free(r);
        break;
    }
    pseg_task_free(w, t);
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

void *pseg_publish_main(void *arg)
{
    pseg_worker *w = arg;
    pseg_task *t;

    while ((t = pseg_line_pop(w, &w->done, &w->done_is_over))) {
        pseg_err e = PSEG_ERR_INIT;
        pseg_status rc = pseg_engine_finish(w->opt.engine, &t->work, &e);
        if (w->opt.feature_bytes > 0)
            keep_features(w, t);
        pseg_task_end(w, t, rc == PSEG_OK ? PSEG_END_PUBLISH : PSEG_END_FAIL, &e);
    }
    return NULL;
}
