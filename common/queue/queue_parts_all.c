/* Requests to a queue in parts that more than one part has to answer. */
#include "common/queue/queue_parts.h"
#include "common/base/alloc.h"

#include <stdlib.h>
#include <string.h>

/* ---- workers ---- */

static bool has_worker(const pseg_queue_reply *r, const pseg_queue_worker *w)
{
    for (size_t i = 0; i < r->n_workers; i++)
        if (strcmp(r->workers[i].id, w->id) == 0)
            return true;
    return false;
}

static void unite_workers(pseg_queue_reply *r, parts_asked *g)
{
    size_t n = 0;

    for (size_t i = 0; i < g->n; i++)
        n += g->from[i]->n_workers;
    r->workers = pseg_arena_calloc(r->arena, n, sizeof *r->workers);
    if (n && !r->workers) {
        parts_out_of_memory(r);
        return;
    }
    for (size_t i = 0; i < g->n; i++)
        for (size_t k = 0; k < g->from[i]->n_workers; k++)
            if (!has_worker(r, &g->from[i]->workers[k]))
                r->workers[r->n_workers++] = g->from[i]->workers[k];
}

static void workers(pseg_queue *q, pseg_queue_done done, void *ud)
{
    parts_asked *g = parts_ask(q, unite_workers, true, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_workers(q->parts[i], parts_answered, &g->slots[i]);
}

static void register_worker(pseg_queue *q, const pseg_queue_worker *w, pseg_queue_done done,
                            void *ud)
{
    parts_asked *g = parts_ask(q, NULL, true, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_register(q->parts[i], w, parts_answered, &g->slots[i]);
}

static void unregister(pseg_queue *q, const char *worker, pseg_queue_done done, void *ud)
{
    parts_asked *g = parts_ask(q, NULL, true, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_unregister(q->parts[i], worker, parts_answered, &g->slots[i]);
}

static void sweep(pseg_queue *q, pseg_queue_done done, void *ud)
{
    parts_asked *g = parts_ask(q, NULL, true, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_sweep(q->parts[i], parts_answered, &g->slots[i]);
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

static void merge_cases(pseg_queue_reply *r, parts_asked *g)
{
    size_t n = 0;

    for (size_t i = 0; i < g->n; i++)
        n += g->from[i]->n_cases;
    r->cases = pseg_arena_calloc(r->arena, n, sizeof *r->cases);
    if (n && !r->cases) {
        parts_out_of_memory(r);
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
    parts_asked *g = parts_ask(q, merge_cases, false, limit, done, ud);

    EACH_PART(q, g, i)
    pseg_queue_list_cases(q->parts[i], after_id, limit, parts_answered, &g->slots[i]);
}

/* What the part that has the case says; if none of those that answer has it and another does not
 * answer, that one's error. */
static void take_found(pseg_queue_reply *r, parts_asked *g)
{
    const pseg_queue_reply *found = NULL, *failed = NULL;

    for (size_t i = 0; i < g->n; i++) {
        const pseg_queue_reply *one = g->from[i];
        if (one->n_cases || one->n_jobs)
            found = one;
        else if (!parts_is_good(one) &&
                 (!failed || failed->err.reason == PSEG_R_BROKER_UNAVAILABLE))
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
    parts_asked *g = parts_ask(q, take_found, true, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_get_case(q->parts[i], id, parts_answered, &g->slots[i]);
}

static void drop_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud)
{
    parts_asked *g = parts_ask(q, take_found, true, 0, done, ud);

    EACH_PART(q, g, i) pseg_queue_drop_case(q->parts[i], id, parts_answered, &g->slots[i]);
}

static void requeue_case(pseg_queue *q, const char *id, const char *new_id, pseg_queue_done done,
                         void *ud)
{
    parts_asked *g = parts_ask(q, take_found, true, 0, done, ud);

    EACH_PART(q, g, i)
    pseg_queue_requeue_case(q->parts[i], id, new_id, parts_answered, &g->slots[i]);
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
static void merge_leases(pseg_queue_reply *r, parts_asked *g)
{
    size_t at[PSEG_QUEUE_MAX_PARTS] = {0};

    r->leases = pseg_arena_calloc(r->arena, g->n_leases, sizeof *r->leases);
    if (g->n_leases && !r->leases) {
        parts_out_of_memory(r);
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
    parts_asked *g = parts_ask(q, merge_leases, true, 0, done, ud);
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
        pseg_queue_renew(q->parts[k], worker, own, m, parts_answered, &g->slots[k]);
    }
    pseg_free(own);
}

/* What a tenant or a lease decides never comes here. */
const queue_ops queue_parts_ops = {
    .close = queue_parts_close,
    .silence_ms = silence_ms,
    .workers = workers,
    .get_stats = queue_parts_stats,
    .get_uses = queue_parts_uses,
    .get_estimate = queue_parts_estimate,
    .get_backlog = queue_parts_backlog,
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
