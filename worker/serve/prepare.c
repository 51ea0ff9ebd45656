#include "worker/serve/internal.h"
#include "common/base/clock.h"
#include "common/base/trace_context.h"
#include "pseg/internal/v1/record.pb-c.h"

#include <stddef.h>
#include <string.h>

static void *unpack_alloc(void *arena, size_t n)
{
    return pseg_arena_alloc(arena, n);
}

static void unpack_free(void *arena, void *p)
{
    (void)arena;
    (void)p;
}

/* Its name stands before the image's content. NULL: no memory. */
static const char *tenant_of(const pseg_task *t)
{
    char *tenant = pseg_arena_strdup(t->arena, t->image);
    char *end = tenant ? strchr(tenant, ':') : NULL;

    if (end)
        *end = '\0';
    return tenant;
}

static bool is_sampled(const char *traceparent)
{
    pseg_trace_context c;

    return pseg_trace_context_parse(&c, traceparent) && c.is_sampled;
}

static pseg_status read_spec(const pseg_worker *w, pseg_task *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    ProtobufCAllocator alloc = {unpack_alloc, unpack_free, t->arena};
    Pseg__Internal__V1__JobSpec *s =
        pseg__internal__v1__job_spec__unpack(&alloc, t->spec.len, t->spec.data);

    if (!s || s->n_prompts == 0)
        PSEG_FAIL(PSEG_R_JOB_CORRUPT, 0, "the stored job does not parse");
    t->work.prompts = (const char *const *)s->prompts;
    t->work.n_prompts = s->n_prompts;
    t->work.owner = w->opt.share_features ? NULL : tenant_of(t);
    t->traceparent = s->traceparent;
    t->work.times_kernels = w->opt.times_kernels && is_sampled(s->traceparent);
    t->work.threshold = s->mask_threshold > 0 && s->mask_threshold < 1 ? s->mask_threshold : 0.5f;
out:
    return rc;
}

static void waited(pseg_task *t)
{
    pseg_work_stage(&t->work, "queue", pseg_clock_unix_us() - t->created_unix_us);
}

bool pseg_prepare_at_hand(pseg_worker *w, pseg_task *t)
{
    /* What goes wrong does so again where somebody waits for the outcome. */
    if (!pseg_engine_keeps_images(w->opt.engine) || read_spec(w, t, NULL) != PSEG_OK)
        return false;
    if (!pseg_engine_find(w->opt.engine, &t->work, t->image))
        return false;
    waited(t);
    return true;
}

static pseg_status prepare_image(pseg_worker *w, pseg_task *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_queue_reply *r = NULL;
    int64_t begin = pseg_clock_mono_us();
    pseg_queue_sync sync;

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
    PSEG_TRY(pseg_engine_prepare(w->opt.engine, &t->work, tenant_of(t), r->blobs[0], NULL, err));
out:
    pseg_queue_reply_free(r);
    return rc;
}

/* Looks for features that a worker has made of the image. What goes wrong is as if there were none.
 */
static bool find_features(pseg_worker *w, pseg_task *t)
{
    char key[PSEG_ENGINE_MAX_KEY + 1];
    int64_t begin = pseg_clock_mono_us();
    pseg_queue_sync sync;
    pseg_err e = PSEG_ERR_INIT;
    bool is_found = false;

    pseg_task_features_key(w, t, key);
    pseg_queue_sync_init(&sync);
    pseg_queue_get_features(w->queue, key, PSEG_FEATURE_TTL_MS, pseg_queue_sync_done, &sync);
    pseg_queue_reply *r = pseg_queue_sync_take(&sync);
    if (r->err.code == PSEG_OK && r->n_blobs > 0 && r->blobs[0].data) {
        is_found = pseg_engine_restore(w->opt.engine, &t->work, r->blobs[0], &e) == PSEG_OK;
        if (!is_found)
            PSEG_WARN(w->opt.log, "worker", "job=%s features of no use: %s", t->id, e.msg);
    }
    pseg_queue_reply_free(r);
    if (is_found)
        pseg_work_stage(&t->work, "fetch_features", pseg_clock_mono_us() - begin);
    return is_found;
}

/* Those who waited for the image go on: in front of `ready`, which is returned as a list; or, where
 * it could not be prepared, each tries by itself, so that none fails for what befell another. */
static pseg_task *tell_waiters(pseg_worker *w, pseg_waiter *waiter, pseg_task *ready)
{
    while (waiter) {
        pseg_task *t = (pseg_task *)((char *)waiter - offsetof(pseg_task, waiter));
        waiter = waiter->next;
        t->is_alone = !t->waiter.picture;
        if (t->is_alone) {
            pseg_line_push(w, &w->claimed, t);
        } else {
            pseg_engine_adopt(&t->work, t->waiter.picture);
            t->next = ready;
            ready = t;
        }
    }
    return ready;
}

/* The jobs that are ready by it: t, and those who waited for its image; none if t waits for that of
 * another, which then goes on with it and may do so by now. */
static pseg_status prepare_task(pseg_task **ready, pseg_worker *w, pseg_task *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_picture_state state = PSEG_PICTURE_MINE;

    *ready = NULL;
    if (t->work.n_stages == 0)
        waited(t);
    if (!t->work.prompts)
        PSEG_TRY(read_spec(w, t, err));
    if (!t->is_alone)
        state = pseg_engine_share(w->opt.engine, &t->work, t->image, &t->waiter);
    if (state == PSEG_PICTURE_NO_MEMORY)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to prepare an image");
    if (state == PSEG_PICTURE_AWAITED)
        goto out;
    bool is_found = t->work.picture && w->opt.feature_bytes > 0 && state == PSEG_PICTURE_MINE &&
                    find_features(w, t);
    if (state == PSEG_PICTURE_MINE && !is_found)
        rc = prepare_image(w, t, err);
    *ready = rc == PSEG_OK ? t : NULL;
    if (state == PSEG_PICTURE_MINE)
        *ready =
            tell_waiters(w, pseg_engine_shared(w->opt.engine, &t->work, rc == PSEG_OK), *ready);
out:
    return rc;
}

void *pseg_prepare_main(void *arg)
{
    pseg_preparer *p = arg;
    pseg_worker *w = p->worker;
    pseg_task *t, *ready;

    while ((t = pseg_line_pop(w, &w->claimed, &w->claims_are_over))) {
        pseg_err e = PSEG_ERR_INIT;
        if (pseg_worker_is_stopping(w)) {
            pseg_task_end(w, t, PSEG_END_RELEASE, NULL);
            continue;
        }
        pseg_watch_moved(w, p->watch, t);
        pseg_status rc = prepare_task(&ready, w, t, &e);
        pseg_watch_moved(w, p->watch, NULL);
        if (rc != PSEG_OK)
            pseg_task_end(w, t, PSEG_END_FAIL, &e);
        else if (ready)
            pseg_line_push(w, &w->ready, ready);
    }
    return NULL;
}
