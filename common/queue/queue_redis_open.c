/* The Redis form's beginning and end, and the inbox through which requests reach its thread. */
#include "common/queue/queue_redis.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* ---- commands and the inbox ---- */

command *command_new(int argc, const char **argv, const size_t *len)
{
    command *c = pseg_calloc(1, sizeof *c);

    if (!c)
        return NULL;
    /* hiredis does not write to len, though some of its releases lack the const. */
    long long n = redisFormatCommandArgv(&c->text, argc, argv, (size_t *)(uintptr_t)len);
    if (n < 0) {
        pseg_free(c);
        return NULL;
    }
    c->len = (size_t)n;
    return c;
}

void command_set_text(command *c, char *text, size_t len)
{
    if (c->text)
        redisFreeCommand(c->text);
    c->text = NULL;
    c->own_text = text;
    c->len = len;
}

void command_free(command *c)
{
    if (c->text)
        redisFreeCommand(c->text);
    pseg_free(c->own_text);
    pseg_queue_reply_free(c->reply);
    pseg_free(c);
}

/* Of which queue this thread is. */
static _Thread_local const redis_queue *own;

void queue_enter_thread(const redis_queue *q)
{
    own = q;
}

static bool is_own_thread(const redis_queue *q)
{
    return own == q;
}

static void into_inbox(redis_queue *q, command *c)
{
    pthread_mutex_lock(&q->mu);
    bool first = !q->inbox;
    if (first)
        q->inbox = c;
    else
        q->inbox_tail->next = c;
    q->inbox_tail = c;
    pthread_mutex_unlock(&q->mu);
    if (first && !is_own_thread(q))
        eventfd_write(q->wake_fd, 1);
}

void queue_send(redis_queue *q, bool is_write, reply_parser parse, size_t n_asked, int argc,
                const char **argv, const size_t *len, pseg_queue_done done, void *ud)
{
    command *c = command_new(argc, argv, len);

    if (!c) {
        queue_answer_no_memory(done, ud);
        return;
    }
    c->parse = parse;
    c->is_write = is_write;
    c->n_asked = n_asked;
    c->done = done;
    c->ud = ud;
    into_inbox(q, c);
}

void queue_send_item(redis_queue *q, const batch_kind *kind, reply_parser parse,
                     pseg_queue_reply *reply, int argc, const char **argv, const size_t *len,
                     pseg_queue_done done, void *ud)
{
    command *c = command_new(argc, argv, len);

    if (!c) {
        pseg_queue_reply_free(reply);
        queue_answer_no_memory(done, ud);
        return;
    }
    c->kind = kind;
    c->reply = reply;
    c->n_args = argc;
    c->parse = parse;
    c->is_write = true;
    c->n_asked = 1;
    c->done = done;
    c->ud = ud;
    into_inbox(q, c);
}

bool queue_has_inbox(redis_queue *q)
{
    pthread_mutex_lock(&q->mu);
    bool has = q->inbox != NULL;
    pthread_mutex_unlock(&q->mu);
    return has;
}

void queue_heard_wake(redis_queue *q)
{
    eventfd_t n;

    eventfd_read(q->wake_fd, &n);
}

command *queue_take_inbox(redis_queue *q, bool *stopping)
{
    pthread_mutex_lock(&q->mu);
    command *c = q->inbox;
    q->inbox = q->inbox_tail = NULL;
    *stopping = q->stopping;
    pthread_mutex_unlock(&q->mu);
    return c;
}

/* ---- open and close ---- */

void queue_redis_close(pseg_queue *base)
{
    redis_queue *q = (redis_queue *)base;

    pthread_mutex_lock(&q->mu);
    q->stopping = true;
    pthread_mutex_unlock(&q->mu);
    eventfd_write(q->wake_fd, 1);
    pthread_join(q->thread, NULL);
    pthread_mutex_destroy(&q->mu);
    close(q->wake_fd);
    pseg_free(q->loop);
    pseg_arena_free(base->arena);
    pseg_free(q);
}

int64_t queue_redis_silence_ms(const pseg_queue *base)
{
    redis_queue *q = (redis_queue *)(uintptr_t)base;
    int64_t at = atomic_load(&q->answered_mono_us);

    return at ? (pseg_clock_mono_us() - at) / 1000 : INT64_MAX / 2;
}

pseg_status queue_redis_open(pseg_queue **out, const pseg_queue *base, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    redis_queue *q = pseg_calloc(1, sizeof *q);
    char prefix[PSEG_QUEUE_MAX_NAME + 24];

    if (!q)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the queue");
    q->base = *base;
    q->base.ops = &queue_redis_ops;
    q->wake_fd = -1;
    q->loop = pseg_calloc(1, sizeof *q->loop);
    snprintf(prefix, sizeof prefix, "pseg:{%s}:", base->opt.name);
    q->prefix = pseg_arena_strdup(base->arena, prefix);
    if (!q->prefix || !q->loop)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the queue");
    PSEG_TRY(queue_parse_url(q, base->opt.url, err));
    q->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (q->wake_fd < 0)
        PSEG_FAIL(PSEG_R_INTERNAL, errno, "cannot make an eventfd: %s", strerror(errno));
    pthread_mutex_init(&q->mu, NULL);
    int e = pthread_create(&q->thread, NULL, queue_redis_run, q);
    if (e)
        PSEG_FAIL(PSEG_R_INTERNAL, e, "cannot start the queue's thread: %s", strerror(e));
    *out = &q->base;
    q = NULL;
out:
    if (q && q->wake_fd >= 0)
        close(q->wake_fd);
    if (q)
        pseg_free(q->loop);
    pseg_free(q);
    return rc;
}
