/* A queue whose master Sentinels name: found, lost, found again on the replica, and nothing that
 * was promised is lost with it. */
#include "tests/support/queue_cases_impl.h"
#include "tests/support/redis.h"
#include "common/base/clock.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { N_NODES = 3, N_SENTINELS = 3, PATIENCE_MS = 60000 };

static test_redis nodes[N_NODES], sentinels[N_SENTINELS];
static char config[512], url[256], answer[1 << 14];
static _Atomic int n_ended, n_missed;

static void count_event(void *ud, const pseg_queue_event *e)
{
    (void)ud;
    if (!e)
        atomic_fetch_add(&n_missed, 1);
    else if (pseg_job_state_is_terminal(e->state))
        atomic_fetch_add(&n_ended, 1);
}

/* A master, its replicas, and Sentinels that take it for dead after a second. */
static int setup(void **state)
{
    size_t used;

    for (int i = 0; i < N_NODES; i++) {
        nodes[i] = (test_redis){0};
        test_redis_start(&nodes[i]);
        if (i)
            test_redis_ask(&nodes[i], answer, sizeof answer, "REPLICAOF 127.0.0.1 %d",
                           nodes[0].port);
    }
    snprintf(config, sizeof config,
             "sentinel monitor main 127.0.0.1 %d 2\nsentinel down-after-milliseconds main 1000\n"
             "sentinel failover-timeout main 3000\n",
             nodes[0].port);
    used = (size_t)snprintf(url, sizeof url, "redis+sentinel://");
    for (int i = 0; i < N_SENTINELS; i++) {
        static const char *const args[] = {"--sentinel", NULL};
        sentinels[i] = (test_redis){.config = config, .args = args};
        test_redis_start(&sentinels[i]);
        used += (size_t)snprintf(url + used, sizeof url - used, "%s127.0.0.1:%d", i ? "," : "",
                                 sentinels[i].port);
    }
    snprintf(url + used, sizeof url - used, "/main");
    return case_setup(state);
}

static int teardown(void **state)
{
    case_teardown(state);
    for (int i = 0; i < N_SENTINELS; i++)
        test_redis_stop(&sentinels[i]);
    for (int i = 0; i < N_NODES; i++)
        test_redis_stop(&nodes[i]);
    return 0;
}

static bool says(const test_redis *r, const char *command, const char *what)
{
    return test_redis_ask(r, answer, sizeof answer, "%s", command) && strstr(answer, what);
}

/* Every Sentinel knows both replicas and both others: before that, none can be elected. */
static void await_quorum(void)
{
    int64_t until = pseg_clock_mono_ms() + PATIENCE_MS;

    for (int i = 0; i < N_SENTINELS; i++)
        while (!says(&sentinels[i], "SENTINEL CKQUORUM main", "OK 3 usable") ||
               !says(&sentinels[i], "INFO sentinel", "slaves=2,sentinels=3")) {
            assert_true(pseg_clock_mono_ms() < until);
            queue_pause_ms(20);
        }
    while (!says(&nodes[0], "INFO replication", "connected_slaves:2") ||
           strstr(answer, "state=wait") || strstr(answer, "state=send")) {
        assert_true(pseg_clock_mono_ms() < until);
        queue_pause_ms(20);
    }
}

static pseg_queue_options options_of(const char *at)
{
    pseg_queue_options o = PSEG_QUEUE_OPTIONS_DEFAULT;

    o.url = at;
    o.name = "sentinel";
    o.timeout_ms = 1000;
    o.lease_ms = 120000;
    return o;
}

static pseg_reason ping(pseg_queue *q, char *msg)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_get_stats, q);
    pseg_reason reason = r->err.reason;
    if (msg)
        snprintf(msg, sizeof r->err.msg, "%s", r->err.msg);
    pseg_queue_reply_free(r);
    return reason;
}

static void await_answer(pseg_queue *q)
{
    for (int64_t until = pseg_clock_mono_ms() + PATIENCE_MS; ping(q, NULL) != PSEG_R_NONE;) {
        assert_true(pseg_clock_mono_ms() < until);
        queue_pause_ms(5);
    }
}

/* What was promised while the master died or froze is there on the one that follows it. */
static void promises_outlive_the_master(bool freeze)
{
    enum { BEFORE = 50, MAX = 4000 };
    static id_text ids[MAX];
    int n = 0;

    await_quorum();
    pseg_queue_options o = options_of(url);
    o.durability = PSEG_DURABILITY_REPLICATED;
    o.replicas = 1;
    o.on_event = count_event;
    atomic_store(&n_ended, 0);
    atomic_store(&n_missed, 0);
    pseg_queue *q = case_open(&o);
    await_answer(q);
    for (; n < BEFORE; n++)
        assert_int_equal(queue_try_submit(q, ids[n].s), PSEG_R_NONE);
    assert_true(says(&nodes[0], "ROLE", "master"));
    if (freeze)
        test_redis_freeze(&nodes[0]);
    else
        test_redis_kill(&nodes[0]);
    int missed = atomic_load(&n_missed);
    /* From one master to the next; the scheduler's clients hear UNAVAILABLE meanwhile. */
    int64_t at = pseg_clock_mono_ms(), until = at + PATIENCE_MS;
    for (int after = 0; after < 20 && n < MAX;) {
        assert_true(pseg_clock_mono_ms() < until);
        if (queue_try_submit(q, ids[n].s) == PSEG_R_NONE) {
            if (after++ == 0)
                print_message("accepts again after %lld ms\n",
                              (long long)(pseg_clock_mono_ms() - at));
            n++;
        } else {
            queue_pause_ms(10);
        }
    }
    for (int i = 0; i < n; i++)
        assert_int_equal(queue_state_of(q, ids[i].s), PSEG_JOB_QUEUED);
    /* The watch follows, too. */
    while (atomic_load(&n_missed) == missed) {
        assert_true(pseg_clock_mono_ms() < until);
        queue_pause_ms(5);
    }
    case_register(q, "w");
    case_publish(q, "w", case_claim(q, "w"), NULL);
    while (atomic_load(&n_ended) == 0) {
        assert_true(pseg_clock_mono_ms() < until);
        queue_pause_ms(5);
    }
    /* The old one comes back as a replica, or is elected anew on a machine so slow that another
     * seemed dead; it is not taken for the master because it was one. */
    if (freeze)
        test_redis_thaw(&nodes[0]);
    else
        test_redis_start(&nodes[0]);
    char port[16];
    snprintf(port, sizeof port, "\r\n%d\r\n", nodes[0].port);
    while (!says(&nodes[0], "ROLE", "slave") &&
           !says(&sentinels[0], "SENTINEL GET-MASTER-ADDR-BY-NAME main", port)) {
        assert_true(pseg_clock_mono_ms() < until + PATIENCE_MS);
        queue_pause_ms(20);
    }
    await_answer(q);
    assert_int_equal(case_stats(q).succeeded, 1);
}

static void a_master_that_dies_is_followed(void **state)
{
    (void)state;
    promises_outlive_the_master(false);
}

static void a_master_that_freezes_is_followed(void **state)
{
    (void)state;
    promises_outlive_the_master(true);
}

/* Sentinels that are away, or speak of a server that is no master, cost time and nothing else. */
static void any_sentinel_will_do(void **state)
{
    char msg[400], some[256];

    (void)state;
    await_quorum();
    test_redis_kill(&sentinels[0]);
    snprintf(some, sizeof some, "redis+sentinel://127.0.0.1:%d,127.0.0.1:%d/main",
             sentinels[0].port, sentinels[1].port);
    pseg_queue_options o = options_of(some);
    pseg_queue *q = case_open(&o);
    await_answer(q);
    case_submit(q);

    snprintf(some, sizeof some, "redis+sentinel://127.0.0.1:%d/other", sentinels[1].port);
    o = options_of(some);
    q = case_open(&o);
    for (int64_t until = pseg_clock_mono_ms() + PATIENCE_MS;;) {
        assert_int_equal(ping(q, msg), PSEG_R_BROKER_UNAVAILABLE);
        if (strstr(msg, "knows no master \"other\""))
            break;
        assert_true(pseg_clock_mono_ms() < until);
        queue_pause_ms(5);
    }
}

static void a_password_is_given_where_it_is_asked_for(void **state)
{
    char with[256];

    (void)state;
    await_quorum();
    /* One Sentinel wants one, the others refuse it. */
    assert_true(says(&sentinels[0], "ACL SETUSER own on >own-pass ~* &* +@all", "OK"));
    assert_true(says(&sentinels[0], "ACL SETUSER default resetpass >other", "OK"));
    assert_true(says(&nodes[0], "ACL SETUSER own on >own-pass ~pseg:* +@all", "OK"));
    snprintf(with, sizeof with, "redis+sentinel://own:own-pass@127.0.0.1:%d/main",
             sentinels[0].port);
    pseg_queue_options first = options_of(with);
    await_answer(case_open(&first));
    snprintf(with, sizeof with, "redis+sentinel://own:own-pass@127.0.0.1:%d/main",
             sentinels[1].port);
    pseg_queue_options o = options_of(with);
    await_answer(case_open(&o));
}

static void urls(void **state)
{
    static const struct {
        const char *url, *says;
    } bad[] = {
        {"redis+sentinel://a:1,b:2", "names no master"},
        {"redis+sentinel://a:1,b:2/", "names no master"},
        {"redis+sentinel://a:1,b:0/main", "port \"0\""},
        {"redis+sentinel://a:1/main/x", "db \"x\""},
        {"redis+sentinel://:%zz@a:1/main", "%25"},
        {"redis+sentinel://a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a/main", "more than 16 sentinels"},
    };
    pseg_queue *q = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pseg_queue_options o = options_of(bad[i].url);
        pseg_err err = PSEG_ERR_INIT;
        assert_int_not_equal(pseg_queue_open(&q, &o, &err), PSEG_OK);
        assert_int_equal(err.reason, PSEG_R_CONFIG_INVALID);
        if (!strstr(err.msg, bad[i].says))
            fail_msg("%s: %s", bad[i].url, err.msg);
    }
}

#define OWN(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(urls),
        OWN(a_master_that_dies_is_followed),
        OWN(a_master_that_freezes_is_followed),
        OWN(any_sentinel_will_do),
        OWN(a_password_is_given_where_it_is_asked_for),
    };
    test_redis probe = {0};

    if (!test_redis_start(&probe))
        return TEST_SKIPPED;
    test_redis_stop(&probe);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
