/* What is counted over all parts of a queue. */
#include "common/queue/queue_parts.h"

#include <stdlib.h>
#include <string.h>

static void add_stats(pseg_queue_reply *r, parts_asked *g)
{
    pseg_queue_stats *to = &r->stats;

    for (size_t i = 0; i < g->n; i++) {
        const pseg_queue_stats *s = &g->from[i]->stats;
        to->live += s->live;
        to->leased += s->leased;
        to->delayed += s->delayed;
        to->image_bytes += s->image_bytes;
        to->submitted += s->submitted;
        to->succeeded += s->succeeded;
        to->failed += s->failed;
        to->cancelled += s->cancelled;
        to->expired += s->expired;
        to->quarantined += s->quarantined;
    }
}

void queue_parts_stats(pseg_queue *q, pseg_queue_done done, void *ud)
{
    parts_asked *g = parts_ask(q, add_stats, false, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_get_stats(q->parts[i], parts_answered, &g->slots[i]);
}

static int by_tenant(const void *a, const void *b)
{
    return strcmp(((const pseg_queue_use *)a)->tenant, ((const pseg_queue_use *)b)->tenant);
}

/* Each tenant is in one part. */
static void unite_uses(pseg_queue_reply *r, parts_asked *g)
{
    size_t n = 0;

    for (size_t i = 0; i < g->n; i++)
        n += g->from[i]->n_uses;
    r->uses = pseg_arena_calloc(r->arena, n, sizeof *r->uses);
    if (n && !r->uses) {
        parts_out_of_memory(r);
        return;
    }
    for (size_t i = 0; i < g->n; i++)
        for (size_t k = 0; k < g->from[i]->n_uses; k++)
            r->uses[r->n_uses++] = g->from[i]->uses[k];
    if (n)
        qsort(r->uses, n, sizeof *r->uses, by_tenant);
}

void queue_parts_uses(pseg_queue *q, pseg_queue_done done, void *ud)
{
    parts_asked *g = parts_ask(q, unite_uses, false, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_get_uses(q->parts[i], parts_answered, &g->slots[i]);
}

/* How many of a part are due by then. */
static int64_t due_by(const pseg_queue_backlog *b, int64_t deadline_unix_us)
{
    int64_t jobs = 0;

    for (size_t i = 0; i < b->n_due && b->due[i].deadline_unix_us <= deadline_unix_us; i++)
        jobs = b->due[i].jobs;
    return jobs;
}

static int by_deadline(const void *a, const void *b)
{
    const pseg_queue_due *x = a, *y = b;

    return (x->deadline_unix_us > y->deadline_unix_us) -
           (x->deadline_unix_us < y->deadline_unix_us);
}

static void add_due(pseg_queue_reply *r, parts_asked *g)
{
    size_t n = 0;

    for (size_t i = 0; i < g->n; i++)
        n += g->from[i]->backlog.n_due;
    pseg_queue_due *due = pseg_arena_calloc(r->arena, n, sizeof *due);
    if (n && !due) {
        parts_out_of_memory(r);
        return;
    }
    n = 0;
    for (size_t i = 0; i < g->n; i++)
        for (size_t k = 0; k < g->from[i]->backlog.n_due; k++)
            due[n++] = g->from[i]->backlog.due[k];
    if (n)
        qsort(due, n, sizeof *due, by_deadline);
    for (size_t k = 0; k < n; k++) {
        due[k].jobs = 0;
        for (size_t i = 0; i < g->n; i++)
            due[k].jobs += due_by(&g->from[i]->backlog, due[k].deadline_unix_us);
    }
    r->backlog.due = due;
    r->backlog.n_due = n;
}

/* The workers of all parts are the same; a job's cost is the mean of the parts, by their jobs. */
static void add_backlogs(pseg_queue_reply *r, parts_asked *g)
{
    pseg_queue_backlog *to = &r->backlog;
    double cost = 0, weights = 0;

    for (size_t i = 0; i < g->n; i++) {
        const pseg_queue_backlog *b = &g->from[i]->backlog;
        double weight = (double)b->live + 1e-6;
        to->live += b->live;
        if (b->workers > to->workers)
            to->workers = b->workers;
        if (b->now_unix_us > to->now_unix_us)
            to->now_unix_us = b->now_unix_us;
        if (b->cost_us) {
            cost += weight * (double)b->cost_us;
            weights += weight;
        }
    }
    to->cost_us = weights > 0 ? (int64_t)(cost / weights + 0.5) : 0;
    add_due(r, g);
}

void queue_parts_backlog(pseg_queue *q, const char *model, size_t limit, pseg_queue_done done,
                         void *ud)
{
    parts_asked *g = parts_ask(q, add_backlogs, false, 0, done, ud);

    EACH_PART(q, g, i)
    pseg_queue_get_backlog(q->parts[i], model, limit, parts_answered, &g->slots[i]);
}

/* Parts take turns: before a job that stands behind n others of its part is begun, n of each other
 * part have been. */
static void add_estimates(pseg_queue_reply *r, parts_asked *g)
{
    pseg_queue_estimate *to = &r->estimate;

    *to = g->from[g->home]->estimate;
    int64_t ahead = to->ahead;
    for (size_t i = 0; i < g->n; i++) {
        const pseg_queue_estimate *e = &g->from[i]->estimate;
        if (i == g->home || !parts_is_good(g->from[i]))
            continue;
        if (e->workers > to->workers)
            to->workers = e->workers;
        to->busy += e->busy;
        to->waiting += e->waiting;
        to->ahead += e->waiting < ahead ? e->waiting : ahead;
        if (!to->mean_us) {
            to->mean_us = e->mean_us;
            to->cost_us = e->cost_us;
        }
    }
}

static void home_estimate(pseg_queue_reply *r, parts_asked *g)
{
    if (parts_is_good(g->from[g->home]))
        add_estimates(r, g);
    else
        r->err = g->from[g->home]->err;
}

void queue_parts_estimate(pseg_queue *q, const pseg_queue_estimate_args *a, pseg_queue_done done,
                          void *ud)
{
    parts_asked *g = parts_ask(q, home_estimate, true, 0, done, ud);

    if (g)
        g->home = pseg_queue_part_of(q, a->tenant);
    EACH_PART(q, g, i) pseg_queue_get_estimate(q->parts[i], a, parts_answered, &g->slots[i]);
}
