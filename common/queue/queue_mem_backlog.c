#include "common/queue/queue_mem_impl.h"

#include <stdlib.h>
#include <string.h>

/* ---- what waits for a model's workers ---- */

static int by_deadline(const void *a, const void *b)
{
    int64_t x = (*(const mem_job *const *)a)->j.deadline_unix_us,
            y = (*(const mem_job *const *)b)->j.deadline_unix_us;

    return (x > y) - (x < y);
}

/* The model's among the `limit` live jobs of the queue that are due first. */
static void list_deadlines(mem_store *s, const char *model, size_t limit, pseg_queue_reply *r)
{
    size_t n = 0, n_found = 0;

    for (const mem_job *job = s->jobs; job; job = job->next)
        n += !pseg_job_state_is_terminal(job->j.state);
    const mem_job **all = pseg_arena_calloc(r->arena, n, sizeof(mem_job *));
    int64_t *deadlines = pseg_arena_calloc(r->arena, n, sizeof *deadlines);
    if (!all || !deadlines) {
        mem_no_memory(r);
        return;
    }
    n = 0;
    for (const mem_job *job = s->jobs; job; job = job->next)
        if (!pseg_job_state_is_terminal(job->j.state))
            all[n++] = job;
    qsort(all, n, sizeof(mem_job *), by_deadline);
    for (size_t i = 0; i < n && i < limit; i++)
        if (strcmp(all[i]->j.model, model) == 0) /* milliseconds, rounded as lua/ does */
            deadlines[n_found++] = (all[i]->j.deadline_unix_us + 999) / 1000 * 1000;
    r->backlog.deadlines_unix_us = deadlines;
    r->backlog.n_deadlines = n_found;
}

void mem_backlog(mem_store *s, const char *model, size_t limit, pseg_queue_reply *r)
{
    const mem_model *m = mem_model_of(s, model, false);
    pseg_queue_backlog *b = &r->backlog;

    b->now_unix_us = mem_now_us(s);
    b->cost_us = m ? (int64_t)m->cost_us : 0;
    for (const mem_worker *w = s->workers; w; w = w->next)
        b->workers += w->expire_us >= b->now_unix_us && strcmp(w->w.model, model) == 0;
    for (const mem_job *job = s->jobs; job; job = job->next)
        b->live += !pseg_job_state_is_terminal(job->j.state) && strcmp(job->j.model, model) == 0;
    if (b->live)
        list_deadlines(s, model, limit, r);
}
