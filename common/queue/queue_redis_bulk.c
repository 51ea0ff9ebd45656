/* Batches: what each request says to Redis, and what the answer means. */
#include "common/queue/queue_redis_call.h"
#include "common/base/alloc.h"

#include <stdio.h>
#include <string.h>

static const batch_kind item_kind = {"pseg1_submit_items", KIND_ITEM, true, 120};

/* ---- requests ---- */

static void named(pseg_queue *q, const char *function, const char *tenant, const char *id,
                  bool is_write, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, function, 0);
    call_add(&c, tenant);
    call_add(&c, id);
    call_send(&c, q, is_write, queue_parse_batch, 1, done, ud);
}

void redis_create_batch(pseg_queue *q, const char *tenant, const char *id, int64_t ttl_ms,
                        pseg_bytes labels, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_batch_create", 0);
    call_add(&c, tenant);
    call_add(&c, id);
    call_add_number(&c, ttl_ms);
    call_add_bytes(&c, labels);
    call_send(&c, q, true, queue_parse_created, 1, done, ud);
}

void redis_get_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                     void *ud)
{
    named(q, "pseg1_batch_get", tenant, id, false, done, ud);
}

void redis_cancel_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                        void *ud)
{
    named(q, "pseg1_batch_cancel", tenant, id, true, done, ud);
}

void redis_list_batches(pseg_queue *q, const char *tenant, const char *token, size_t limit,
                        pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_batch_list", 0);
    call_add(&c, tenant);
    call_add(&c, token);
    call_add_number(&c, (int64_t)limit);
    call_send(&c, q, false, queue_parse_batches, limit, done, ud);
}

void redis_batch_ends(pseg_queue *q, const char *tenant, const char *id, int64_t from, size_t limit,
                      bool with_jobs, int64_t masks_from, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_batch_done", 0);
    call_add(&c, tenant);
    call_add(&c, id);
    call_add_number(&c, from);
    call_add_number(&c, (int64_t)limit);
    call_add(&c, with_jobs ? "1" : "0");
    if (masks_from != PSEG_NO_MASKS) {
        call_add_number(&c, masks_from);
        call_add_number(&c, (int64_t)PSEG_ENDS_MASK_BYTES);
    }
    call_send(&c, q, false, queue_parse_ends, limit, done, ud);
}

static void put_text(uint8_t **to, const char *a, const char *b, const char *between)
{
    size_t n = strlen(a) + strlen(between) + strlen(b);

    (*to)[0] = (uint8_t)(n & 255);
    (*to)[1] = (uint8_t)(n >> 8);
    memcpy(*to + 2, a, strlen(a));
    memcpy(*to + 2 + strlen(a), between, strlen(between));
    memcpy(*to + 2 + strlen(a) + strlen(between), b, strlen(b));
    *to += 2 + n;
}

/* What a pack keeps of an item (packs.ITEM in lua/pack.lua): two texts with their lengths, the
 * spec, and a byte of checksum, by which Redis' Lua tells them apart: of a text this long it hashes
 * the last byte and only every few before it, where items of a batch are often all the same. NULL:
 * no memory. Caller frees. */
static uint8_t *kept_of(const pseg_queue_submit_args *job, int64_t seq, const char *custom_id,
                        size_t *len)
{
    char number[24];
    size_t room =
        32 + strlen(job->tenant) + strlen(job->image_sha256) + strlen(custom_id) + job->spec.len;
    uint8_t *kept = pseg_calloc(1, room), *end = kept;

    if (!kept)
        return NULL;
    snprintf(number, sizeof number, "%lld", (long long)seq);
    put_text(&end, job->tenant, job->image_sha256, ":");
    put_text(&end, number, custom_id, " ");
    if (job->spec.len)
        memcpy(end, job->spec.data, job->spec.len);
    *len = (size_t)(end - kept) + job->spec.len;
    uint32_t sum = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < *len; i++)
        sum = (sum ^ kept[i]) * 16777619u;
    kept[(*len)++] = (uint8_t)(sum ^ sum >> 8 ^ sum >> 16 ^ sum >> 24);
    return kept;
}

static void send_item(pseg_queue *q, const pseg_queue_submit_args *job, const char *batch,
                      int64_t seq, const char *custom_id, const char *refusal, pseg_queue_done done,
                      void *ud)
{
    char head[sizeof((call *)NULL)->terms + 100];
    size_t len = 0;
    call c;

    item_begin(&c);
    if (!queue_terms(c.terms, sizeof c.terms, job) || strpbrk(batch, " \t\n\v\f\r") ||
        snprintf(head, sizeof head, "%s %s %lld", c.terms, batch,
                 (long long)job->deadline_unix_us) >= (int)sizeof head) {
        queue_answer_bad_name(job, done, ud);
        return;
    }
    uint8_t *kept = kept_of(job, seq, custom_id, &len);
    if (!kept) {
        queue_answer_no_memory(done, ud);
        return;
    }
    call_add(&c, head);
    call_add(&c, job->id);
    call_add(&c, job->image_sha256);
    call_add_bytes(&c, (pseg_bytes){kept, len});
    call_add_bytes(&c, job->content);
    call_add_number(&c, seq);
    call_add(&c, refusal);
    item_send(&c, q, &item_kind, queue_parse_item, NULL, done, ud);
    pseg_free(kept);
}

static const pseg_queue_submit_args no_job = {
    .id = "", .request_id = "", .fingerprint = "", .model = "", .image_sha256 = ""};

void redis_submit_item(pseg_queue *q, const pseg_queue_item_args *a, pseg_queue_done done, void *ud)
{
    pseg_queue_submit_args job = a->refuse ? no_job : a->job;
    char refusal[sizeof a->refuse->msg + 64] = "";

    job.tenant = a->job.tenant;
    job.request_id = job.fingerprint = "";
    if (a->refuse)
        snprintf(refusal, sizeof refusal, "%s %s", pseg_reason_name(a->refuse->reason),
                 a->refuse->msg);
    send_item(q, &job, a->batch, a->seq, a->custom_id, refusal, done, ud);
}

void redis_seal_batch(pseg_queue *q, const char *tenant, const char *id, pseg_queue_done done,
                      void *ud)
{
    pseg_queue_submit_args job = no_job;

    job.tenant = tenant;
    send_item(q, &job, id, 0, "", "SEAL", done, ud);
}

/* ---- answers ---- */

void queue_parse_item(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (from->type != REDIS_REPLY_INTEGER || from->integer < 1)
        queue_bad_shape(r);
    else
        r->next_seq = from->integer;
}

enum { N_BATCH_VALUES = 15 }; /* of batch_view in lua/bulk.lua */

static bool batch_of(pseg_queue_batch *b, pseg_queue_reply *r, const redisReply *v, size_t at)
{
    if (!queue_is_array(v, at + N_BATCH_VALUES))
        return false;
    *b = (pseg_queue_batch){.id = queue_text_at(r, v, at),
                            .created_unix_us = queue_number_at(v, at + 1),
                            .ttl_ms = queue_number_at(v, at + 2),
                            .next_seq = queue_number_at(v, at + 3),
                            .sealed = queue_number_at(v, at + 4) == 1,
                            .labels = queue_bytes_at(r, v, at + 5),
                            .cancel_requested = queue_number_at(v, at + 6) == 1,
                            .refused = queue_number_at(v, at + 11),
                            .n_ended = queue_number_at(v, at + 12),
                            .expire_unix_us = queue_number_at(v, at + 13),
                            .finish_unix_us = queue_number_at(v, at + 14)};
    b->ended[PSEG_JOB_SUCCEEDED] = queue_number_at(v, at + 7);
    b->ended[PSEG_JOB_FAILED] = queue_number_at(v, at + 8);
    b->ended[PSEG_JOB_CANCELLED] = queue_number_at(v, at + 9);
    b->ended[PSEG_JOB_EXPIRED] = queue_number_at(v, at + 10);
    return true;
}

static bool batch_room(pseg_queue_reply *r, size_t n)
{
    r->batches = pseg_arena_calloc(r->arena, n, sizeof *r->batches);
    if (!r->batches)
        queue_no_room(r);
    return r->batches != NULL;
}

static void one_batch(pseg_queue_reply *r, const redisReply *v, size_t at)
{
    if (!batch_room(r, 1))
        return;
    if (batch_of(r->batches, r, v, at))
        r->n_batches = 1;
    else
        queue_bad_shape(r);
}

void queue_parse_batch(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!queue_is_array(from, 0))
        queue_bad_shape(r);
    else if (from->elements)
        one_batch(r, from, 0);
}

void queue_parse_created(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!queue_is_array(from, 1)) {
        queue_bad_shape(r);
        return;
    }
    r->created = queue_number_at(from, 0) == 1;
    one_batch(r, from, 1);
}

void queue_parse_batches(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!queue_is_array(from, 1)) {
        queue_bad_shape(r);
        return;
    }
    if (!batch_room(r, from->elements))
        return;
    for (size_t i = 1; i < from->elements; i++)
        r->n_batches += batch_of(&r->batches[r->n_batches], r, from->element[i], 0);
    r->next_id = queue_text_at(r, from, 0);
}

/* The two forms of an entry of batch_done, see lua/bulk.lua. `text` ends with a NUL. */
static bool item_of(pseg_queue_item *it, char *text, size_t len)
{
    char state[16], reason[64], job[PSEG_JOB_ID_LEN + 1];
    long long ms, seq;
    int n = 0;
    unsigned custom = 0;

    if (sscanf(text, "REFUSED %lld %63[A-Z_] %u %lld%n", &ms, reason, &custom, &seq, &n) == 4 &&
        n) {
        if (text[n] != ' ' || custom > len || (size_t)n + 1 + custom >= len ||
            text[(size_t)n + 1 + custom] != ' ')
            return false;
        text[(size_t)n + 1 + custom] = '\0';
        *it = (pseg_queue_item){.custom_id = text + n + 1,
                                .state = PSEG_JOB_FAILED,
                                .job_id = "",
                                .refusal = pseg_reason_from_name(reason),
                                .message = text + n + 2 + custom};
        if (it->refusal == PSEG_R_NONE)
            it->refusal = PSEG_R_INTERNAL; /* of a later version's */
    } else if (sscanf(text, "%15[A-Z] %lld %32[0-9a-f] %lld%n", state, &ms, job, &seq, &n) == 4 &&
               n && text[n] == ' ' && strlen(job) == PSEG_JOB_ID_LEN) {
        char *id = strchr(strchr(text, ' ') + 1, ' ') + 1;
        id[PSEG_JOB_ID_LEN] = '\0';
        *it = (pseg_queue_item){.custom_id = text + n + 1,
                                .state = pseg_job_state_parse(state),
                                .job_id = id,
                                .message = ""};
    } else {
        return false;
    }
    it->seq = seq;
    it->at_unix_us = ms > 0 && ms < INT64_MAX / 1000 ? ms * 1000 : 0;
    return true;
}

static bool end_masks(pseg_queue_reply *r, pseg_queue_item *it, const redisReply *from)
{
    pseg_bytes *all = pseg_arena_calloc(r->arena, from->elements + 1, sizeof *all);

    if (!all) {
        queue_no_room(r);
        return false;
    }
    for (size_t i = 0; i < from->elements; i++)
        all[i] = queue_bytes_at(r, from, i);
    it->masks = all;
    it->n_masks = from->elements;
    it->has_masks = true;
    return true;
}

static bool end_of(pseg_queue_reply *r, const redisReply *pair)
{
    pseg_queue_item *it = &r->items[r->n_items];

    if (!queue_is_array(pair, 2))
        return false;
    pseg_bytes entry = queue_bytes_at(r, pair, 0);
    if (!entry.data || !item_of(it, (char *)(uintptr_t)entry.data, entry.len))
        return false;
    const redisReply *job = pair->element[1];
    if (queue_is_array(job, 1) && !queue_job_of(&r->jobs[r->n_items], r, job, 0))
        return false;
    if (pair->elements > 2 && queue_is_array(pair->element[2], 0) &&
        !end_masks(r, it, pair->element[2]))
        return false;
    r->n_jobs = ++r->n_items;
    return true;
}

void queue_parse_ends(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!queue_is_array(from, 0)) {
        queue_bad_shape(r);
        return;
    }
    if (from->elements == 0)
        return;
    one_batch(r, from->element[0], 0);
    r->items = pseg_arena_calloc(r->arena, from->elements, sizeof *r->items);
    r->jobs = pseg_arena_calloc(r->arena, from->elements, sizeof *r->jobs);
    if (!r->items || !r->jobs) {
        queue_no_room(r);
        return;
    }
    for (size_t i = 1; i < from->elements && r->err.code == PSEG_OK; i++)
        if (!end_of(r, from->element[i]))
            queue_bad_shape(r);
}
