/* Any bytes as Redis' answer to each request, and to the read of the watched streams: what hiredis
 * makes of them is given to the parser that the first byte names, with as many asked for as the
 * second says. What comes out is whole: texts end, arrays are as long as they claim. */
#include "common/base/alloc.h"
#include "common/base/utf8.h"
#include "common/queue/queue_redis.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile size_t sum; /* so that what is read is read */

static void text(const char *s)
{
    if (!s)
        abort();
    sum += strlen(s);
}

static void bytes(pseg_bytes b)
{
    if (!b.data && b.len)
        abort();
    for (size_t i = 0; i < b.len; i++)
        sum += b.data[i];
}

static void job(const pseg_job *j)
{
    if (!j->id)
        return; /* not found */
    text(j->id);
    text(j->tenant);
    text(j->request_id);
    text(j->model);
    text(j->worker);
    text(j->message);
    text(pseg_job_state_name(j->state));
    text(pseg_reason_name(j->reason));
    bytes(j->spec);
    bytes(j->result);
}

static void use(const pseg_queue_reply *r, size_t n_asked)
{
    for (size_t i = 0; i < r->n_jobs; i++)
        job(&r->jobs[i]);
    for (size_t i = 0; i < r->n_blobs; i++)
        bytes(r->blobs[i]);
    for (size_t i = 0; i < r->n_images; i++)
        sum += r->images[i].size_bytes;
    for (size_t i = 0; i < r->n_workers; i++) {
        const pseg_queue_worker *w = &r->workers[i];
        text(w->id), text(w->model), text(w->digest), text(w->device), text(w->version);
    }
    for (size_t i = 0; i < r->n_claims; i++) {
        const pseg_queue_claim *c = &r->claims[i];
        text(c->id), text(c->tenant), text(c->image), bytes(c->spec);
    }
    for (size_t i = 0; i < r->n_leases; i++)
        sum += r->leases[i];
    for (size_t i = 0; i < r->n_cases && r->cases[i].id; i++) {
        const pseg_queue_case *c = &r->cases[i];
        text(c->id), text(c->tenant), text(c->model), text(c->message), text(c->request_id);
        text(c->evidence);
    }
    for (size_t i = 0; i < r->n_events; i++) {
        const pseg_queue_event *e = &r->events[i];
        if (e->id)
            text(e->id), text(e->tenant), text(e->batch), text(e->worker);
    }
    if (r->next_id)
        text(r->next_id);
    if (r->n_leases > n_asked || r->n_images > n_asked + 1)
        abort();
}

static void on_event(void *ud, const pseg_queue_event *e)
{
    (void)ud;
    if (!e)
        return;
    text(e->id), text(e->tenant), text(e->batch), text(e->worker);
    text(pseg_job_state_name(e->state));
}

static void on_ready(void *ud)
{
    (void)ud;
}

/* As the thread does for one answer; the line is down, so that what is asked next goes nowhere. */
static void watch(const redisReply *from)
{
    static redis_queue q = {.prefix = "pseg:{default}:",
                            .base.opt = {.on_event = on_event,
                                         .on_ready = on_ready,
                                         .watch_model = "scenes",
                                         .timeout_ms = 2000}};
    loop *lp = pseg_calloc(1, sizeof *lp);

    if (!lp)
        return;
    lp->q = &q;
    lp->stopping = true;
    watch_on_read(lp, &lp->events, from);
    if (!memchr(lp->last_event, '\0', sizeof lp->last_event) ||
        !memchr(lp->last_ready, '\0', sizeof lp->last_ready))
        abort();
    pseg_free(lp);
}

/* A good answer that `bytes` do not hold: it says so, and blames nobody else. */
static void parse_in(size_t bytes, size_t which, size_t n_asked, const redisReply *from)
{
    pseg_queue_reply r = {.arena = pseg_arena_new(bytes)};
    command c = {.n_asked = n_asked};

    if (r.arena)
        queue_reply_parsers[which](&r, from, &c);
    if (r.err.code == PSEG_OK)
        use(&r, n_asked);
    else if (r.err.reason != PSEG_R_OUT_OF_MEMORY)
        abort();
    pseg_arena_free(r.arena);
}

static void parse(size_t which, size_t n_asked, const redisReply *from)
{
    pseg_queue_reply *r = queue_reply_new(NULL);
    command c = {.n_asked = n_asked};

    if (r->arena && from->type == REDIS_REPLY_ERROR)
        queue_error_of(&r->err, from->str);
    else if (r->arena)
        queue_reply_parsers[which](r, from, &c);
    size_t used = r->arena ? pseg_arena_used(r->arena) : 0;
    for (size_t bytes = used / 8; bytes && bytes < used && r->err.code == PSEG_OK;
         bytes += used / 8)
        if (from->type != REDIS_REPLY_ERROR)
            parse_in(bytes, which, n_asked, from);
    if (r->err.code == PSEG_OK)
        use(r, n_asked);
    else if (r->err.code > 0 || !r->err.msg[0] || strchr(r->err.msg, '\n') ||
             !pseg_utf8_is_valid(r->err.msg, strlen(r->err.msg)))
        abort();
    pseg_queue_reply_free(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    void *from = NULL;
    reader_bounds bounds = {{0}, NULL};

    if (size < 2)
        return 0;
    redisReader *reader = redisReaderCreate();
    if (!reader)
        abort();
    queue_bound_reader(reader, &bounds);
    if (redisReaderFeed(reader, (const char *)data + 2, size - 2) != REDIS_OK)
        abort();
    while (redisReaderGetReply(reader, &from) == REDIS_OK && from) {
        size_t which = data[0] % (queue_n_reply_parsers + 1);
        if (which == queue_n_reply_parsers)
            watch(from);
        else
            parse(which, data[1] % 8, from);
        freeReplyObject(from);
        from = NULL;
    }
    redisReaderFree(reader);
    return 0;
}
