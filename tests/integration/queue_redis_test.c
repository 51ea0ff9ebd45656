/* The queue on a real redis-server: the cases of every queue on a socket, over TCP and in cluster
 * mode, and what only Redis can do wrong. */
#include "tests/support/queue_own.h"
#include "common/base/clock.h"
#include "common/base/alloc.h"
#include "common/queue/pseg_lua.h"

#include <stdio.h>
#include <string.h>

/* ---- being away ---- */

static void a_server_that_is_not_there_is_an_answer(void **state)
{
    pseg_queue_options o = options_of("unix:/tmp/pseg-no-such-socket");
    char msg[400];
    id_text id;

    (void)state;
    pseg_queue *q = case_open(&o);
    int64_t at = pseg_clock_mono_ms();
    assert_int_equal(queue_try_submit(q, id.s), PSEG_R_BROKER_UNAVAILABLE);
    assert_int_equal(ping(q, msg), PSEG_R_BROKER_UNAVAILABLE);
    assert_non_null(strstr(msg, "cannot be reached"));
    assert_true(pseg_clock_mono_ms() - at < 5000);
    assert_true(pseg_queue_silence_ms(q) > 1000000);
    /* It is dialled until it is there. */
    start(NULL);
    o = options_of(server.socket_url);
    test_redis_kill(&server);
    q = case_open(&o);
    assert_int_equal(ping(q, NULL), PSEG_R_BROKER_UNAVAILABLE);
    assert_true(test_redis_start(&server));
    await_answer(q);
    assert_true(pseg_queue_silence_ms(q) < 10000);
}

static void a_frozen_server_costs_one_timeout(void **state)
{
    enum { TIMEOUT_MS = 400 };
    pseg_queue_reply *r;
    id_text id;

    (void)state;
    start(NULL);
    pseg_queue_options o = options_of(server.tcp_url);
    o.timeout_ms = TIMEOUT_MS;
    pseg_queue *q = case_open(&o);
    await_answer(q);
    test_redis_freeze(&server);
    int64_t at = pseg_clock_mono_ms();
    pseg_queue_submit_args a = case_args(&id);
    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    assert_int_equal(r->err.reason, PSEG_R_BROKER_UNAVAILABLE);
    assert_non_null(strstr(r->err.msg, "outcome is unknown"));
    int64_t took = pseg_clock_mono_ms() - at;
    assert_in_range(took, TIMEOUT_MS - 50, TIMEOUT_MS + 3000);
    /* The kernel goes on taking connections and bytes, and that is no sign of life. */
    for (int i = 0; i < 3; i++) {
        at = pseg_clock_mono_ms();
        CALL(r, pseg_queue_put_image, q, T, SHA, ((pseg_bytes){(uint8_t *)answer, sizeof answer}),
             0);
        case_keep(r);
        assert_int_equal(r->err.reason, PSEG_R_BROKER_UNAVAILABLE);
        assert_in_range(pseg_clock_mono_ms() - at, 0, TIMEOUT_MS + 3000);
    }
    test_redis_thaw(&server);
    await_answer(q);
    /* The unknown outcome is settled by asking again. */
    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(case_stats(q).submitted, 1);
}

static void nothing_accepted_is_lost_by_a_kill(void **state)
{
    enum { ROUNDS = 4, IN_FLIGHT = 64, MAX = 4000 };
    static id_text ids[MAX];
    int n = 0, cut_off = 0;

    (void)state;
    start((const char *const[]){"--appendonly", "yes", "--appendfsync", "always", NULL});
    pseg_queue_options o = options_of(server.socket_url);
    o.max_bytes = 5;
    pseg_queue *q = case_open(&o);
    for (int round = 0; round < ROUNDS; round++) {
        await_answer(q);
        for (int i = 0; i < 100 && n < MAX; i++)
            n += queue_try_submit(q, ids[n].s) == PSEG_R_NONE;
        /* Some are answered, some under way, some not sent when the server dies. */
        pseg_queue_sync wait[IN_FLIGHT];
        id_text sent[IN_FLIGHT];
        for (int i = 0; i < IN_FLIGHT; i++) {
            pseg_queue_submit_args a = case_args(&sent[i]);
            pseg_queue_sync_init(&wait[i]);
            pseg_queue_submit(q, &a, pseg_queue_sync_done, &wait[i]);
            if (i == IN_FLIGHT / 2)
                assert_int_equal(ping(q, NULL), PSEG_R_NONE);
        }
        test_redis_kill(&server);
        for (int i = 0; i < IN_FLIGHT; i++) {
            pseg_queue_reply *r = pseg_queue_sync_take(&wait[i]);
            if (r->err.code == PSEG_OK)
                ids[n++] = sent[i];
            else
                cut_off++;
            pseg_queue_reply_free(r);
        }
        assert_true(test_redis_start(&server));
    }
    await_answer(q);
    for (int i = 0; i < n; i++)
        assert_int_equal(queue_state_of(q, ids[i].s), PSEG_JOB_QUEUED);
    pseg_queue_stats s = case_stats(q);
    print_message("%d accepted, %d cut off, %lld kept\n", n, cut_off, (long long)s.submitted);
    assert_true(cut_off > 0);
    assert_in_range(s.live, n, n + cut_off);
    assert_int_equal(s.live, s.submitted);
    assert_int_equal(s.image_bytes, 5);
    /* And each is given out once. */
    case_register(q, "w");
    size_t given = 0, got;
    while ((got = case_claim_count(q, "w")) > 0)
        given += got;
    assert_int_equal(given, s.live);
}

static void a_worker_outlives_a_restart(void **state)
{
    pseg_queue_reply *r;

    (void)state;
    start((const char *const[]){"--appendonly", "yes", "--appendfsync", "always", NULL});
    pseg_queue_options o = options_of(server.socket_url);
    o.lease_ms = 60000;
    pseg_queue *q = case_open(&o);
    id_text id = case_submit(q);
    case_register(q, "w");
    const pseg_queue_claim *c = case_claim(q, "w");
    test_redis_kill(&server);
    assert_int_equal(ping(q, NULL), PSEG_R_BROKER_UNAVAILABLE);
    assert_true(test_redis_start(&server));
    await_answer(q);
    assert_int_equal(case_renew(q, "w", c), PSEG_LEASE_OK);
    assert_int_equal(case_publish(q, "w", c, NULL), PSEG_JOB_SUCCEEDED);
    CALL(r, pseg_queue_masks, q, T, id.s, (uint32_t[]){1}, 1);
    case_keep(r);
    assert_bytes(r->blobs[0], "mask 1");
}

/* ---- being full, read-only, emptied ---- */

static void full_memory_refuses_what_is_new_and_ends_what_is_old(void **state)
{
    enum { N = 256 << 10 };
    pseg_queue_reply *r;
    char sha[32];
    id_text id;
    int held = 0;

    (void)state;
    start((const char *const[]){"--maxmemory", "12mb", "--maxmemory-policy", "noeviction", NULL});
    pseg_queue *q = open_queue();
    uint8_t *data = pseg_calloc(1, N);
    for (int i = 0; i < N; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 24);
    case_submit(q);
    case_register(q, "w");
    const pseg_queue_claim *c = case_claim(q, "w");
    for (;; held++) {
        snprintf(sha, sizeof sha, "image %d", held);
        CALL(r, pseg_queue_put_image, q, T, sha, ((pseg_bytes){data, N}), 0);
        pseg_reason reason = r->err.reason;
        pseg_queue_reply_free(r);
        if (reason == PSEG_R_BROKER_FULL)
            break;
        assert_int_equal(reason, PSEG_R_NONE);
        assert_true(held < 100);
    }
    assert_true(held > 5);
    pseg_free(data);
    assert_true(ask("CONFIG SET maxmemory 1mb")); /* small things would have found room yet */
    /* Nothing is half written. */
    pseg_queue_stats before = case_stats(q);
    assert_int_equal(before.image_bytes, 5 + held * (int64_t)N);
    assert_int_equal(queue_try_submit(q, id.s), PSEG_R_BROKER_FULL);
    assert_int_equal(queue_state_of(q, id.s), PSEG_JOB_UNKNOWN);
    assert_int_equal(case_stats(q).live, 1);
    assert_int_equal(case_stats(q).image_bytes, before.image_bytes);
    /* What frees memory goes on. */
    assert_int_equal(case_renew(q, "w", c), PSEG_LEASE_OK);
    case_register(q, "w");
    case_sweep(q);
    assert_int_equal(case_publish(q, "w", c, NULL), PSEG_JOB_SUCCEEDED);
    assert_true(ask("CONFIG SET maxmemory 0"));
    assert_int_equal(queue_try_submit(q, id.s), PSEG_R_NONE);
}

static void a_replica_takes_no_jobs(void **state)
{
    id_text id;

    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    case_submit(q);
    assert_true(ask("REPLICAOF 127.0.0.1 1"));
    assert_int_equal(queue_try_submit(q, id.s), PSEG_R_BROKER_UNAVAILABLE);
    assert_true(ask("REPLICAOF NO ONE"));
    await_answer(q);
    assert_int_equal(queue_try_submit(q, id.s), PSEG_R_NONE);
}

static void an_emptied_database_is_served_again(void **state)
{
    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    case_submit(q);
    case_register(q, "w");
    const pseg_queue_claim *c = case_claim(q, "w");
    assert_true(ask("FLUSHALL"));
    /* The worker's lease has gone with its job, and it gets the next one though its group went too.
     */
    assert_int_equal(case_renew(q, "w", c), PSEG_LEASE_LOST);
    id_text next = case_submit(q);
    assert_string_equal(case_claim(q, "w")->id, next.s);
    assert_true(ask("FLUSHALL"));
    assert_int_equal(case_claim_count(q, "w"), 0);
}

/* ---- the functions ---- */

static void flushed_functions_are_loaded_again(void **state)
{
    enum { N = 50 };
    pseg_queue_sync wait[N];
    id_text ids[N];

    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    case_submit(q);
    assert_true(ask("FUNCTION FLUSH"));
    /* Many at once, all of which find them missing. */
    for (int i = 0; i < N; i++) {
        pseg_queue_submit_args a = case_args(&ids[i]);
        pseg_queue_sync_init(&wait[i]);
        pseg_queue_submit(q, &a, pseg_queue_sync_done, &wait[i]);
    }
    for (int i = 0; i < N; i++) {
        pseg_queue_reply *r = pseg_queue_sync_take(&wait[i]);
        case_keep(r);
        if (r->err.code != PSEG_OK)
            fail_msg("%s", r->err.msg);
        assert_string_equal(r->jobs[0].id, ids[i].s);
    }
    assert_int_equal(case_stats(q).submitted, N + 1);
}

static void load_revision(int revision)
{
    const char *lua = pseg_lua, *at = strstr(lua, "REVISION = ");

    assert_non_null(at);
    const char *end = strchr(at, '\n');
    char *changed = pseg_asprintf("%.*sREVISION = %d%s", (int)(at - lua), lua, revision, end);
    const char *words[] = {"FUNCTION", "LOAD", "REPLACE", changed};
    assert_true(test_redis_ask_words(&server, answer, sizeof answer, 4, words));
    assert_int_not_equal(*answer, '-');
    pseg_free(changed);
}

static long long revision(void)
{
    return test_redis_number(&server, "FCALL pseg1_revision 1 pseg:{%s}:", queue_name);
}

static void older_functions_are_replaced_and_newer_ones_stay(void **state)
{
    (void)state;
    start(NULL);
    await_answer(open_queue());
    long long own = revision();
    assert_true(own > 0);
    load_revision(1);
    await_answer(open_queue());
    assert_int_equal(revision(), own);
    load_revision(100000);
    pseg_queue *q = open_queue();
    case_submit(q);
    assert_int_equal(revision(), 100000);
}

/* ---- credentials, databases ---- */

static void users_and_databases(void **state)
{
    char url[256], msg[400];
    pseg_queue_options o;

    (void)state;
    start(NULL);
    assert_true(ask("ACL SETUSER worker on >p@ss:w%rd ~pseg:* +@all"));
    assert_true(ask("ACL SETUSER reader on >r ~pseg:* +@all -function"));
    assert_true(ask("CONFIG SET requirepass secret"));
    snprintf(url, sizeof url, "redis://worker:p%%40ss:w%%25rd@127.0.0.1:%d/3", server.port);
    o = options_of(url);
    pseg_queue *q = case_open(&o);
    case_submit(q);
    snprintf(url, sizeof url, "redis://:secret@127.0.0.1:%d", server.port);
    o = options_of(url);
    assert_int_equal(case_stats(case_open(&o)).live, 0); /* another database */
    /* Who may not load the functions uses what is there. */
    snprintf(url, sizeof url, "redis://reader:r@127.0.0.1:%d/3", server.port);
    o = options_of(url);
    assert_int_equal(case_stats(case_open(&o)).live, 1);
    for (int i = 0; i < 2; i++) {
        snprintf(url, sizeof url, i ? "redis://127.0.0.1:%d" : "redis://worker:wrong@127.0.0.1:%d",
                 server.port);
        o = options_of(url);
        q = case_open(&o);
        assert_int_equal(ping(q, msg), PSEG_R_BROKER_UNAVAILABLE);
        assert_non_null(strstr(msg, i ? "NOAUTH" : "WRONGPASS"));
    }
}

static int cases_in_cluster_mode(void)
{
    test_redis r = {.args = (const char *const[]){"--cluster-enabled", "yes", NULL}};
    int failed = 1;

    test_redis_start(&r);
    test_redis_ask(&r, answer, sizeof answer, "CLUSTER ADDSLOTSRANGE 0 16383");
    for (int64_t until = pseg_clock_mono_ms() + 20000; pseg_clock_mono_ms() < until;) {
        if (test_redis_ask(&r, answer, sizeof answer, "CLUSTER INFO") &&
            strstr(answer, "cluster_state:ok")) {
            failed = queue_cases_run("queue on redis, cluster", r.tcp_url);
            break;
        }
        queue_pause_ms(10);
    }
    test_redis_stop(&r);
    return failed;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest own[] = {
        OWN(a_server_that_is_not_there_is_an_answer),
        OWN(a_frozen_server_costs_one_timeout),
        OWN(nothing_accepted_is_lost_by_a_kill),
        OWN(a_worker_outlives_a_restart),
        OWN(full_memory_refuses_what_is_new_and_ends_what_is_old),
        OWN(a_replica_takes_no_jobs),
        OWN(an_emptied_database_is_served_again),
        OWN(flushed_functions_are_loaded_again),
        OWN(older_functions_are_replaced_and_newer_ones_stay),
        OWN(users_and_databases),
    };
    test_redis r = {0};

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    if (!test_redis_start(&r))
        return TEST_SKIPPED;
    int failed = queue_cases_run("queue on redis, socket", r.socket_url);
    test_redis_stop(&r);
    failed += cases_in_cluster_mode();
    failed += cmocka_run_group_tests_name("queue and redis' faults", own, NULL, NULL);
    return failed ? 1 : 0;
}
