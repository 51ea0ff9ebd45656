/* From dialling to the first request: credentials, durability, the functions. */
#include "common/queue/queue_redis.h"
#include "common/base/clock.h"
#include "common/queue/pseg_lua.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* ---- the greeting ---- */

/* False, and the line is ended, if the answer is an error. */
static bool greeted_well(loop *lp, line *l, const redisReply *from)
{
    if (from->type != REDIS_REPLY_ERROR)
        return true;
    if (!line_follow(lp, l, from))
        line_fail(lp, l,
                  strstr(from->str, "unknown command") ? "redis 7.0 or newer is needed"
                                                       : from->str);
    return false;
}

static void on_greeting(loop *lp, line *l, const redisReply *from)
{
    greeted_well(lp, l, from);
}

/* CONFIG GET append*: name, value, name, value ... */
static void on_log_settings(loop *lp, line *l, const redisReply *from)
{
    const char *only = "", *fsync = "";
    char why[160];

    if (!greeted_well(lp, l, from))
        return;
    for (size_t i = 0; from->type == REDIS_REPLY_ARRAY && i + 1 < from->elements; i += 2) {
        const char *name = from->element[i]->str, *value = from->element[i + 1]->str;
        if (name && value && strcmp(name, "appendonly") == 0)
            only = value;
        else if (name && value && strcmp(name, "appendfsync") == 0)
            fsync = value;
    }
    if (strcmp(only, "yes") == 0 && strcmp(fsync, "always") == 0) {
        line_is_ready(lp, l);
        return;
    }
    snprintf(why, sizeof why,
             "durability fsync needs appendonly yes and appendfsync always, redis has %s and %s",
             only, fsync);
    line_fail(lp, l, why);
}

static void on_replication(loop *lp, line *l, const redisReply *from)
{
    const char *at = from->str ? strstr(from->str, "connected_slaves:") : NULL;
    long long n = at ? strtoll(at + sizeof "connected_slaves:" - 1, NULL, 10) : 0;
    char why[160];

    if (!greeted_well(lp, l, from))
        return;
    if (n >= lp->q->base.opt.replicas) {
        line_is_ready(lp, l);
        return;
    }
    snprintf(why, sizeof why, "durability replicated needs %lld replicas, redis has %lld",
             (long long)lp->q->base.opt.replicas, n);
    line_fail(lp, l, why);
}

static void check_durability(loop *lp, line *l)
{
    switch (lp->q->base.opt.durability) {
    case PSEG_DURABILITY_FSYNC:
        line_say(lp, l, on_log_settings, 3, (const char *[]){"CONFIG", "GET", "append*"});
        break;
    case PSEG_DURABILITY_REPLICATED:
        line_say(lp, l, on_replication, 2, (const char *[]){"INFO", "replication"});
        break;
    default:
        line_is_ready(lp, l);
    }
}

/* INFO memory. A key that Redis evicts is a job that is lost, whatever was promised. */
static void on_memory(loop *lp, line *l, const redisReply *from)
{
    static const char name[] = "maxmemory_policy:";
    char why[160];

    if (!greeted_well(lp, l, from))
        return;
    const char *at = from->str ? strstr(from->str, name) : NULL;
    int n = at ? (int)strcspn(at += sizeof name - 1, "\r\n") : 0;
    if (!at || (n == 10 && strncmp(at, "noeviction", 10) == 0)) {
        check_durability(lp, l);
        return;
    }
    snprintf(why, sizeof why,
             "redis may throw jobs away: maxmemory-policy is %.*s, it must be noeviction",
             n < 40 ? n : 40, at);
    line_fail(lp, l, why);
}

/* The last question is whether the server gives what is promised. Workers promise nothing, and
 * their user may not ask. */
static void check_server(loop *lp, line *l)
{
    if (lp->q->base.opt.on_ready)
        check_durability(lp, l);
    else
        line_say(lp, l, on_memory, 2, (const char *[]){"INFO", "memory"});
}

/* In how many parts the queue is laid out. Where that is not this process' number, tenants would be
 * sought where they are not. */
static void on_layout(loop *lp, line *l, const redisReply *from)
{
    const pseg_queue *q = &lp->q->base;
    char why[160];

    /* Older functions, and no right to load others: whoever has it will ask. */
    if (from->type == REDIS_REPLY_ERROR && strstr(from->str, "Function not found")) {
        check_server(lp, l);
        return;
    }
    if (!greeted_well(lp, l, from))
        return;
    if (from->type == REDIS_REPLY_INTEGER && from->integer == (long long)q->n_layout) {
        check_server(lp, l);
        return;
    }
    snprintf(why, sizeof why,
             "queue \"%s\" lies in %lld parts, --redis names %zu: name all of them, or empty the "
             "queue first",
             q->opt.name, from->type == REDIS_REPLY_INTEGER ? from->integer : 0, q->n_layout);
    line_fail(lp, l, why);
}

static void check_layout(loop *lp, line *l)
{
    char n[24];

    snprintf(n, sizeof n, "%zu", lp->q->base.n_layout);
    line_say(lp, l, on_layout, 5, (const char *[]){"FCALL", "pseg1_layout", "1", lp->q->prefix, n});
}

static void on_loaded(loop *lp, line *l, const redisReply *from)
{
    if (from->type == REDIS_REPLY_ERROR)
        PSEG_WARN(lp->q->base.opt.log, "queue", "cannot load the queue's functions: %s", from->str);
    else
        PSEG_INFO(lp->q->base.opt.log, "queue", "loaded functions pseg1 revision=%d",
                  pseg_lua_REVISION);
    /* A user without the right to load them may still call what somebody else loads. */
    if (l->phase == LINE_GREETING)
        check_layout(lp, l);
}

void line_load_functions(loop *lp, line *l)
{
    line_say(lp, l, on_loaded, 4, (const char *[]){"FUNCTION", "LOAD", "REPLACE", pseg_lua});
}

static void on_revision(loop *lp, line *l, const redisReply *from)
{
    bool missing = from->type == REDIS_REPLY_ERROR && strstr(from->str, "Function not found");

    if (!missing && !greeted_well(lp, l, from))
        return;
    if (missing || (from->type == REDIS_REPLY_INTEGER && from->integer < pseg_lua_REVISION))
        line_load_functions(lp, l);
    else
        check_layout(lp, l);
}

static void line_greet(loop *lp, line *l)
{
    const redis_queue *q = lp->q;
    char db[16];

    if (q->password && *q->user)
        line_say(lp, l, on_greeting, 3, (const char *[]){"AUTH", q->user, q->password});
    else if (q->password)
        line_say(lp, l, on_greeting, 2, (const char *[]){"AUTH", q->password});
    snprintf(db, sizeof db, "%d", q->db);
    if (q->n_sentinels && l->redis)
        line_say(lp, l, sentinel_on_role, 1, (const char *[]){"ROLE"});
    if (q->db && l->redis)
        line_say(lp, l, on_greeting, 2, (const char *[]){"SELECT", db});
    if (l == &lp->commands && l->redis)
        line_say(lp, l, on_revision, 4,
                 (const char *[]){"FCALL_RO", "pseg1_revision", "1", q->prefix});
    else if (l->redis)
        watch_greet(lp);
}

static redisContext *dial(loop *lp, const line *l)
{
    const redis_queue *q = lp->q;
    redis_address to = q->nodes[lp->node_at];

    if (q->socket)
        return redisConnectUnixNonBlock(q->socket);
    if (l == &lp->sentinel)
        to = q->sentinels[lp->sentinel_at];
    else if (*lp->moved_host)
        to = (redis_address){lp->moved_host, lp->moved_port};
    return redisConnectNonBlock(to.host, to.port);
}

void line_dial(loop *lp, line *l)
{
    if (l->phase != LINE_DOWN || pseg_clock_mono_us() < l->retry_mono_us)
        return;
    if (lp->q->n_sentinels && l != &lp->sentinel && !*lp->moved_host)
        return; /* not before a Sentinel has named the master */
    l->phase = LINE_CONNECTING;
    redisContext *r = dial(lp, l);
    if (!r || r->err) {
        line_fail(lp, l, r ? r->errstr : "no memory");
        if (r)
            redisFree(r);
        return;
    }
    r->reader->maxbuf = 1 << 20;
    queue_bound_reader(r->reader, &lp->bounds);
    if (!lp->q->socket)
        redisEnableKeepAlive(r);
    l->redis = r;
    l->read_mono_us = l->written_mono_us = pseg_clock_mono_us();
    if (l == &lp->sentinel)
        sentinel_greet(lp);
    else
        line_greet(lp, l);
}

void line_connected(loop *lp, line *l)
{
    int e = 0;
    socklen_t n = sizeof e;

    if (getsockopt(l->redis->fd, SOL_SOCKET, SO_ERROR, &e, &n))
        e = errno;
    if (e)
        line_fail(lp, l, strerror(e));
    else
        l->phase = LINE_GREETING;
}
