/* The queue on a real redis-server: the cases of every queue on a socket, over TCP and in cluster
 * mode, and what only Redis can do wrong. */
#include "tests/support/queue_cases_impl.h"
#include "tests/support/redis.h"
#include "common/base/clock.h"
#include "common/base/alloc.h"
#include "common/queue/pseg_lua.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static test_redis server;
static char answer[1 << 16];
static int n_queues;
static char queue_name[33];

/* A server of the case's own. */
static void start(const char *const *args)
{
    server = (test_redis){.args = args};
    assert_true(test_redis_start(&server));
}

static int stop(void **state)
{
    (void)state;
    case_teardown(state);
    test_redis_stop(&server);
    return 0;
}

static pseg_queue_options options_of(const char *url)
{
    pseg_queue_options o = PSEG_QUEUE_OPTIONS_DEFAULT;

    o.url = url;
    o.name = queue_name;
    o.timeout_ms = 10000;
    o.lease_ms = 300;
    return o;
}

static pseg_queue *open_queue(void)
{
    pseg_queue_options o = options_of(server.socket_url);

    return case_open(&o);
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

/* Until the queue answers again, for 20 s at most. */
static void await_answer(pseg_queue *q)
{
    for (int64_t until = pseg_clock_mono_ms() + 20000; ping(q, NULL) != PSEG_R_NONE;) {
        assert_true(pseg_clock_mono_ms() < until);
        queue_pause_ms(5);
    }
}

static bool ask(const char *text)
{
    return test_redis_ask(&server, answer, sizeof answer, "%s", text) && *answer != '-';
}

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

/* ---- housekeeping ---- */

static void the_dead_leave_no_places_behind(void **state)
{
    enum { N = 450 };
    id_text ids[N];
    pseg_queue_reply *r;

    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    for (int i = 0; i < N; i++)
        ids[i] = case_submit(q);
    id_text last = case_submit(q);
    for (int i = 0; i < N; i++) {
        CALL(r, pseg_queue_cancel, q, T, ids[i].s);
        pseg_queue_reply_free(r);
    }
    /* No worker has ever come. */
    SWEEP_UNTIL(q, test_redis_number(&server, "LLEN pseg:{%s}:ready:m", queue_name) == 1);
    case_register(q, "w");
    const pseg_queue_claim *c = case_claim(q, "w");
    assert_string_equal(c->id, last.s);
    case_publish(q, "w", c, NULL);
    assert_int_equal(test_redis_number(&server, "LLEN pseg:{%s}:ready:m", queue_name), 0);
}

static void lose(const char *key)
{
    assert_int_equal(test_redis_number(&server, "DEL pseg:{%s}:%s", queue_name, key), 1);
}

/* As a torn log of Redis may leave it: a job in no line, or with nothing but its record. */
static void what_a_torn_log_left_is_mended(void **state)
{
    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    case_register(q, "w");
    id_text id = case_submit(q);
    lose("line:m:default");
    lose("fair:m");
    assert_int_equal(case_claim_count(q, "w"), 0);
    case_sweep(q);
    assert_string_equal(case_claim(q, "w")->id, id.s);
    /* The same request again finds the record, and must not promise what nobody will do. */
    pseg_queue_submit_args a = case_args(&id);
    pseg_queue_reply *r;
    a.request_id = "again";
    for (int i = 0; i < 2; i++) {
        CALL(r, pseg_queue_submit, q, &a);
        case_keep(r);
        assert_int_equal(r->created, i == 0);
        for (int k = 0; i == 0 && k < 3; k++)
            lose(((const char *const[]){"line:m:default", "fair:m", "live"})[k]);
    }
    assert_string_equal(case_claim(q, "w")->id, id.s);
}

static long long count(const char *command, const char *key)
{
    return test_redis_number(&server, "%s pseg:{%s}:%s", command, queue_name, key);
}

static void make_batch(pseg_queue *q, int64_t ttl_ms)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_create_batch, q, T, "b", ttl_ms, case_bytes(""));
    case_keep(r);
    assert_true(r->created);
}

static id_text put_item(pseg_queue *q, int64_t seq)
{
    id_text id;
    pseg_queue_item_args a = {.job = case_args(&id), .batch = "b", .seq = seq, .custom_id = "c"};
    pseg_queue_reply *r;

    a.job.ttl_ms = 50;
    CALL(r, pseg_queue_submit_item, q, &a);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(r->next_seq, seq + 1);
    return id;
}

/* An item that was promised is done and told of; one that was not is sent again by its client. */
static void a_torn_log_leaves_batches_whole(void **state)
{
    char text[160];

    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    case_register(q, "w");
    make_batch(q, 60000);
    id_text id = put_item(q, 1);
    for (int k = 0; k < 4; k++)
        lose(
            ((const char *const[]){"line:m:default", "fair:m", "live", "batch_live:default:b"})[k]);
    SWEEP_UNTIL(q, count("SCARD", "batch_live:default:b") == 1);
    const pseg_queue_claim *c = case_claim(q, "w");
    assert_string_equal(c->id, id.s);
    /* The end was written but for the batch's part of it. */
    case_publish(q, "w", c, NULL);
    lose("batch_done:default:b");
    snprintf(text, sizeof text, "live 99999999999999 %s", id.s);
    count("ZADD", text);
    assert_int_equal(count("PERSIST", (snprintf(text, sizeof text, "job:%s", id.s), text)), 1);
    SWEEP_UNTIL(q, count("LLEN", "batch_done:default:b") == 1);
    case_sweep(q);
    assert_int_equal(count("LLEN", "batch_done:default:b"), 1);
    /* A job whose batch never got so far. */
    id = put_item(q, 2);
    count("HSET", "batch:default:b next 2");
    lose("line:m:default");
    lose("fair:m");
    SWEEP_UNTIL(q, queue_state_of(q, id.s) == PSEG_JOB_UNKNOWN);
    id_text again = put_item(q, 2);
    assert_string_equal(case_claim(q, "w")->id, again.s);
    assert_int_equal(case_claim_count(q, "w"), 0);
}

static id_text submit_for(pseg_queue *q, int64_t ttl_ms)
{
    pseg_queue_reply *r;
    id_text id;
    pseg_queue_submit_args a = case_args(&id);

    a.ttl_ms = ttl_ms;
    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    return id;
}

static long long has_record(const char *id)
{
    return test_redis_number(&server, "EXISTS pseg:{%s}:job:%s", queue_name, id);
}

/* Records that nothing, or not everything, leads to, as a torn log leaves them: a job that waits is
 * done, its line there or not. */
static void a_record_that_is_lost_is_found(void **state)
{
    static const char *const all[] = {"live", "line:m:default", "fair:m", "index:default"};

    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    case_register(q, "w");
    for (int n_lost = 1; n_lost <= 4; n_lost += 3) {
        id_text id = submit_for(q, 50);
        for (int k = 0; k < n_lost; k++)
            lose(all[k]);
        SWEEP_UNTIL(q, test_redis_number(&server, "ZCARD pseg:{%s}:live", queue_name) == 1);
        assert_int_equal(test_redis_number(&server, "PTTL pseg:{%s}:job:%s", queue_name, id.s), -1);
        const pseg_queue_claim *c = case_claim(q, "w");
        assert_string_equal(c->id, id.s);
        case_publish(q, "w", c, NULL);
        SWEEP_UNTIL(q, has_record(id.s) == 0);
    }
}

/* And one of a job that has ended goes when its time has passed. */
static void an_ended_record_that_is_lost_goes(void **state)
{
    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    case_register(q, "w");
    id_text id = submit_for(q, 600000);
    case_publish(q, "w", case_claim(q, "w"), NULL);
    assert_int_equal(test_redis_number(&server, "PERSIST pseg:{%s}:job:%s", queue_name, id.s), 1);
    test_redis_number(&server, "HSET pseg:{%s}:job:%s ttl 50", queue_name, id.s);
    lose("ended");
    SWEEP_UNTIL(q, has_record(id.s) == 0);
    SWEEP_UNTIL(q, test_redis_number(&server, "EXISTS pseg:{%s}:index:default", queue_name) == 0);
}

/* A pass over the live jobs that another process of Redis began: its cursor means nothing here, and
 * half a pass must not tell that nobody uses an image. */
static void a_pass_begins_anew_in_another_redis(void **state)
{
    enum { N = 300 }; /* live is a table of 512 rows, and 511 the cursor of its last one */
    pseg_queue_reply *r;
    id_text id;

    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    pseg_queue_submit_args a = case_args(&id);
    a.image_sha256 = "one";
    CALL(r, pseg_queue_submit, q, &a);
    case_keep(r);
    for (int i = 0; i < N; i++)
        case_submit(q);
    test_redis_number(&server, "HSET pseg:{%s}:count mended 511 pass 1000", queue_name);
    assert_true(ask("FUNCTION FLUSH")); /* what the functions remember goes with the process */
    test_redis_number(&server, "HSET pseg:{%s}:image_check default:one 1000", queue_name);
    for (int i = 0; i < 10; i++)
        case_sweep(q);
    assert_int_equal(test_redis_number(&server, "HGET pseg:{%s}:image_use default:one", queue_name),
                     1);
}

/* A torn log counts a user of an image too many: the image goes all the same, but neither from
 * under a job that lives nor from under a case in quarantine. */
static void an_image_counted_too_often_goes(void **state)
{
    pseg_queue_reply *r;
    id_text id;

    (void)state;
    start(NULL);
    pseg_queue_options o = options_of(server.socket_url);
    o.image_ttl_ms = 20;
    o.max_attempts = 1;
    o.lease_ms = 60000;
    pseg_queue *q = case_open(&o);
    case_register(q, "w");
    for (int is_case = 0; is_case < 2; is_case++) {
        pseg_queue_submit_args a = case_args(&id);
        CALL(r, pseg_queue_submit, q, &a);
        case_keep(r);
        const pseg_queue_claim *c = case_claim(q, "w");
        test_redis_number(&server, "HINCRBY pseg:{%s}:image_use %s 1", queue_name, c->image);
        /* Looked at while the job runs: it is found. */
        SWEEP_UNTIL(q, test_redis_number(&server, "EXISTS pseg:{%s}:image_check", queue_name) == 1);
        SWEEP_UNTIL(q, test_redis_number(&server, "EXISTS pseg:{%s}:image_check", queue_name) == 0);
        assert_int_equal(
            test_redis_number(&server, "HGET pseg:{%s}:image_use %s", queue_name, c->image), 2);
        if (is_case) {
            assert_int_equal(case_fail(q, "w", c, PSEG_R_DEVICE_FAILED, 0, NULL), PSEG_JOB_FAILED);
            SWEEP_UNTIL(q, test_redis_number(&server, "HGET pseg:{%s}:image_use %s", queue_name,
                                             c->image) == 1);
            assert_int_equal(
                test_redis_number(&server, "EXISTS pseg:{%s}:image:%s", queue_name, c->image), 1);
        } else {
            case_publish(q, "w", c, NULL);
            SWEEP_UNTIL(q, test_redis_number(&server, "EXISTS pseg:{%s}:image:%s", queue_name,
                                             c->image) == 0);
            assert_int_equal(test_redis_number(&server, "GET pseg:{%s}:bytes", queue_name), 0);
            assert_int_equal(test_redis_number(&server, "EXISTS pseg:{%s}:image_use", queue_name),
                             0);
        }
    }
}

static void every_key_has_an_end(void **state)
{
    static const char *const stay[] = {"bytes", "count", "events", "models", "wake:m"};
    enum { N_STAY = sizeof stay / sizeof *stay };
    pseg_queue_reply *r;
    id_text id;

    (void)state;
    start(NULL);
    pseg_queue_options o = options_of(server.socket_url);
    o.image_ttl_ms = 50;
    pseg_queue *q = case_open(&o);
    case_register(q, "w");
    for (int i = 0; i < 8; i++) {
        pseg_queue_submit_args a = case_args(&id);
        char request_id[16];
        snprintf(request_id, sizeof request_id, "r%d", i);
        a.request_id = request_id;
        a.ttl_ms = 50;
        CALL(r, pseg_queue_submit, q, &a);
        case_keep(r);
        assert_true(r->created);
        const pseg_queue_claim *c = i ? case_claim(q, "w") : NULL;
        if (i == 0 || i == 1)
            CALL(r, pseg_queue_cancel, q, T, id.s);
        else if (i == 2)
            CALL(r, pseg_queue_release, q, "w", case_lease(c));
        else if (i > 3)
            case_publish(q, "w", c, NULL);
        if (i <= 2)
            case_keep(r);
    }
    make_batch(q, 50);
    put_item(q, 1);
    CALL(r, pseg_queue_cancel_batch, q, T, "b");
    case_keep(r);
    SWEEP_UNTIL(q, count("ZCARD", "batch_cancels") == 0);
    /* One waits, one runs with a dead worker, one is cancelled there, the others have ended. */
    assert_int_equal(case_stats(q).live, 3);
    for (int i = 0; i < 3; i++)
        SWEEP_UNTIL(q, test_redis_number(&server, "ZCARD pseg:{%s}:leases", queue_name) == 0);
    while (case_stats(q).live)
        case_publish(q, "w", case_claim(q, "w"), NULL);
    CALL(r, pseg_queue_unregister, q, "w");
    case_keep(r);
    SWEEP_UNTIL(q, test_redis_number(&server, "DBSIZE") <= N_STAY);
    for (int i = 0; i < N_STAY; i++)
        assert_int_equal(test_redis_number(&server, "EXISTS pseg:{%s}:%s", queue_name, stay[i]), 1);
    assert_int_equal(test_redis_number(&server, "GET pseg:{%s}:bytes", queue_name), 0);
    assert_int_equal(test_redis_number(&server, "LLEN pseg:{%s}:ready:m", queue_name), 0);
}

/* ---- connections that break ---- */

static _Atomic int n_ended, n_missed;

static void count_event(void *ud, const pseg_queue_event *e)
{
    (void)ud;
    if (!e)
        atomic_fetch_add(&n_missed, 1);
    else if (pseg_job_state_is_terminal(e->state))
        atomic_fetch_add(&n_ended, 1);
}

static void cut_connections_are_made_anew(void **state)
{
    pseg_queue_options o;
    id_text id;

    (void)state;
    start(NULL);
    o = options_of(server.socket_url);
    o.on_event = count_event;
    atomic_store(&n_ended, 0);
    atomic_store(&n_missed, 0);
    pseg_queue *q = case_open(&o);
    case_register(q, "w");
    for (int i = 0; i < 30; i++) {
        int missed = atomic_load(&n_missed);
        assert_true(ask("CLIENT KILL TYPE normal SKIPME yes"));
        for (int tries = 0; tries < 100 && queue_try_submit(q, id.s) != PSEG_R_NONE; tries++)
            queue_pause_ms(5);
        await_answer(q);
        for (int tries = 0; tries < 4000 && atomic_load(&n_missed) == missed; tries++)
            queue_pause_ms(5);
        /* Whoever was told that events may have been missed, hears of all that come later. */
        int ended = atomic_load(&n_ended);
        case_publish(q, "w", case_claim(q, "w"), NULL);
        for (int tries = 0; tries < 4000 && atomic_load(&n_ended) == ended; tries++)
            queue_pause_ms(5);
        assert_int_equal(atomic_load(&n_ended), ended + 1);
        assert_true(case_claim_count(q, "w") <= 1); /* of a submit whose answer was cut */
    }
}

static void closing_answers_what_is_under_way(void **state)
{
    enum { N = 20 };
    pseg_queue_sync wait[N];
    pseg_queue *q;
    id_text id;

    (void)state;
    start(NULL);
    pseg_queue_options o = options_of(server.socket_url);
    assert_int_equal(pseg_queue_open(&q, &o, NULL), PSEG_OK);
    await_answer(q);
    test_redis_freeze(&server);
    for (int i = 0; i < N; i++) {
        pseg_queue_submit_args a = case_args(&id);
        pseg_queue_sync_init(&wait[i]);
        pseg_queue_submit(q, &a, pseg_queue_sync_done, &wait[i]);
    }
    int64_t at = pseg_clock_mono_ms();
    pseg_queue_close(q);
    assert_true(pseg_clock_mono_ms() - at < 5000);
    for (int i = 0; i < N; i++) {
        pseg_queue_reply *r = pseg_queue_sync_take(&wait[i]);
        assert_int_equal(r->err.reason, PSEG_R_CANCELLED);
        pseg_queue_reply_free(r);
    }
    test_redis_thaw(&server);
}

/* ---- many at once ---- */

enum { CROWD_JOBS = 300, CROWD = 3 };

typedef struct crowd {
    char worker[16];
    _Atomic int *left;
    int published;
    const char *url;
} crowd;

static void *crowd_worker(void *arg)
{
    crowd *c = arg;
    pseg_queue_options o = options_of(c->url);
    pseg_queue *q = NULL;
    pseg_queue_reply *r;
    pseg_queue_worker w = {c->worker, "m", "", "", "", ""};

    if (pseg_queue_open(&q, &o, NULL) != PSEG_OK)
        return NULL;
    CALL(r, pseg_queue_register, q, &w);
    pseg_queue_reply_free(r);
    for (int64_t until = pseg_clock_mono_ms() + 60000;
         atomic_load(c->left) > 0 && pseg_clock_mono_ms() < until;) {
        pseg_queue_reply *claims, *swept;
        CALL(swept, pseg_queue_sweep, q);
        pseg_queue_reply_free(swept);
        CALL(claims, pseg_queue_claim_jobs, q, c->worker, "m", 7, 0);
        for (size_t i = 0; i < claims->n_claims; i++) {
            pseg_queue_lease l = {claims->claims[i].id, claims->claims[i].fence};
            /* Every fifth first attempt is dropped, as if its worker had died. */
            if (claims->claims[i].attempt == 1 && claims->claims[i].id[31] % 5 == 0)
                continue;
            CALL(r, pseg_queue_publish, q, c->worker, l, case_bytes("r"), NULL, 0, 0);
            if (r->err.code == PSEG_OK) {
                c->published++;
                atomic_fetch_sub(c->left, 1);
            }
            pseg_queue_reply_free(r);
        }
        if (claims->n_claims == 0)
            queue_pause_ms(5);
        pseg_queue_reply_free(claims);
    }
    pseg_queue_close(q);
    return NULL;
}

static void each_job_of_a_crowd_ends_once(void **state)
{
    static _Atomic int left;
    crowd crowds[CROWD];
    pthread_t threads[CROWD];
    int published = 0;
    id_text id;

    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    atomic_store(&left, CROWD_JOBS);
    for (int i = 0; i < CROWD; i++) {
        crowds[i] = (crowd){.left = &left, .url = server.socket_url};
        snprintf(crowds[i].worker, sizeof crowds[i].worker, "w%d", i);
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_worker, &crowds[i]), 0);
    }
    for (int i = 0; i < CROWD_JOBS; i++)
        assert_int_equal(queue_try_submit(q, id.s), PSEG_R_NONE);
    for (int i = 0; i < CROWD; i++) {
        pthread_join(threads[i], NULL);
        published += crowds[i].published;
    }
    pseg_queue_stats s = case_stats(q);
    assert_int_equal(published, CROWD_JOBS);
    assert_int_equal(s.succeeded, CROWD_JOBS);
    assert_int_equal(s.live, 0);
    assert_int_equal(s.leased, 0);
    assert_int_equal(test_redis_number(&server, "LLEN pseg:{%s}:ready:m", queue_name), 0);
}

/* ---- */

static int setup(void **state)
{
    snprintf(queue_name, sizeof queue_name, "q%d", ++n_queues);
    return case_setup(state);
}

/* Two nodes, the slots halved: whichever the URL names, the queue is found. */
static void another_node_of_the_cluster_is_followed(void **state)
{
    static const char *const args[] = {"--cluster-enabled", "yes", "--cluster-node-timeout", "2000",
                                       NULL};
    test_redis second = {.args = args};

    (void)state;
    start(args);
    assert_true(test_redis_start(&second));
    assert_true(ask("CLUSTER ADDSLOTSRANGE 0 8191"));
    assert_true(test_redis_ask(&second, answer, sizeof answer, "CLUSTER ADDSLOTSRANGE 8192 16383"));
    assert_true(
        test_redis_ask(&server, answer, sizeof answer, "CLUSTER MEET 127.0.0.1 %d", second.port));
    const test_redis *nodes[2] = {&server, &second};
    for (int i = 0; i < 2; i++)
        for (int tries = 0;; tries++) {
            assert_true(tries < 4000);
            if (test_redis_ask(nodes[i], answer, sizeof answer, "CLUSTER INFO") &&
                strstr(answer, "cluster_state:ok") && strstr(answer, "cluster_size:2"))
                break;
            queue_pause_ms(5);
        }
    for (int i = 0; i < 2; i++) {
        pseg_queue_options o = options_of(nodes[i]->tcp_url);
        o.on_event = count_event;
        atomic_store(&n_ended, 0);
        atomic_store(&n_missed, 0);
        pseg_queue *q = case_open(&o);
        await_answer(q);
        case_submit(q);
        case_register(q, "w");
        for (int tries = 0; tries < 4000 && !atomic_load(&n_missed); tries++)
            queue_pause_ms(5);
        case_publish(q, "w", case_claim(q, "w"), NULL);
        for (int tries = 0; tries < 4000 && !atomic_load(&n_ended); tries++)
            queue_pause_ms(5);
        assert_int_equal(atomic_load(&n_ended), 1);
        assert_int_equal(case_stats(q).succeeded, i + 1);
        case_teardown(NULL);
    }
    test_redis_stop(&second);
}

#define OWN(fn) cmocka_unit_test_setup_teardown(fn, setup, stop)

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
        OWN(the_dead_leave_no_places_behind),
        OWN(what_a_torn_log_left_is_mended),
        OWN(a_torn_log_leaves_batches_whole),
        OWN(a_record_that_is_lost_is_found),
        OWN(an_ended_record_that_is_lost_goes),
        OWN(a_pass_begins_anew_in_another_redis),
        OWN(an_image_counted_too_often_goes),
        OWN(every_key_has_an_end),
        OWN(cut_connections_are_made_anew),
        OWN(closing_answers_what_is_under_way),
        OWN(each_job_of_a_crowd_ends_once),
        OWN(another_node_of_the_cluster_is_followed),
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
