#include "common/queue/queue_mem_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading ---- */

void mem_get(mem_store *s, const char *tenant, const char *const *ids, size_t n,
             pseg_queue_reply *r)
{
    if (!mem_reply_jobs(r, n))
        return;
    for (size_t i = 0; i < n; i++) {
        const mem_job *job = mem_job_of_tenant(s, tenant, ids[i]);
        if (job)
            mem_job_in(r->arena, &r->jobs[i], &job->j);
    }
}

void mem_list(mem_store *s, const char *tenant, const char *after_id, size_t limit,
              pseg_queue_reply *r)
{
    size_t n = 0;
    const char *last = "";

    if (!mem_reply_jobs(r, limit))
        return;
    for (mem_job *job = s->jobs; job && n < limit; job = job->next) {
        if ((*after_id && strcmp(job->j.id, after_id) >= 0) ||
            !mem_job_of_tenant(s, tenant, job->j.id))
            continue;
        mem_job_in(r->arena, &r->jobs[n++], &job->j);
        last = job->j.id;
    }
    r->n_jobs = n;
    r->next_id = mem_text_in(r->arena, n == limit ? last : "");
}

void mem_masks(mem_store *s, const char *tenant, const char *id, const uint32_t *indexes, size_t n,
               pseg_queue_reply *r)
{
    const mem_job *job = mem_job_of_tenant(s, tenant, id);

    if (!job)
        return;
    mem_reply_job(r, job);
    mem_reply_blobs(r, n);
    for (size_t i = 0; i < r->n_blobs; i++)
        if (indexes[i] < job->n_masks)
            r->blobs[i] = mem_bytes_in(r->arena, job->masks[indexes[i]]);
}

void mem_workers(mem_store *s, pseg_queue_reply *r)
{
    int64_t now = mem_now_us(s);
    size_t n = 0;

    for (const mem_worker *w = s->workers; w; w = w->next)
        n++;
    r->workers = pseg_arena_calloc(r->arena, n, sizeof *r->workers);
    if (!r->workers) {
        mem_no_memory(r);
        return;
    }
    for (const mem_worker *w = s->workers; w; w = w->next)
        if (w->expire_us >= now)
            r->workers[r->n_workers++] = (pseg_queue_worker){
                mem_text_in(r->arena, w->w.id),      mem_text_in(r->arena, w->w.model),
                mem_text_in(r->arena, w->w.digest),  mem_text_in(r->arena, w->w.device),
                mem_text_in(r->arena, w->w.version), ""};
}

void mem_stats(mem_store *s, pseg_queue_reply *r)
{
    r->stats = (pseg_queue_stats){.image_bytes = s->image_bytes,
                                  .submitted = s->submitted,
                                  .succeeded = s->ended[PSEG_JOB_SUCCEEDED],
                                  .failed = s->ended[PSEG_JOB_FAILED],
                                  .cancelled = s->ended[PSEG_JOB_CANCELLED],
                                  .expired = s->ended[PSEG_JOB_EXPIRED]};
    for (const mem_job *job = s->jobs; job; job = job->next) {
        r->stats.live += !pseg_job_state_is_terminal(job->j.state);
        r->stats.leased += job->j.state == PSEG_JOB_RUNNING;
        r->stats.delayed += job->due_us != 0;
    }
    for (const mem_case *x = s->cases; x; x = x->next)
        r->stats.quarantined++;
}

/* The tenant's, made if it has none yet; room for it is there. */
static pseg_queue_use *use_of(pseg_queue_reply *r, const char *tenant)
{
    for (size_t i = 0; i < r->n_uses; i++)
        if (strcmp(r->uses[i].tenant, tenant) == 0)
            return &r->uses[i];
    r->uses[r->n_uses] = (pseg_queue_use){.tenant = mem_text_in(r->arena, tenant)};
    return &r->uses[r->n_uses++];
}

static int by_tenant(const void *a, const void *b)
{
    return strcmp(((const pseg_queue_use *)a)->tenant, ((const pseg_queue_use *)b)->tenant);
}

void mem_uses(mem_store *s, pseg_queue_reply *r)
{
    char tenant[192];
    size_t n = 0;

    for (const mem_job *job = s->jobs; job; job = job->next)
        n++;
    for (const mem_image *i = s->images; i; i = i->next)
        n++;
    r->uses = pseg_arena_calloc(r->arena, n + 1, sizeof *r->uses);
    if (!r->uses) {
        mem_no_memory(r);
        return;
    }
    for (const mem_job *job = s->jobs; job; job = job->next)
        if (!pseg_job_state_is_terminal(job->j.state))
            use_of(r, job->j.tenant)->jobs++;
    for (const mem_image *i = s->images; i; i = i->next) {
        snprintf(tenant, sizeof tenant, "%.*s", (int)strcspn(i->name, ":"), i->name);
        use_of(r, tenant)->image_bytes += (int64_t)i->len;
    }
    for (size_t k = 0; k < r->n_uses; k++)
        for (const mem_batch *b = s->batches; b; b = b->next)
            r->uses[k].batches += strcmp(b->tenant, r->uses[k].tenant) == 0;
    if (r->n_uses)
        qsort(r->uses, r->n_uses, sizeof *r->uses, by_tenant);
}

/* ---- for clients ---- */

void mem_cancel(mem_store *s, const char *tenant, const char *id, pseg_queue_reply *r)
{
    mem_job *job = mem_job_of_tenant(s, tenant, id);

    if (!job)
        return;
    if (job->j.state == PSEG_JOB_QUEUED)
        mem_finish(s, job, PSEG_JOB_CANCELLED);
    else if (job->j.state == PSEG_JOB_RUNNING)
        job->j.cancel_requested = true;
    mem_reply_job(r, job);
}
