/* EstimateJob, and the refusal of deadlines that cannot be met. */
#include "scheduler/service/estimate.h"
#include "common/base/clock.h"
#include "scheduler/service/internal.h"
#include "scheduler/service/validate.h"

#include <stdio.h>
#include <string.h>

job_outlook outlook_of(const pseg_queue_estimate *e)
{
    job_outlook o = {0};

    if (e->workers < 1 || e->mean_us < 1)
        return o;
    int64_t before = e->busy + e->ahead - e->workers + 1;
    /* Far from what times can hold: a year of work before it is for ever. */
    double wait = before > 0 ? (double)before * (double)e->mean_us / (double)e->workers : 0,
           longest = 3.2e13;
    o.is_known = true;
    o.wait_us = (int64_t)(wait < longest ? wait : longest);
    o.start_unix_us = e->now_unix_us + o.wait_us;
    o.finish_unix_us = o.start_unix_us + (e->cost_us > 0 ? e->cost_us : e->mean_us);
    return o;
}

void estimate_for(op *o, const char *request_id, const char *model, int64_t phrases,
                  int64_t priority)
{
    pseg_service *s = service_of(o->call);
    pseg_queue_tenant limits = {0};

    if (s->opt.limits_of)
        s->opt.limits_of(s->opt.limits_ud, pseg_rpc_tenant(o->call), &limits);
    const pseg_queue_estimate_args a = {.tenant = pseg_rpc_tenant(o->call),
                                        .model = model,
                                        .model_is_default =
                                            strcmp(model, s->opt.default_model) == 0,
                                        .request_id = request_id,
                                        .phrases = phrases,
                                        .priority = priority,
                                        .weight = limits.weight > 0 ? limits.weight : 1};
    pseg_queue_get_estimate(s->queue, &a, op_done, o);
}

/* ---- refusing ---- */

bool is_infeasible(pseg_err *err, const pseg_queue_estimate *e, int64_t deadline_unix_us)
{
    job_outlook o = outlook_of(e);
    char deadline[32], finish[32];

    if (e->is_known || !o.is_known || o.finish_unix_us <= deadline_unix_us)
        return false;
    pseg_clock_format_unix_us(deadline, deadline_unix_us);
    pseg_clock_format_unix_us(finish, o.finish_unix_us);
    pseg_err_set(
        err, PSEG_R_DEADLINE_INFEASIBLE, 0, PSEG_HERE,
        "the deadline %s cannot be met: %lld jobs wait and %lld run before this one, on %lld "
        "workers at %.3f s each, so it would be done at %s; give it until then, or more "
        "priority, or no deadline",
        deadline, (long long)e->ahead, (long long)e->busy, (long long)e->workers,
        (double)e->mean_us / 1e6, finish);
    pseg_err_field(err, "job.deadline");
    pseg_err_value(err, "%s", deadline);
    pseg_err_limit(err, "%s", finish);
    return true;
}

/* ---- EstimateJob ---- */

static Google__Protobuf__Duration *duration_of(pseg_arena *a, int64_t us)
{
    Google__Protobuf__Duration *d = pseg_arena_calloc(a, 1, sizeof *d);

    if (d) {
        google__protobuf__duration__init(d);
        d->seconds = us / 1000000;
        d->nanos = (int32_t)(us % 1000000) * 1000;
    }
    return d;
}

static void estimated(pseg_rpc_call *c, pseg_queue_reply *r)
{
    const Pseg__V1__EstimateJobRequest *q = state_of(c)->own;
    pseg_arena *a = pseg_rpc_arena(c);
    Pseg__V1__EstimateJobResponse out = PSEG__V1__ESTIMATE_JOB_RESPONSE__INIT;
    const pseg_queue_estimate *e = &r->estimate;

    if (fail_if_error(c, r))
        return;
    job_outlook o = outlook_of(e);
    out.model = (char *)(uintptr_t)state_of(c)->model;
    out.jobs_ahead = e->ahead;
    out.place_in_line = e->ahead + 1;
    out.jobs_running = e->busy;
    out.jobs_waiting = e->waiting;
    out.workers = (uint32_t)e->workers;
    if (e->cost_us > 0)
        out.compute_cost = duration_of(a, e->cost_us);
    if (o.is_known) {
        out.expected_wait = duration_of(a, o.wait_us);
        out.expected_start_time = timestamp_of(a, o.start_unix_us);
        out.expected_finish_time = timestamp_of(a, o.finish_unix_us);
    }
    if (o.is_known && q->deadline)
        out.deadline_outlook =
            o.finish_unix_us <= q->deadline->seconds * 1000000 + q->deadline->nanos / 1000
                ? PSEG__V1__DEADLINE_OUTLOOK__DEADLINE_OUTLOOK_MET
                : PSEG__V1__DEADLINE_OUTLOOK__DEADLINE_OUTLOOK_MISSED;
    pseg_rpc_reply(c, &out.base);
}

void estimate_job(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__EstimateJobRequest *q = msg;
    call_state *state = state_of(c);
    pseg_err e = PSEG_ERR_INIT;

    if (!state) {
        fail_no_memory(c);
        return;
    }
    if (pseg_check_estimate(q, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    state->own = q;
    state->model = *q->model ? q->model : service_of(c)->opt.default_model;
    op *o = op_new(c, estimated);
    if (o)
        estimate_for(o, "", state->model, q->prompts ? q->prompts : 1, q->priority);
}
