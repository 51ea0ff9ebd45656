#include "scheduler/service/internal.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <string.h>

/* ---- asking the queue ---- */

void fail_no_memory(pseg_rpc_call *c)
{
    pseg_err e = PSEG_ERR_INIT;

    pseg_err_set(&e, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE,
                 "the scheduler is short of memory; try again later");
    pseg_rpc_fail(c, &e);
}

bool fail_if_error(pseg_rpc_call *c, const pseg_queue_reply *r)
{
    pseg_err e = r->err;
    const call_state *state = pseg_rpc_state(c);

    if (e.code == PSEG_OK)
        return false;
    if (state && state->model) /* CreateJob or Segment */
        switch (e.reason) {
        case PSEG_R_MODEL_UNKNOWN:
            pseg_err_field(&e, state->request_id ? "job.model" : "model");
            pseg_err_resource(&e, "pseg.v1.Model", state->model);
            break;
        case PSEG_R_IMAGE_NOT_HELD:
            pseg_err_field(&e, "job.sha256");
            pseg_err_resource(&e, "pseg.v1.Image", state->image_sha256);
            break;
        case PSEG_R_REQUEST_ID_REUSED:
            pseg_err_field(&e, "request_id");
            pseg_err_resource(&e, "pseg.v1.Job", state->request_id);
            break;
        default:
            break;
        }
    pseg_rpc_fail(c, &e);
    return true;
}

void fail_job_not_found(pseg_rpc_call *c)
{
    pseg_err e = PSEG_ERR_INIT;
    const call_state *state = pseg_rpc_state(c);
    char name[PSEG_JOB_ID_LEN + 6];

    snprintf(name, sizeof name, "jobs/%s", state ? state->job_id : "");
    pseg_err_set(&e, PSEG_R_JOB_NOT_FOUND, 0, PSEG_HERE,
                 "no job %s: it never was, it is another tenant's, or its time to live is over",
                 name);
    pseg_err_resource(&e, "pseg.v1.Job", name);
    pseg_rpc_fail(c, &e);
}

int64_t deadline_margin_ms(int64_t left_ms)
{
    return left_ms / 3 < 200 ? left_ms / 3 : 200;
}

/* A client whose deadline passes learns nothing; one that is told why can act on it. */
static void op_is_late(pseg_rpc_timer *t, void *ud)
{
    op *o = ud;
    pseg_err e = PSEG_ERR_INIT;

    (void)t;
    pseg_err_set(&e, PSEG_R_BROKER_UNAVAILABLE, 0, PSEG_HERE,
                 "redis has not answered within the call's deadline; the outcome is unknown, "
                 "repeating is safe with a request_id");
    pseg_rpc_fail(o->call, &e);
}

op *op_new(pseg_rpc_call *c, void (*then)(pseg_rpc_call *, pseg_queue_reply *))
{
    op *o = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *o);

    if (!o) {
        fail_no_memory(c);
        return NULL;
    }
    return op_begin(o, c, then);
}

op *op_begin(op *o, pseg_rpc_call *c, void (*then)(pseg_rpc_call *, pseg_queue_reply *))
{
    o->ticket = pseg_rpc_hold(c);
    if (!o->ticket) {
        fail_no_memory(c);
        return NULL;
    }
    o->call = c;
    o->then = then;
    int64_t left = pseg_rpc_ms_left(c);
    if (left != INT64_MAX)
        pseg_rpc_timer_set(pseg_rpc_loop_of(c), &o->guard, left - deadline_margin_ms(left),
                           op_is_late, o);
    return o;
}

static void op_resume(pseg_rpc_call *c, void *arg)
{
    op *o = arg;
    pseg_queue_reply *r = o->reply; /* `then` may use o for the next request */

    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &o->guard);
    if (!pseg_rpc_is_over(c))
        o->then(c, r);
    call_state *state = pseg_rpc_state(c);
    if (state && state->kept == r)
        state->kept = NULL;
    else
        pseg_queue_reply_free(r);
}

void op_done(void *ud, pseg_queue_reply *r)
{
    op *o = ud;

    o->reply = r;
    pseg_rpc_post(o->ticket, op_resume, o);
}

call_state *state_of(pseg_rpc_call *c)
{
    call_state *s = pseg_rpc_state(c);

    if (!s) {
        s = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *s);
        pseg_rpc_set_state(c, s);
    }
    return s;
}

/* ---- the service ---- */

pseg_status pseg_service_new(pseg_service **out, const pseg_service_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_service *s = pseg_calloc(1, sizeof *s);

    *out = NULL;
    if (!s)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the service");
    s->opt = *o;
    pthread_mutex_init(&s->waiters.mu, NULL);
    pthread_mutex_init(&s->held.mu, NULL);
    pthread_mutex_init(&s->encode_mu, NULL);
    pseg_cond_init(&s->encode_cv);
    watch_table_init(&s->watches);
    upload_shares_init(&s->uploads, o->max_upload_bytes, o->has_tenants);
    result_table_init(&s->results);
    *out = s;
out:
    return rc;
}

pseg_status pseg_service_start(pseg_service *s, pseg_queue *q, pseg_err *err)
{
    s->queue = q;
    return encoders_start(s, err);
}

void pseg_service_free(pseg_service *s)
{
    if (!s)
        return;
    encoders_stop(s);
    result_table_deinit(&s->results);
    upload_shares_deinit(&s->uploads);
    watch_table_deinit(&s->watches);
    pthread_mutex_destroy(&s->waiters.mu);
    pthread_mutex_destroy(&s->held.mu);
    pthread_cond_destroy(&s->encode_cv);
    pthread_mutex_destroy(&s->encode_mu);
    pseg_free(s);
}

void pseg_service_on_event(void *ud, const pseg_queue_event *e)
{
    pseg_service *s = ud;

    wait_on_event(s, e);
    watch_on_event(&s->watches, e);
    results_on_event(&s->results, e);
}

pseg_reason pseg_service_text_reason(const ProtobufCMessageDescriptor *message,
                                     const ProtobufCFieldDescriptor *field)
{
    (void)field;
    return message == &pseg__v1__prompt__descriptor ? PSEG_R_PROMPT_NOT_TEXT
                                                    : PSEG_R_REQUEST_MALFORMED;
}

#define METHOD(name, kind, type, ...)                                \
    {                                                                \
        .path = "/pseg.v1.SegmentationService/" name, .flags = kind, \
        .request = &pseg__v1__##type##__descriptor, __VA_ARGS__      \
    }

const pseg_rpc_method pseg_service_methods[] = {
    METHOD("CreateJob", PSEG_RPC_UNARY, create_job_request, .on_message = create_job),
    METHOD("Segment", PSEG_RPC_UNARY, segment_request, .on_message = segment,
           .on_drain = wait_drain, .on_end = segment_end),
    METHOD("UploadImage", PSEG_RPC_CLIENT_STREAM, upload_image_request, .on_message = upload_image,
           .on_drain = upload_drain, .on_end = upload_end),
    METHOD("BatchCheckImages", PSEG_RPC_UNARY, batch_check_images_request,
           .on_message = batch_check_images),
    METHOD("GetJob", PSEG_RPC_UNARY, get_job_request, .on_message = get_job),
    METHOD("WaitJob", PSEG_RPC_UNARY, wait_job_request, .on_message = wait_job,
           .on_drain = wait_drain, .on_end = wait_end),
    METHOD("ListJobs", PSEG_RPC_UNARY, list_jobs_request, .on_message = list_jobs),
    METHOD("CancelJob", PSEG_RPC_UNARY, cancel_job_request, .on_message = cancel_job),
    METHOD("FetchMasks", PSEG_RPC_SERVER_STREAM, fetch_masks_request, .on_message = fetch_masks,
           .on_writable = fetch_writable, .on_end = fetch_end),
    METHOD("ListModels", PSEG_RPC_UNARY, list_models_request, .on_message = list_models),
    METHOD("EstimateJob", PSEG_RPC_UNARY, estimate_job_request, .on_message = estimate_job),
    {0}};
