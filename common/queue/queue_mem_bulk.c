/* Batches: lua/bulk.lua and lua/items.lua in C. */
#include "common/queue/queue_mem_impl.h"
#include "common/base/alloc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCHES_MAX = 1000, RATE_OVER = 1000 };

struct mem_end {
    int64_t seq, at_us;
    pseg_job_state state;
    char *custom_id, *message;
    char job_id[PSEG_JOB_ID_LEN + 1]; /* "": refused */
    pseg_reason refusal;
};

static mem_batch *batch_of(mem_store *s, const char *tenant, const char *id)
{
    mem_batch *b = s->batches;

    while (b && (strcmp(b->id, id) != 0 || strcmp(b->tenant, tenant) != 0))
        b = b->next;
    return b;
}

static void batch_free(mem_batch *b)
{
    for (size_t i = 0; i < b->n_ends; i++) {
        pseg_free(b->ends[i].custom_id);
        pseg_free(b->ends[i].message);
    }
    pseg_free(b->ends);
    pseg_free(b->tenant);
    pseg_free(b->id);
    pseg_free(b->labels);
    pseg_free(b);
}

/* ---- views ---- */

static int64_t left_of(const mem_batch *b)
{
    return b->next_seq - 1 - (int64_t)b->n_ends;
}

static int64_t expire_us(const mem_store *s, const mem_batch *b)
{
    int64_t from = mem_now_us(s);

    if (left_of(b) <= 0)
        from = b->n_ends ? b->ends[b->n_ends - 1].at_us : b->created_us;
    return from + b->ttl_ms * 1000;
}

static int64_t finish_us(const mem_store *s, const mem_batch *b)
{
    int64_t left = left_of(b), now = mem_now_us(s);

    if (!b->sealed || left <= 0 || b->n_ends == 0)
        return 0;
    size_t n = b->n_ends < RATE_OVER ? b->n_ends : RATE_OVER;
    int64_t took = now - b->ends[b->n_ends - n].at_us;
    return now + left * (took > 1 ? took : 1) / (int64_t)n;
}

static bool reply_room(pseg_queue_reply *r, size_t n)
{
    r->batches = pseg_arena_calloc(r->arena, n, sizeof *r->batches);
    if (!r->batches)
        mem_no_memory(r);
    return r->batches != NULL;
}

static void reply_batch(const mem_store *s, pseg_queue_reply *r, const mem_batch *b)
{
    pseg_queue_batch *v = &r->batches[r->n_batches++];

    *v = (pseg_queue_batch){.id = mem_text_in(r->arena, b->id),
                            .labels = mem_bytes_in(r->arena, (pseg_bytes){b->labels, b->n_labels}),
                            .created_unix_us = b->created_us,
                            .expire_unix_us = expire_us(s, b),
                            .finish_unix_us = finish_us(s, b),
                            .ttl_ms = b->ttl_ms,
                            .next_seq = b->next_seq,
                            .sealed = b->sealed,
                            .cancel_requested = b->cancel,
                            .refused = b->refused,
                            .n_ended = (int64_t)b->n_ends};
    memcpy(v->ended, b->ended, sizeof v->ended);
}

/* ---- making and reading ---- */

static mem_batch *batch_new(const mem_store *s, const char *tenant, const char *id, int64_t ttl_ms,
                            pseg_bytes labels)
{
    mem_batch *b = pseg_calloc(1, sizeof *b);

    if (!b)
        return NULL;
    b->tenant = pseg_strdup(tenant);
    b->id = pseg_strdup(id);
    b->labels = pseg_calloc(1, labels.len + 1);
    if (!b->tenant || !b->id || !b->labels) {
        batch_free(b);
        return NULL;
    }
    if (labels.len)
        memcpy(b->labels, labels.data, labels.len);
    b->n_labels = labels.len;
    b->ttl_ms = ttl_ms;
    b->next_seq = 1;
    b->created_us = b->place = mem_now_us(s);
    if (s->batches && b->place <= s->batches->place)
        b->place = s->batches->place + 1;
    return b;
}

void mem_create_batch(mem_store *s, const char *tenant, const char *id, int64_t ttl_ms,
                      pseg_bytes labels, pseg_queue_reply *r)
{
    mem_batch *b = batch_of(s, tenant, id);
    int n = 0;

    if (!b) {
        for (const mem_batch *other = s->batches; other; other = other->next)
            n += strcmp(other->tenant, tenant) == 0;
        if (n >= BATCHES_MAX) {
            pseg_err_set(&r->err, PSEG_R_BATCH_LIMIT, 0, PSEG_HERE,
                         "tenant %s has %d batches, the limit is %d; they go when their time to "
                         "live is over",
                         tenant, n, BATCHES_MAX);
            return;
        }
        b = batch_new(s, tenant, id, ttl_ms, labels);
        if (!b) {
            mem_no_memory(r);
            return;
        }
        b->next = s->batches;
        s->batches = b;
        r->created = true;
    }
    if (reply_room(r, 1))
        reply_batch(s, r, b);
}

void mem_get_batch(mem_store *s, const char *tenant, const char *id, pseg_queue_reply *r)
{
    const mem_batch *b = batch_of(s, tenant, id);

    if (b && reply_room(r, 1))
        reply_batch(s, r, b);
}

void mem_list_batches(mem_store *s, const char *tenant, const char *token, size_t limit,
                      pseg_queue_reply *r)
{
    int64_t before = *token ? strtoll(token, NULL, 10) : INT64_MAX;
    char last[24] = "";

    if (!reply_room(r, limit))
        return;
    for (const mem_batch *b = s->batches; b && r->n_batches < limit; b = b->next) {
        if (b->place >= before || strcmp(b->tenant, tenant) != 0)
            continue;
        reply_batch(s, r, b);
        snprintf(last, sizeof last, "%lld", (long long)b->place);
    }
    r->next_id = mem_text_in(r->arena, r->n_batches == limit ? last : "");
}

static void fail_not_found(pseg_queue_reply *r, const char *id)
{
    pseg_err_set(&r->err, PSEG_R_BATCH_NOT_FOUND, 0, PSEG_HERE,
                 "no batch %s: it never was, it is another tenant's, or its time to live is over",
                 id);
}

void mem_seal_batch(mem_store *s, const char *tenant, const char *id, pseg_queue_reply *r)
{
    mem_batch *b = batch_of(s, tenant, id);

    if (!b) {
        fail_not_found(r, id);
        return;
    }
    b->sealed = true;
    r->next_seq = b->next_seq;
}

void mem_cancel_batch(mem_store *s, const char *tenant, const char *id, pseg_queue_reply *r)
{
    mem_batch *b = batch_of(s, tenant, id);

    if (!b)
        return;
    b->sealed = b->cancel = true;
    if (reply_room(r, 1))
        reply_batch(s, r, b);
}

static bool masks_in(pseg_queue_reply *r, pseg_queue_item *it, const mem_job *job, size_t *bytes)
{
    pseg_bytes *all = pseg_arena_calloc(r->arena, job->n_masks + 1, sizeof *all);

    if (!all)
        return false;
    for (size_t i = 0; i < job->n_masks; i++) {
        all[i] = mem_bytes_in(r->arena, job->masks[i]);
        *bytes += all[i].len;
    }
    it->masks = all;
    it->n_masks = job->n_masks;
    it->has_masks = true;
    return true;
}

void mem_batch_ends(mem_store *s, const char *tenant, const char *id, int64_t from, size_t limit,
                    bool with_jobs, int64_t masks_from, pseg_queue_reply *r)
{
    const mem_batch *b = batch_of(s, tenant, id);
    size_t bytes = 0;

    if (!b || !reply_room(r, 1))
        return;
    reply_batch(s, r, b);
    r->items = pseg_arena_calloc(r->arena, limit, sizeof *r->items);
    r->jobs = pseg_arena_calloc(r->arena, limit, sizeof *r->jobs);
    if (!r->items || !r->jobs) {
        mem_no_memory(r);
        return;
    }
    for (size_t i = (size_t)from; i < b->n_ends && r->n_items < limit; i++) {
        const mem_end *e = &b->ends[i];
        const mem_job *job =
            with_jobs && *e->job_id ? mem_job_of_tenant(s, tenant, e->job_id) : NULL;
        if (job)
            mem_job_in(r->arena, &r->jobs[r->n_items], &job->j);
        pseg_queue_item *it = &r->items[r->n_items++];
        *it = (pseg_queue_item){.seq = e->seq,
                                .at_unix_us = e->at_us,
                                .custom_id = mem_text_in(r->arena, e->custom_id),
                                .state = e->state,
                                .job_id = mem_text_in(r->arena, e->job_id),
                                .refusal = e->refusal,
                                .message = mem_text_in(r->arena, e->message)};
        if (job && job->j.state == PSEG_JOB_SUCCEEDED && (int64_t)i >= masks_from &&
            bytes <= PSEG_ENDS_MASK_BYTES && !masks_in(r, it, job, &bytes))
            mem_no_memory(r);
    }
    r->n_jobs = r->n_items;
}

/* ---- items and their ends ---- */

/* Room for the ends of all items so far and one more: an end must not fail. */
static bool make_room(mem_batch *b)
{
    if (b->next_seq <= (int64_t)b->n_room)
        return true;
    size_t room = 2 * b->n_room + 16;
    mem_end *more = pseg_calloc(room, sizeof *more);
    if (!more)
        return false;
    if (b->n_ends)
        memcpy(more, b->ends, b->n_ends * sizeof *more);
    pseg_free(b->ends);
    b->ends = more;
    b->n_room = room;
    return true;
}

static void add_end(const mem_store *s, mem_batch *b, mem_end e, const char *custom_id,
                    const char *message)
{
    e.at_us = mem_now_us(s) / 1000 * 1000; /* whole milliseconds, as in lua/ */
    e.custom_id = pseg_strdup(custom_id);
    e.message = pseg_strdup(message);
    b->ends[b->n_ends++] = e;
    b->ended[e.state]++;
}

void mem_batch_end(const mem_store *s, const mem_job *job)
{
    mem_end e = {.seq = job->seq, .state = job->j.state};

    if (!job->batch)
        return;
    memcpy(e.job_id, job->j.id, sizeof e.job_id);
    add_end(s, job->batch, e, job->custom_id, "");
}

static void refuse(mem_store *s, mem_batch *b, const pseg_queue_item_args *a, const pseg_err *why)
{
    add_end(s, b, (mem_end){.seq = a->seq, .state = PSEG_JOB_FAILED, .refusal = why->reason},
            a->custom_id, why->msg);
    b->refused++;
}

/* What no later attempt would change is the item's end. */
static bool is_final(const pseg_queue_options *o, const pseg_queue_item_args *a, pseg_reason reason)
{
    int64_t n = (int64_t)a->job.content.len;

    return reason == PSEG_R_MODEL_UNKNOWN || reason == PSEG_R_IMAGE_NOT_HELD ||
           (reason != PSEG_R_OUT_OF_MEMORY &&
            (n > o->max_bytes ||
             (a->job.limits && a->job.limits->max_bytes > 0 && n > a->job.limits->max_bytes)));
}

/* False: r->err is set. */
static bool take_item(mem_store *s, const pseg_queue_options *o, mem_batch *b,
                      const pseg_queue_item_args *a, pseg_queue_reply *r)
{
    pseg_queue_submit_args job = a->job;

    if (a->refuse) {
        refuse(s, b, a, a->refuse);
        return true;
    }
    job.request_id = job.fingerprint = "";
    mem_submit(s, o, &job, r);
    if (r->err.code != PSEG_OK) {
        if (!is_final(o, a, r->err.reason))
            return false;
        refuse(s, b, a, &r->err);
        r->err = (pseg_err)PSEG_ERR_INIT;
        return true;
    }
    mem_job *j = mem_job_of(s, job.id);
    j->batch = b;
    j->seq = a->seq;
    j->custom_id = mem_text_in(j->arena, a->custom_id);
    return true;
}

void mem_submit_item(mem_store *s, const pseg_queue_options *o, const pseg_queue_item_args *a,
                     pseg_queue_reply *r)
{
    mem_batch *b = batch_of(s, a->job.tenant, a->batch);

    if (!b)
        fail_not_found(r, a->batch);
    else if (a->seq >= b->next_seq && b->sealed)
        pseg_err_set(&r->err, PSEG_R_BATCH_SEALED, 0, PSEG_HERE,
                     "batch %s takes no more items, and item %lld is new", a->batch,
                     (long long)a->seq);
    else if (a->seq > b->next_seq)
        pseg_err_set(&r->err, PSEG_R_BATCH_OUT_OF_ORDER, 0, PSEG_HERE,
                     "item %lld came where item %lld was due", (long long)a->seq,
                     (long long)b->next_seq);
    else if (a->seq == b->next_seq && !make_room(b))
        mem_no_memory(r);
    else if (a->seq == b->next_seq && take_item(s, o, b, a, r))
        b->next_seq++;
    if (b)
        r->next_seq = b->next_seq;
}

/* ---- what time does ---- */

static void cancel_all(mem_store *s, const mem_batch *b)
{
    for (mem_job *job = s->jobs; job; job = job->next)
        if (job->batch == b && job->j.state == PSEG_JOB_QUEUED)
            mem_finish(s, job, PSEG_JOB_CANCELLED);
        else if (job->batch == b && job->j.state == PSEG_JOB_RUNNING)
            job->j.cancel_requested = true;
}

void mem_sweep_batches(mem_store *s)
{
    for (mem_batch **at = &s->batches; *at;) {
        mem_batch *b = *at;
        if (b->cancel && left_of(b) > 0)
            cancel_all(s, b);
        if (expire_us(s, b) > mem_now_us(s)) {
            at = &b->next;
            continue;
        }
        *at = b->next;
        for (mem_job *job = s->jobs; job; job = job->next)
            if (job->batch == b)
                job->batch = NULL;
        batch_free(b);
    }
}

void mem_free_batches(mem_store *s)
{
    for (mem_batch *b = s->batches, *next; b; b = next) {
        next = b->next;
        batch_free(b);
    }
    s->batches = NULL;
}
