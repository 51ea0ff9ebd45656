/* Asking Sentinels which server is the master: whenever a connection to it has ended, and before it
 * is made anew. What they say may be old, so the server itself is asked for its role, too. (Redis'
 * "Guidelines for Redis clients with support for Redis Sentinel", steps 1 to 3.) */
#include "common/queue/queue_redis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool sentinel_is_wanted(const loop *lp)
{
    return lp->q->n_sentinels && !*lp->moved_host;
}

/* The line ends with this. A Sentinel that knows nothing is as good as one that is away. */
static void next_sentinel(loop *lp, const char *why)
{
    const redis_address *a = &lp->q->sentinels[lp->sentinel_at];
    char text[160];

    snprintf(text, sizeof text, "sentinel %.60s:%d: %s", a->host, a->port, why);
    line_fail(lp, &lp->sentinel, text);
}

static void on_address(loop *lp, line *l, const redisReply *from)
{
    const redisReply *host = NULL, *port = NULL;
    char why[120];
    long number = 0;

    if (from->type == REDIS_REPLY_ERROR) {
        next_sentinel(lp, from->str);
        return;
    }
    if (from->type == REDIS_REPLY_ARRAY && from->elements == 2) {
        host = from->element[0];
        port = from->element[1];
    }
    if (port && port->type == REDIS_REPLY_STRING)
        number = strtol(port->str, NULL, 10);
    if (!host || host->type != REDIS_REPLY_STRING || !*host->str ||
        host->len >= sizeof lp->moved_host || number < 1 || number > 65535) {
        snprintf(why, sizeof why, "it knows no master \"%.80s\"", lp->q->master_name);
        next_sentinel(lp, why);
        return;
    }
    snprintf(lp->moved_host, sizeof lp->moved_host, "%s", host->str);
    lp->moved_port = (int)number;
    lp->commands.retry_mono_us = lp->events.retry_mono_us = 0;
    l->told_lost = false;
    l->backoff_us = 0;
    line_end(l);
}

static void ask_address(loop *lp)
{
    line_say(lp, &lp->sentinel, on_address, 3,
             (const char *[]){"SENTINEL", "GET-MASTER-ADDR-BY-NAME", lp->q->master_name});
}

static void on_auth(loop *lp, line *l, const redisReply *from)
{
    (void)l;
    if (from->type == REDIS_REPLY_ERROR)
        next_sentinel(lp, from->str);
    else
        ask_address(lp);
}

/* Sentinels seldom want a password, and refuse one that they do not want: only where PING says so
 * they get that of the URL. */
static void on_ping(loop *lp, line *l, const redisReply *from)
{
    const redis_queue *q = lp->q;

    if (from->type != REDIS_REPLY_ERROR)
        ask_address(lp);
    else if (strncmp(from->str, "NOAUTH", 6) != 0 || !q->password)
        next_sentinel(lp, from->str);
    else if (*q->user)
        line_say(lp, l, on_auth, 3, (const char *[]){"AUTH", q->user, q->password});
    else
        line_say(lp, l, on_auth, 2, (const char *[]){"AUTH", q->password});
}

void sentinel_greet(loop *lp)
{
    line_say(lp, &lp->sentinel, on_ping, 1, (const char *[]){"PING"});
}

void sentinel_on_role(loop *lp, line *l, const redisReply *from)
{
    char why[128];

    if (from->type == REDIS_REPLY_ERROR) {
        line_fail(lp, l, from->str);
    } else if (from->type != REDIS_REPLY_ARRAY || from->elements < 1 ||
               from->element[0]->type != REDIS_REPLY_STRING ||
               strcmp(from->element[0]->str, "master") != 0) {
        snprintf(why, sizeof why, "%s:%d is not the master any more", lp->moved_host,
                 lp->moved_port);
        line_fail(lp, l, why);
    }
}
