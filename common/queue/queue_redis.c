/* The queue's thread: one connection for commands, pipelined, and one that blocks on events. */
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
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define RETRY_US   200000
#define BLOCK_MS   "1000" /* how long one XREAD waits; the connection is checked that often */
#define MAX_ANSWER ((size_t)256 << 20)

/* One connection with the commands that wait for its answers, in order. */
typedef struct line {
    redisContext *redis;
    bool connecting, want_write;
    command *head, *tail;
    int64_t retry_mono_us, timeout_us;
    char why[160]; /* the last fault */
} line;

typedef struct loop {
    pseg_queue *q;
    line commands, events;
    char last_event[40], last_ready[40]; /* stream positions; "$" after a reconnect */
    bool told_lost;
} loop;

/* ---- answers ---- */

static pseg_queue_reply no_memory_reply = {.err = {.code = PSEG_ENOMEM,
                                                   .reason = PSEG_R_OUT_OF_MEMORY,
                                                   .where = PSEG_HERE,
                                                   .msg = "no memory for an answer of the queue"}};

pseg_queue_reply *queue_reply_new(const pseg_err *err)
{
    pseg_arena *a = pseg_arena_new(MAX_ANSWER);
    pseg_queue_reply *r = a ? pseg_arena_calloc(a, 1, sizeof *r) : NULL;

    if (!r) {
        pseg_arena_free(a);
        return &no_memory_reply;
    }
    r->arena = a;
    if (err)
        r->err = *err;
    return r;
}

void pseg_queue_reply_free(pseg_queue_reply *r)
{
    if (r && r != &no_memory_reply)
        pseg_arena_free(r->arena);
}

static void command_free(command *c)
{
    if (c->text)
        redisFreeCommand(c->text);
    pseg_free(c);
}

static void answer_error(command *c, const pseg_err *err)
{
    if (c->done)
        c->done(c->ud, queue_reply_new(err));
    command_free(c);
}

/* ---- lines ---- */

static void push(line *l, command *c)
{
    c->next = NULL;
    if (l->tail)
        l->tail->next = c;
    else
        l->head = c;
    l->tail = c;
}

static command *pop(line *l)
{
    command *c = l->head;

    l->head = c->next;
    if (!l->head)
        l->tail = NULL;
    return c;
}

static void line_close(loop *lp, line *l, const char *why)
{
    const pseg_queue *q = lp->q;

    if (!l->redis && !l->head)
        return;
    if (l == &lp->commands && !lp->told_lost && !q->stopping) {
        PSEG_WARN(q->opt.log, "queue", "redis is lost: %s", why);
        lp->told_lost = true;
    }
    if (l->redis)
        redisFree(l->redis);
    l->redis = NULL;
    l->connecting = l->want_write = false;
    l->retry_mono_us = pseg_clock_mono_us() + RETRY_US;
    snprintf(l->why, sizeof l->why, "%s", why);
    while (l->head) {
        command *c = pop(l);
        pseg_err e = PSEG_ERR_INIT;
        if (q->stopping)
            pseg_err_set(&e, PSEG_R_CANCELLED, 0, PSEG_HERE, "the queue is being closed");
        else
            pseg_err_set(&e, PSEG_R_BROKER_UNAVAILABLE, 0, PSEG_HERE, "redis does not answer: %s%s",
                         why, c->is_write ? "; the outcome is unknown, repeating is safe" : "");
        answer_error(c, &e);
    }
}

static command *internal_command(int argc, const char **argv, const size_t *len)
{
    command *c = pseg_calloc(1, sizeof *c);

    if (!c)
        return NULL;
    int n = redisFormatCommandArgv(&c->text, argc, argv, (size_t *)(uintptr_t)len);
    if (n < 0) {
        pseg_free(c);
        return NULL;
    }
    c->len = (size_t)n;
    return c;
}

static void line_send(line *l, command *c)
{
    redisAppendFormattedCommand(l->redis, c->text, c->len);
    c->sent_mono_us = pseg_clock_mono_us();
    push(l, c);
    l->want_write = true;
}

static void line_send_words(line *l, int argc, const char **argv)
{
    command *c = internal_command(argc, argv, NULL);

    if (c)
        line_send(l, c);
}

/* The first commands of every connection. */
static void line_greet(loop *lp, line *l)
{
    const pseg_queue *q = lp->q;
    char db[16];

    if (q->password && *q->user)
        line_send_words(l, 3, (const char *[]){"AUTH", q->user, q->password});
    else if (q->password)
        line_send_words(l, 2, (const char *[]){"AUTH", q->password});
    snprintf(db, sizeof db, "%d", q->db);
    if (q->db)
        line_send_words(l, 2, (const char *[]){"SELECT", db});
    if (l == &lp->commands)
        line_send_words(l, 4, (const char *[]){"FUNCTION", "LOAD", "REPLACE", pseg_lua});
}

static void line_dial(loop *lp, line *l)
{
    const pseg_queue *q = lp->q;
    int64_t now = pseg_clock_mono_us();

    if (l->redis || now < l->retry_mono_us)
        return;
    redisContext *r =
        q->socket ? redisConnectUnixNonBlock(q->socket) : redisConnectNonBlock(q->host, q->port);
    l->retry_mono_us = now + RETRY_US;
    if (!r || r->err) {
        snprintf(l->why, sizeof l->why, "%s", r ? r->errstr : "no memory");
        if (l == &lp->commands && !lp->told_lost) {
            PSEG_WARN(q->opt.log, "queue", "cannot reach redis: %s", l->why);
            lp->told_lost = true;
        }
        if (r)
            redisFree(r);
        return;
    }
    r->reader->maxbuf = 1 << 20;
    l->redis = r;
    l->connecting = true;
    line_greet(lp, l);
}

/* The socket's connect has ended, well or not. */
static bool line_connected(loop *lp, line *l)
{
    int e = 0;
    socklen_t n = sizeof e;

    if (getsockopt(l->redis->fd, SOL_SOCKET, SO_ERROR, &e, &n) || e) {
        line_close(lp, l, strerror(e));
        return false;
    }
    l->connecting = false;
    return true;
}

/* ---- events ---- */

/* One XREAD over the streams that are watched; its answer asks for the next. */
static void events_ask(loop *lp)
{
    const pseg_queue *q = lp->q;
    char events[80], ready[160];
    const char *argv[10] = {"XREAD", "COUNT", "1000", "BLOCK", BLOCK_MS, "STREAMS"};
    int n = 6, streams = 0;

    snprintf(events, sizeof events, "%sevents", q->prefix);
    snprintf(ready, sizeof ready, "%sready:%s", q->prefix,
             q->opt.watch_model ? q->opt.watch_model : "");
    if (q->opt.on_event)
        argv[n + streams++] = events;
    if (q->opt.on_ready)
        argv[n + streams++] = ready;
    n += streams;
    if (q->opt.on_event)
        argv[n++] = lp->last_event;
    if (q->opt.on_ready)
        argv[n++] = lp->last_ready;
    line_send_words(&lp->events, n, argv);
}

static const char *field_of(const redisReply *fields, const char *name)
{
    for (size_t i = 0; fields->type == REDIS_REPLY_ARRAY && i + 1 < fields->elements; i += 2)
        if (fields->element[i]->str && strcmp(fields->element[i]->str, name) == 0)
            return fields->element[i + 1]->str;
    return NULL;
}

static void events_take_stream(loop *lp, const redisReply *stream)
{
    const pseg_queue *q = lp->q;

    if (stream->type != REDIS_REPLY_ARRAY || stream->elements != 2 || !stream->element[0]->str)
        return;
    size_t n = strlen(q->prefix);
    bool is_event = strcmp(stream->element[0]->str + n, "events") == 0;
    const redisReply *entries = stream->element[1];
    for (size_t i = 0; i < entries->elements; i++) {
        const redisReply *e = entries->element[i];
        if (e->type != REDIS_REPLY_ARRAY || e->elements != 2)
            continue;
        snprintf(is_event ? lp->last_event : lp->last_ready, sizeof lp->last_event, "%s",
                 e->element[0]->str);
        const char *id = field_of(e->element[1], "id"), *state = field_of(e->element[1], "state");
        if (is_event && id && state)
            q->opt.on_event(q->opt.ud, id, pseg_job_state_parse(state));
    }
    if (!is_event)
        q->opt.on_ready(q->opt.ud);
}

static void events_take(loop *lp, const redisReply *r)
{
    if (r->type == REDIS_REPLY_ARRAY)
        for (size_t i = 0; i < r->elements; i++)
            events_take_stream(lp, r->element[i]);
    events_ask(lp);
}

static void events_start(loop *lp)
{
    const pseg_queue *q = lp->q;

    /* From here on nothing is missed; what came before must be looked at. */
    memcpy(lp->last_event, "$", 2);
    memcpy(lp->last_ready, "$", 2);
    events_ask(lp);
    if (q->opt.on_event)
        q->opt.on_event(q->opt.ud, NULL, PSEG_JOB_UNKNOWN);
    if (q->opt.on_ready)
        q->opt.on_ready(q->opt.ud);
}

/* ---- answers of commands ---- */

static bool begins(const char *s, const char *with)
{
    return strncmp(s, with, strlen(with)) == 0;
}

static void error_of(pseg_err *err, const char *text)
{
    char name[64];
    int used = 0;

    if (sscanf(text, "PSEG %63[A-Z_] %n", name, &used) == 1 && used > 0) {
        pseg_reason reason = pseg_reason_from_name(name);
        pseg_err_set(err, reason ? reason : PSEG_R_BROKER_PROTOCOL, 0, PSEG_HERE, "%s",
                     text + used);
    } else if (begins(text, "OOM") || strstr(text, "-OOM")) {
        pseg_err_set(err, PSEG_R_BROKER_FULL, 0, PSEG_HERE,
                     "redis' memory is full (maxmemory); try again later or give it more");
    } else if (begins(text, "LOADING") || begins(text, "READONLY") || begins(text, "MASTERDOWN") ||
               begins(text, "CLUSTERDOWN") || begins(text, "BUSY") || begins(text, "MISCONF") ||
               begins(text, "NOAUTH") || begins(text, "WRONGPASS") || begins(text, "NOPERM")) {
        pseg_err_set(err, PSEG_R_BROKER_UNAVAILABLE, 0, PSEG_HERE, "redis refuses: %s", text);
    } else {
        pseg_err_set(err, PSEG_R_BROKER_PROTOCOL, 0, PSEG_HERE, "redis answered: %s", text);
    }
}

/* One answer for the oldest waiting command. */
static void commands_take(loop *lp, const redisReply *from)
{
    pseg_queue *q = lp->q;
    command *c = pop(&lp->commands);
    bool failed = from->type == REDIS_REPLY_ERROR;

    atomic_store(&q->answered_mono_us, pseg_clock_mono_us());
    if (lp->told_lost) {
        PSEG_INFO(q->opt.log, "queue", "redis answers again");
        lp->told_lost = false;
    }
    if (!c->done) {
        if (failed && !strstr(from->str, "NOPERM"))
            PSEG_WARN(q->opt.log, "queue", "redis answered a greeting with: %s", from->str);
        command_free(c);
        return;
    }
    if (failed && strstr(from->str, "Function not found") && !c->was_resent) {
        /* Somebody flushed the functions: load them and ask again. */
        line_send_words(&lp->commands, 4,
                        (const char *[]){"FUNCTION", "LOAD", "REPLACE", pseg_lua});
        c->was_resent = true;
        line_send(&lp->commands, c);
        return;
    }
    pseg_queue_reply *r = queue_reply_new(NULL);
    if (r->arena) {
        if (failed)
            error_of(&r->err, from->str);
        else
            c->parse(r, from, c);
    }
    c->done(c->ud, r);
    command_free(c);
}

static void line_read(loop *lp, line *l)
{
    void *r = NULL;

    if (redisBufferRead(l->redis) != REDIS_OK) {
        line_close(lp, l, *l->redis->errstr ? l->redis->errstr : "connection closed");
        return;
    }
    while (l->redis && redisGetReplyFromReader(l->redis, &r) == REDIS_OK && r) {
        if (l == &lp->commands && l->head) {
            commands_take(lp, r);
        } else if (l->head) {
            command *c = pop(l);
            bool is_read = strstr(c->text, "XREAD") != NULL;
            command_free(c);
            if (is_read)
                events_take(lp, r);
        }
        freeReplyObject(r);
        r = NULL;
    }
    if (l->redis && l->redis->err)
        line_close(lp, l, l->redis->errstr);
}

/* ---- the thread ---- */

static void take_inbox(loop *lp)
{
    pseg_queue *q = lp->q;
    eventfd_t n;

    eventfd_read(q->wake_fd, &n);
    pthread_mutex_lock(&q->mu);
    command *c = q->inbox;
    q->inbox = q->inbox_tail = NULL;
    pthread_mutex_unlock(&q->mu);
    line_dial(lp, &lp->commands);
    for (command *next; c; c = next) {
        next = c->next;
        if (lp->commands.redis) {
            line_send(&lp->commands, c);
            continue;
        }
        pseg_err e = PSEG_ERR_INIT;
        pseg_err_set(&e, PSEG_R_BROKER_UNAVAILABLE, 0, PSEG_HERE, "redis cannot be reached: %s",
                     lp->commands.why);
        answer_error(c, &e);
    }
}

static void line_serve(loop *lp, line *l, short revents)
{
    int all = 0;

    if (!l->redis)
        return;
    if (l->connecting && revents && !line_connected(lp, l))
        return;
    if (l->want_write && !l->connecting) {
        if (redisBufferWrite(l->redis, &all) != REDIS_OK) {
            line_close(lp, l, l->redis->errstr);
            return;
        }
        l->want_write = !all;
    }
    if (revents & (POLLIN | POLLHUP | POLLERR))
        line_read(lp, l);
    if (l->redis && l->head && pseg_clock_mono_us() - l->head->sent_mono_us > l->timeout_us) {
        char why[80];
        snprintf(why, sizeof why, "no answer within %lld ms", (long long)(l->timeout_us / 1000));
        line_close(lp, l, why);
    }
}

static int poll_timeout(const loop *lp)
{
    const line *l = &lp->commands;

    if (!l->redis || l->connecting || !lp->events.redis)
        return 50;
    return l->head ? (int)(l->timeout_us / 4000) + 1 : 250;
}

static void *run(void *arg)
{
    pseg_queue *q = arg;
    bool watches = q->opt.on_event || q->opt.on_ready;
    loop lp = {.q = q};

    lp.commands.timeout_us = q->opt.timeout_ms * 1000;
    lp.events.timeout_us = q->opt.timeout_ms * 1000 + 1000000;
    for (;;) {
        pthread_mutex_lock(&q->mu);
        bool stop = q->stopping;
        pthread_mutex_unlock(&q->mu);
        if (stop)
            break;
        line_dial(&lp, &lp.commands);
        if (watches && !lp.events.redis) {
            line_dial(&lp, &lp.events);
            if (lp.events.redis)
                events_start(&lp);
        }
        line *ls[] = {&lp.commands, &lp.events};
        struct pollfd p[3] = {{.fd = q->wake_fd, .events = POLLIN}};
        for (int i = 0; i < 2; i++)
            p[i + 1] = (struct pollfd){
                .fd = ls[i]->redis ? ls[i]->redis->fd : -1,
                .events = (short)(POLLIN | (ls[i]->want_write || ls[i]->connecting ? POLLOUT : 0))};
        poll(p, 3, poll_timeout(&lp));
        if (p[0].revents)
            take_inbox(&lp);
        for (int i = 0; i < 2; i++)
            line_serve(&lp, ls[i], p[i + 1].revents);
    }
    take_inbox(&lp);
    line_close(&lp, &lp.commands, "closing");
    line_close(&lp, &lp.events, "closing");
    return NULL;
}

void queue_send(pseg_queue *q, bool is_write, reply_parser parse, size_t n_asked, int argc,
                const char **argv, const size_t *len, pseg_queue_done done, void *ud)
{
    command *c = internal_command(argc, argv, len);

    if (!c) {
        done(ud, queue_reply_new(&no_memory_reply.err));
        return;
    }
    c->parse = parse;
    c->is_write = is_write;
    c->n_asked = n_asked;
    c->done = done;
    c->ud = ud;
    pthread_mutex_lock(&q->mu);
    bool first = !q->inbox;
    if (first)
        q->inbox = c;
    else
        q->inbox_tail->next = c;
    q->inbox_tail = c;
    pthread_mutex_unlock(&q->mu);
    if (first)
        eventfd_write(q->wake_fd, 1);
}

int64_t pseg_queue_silence_ms(const pseg_queue *q)
{
    int64_t at = atomic_load(&((pseg_queue *)(uintptr_t)q)->answered_mono_us);

    return at ? (pseg_clock_mono_us() - at) / 1000 : INT64_MAX / 2;
}

/* ---- open and close ---- */

static pseg_status parse_url(pseg_queue *q, const char *url, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *end;

    q->user = "";
    q->port = 6379;
    if (begins(url, "unix:") && url[5]) {
        q->socket = pseg_arena_strdup(q->arena, url + 5);
        goto out;
    }
    if (!begins(url, "redis://"))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "redis url \"%s\" must be redis://[user:password@]host[:port][/db] or unix:/path",
                  strchr(url, '@') ? "..." : url);
    char *rest = pseg_arena_strdup(q->arena, url + 8);
    if (!rest)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "redis url is too long");
    char *at = strrchr(rest, '@');
    if (at) {
        *at = '\0';
        char *colon = strchr(rest, ':');
        q->password = colon ? colon + 1 : rest;
        if (colon) {
            *colon = '\0';
            q->user = rest;
        }
        rest = at + 1;
    }
    char *slash = strchr(rest, '/');
    if (slash) {
        *slash = '\0';
        long db = strtol(slash + 1, &end, 10);
        if (*end || db < 0 || db > 1023)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "redis db \"%s\" is not a number of 0 to 1023",
                      slash + 1);
        q->db = (int)db;
    }
    char *colon = strrchr(rest, ':');
    if (colon && !strchr(colon, ']')) {
        *colon = '\0';
        long port = strtol(colon + 1, &end, 10);
        if (*end || port < 1 || port > 65535)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "redis port \"%s\" is not a number of 1 to 65535",
                      colon + 1);
        q->port = (int)port;
    }
    if (*rest == '[' && rest[strlen(rest) - 1] == ']') { /* IPv6 */
        rest[strlen(rest) - 1] = '\0';
        rest++;
    }
    q->host = *rest ? rest : "127.0.0.1";
out:
    return rc;
}

pseg_status pseg_queue_open(pseg_queue **out, const pseg_queue_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_queue *q = pseg_calloc(1, sizeof *q);

    *out = NULL;
    if (!q)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the queue");
    q->wake_fd = -1;
    q->opt = *o;
    q->arena = pseg_arena_new(1 << 16);
    size_t n = strlen(o->name);
    if (n < 1 || n > 32 || strspn(o->name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != n)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "queue name \"%s\" must be 1 to 32 of a-z 0-9 _ -",
                  o->name);
    char prefix[48];
    snprintf(prefix, sizeof prefix, "pseg:{%s}:", o->name);
    q->prefix = q->arena ? pseg_arena_strdup(q->arena, prefix) : NULL;
    if (!q->prefix)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the queue");
    if (o->watch_model)
        q->opt.watch_model = pseg_arena_strdup(q->arena, o->watch_model);
    PSEG_TRY(parse_url(q, o->url, err));
    q->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    pthread_mutex_init(&q->mu, NULL);
    if (q->wake_fd < 0 || pthread_create(&q->thread, NULL, run, q))
        PSEG_FAIL(PSEG_R_INTERNAL, errno, "cannot start the queue's thread: %s", strerror(errno));
    *out = q;
    q = NULL;
out:
    if (q) {
        if (q->wake_fd >= 0)
            close(q->wake_fd);
        pseg_arena_free(q->arena);
        pseg_free(q);
    }
    return rc;
}

void pseg_queue_close(pseg_queue *q)
{
    if (!q)
        return;
    pthread_mutex_lock(&q->mu);
    q->stopping = true;
    pthread_mutex_unlock(&q->mu);
    eventfd_write(q->wake_fd, 1);
    pthread_join(q->thread, NULL);
    pthread_mutex_destroy(&q->mu);
    close(q->wake_fd);
    pseg_arena_free(q->arena);
    pseg_free(q);
}

/* ---- waiting ---- */

void pseg_queue_sync_init(pseg_queue_sync *s)
{
    pthread_mutex_init(&s->mu, NULL);
    pseg_cond_init(&s->cv);
    s->reply = NULL;
}

void pseg_queue_sync_done(void *sync, pseg_queue_reply *r)
{
    pseg_queue_sync *s = sync;

    pthread_mutex_lock(&s->mu);
    s->reply = r;
    pthread_cond_signal(&s->cv);
    pthread_mutex_unlock(&s->mu);
}

pseg_queue_reply *pseg_queue_sync_take(pseg_queue_sync *s)
{
    pthread_mutex_lock(&s->mu);
    while (!s->reply)
        pthread_cond_wait(&s->cv, &s->mu);
    pthread_mutex_unlock(&s->mu);
    pthread_cond_destroy(&s->cv);
    pthread_mutex_destroy(&s->mu);
    return s->reply;
}
