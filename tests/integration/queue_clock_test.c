/* The queue while the only clock it goes by, Redis' or that of the queue in memory, is set back and
 * set on. */
#include "tests/support/queue_cases_impl.h"
#include "tests/support/redis.h"
#include "common/queue/queue_mem.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HOUR_S 3600

static test_redis server;
static _Atomic int64_t *ahead_us; /* of clock_jump.c */
#ifdef PSEG_TEST_CLOCK_JUMP
static char clock_file[] = "/tmp/pseg-test-clock-XXXXXX";
#endif

static int64_t is_ahead_s;

static void clock_is_ahead_by(pseg_queue *q, int64_t seconds)
{
    if (ahead_us)
        atomic_store(ahead_us, seconds * 1000000);
    else
        pseg_queue_mem_advance_ms(q, (seconds - is_ahead_s) * 1000);
    is_ahead_s = seconds;
}

/* Each case has a queue of its own and begins at the true time. */
static pseg_queue *open_queue(const char *name)
{
    pseg_queue_options o = PSEG_QUEUE_OPTIONS_DEFAULT;

    is_ahead_s = 0;
    if (ahead_us)
        atomic_store(ahead_us, 0);
    o.url = ahead_us ? server.socket_url : "mem:";
    o.name = name;
    o.timeout_ms = 10000;
    o.lease_ms = 300;
    return case_open(&o);
}

static int64_t n_workers(pseg_queue *q)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_workers, q);
    assert_int_equal(r->err.code, PSEG_OK);
    int64_t n = (int64_t)r->n_workers;
    pseg_queue_reply_free(r);
    return n;
}

/* `seen` of the dead one lies in the future. Its job must be charged all the same: a job that kills
 * its workers would otherwise be tried for an hour. */
static void set_back_it_charges_a_dead_workers_job(void **state)
{
    pseg_queue *q = open_queue("charge");
    id_text id = case_submit(q);

    (void)state;
    case_register(q, "w");
    case_claim(q, "w");
    clock_is_ahead_by(q, -HOUR_S);
    SWEEP_UNTIL(q, queue_state_of(q, id.s) == PSEG_JOB_QUEUED);
    assert_int_equal(case_job(q, id.s)->attempts, 1);
}

static void set_back_it_forgets_a_dead_worker(void **state)
{
    pseg_queue *q = open_queue("worker");

    (void)state;
    case_register(q, "w");
    assert_int_equal(n_workers(q), 1);
    clock_is_ahead_by(q, -HOUR_S);
    case_sweep(q);
    assert_int_equal(n_workers(q), 1);
    clock_is_ahead_by(q, -HOUR_S + 60);
    case_sweep(q);
    assert_int_equal(n_workers(q), 0);
}

static void set_back_it_retries_a_failed_job(void **state)
{
    pseg_queue *q = open_queue("retry");

    (void)state;
    case_submit(q);
    case_register(q, "w");
    case_fail(q, "w", case_claim(q, "w"), PSEG_R_DEVICE_FAILED, 1000, NULL);
    assert_int_equal(case_claim_count(q, "w"), 0);
    clock_is_ahead_by(q, -HOUR_S);
    case_sweep(q);
    assert_int_equal(case_stats(q).delayed, 1);
    clock_is_ahead_by(q, -HOUR_S + 301); /* the longest delay */
    SWEEP_UNTIL(q, case_stats(q).delayed == 0);
    assert_int_equal(case_claim_count(q, "w"), 1);
}

static pseg_queue_reply *submit_slow(pseg_queue *q, const char *tenant)
{
    const pseg_queue_tenant slow = {.rate = 1, .burst = 3};
    id_text id;
    pseg_queue_submit_args a = case_args(&id);
    pseg_queue_reply *r;

    a.tenant = tenant;
    a.limits = &slow;
    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    return r;
}

static void set_back_it_lets_a_tenant_submit_again(void **state)
{
    pseg_queue *q = open_queue("rate");
    long long wait = -1;

    (void)state;
    for (int i = 0; i < 3; i++)
        assert_int_equal(submit_slow(q, "t")->err.code, PSEG_OK);
    clock_is_ahead_by(q, -HOUR_S);
    const pseg_queue_reply *r = submit_slow(q, "t");
    assert_int_equal(r->err.reason, PSEG_R_TENANT_LIMIT);
    const char *in = strstr(r->err.msg, "try again in ");
    assert_non_null(in);
    wait = strtoll(in + strlen("try again in "), NULL, 10);
    assert_in_range(wait, 1, 1000);
    clock_is_ahead_by(q, -HOUR_S + 2);
    assert_int_equal(submit_slow(q, "t")->err.code, PSEG_OK);
}

static void set_back_it_keeps_the_order(void **state)
{
    pseg_queue *q = open_queue("order");
    id_text first = case_submit(q);

    (void)state;
    clock_is_ahead_by(q, -HOUR_S);
    id_text second = case_submit(q);
    case_register(q, "w");
    assert_string_equal(case_claim(q, "w")->id, first.s);
    assert_string_equal(case_claim(q, "w")->id, second.s);
}

static void set_on_it_publishes_once(void **state)
{
    pseg_queue *q = open_queue("on");
    pseg_reason reason;
    id_text id = case_submit(q);

    (void)state;
    case_register(q, "slow");
    const pseg_queue_claim *old = case_claim(q, "slow");
    clock_is_ahead_by(q, HOUR_S);
    SWEEP_UNTIL(q, queue_state_of(q, id.s) == PSEG_JOB_QUEUED);
    assert_int_equal(case_renew(q, "slow", old), PSEG_LEASE_LOST);
    case_register(q, "quick");
    const pseg_queue_claim *new = case_claim(q, "quick");
    assert_int_equal(case_publish(q, "slow", old, &reason), PSEG_JOB_UNKNOWN);
    assert_int_equal(reason, PSEG_R_LEASE_LOST);
    assert_int_equal(case_publish(q, "quick", new, NULL), PSEG_JOB_SUCCEEDED);
    assert_int_equal(case_stats(q).succeeded, 1);
}

int main(void)
{
    const struct CMUnitTest cases[] = {
        cmocka_unit_test_teardown(set_back_it_charges_a_dead_workers_job, case_teardown),
        cmocka_unit_test_teardown(set_back_it_forgets_a_dead_worker, case_teardown),
        cmocka_unit_test_teardown(set_back_it_retries_a_failed_job, case_teardown),
        cmocka_unit_test_teardown(set_back_it_lets_a_tenant_submit_again, case_teardown),
        cmocka_unit_test_teardown(set_back_it_keeps_the_order, case_teardown),
        cmocka_unit_test_teardown(set_on_it_publishes_once, case_teardown),
    };
    int failed = cmocka_run_group_tests_name("queue in memory and clocks", cases, NULL, NULL);

#ifdef PSEG_TEST_CLOCK_JUMP
    int fd = mkstemp(clock_file);
    void *p = MAP_FAILED;

    if (fd >= 0 && ftruncate(fd, sizeof *ahead_us) == 0)
        p = mmap(NULL, sizeof *ahead_us, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        perror(clock_file);
        return 1;
    }
    ahead_us = p;
    setenv("PSEG_TEST_CLOCK", clock_file, 1);
    setenv("LD_PRELOAD", PSEG_TEST_CLOCK_JUMP, 1);
    bool is_there = test_redis_start(&server);
    unsetenv("LD_PRELOAD");
    if (is_there) {
        failed += cmocka_run_group_tests_name("queue on redis and clocks", cases, NULL, NULL);
        test_redis_stop(&server);
    }
    unlink(clock_file);
    close(fd);
    if (!is_there && !failed)
        return TEST_SKIPPED;
#endif
    return failed ? 1 : 0;
}
