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

/* Milliseconds, rounded as lua/ does. */
static void add_due(pseg_queue_backlog *b, pseg_queue_due *due, int64_t jobs, const mem_job *job)
{
    due[b->n_due++] = (pseg_queue_due){jobs, (job->j.deadline_unix_us + 999) / 1000 * 1000};
}

/* Counted among the `limit` live jobs of the queue that are due first, estimated behind them. */
static void list_due(mem_store *s, const char *model, size_t limit, pseg_queue_reply *r)
{
    pseg_queue_backlog *b = &r->backlog;
    size_t n = 0;
    int64_t jobs = 0;

    for (const mem_job *job = s->jobs; job; job = job->next)
        n += !pseg_job_state_is_terminal(job->j.state);
    const mem_job **all = pseg_arena_calloc(r->arena, n, sizeof(mem_job *));
    pseg_queue_due *due = pseg_arena_calloc(r->arena, n, sizeof *due);
    if (!all || !due) {
        mem_no_memory(r);
        return;
    }
    n = 0;
    for (const mem_job *job = s->jobs; job; job = job->next)
        if (!pseg_job_state_is_terminal(job->j.state))
            all[n++] = job;
    qsort(all, n, sizeof(mem_job *), by_deadline);
    b->due = due;
    for (size_t i = 0; i < n && i < limit; i++)
        if (strcmp(all[i]->j.model, model) == 0)
            add_due(b, due, ++jobs, all[i]);
    for (size_t rank = limit; rank < n;) {
        int64_t share = (int64_t)(rank + 1) * b->live / (int64_t)n;
        if (share > jobs)
            add_due(b, due, jobs = share, all[rank]);
        size_t next = rank * 5 / 4 > rank ? rank * 5 / 4 : rank + 1;
        rank = rank == n - 1 || next < n - 1 ? next : n - 1;
    }
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
    if (b->live && limit)
        list_due(s, model, limit, r);
}
