/* ModelInfer: CreateJob, WaitJob and the masks in one call, for clients that know tensors. */
#include "common/base/clock.h"
#include "scheduler/service/internal.h"
#include "scheduler/service/open_inference.h"
#include "scheduler/service/open_inference_calls.h"
#include "scheduler/service/validate.h"

#include <string.h>

/* Leaves room in a reply of 20 MiB for everything but the masks. */
#define MAX_MASK_BYTES ((size_t)16 << 20)

typedef struct infer {
    const Inference__ModelInferRequest *asked;
    oip_request wanted;
    Pseg__V1__Job *job; /* at its end */
    bool is_over;       /* the job has ended, or never was */
    bool is_draining;
} infer;

static infer *infer_of(pseg_rpc_call *c)
{
    return state_of(c)->infer;
}

/* ---- the answer ---- */

static void reply(pseg_rpc_call *c, const Pseg__V1__Mask *masks)
{
    infer *f = infer_of(c);
    Inference__ModelInferResponse *out =
        oip_reply(pseg_rpc_arena(c), f->asked, &f->wanted, f->job, masks);

    if (out)
        pseg_rpc_reply(c, &out->base);
    else
        fail_no_memory(c);
}

static void fail_too_large(pseg_rpc_call *c)
{
    infer *f = infer_of(c);
    pseg_err e = PSEG_ERR_INIT;

    pseg_err_set(&e, PSEG_R_INVALID_ARGUMENT, 0, PSEG_HERE,
                 "%zu masks of %u x %u pixels are over the limit of %zu bytes for one reply; ask "
                 "for the parameter mask_encoding png or rle, or fetch those of %s",
                 f->job->n_results, (unsigned)f->job->image_width, (unsigned)f->job->image_height,
                 MAX_MASK_BYTES, f->job->name);
    pseg_err_field(&e, "outputs[%zu]", f->wanted.masks_at);
    pseg_err_limit(&e, "%zu", MAX_MASK_BYTES);
    pseg_rpc_fail(c, &e);
}

static void masks_made(pseg_rpc_call *c, encode_task *t)
{
    if (t->err.code != PSEG_OK)
        pseg_rpc_fail(c, &t->err);
    else if (t->is_cut)
        fail_too_large(c);
    else
        reply(c, t->masks);
}

static void masks_fetched(pseg_rpc_call *c, pseg_queue_reply *r)
{
    infer *f = infer_of(c);
    uint32_t *indexes = pseg_arena_calloc(pseg_rpc_arena(c), r->n_blobs, sizeof *indexes);

    if (fail_if_error(c, r))
        return;
    if (r->n_jobs == 0 || r->n_blobs != f->job->n_results) {
        fail_not_succeeded(c, NULL);
        return;
    }
    if (!indexes) {
        fail_no_memory(c);
        return;
    }
    for (uint32_t i = 0; i < r->n_blobs; i++)
        indexes[i] = i;
    encode_masks(c, r, indexes, r->n_blobs, &f->wanted.format, MAX_MASK_BYTES, masks_made);
}

static bool wants_masks(const infer *f)
{
    for (size_t i = 0; i < f->wanted.n_outputs; i++)
        if (f->wanted.outputs[i] == OIP_MASKS)
            return true;
    return false;
}

static void succeeded(pseg_rpc_call *c, pseg_queue_reply *r)
{
    infer *f = infer_of(c);
    uint32_t indexes[PSEG_MAX_PROMPTS];

    if (!wants_masks(f)) {
        reply(c, NULL);
        return;
    }
    if (r->n_blobs > 0 && r->n_blobs == f->job->n_results) {
        masks_fetched(c, r);
        return;
    }
    for (uint32_t i = 0; i < PSEG_MAX_PROMPTS; i++)
        indexes[i] = i;
    op *o = op_new(c, masks_fetched);
    if (o)
        pseg_queue_masks(service_of(c)->queue, pseg_rpc_tenant(c), state_of(c)->job_id, indexes,
                         f->job->n_results, op_done, o);
}

/* ---- the job ---- */

static void waited(pseg_rpc_call *c, pseg_queue_reply *r);

/* Time is up. What the job has come to by now is no use to a client that knows no jobs. */
static void fail_late(pseg_rpc_call *c, const pseg_job *j)
{
    infer *f = infer_of(c);
    pseg_err e = PSEG_ERR_INIT;

    if (f->is_draining)
        pseg_err_set(&e, PSEG_R_DRAINING, 0, PSEG_HERE,
                     "the scheduler stops; send the request again");
    else
        pseg_err_set(&e, PSEG_R_DEADLINE_EXCEEDED, 0, PSEG_HERE,
                     "jobs/%s is %s at the call's deadline, and is cancelled; give it more time",
                     j->id, pseg_job_state_name(j->state));
    pseg_rpc_fail(c, &e);
}

static void fail_ended(pseg_rpc_call *c, const pseg_job *j)
{
    pseg_err e = PSEG_ERR_INIT;

    if (j->state != PSEG_JOB_FAILED || j->reason == PSEG_R_NONE) {
        fail_not_succeeded(c, j);
        return;
    }
    pseg_err_set(&e, j->reason, 0, PSEG_HERE, "jobs/%s failed: %s", j->id, j->message);
    pseg_rpc_fail(c, &e);
}

static void waited(pseg_rpc_call *c, pseg_queue_reply *r)
{
    infer *f = infer_of(c);
    pseg_err e = PSEG_ERR_INIT;
    const pseg_job *j = r->n_jobs ? &r->jobs[0] : NULL;

    if (fail_if_error(c, r))
        return;
    if (j && j->id && !pseg_job_state_is_terminal(j->state)) {
        /* A call without a deadline waits as long as its client does. */
        if (pseg_rpc_ms_left(c) == INT64_MAX && !f->is_draining)
            wait_for_job(c, state_of(c)->job_id, 0, waited);
        else
            fail_late(c, j);
        return;
    }
    f->is_over = true;
    if (!j || !j->id || j->state != PSEG_JOB_SUCCEEDED) {
        if (j && j->id)
            fail_ended(c, j);
        else
            fail_job_not_found(c);
        return;
    }
    f->job = job_view(pseg_rpc_arena(c), j, &e);
    if (f->job)
        succeeded(c, r);
    else
        pseg_rpc_fail(c, &e);
}

static void created(pseg_rpc_call *c, pseg_queue_reply *r)
{
    call_state *state = state_of(c);

    if (r->err.code != PSEG_OK) {
        state->infer->is_over = true;
        if (r->err.reason == PSEG_R_MODEL_UNKNOWN)
            pseg_err_field(&r->err, "model_name");
        else if (r->err.reason == PSEG_R_IMAGE_NOT_HELD)
            pseg_err_field(&r->err, "parameters.image_sha256");
        fail_if_error(c, r);
        return;
    }
    memcpy(state->job_id, r->jobs[0].id, PSEG_JOB_ID_LEN + 1);
}

void oip_infer(pseg_rpc_call *c, const void *msg)
{
    call_state *state = state_of(c);
    infer *f = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *f);
    pseg_err e = PSEG_ERR_INIT;

    if (!state || !f) {
        fail_no_memory(c);
        return;
    }
    f->asked = msg;
    if (oip_read_request(&f->wanted, pseg_rpc_arena(c), msg, pseg_clock_unix_us(), &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    state->infer = f;
    submit_job(c, "", f->wanted.spec, created, wants_masks(f) ? f->wanted.spec->n_prompts : 0,
               waited);
}

void oip_infer_drain(pseg_rpc_call *c)
{
    call_state *state = pseg_rpc_state(c);

    if (state && state->infer)
        state->infer->is_draining = true;
    wait_drain(c);
}

static void forget(void *ud, pseg_queue_reply *r)
{
    (void)ud;
    pseg_queue_reply_free(r);
}

/* Nobody can ask for the job any more: the client does not know its name. */
void oip_infer_end(pseg_rpc_call *c)
{
    call_state *state = pseg_rpc_state(c);

    wait_end(c);
    encode_end(c);
    if (state && state->infer && !state->infer->is_over && *state->new_id)
        pseg_queue_cancel(service_of(c)->queue, pseg_rpc_tenant(c), state->new_id, forget, NULL);
}
