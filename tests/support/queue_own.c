#include "tests/support/queue_own.h"
#include "common/base/clock.h"

#include <stdatomic.h>
#include <stdio.h>

test_redis server;
char answer[1 << 16];
char queue_name[33];
_Atomic int n_ended, n_missed;
static int n_queues;

void start(const char *const *args)
{
    server = (test_redis){.args = args};
    assert_true(test_redis_start(&server));
}

int own_stop(void **state)
{
    (void)state;
    case_teardown(state);
    test_redis_stop(&server);
    return 0;
}

int own_setup(void **state)
{
    snprintf(queue_name, sizeof queue_name, "q%d", ++n_queues);
    return case_setup(state);
}

pseg_queue_options options_of(const char *url)
{
    pseg_queue_options o = PSEG_QUEUE_OPTIONS_DEFAULT;

    o.url = url;
    o.name = queue_name;
    o.timeout_ms = 10000;
    o.lease_ms = 300;
    return o;
}

pseg_queue *open_queue(void)
{
    pseg_queue_options o = options_of(server.socket_url);

    return case_open(&o);
}

pseg_reason ping(pseg_queue *q, char *msg)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_get_stats, q);
    pseg_reason reason = r->err.reason;
    if (msg)
        snprintf(msg, sizeof r->err.msg, "%s", r->err.msg);
    pseg_queue_reply_free(r);
    return reason;
}

void await_answer(pseg_queue *q)
{
    for (int64_t until = pseg_clock_mono_ms() + 20000; ping(q, NULL) != PSEG_R_NONE;) {
        assert_true(pseg_clock_mono_ms() < until);
        queue_pause_ms(5);
    }
}

bool ask(const char *text)
{
    return test_redis_ask(&server, answer, sizeof answer, "%s", text) && *answer != '-';
}

void count_event(void *ud, const pseg_queue_event *e)
{
    (void)ud;
    if (!e)
        atomic_fetch_add(&n_missed, 1);
    else if (pseg_job_state_is_terminal(e->state))
        atomic_fetch_add(&n_ended, 1);
}

long long count(const char *command, const char *key)
{
    return test_redis_number(&server, "%s pseg:{%s}:%s", command, queue_name, key);
}

void lose(const char *key)
{
    assert_int_equal(count("DEL", key), 1);
}

void only_what_stays(pseg_queue *q)
{
    static const char *const stay[] = {"bytes", "count", "events", "layout", "models", "wake:m"};
    enum { N_STAY = sizeof stay / sizeof *stay };
    pseg_queue_reply *r;

    CALL(r, pseg_queue_unregister, q, "w");
    case_keep(r);
    SWEEP_UNTIL(q, test_redis_number(&server, "DBSIZE") <= N_STAY);
    for (int i = 0; i < N_STAY; i++)
        assert_int_equal(test_redis_number(&server, "EXISTS pseg:{%s}:%s", queue_name, stay[i]), 1);
    assert_int_equal(test_redis_number(&server, "GET pseg:{%s}:bytes", queue_name), 0);
    assert_int_equal(test_redis_number(&server, "LLEN pseg:{%s}:ready:m", queue_name), 0);
    assert_int_equal(test_redis_number(&server, "HGET pseg:{%s}:count more", queue_name), 0);
}

int own_run(const char *name, const struct CMUnitTest *tests, size_t n, int argc, char **argv)
{
    test_redis r = {0};

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    if (!test_redis_start(&r))
        return TEST_SKIPPED;
    test_redis_stop(&r);
    return _cmocka_run_group_tests(name, tests, n, NULL, NULL) ? 1 : 0;
}
