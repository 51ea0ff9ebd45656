/* CreateJob and Segment. */
#include "scheduler/service/internal.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/hash.h"
#include "common/base/version.h"
#include "scheduler/service/validate.h"

#include <string.h>

/* Leaves room in a reply of 20 MiB for the job itself. */
#define MAX_INLINE_MASK_BYTES ((size_t)16 << 20)

static char *unconst(const char *s)
{
    return (char *)(uintptr_t)s;
}

/* Labels as the map that they are on the wire, sorted by key: of entries with the same key the last
 * one counts, and their order, which clients change at will, does not. */
pseg_status labels_take(Pseg__Internal__V1__JobSpec *s, pseg_arena *a, const Pseg__V1__JobSpec *q,
                        pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    s->labels = pseg_arena_calloc(a, q->n_labels, sizeof *s->labels);
    if (!s->labels)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the job");
    for (size_t i = 0; i < q->n_labels; i++) {
        size_t at = 0;
        int order = 1;
        while (at < s->n_labels && (order = strcmp(q->labels[i]->key, s->labels[at]->key)) > 0)
            at++;
        if (at == s->n_labels || order != 0) {
            Pseg__Internal__V1__Label *l = pseg_arena_calloc(a, 1, sizeof *l);
            if (!l)
                PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the job");
            pseg__internal__v1__label__init(l);
            memmove(&s->labels[at + 1], &s->labels[at], (s->n_labels - at) * sizeof *s->labels);
            s->labels[at] = l;
            s->n_labels++;
            l->key = q->labels[i]->key;
        }
        s->labels[at]->value = q->labels[i]->value;
    }
out:
    return rc;
}

/* What makes two requests the same: everything but how the image came. */
static void fingerprint_of(char out[33], const Pseg__V1__JobSpec *q, pseg_bytes spec)
{
    int64_t times[3] = {q->deadline ? q->deadline->seconds : 0,
                        q->deadline ? q->deadline->nanos : 0,
                        q->result_ttl ? q->result_ttl->seconds : 0};
    uint8_t digest[PSEG_SHA256_BYTES];
    pseg_sha256 *h = pseg_sha256_new();

    out[0] = '\0';
    if (!h)
        return;
    pseg_sha256_update(h, spec.data, spec.len);
    pseg_sha256_update(h, times, sizeof times);
    if (q->priority)
        pseg_sha256_update(h, &q->priority, sizeof q->priority);
    pseg_sha256_finish(h, digest);
    pseg_sha256_free(h);
    pseg_hex(out, digest, 16);
}

/* The stored form of the request, packed into the arena, and the fingerprint of what the client
 * sent: our own version is no part of it, or repeats would fail while schedulers are replaced; nor
 * is the trace, which may be another at a repeat. */
static pseg_status pack_spec(made_job *out, pseg_rpc_call *c, pseg_arena *a,
                             const Pseg__V1__JobSpec *q, const char *request_id, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__Internal__V1__JobSpec s = PSEG__INTERNAL__V1__JOB_SPEC__INIT;
    const pseg_trace_context *trace = pseg_rpc_trace(c);
    char traceparent[PSEG_TRACEPARENT_LEN + 1] = "";

    if (trace)
        pseg_trace_context_format(traceparent, trace);
    s.image_sha256 = out->sha256;
    s.model = unconst(out->args.model);
    s.mask_threshold = q->mask_threshold != 0 ? q->mask_threshold : 0.5f;
    s.request_id = unconst(request_id);
    s.prompts = pseg_arena_calloc(a, q->n_prompts, sizeof *s.prompts);
    if (!s.prompts)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the job");
    for (; s.n_prompts < q->n_prompts; s.n_prompts++)
        s.prompts[s.n_prompts] = q->prompts[s.n_prompts]->text;
    PSEG_TRY(labels_take(&s, a, q, err));
    size_t room = pseg__internal__v1__job_spec__get_packed_size(&s) + sizeof PSEG_VERSION +
                  sizeof traceparent + 16;
    uint8_t *data = pseg_arena_alloc(a, room);
    if (!data)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the job");
    out->fingerprint[0] = '\0';
    if (*request_id)
        fingerprint_of(out->fingerprint, q,
                       (pseg_bytes){data, pseg__internal__v1__job_spec__pack(&s, data)});
    s.scheduler_version = unconst(PSEG_VERSION);
    s.traceparent = unconst(traceparent);
    out->args.spec = (pseg_bytes){data, pseg__internal__v1__job_spec__pack(&s, data)};
out:
    return rc;
}

pseg_status job_make(made_job *out, pseg_rpc_call *c, pseg_arena *a, const Pseg__V1__JobSpec *q,
                     const char *field, const char *request_id, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_service *s = service_of(c);
    pseg_queue_submit_args *args = &out->args;

    *args = (pseg_queue_submit_args){.request_id = request_id};
    PSEG_TRY(pseg_check_spec(q, field, pseg_clock_unix_us(), err));
    if (q->image_case == PSEG__V1__JOB_SPEC__IMAGE_CONTENT) {
        uint8_t digest[PSEG_SHA256_BYTES];
        pseg_sha256_of(digest, q->content.data, q->content.len);
        pseg_hex(out->sha256, digest, sizeof digest);
        args->content = (pseg_bytes){q->content.data, q->content.len};
    } else {
        memcpy(out->sha256, q->sha256, sizeof out->sha256);
    }
    args->model = *q->model ? q->model : s->opt.default_model;
    args->model_is_default = strcmp(args->model, s->opt.default_model) == 0;
    args->image_sha256 = out->sha256;
    PSEG_TRY(pack_spec(out, c, a, q, request_id, err));
    args->fingerprint = out->fingerprint;
    PSEG_TRY(pseg_job_new_id(out->id, err));
    args->id = out->id;
    if (q->deadline)
        args->deadline_unix_us = q->deadline->seconds * 1000000 + q->deadline->nanos / 1000;
    args->ttl_ms = q->result_ttl ? q->result_ttl->seconds * 1000 + q->result_ttl->nanos / 1000000
                                 : s->opt.default_result_ttl_ms;
    args->priority = q->priority;
out:
    return rc;
}

/* A job that is made, and where its answer goes. */
typedef struct submission {
    made_job made;
    pseg_queue_tenant limits;
    pseg_bytes content;      /* of the image, for when it must be sent after all */
    bool is_without_content; /* the queue is thought to hold it */
    void (*then)(pseg_rpc_call *c, pseg_queue_reply *r);
    size_t n_masks;
    void (*ended)(pseg_rpc_call *c, pseg_queue_reply *r);
} submission;

static void submitted(pseg_rpc_call *c, pseg_queue_reply *r);

static void hand_over(pseg_rpc_call *c, submission *sub)
{
    if (sub->ended && !state_of(c)->waiter &&
        !wait_for_new_job(c, sub->made.id, sub->n_masks, sub->ended))
        return;
    op *o = op_new(c, submitted);
    if (o)
        pseg_queue_submit(service_of(c)->queue, &sub->made.args, op_done, o);
}

static void submitted(pseg_rpc_call *c, pseg_queue_reply *r)
{
    held_images *held = &service_of(c)->held;
    submission *sub = state_of(c)->submission;
    pseg_queue_submit_args *a = &sub->made.args;

    if (sub->is_without_content && r->err.reason == PSEG_R_IMAGE_NOT_HELD) {
        held_images_forget(held, a->tenant, a->image_sha256);
        sub->is_without_content = false;
        a->content = sub->content;
        hand_over(c, sub);
        return;
    }
    if (r->err.code == PSEG_OK && sub->content.len >= HELD_IMAGE_BYTES)
        held_images_note(held, a->tenant, a->image_sha256);
    if (r->err.code == PSEG_OK && sub->ended)
        wait_submitted(c, &r->jobs[0]);
    sub->then(c, r);
}

static void have_estimate(pseg_rpc_call *c, pseg_queue_reply *r)
{
    submission *sub = state_of(c)->submission;
    pseg_err e = PSEG_ERR_INIT;

    if (fail_if_error(c, r))
        return;
    if (is_infeasible(&e, &r->estimate, sub->made.args.deadline_unix_us))
        pseg_rpc_fail(c, &e);
    else
        hand_over(c, sub);
}

void submit_job(pseg_rpc_call *c, const char *request_id, const Pseg__V1__JobSpec *q,
                void (*then)(pseg_rpc_call *, pseg_queue_reply *), size_t n_masks,
                void (*ended)(pseg_rpc_call *, pseg_queue_reply *))
{
    pseg_service *s = service_of(c);
    pseg_arena *a = pseg_rpc_arena(c);
    pseg_status rc = PSEG_OK;
    pseg_err e = PSEG_ERR_INIT, *err = &e;
    call_state *state = state_of(c);
    submission *sub = pseg_arena_calloc(a, 1, sizeof *sub);

    if (!state || !sub)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the job");
    PSEG_TRY(pseg_check_request_id(request_id, err));
    PSEG_TRY(job_make(&sub->made, c, a, q, "job", request_id, err));
    sub->then = then;
    sub->n_masks = n_masks;
    sub->ended = ended;
    pseg_queue_submit_args *args = &sub->made.args;
    args->tenant = pseg_rpc_tenant(c);
    state->request_id = request_id;
    state->model = args->model;
    state->image_sha256 = sub->made.sha256;
    state->submission = sub;
    memcpy(state->new_id, sub->made.id, sizeof sub->made.id);
    sub->content = args->content;
    sub->is_without_content = args->content.len >= HELD_IMAGE_BYTES &&
                              held_images_know(&s->held, args->tenant, args->image_sha256);
    if (sub->is_without_content)
        args->content = (pseg_bytes){NULL, 0};
    if (s->opt.limits_of) {
        s->opt.limits_of(s->opt.limits_ud, args->tenant, &sub->limits);
        args->limits = &sub->limits;
    }
    if (!s->opt.refuse_infeasible || !q->deadline) {
        hand_over(c, sub);
        return;
    }
    op *o = op_new(c, have_estimate);
    if (o)
        estimate_for(o, request_id, args->model, (int64_t)q->n_prompts, q->priority);
    return;
out:
    pseg_rpc_fail(c, &e);
}

void create_job(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__CreateJobRequest *q = msg;

    submit_job(c, q->request_id, q->job, reply_with_job, 0, NULL);
}

/* ---- Segment ---- */

static void reply_with_masks(pseg_rpc_call *c, encode_task *t)
{
    Pseg__V1__SegmentResponse out = PSEG__V1__SEGMENT_RESPONSE__INIT;

    out.job = state_of(c)->done;
    out.masks = pseg_arena_calloc(pseg_rpc_arena(c), t->n, sizeof *out.masks);
    out.masks_omitted = t->is_cut;
    if (t->err.code != PSEG_OK) {
        pseg_rpc_fail(c, &t->err);
        return;
    }
    if (!out.masks) {
        fail_no_memory(c);
        return;
    }
    for (size_t i = 0; i < t->n && !t->is_cut; i++)
        out.masks[out.n_masks++] = &t->masks[i];
    pseg_rpc_reply(c, &out.base);
}

/* The job is done, and its masks would be there after the deadline: they can be fetched. */
static void too_late(pseg_rpc_timer *timer, void *ud)
{
    pseg_rpc_call *c = ud;
    Pseg__V1__SegmentResponse out = PSEG__V1__SEGMENT_RESPONSE__INIT;

    (void)timer;
    out.job = state_of(c)->done;
    out.masks_omitted = true;
    pseg_rpc_reply(c, &out.base);
}

/* Before the guard of the request for the masks, which would fail the call. */
static void arm_late(pseg_rpc_call *c)
{
    int64_t left = pseg_rpc_ms_left(c);

    if (left != INT64_MAX)
        pseg_rpc_timer_set(pseg_rpc_loop_of(c), &state_of(c)->late,
                           left - 2 * deadline_margin_ms(left), too_late, c);
}

void segment_end(pseg_rpc_call *c)
{
    call_state *state = pseg_rpc_state(c);

    wait_end(c);
    encode_end(c);
    if (state)
        pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &state->late);
}

static void masks_fetched(pseg_rpc_call *c, pseg_queue_reply *r)
{
    call_state *state = state_of(c);
    uint32_t *indexes = pseg_arena_calloc(pseg_rpc_arena(c), r->n_blobs, sizeof *indexes);

    if (fail_if_error(c, r))
        return;
    if (r->n_jobs == 0 || !indexes) {
        reply_with_job(c, r);
        return;
    }
    for (uint32_t i = 0; i < r->n_blobs; i++)
        indexes[i] = i;
    encode_masks(c, r, indexes, r->n_blobs, state->format, MAX_INLINE_MASK_BYTES, reply_with_masks);
}

static void segmented(pseg_rpc_call *c, pseg_queue_reply *r)
{
    pseg_service *s = service_of(c);
    Pseg__V1__SegmentResponse out = PSEG__V1__SEGMENT_RESPONSE__INIT;
    pseg_err e = PSEG_ERR_INIT;

    if (fail_if_error(c, r))
        return;
    if (!r->n_jobs || !r->jobs[0].id) {
        reply_with_job(c, r);
        return;
    }
    out.job = job_view(pseg_rpc_arena(c), &r->jobs[0], &e);
    if (!out.job) {
        pseg_rpc_fail(c, &e);
        return;
    }
    out.job->durability = (Pseg__V1__Durability)(s->opt.durability + 1);
    if (r->jobs[0].state != PSEG_JOB_SUCCEEDED) {
        pseg_rpc_reply(c, &out.base);
        return;
    }
    state_of(c)->done = out.job;
    if (r->n_blobs > 0 && r->n_blobs == out.job->n_prompts) {
        masks_fetched(c, r);
        return;
    }
    arm_late(c);
    uint32_t indexes[PSEG_MAX_PROMPTS];
    for (uint32_t i = 0; i < PSEG_MAX_PROMPTS; i++)
        indexes[i] = i;
    op *o = op_new(c, masks_fetched);
    if (o)
        pseg_queue_masks(s->queue, pseg_rpc_tenant(c), state_of(c)->job_id, indexes,
                         out.job->n_prompts, op_done, o);
}

static void segment_created(pseg_rpc_call *c, pseg_queue_reply *r)
{
    if (fail_if_error(c, r))
        return;
    memcpy(state_of(c)->job_id, r->jobs[0].id, PSEG_JOB_ID_LEN + 1);
}

void segment(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__SegmentRequest *q = msg;
    pseg_err e = PSEG_ERR_INIT;
    call_state *state = state_of(c);

    if (!state) {
        fail_no_memory(c);
        return;
    }
    if (pseg_check_format(q->format, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    state->format = q->format;
    submit_job(c, q->request_id, q->job, segment_created, q->job ? q->job->n_prompts : 0,
               segmented);
}
