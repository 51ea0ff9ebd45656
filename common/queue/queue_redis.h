/* Between the two halves of the Redis form: queue_redis.c moves commands and answers, and
 * queue_redis_ops.c knows what they mean. Private to this folder. */
#ifndef PSEG_QUEUE_QUEUE_REDIS_H
#define PSEG_QUEUE_QUEUE_REDIS_H

#include "common/queue/queue.h"

#include <hiredis/hiredis.h>

typedef struct command command;

/* Fills r from the answer; r->err is set if it does not have the shape expected. */
typedef void (*reply_parser)(pseg_queue_reply *r, const redisReply *from, const command *c);

struct command {
    command *next;
    char *text; /* in Redis' protocol */
    size_t len;
    reply_parser parse;
    pseg_queue_done done; /* NULL: an internal command */
    void *ud;
    int64_t sent_mono_us;
    bool is_write;   /* a lost answer leaves the outcome unknown */
    bool was_resent; /* after the functions were loaded anew */
    size_t n_asked;
};

struct pseg_queue {
    pseg_queue_options opt;
    pseg_arena *arena;
    const char *prefix; /* "pseg:{NAME}:" */
    /* from the URL */
    const char *host, *socket, *user, *password;
    int port, db;

    pthread_t thread;
    int wake_fd;
    pthread_mutex_t mu; /* guards inbox, inbox_tail, stopping */
    command *inbox, *inbox_tail;
    bool stopping;
    _Atomic int64_t answered_mono_us;
};

/* Queues a command made of argc arguments; answers at once on failure. Any thread. */
void queue_send(pseg_queue *q, bool is_write, reply_parser parse, size_t n_asked, int argc,
                const char **argv, const size_t *len, pseg_queue_done done, void *ud);

/* An answer that says only err. May be NULL when memory is short: done is then not called with it,
 * but with a static answer. */
pseg_queue_reply *queue_reply_new(const pseg_err *err);

#endif
