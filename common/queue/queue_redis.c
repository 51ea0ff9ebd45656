/* The queue's thread: one connection for requests, pipelined, and one that blocks on events. */
#include "common/queue/queue_redis.h"
#include "common/base/clock.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/* While Redis goes on answering others, a request may wait this many time-outs. */
#define PATIENCE 5

static bool begins(const char *s, const char *with)
{
    return strncmp(s, with, strlen(with)) == 0;
}

/* ---- answering ---- */

void queue_answer_error(command *c, const pseg_err *err)
{
    for (command *item = c->next_item, *next; item; item = next) {
        next = item->next_item;
        item->done(item->ud, queue_reply_new(err));
        command_free(item);
    }
    if (c->done)
        c->done(c->ud, queue_reply_new(err));
    command_free(c);
}

void queue_answer_lost(const loop *lp, command *c, const char *why, bool was_sent)
{
    pseg_err e = PSEG_ERR_INIT;

    if (lp->stopping)
        pseg_err_set(&e, PSEG_R_CANCELLED, 0, PSEG_HERE, "the queue is being closed");
    else if (was_sent && c->is_write)
        pseg_err_set(&e, PSEG_R_BROKER_UNAVAILABLE, 0, PSEG_HERE,
                     "redis does not answer: %s; the outcome is unknown, repeating is safe", why);
    else
        pseg_err_set(&e, PSEG_R_BROKER_UNAVAILABLE, 0, PSEG_HERE, "redis %s: %s",
                     was_sent ? "does not answer" : "cannot be reached", why);
    queue_answer_error(c, &e);
}

void queue_error_of(pseg_err *err, const char *text)
{
    static const char *const unavailable[] = {
        "LOADING", "READONLY",  "MASTERDOWN", "CLUSTERDOWN", "BUSY",  "MISCONF", "NOAUTH",
        "NOPERM",  "WRONGPASS", "NOREPLICAS", "TRYAGAIN",    "MOVED", "ASK"};
    char name[64];
    int used = 0;

    if (sscanf(text, "PSEG %63[A-Z_] %n", name, &used) == 1 && used > 0) {
        pseg_reason reason = pseg_reason_from_name(name);
        pseg_err_set(err, reason ? reason : PSEG_R_BROKER_PROTOCOL, 0, PSEG_HERE, "%s",
                     text[used] ? text + used : name);
        return;
    }
    if (begins(text, "OOM") || strstr(text, "-OOM")) {
        pseg_err_set(err, PSEG_R_BROKER_FULL, 0, PSEG_HERE,
                     "redis' memory is full (maxmemory); try again later or give it more");
        return;
    }
    pseg_reason reason = PSEG_R_BROKER_PROTOCOL;
    for (size_t i = 0; i < sizeof unavailable / sizeof *unavailable; i++)
        if (begins(text, unavailable[i]))
            reason = PSEG_R_BROKER_UNAVAILABLE;
    if (strstr(text, "Function not found"))
        reason = PSEG_R_BROKER_UNAVAILABLE;
    pseg_err_set(err, reason, 0, PSEG_HERE, "redis %s: %s",
                 reason == PSEG_R_BROKER_UNAVAILABLE ? "refuses" : "answered", text);
}

enum { MAX_ELEMENTS = 1 << 20 }; /* of one array: a list of 1,000 jobs has 20,000 in all */

static void *create_bounded(const redisReadTask *task, int elements)
{
    const reader_bounds *b = task->privdata;

    return elements <= MAX_ELEMENTS ? b->create_array(task, elements) : NULL;
}

void queue_bound_reader(redisReader *r, reader_bounds *b)
{
    if (!b->create_array) {
        b->functions = *r->fn;
        b->create_array = r->fn->createArray;
        b->functions.createArray = create_bounded;
    }
    r->fn = &b->functions;
    r->privdata = b;
}

/* ---- lines: reading ---- */

static command *pop(line *l)
{
    command *c = l->head;

    l->head = c->next;
    if (!l->head)
        l->tail = NULL;
    if (l->unsent == c)
        l->unsent = l->head; /* an answer before the question: only a broken server does that */
    return c;
}

static void answered_well(loop *lp, line *l)
{
    l->backoff_us = 0;
    if (l->told_lost)
        PSEG_INFO(lp->q->base.opt.log, "queue", "redis answers again (%s)",
                  l == &lp->events ? "events" : "requests");
    l->told_lost = false;
}

/* One answer for the oldest request. */
static void take_answer(loop *lp, line *l, const redisReply *from)
{
    command *c = pop(l);
    bool failed = from->type == REDIS_REPLY_ERROR;

    if (c->internal) {
        c->internal(lp, l, from);
        command_free(c);
        if (l == &lp->events && l->phase == LINE_READY)
            answered_well(lp, l);
        return;
    }
    atomic_store(&lp->q->answered_mono_us, pseg_clock_mono_us());
    answered_well(lp, l);
    lp->n_moves = 0;
    if (failed && strstr(from->str, "Function not found") && !c->was_resent) {
        /* Somebody flushed the functions: load them and ask again. */
        c->was_resent = true;
        c->since_mono_us = pseg_clock_mono_us();
        line_load_functions(lp, l);
        if (l->redis)
            line_push(l, c);
        else
            queue_answer_lost(lp, c, l->why, false);
        return;
    }
    if (c->kind) {
        gathering *g = &lp->gathering[c->kind->index];
        g->under_way--;
        queue_take_batch(lp, c, from);
        queue_send_gathered(lp, l, g);
    } else {
        pseg_queue_reply *r = queue_reply_new(NULL);
        if (r->arena && failed)
            queue_error_of(&r->err, from->str);
        else if (r->arena)
            c->parse(r, from, c);
        c->done(c->ud, r);
        command_free(c);
    }
    if (failed && begins(from->str, "READONLY"))
        line_fail(lp, l, from->str); /* it was a master: dialled anew, another may answer */
    else if (failed)
        line_follow(lp, l, from);
}

/* False when the line was ended by an answer. */
static bool take_answers(loop *lp, line *l)
{
    redisContext *redis = l->redis;
    void *r = NULL;

    while (redisReaderGetReply(redis->reader, &r) == REDIS_OK && r) {
        if (l->head)
            take_answer(lp, l, r);
        else
            line_fail(lp, l, "an answer that nobody asked for");
        freeReplyObject(r);
        r = NULL;
        if (l->redis != redis)
            return false;
    }
    if (redis->reader->err) {
        line_fail(lp, l, redis->reader->errstr);
        return false;
    }
    return true;
}

static void line_read(loop *lp, line *l)
{
    for (;;) {
        ssize_t n = recv(l->redis->fd, lp->buf, sizeof lp->buf, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (n <= 0) {
            line_fail(lp, l, n ? strerror(errno) : "redis closed the connection");
            return;
        }
        l->read_mono_us = pseg_clock_mono_us();
        if (redisReaderFeed(l->redis->reader, (const char *)lp->buf, (size_t)n) != REDIS_OK) {
            line_fail(lp, l, "no memory for an answer");
            return;
        }
        if (!take_answers(lp, l) || (size_t)n < sizeof lp->buf)
            return;
    }
}

/* ---- time ---- */

/* When the line counts as dead: timeout_us after the last sign of life. Writing is one only while
 * the oldest command is not wholly written: a frozen Redis lets its socket fill for a while. */
static int64_t line_dies_at(const line *l)
{
    int64_t at = INT64_MAX;

    if (l->head) {
        int64_t since = l->head->since_mono_us, limit = since + PATIENCE * l->timeout_us;
        if (l->read_mono_us > since)
            since = l->read_mono_us;
        if (l->head == l->unsent && l->written_mono_us > since)
            since = l->written_mono_us;
        at = since + l->timeout_us < limit ? since + l->timeout_us : limit;
    }
    if (l->held && l->held->since_mono_us + l->timeout_us < at)
        at = l->held->since_mono_us + l->timeout_us;
    return at;
}

static void line_check_time(loop *lp, line *l)
{
    if (pseg_clock_mono_us() < line_dies_at(l))
        return;
    char why[80];
    snprintf(why, sizeof why, "no answer within %lld ms", (long long)(l->timeout_us / 1000));
    line_fail(lp, l, why);
}

static int64_t line_next_us(const line *l)
{
    return l->phase == LINE_DOWN ? l->retry_mono_us : line_dies_at(l);
}

/* ---- the thread ---- */

static void take_inbox(loop *lp)
{
    line *l = &lp->commands;
    command *c = queue_take_inbox(lp->q, &lp->stopping);
    int64_t now = pseg_clock_mono_us();

    for (command *next; c; c = next) {
        next = c->next;
        c->since_mono_us = now;
        if (lp->stopping || l->phase == LINE_DOWN)
            queue_answer_lost(lp, c, l->why, false);
        else if (l->phase != LINE_READY)
            line_hold(l, c);
        else if (c->kind)
            queue_gather(lp, c);
        else
            line_push(l, c);
    }
    for (int i = 0; i < N_BATCH_KINDS && l->phase == LINE_READY; i++)
        queue_send_gathered(lp, l, &lp->gathering[i]);
}

static void line_serve(loop *lp, line *l, short revents)
{
    if (l->phase == LINE_CONNECTING && revents)
        line_connected(lp, l);
    if (l->phase >= LINE_GREETING && revents & (POLLIN | POLLHUP | POLLERR))
        line_read(lp, l);
    if (l->phase >= LINE_GREETING && l->unsent)
        line_write(lp, l);
    if (l->redis)
        line_check_time(lp, l);
}

/* A line that is down has, unless it must not be dialled now. */
static bool line_has_work(const loop *lp, const line *l)
{
    if (!lp->q->n_sentinels || l->redis)
        return true;
    return (l == &lp->sentinel) == sentinel_is_wanted(lp);
}

/* Events first, and then what they make others ask for, in the same round. */
static void loop_wait(loop *lp, bool watches)
{
    enum { N_LINES = 3 };
    line *ls[N_LINES] = {&lp->events, &lp->sentinel, &lp->commands};
    const bool is_used[N_LINES] = {watches, lp->q->n_sentinels > 0, true};
    struct pollfd p[N_LINES + 1] = {{.fd = lp->q->wake_fd, .events = POLLIN}};
    int64_t next = pseg_clock_mono_us() + 1000000;

    for (int i = 0; i < N_LINES; i++) {
        const line *l = ls[i];
        p[i + 1].fd = -1;
        if (!is_used[i] || !line_has_work(lp, l))
            continue;
        bool writes = l->phase == LINE_CONNECTING || l->unsent;
        if (l->redis)
            p[i + 1] = (struct pollfd){.fd = l->redis->fd,
                                       .events = (short)(POLLIN | (writes ? POLLOUT : 0))};
        if (line_next_us(l) < next)
            next = line_next_us(l);
    }
    int64_t wait_us = queue_has_inbox(lp->q) ? 0 : next - pseg_clock_mono_us();
    poll(p, N_LINES + 1, wait_us <= 0 ? 0 : (int)(wait_us / 1000) + 1);
    if (p[0].revents)
        queue_heard_wake(lp->q);
    for (int i = 0; i < N_LINES; i++) {
        if (ls[i] == &lp->commands)
            take_inbox(lp);
        if (ls[i]->redis)
            line_serve(lp, ls[i], p[i + 1].revents);
    }
    take_inbox(lp);
    if (lp->commands.phase >= LINE_GREETING && lp->commands.unsent)
        line_write(lp, &lp->commands);
}

void *queue_redis_run(void *arg)
{
    redis_queue *q = arg;
    bool watches = watch_is_wanted(q);
    loop *lp = q->loop;

    lp->q = q;
    queue_enter_thread(q);
    lp->commands.timeout_us = lp->events.timeout_us = lp->sentinel.timeout_us =
        q->base.opt.timeout_ms * 1000;
    snprintf(lp->commands.why, sizeof lp->commands.why, "not connected yet");
    while (!lp->stopping) {
        if (sentinel_is_wanted(lp))
            line_dial(lp, &lp->sentinel);
        line_dial(lp, &lp->commands);
        if (watches)
            line_dial(lp, &lp->events);
        loop_wait(lp, watches);
    }
    line_fail(lp, &lp->commands, "closing");
    line_fail(lp, &lp->events, "closing");
    line_fail(lp, &lp->sentinel, "closing");
    return NULL;
}
