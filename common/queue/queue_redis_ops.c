/* What each request says to Redis, and what its answer means. */
#include "common/queue/queue_redis.h"
#include "common/base/alloc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- building commands ---- */

enum { MAX_FIXED = 24 };

/* FCALL name 1 prefix args...; numbers are written into text. */
typedef struct call {
    const char **argv;
    size_t *len;
    int n, cap;
    char (*numbers)[24];
    int n_numbers;
    const char *fixed_argv[MAX_FIXED];
    size_t fixed_len[MAX_FIXED];
    char fixed_numbers[MAX_FIXED][24];
    bool is_heap;
} call;

/* Room for `extra` arguments besides a few fixed ones; false when memory is short. */
static bool call_room(call *c, size_t extra)
{
    c->cap = (int)extra + MAX_FIXED;
    c->is_heap = extra > 0;
    c->n = c->n_numbers = 0;
    c->argv = c->fixed_argv;
    c->len = c->fixed_len;
    c->numbers = c->fixed_numbers;
    if (c->is_heap) {
        c->argv = pseg_calloc((size_t)c->cap, sizeof *c->argv);
        c->len = pseg_calloc((size_t)c->cap, sizeof *c->len);
        c->numbers = pseg_calloc((size_t)c->cap, sizeof *c->numbers);
        if (!c->argv || !c->len || !c->numbers)
            return false;
    }
    return true;
}

static void item_begin(call *c)
{
    call_room(c, 0);
}

static bool call_begin(call *c, const pseg_queue *base, const char *function, size_t extra)
{
    const redis_queue *q = (const redis_queue *)base;

    if (!call_room(c, extra))
        return false;
    const char *head[] = {"FCALL", function, "1", q->prefix};
    for (int i = 0; i < 4; i++, c->n++) {
        c->argv[c->n] = head[i];
        c->len[c->n] = strlen(head[i]);
    }
    return true;
}

static void add_bytes(call *c, pseg_bytes b)
{
    c->argv[c->n] = b.data ? (const char *)b.data : "";
    c->len[c->n++] = b.len;
}

static void add(call *c, const char *s)
{
    add_bytes(c, (pseg_bytes){(const uint8_t *)s, strlen(s)});
}

static void add_number(call *c, int64_t x)
{
    char *text = c->numbers[c->n_numbers++];

    snprintf(text, sizeof *c->numbers, "%lld", (long long)x);
    add(c, text);
}

static void call_free(call *c)
{
    if (!c->is_heap)
        return;
    pseg_free(c->argv);
    pseg_free(c->len);
    pseg_free(c->numbers);
}

static void call_send(call *c, pseg_queue *base, bool is_write, reply_parser parse, size_t n_asked,
                      pseg_queue_done done, void *ud)
{
    queue_send((redis_queue *)base, is_write, parse, n_asked, c->n, c->argv, c->len, done, ud);
    call_free(c);
}

static void item_send(call *c, pseg_queue *base, const batch_kind *kind, reply_parser parse,
                      pseg_queue_done done, void *ud)
{
    queue_send_item((redis_queue *)base, kind, parse, c->n, c->argv, c->len, done, ud);
    call_free(c);
}

static void no_memory(call *c, pseg_queue_done done, void *ud)
{
    call_free(c);
    queue_answer_no_memory(done, ud);
}

/* ---- reading answers ---- */

static void bad_shape(pseg_queue_reply *r)
{
    pseg_err_set(&r->err, PSEG_R_BROKER_PROTOCOL, 0, PSEG_HERE,
                 "redis' answer has an unexpected shape");
}

static void no_room(pseg_queue_reply *r)
{
    pseg_err_set(&r->err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE,
                 "no memory for an answer of the queue");
}

static bool is_array(const redisReply *r, size_t at_least)
{
    return r->type == REDIS_REPLY_ARRAY && r->elements >= at_least;
}

static pseg_bytes bytes_at(pseg_queue_reply *r, const redisReply *from, size_t i)
{
    pseg_bytes b = {NULL, 0};
    const redisReply *e = from->element[i];

    if (e->type != REDIS_REPLY_STRING && e->type != REDIS_REPLY_STATUS)
        return b;
    char *copy = pseg_arena_alloc(r->arena, e->len + 1);
    if (!copy) {
        no_room(r);
        return b;
    }
    memcpy(copy, e->str, e->len);
    copy[e->len] = '\0';
    return (pseg_bytes){(uint8_t *)copy, e->len};
}

static const char *text_at(pseg_queue_reply *r, const redisReply *from, size_t i)
{
    pseg_bytes b = bytes_at(r, from, i);

    return b.data ? (const char *)b.data : "";
}

static int64_t number_at(const redisReply *from, size_t i)
{
    const redisReply *e = from->element[i];

    return e->type == REDIS_REPLY_INTEGER ? e->integer : e->str ? strtoll(e->str, NULL, 10) : 0;
}

/* Milliseconds there, microseconds here. */
static int64_t us_at(const redisReply *from, size_t i)
{
    int64_t ms = number_at(from, i);

    return ms > 0 && ms < INT64_MAX / 1000 ? ms * 1000 : 0;
}

enum { N_FIELDS = 19 }; /* the id and FIELDS of pseg.lua */

static bool parse_job(pseg_job *j, pseg_queue_reply *r, const redisReply *v, size_t at)
{
    if (!is_array(v, at + N_FIELDS))
        return false;
    j->id = text_at(r, v, at);
    j->tenant = text_at(r, v, at + 1);
    j->request_id = text_at(r, v, at + 2);
    j->state = pseg_job_state_parse(text_at(r, v, at + 3));
    j->spec = bytes_at(r, v, at + 4);
    j->result = bytes_at(r, v, at + 5);
    j->reason = pseg_reason_from_name(text_at(r, v, at + 6));
    j->message = text_at(r, v, at + 7);
    j->attempts = number_at(v, at + 8);
    j->cancel_requested = number_at(v, at + 9) != 0;
    j->created_unix_us = number_at(v, at + 10);
    j->started_unix_us = number_at(v, at + 11);
    j->finished_unix_us = number_at(v, at + 12);
    j->deadline_unix_us = number_at(v, at + 13);
    j->expire_unix_us = number_at(v, at + 14);
    j->model = text_at(r, v, at + 16);
    j->worker = text_at(r, v, at + 18);
    return true;
}

static bool parse_jobs(pseg_queue_reply *r, const redisReply *from, size_t first)
{
    r->n_jobs = from->elements - first;
    r->jobs = pseg_arena_calloc(r->arena, r->n_jobs, sizeof *r->jobs);
    if (!r->jobs) {
        no_room(r);
        return false;
    }
    for (size_t i = 0; i < r->n_jobs; i++) {
        const redisReply *v = from->element[first + i];
        if (is_array(v, 1) && !parse_job(&r->jobs[i], r, v, 0))
            return false;
    }
    return true;
}

static bool one_job(pseg_queue_reply *r, const redisReply *v, size_t at)
{
    r->jobs = pseg_arena_calloc(r->arena, 1, sizeof *r->jobs);
    r->n_jobs = 1;
    return r->jobs && parse_job(r->jobs, r, v, at);
}

static void parse_submit(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!is_array(from, 1 + N_FIELDS) || !one_job(r, from, 1))
        bad_shape(r);
    else
        r->created = number_at(from, 0) == 1;
}

static void parse_view(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (from->type != REDIS_REPLY_ARRAY || (from->elements && !one_job(r, from, 0)))
        bad_shape(r);
}

static void parse_get(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    if (!is_array(from, c->n_asked) || !parse_jobs(r, from, 0))
        bad_shape(r);
}

static void parse_list(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!is_array(from, 1) || !parse_jobs(r, from, 1))
        bad_shape(r);
    else
        r->next_id = text_at(r, from, 0);
}

static void parse_blobs(pseg_queue_reply *r, const redisReply *from, size_t first, size_t n)
{
    r->blobs = pseg_arena_calloc(r->arena, n, sizeof *r->blobs);
    if (!r->blobs) {
        no_room(r);
        return;
    }
    r->n_blobs = n;
    for (size_t i = 0; i < n && first + i < from->elements; i++)
        r->blobs[i] = bytes_at(r, from, first + i);
}

static void parse_masks(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    if (!is_array(from, 1) || from->element[0]->type != REDIS_REPLY_ARRAY) {
        bad_shape(r);
        return;
    }
    if (from->element[0]->elements == 0)
        return;
    if (!one_job(r, from->element[0], 0))
        bad_shape(r);
    else
        parse_blobs(r, from, 1, c->n_asked);
}

static void parse_image(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    redisReply *one[1] = {(redisReply *)(uintptr_t)from};
    redisReply list = {.type = REDIS_REPLY_ARRAY, .elements = 1, .element = one};

    (void)c;
    parse_blobs(r, &list, 0, 1);
}

static void parse_put(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    r->images = pseg_arena_calloc(r->arena, 1, sizeof *r->images);
    if (!is_array(from, 3) || !r->images) {
        bad_shape(r);
        return;
    }
    r->n_images = 1;
    r->images[0] = (pseg_queue_image){.existed = number_at(from, 0) == 1,
                                      .size_bytes = (uint64_t)number_at(from, 1),
                                      .expire_unix_us = us_at(from, 2)};
}

static void parse_has(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    r->images = pseg_arena_calloc(r->arena, c->n_asked, sizeof *r->images);
    if (!is_array(from, 2 * c->n_asked) || !r->images) {
        bad_shape(r);
        return;
    }
    r->n_images = c->n_asked;
    for (size_t i = 0; i < c->n_asked; i++) {
        r->images[i].size_bytes = (uint64_t)number_at(from, 2 * i);
        r->images[i].expire_unix_us = us_at(from, 2 * i + 1);
    }
}

static void parse_workers(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!is_array(from, 0)) {
        bad_shape(r);
        return;
    }
    r->workers = pseg_arena_calloc(r->arena, from->elements, sizeof *r->workers);
    if (!r->workers) {
        no_room(r);
        return;
    }
    for (size_t i = 0; i < from->elements; i++) {
        const redisReply *w = from->element[i];
        if (is_array(w, 5))
            r->workers[r->n_workers++] =
                (pseg_queue_worker){text_at(r, w, 0), text_at(r, w, 1), text_at(r, w, 2),
                                    text_at(r, w, 3), text_at(r, w, 4), ""};
    }
}

static void parse_claims(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!is_array(from, 0)) {
        bad_shape(r);
        return;
    }
    r->claims = pseg_arena_calloc(r->arena, from->elements, sizeof *r->claims);
    if (!r->claims) {
        no_room(r);
        return;
    }
    for (size_t i = 0; i < from->elements; i++) {
        const redisReply *v = from->element[i];
        if (!is_array(v, 9)) {
            bad_shape(r);
            return;
        }
        r->claims[r->n_claims++] = (pseg_queue_claim){.id = text_at(r, v, 0),
                                                      .fence = number_at(v, 1),
                                                      .attempt = number_at(v, 2),
                                                      .tenant = text_at(r, v, 3),
                                                      .spec = bytes_at(r, v, 4),
                                                      .image = text_at(r, v, 5),
                                                      .deadline_unix_us = number_at(v, 6),
                                                      .created_unix_us = number_at(v, 7),
                                                      .group = number_at(v, 8)};
    }
}

static void parse_leases(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    static const char *const names[] = {"ok", "lost", "cancel", "expired"};

    r->leases = pseg_arena_calloc(r->arena, c->n_asked, sizeof *r->leases);
    if (!is_array(from, c->n_asked) || !r->leases) {
        bad_shape(r);
        return;
    }
    r->n_leases = c->n_asked;
    for (size_t i = 0; i < c->n_asked; i++) {
        const char *text = text_at(r, from, i);
        r->leases[i] = PSEG_LEASE_LOST;
        for (int k = 0; k < 4; k++)
            if (strcmp(names[k], text) == 0)
                r->leases[i] = (pseg_lease_state)k;
    }
}

static void parse_state(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    r->state = from->str ? pseg_job_state_parse(from->str) : PSEG_JOB_UNKNOWN;
    if (r->state == PSEG_JOB_UNKNOWN)
        bad_shape(r);
}

static void parse_stats(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!is_array(from, 10)) {
        bad_shape(r);
        return;
    }
    r->stats = (pseg_queue_stats){number_at(from, 0), number_at(from, 1), number_at(from, 2),
                                  number_at(from, 3), number_at(from, 4), number_at(from, 5),
                                  number_at(from, 6), number_at(from, 7), number_at(from, 8),
                                  number_at(from, 9)};
}

static void case_of(pseg_queue_case *to, pseg_queue_reply *r, const redisReply *v)
{
    *to = (pseg_queue_case){.id = text_at(r, v, 0),
                            .tenant = text_at(r, v, 1),
                            .model = text_at(r, v, 2),
                            .reason = pseg_reason_from_name(text_at(r, v, 3)),
                            .message = text_at(r, v, 4),
                            .attempts = number_at(v, 5),
                            .at_unix_us = number_at(v, 6),
                            .evidence = text_at(r, v, 7),
                            .request_id = text_at(r, v, 8)};
}

static bool case_room(pseg_queue_reply *r, size_t n)
{
    r->cases = pseg_arena_calloc(r->arena, n, sizeof *r->cases);
    if (!r->cases)
        no_room(r);
    return r->cases != NULL;
}

static void parse_cases(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!is_array(from, 0)) {
        bad_shape(r);
        return;
    }
    if (!case_room(r, from->elements))
        return;
    for (size_t i = 0; i < from->elements; i++)
        if (is_array(from->element[i], 9))
            case_of(&r->cases[r->n_cases++], r, from->element[i]);
}

static void parse_case(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!is_array(from, 0) || (from->elements && !is_array(from, 9)))
        bad_shape(r);
    else if (from->elements && case_room(r, 1))
        case_of(&r->cases[r->n_cases++], r, from);
}

static void parse_dropped(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (from->type != REDIS_REPLY_INTEGER)
        bad_shape(r);
    else if (from->integer > 0 && case_room(r, 1))
        r->n_cases = 1;
}

static void parse_requeued(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    if (!is_array(from, 0))
        bad_shape(r);
    else if (from->elements && from->element[0]->type == REDIS_REPLY_ERROR)
        queue_error_of(&r->err, from->element[0]->str);
    else if (from->elements)
        parse_submit(r, from->element[0], c);
}

static void parse_nothing(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)r;
    (void)from;
    (void)c;
}

const reply_parser queue_reply_parsers[] = {
    parse_submit, parse_view,  parse_get,     parse_list,    parse_masks,    parse_image,
    parse_put,    parse_has,   parse_workers, parse_claims,  parse_leases,   parse_state,
    parse_stats,  parse_cases, parse_case,    parse_dropped, parse_requeued, parse_nothing};
const size_t queue_n_reply_parsers = sizeof queue_reply_parsers / sizeof *queue_reply_parsers;

/* ---- requests ---- */

enum { KIND_SUBMIT, KIND_PUBLISH };
static const batch_kind submit_kind = {"pseg1_submit", KIND_SUBMIT, true},
                        publish_kind = {"pseg1_publish", KIND_PUBLISH, false};

int queue_batch_head(const redis_queue *q, const batch_kind *kind, char head[6][24])
{
    const pseg_queue_options *o = &q->base.opt;
    const int64_t numbers[] = {o->max_age_ms, o->max_jobs, o->max_bytes, o->image_ttl_ms};

    if (kind->index != KIND_SUBMIT)
        return 0;
    for (int i = 0; i < 4; i++)
        snprintf(head[i], 24, "%lld", (long long)numbers[i]);
    return 4;
}

static void redis_submit(pseg_queue *q, const pseg_queue_submit_args *a, pseg_queue_done done,
                         void *ud)
{
    static const pseg_queue_tenant none;
    const pseg_queue_tenant *t = a->limits ? a->limits : &none;
    call c;

    item_begin(&c);
    add(&c, a->tenant);
    add(&c, a->id);
    add(&c, a->request_id);
    add(&c, a->fingerprint);
    add(&c, a->model);
    add(&c, a->model_is_default ? "1" : "0");
    add(&c, a->image_sha256);
    add_bytes(&c, a->spec);
    add_bytes(&c, a->content);
    add_number(&c, a->deadline_unix_us);
    add_number(&c, a->ttl_ms);
    add_number(&c, a->priority);
    add_number(&c, t->weight > 0 ? t->weight : 1);
    add_number(&c, t->max_jobs);
    add_number(&c, t->max_bytes);
    add_number(&c, t->rate);
    add_number(&c, t->burst > 0 ? t->burst : 1);
    item_send(&c, q, &submit_kind, parse_submit, done, ud);
}

static void redis_put_image(pseg_queue *q, const char *tenant, const char *sha256, pseg_bytes data,
                            int64_t tenant_bytes, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_put_image", 0);
    add(&c, tenant);
    add(&c, sha256);
    add_bytes(&c, data);
    add_number(&c, q->opt.max_bytes);
    add_number(&c, q->opt.image_ttl_ms);
    add_number(&c, tenant_bytes);
    call_send(&c, q, true, parse_put, 1, done, ud);
}

static void redis_has_images(pseg_queue *q, const char *tenant, const char *const *sha256, size_t n,
                             pseg_queue_done done, void *ud)
{
    call c;

    if (!call_begin(&c, q, "pseg1_has_images", n)) {
        no_memory(&c, done, ud);
        return;
    }
    add(&c, tenant);
    add_number(&c, q->opt.image_ttl_ms);
    for (size_t i = 0; i < n; i++)
        add(&c, sha256[i]);
    call_send(&c, q, false, parse_has, n, done, ud);
}

static void redis_get(pseg_queue *q, const char *tenant, const char *const *ids, size_t n,
                      pseg_queue_done done, void *ud)
{
    call c;

    if (!call_begin(&c, q, "pseg1_get", n)) {
        no_memory(&c, done, ud);
        return;
    }
    add(&c, tenant);
    for (size_t i = 0; i < n; i++)
        add(&c, ids[i]);
    call_send(&c, q, false, parse_get, n, done, ud);
}

static void redis_list(pseg_queue *q, const char *tenant, const char *after_id, size_t limit,
                       pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_list", 0);
    add(&c, tenant);
    add(&c, after_id);
    add_number(&c, (int64_t)limit);
    call_send(&c, q, false, parse_list, limit, done, ud);
}

static void redis_masks(pseg_queue *q, const char *tenant, const char *id, const uint32_t *indexes,
                        size_t n, pseg_queue_done done, void *ud)
{
    call c;

    if (!call_begin(&c, q, "pseg1_masks", n)) {
        no_memory(&c, done, ud);
        return;
    }
    add(&c, tenant);
    add(&c, id);
    for (size_t i = 0; i < n; i++)
        add_number(&c, indexes[i]);
    call_send(&c, q, false, parse_masks, n, done, ud);
}

static void redis_cancel(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                         void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_cancel", 0);
    add(&c, tenant);
    add(&c, id);
    call_send(&c, q, true, parse_view, 1, done, ud);
}

static void redis_workers(pseg_queue *q, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_workers", 0);
    call_send(&c, q, false, parse_workers, 0, done, ud);
}

static void redis_get_stats(pseg_queue *q, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_stats", 0);
    call_send(&c, q, false, parse_stats, 0, done, ud);
}

static void redis_sweep(pseg_queue *q, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_sweep", 0);
    add_number(&c, q->opt.max_attempts);
    add_number(&c, 200);
    add_number(&c, q->opt.lease_ms);
    add_number(&c, q->opt.image_ttl_ms);
    call_send(&c, q, true, parse_nothing, 0, done, ud);
}

static void redis_register(pseg_queue *q, const pseg_queue_worker *w, pseg_queue_done done,
                           void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_register", 0);
    add(&c, w->id);
    add_number(&c, q->opt.lease_ms);
    add(&c, w->model);
    add(&c, w->digest);
    add(&c, w->device);
    add(&c, w->version);
    add(&c, w->log ? w->log : "");
    call_send(&c, q, true, parse_nothing, 0, done, ud);
}

static void redis_unregister(pseg_queue *q, const char *worker, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_unregister", 0);
    add(&c, worker);
    call_send(&c, q, true, parse_nothing, 0, done, ud);
}

static void redis_claim_jobs(pseg_queue *q, const char *worker, const char *model, size_t max,
                             size_t held, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_claim", 0);
    add(&c, worker);
    add(&c, model);
    add_number(&c, (int64_t)max);
    add_number(&c, q->opt.lease_ms);
    add_number(&c, q->opt.max_attempts);
    add_number(&c, (int64_t)held);
    call_send(&c, q, true, parse_claims, max, done, ud);
}

static void redis_fetch_image(pseg_queue *q, const char *image, pseg_queue_done done, void *ud)
{
    char key[192];
    int n = snprintf(key, sizeof key, "%simage:%s", ((redis_queue *)q)->prefix, image);

    queue_send((redis_queue *)q, false, parse_image, 1, 2, (const char *[]){"GET", key},
               (size_t[]){3, (size_t)n}, done, ud);
}

static void redis_renew(pseg_queue *q, const char *worker, const pseg_queue_lease *l, size_t n,
                        pseg_queue_done done, void *ud)
{
    call c;

    if (!call_begin(&c, q, "pseg1_renew", 2 * n)) {
        no_memory(&c, done, ud);
        return;
    }
    add(&c, worker);
    add_number(&c, q->opt.lease_ms);
    for (size_t i = 0; i < n; i++) {
        add(&c, l[i].id);
        add_number(&c, l[i].fence);
    }
    call_send(&c, q, true, parse_leases, n, done, ud);
}

static void add_lease(call *c, const char *worker, pseg_queue_lease l)
{
    add(c, worker);
    add(c, l.id);
    add_number(c, l.fence);
}

static void redis_publish(pseg_queue *q, const char *worker, pseg_queue_lease l, pseg_bytes result,
                          const pseg_bytes *masks, size_t n, int64_t cost_us, pseg_queue_done done,
                          void *ud)
{
    call c;

    if (!call_room(&c, n)) {
        no_memory(&c, done, ud);
        return;
    }
    add_lease(&c, worker, l);
    add_number(&c, cost_us);
    add_number(&c, (int64_t)n);
    add_bytes(&c, result);
    for (size_t i = 0; i < n; i++)
        add_bytes(&c, masks[i]);
    item_send(&c, q, &publish_kind, parse_state, done, ud);
}

static void redis_fail(pseg_queue *q, const char *worker, pseg_queue_lease l, const pseg_err *why,
                       int64_t delay_ms, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_fail", 0);
    add_lease(&c, worker, l);
    add(&c, pseg_reason_name(why->reason));
    add(&c, why->msg);
    add(&c, pseg_reason_is_retryable(why->reason) ? "1" : "0");
    add_number(&c, delay_ms);
    add_number(&c, q->opt.max_attempts);
    call_send(&c, q, true, parse_state, 1, done, ud);
}

static void redis_release(pseg_queue *q, const char *worker, pseg_queue_lease l,
                          pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_release", 0);
    add_lease(&c, worker, l);
    call_send(&c, q, true, parse_state, 1, done, ud);
}

static void redis_list_cases(pseg_queue *q, const char *after_id, size_t limit,
                             pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_cases", 0);
    add(&c, after_id);
    add_number(&c, (int64_t)limit);
    call_send(&c, q, false, parse_cases, limit, done, ud);
}

static void redis_get_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_case", 0);
    add(&c, id);
    call_send(&c, q, false, parse_case, 1, done, ud);
}

static void redis_drop_case(pseg_queue *q, const char *id, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_case_drop", 0);
    add(&c, id);
    call_send(&c, q, true, parse_dropped, 1, done, ud);
}

static void redis_requeue_case(pseg_queue *q, const char *id, const char *new_id,
                               pseg_queue_done done, void *ud)
{
    char head[6][24];
    call c;

    call_begin(&c, q, "pseg1_case_requeue", 0);
    add(&c, id);
    add(&c, new_id);
    int n = queue_batch_head((redis_queue *)q, &submit_kind, head);
    for (int i = 0; i < n; i++)
        add(&c, head[i]);
    call_send(&c, q, true, parse_requeued, 1, done, ud);
}

const queue_ops queue_redis_ops = {
    .close = queue_redis_close,
    .silence_ms = queue_redis_silence_ms,
    .submit = redis_submit,
    .put_image = redis_put_image,
    .has_images = redis_has_images,
    .get = redis_get,
    .list = redis_list,
    .masks = redis_masks,
    .cancel = redis_cancel,
    .workers = redis_workers,
    .get_stats = redis_get_stats,
    .sweep = redis_sweep,
    .list_cases = redis_list_cases,
    .get_case = redis_get_case,
    .drop_case = redis_drop_case,
    .requeue_case = redis_requeue_case,
    .register_worker = redis_register,
    .unregister = redis_unregister,
    .claim_jobs = redis_claim_jobs,
    .fetch_image = redis_fetch_image,
    .renew = redis_renew,
    .publish = redis_publish,
    .fail = redis_fail,
    .release = redis_release,
};
