/* The methods of pseg.v1.AdminService. The caller's "tenant" is the name of his key: the operator,
 * who stands in the log beside what he changed. */
#include "common/base/utf8.h"
#include "pseg/v1/admin.pb-c.h"
#include "scheduler/service/internal.h"
#include "scheduler/service/validate.h"

#include <stdio.h>
#include <string.h>

enum { DEFAULT_PAGE = 50, MAX_PAGE = 100 };

/* Workers may log any bytes, and a message of protobuf holds UTF-8 alone. */
static char *text_of(pseg_arena *a, const char *s)
{
    char *out = pseg_arena_strdup(a, s);

    if (out)
        pseg_utf8_repair(out);
    return out;
}

static Pseg__V1__QuarantinedJob *case_view(pseg_arena *a, const pseg_queue_case *q,
                                           bool with_evidence)
{
    Pseg__V1__QuarantinedJob *v = pseg_arena_calloc(a, 1, sizeof *v);
    char name[PSEG_JOB_ID_LEN + 6];

    if (!v)
        return NULL;
    pseg__v1__quarantined_job__init(v);
    snprintf(name, sizeof name, "jobs/%s", q->id);
    v->name = text_of(a, name);
    v->tenant = text_of(a, q->tenant);
    v->request_id = text_of(a, q->request_id);
    v->model = text_of(a, q->model);
    v->reason = text_of(a, pseg_reason_name(q->reason));
    v->message = text_of(a, q->message);
    v->attempts = q->attempts;
    v->quarantine_time = timestamp_of(a, q->at_unix_us);
    v->evidence = text_of(a, with_evidence ? q->evidence : "");
    return v->name && v->tenant && v->request_id && v->model && v->reason && v->message &&
                   v->evidence
               ? v
               : NULL;
}

/* The call's state with the job that it is about; NULL, with the call failed, if the name is none.
 */
static call_state *about(pseg_rpc_call *c, const char *name)
{
    pseg_err e = PSEG_ERR_INIT;
    call_state *state = state_of(c);
    const char *id;

    if (!state) {
        fail_no_memory(c);
        return NULL;
    }
    if (pseg_check_job_name(&id, name, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return NULL;
    }
    memcpy(state->job_id, id, PSEG_JOB_ID_LEN);
    return state;
}

static void fail_no_case(pseg_rpc_call *c)
{
    pseg_err e = PSEG_ERR_INIT;
    char name[PSEG_JOB_ID_LEN + 6];

    snprintf(name, sizeof name, "jobs/%s", state_of(c)->job_id);
    pseg_err_set(&e, PSEG_R_JOB_NOT_FOUND, 0, PSEG_HERE,
                 "%s is not in quarantine: it never was, or it has left it", name);
    pseg_err_resource(&e, "pseg.v1.QuarantinedJob", name);
    pseg_rpc_fail(c, &e);
}

static void log_act(pseg_rpc_call *c, const char *act, const char *more)
{
    PSEG_INFO(service_of(c)->opt.log, "admin", "%s job=%s by=%s%s", act, state_of(c)->job_id,
              pseg_rpc_tenant(c), more);
}

/* ---- reading ---- */

static void cases_listed(pseg_rpc_call *c, pseg_queue_reply *r)
{
    pseg_arena *a = pseg_rpc_arena(c);
    Pseg__V1__ListQuarantinedJobsResponse out = PSEG__V1__LIST_QUARANTINED_JOBS_RESPONSE__INIT;

    if (fail_if_error(c, r))
        return;
    out.jobs = pseg_arena_calloc(a, r->n_cases, sizeof *out.jobs);
    for (size_t i = 0; out.jobs && i < r->n_cases; i++)
        if ((out.jobs[i] = case_view(a, &r->cases[i], false)))
            out.n_jobs++;
    if (out.n_jobs < r->n_cases) {
        fail_no_memory(c);
        return;
    }
    if (r->n_cases && (int)r->n_cases == state_of(c)->page_size)
        out.next_page_token = out.jobs[r->n_cases - 1]->name + strlen("jobs/");
    pseg_rpc_reply(c, &out.base);
}

static void list_cases(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__ListQuarantinedJobsRequest *q = msg;
    int32_t size = q->page_size ? q->page_size : DEFAULT_PAGE;
    pseg_err e = PSEG_ERR_INIT;

    if (pseg_check_page(size, MAX_PAGE, q->page_token, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    call_state *state = state_of(c);
    op *o = state ? op_new(c, cases_listed) : NULL;
    if (!o) {
        fail_no_memory(c);
        return;
    }
    state->page_size = size;
    pseg_queue_list_cases(service_of(c)->queue, q->page_token, (size_t)size, op_done, o);
}

static void case_shown(pseg_rpc_call *c, pseg_queue_reply *r)
{
    if (fail_if_error(c, r))
        return;
    if (!r->n_cases) {
        fail_no_case(c);
        return;
    }
    Pseg__V1__QuarantinedJob *v = case_view(pseg_rpc_arena(c), &r->cases[0], true);
    if (v)
        pseg_rpc_reply(c, &v->base);
    else
        fail_no_memory(c);
}

static void get_case(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__GetQuarantinedJobRequest *q = msg;
    call_state *state = about(c, q->name);
    op *o = state ? op_new(c, case_shown) : NULL;

    if (o)
        pseg_queue_get_case(service_of(c)->queue, state->job_id, op_done, o);
}

/* ---- changing ---- */

static void case_requeued(pseg_rpc_call *c, pseg_queue_reply *r)
{
    char more[PSEG_JOB_ID_LEN + 8];

    if (fail_if_error(c, r))
        return;
    if (!r->n_jobs) {
        fail_no_case(c);
        return;
    }
    snprintf(more, sizeof more, " as=%s", r->jobs[0].id);
    if (r->created)
        log_act(c, "requeued", more);
    reply_with_job(c, r);
}

static void requeue_case(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__RequeueQuarantinedJobRequest *q = msg;
    call_state *state = about(c, q->name);
    char id[PSEG_JOB_ID_LEN + 1];
    pseg_err e = PSEG_ERR_INIT;

    if (!state)
        return;
    if (pseg_job_new_id(id, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    op *o = op_new(c, case_requeued);
    if (o)
        pseg_queue_requeue_case(service_of(c)->queue, state->job_id, id, op_done, o);
}

static void case_dropped(pseg_rpc_call *c, pseg_queue_reply *r)
{
    Pseg__V1__DropQuarantinedJobResponse out = PSEG__V1__DROP_QUARANTINED_JOB_RESPONSE__INIT;

    if (fail_if_error(c, r))
        return;
    if (!r->n_cases) {
        fail_no_case(c);
        return;
    }
    log_act(c, "dropped", "");
    pseg_rpc_reply(c, &out.base);
}

static void drop_case(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__DropQuarantinedJobRequest *q = msg;
    call_state *state = about(c, q->name);
    op *o = state ? op_new(c, case_dropped) : NULL;

    if (o)
        pseg_queue_drop_case(service_of(c)->queue, state->job_id, op_done, o);
}

/* ---- tenants ---- */

typedef struct limits_list {
    pseg_arena *arena;
    Pseg__V1__ListTenantLimitsResponse out;
    size_t n_room;
    bool failed;
} limits_list;

static void add_limits(void *ud, const char *tenant, const pseg_queue_tenant *t)
{
    limits_list *l = ud;
    Pseg__V1__TenantLimits *v = pseg_arena_calloc(l->arena, 1, sizeof *v);
    size_t room = l->n_room ? 2 * l->n_room : 16;

    if (l->out.n_tenants == l->n_room) {
        Pseg__V1__TenantLimits **more = pseg_arena_calloc(l->arena, room, sizeof *more);
        if (more && l->n_room)
            memcpy(more, l->out.tenants, l->n_room * sizeof *more);
        l->failed = l->failed || !more;
        if (!more)
            return;
        l->out.tenants = more;
        l->n_room = room;
    }
    if (v) {
        pseg__v1__tenant_limits__init(v);
        v->tenant = text_of(l->arena, tenant);
        v->weight = t->weight ? t->weight : 1;
        v->max_jobs = t->max_jobs;
        v->max_bytes = t->max_bytes;
        v->rate = t->rate;
        v->burst = t->burst;
    }
    if (v && v->tenant)
        l->out.tenants[l->out.n_tenants++] = v;
    else
        l->failed = true;
}

static void add_usage(limits_list *l, const pseg_queue_reply *r)
{
    l->out.usage = pseg_arena_calloc(l->arena, r->n_uses, sizeof *l->out.usage);
    Pseg__V1__TenantUsage *all = pseg_arena_calloc(l->arena, r->n_uses, sizeof *all);
    l->failed = l->failed || (r->n_uses && (!l->out.usage || !all));
    for (size_t i = 0; i < r->n_uses && !l->failed; i++) {
        Pseg__V1__TenantUsage *u = &all[i];
        pseg__v1__tenant_usage__init(u);
        u->tenant = text_of(l->arena, r->uses[i].tenant);
        u->jobs = r->uses[i].jobs;
        u->bytes = r->uses[i].image_bytes;
        u->batches = r->uses[i].batches;
        l->failed = !u->tenant;
        l->out.usage[l->out.n_usage++] = u;
    }
}

/* r: with what tenants use; NULL: nobody has asked. */
static void reply_limits(pseg_rpc_call *c, const pseg_queue_reply *r)
{
    const pseg_service_options *o = &service_of(c)->opt;
    limits_list l = {.arena = pseg_rpc_arena(c),
                     .out = PSEG__V1__LIST_TENANT_LIMITS_RESPONSE__INIT};

    if (o->each_limit)
        o->each_limit(o->limits_ud, add_limits, &l);
    if (r)
        add_usage(&l, r);
    if (l.failed)
        fail_no_memory(c);
    else
        pseg_rpc_reply(c, &l.out.base);
}

static void uses_told(pseg_rpc_call *c, pseg_queue_reply *r)
{
    if (!fail_if_error(c, r))
        reply_limits(c, r);
}

static void list_limits(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__ListTenantLimitsRequest *q = msg;

    if (!q->with_usage) {
        reply_limits(c, NULL);
        return;
    }
    op *o = op_new(c, uses_told);
    if (o)
        pseg_queue_get_uses(service_of(c)->queue, op_done, o);
}

#define METHOD(name, type, f)                                               \
    {                                                                       \
        .path = "/pseg.v1.AdminService/" name, .flags = PSEG_RPC_UNARY,     \
        .request = &pseg__v1__##type##_request__descriptor, .on_message = f \
    }

const pseg_rpc_method pseg_admin_methods[] = {
    METHOD("ListQuarantinedJobs", list_quarantined_jobs, list_cases),
    METHOD("GetQuarantinedJob", get_quarantined_job, get_case),
    METHOD("RequeueQuarantinedJob", requeue_quarantined_job, requeue_case),
    METHOD("DropQuarantinedJob", drop_quarantined_job, drop_case),
    METHOD("ListTenantLimits", list_tenant_limits, list_limits),
    {0}};
