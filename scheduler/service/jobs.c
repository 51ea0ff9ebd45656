/* GetJob, WaitJob, ListJobs, CancelJob, ListModels. */
#include "scheduler/service/internal.h"
#include "scheduler/service/validate.h"

#include <string.h>

/* The id of a request that names a job; NULL, with the call failed, if the name is no job's. */
static const char *id_or_fail(pseg_rpc_call *c, const char *name)
{
    pseg_err e = PSEG_ERR_INIT;
    call_state *state = state_of(c);
    const char *id;

    if (pseg_check_job_name(&id, name, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return NULL;
    }
    if (!state) {
        fail_no_memory(c);
        return NULL;
    }
    memcpy(state->job_id, id, PSEG_JOB_ID_LEN);
    return id;
}

void get_job(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__GetJobRequest *q = msg;
    const char *id = id_or_fail(c, q->name);
    op *o = id ? op_new(c, reply_with_job) : NULL;

    if (o)
        pseg_queue_get(service_of(c)->queue, pseg_rpc_tenant(c), &id, 1, op_done, o);
}

void wait_job(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__WaitJobRequest *q = msg;
    const char *id = id_or_fail(c, q->name);

    if (id)
        wait_for_job(c, id, 0, reply_with_job);
}

void cancel_job(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__CancelJobRequest *q = msg;
    const char *id = id_or_fail(c, q->name);
    op *o = id ? op_new(c, reply_with_job) : NULL;

    if (o)
        pseg_queue_cancel(service_of(c)->queue, pseg_rpc_tenant(c), id, op_done, o);
}

/* ---- ListJobs ---- */

/* Clients take replies of 4 MiB unless told otherwise; a page ends before that. */
#define MAX_PAGE_BYTES ((size_t)3 << 20)

static bool is_wanted(const Pseg__V1__ListJobsRequest *q, pseg_job_state state)
{
    for (size_t i = 0; i < q->n_states; i++)
        if ((int)q->states[i] == (int)state)
            return true;
    return q->n_states == 0;
}

static void listed(pseg_rpc_call *c, pseg_queue_reply *r)
{
    pseg_arena *a = pseg_rpc_arena(c);
    const Pseg__V1__ListJobsRequest *q = state_of(c)->list;
    Pseg__V1__ListJobsResponse out = PSEG__V1__LIST_JOBS_RESPONSE__INIT;
    pseg_err e = PSEG_ERR_INIT;

    if (fail_if_error(c, r))
        return;
    out.jobs = pseg_arena_calloc(a, r->n_jobs, sizeof *out.jobs);
    if (!out.jobs) {
        fail_no_memory(c);
        return;
    }
    size_t bytes = 0;
    const char *next = r->next_id, *last = NULL;
    for (size_t i = 0; i < r->n_jobs; i++) {
        if (!r->jobs[i].id)
            continue;
        if (is_wanted(q, r->jobs[i].state)) {
            Pseg__V1__Job *j = job_view(a, &r->jobs[i], &e);
            if (!j) {
                pseg_rpc_fail(c, &e);
                return;
            }
            j->durability = (Pseg__V1__Durability)(service_of(c)->opt.durability + 1);
            bytes += pseg__v1__job__get_packed_size(j);
            if (bytes > MAX_PAGE_BYTES && out.n_jobs > 0) {
                next = last;
                break;
            }
            out.jobs[out.n_jobs++] = j;
        }
        last = r->jobs[i].id;
    }
    out.next_page_token = (char *)(uintptr_t)next;
    pseg_rpc_reply(c, &out.base);
}

void list_jobs(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__ListJobsRequest *q = msg;
    pseg_err e = PSEG_ERR_INIT;
    int32_t size = q->page_size ? q->page_size : PSEG_DEFAULT_PAGE_SIZE;

    if (pseg_check_page(size, PSEG_MAX_PAGE_SIZE, q->page_token, &e) != PSEG_OK ||
        pseg_check_states(q->states, q->n_states, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    call_state *state = state_of(c);
    op *o = state ? op_new(c, listed) : NULL;
    if (!o) {
        fail_no_memory(c);
        return;
    }
    state->list = q;
    pseg_queue_list(service_of(c)->queue, pseg_rpc_tenant(c), q->page_token, (size_t)size, op_done,
                    o);
}

/* ---- ListModels ---- */

static Pseg__V1__Model *model_of(Pseg__V1__ListModelsResponse *out, pseg_arena *a, const char *name,
                                 const char *digest)
{
    for (size_t i = 0; i < out->n_models; i++)
        if (strcmp(out->models[i]->name, name) == 0 && strcmp(out->models[i]->digest, digest) == 0)
            return out->models[i];
    Pseg__V1__Model *m = pseg_arena_calloc(a, 1, sizeof *m);
    if (m) {
        pseg__v1__model__init(m);
        m->name = (char *)(uintptr_t)name;
        m->digest = (char *)(uintptr_t)digest;
        out->models[out->n_models++] = m;
    }
    return m;
}

static void models_listed(pseg_rpc_call *c, pseg_queue_reply *r)
{
    pseg_arena *a = pseg_rpc_arena(c);
    Pseg__V1__ListModelsResponse out = PSEG__V1__LIST_MODELS_RESPONSE__INIT;

    if (fail_if_error(c, r))
        return;
    out.models = pseg_arena_calloc(a, r->n_workers, sizeof *out.models);
    if (!out.models) {
        fail_no_memory(c);
        return;
    }
    for (size_t i = 0; i < r->n_workers; i++) {
        Pseg__V1__Model *m = model_of(&out, a, r->workers[i].model, r->workers[i].digest);
        if (!m) {
            fail_no_memory(c);
            return;
        }
        m->workers++;
        m->is_default = strcmp(m->name, service_of(c)->opt.default_model) == 0;
    }
    for (size_t i = 1; i < out.n_models; i++)
        if (out.models[i]->is_default && !out.models[0]->is_default) {
            Pseg__V1__Model *m = out.models[0];
            out.models[0] = out.models[i];
            out.models[i] = m;
        }
    pseg_rpc_reply(c, &out.base);
}

void list_models(pseg_rpc_call *c, const void *msg)
{
    op *o = op_new(c, models_listed);

    (void)msg;
    if (o)
        pseg_queue_workers(service_of(c)->queue, op_done, o);
}
