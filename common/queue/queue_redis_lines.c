/* A connection: what waits on it, writing, its end. */
#include "common/queue/queue_redis.h"
#include "common/base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define FIRST_BACKOFF_US 50000
#define LAST_BACKOFF_US  1000000

/* ---- lines: sending ---- */

void line_push(line *l, command *c)
{
    c->next = NULL;
    if (l->tail)
        l->tail->next = c;
    else
        l->head = c;
    l->tail = c;
    if (!l->unsent) {
        l->unsent = c;
        l->unsent_off = 0;
    }
}

void line_hold(line *l, command *c)
{
    c->next = NULL;
    if (l->held)
        l->held_tail->next = c;
    else
        l->held = c;
    l->held_tail = c;
}

void line_say(loop *lp, line *l, void (*internal)(loop *, line *, const redisReply *), int argc,
              const char **argv)
{
    command *c = l->redis ? command_new(argc, argv, NULL) : NULL;

    if (!c) {
        line_fail(lp, l, "no memory for a command");
        return;
    }
    c->internal = internal;
    c->since_mono_us = pseg_clock_mono_us();
    line_push(l, c);
}

void line_write(loop *lp, line *l)
{
    enum { BATCH = 64 };

    while (l->unsent) {
        struct iovec v[BATCH];
        struct msghdr m = {.msg_iov = v};
        size_t off = l->unsent_off;
        for (command *c = l->unsent; c && m.msg_iovlen < BATCH; c = c->next, off = 0)
            v[m.msg_iovlen++] =
                (struct iovec){(c->text ? c->text : c->own_text) + off, c->len - off};
        ssize_t n = sendmsg(l->redis->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (n < 0) {
            line_fail(lp, l, strerror(errno));
            return;
        }
        l->written_mono_us = pseg_clock_mono_us();
        for (size_t left = (size_t)n; left;) {
            size_t rest = l->unsent->len - l->unsent_off;
            if (left < rest) {
                l->unsent_off += left;
                break;
            }
            left -= rest;
            l->unsent = l->unsent->next;
            l->unsent_off = 0;
        }
    }
}

/* ---- lines: beginning and end ---- */

void line_end(line *l)
{
    if (l->redis)
        redisFree(l->redis);
    l->redis = NULL;
    l->phase = LINE_DOWN;
}

static const char *name_of(const loop *lp, const line *l)
{
    return l == &lp->events ? "events" : l == &lp->sentinel ? "sentinel" : "requests";
}

/* The address that a connection had is not to be trusted any more: another node of a cluster only
 * if it could not be reached or did not greet, a Sentinels' master in any case. */
static void forget_address(loop *lp, const line *l)
{
    if (lp->q->n_sentinels && l == &lp->sentinel)
        lp->sentinel_at = (lp->sentinel_at + 1) % lp->q->n_sentinels;
    else if (lp->q->n_sentinels || l->phase == LINE_CONNECTING ||
             (lp->q->is_cluster && l->phase == LINE_GREETING)) {
        if (!*lp->moved_host && lp->q->n_nodes)
            lp->node_at = (lp->node_at + 1) % lp->q->n_nodes;
        lp->moved_host[0] = '\0';
    }
}

void line_fail(loop *lp, line *l, const char *why)
{
    const redis_queue *q = lp->q;

    snprintf(l->why, sizeof l->why, "%s", why);
    why = l->why; /* the other may lie in the connection that is freed here */
    if (!l->told_lost && !lp->stopping) {
        PSEG_WARN(q->base.opt.log, "queue", "redis is lost (%s): %s", name_of(lp, l), why);
        l->told_lost = true;
    }
    forget_address(lp, l);
    if (l == &lp->commands)
        for (int i = 0; i < N_BATCH_KINDS; i++)
            lp->gathering[i].under_way = 0;
    line_end(l);
    l->backoff_us = l->backoff_us ? 2 * l->backoff_us : FIRST_BACKOFF_US;
    if (l->backoff_us > LAST_BACKOFF_US)
        l->backoff_us = LAST_BACKOFF_US;
    l->retry_mono_us = pseg_clock_mono_us() + l->backoff_us;
    if (l == &lp->sentinel && lp->commands.phase == LINE_DOWN)
        snprintf(lp->commands.why, sizeof lp->commands.why, "%s", why);
    if (q->n_sentinels && l == &lp->commands && lp->events.redis)
        line_fail(lp, &lp->events, why); /* both go to the same master */
    command *sent = l->head, *held = l->held, *unsent = l->unsent;
    bool was_sent = true;
    l->head = l->tail = l->unsent = l->held = l->held_tail = NULL;
    for (command *next; sent; sent = next) {
        next = sent->next;
        bool is_cut = sent == unsent;
        if (is_cut)
            was_sent = l->unsent_off > 0;
        queue_answer_lost(lp, sent, why, was_sent);
        if (is_cut)
            was_sent = false;
    }
    for (command *next; held; held = next) {
        next = held->next;
        queue_answer_lost(lp, held, why, false);
    }
    if (l == &lp->commands) {
        queue_answer_unconfirmed(lp, why);
        queue_answer_gathered(lp, why);
    }
}

void line_is_ready(loop *lp, line *l)
{
    command *c = l->held;

    l->phase = LINE_READY;
    l->held = l->held_tail = NULL;
    for (command *next; c; c = next) {
        next = c->next;
        if (c->kind)
            queue_gather(lp, c);
        else
            line_push(l, c);
    }
    for (int i = 0; i < N_BATCH_KINDS && l == &lp->commands; i++)
        queue_send_gathered(lp, l, &lp->gathering[i]);
}

bool line_follow(loop *lp, line *l, const redisReply *from)
{
    char host[64], text[128];
    int slot, port, used = 0;

    if (from->type != REDIS_REPLY_ERROR || sscanf(from->str, "MOVED %d %n", &slot, &used) != 1 ||
        !used)
        return false;
    snprintf(host, sizeof host, "%s", from->str + used);
    char *colon = strrchr(host, ':');
    if (!colon || sscanf(colon + 1, "%d", &port) != 1 || lp->q->socket || lp->q->n_sentinels)
        return false;
    *colon = '\0';
    snprintf(text, sizeof text, "the queue lies on %s:%d", host, port);
    lp->n_moves++;
    bool is_known = lp->n_moves < 5;
    /* What waits for the end of the greeting goes to that node, too. */
    command *held = is_known ? l->held : NULL, *held_tail = l->held_tail;
    if (held)
        l->held = l->held_tail = NULL;
    line_fail(lp, l, text);
    if (held) {
        l->held = held;
        l->held_tail = held_tail;
    }
    /* After a few moves in a row it is a cluster in disorder: wait, and begin at the first node. */
    lp->moved_host[0] = '\0';
    if (is_known) {
        snprintf(lp->moved_host, sizeof lp->moved_host, "%s",
                 *host ? host : lp->q->nodes[lp->node_at].host);
        lp->moved_port = port;
        lp->commands.retry_mono_us = lp->events.retry_mono_us = 0;
    } else {
        lp->n_moves = 0;
    }
    return true;
}
