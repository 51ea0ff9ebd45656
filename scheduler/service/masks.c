/* FetchMasks: masks go out one by one, so that a large job never lies in memory whole. */
#include "scheduler/service/internal.h"
#include "common/base/alloc.h"
#include "scheduler/service/validate.h"

#include <stdio.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)1 << 20)

typedef struct fetch {
    const Pseg__V1__FetchMasksRequest *request;
    const char *id;
    uint32_t *indexes;
    size_t n, next;      /* prompts; the next to encode */
    Pseg__V1__Mask mask; /* being sent; data is ours */
    size_t sent;
} fetch;

static void fetch_next(pseg_rpc_call *c);

/* A mask that nobody reads takes memory that others' masks need. */
static void stalled(pseg_rpc_timer *t, void *ud)
{
    pseg_rpc_call *c = ud;

    (void)t;
    PSEG_WARN(service_of(c)->opt.log, "service",
              "the client stands still: it has read nothing for %lld ms job=%s peer=%s",
              (long long)service_of(c)->opt.stall_ms, state_of(c)->job_id,
              pseg_rpc_peer_address(c));
    pseg_rpc_abort(c);
}

static void send_chunk(pseg_rpc_call *c, fetch *f)
{
    Pseg__V1__FetchMasksResponse out = PSEG__V1__FETCH_MASKS_RESPONSE__INIT;
    Pseg__V1__Mask part = f->mask;
    size_t left = f->mask.data.len - f->sent;

    part.data.data = f->mask.data.data + f->sent;
    part.data.len = left < CHUNK_BYTES ? left : CHUNK_BYTES;
    f->sent += part.data.len;
    out.mask = &part;
    out.last_chunk = f->sent == f->mask.data.len;
    pseg_rpc_timer_set(pseg_rpc_loop_of(c), &state_of(c)->stall, service_of(c)->opt.stall_ms,
                       stalled, c);
    pseg_rpc_send(c, &out.base);
}

static void drop_mask(pseg_rpc_call *c, fetch *f)
{
    mask_free(service_of(c), &f->mask);
    f->sent = 0;
}

void fetch_writable(pseg_rpc_call *c)
{
    fetch *f = state_of(c)->fetch;

    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &state_of(c)->stall);
    if (f->sent < f->mask.data.len) {
        send_chunk(c, f);
        return;
    }
    drop_mask(c, f);
    fetch_next(c);
}

static void one_encoded(pseg_rpc_call *c, encode_task *t)
{
    fetch *f = state_of(c)->fetch;

    if (t->err.code != PSEG_OK) {
        pseg_rpc_fail(c, &t->err);
        return;
    }
    f->mask = t->masks[0];
    t->masks[0].data.data = NULL; /* ours now */
    t->masks[0].data.len = 0;
    f->sent = 0;
    send_chunk(c, f);
}

void fail_not_succeeded(pseg_rpc_call *c, const pseg_job *j)
{
    pseg_err e = PSEG_ERR_INIT;

    if (!j || !j->id) {
        fail_job_not_found(c);
        return;
    }
    if (j->state == PSEG_JOB_FAILED)
        pseg_err_set(&e, PSEG_R_JOB_FAILED, 0, PSEG_HERE, "job %s failed: %s", j->id, j->message);
    else if (j->state == PSEG_JOB_CANCELLED)
        pseg_err_set(&e, PSEG_R_JOB_CANCELLED, 0, PSEG_HERE, "job %s was cancelled", j->id);
    else if (j->state == PSEG_JOB_EXPIRED)
        pseg_err_set(&e, PSEG_R_JOB_EXPIRED, 0, PSEG_HERE, "job %s was not done by its deadline",
                     j->id);
    else
        pseg_err_set(&e, PSEG_R_JOB_NOT_DONE, 0, PSEG_HERE,
                     "job %s is %s; wait for it with WaitJob", j->id,
                     pseg_job_state_name(j->state));
    pseg_err_value(&e, "%s", pseg_job_state_name(j->state));
    pseg_err_limit(&e, "%s", pseg_job_state_name(PSEG_JOB_SUCCEEDED));
    pseg_rpc_fail(c, &e);
}

static bool is_ready(pseg_rpc_call *c, const pseg_queue_reply *r)
{
    if (fail_if_error(c, r))
        return false;
    if (r->n_jobs == 1 && r->jobs[0].id && r->jobs[0].state == PSEG_JOB_SUCCEEDED)
        return true;
    fail_not_succeeded(c, r->n_jobs ? &r->jobs[0] : NULL);
    return false;
}

static void one_fetched(pseg_rpc_call *c, pseg_queue_reply *r)
{
    fetch *f = state_of(c)->fetch;

    if (is_ready(c, r))
        encode_masks(c, r, &f->indexes[f->next++], 1, f->request->format, 0, one_encoded);
}

static void fetch_next(pseg_rpc_call *c)
{
    fetch *f = state_of(c)->fetch;

    if (f->next == f->n) {
        pseg_rpc_finish(c);
        return;
    }
    op *o = op_new(c, one_fetched);
    if (o)
        pseg_queue_masks(service_of(c)->queue, pseg_rpc_tenant(c), f->id, &f->indexes[f->next], 1,
                         op_done, o);
}

/* The job, to know how many prompts it has. */
static void fetch_begun(pseg_rpc_call *c, pseg_queue_reply *r)
{
    fetch *f = state_of(c)->fetch;
    pseg_err e = PSEG_ERR_INIT;

    if (!is_ready(c, r))
        return;
    Pseg__V1__Job *j = job_view(pseg_rpc_arena(c), &r->jobs[0], &e);
    if (!j) {
        pseg_rpc_fail(c, &e);
        return;
    }
    f->n = f->request->n_prompt_indexes ? f->request->n_prompt_indexes : j->n_prompts;
    f->indexes = pseg_arena_calloc(pseg_rpc_arena(c), f->n, sizeof *f->indexes);
    if (!f->indexes) {
        fail_no_memory(c);
        return;
    }
    for (size_t i = 0; i < f->n; i++) {
        f->indexes[i] = f->request->n_prompt_indexes ? f->request->prompt_indexes[i] : (uint32_t)i;
        if (f->indexes[i] >= j->n_prompts) {
            pseg_err_set(&e, PSEG_R_MASK_NOT_FOUND, 0, PSEG_HERE,
                         "prompt_indexes[%zu] is %u; the job has %zu prompts", i,
                         (unsigned)f->indexes[i], j->n_prompts);
            pseg_err_field(&e, "prompt_indexes[%zu]", i);
            char mask[PSEG_JOB_ID_LEN + 24];
            snprintf(mask, sizeof mask, "jobs/%s/masks/%u", f->id, (unsigned)f->indexes[i]);
            pseg_err_resource(&e, "pseg.v1.Mask", mask);
            pseg_err_limit(&e, "0..%zu", j->n_prompts - 1);
            pseg_rpc_fail(c, &e);
            return;
        }
    }
    fetch_next(c);
}

void fetch_masks(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__FetchMasksRequest *q = msg;
    call_state *state = state_of(c);
    fetch *f = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *f);
    pseg_err e = PSEG_ERR_INIT;

    if (!state || !f) {
        fail_no_memory(c);
        return;
    }
    f->request = q;
    pseg__v1__mask__init(&f->mask);
    state->fetch = f;
    if (pseg_check_job_name(&f->id, q->name, &e) != PSEG_OK ||
        pseg_check_format(q->format, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    if (q->n_prompt_indexes > PSEG_MAX_PROMPTS) {
        pseg_err_set(&e, PSEG_R_INVALID_ARGUMENT, 0, PSEG_HERE,
                     "%zu prompt_indexes are over the limit of %d", q->n_prompt_indexes,
                     PSEG_MAX_PROMPTS);
        pseg_err_field(&e, "prompt_indexes");
        pseg_err_value(&e, "%zu", q->n_prompt_indexes);
        pseg_err_limit(&e, "%d", PSEG_MAX_PROMPTS);
        pseg_rpc_fail(c, &e);
        return;
    }
    memcpy(state->job_id, f->id, PSEG_JOB_ID_LEN);
    op *o = op_new(c, fetch_begun);
    if (o)
        pseg_queue_get(service_of(c)->queue, pseg_rpc_tenant(c), &f->id, 1, op_done, o);
}

void fetch_end(pseg_rpc_call *c)
{
    call_state *state = pseg_rpc_state(c);

    encode_end(c);
    if (state)
        pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &state->stall);
    if (state && state->fetch)
        drop_mask(c, state->fetch);
}
