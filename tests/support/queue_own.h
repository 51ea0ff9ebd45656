/* A redis-server of each case's own, with a queue on it that has a name of its own: for what only
 * Redis can do wrong. One at a time. */
#ifndef PSEG_TESTS_SUPPORT_QUEUE_OWN_H
#define PSEG_TESTS_SUPPORT_QUEUE_OWN_H

#include "tests/support/queue_cases_impl.h"
#include "tests/support/redis.h"

extern test_redis server;
extern char answer[1 << 16]; /* of the last ask */
extern char queue_name[33];

/* args: of the server, NULL at the end, or NULL; borrowed until the case's end. */
void start(const char *const *args);
pseg_queue_options options_of(const char *url);
pseg_queue *open_queue(void);
/* What the queue answers; msg, if there is one, has room for an error's. */
pseg_reason ping(pseg_queue *q, char *msg);
/* Until the queue answers again, for 20 s at most. */
void await_answer(pseg_queue *q);
/* A command to the server; false: it was refused. */
bool ask(const char *text);

/* What a command says of a key of the queue, as a number. */
long long count(const char *command, const char *key);
/* Deletes one, as a torn log may. */
void lose(const char *key);
/* Waits until all has gone that has an end, once all has ended and its time has passed. */
void only_what_stays(pseg_queue *q);

/* How often a watcher was told of an end, and that it may have missed something. */
extern _Atomic int n_ended, n_missed;
void count_event(void *ud, const pseg_queue_event *e);

int own_setup(void **state);
int own_stop(void **state);
/* The whole of a test program; argv[1]: a filter. Skipped where there is no redis-server. */
int own_run(const char *name, const struct CMUnitTest *tests, size_t n, int argc, char **argv);
#define OWN(fn) cmocka_unit_test_setup_teardown(fn, own_setup, own_stop)

#endif
