/* The queue's thread: one connection for requests, pipelined, and one that blocks on events. */
#include "common/queue/queue_redis.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/queue/pseg_lua.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define FIRST_BACKOFF_US 50000
#define LAST_BACKOFF_US  1000000
/* While Redis goes on answering others, a request may wait this many time-outs. */
#define PATIENCE 5

static bool begins(const char *s, const char *with)
{
    return strncmp(s, with, strlen(with)) == 0;
}

/* ---- answering ---- */

/* A call of many requests answers each of them. */
static void answer_error(command *c, const pseg_err *err)
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

static void answer_lost(const loop *lp, command *c, const char *why, bool was_sent)
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
    answer_error(c, &e);
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

/* ---- lines: sending ---- */

static void push(line *l, command *c)
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

static void hold(line *l, command *c)
{
    c->next = NULL;
    if (l->held)
        l->held_tail->next = c;
    else
        l->held = c;
    l->held_tail = c;
}

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

    for (command *c = g->head; c && n < BATCH_ITEMS && (!n || bytes + c->len <= BATCH_BYTES);
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

/* Sends what waits of a kind, as long as few enough calls are under way. */
static void send_gathered(loop *lp, line *l, gathering *g)
{
    pseg_err e = PSEG_ERR_INIT;

    while (g->head && g->under_way < BATCHES_UNDER_WAY) {
        command *call = gathered_call(lp, g);
        if (call) {
            g->under_way++;
            push(l, call);
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
        answer_error(c, &e);
    }
}

static void gather(loop *lp, command *c)
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

/* What has not been sent when the line ends. */
static void answer_gathered(loop *lp, const char *why)
{
    for (int i = 0; i < N_BATCH_KINDS; i++) {
        command *c = lp->gathering[i].head;
        lp->gathering[i] = (gathering){0};
        for (command *next; c; c = next) {
            next = c->next_item;
            c->next_item = NULL;
            answer_lost(lp, c, why, false);
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

static void answer_unconfirmed(loop *lp, const char *why)
{
    command *c = lp->unconfirmed;

    lp->unconfirmed = lp->unconfirmed_tail = NULL;
    for (command *next; c; c = next) {
        next = c->next;
        for (command *item = c->next_item; item; item = item->next_item) {
            pseg_queue_reply_free(item->reply);
            item->reply = NULL;
        }
        answer_lost(lp, c, why, true);
    }
}

/* The answer to a call of many requests: one element for each, of which any may be an error. */
static void take_answers_of_batch(loop *lp, command *call, const redisReply *from)
{
    bool waits = waits_for_replicas(lp, call->kind);
    command *item = call->next_item;
    bool good = from->type == REDIS_REPLY_ARRAY && from->elements == call->n_asked;

    if (!waits)
        call->next_item = NULL;
    for (size_t i = 0; item; i++) {
        command *next = item->next_item;
        pseg_queue_reply *r = queue_reply_new(NULL);
        const redisReply *one = good ? from->element[i] : from;
        if (r->arena && one->type == REDIS_REPLY_ERROR)
            queue_error_of(&r->err, one->str);
        else if (r->arena && good)
            item->parse(r, one, item);
        else if (r->arena)
            pseg_err_set(&r->err, PSEG_R_BROKER_PROTOCOL, 0, PSEG_HERE,
                         "redis' answer has an unexpected shape");
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
    push(l, c);
}

/* As much as the socket takes. send(2) and not hiredis' buffer: that moves what is left after every
 * partial write, which is quadratic for an image, and raises SIGPIPE. */
static void line_write(loop *lp, line *l)
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

void line_fail(loop *lp, line *l, const char *why)
{
    const redis_queue *q = lp->q;

    snprintf(l->why, sizeof l->why, "%s", why);
    why = l->why; /* the other may lie in the connection that is freed here */
    if (!l->told_lost && !lp->stopping) {
        PSEG_WARN(q->base.opt.log, "queue", "redis is lost (%s): %s",
                  l == &lp->events ? "events" : "requests", why);
        l->told_lost = true;
    }
    if (l->phase == LINE_CONNECTING)
        lp->moved_host[0] = '\0';
    if (l == &lp->commands)
        for (int i = 0; i < N_BATCH_KINDS; i++)
            lp->gathering[i].under_way = 0;
    if (l->redis)
        redisFree(l->redis);
    l->redis = NULL;
    l->phase = LINE_DOWN;
    l->backoff_us = l->backoff_us ? 2 * l->backoff_us : FIRST_BACKOFF_US;
    if (l->backoff_us > LAST_BACKOFF_US)
        l->backoff_us = LAST_BACKOFF_US;
    l->retry_mono_us = pseg_clock_mono_us() + l->backoff_us;
    command *sent = l->head, *held = l->held, *unsent = l->unsent;
    bool was_sent = true;
    l->head = l->tail = l->unsent = l->held = l->held_tail = NULL;
    for (command *next; sent; sent = next) {
        next = sent->next;
        bool is_cut = sent == unsent;
        if (is_cut)
            was_sent = l->unsent_off > 0;
        answer_lost(lp, sent, why, was_sent);
        if (is_cut)
            was_sent = false;
    }
    for (command *next; held; held = next) {
        next = held->next;
        answer_lost(lp, held, why, false);
    }
    if (l == &lp->commands) {
        answer_unconfirmed(lp, why);
        answer_gathered(lp, why);
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
            gather(lp, c);
        else
            push(l, c);
    }
    for (int i = 0; i < N_BATCH_KINDS && l == &lp->commands; i++)
        send_gathered(lp, l, &lp->gathering[i]);
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
    if (!colon || sscanf(colon + 1, "%d", &port) != 1 || lp->q->socket)
        return false;
    *colon = '\0';
    snprintf(text, sizeof text, "the queue lies on %s:%d", host, port);
    line_fail(lp, l, text);
    /* After a few moves in a row it is a cluster in disorder: wait, and begin at the first node. */
    lp->n_moves++;
    lp->moved_host[0] = '\0';
    if (lp->n_moves < 5) {
        snprintf(lp->moved_host, sizeof lp->moved_host, "%s", *host ? host : lp->q->host);
        lp->moved_port = port;
        lp->commands.retry_mono_us = lp->events.retry_mono_us = 0;
    } else {
        lp->n_moves = 0;
    }
    return true;
}

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

/* The functions are there: the last question is whether the server gives what is promised. */
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

static void on_loaded(loop *lp, line *l, const redisReply *from)
{
    if (from->type == REDIS_REPLY_ERROR)
        PSEG_WARN(lp->q->base.opt.log, "queue", "cannot load the queue's functions: %s", from->str);
    else
        PSEG_INFO(lp->q->base.opt.log, "queue", "loaded functions pseg1 revision=%d",
                  pseg_lua_REVISION);
    /* A user without the right to load them may still call what somebody else loads. */
    if (l->phase == LINE_GREETING)
        check_durability(lp, l);
}

static void load_functions(loop *lp, line *l)
{
    line_say(lp, l, on_loaded, 4, (const char *[]){"FUNCTION", "LOAD", "REPLACE", pseg_lua});
}

static void on_revision(loop *lp, line *l, const redisReply *from)
{
    bool missing = from->type == REDIS_REPLY_ERROR && strstr(from->str, "Function not found");

    if (!missing && !greeted_well(lp, l, from))
        return;
    if (missing || (from->type == REDIS_REPLY_INTEGER && from->integer < pseg_lua_REVISION))
        load_functions(lp, l);
    else
        check_durability(lp, l);
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
    if (q->db && l->redis)
        line_say(lp, l, on_greeting, 2, (const char *[]){"SELECT", db});
    if (l == &lp->commands && l->redis)
        line_say(lp, l, on_revision, 4,
                 (const char *[]){"FCALL_RO", "pseg1_revision", "1", q->prefix});
    else if (l->redis)
        watch_greet(lp);
}

static void line_dial(loop *lp, line *l)
{
    const redis_queue *q = lp->q;
    const char *host = *lp->moved_host ? lp->moved_host : q->host;

    if (l->phase != LINE_DOWN || pseg_clock_mono_us() < l->retry_mono_us)
        return;
    l->phase = LINE_CONNECTING;
    redisContext *r = q->socket
                          ? redisConnectUnixNonBlock(q->socket)
                          : redisConnectNonBlock(host, *lp->moved_host ? lp->moved_port : q->port);
    if (!r || r->err) {
        line_fail(lp, l, r ? r->errstr : "no memory");
        if (r)
            redisFree(r);
        return;
    }
    r->reader->maxbuf = 1 << 20;
    queue_bound_reader(r->reader, &lp->bounds);
    if (!q->socket)
        redisEnableKeepAlive(r);
    l->redis = r;
    l->read_mono_us = l->written_mono_us = pseg_clock_mono_us();
    line_greet(lp, l);
}

static void line_connected(loop *lp, line *l)
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
        load_functions(lp, l);
        if (l->redis)
            push(l, c);
        else
            answer_lost(lp, c, l->why, false);
        return;
    }
    if (c->kind) {
        gathering *g = &lp->gathering[c->kind->index];
        g->under_way--;
        take_answers_of_batch(lp, c, from);
        send_gathered(lp, l, g);
    } else {
        pseg_queue_reply *r = queue_reply_new(NULL);
        if (r->arena && failed)
            queue_error_of(&r->err, from->str);
        else if (r->arena)
            c->parse(r, from, c);
        c->done(c->ud, r);
        command_free(c);
    }
    if (failed)
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
            answer_lost(lp, c, l->why, false);
        else if (l->phase != LINE_READY)
            hold(l, c);
        else if (c->kind)
            gather(lp, c);
        else
            push(l, c);
    }
    for (int i = 0; i < N_BATCH_KINDS && l->phase == LINE_READY; i++)
        send_gathered(lp, l, &lp->gathering[i]);
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

static void loop_wait(loop *lp, bool watches)
{
    line *ls[] = {&lp->commands, &lp->events};
    struct pollfd p[3] = {{.fd = lp->q->wake_fd, .events = POLLIN}, {.fd = -1}, {.fd = -1}};
    int64_t next = pseg_clock_mono_us() + 1000000;

    for (int i = 0; i < (watches ? 2 : 1); i++) {
        const line *l = ls[i];
        bool writes = l->phase == LINE_CONNECTING || l->unsent;
        if (l->redis)
            p[i + 1] = (struct pollfd){.fd = l->redis->fd,
                                       .events = (short)(POLLIN | (writes ? POLLOUT : 0))};
        if (line_next_us(l) < next)
            next = line_next_us(l);
    }
    int64_t wait_us = next - pseg_clock_mono_us();
    poll(p, 3, wait_us <= 0 ? 0 : (int)(wait_us / 1000) + 1);
    if (p[0].revents)
        take_inbox(lp);
    for (int i = 0; i < 2; i++)
        if (ls[i]->redis)
            line_serve(lp, ls[i], p[i + 1].revents);
}

void *queue_redis_run(void *arg)
{
    redis_queue *q = arg;
    bool watches = watch_is_wanted(q);
    loop *lp = q->loop;

    lp->q = q;
    lp->commands.timeout_us = lp->events.timeout_us = q->base.opt.timeout_ms * 1000;
    snprintf(lp->commands.why, sizeof lp->commands.why, "not connected yet");
    while (!lp->stopping) {
        line_dial(lp, &lp->commands);
        if (watches)
            line_dial(lp, &lp->events);
        loop_wait(lp, watches);
    }
    line_fail(lp, &lp->commands, "closing");
    line_fail(lp, &lp->events, "closing");
    return NULL;
}
