/* Requests that travel together, and those that wait for replicas. */
#include "common/queue/queue_redis.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <string.h>

/* ---- requests that travel together ---- */

/* The arguments of a formatted command, without the line that counts them. */
static const char *arguments_of(const command *c, size_t *len)
{
    const char *nl = memchr(c->text, '\n', c->len);

    *len = c->len - (size_t)(nl + 1 - c->text);
    return nl + 1;
}

/* One call of all that waits of g, up to the bounds. NULL: no memory, and g is as it was. */
static command *gathered_call(loop *lp, gathering *g)
{
    char numbers[6][24], count[32];
    const char *argv[10] = {"FCALL", g->head->kind->function, "1", lp->q->prefix};
    int n_head = queue_batch_head(lp->q, g->head->kind, numbers), n_args = 4 + n_head, n = 0;
    size_t bytes = 0, len;
    command *last = NULL;

    for (command *c = g->head; c && n < c->kind->most && (!n || bytes + c->len <= BATCH_BYTES);
         c = c->next_item, n++) {
        n_args += c->n_args;
        bytes += c->len;
        last = c;
    }
    for (int i = 0; i < n_head; i++)
        argv[4 + i] = numbers[i];
    command *call = command_new(4 + n_head, argv, NULL);
    if (!call)
        return NULL;
    const char *head = arguments_of(call, &len);
    int n_count = snprintf(count, sizeof count, "*%d\r\n", n_args);
    char *text = pseg_calloc(1, (size_t)n_count + len + bytes);
    if (!text) {
        command_free(call);
        return NULL;
    }
    memcpy(text, count, (size_t)n_count);
    memcpy(text + n_count, head, len);
    size_t used = (size_t)n_count + len;
    call->next_item = g->head;
    for (command *c = g->head;; c = c->next_item) {
        const char *args = arguments_of(c, &len);
        memcpy(text + used, args, len);
        used += len;
        redisFreeCommand(c->text); /* an image is held once */
        c->text = NULL;
        if (c == last)
            break;
    }
    g->head = last->next_item;
    last->next_item = NULL;
    if (!g->head)
        g->tail = NULL;
    g->n -= (size_t)n;
    command_set_text(call, text, used);
    call->kind = call->next_item->kind;
    call->is_write = true;
    call->n_asked = (size_t)n;
    call->since_mono_us = pseg_clock_mono_us();
    return call;
}

static bool waits_for_replicas(const loop *lp, const batch_kind *kind);
static void ask_replicas(loop *lp, line *l);

void queue_send_gathered(loop *lp, line *l, gathering *g)
{
    pseg_err e = PSEG_ERR_INIT;

    while (g->head && g->under_way < BATCHES_UNDER_WAY) {
        command *call = gathered_call(lp, g);
        if (call) {
            g->under_way++;
            line_push(l, call);
            if (waits_for_replicas(lp, call->kind))
                ask_replicas(lp, l);
            if (!l->redis)
                return;
            continue;
        }
        command *c = g->head;
        g->head = c->next_item;
        c->next_item = NULL;
        if (!g->head)
            g->tail = NULL;
        pseg_err_set(&e, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory for a request to redis");
        queue_answer_error(c, &e);
    }
}

void queue_gather(loop *lp, command *c)
{
    gathering *g = &lp->gathering[c->kind->index];

    c->next_item = NULL;
    if (g->tail)
        g->tail->next_item = c;
    else
        g->head = c;
    g->tail = c;
    g->n++;
}

void queue_answer_gathered(loop *lp, const char *why)
{
    for (int i = 0; i < N_BATCH_KINDS; i++) {
        command *c = lp->gathering[i].head;
        lp->gathering[i] = (gathering){0};
        for (command *next; c; c = next) {
            next = c->next_item;
            c->next_item = NULL;
            queue_answer_lost(lp, c, why, false);
        }
    }
}

/* ---- durability ---- */

static bool waits_for_replicas(const loop *lp, const batch_kind *kind)
{
    return kind->is_promise && lp->q->base.opt.durability == PSEG_DURABILITY_REPLICATED;
}

/* The answer to WAIT: how many replicas have what this connection has written. It is that of the
 * oldest call whose requests wait. */
static void on_waited(loop *lp, line *l, const redisReply *from)
{
    const pseg_queue_options *o = &lp->q->base.opt;
    command *c = lp->unconfirmed;
    long long n = from->type == REDIS_REPLY_INTEGER ? from->integer : 0;

    (void)l;
    if (!c)
        return;
    lp->unconfirmed = c->next;
    if (!lp->unconfirmed)
        lp->unconfirmed_tail = NULL;
    for (command *item = c->next_item, *next; item; item = next) {
        next = item->next_item;
        pseg_queue_reply *r = item->reply;
        item->reply = NULL;
        if (n < o->replicas && r->arena && r->err.code == PSEG_OK)
            pseg_err_set(&r->err, PSEG_R_BROKER_UNAVAILABLE, 0, PSEG_HERE,
                         "stored, but only %lld of %lld replicas have it; repeating is safe", n,
                         (long long)o->replicas);
        item->done(item->ud, r);
        command_free(item);
    }
    command_free(c);
}

static void ask_replicas(loop *lp, line *l)
{
    char replicas[24], ms[24];

    snprintf(replicas, sizeof replicas, "%lld", (long long)lp->q->base.opt.replicas);
    snprintf(ms, sizeof ms, "%lld", (long long)(l->timeout_us / 2000));
    line_say(lp, l, on_waited, 3, (const char *[]){"WAIT", replicas, ms});
}

void queue_answer_unconfirmed(loop *lp, const char *why)
{
    command *c = lp->unconfirmed;

    lp->unconfirmed = lp->unconfirmed_tail = NULL;
    for (command *next; c; c = next) {
        next = c->next;
        for (command *item = c->next_item; item; item = item->next_item) {
            pseg_queue_reply_free(item->reply);
            item->reply = NULL;
        }
        queue_answer_lost(lp, c, why, true);
    }
}

void queue_take_batch(loop *lp, command *call, const redisReply *from)
{
    bool waits = waits_for_replicas(lp, call->kind);
    command *item = call->next_item;
    bool good = from->type == REDIS_REPLY_ARRAY && from->elements == call->n_asked;

    if (!waits)
        call->next_item = NULL;
    for (size_t i = 0; item; i++) {
        command *next = item->next_item;
        pseg_queue_reply *r = item->reply ? item->reply : queue_reply_new(NULL);
        item->reply = NULL;
        const redisReply *one = good ? from->element[i] : from;
        if (r->arena && one->type == REDIS_REPLY_ERROR)
            queue_error_of(&r->err, one->str);
        else if (r->arena && good)
            item->parse(r, one, item);
        else if (r->arena)
            pseg_err_set(&r->err, PSEG_R_BROKER_PROTOCOL, 0, PSEG_HERE,
                         "redis' answer has an unexpected shape");
        if (r->arena && r->err.code != PSEG_OK) {
            r->jobs = NULL;
            r->n_jobs = 0;
        }
        if (waits) {
            item->reply = r;
        } else {
            item->done(item->ud, r);
            command_free(item);
        }
        item = next;
    }
    if (!waits) {
        command_free(call);
        return;
    }
    call->next = NULL;
    if (lp->unconfirmed)
        lp->unconfirmed_tail->next = call;
    else
        lp->unconfirmed = call;
    lp->unconfirmed_tail = call;
}
