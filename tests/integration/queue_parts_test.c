/* A queue on several servers, and on a cluster of three masters: all that is promised of a queue,
 * and what only one in parts can do wrong. */
#include "tests/support/queue_own.h"
#include "common/base/clock.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 3 };
static test_redis servers[N];
static char urls[512];
static const char *const *server_args;

static const char *name_of_part(int i)
{
    static char name[40];

    snprintf(name, sizeof name, i ? "%s.%d" : "%s", queue_name, i);
    return name;
}

/* A tenant whose part that is. */
static const char *tenant_in(const pseg_queue *q, size_t part)
{
    static char names[N][16];

    for (int i = 0; i < 1000; i++) {
        snprintf(names[part], sizeof names[part], "t%d", i);
        if (pseg_queue_part_of(q, names[part]) == part)
            return names[part];
    }
    fail_msg("of 1,000 tenants none is in part %zu", part);
    return NULL;
}

static void start_all(void)
{
    size_t n = 0;

    for (int i = 0; i < N; i++) {
        servers[i] = (test_redis){.args = server_args};
        assert_true(test_redis_start(&servers[i]));
        n += (size_t)snprintf(urls + n, sizeof urls - n, "%s%s", i ? " " : "", servers[i].tcp_url);
    }
}

static int setup(void **state)
{
    server_args = NULL;
    memset(servers, 0, sizeof servers);
    return own_setup(state);
}

static int stop(void **state)
{
    case_teardown(state);
    for (int i = 0; i < N; i++)
        if (servers[i].pid)
            test_redis_stop(&servers[i]);
    return 0;
}

static pseg_reason try_submit_as(pseg_queue *q, const char *tenant, id_text *id)
{
    pseg_queue_submit_args a = case_args(id);
    pseg_queue_reply *r;

    a.tenant = tenant;
    CALL(r, pseg_queue_submit, q, &a);
    pseg_reason reason = r->err.reason;
    pseg_queue_reply_free(r);
    return reason;
}

static void submit_as(pseg_queue *q, const char *tenant)
{
    id_text id;

    assert_int_equal(try_submit_as(q, tenant, &id), PSEG_R_NONE);
}

static long long keys_of(int server_index)
{
    return test_redis_number(&servers[server_index], "ZCARD pseg:{%s}:live",
                             name_of_part(server_index));
}

static void a_tenant_lies_in_one_part(void **state)
{
    pseg_queue_options o;

    (void)state;
    start_all();
    o = options_of(urls);
    pseg_queue *q = case_open(&o);
    await_answer(q);
    assert_int_equal(pseg_queue_n_parts(q), N);
    for (size_t part = 0; part < N; part++)
        for (size_t i = 0; i <= part; i++)
            submit_as(q, tenant_in(q, part));
    for (int i = 0; i < N; i++)
        assert_int_equal(keys_of(i), i + 1);
    assert_int_equal(case_stats(q).live, 6);
    /* Many tenants are spread evenly. */
    int n[N] = {0};
    for (int i = 0; i < 3000; i++) {
        char name[16];
        snprintf(name, sizeof name, "client-%d", i);
        n[pseg_queue_part_of(q, name)]++;
    }
    for (int i = 0; i < N; i++)
        assert_in_range(n[i], 900, 1100);
}

static void a_worker_takes_of_all_parts_in_turn(void **state)
{
    enum { JOBS = 20, CLAIMS = 30 };
    int of[N] = {0};

    (void)state;
    start_all();
    pseg_queue_options o = options_of(urls);
    pseg_queue *q = case_open(&o);
    await_answer(q);
    case_register(q, "w");
    for (size_t part = 0; part < N; part++)
        for (int i = 0; i < JOBS; i++)
            submit_as(q, tenant_in(q, part));
    for (int i = 0; i < CLAIMS; i++) {
        const pseg_queue_claim *c = case_claim(q, "w");
        of[pseg_queue_part_of(q, c->tenant)]++;
        assert_int_equal(case_renew(q, "w", c), PSEG_LEASE_OK);
        assert_int_equal(case_publish(q, "w", c, NULL), PSEG_JOB_SUCCEEDED);
    }
    for (int i = 0; i < N; i++)
        assert_int_equal(of[i], CLAIMS / N);
    assert_int_equal(case_stats(q).succeeded, CLAIMS);
    /* One claim for all that is left takes it wherever it is. */
    pseg_queue_reply *r;
    CALL(r, pseg_queue_claim_jobs, q, "w", "m", 64, 0, 0);
    case_keep(r);
    assert_int_equal(r->n_claims, N * JOBS - CLAIMS);
}

static void a_dead_part_costs_its_own_tenants_alone(void **state)
{
    static const char *const args[] = {"--appendonly", "yes", "--appendfsync", "always", NULL};
    pseg_queue_reply *r;
    id_text id;

    (void)state;
    server_args = args;
    start_all();
    pseg_queue_options o = options_of(urls);
    o.timeout_ms = 1000;
    pseg_queue *q = case_open(&o);
    await_answer(q);
    case_register(q, "w");
    for (size_t part = 0; part < N; part++)
        submit_as(q, tenant_in(q, part));
    test_redis_kill(&servers[1]);
    /* Its tenants are told, the others are served. */
    assert_int_equal(try_submit_as(q, tenant_in(q, 1), &id), PSEG_R_BROKER_UNAVAILABLE);
    submit_as(q, tenant_in(q, 2));
    case_register(q, "w");
    CALL(r, pseg_queue_workers, q);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(r->n_workers, 1);
    for (int i = 0; i < 3; i++)
        assert_int_equal(case_publish(q, "w", case_claim(q, "w"), NULL), PSEG_JOB_SUCCEEDED);
    assert_int_equal(case_claim_count(q, "w"), 0);
    assert_true(pseg_queue_silence_ms(q) < 10000);
    /* A sum that lacks a part would be wrong: it is none. */
    assert_int_equal(ping(q, NULL), PSEG_R_BROKER_UNAVAILABLE);
    CALL(r, pseg_queue_get_backlog, q, "m", 10);
    case_keep(r);
    assert_int_equal(r->err.reason, PSEG_R_BROKER_UNAVAILABLE);
    /* What it had accepted is there again when it is. */
    assert_true(test_redis_start(&servers[1]));
    await_answer(q);
    assert_int_equal(case_stats(q).live, 1);
    assert_int_equal(case_publish(q, "w", case_claim(q, "w"), NULL), PSEG_JOB_SUCCEEDED);
}

static void another_number_of_parts_is_refused(void **state)
{
    char two[256], msg[sizeof(pseg_err)];

    (void)state;
    start_all();
    snprintf(two, sizeof two, "%s %s", servers[0].tcp_url, servers[1].tcp_url);
    pseg_queue_options o = options_of(urls);
    pseg_queue *three = case_open(&o);
    await_answer(three);
    submit_as(three, tenant_in(three, 0));
    const char *const others[] = {two, servers[0].tcp_url};
    for (int i = 0; i < 2; i++) {
        o = options_of(others[i]);
        pseg_queue *q = case_open(&o);
        id_text id;
        pseg_queue_submit_args a = case_args(&id);
        pseg_queue_reply *r;
        for (int tries = 0;; tries++) {
            assert_true(tries < 2000);
            CALL(r, pseg_queue_submit, q, &a);
            case_keep(r);
            assert_int_equal(r->err.reason, PSEG_R_BROKER_UNAVAILABLE);
            if (strstr(r->err.msg, "lies in 3 parts, --redis names"))
                break;
            queue_pause_ms(5);
        }
        snprintf(msg, sizeof msg, "--redis names %d:", 2 - i);
        assert_non_null(strstr(r->err.msg, msg));
    }
    /* The number is kept with what is kept, and not for long when that is nothing. */
    case_sweep(three);
    assert_true(test_redis_number(&servers[0], "PTTL pseg:{%s}:layout", name_of_part(0)) >
                86400000);
    assert_in_range(test_redis_number(&servers[1], "PTTL pseg:{%s}:layout", name_of_part(1)), 1,
                    60000);
}

static void a_queue_that_was_filled_before_lies_in_one_part(void **state)
{
    (void)state;
    start_all();
    pseg_queue_options o = options_of(servers[0].tcp_url);
    pseg_queue *q = case_open(&o);
    await_answer(q);
    submit_as(q, "default");
    assert_int_equal(test_redis_number(&servers[0], "DEL pseg:{%s}:layout", queue_name), 1);
    o = options_of(urls);
    q = case_open(&o);
    for (int tries = 0;; tries++) {
        char msg[sizeof(pseg_err)];
        assert_true(tries < 2000);
        assert_int_equal(ping(q, msg), PSEG_R_BROKER_UNAVAILABLE);
        if (strstr(msg, "lies in 1 parts, --redis names 3"))
            break;
        queue_pause_ms(5);
    }
}

static void urls_of_parts_are_checked(void **state)
{
    static const struct {
        const char *url, *says;
    } bad[] = {
        {" ", "is empty"},
        {"redis://a http://b", "must be redis://"},
        {"redis+cluster://a:1,b:2", "the number of the queue's parts"},
        {"redis+cluster://a:1,b:2/", "the number of the queue's parts"},
        {"redis+cluster://a:1,b:2/0", "the number of the queue's parts"},
        {"redis+cluster://a:1,b:2/65", "the number of the queue's parts"},
        {"redis+cluster://a:1,b:2/3x", "the number of the queue's parts"},
        {"redis+cluster://a:1,b:99999/3", "redis port \"99999\""},
        {"redis+cluster://a:1/40 redis+cluster://b:1/25", "65 parts of a queue, more than 64"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pseg_queue_options o = options_of(bad[i].url);
        pseg_queue *q = NULL;
        pseg_err err = PSEG_ERR_INIT;
        assert_int_equal(pseg_queue_open(&q, &o, &err), PSEG_EINVAL);
        assert_int_equal(err.reason, PSEG_R_CONFIG_INVALID);
        if (!strstr(err.msg, bad[i].says))
            fail_msg("\"%s\": %s", bad[i].url, err.msg);
    }
}

/* ---- a cluster ---- */

static const char *const cluster_args[] = {"--cluster-enabled",
                                           "yes",
                                           "--cluster-node-timeout",
                                           "2000",
                                           "--appendonly",
                                           "yes",
                                           "--cluster-require-full-coverage",
                                           "no",
                                           NULL};

static void await_cluster(void)
{
    for (int i = 0; i < N; i++)
        for (int tries = 0;; tries++) {
            assert_true(tries < 6000);
            if (test_redis_ask(&servers[i], answer, sizeof answer, "CLUSTER INFO") &&
                strstr(answer, "cluster_state:ok") && strstr(answer, "cluster_size:3"))
                break;
            queue_pause_ms(5);
        }
}

static void start_cluster(void)
{
    static const char *const slots[N] = {"0 5460", "5461 10922", "10923 16383"};

    server_args = cluster_args;
    start_all();
    for (int i = 0; i < N; i++)
        assert_true(test_redis_ask(&servers[i], answer, sizeof answer, "CLUSTER ADDSLOTSRANGE %s",
                                   slots[i]));
    for (int i = 1; i < N; i++)
        assert_true(test_redis_ask(&servers[0], answer, sizeof answer, "CLUSTER MEET 127.0.0.1 %d",
                                   servers[i].port));
    await_cluster();
    snprintf(urls, sizeof urls, "redis+cluster://127.0.0.1:%d,127.0.0.1:%d,127.0.0.1:%d/3",
             servers[0].port, servers[1].port, servers[2].port);
}

static int master_of(int part)
{
    long long slot =
        test_redis_number(&servers[0], "CLUSTER KEYSLOT pseg:{%s}:live", name_of_part(part));

    return slot <= 5460 ? 0 : slot <= 10922 ? 1 : 2;
}

/* A queue whose parts lie on a master each. */
static void name_a_queue_on_all_masters(void)
{
    for (int i = 0; i < 1000; i++) {
        int a, b, c;
        snprintf(queue_name, sizeof queue_name, "spread%d", i);
        a = master_of(0), b = master_of(1), c = master_of(2);
        if (a != b && b != c && c != a)
            return;
    }
    fail_msg("no queue lies on all masters");
}

static void a_cluster_outlives_a_master(void **state)
{
    id_text id;

    (void)state;
    start_cluster();
    name_a_queue_on_all_masters();
    pseg_queue_options o = options_of(urls);
    o.timeout_ms = 2000;
    o.on_event = count_event;
    atomic_store(&n_ended, 0);
    pseg_queue *q = case_open(&o);
    await_answer(q);
    case_register(q, "w");
    for (size_t part = 0; part < N; part++) {
        submit_as(q, tenant_in(q, part));
        assert_int_equal(test_redis_number(&servers[master_of((int)part)], "ZCARD pseg:{%s}:live",
                                           name_of_part((int)part)),
                         1);
    }
    for (int i = 0; i < N; i++)
        assert_int_equal(case_publish(q, "w", case_claim(q, "w"), NULL), PSEG_JOB_SUCCEEDED);
    for (int tries = 0; tries < 4000 && atomic_load(&n_ended) < N; tries++)
        queue_pause_ms(5);
    assert_int_equal(atomic_load(&n_ended), N);
    /* Without the node that the URL names first. */
    int part = 0;
    while (master_of(part) != 0)
        part++;
    test_redis_kill(&servers[0]);
    for (int i = 0; i < N; i++)
        if (i != part)
            submit_as(q, tenant_in(q, (size_t)i));
    assert_int_equal(try_submit_as(q, tenant_in(q, (size_t)part), &id), PSEG_R_BROKER_UNAVAILABLE);
    pseg_queue *late = case_open(&o);
    for (int i = 0; i < N; i++)
        for (int tries = 0; i != part; tries++) {
            assert_true(tries < 2000);
            if (try_submit_as(late, tenant_in(late, (size_t)i), &id) == PSEG_R_NONE)
                break;
            queue_pause_ms(5);
        }
    assert_true(test_redis_start(&servers[0]));
    await_cluster();
    await_answer(q);
    submit_as(q, tenant_in(q, (size_t)part));
    assert_int_equal(case_stats(q).live, 5);
}

static int cases_on_a_cluster(void)
{
    start_cluster();
    int failed = queue_cases_run("queue on redis, cluster of three masters", urls);
    for (int i = 0; i < N; i++)
        test_redis_stop(&servers[i]);
    return failed;
}

#define PARTS(fn) cmocka_unit_test_setup_teardown(fn, setup, stop)

int main(int argc, char **argv)
{
    const struct CMUnitTest own[] = {
        PARTS(a_tenant_lies_in_one_part),
        PARTS(a_worker_takes_of_all_parts_in_turn),
        PARTS(a_dead_part_costs_its_own_tenants_alone),
        PARTS(another_number_of_parts_is_refused),
        PARTS(a_queue_that_was_filled_before_lies_in_one_part),
        PARTS(urls_of_parts_are_checked),
        PARTS(a_cluster_outlives_a_master),
    };
    test_redis r = {0};

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    if (!test_redis_start(&r))
        return TEST_SKIPPED;
    test_redis_stop(&r);
    int failed = cmocka_run_group_tests_name("queue in parts", own, NULL, NULL);
    failed += cases_on_a_cluster();
    return failed ? 1 : 0;
}
