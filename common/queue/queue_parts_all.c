/* Requests to a queue in parts that more than one part has to answer: most ask all at once, and the
 * last answer to come makes one of them; a claim asks one after another. */
#include "common/queue/queue_parts.h"
#include "common/base/alloc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* ---- asking all ---- */

typedef struct gathering gathering;
typedef struct slot {
    gathering *of;
    size_t part;
} slot;

/* Makes one answer of those of all parts; it owns none of them, but may borrow. r has no error. */
typedef void (*merger)(pseg_queue_reply *r, gathering *g);

struct gathering {
    merger merge;
    bool is_lenient; /* an answer of some is one */
    size_t limit;    /* of a list */
    size_t home;     /* the tenant's part */
    size_t *part_of; /* of each lease of a renewal */
    size_t n_leases;
    pseg_queue_done done;
    void *ud;
    _Atomic size_t n_left;
    size_t n;
    slot slots[PSEG_QUEUE_MAX_PARTS];
    pseg_queue_reply *from[PSEG_QUEUE_MAX_PARTS];
};

static bool is_good(const pseg_queue_reply *r)
{
    return r->err.code == PSEG_OK;
}

static void out_of_memory(pseg_queue_reply *r)
{
    pseg_err_set(&r->err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE,
                 "no memory for an answer of the queue");
}

/* The error that the answer is, or NULL. */
static const pseg_err *error_of(const gathering *g)
{
    const pseg_err *first = NULL;
    size_t n = 0;

    for (size_t i = 0; i < g->n; i++) {
        if (is_good(g->from[i]))
            continue;
        first = first ? first : &g->from[i]->err;
        n++;
    }
    return n == g->n || (n && !g->is_lenient) ? first : NULL;
}

static void finish(gathering *g)
{
    const pseg_err *err = error_of(g);
    pseg_queue_reply *r = queue_reply_new(err);

    if (r->arena && !err && g->merge)
        g->merge(r, g);
    for (size_t i = 0; i < g->n; i++) {
        if (r->arena)
            queue_reply_lend(r, g->from[i]);
        else
            pseg_queue_reply_free(g->from[i]);
    }
    g->done(g->ud, r);
    pseg_free(g->part_of);
    pseg_free(g);
}

static void answered(void *ud, pseg_queue_reply *r)
{
    const slot *s = ud;
    gathering *g = s->of;

    g->from[s->part] = r;
    if (atomic_fetch_sub(&g->n_left, 1) == 1)
        finish(g);
}

static gathering *gathering_new(const pseg_queue *q, merger merge, bool is_lenient, size_t limit,
                                pseg_queue_done done, void *ud)
{
    gathering *g = pseg_calloc(1, sizeof *g);

    if (!g) {
        queue_answer_no_memory(done, ud);
        return NULL;
    }
    g->merge = merge;
    g->is_lenient = is_lenient;
    g->limit = limit;
    g->done = done;
    g->ud = ud;
    g->n = q->n_parts;
    atomic_init(&g->n_left, q->n_parts);
    for (size_t i = 0; i < g->n; i++)
        g->slots[i] = (slot){g, i};
    return g;
}

/* For each part, with its handle and slot. The last answer may come, and end g, within the loop. */
#define EACH_PART(q, g, i) for (size_t i = 0, n_##i = (g) ? (q)->n_parts : 0; i < n_##i; i++)

/* ---- counts ---- */

static void add_stats(pseg_queue_reply *r, gathering *g)
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

static void get_stats(pseg_queue *q, pseg_queue_done done, void *ud)
{
    gathering *g = gathering_new(q, add_stats, false, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_get_stats(q->parts[i], answered, &g->slots[i]);
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

static void add_due(pseg_queue_reply *r, gathering *g)
{
    size_t n = 0;

    for (size_t i = 0; i < g->n; i++)
        n += g->from[i]->backlog.n_due;
    pseg_queue_due *due = pseg_arena_calloc(r->arena, n, sizeof *due);
    if (n && !due) {
        out_of_memory(r);
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
static void add_backlogs(pseg_queue_reply *r, gathering *g)
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

static void get_backlog(pseg_queue *q, const char *model, size_t limit, pseg_queue_done done,
                        void *ud)
{
    gathering *g = gathering_new(q, add_backlogs, false, 0, done, ud);

    EACH_PART(q, g, i)
    pseg_queue_get_backlog(q->parts[i], model, limit, answered, &g->slots[i]);
}

/* Parts take turns: before a job that stands behind n others of its part is begun, n of each other
 * part have been. */
static void add_estimates(pseg_queue_reply *r, gathering *g)
{
    pseg_queue_estimate *to = &r->estimate;

    *to = g->from[g->home]->estimate;
    int64_t ahead = to->ahead;
    for (size_t i = 0; i < g->n; i++) {
        const pseg_queue_estimate *e = &g->from[i]->estimate;
        if (i == g->home || !is_good(g->from[i]))
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

static void home_estimate(pseg_queue_reply *r, gathering *g)
{
    if (is_good(g->from[g->home]))
        add_estimates(r, g);
    else
        r->err = g->from[g->home]->err;
}

static void get_estimate(pseg_queue *q, const pseg_queue_estimate_args *a, pseg_queue_done done,
                         void *ud)
{
    gathering *g = gathering_new(q, home_estimate, true, 0, done, ud);

    if (g)
        g->home = pseg_queue_part_of(q, a->tenant);
    EACH_PART(q, g, i) pseg_queue_get_estimate(q->parts[i], a, answered, &g->slots[i]);
}

/* ---- workers ---- */

static bool has_worker(const pseg_queue_reply *r, const pseg_queue_worker *w)
{
    for (size_t i = 0; i < r->n_workers; i++)
        if (strcmp(r->workers[i].id, w->id) == 0)
            return true;
    return false;
}

static void unite_workers(pseg_queue_reply *r, gathering *g)
{
    size_t n = 0;

    for (size_t i = 0; i < g->n; i++)
        n += g->from[i]->n_workers;
    r->workers = pseg_arena_calloc(r->arena, n, sizeof *r->workers);
    if (n && !r->workers) {
        out_of_memory(r);
        return;
    }
    for (size_t i = 0; i < g->n; i++)
        for (size_t k = 0; k < g->from[i]->n_workers; k++)
            if (!has_worker(r, &g->from[i]->workers[k]))
                r->workers[r->n_workers++] = g->from[i]->workers[k];
}

static void workers(pseg_queue *q, pseg_queue_done done, void *ud)
{
    gathering *g = gathering_new(q, unite_workers, true, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_workers(q->parts[i], answered, &g->slots[i]);
}

static void register_worker(pseg_queue *q, const pseg_queue_worker *w, pseg_queue_done done,
                            void *ud)
{
    gathering *g = gathering_new(q, NULL, true, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_register(q->parts[i], w, answered, &g->slots[i]);
}

static void unregister(pseg_queue *q, const char *worker, pseg_queue_done done, void *ud)
{
    gathering *g = gathering_new(q, NULL, true, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_unregister(q->parts[i], worker, answered, &g->slots[i]);
}

static void sweep(pseg_queue *q, pseg_queue_done done, void *ud)
{
    gathering *g = gathering_new(q, NULL, true, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_sweep(q->parts[i], answered, &g->slots[i]);
}

static int64_t silence_ms(const pseg_queue *q)
{
    int64_t least = INT64_MAX / 2;

    for (size_t i = 0; i < q->n_parts; i++) {
        int64_t ms = pseg_queue_silence_ms(q->parts[i]);
        if (ms < least)
            least = ms;
    }
    return least;
}

/* ---- quarantine: of any tenant, so all are asked ---- */

static int newest_first(const void *a, const void *b)
{
    return strcmp(((const pseg_queue_case *)b)->id, ((const pseg_queue_case *)a)->id);
}

static void merge_cases(pseg_queue_reply *r, gathering *g)
{
    size_t n = 0;

    for (size_t i = 0; i < g->n; i++)
        n += g->from[i]->n_cases;
    r->cases = pseg_arena_calloc(r->arena, n, sizeof *r->cases);
    if (n && !r->cases) {
        out_of_memory(r);
        return;
    }
    for (size_t i = 0; i < g->n; i++)
        for (size_t k = 0; k < g->from[i]->n_cases; k++)
            r->cases[r->n_cases++] = g->from[i]->cases[k];
    if (n)
        qsort(r->cases, n, sizeof *r->cases, newest_first);
    if (r->n_cases > g->limit)
        r->n_cases = g->limit;
}

static void list_cases(pseg_queue *q, const char *after_id, size_t limit, pseg_queue_done done,
                       void *ud)
{
    gathering *g = gathering_new(q, merge_cases, false, limit, done, ud);

    EACH_PART(q, g, i)
    pseg_queue_list_cases(q->parts[i], after_id, limit, answered, &g->slots[i]);
}

/* What the part that has the case says; if none of those that answer has it and another does not
 * answer, that one's error. */
static void take_found(pseg_queue_reply *r, gathering *g)
{
    const pseg_queue_reply *found = NULL, *failed = NULL;

    for (size_t i = 0; i < g->n; i++) {
        const pseg_queue_reply *one = g->from[i];
        if (one->n_cases || one->n_jobs)
            found = one;
        else if (!is_good(one) && (!failed || failed->err.reason == PSEG_R_BROKER_UNAVAILABLE))
            failed = one;
    }
    if (found) {
        r->cases = found->cases;
        r->n_cases = found->n_cases;
        r->jobs = found->jobs;
        r->n_jobs = found->n_jobs;
        r->created = found->created;
    } else if (failed) {
        r->err = failed->err;
    }
}

static void get_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud)
{
    gathering *g = gathering_new(q, take_found, true, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_get_case(q->parts[i], id, answered, &g->slots[i]);
}

static void drop_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud)
{
    gathering *g = gathering_new(q, take_found, true, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_drop_case(q->parts[i], id, answered, &g->slots[i]);
}

static void requeue_case(pseg_queue *q, const char *id, const char *new_id, pseg_queue_done done,
                         void *ud)
{
    gathering *g = gathering_new(q, take_found, true, 0, done, ud);

    EACH_PART(q, g, i)
    pseg_queue_requeue_case(q->parts[i], id, new_id, answered, &g->slots[i]);
}

/* ---- images and features: the key tells which part ---- */

static void fetch_image(pseg_queue *q, const char *image, pseg_queue_done done, void *ud)
{
    pseg_queue_fetch_image(queue_part_of_image(q, image), image, done, ud);
}

static void get_features(pseg_queue *q, const char *key, int64_t ttl_ms, pseg_queue_done done,
                         void *ud)
{
    pseg_queue_get_features(queue_part(q, key), key, ttl_ms, done, ud);
}

static void put_features(pseg_queue *q, const char *key, pseg_bytes data, int64_t budget,
                         int64_t ttl_ms, pseg_queue_done done, void *ud)
{
    int64_t share = budget / (int64_t)q->n_parts;

    pseg_queue_put_features(queue_part(q, key), key, data, share > 0 ? share : 1, ttl_ms, done, ud);
}

/* ---- leases ---- */

/* A part that does not answer has not said that a lease is lost: it is kept, and the fence decides
 * when the job is published. */
static void merge_leases(pseg_queue_reply *r, gathering *g)
{
    size_t at[PSEG_QUEUE_MAX_PARTS] = {0};

    r->leases = pseg_arena_calloc(r->arena, g->n_leases, sizeof *r->leases);
    if (g->n_leases && !r->leases) {
        out_of_memory(r);
        return;
    }
    r->n_leases = g->n_leases;
    for (size_t i = 0; i < g->n_leases; i++) {
        const pseg_queue_reply *from = g->from[g->part_of[i]];
        size_t k = at[g->part_of[i]]++;
        r->leases[i] = k < from->n_leases ? from->leases[k] : PSEG_LEASE_OK;
    }
}

static void renew(pseg_queue *q, const char *worker, const pseg_queue_lease *l, size_t n,
                  pseg_queue_done done, void *ud)
{
    gathering *g = gathering_new(q, merge_leases, true, 0, done, ud);
    pseg_queue_lease *own = g ? pseg_calloc(n ? n : 1, sizeof *own) : NULL;

    if (g)
        g->part_of = pseg_calloc(n ? n : 1, sizeof *g->part_of);
    if (!g || !own || !g->part_of) {
        if (g) {
            queue_answer_no_memory(done, ud);
            pseg_free(g->part_of);
        }
        pseg_free(g);
        pseg_free(own);
        return;
    }
    g->n_leases = n;
    for (size_t i = 0; i < n; i++) {
        pseg_queue_lease one = l[i];
        const pseg_queue *part = queue_part_of_lease(q, &one);
        for (size_t k = 0; k < q->n_parts; k++)
            if (q->parts[k] == part)
                g->part_of[i] = k;
    }
    const size_t *part_of = g->part_of; /* until the last is asked */
    for (size_t k = 0, parts = q->n_parts; k < parts; k++) {
        size_t m = 0;
        for (size_t i = 0; i < n; i++)
            if (part_of[i] == k) {
                own[m] = l[i];
                queue_part_of_lease(q, &own[m++]);
            }
        pseg_queue_renew(q->parts[k], worker, own, m, answered, &g->slots[k]);
    }
    pseg_free(own);
}

/* What a tenant or a lease decides never comes here. */
const queue_ops queue_parts_ops = {
    .close = queue_parts_close,
    .silence_ms = silence_ms,
    .workers = workers,
    .get_stats = get_stats,
    .get_estimate = get_estimate,
    .get_backlog = get_backlog,
    .sweep = sweep,
    .list_cases = list_cases,
    .get_case = get_case,
    .drop_case = drop_case,
    .requeue_case = requeue_case,
    .register_worker = register_worker,
    .unregister = unregister,
    .claim_jobs = queue_parts_claim,
    .fetch_image = fetch_image,
    .get_features = get_features,
    .put_features = put_features,
    .renew = renew,
};
