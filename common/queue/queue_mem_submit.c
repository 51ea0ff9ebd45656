#include "common/queue/queue_mem_impl.h"
#include "common/base/alloc.h"

#include <string.h>

/* ---- submit ---- */

void mem_job_free(mem_job *job)
{
    pseg_arena_free(job->arena);
    pseg_free(job->evidence);
    pseg_free(job);
}

/* The generic cell rate algorithm, as in lua/submit.lua. */
static bool is_too_fast(mem_store *s, const char *tenant, const pseg_queue_tenant *t,
                        pseg_queue_reply *r)
{
    mem_rate *x = s->rates;
    double now = (double)mem_now_us(s), interval = 1e6 / (double)t->rate;

    while (x && strcmp(x->tenant, tenant) != 0)
        x = x->next;
    if (!x && (x = pseg_calloc(1, sizeof *x))) {
        x->tenant = pseg_strdup(tenant);
        x->next = s->rates;
        s->rates = x;
    }
    if (!x || !x->tenant) {
        mem_no_memory(r);
        return true;
    }
    double due = x->due_us > now ? x->due_us : now;
    double burst = (double)(t->burst > 0 ? t->burst : 1);
    if (due > now + burst * interval)
        due = x->due_us = now + burst * interval; /* the clock has been set back */
    double early = due - now - (burst - 1) * interval;
    if (early > 0) {
        pseg_err_set(&r->err, PSEG_R_TENANT_LIMIT, 0, PSEG_HERE,
                     "tenant %s submits more than %lld jobs a second; try again in %.0f ms", tenant,
                     (long long)t->rate, early / 1000);
        return true;
    }
    x->due_us = due + interval;
    return false;
}

static bool is_refused(mem_store *s, const pseg_queue_options *o, const pseg_queue_submit_args *a,
                       pseg_queue_reply *r)
{
    const mem_model *m = mem_model_of(s, a->model, false);
    int64_t live = 0;

    if (!a->model_is_default && !(m && m->seen_us)) {
        pseg_err_set(&r->err, PSEG_R_MODEL_UNKNOWN, 0, PSEG_HERE,
                     "model \"%s\" is served by no worker", a->model);
        return true;
    }
    int64_t own = 0;
    for (const mem_job *job = s->jobs; job; job = job->next) {
        bool lives = !pseg_job_state_is_terminal(job->j.state);
        live += lives;
        own += lives && strcmp(job->j.tenant, a->tenant) == 0;
    }
    if (live >= o->max_jobs) {
        pseg_err_set(&r->err, PSEG_R_QUEUE_FULL, 0, PSEG_HERE,
                     "%lld jobs are alive, the limit is %lld; try again later", (long long)live,
                     (long long)o->max_jobs);
        return true;
    }
    if (a->limits && a->limits->max_jobs > 0 && own >= a->limits->max_jobs) {
        pseg_err_set(&r->err, PSEG_R_TENANT_LIMIT, 0, PSEG_HERE,
                     "%lld jobs of tenant %s are alive, its limit is %lld; try again later",
                     (long long)own, a->tenant, (long long)a->limits->max_jobs);
        return true;
    }
    return false;
}

static mem_job *job_new(const mem_store *s, const pseg_queue_options *o,
                        const pseg_queue_submit_args *a, mem_image *image)
{
    mem_job *job = pseg_calloc(1, sizeof *job);
    pseg_arena *arena = pseg_arena_new(MAX_JOB_BYTES);
    int64_t now = mem_now_us(s), latest = now + o->max_age_ms * 1000;

    if (!job || !arena) {
        pseg_free(job);
        pseg_arena_free(arena);
        return NULL;
    }
    job->arena = arena;
    job->image = image;
    job->ttl_ms = a->ttl_ms;
    job->weight = a->limits && a->limits->weight > 0 ? a->limits->weight : 1;
    job->fingerprint = mem_text_in(arena, a->fingerprint);
    job->j = (pseg_job){.id = mem_text_in(arena, a->id),
                        .tenant = mem_text_in(arena, a->tenant),
                        .request_id = mem_text_in(arena, a->request_id),
                        .model = mem_text_in(arena, a->model),
                        .worker = "",
                        .message = "",
                        .state = PSEG_JOB_QUEUED,
                        .spec = mem_bytes_in(arena, a->spec),
                        .created_unix_us = now,
                        .deadline_unix_us = a->deadline_unix_us};
    if (a->deadline_unix_us <= 0 || a->deadline_unix_us > latest)
        job->j.deadline_unix_us = latest;
    if (strcmp(job->j.id, a->id) != 0 || strcmp(job->j.model, a->model) != 0 ||
        strcmp(job->j.tenant, a->tenant) != 0 || !job->j.spec.data) {
        mem_job_free(job);
        return NULL;
    }
    return job;
}

/* True: the request was made before, and r says what came of it. */
static bool is_repeat(mem_store *s, const pseg_queue_submit_args *a, pseg_queue_reply *r)
{
    mem_job *old = mem_job_of(s, a->id);

    if (old) {
        if (strcmp(old->j.tenant, a->tenant) != 0)
            pseg_err_set(&r->err, PSEG_R_INTERNAL, 0, PSEG_HERE, "job id %s is taken", a->id);
        else
            mem_reply_job(r, old);
        return true;
    }
    for (mem_job *job = s->jobs; job && *a->request_id; job = job->next) {
        if (strcmp(job->j.tenant, a->tenant) != 0 ||
            strcmp(job->j.request_id, a->request_id) != 0 || !mem_job_of(s, job->j.id))
            continue;
        if (strcmp(job->fingerprint, a->fingerprint) != 0)
            pseg_err_set(&r->err, PSEG_R_REQUEST_ID_REUSED, 0, PSEG_HERE,
                         "request_id \"%s\" was used for a job with other content; take a new one",
                         a->request_id);
        else
            mem_reply_job(r, job);
        return true;
    }
    return false;
}

void mem_submit(mem_store *s, const pseg_queue_options *o, const pseg_queue_submit_args *a,
                pseg_queue_reply *r)
{
    char name[192];

    if (is_repeat(s, a, r) || is_refused(s, o, a, r))
        return;
    mem_image_name(name, a->tenant, a->image_sha256);
    mem_image *i = mem_image_of(s, name);
    if (!i && a->content.len == 0) {
        pseg_err_set(&r->err, PSEG_R_IMAGE_NOT_HELD, 0, PSEG_HERE,
                     "image %s is not held; upload it and repeat", a->image_sha256);
        return;
    }
    if (a->limits && a->limits->rate > 0 && is_too_fast(s, a->tenant, a->limits, r))
        return;
    if (!i &&
        !(i = mem_store_image(s, o, name, a->content, a->limits ? a->limits->max_bytes : 0, r)))
        return;
    mem_extend(s, o, i);
    mem_job *job = job_new(s, o, a, i);
    if (!job || !mem_model_of(s, a->model, true)) {
        if (job)
            mem_job_free(job);
        mem_no_memory(r);
        return;
    }
    i->uses++;
    mem_job **at = &s->jobs;
    while (*at && strcmp((*at)->j.id, job->j.id) > 0)
        at = &(*at)->next;
    job->next = *at;
    *at = job;
    s->submitted++;
    s->last_place = s->last_place + 1 > mem_now_us(s) ? s->last_place + 1 : mem_now_us(s);
    job->place = s->last_place - a->priority * HEAD_START_US;
    mem_enqueue(s, job);
    mem_reply_job(r, job);
    r->created = true;
}
