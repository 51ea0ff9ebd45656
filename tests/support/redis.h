/* A redis-server of the test's own: a unix socket and a free loopback port, a folder that goes with
 * it, and death with the test. Linux. */
#ifndef PSEG_TESTS_SUPPORT_REDIS_H
#define PSEG_TESTS_SUPPORT_REDIS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define TEST_SKIPPED 77

typedef struct test_redis {
    pid_t pid;
    int port;
    char dir[64];
    char socket_url[96], tcp_url[64];
    const char *const *args; /* further arguments, NULL at the end; borrowed */
    const char *config; /* text of a configuration file, for a Sentinel; borrowed; NULL: none */
} test_redis;

/* Starts it and waits until it answers. r->args is set by the caller, the rest is 0, or what it was
 * before test_redis_kill (then it comes back with its data). False: no redis-server on this machine
 * (the test is to end with TEST_SKIPPED). Anything else that goes wrong ends the test with 1. */
bool test_redis_start(test_redis *r);
void test_redis_kill(test_redis *r); /* SIGKILL; the folder stays */
void test_redis_freeze(test_redis *r);
void test_redis_thaw(test_redis *r);
void test_redis_stop(test_redis *r); /* and removes the folder */

/* One command, its words split at blanks, on a connection of its own; the answer as Redis sent it,
 * cut to fit out. False if it did not answer within 10 s. */
bool test_redis_ask(const test_redis *r, char *out, size_t out_size, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
bool test_redis_ask_words(const test_redis *r, char *out, size_t out_size, int n,
                          const char *const *words);
/* As test_redis_ask, for answers that are one number or ":number"; -1: something else. */
long long test_redis_number(const test_redis *r, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif
