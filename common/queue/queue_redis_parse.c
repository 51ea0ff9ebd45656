/* What the answers of Redis mean. */
#include "common/queue/queue_redis_parse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading answers ---- */

void queue_bad_shape(pseg_queue_reply *r)
{
    if (r->err.code != PSEG_OK)
        return; /* short memory makes an answer look so */
    pseg_err_set(&r->err, PSEG_R_BROKER_PROTOCOL, 0, PSEG_HERE,
                 "redis' answer has an unexpected shape");
}

void queue_no_room(pseg_queue_reply *r)
{
    pseg_err_set(&r->err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE,
                 "no memory for an answer of the queue");
}

bool queue_is_array(const redisReply *r, size_t at_least)
{
    return r->type == REDIS_REPLY_ARRAY && r->elements >= at_least;
}

pseg_bytes queue_bytes_at(pseg_queue_reply *r, const redisReply *from, size_t i)
{
    pseg_bytes b = {NULL, 0};
    const redisReply *e = from->element[i];

    if (e->type != REDIS_REPLY_STRING && e->type != REDIS_REPLY_STATUS)
        return b;
    char *copy = pseg_arena_alloc(r->arena, e->len + 1);
    if (!copy) {
        queue_no_room(r);
        return b;
    }
    memcpy(copy, e->str, e->len);
    copy[e->len] = '\0';
    return (pseg_bytes){(uint8_t *)copy, e->len};
}

const char *queue_text_at(pseg_queue_reply *r, const redisReply *from, size_t i)
{
    pseg_bytes b = queue_bytes_at(r, from, i);

    return b.data ? (const char *)b.data : "";
}

int64_t queue_number_at(const redisReply *from, size_t i)
{
    const redisReply *e = from->element[i];

    return e->type == REDIS_REPLY_INTEGER ? e->integer : e->str ? strtoll(e->str, NULL, 10) : 0;
}

bool queue_token_parse(queue_token *t, const char *text)
{
    char form[6] = "";
    unsigned n = 0;

    if (strlen(text) != PSEG_JOB_ID_LEN + 3)
        return false;
    memcpy(form, text + sizeof t->prefix, sizeof form - 1);
    if (strspn(form, "0123456789abcdef") != 2 || form[2] != '+' ||
        strspn(form + 3, "0123456789abcdef") != 2 || sscanf(form, "%2x+%2x", &t->from, &n) != 2)
        return false;
    memcpy(t->prefix, text, sizeof t->prefix);
    t->n = n;
    return t->from + n <= 256;
}

void queue_token_id(char out[PSEG_JOB_ID_LEN + 1], const queue_token *t, unsigned i)
{
    memcpy(out, t->prefix, sizeof t->prefix);
    snprintf(out + sizeof t->prefix, 3, "%02x", (t->from + i) & 255);
}

/* Milliseconds there, microseconds here. */
static int64_t us_at(const redisReply *from, size_t i)
{
    int64_t ms = queue_number_at(from, i);

    return ms > 0 && ms < INT64_MAX / 1000 ? ms * 1000 : 0;
}

enum { N_FIELDS = 19 }; /* the id and FIELDS of lua/base.lua */

bool queue_job_of(pseg_job *j, pseg_queue_reply *r, const redisReply *v, size_t at)
{
    if (!queue_is_array(v, at + N_FIELDS))
        return false;
    j->id = queue_text_at(r, v, at);
    j->tenant = queue_text_at(r, v, at + 1);
    j->request_id = queue_text_at(r, v, at + 2);
    j->state = pseg_job_state_parse(queue_text_at(r, v, at + 3));
    j->spec = queue_bytes_at(r, v, at + 4);
    j->result = queue_bytes_at(r, v, at + 5);
    j->reason = pseg_reason_from_name(queue_text_at(r, v, at + 6));
    j->message = queue_text_at(r, v, at + 7);
    j->attempts = queue_number_at(v, at + 8);
    j->cancel_requested = queue_number_at(v, at + 9) != 0;
    j->created_unix_us = queue_number_at(v, at + 10);
    j->started_unix_us = queue_number_at(v, at + 11);
    j->finished_unix_us = queue_number_at(v, at + 12);
    j->deadline_unix_us = queue_number_at(v, at + 13);
    j->expire_unix_us = queue_number_at(v, at + 14);
    j->model = queue_text_at(r, v, at + 16);
    j->worker = queue_text_at(r, v, at + 18);
    return true;
}

static bool parse_jobs(pseg_queue_reply *r, const redisReply *from, size_t first)
{
    r->n_jobs = from->elements - first;
    r->jobs = pseg_arena_calloc(r->arena, r->n_jobs, sizeof *r->jobs);
    if (!r->jobs) {
        queue_no_room(r);
        return false;
    }
    for (size_t i = 0; i < r->n_jobs; i++) {
        const redisReply *v = from->element[first + i];
        if (queue_is_array(v, 1) && !queue_job_of(&r->jobs[i], r, v, 0))
            return false;
    }
    return true;
}

static bool one_job(pseg_queue_reply *r, const redisReply *v, size_t at)
{
    r->jobs = pseg_arena_calloc(r->arena, 1, sizeof *r->jobs);
    if (!r->jobs) {
        queue_no_room(r);
        return false;
    }
    r->n_jobs = 1;
    return queue_job_of(r->jobs, r, v, at);
}

void queue_parse_submit(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    long long created, deadline;

    (void)c;
    if (r->n_jobs && from->type == REDIS_REPLY_STRING &&
        sscanf(from->str, "%lld %lld", &created, &deadline) == 2) {
        r->jobs->created_unix_us = created;
        r->jobs->deadline_unix_us = deadline;
        r->created = true;
    } else if (queue_is_array(from, 1 + N_FIELDS) && one_job(r, from, 1)) {
        r->created = queue_number_at(from, 0) == 1;
    } else {
        queue_bad_shape(r);
    }
}

void queue_parse_view(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (from->type != REDIS_REPLY_ARRAY || (from->elements && !one_job(r, from, 0)))
        queue_bad_shape(r);
}

void queue_parse_get(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    if (!queue_is_array(from, c->n_asked) || !parse_jobs(r, from, 0))
        queue_bad_shape(r);
}

void queue_parse_list(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!queue_is_array(from, 1) || !parse_jobs(r, from, 1))
        queue_bad_shape(r);
    else
        r->next_id = queue_text_at(r, from, 0);
}

static void parse_blobs(pseg_queue_reply *r, const redisReply *from, size_t first, size_t n)
{
    r->blobs = pseg_arena_calloc(r->arena, n, sizeof *r->blobs);
    if (!r->blobs) {
        queue_no_room(r);
        return;
    }
    r->n_blobs = n;
    for (size_t i = 0; i < n && first + i < from->elements; i++)
        r->blobs[i] = queue_bytes_at(r, from, first + i);
}

void queue_parse_masks(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    if (!queue_is_array(from, 1) || from->element[0]->type != REDIS_REPLY_ARRAY) {
        queue_bad_shape(r);
        return;
    }
    if (from->element[0]->elements == 0)
        return;
    if (!one_job(r, from->element[0], 0))
        queue_bad_shape(r);
    else
        parse_blobs(r, from, 1, c->n_asked);
}

void queue_parse_image(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    redisReply *one[1] = {(redisReply *)(uintptr_t)from};
    redisReply list = {.type = REDIS_REPLY_ARRAY, .elements = 1, .element = one};

    (void)c;
    parse_blobs(r, &list, 0, 1);
}

void queue_parse_put(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    r->images = pseg_arena_calloc(r->arena, 1, sizeof *r->images);
    if (!queue_is_array(from, 3) || !r->images) {
        queue_bad_shape(r);
        return;
    }
    r->n_images = 1;
    r->images[0] = (pseg_queue_image){.existed = queue_number_at(from, 0) == 1,
                                      .size_bytes = (uint64_t)queue_number_at(from, 1),
                                      .expire_unix_us = us_at(from, 2)};
}

void queue_parse_has(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    r->images = pseg_arena_calloc(r->arena, c->n_asked, sizeof *r->images);
    if (!queue_is_array(from, 2 * c->n_asked) || !r->images) {
        queue_bad_shape(r);
        return;
    }
    r->n_images = c->n_asked;
    for (size_t i = 0; i < c->n_asked; i++) {
        r->images[i].size_bytes = (uint64_t)queue_number_at(from, 2 * i);
        r->images[i].expire_unix_us = us_at(from, 2 * i + 1);
    }
}

void queue_parse_workers(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!queue_is_array(from, 0)) {
        queue_bad_shape(r);
        return;
    }
    r->workers = pseg_arena_calloc(r->arena, from->elements, sizeof *r->workers);
    if (!r->workers) {
        queue_no_room(r);
        return;
    }
    for (size_t i = 0; i < from->elements; i++) {
        const redisReply *w = from->element[i];
        if (queue_is_array(w, 5))
            r->workers[r->n_workers++] = (pseg_queue_worker){
                queue_text_at(r, w, 0), queue_text_at(r, w, 1), queue_text_at(r, w, 2),
                queue_text_at(r, w, 3), queue_text_at(r, w, 4), ""};
    }
}

/* Items of a pack: {token, tenant, deadline, created, what is kept of each}. */
static bool is_packed(const redisReply *v)
{
    return queue_is_array(v, 5) && v->element[4]->type == REDIS_REPLY_ARRAY;
}

/* Takes a text of known length off the front; NULL: there is none. */
static const char *text_of(pseg_queue_reply *r, pseg_bytes *from)
{
    size_t n = from->len >= 2 ? from->data[0] | (size_t)from->data[1] << 8 : SIZE_MAX - 2;

    if (from->len < 2 + n)
        return NULL;
    char *text = pseg_arena_calloc(r->arena, n + 1, 1);
    if (!text) {
        queue_no_room(r);
        return NULL;
    }
    memcpy(text, from->data + 2, n);
    from->data += 2 + n;
    from->len -= 2 + n;
    return text;
}

static void claims_of_pack(pseg_queue_reply *r, const redisReply *v)
{
    const char *token = queue_text_at(r, v, 0), *tenant = queue_text_at(r, v, 1);
    int64_t deadline = queue_number_at(v, 2), created = queue_number_at(v, 3);
    queue_token t;

    if (!queue_token_parse(&t, token) || t.n != v->element[4]->elements) {
        queue_bad_shape(r);
        return;
    }
    char(*ids)[PSEG_JOB_ID_LEN + 1] = pseg_arena_calloc(r->arena, t.n, sizeof *ids);
    for (unsigned i = 0; i < t.n; i++) {
        pseg_bytes kept = queue_bytes_at(r, v->element[4], i);
        const char *image = ids ? text_of(r, &kept) : NULL,
                   *item = image ? text_of(r, &kept) : NULL;
        if (!item || !kept.len) {
            if (!ids)
                queue_no_room(r);
            if (r->err.code == PSEG_OK)
                queue_bad_shape(r);
            return;
        }
        queue_token_id(ids[i], &t, i);
        r->claims[r->n_claims++] = (pseg_queue_claim){.id = ids[i],
                                                      .fence = 1,
                                                      .attempt = 1,
                                                      .tenant = tenant,
                                                      .spec = {kept.data, kept.len - 1},
                                                      .image = image,
                                                      .deadline_unix_us = deadline,
                                                      .created_unix_us = created};
    }
}

void queue_parse_claims(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!queue_is_array(from, 0)) {
        queue_bad_shape(r);
        return;
    }
    size_t n = 0;
    for (size_t i = 0; i < from->elements; i++)
        n += is_packed(from->element[i]) ? from->element[i]->element[4]->elements : 1;
    r->claims = pseg_arena_calloc(r->arena, n, sizeof *r->claims);
    if (!r->claims) {
        queue_no_room(r);
        return;
    }
    for (size_t i = 0; i < from->elements; i++) {
        const redisReply *v = from->element[i];
        if (v->type == REDIS_REPLY_INTEGER && i + 1 == from->elements) {
            r->again_ms = v->integer;
            break;
        }
        if (is_packed(v)) {
            claims_of_pack(r, v);
            continue;
        }
        if (!queue_is_array(v, 9)) {
            queue_bad_shape(r);
            return;
        }
        r->claims[r->n_claims++] = (pseg_queue_claim){.id = queue_text_at(r, v, 0),
                                                      .fence = queue_number_at(v, 1),
                                                      .attempt = queue_number_at(v, 2),
                                                      .tenant = queue_text_at(r, v, 3),
                                                      .spec = queue_bytes_at(r, v, 4),
                                                      .image = queue_text_at(r, v, 5),
                                                      .deadline_unix_us = queue_number_at(v, 6),
                                                      .created_unix_us = queue_number_at(v, 7),
                                                      .group = queue_number_at(v, 8)};
    }
}

void queue_parse_leases(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    static const char *const names[] = {"ok", "lost", "cancel", "expired"};

    r->leases = pseg_arena_calloc(r->arena, c->n_asked, sizeof *r->leases);
    if (!queue_is_array(from, c->n_asked) || !r->leases) {
        queue_bad_shape(r);
        return;
    }
    r->n_leases = c->n_asked;
    for (size_t i = 0; i < c->n_asked; i++) {
        const char *text = queue_text_at(r, from, i);
        r->leases[i] = PSEG_LEASE_LOST;
        for (int k = 0; k < 4; k++)
            if (strcmp(names[k], text) == 0)
                r->leases[i] = (pseg_lease_state)k;
    }
}

void queue_parse_state(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    r->state = from->str ? pseg_job_state_parse(from->str) : PSEG_JOB_UNKNOWN;
    if (r->state == PSEG_JOB_UNKNOWN)
        queue_bad_shape(r);
}

void queue_parse_stats(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!queue_is_array(from, 10)) {
        queue_bad_shape(r);
        return;
    }
    r->stats = (pseg_queue_stats){queue_number_at(from, 0), queue_number_at(from, 1),
                                  queue_number_at(from, 2), queue_number_at(from, 3),
                                  queue_number_at(from, 4), queue_number_at(from, 5),
                                  queue_number_at(from, 6), queue_number_at(from, 7),
                                  queue_number_at(from, 8), queue_number_at(from, 9)};
}

static void case_of(pseg_queue_case *to, pseg_queue_reply *r, const redisReply *v)
{
    *to = (pseg_queue_case){.id = queue_text_at(r, v, 0),
                            .tenant = queue_text_at(r, v, 1),
                            .model = queue_text_at(r, v, 2),
                            .reason = pseg_reason_from_name(queue_text_at(r, v, 3)),
                            .message = queue_text_at(r, v, 4),
                            .attempts = queue_number_at(v, 5),
                            .at_unix_us = queue_number_at(v, 6),
                            .evidence = queue_text_at(r, v, 7),
                            .request_id = queue_text_at(r, v, 8)};
}

static bool case_room(pseg_queue_reply *r, size_t n)
{
    r->cases = pseg_arena_calloc(r->arena, n, sizeof *r->cases);
    if (!r->cases)
        queue_no_room(r);
    return r->cases != NULL;
}

void queue_parse_cases(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!queue_is_array(from, 0)) {
        queue_bad_shape(r);
        return;
    }
    if (!case_room(r, from->elements))
        return;
    for (size_t i = 0; i < from->elements; i++)
        if (queue_is_array(from->element[i], 9))
            case_of(&r->cases[r->n_cases++], r, from->element[i]);
}

void queue_parse_case(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!queue_is_array(from, 0) || (from->elements && !queue_is_array(from, 9)))
        queue_bad_shape(r);
    else if (from->elements && case_room(r, 1))
        case_of(&r->cases[r->n_cases++], r, from);
}

void queue_parse_dropped(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (from->type != REDIS_REPLY_INTEGER)
        queue_bad_shape(r);
    else if (from->integer > 0 && case_room(r, 1))
        r->n_cases = 1;
}

void queue_parse_requeued(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    if (!queue_is_array(from, 0))
        queue_bad_shape(r);
    else if (from->elements && from->element[0]->type == REDIS_REPLY_ERROR)
        queue_error_of(&r->err, from->element[0]->str);
    else if (from->elements)
        queue_parse_submit(r, from->element[0], c);
}

void queue_parse_nothing(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)r;
    (void)from;
    (void)c;
}

const reply_parser queue_reply_parsers[] = {
    queue_parse_submit,   queue_parse_view,   queue_parse_get,     queue_parse_list,
    queue_parse_masks,    queue_parse_image,  queue_parse_put,     queue_parse_has,
    queue_parse_workers,  queue_parse_claims, queue_parse_leases,  queue_parse_state,
    queue_parse_stats,    queue_parse_cases,  queue_parse_case,    queue_parse_dropped,
    queue_parse_requeued, queue_parse_item,   queue_parse_batch,   queue_parse_created,
    queue_parse_batches,  queue_parse_ends,   queue_parse_backlog, queue_parse_estimate,
    queue_parse_events,   queue_parse_states, queue_parse_uses,    queue_parse_nothing};
const size_t queue_n_reply_parsers = sizeof queue_reply_parsers / sizeof *queue_reply_parsers;
