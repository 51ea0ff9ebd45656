#include "common/queue/queue_mem_impl.h"
#include "common/base/alloc.h"

#include <stdio.h>
#include <string.h>

#define CASE_KEPT_US (7 * 86400 * (int64_t)1000000)

/* ---- transitions ---- */

mem_share *mem_share_of(mem_store *s, const char *model, const char *tenant, bool make)
{
    mem_share *x = s->shares;

    while (x && (strcmp(x->model, model) != 0 || strcmp(x->tenant, tenant) != 0))
        x = x->next;
    if (x || !make)
        return x;
    x = pseg_calloc(1, sizeof *x);
    if (x) {
        x->model = pseg_strdup(model);
        x->tenant = pseg_strdup(tenant);
    }
    if (!x || !x->model || !x->tenant) {
        if (x) {
            pseg_free(x->model);
            pseg_free(x->tenant);
        }
        pseg_free(x);
        return NULL;
    }
    x->next = s->shares;
    s->shares = x;
    return x;
}

static void activate(mem_store *s, const char *model, const char *tenant)
{
    mem_share *x = mem_share_of(s, model, tenant, true);
    const mem_model *m = mem_model_of(s, model, true);

    if (!x || !m || x->waits)
        return;
    x->waits = true;
    if (x->time < m->clock)
        x->time = m->clock;
}

bool mem_waits_any(const mem_store *s, const char *model, const char *tenant)
{
    for (const mem_job *job = s->jobs; job; job = job->next)
        if (job->in_line && strcmp(job->j.model, model) == 0 &&
            (!tenant || strcmp(job->j.tenant, tenant) == 0))
            return true;
    return false;
}

void mem_left_line(mem_store *s, const char *model, const char *tenant)
{
    mem_share *x = mem_share_of(s, model, tenant, false);

    if (mem_waits_any(s, model, tenant))
        return;
    if (x)
        x->waits = false;
    if (mem_waits_any(s, model, NULL))
        return;
    for (x = s->shares; x; x = x->next)
        if (strcmp(x->model, model) == 0)
            x->time = 0;
    mem_model *m = mem_model_of(s, model, false);
    if (m)
        m->clock = 0;
}

void mem_enqueue(mem_store *s, mem_job *job)
{
    job->in_line = true;
    job->due_us = 0;
    activate(s, job->j.model, job->j.tenant);
    s->ready(s->ud, job->j.model);
}

void mem_note(const mem_store *s, mem_job *job, const char *reason, const char *message)
{
    size_t n = strlen(job->history), old = job->evidence ? strlen(job->evidence) : 0;
    const mem_worker *w = s->workers;
    char *more = pseg_calloc(1, old + 4096);

    snprintf(job->history + n, sizeof job->history - n, "%s%lld: %s, %.120s", n ? "; " : "",
             (long long)job->j.attempts, reason, message);
    while (w && strcmp(w->w.id, job->j.worker) != 0)
        w = w->next;
    if (!more)
        return;
    snprintf(more, old + 4096, "%sattempt %lld at %lld on %s, device %s: %s, %.400s\n%.2500s\n",
             job->evidence ? job->evidence : "", (long long)job->j.attempts,
             (long long)(mem_now_us(s) / 1000), job->j.worker, w ? w->w.device : "unknown", reason,
             message, w && w->w.log ? w->w.log : "");
    pseg_free(job->evidence);
    job->evidence = more;
}

void mem_say(mem_job *job, pseg_reason reason, const char *message)
{
    job->j.reason = reason;
    job->j.message = mem_text_in(job->arena, message);
}

void mem_finish(mem_store *s, mem_job *job, pseg_job_state state)
{
    int64_t now = mem_now_us(s);

    job->j.state = state;
    job->j.finished_unix_us = now;
    job->j.expire_unix_us = now + job->ttl_ms * 1000;
    job->j.cancel_requested = false;
    job->due_us = 0;
    if (job->in_line) {
        job->in_line = false;
        mem_left_line(s, job->j.model, job->j.tenant);
    }
    job->image->uses--;
    s->ended[state]++;
    mem_batch_end(s, job);
    mem_tell(s, job);
}

void mem_quarantine(mem_store *s, mem_job *job)
{
    mem_case *x = pseg_calloc(1, sizeof *x);
    pseg_arena *a = pseg_arena_new(MAX_JOB_BYTES);

    if (!x || !a) {
        pseg_free(x);
        pseg_arena_free(a);
        return;
    }
    x->arena = a;
    x->c = (pseg_queue_case){.id = mem_text_in(a, job->j.id),
                             .tenant = mem_text_in(a, job->j.tenant),
                             .model = mem_text_in(a, job->j.model),
                             .message = mem_text_in(a, job->j.message),
                             .request_id = mem_text_in(a, job->j.request_id),
                             .evidence = mem_text_in(a, job->evidence),
                             .reason = job->j.reason,
                             .attempts = job->j.attempts,
                             .at_unix_us = mem_now_us(s)};
    x->spec = mem_bytes_in(a, job->j.spec);
    x->ttl_ms = job->ttl_ms;
    x->expire_us = mem_now_us(s) + CASE_KEPT_US;
    x->image = job->image;
    x->image->uses++;
    mem_case **at = &s->cases;
    while (*at && strcmp((*at)->c.id, x->c.id) > 0)
        at = &(*at)->next;
    x->next = *at;
    *at = x;
}

void mem_requeue(mem_store *s, mem_job *job, int64_t delay_ms)
{
    job->j.state = PSEG_JOB_QUEUED;
    job->j.worker = "";
    if (delay_ms > 0)
        job->due_us = mem_now_us(s) + (delay_ms < DELAY_MAX_MS ? delay_ms : DELAY_MAX_MS) * 1000;
    else
        mem_enqueue(s, job);
    mem_tell(s, job);
}
