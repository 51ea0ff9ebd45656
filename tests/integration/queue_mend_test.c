/* What a queue on Redis tidies, and what it mends that a torn log has left. */
#include "tests/support/queue_own.h"

#include <stdio.h>
#include <stdlib.h>

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

static id_text put_item(pseg_queue *q, int64_t seq, int64_t ttl_ms)
{
    id_text id;
    pseg_queue_item_args a = {.job = case_args(&id), .batch = "b", .seq = seq, .custom_id = "c"};
    pseg_queue_reply *r;

    a.job.ttl_ms = ttl_ms;
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
    case_create_batch(q, 60000);
    id_text id = put_item(q, 1, 60000);
    for (int k = 0; k < 3; k++)
        lose(((const char *const[]){"line:m:default", "fair:m", "live"})[k]);
    SWEEP_UNTIL(q, count("ZCARD", "line:m:default") == 1);
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
    id = put_item(q, 2, 60000);
    count("HSET", "batch:default:b next 2");
    count("HDEL", "batch:default:b c2");
    lose("line:m:default");
    lose("fair:m");
    SWEEP_UNTIL(q, queue_state_of(q, id.s) == PSEG_JOB_UNKNOWN);
    id_text again = put_item(q, 2, 60000);
    assert_string_equal(case_claim(q, "w")->id, again.s);
    assert_int_equal(case_claim_count(q, "w"), 0);
}

/* The torn half is run at the start after next: when it shows up, its client has sent the item
 * again, and that job waits, or is done. */
static void a_torn_log_makes_no_item_two_jobs(void **state)
{
    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    case_register(q, "w");
    case_create_batch(q, 60000);
    for (int is_done = 0; is_done < 2; is_done++) {
        char next[40];
        int seq = 1 + is_done;
        id_text torn = put_item(q, seq, 60000);
        lose("line:m:default");
        lose("fair:m");
        lose("live");
        lose("batch_live:default:b");
        snprintf(next, sizeof next, "batch:default:b next %d", seq);
        count("HSET", next);
        id_text again = put_item(q, seq, 60000);
        if (is_done)
            case_publish(q, "w", case_claim(q, "w"), NULL);
        SWEEP_UNTIL(q, queue_state_of(q, torn.s) == PSEG_JOB_UNKNOWN);
        if (!is_done) {
            const pseg_queue_claim *c = case_claim(q, "w");
            assert_string_equal(c->id, again.s);
            case_publish(q, "w", c, NULL);
        }
        assert_int_equal(case_claim_count(q, "w"), 0);
        assert_int_equal(count("LLEN", "batch_done:default:b"), seq);
        assert_int_equal(count("HLEN", "batch_live:default:b"), 0);
    }
}

/* As above, but of a half that has even the place in line, so that nothing looks torn. has_ended:
 * the other job had, when the half was run; by_claim: before the sweep has come by. */
static void torn_behind_the_line(bool has_ended, bool by_claim)
{
    char line[80];

    start(NULL);
    pseg_queue *q = open_queue();
    case_register(q, "w");
    case_create_batch(q, 60000);
    id_text torn = put_item(q, 1, 60000);
    snprintf(line, sizeof line, "line:m:default 1 %s", torn.s);
    count("HSET", "batch:default:b next 1");
    if (has_ended)
        lose("line:m:default");
    id_text again = put_item(q, 1, 60000);
    if (!has_ended && !by_claim)
        SWEEP_UNTIL(q, queue_state_of(q, torn.s) == PSEG_JOB_UNKNOWN);
    const pseg_queue_claim *c = case_claim(q, "w");
    assert_string_equal(c->id, again.s);
    case_publish(q, "w", c, NULL);
    if (has_ended) {
        assert_int_equal(count("ZADD", line), 1);
        assert_int_equal(count("ZADD", "fair:m 1 default"), 1);
        if (!by_claim)
            SWEEP_UNTIL(q, queue_state_of(q, torn.s) == PSEG_JOB_UNKNOWN);
    }
    assert_int_equal(case_claim_count(q, "w"), 0);
    assert_int_equal(queue_state_of(q, torn.s), PSEG_JOB_UNKNOWN);
    assert_int_equal(count("LLEN", "batch_done:default:b"), 1);
    assert_int_equal(count("HLEN", "batch_live:default:b"), 0);
    assert_int_equal(count("LLEN", "ready:m"), 0);
    assert_int_equal(count("EXISTS", "tenant_jobs"), 0);
}

static void a_half_torn_behind_the_line_is_not_claimed(void **state)
{
    (void)state;
    torn_behind_the_line(false, true);
}

static void a_half_torn_behind_the_line_is_swept(void **state)
{
    (void)state;
    torn_behind_the_line(false, false);
}

static void a_half_of_an_item_that_has_ended_is_not_claimed(void **state)
{
    (void)state;
    torn_behind_the_line(true, true);
}

static void a_half_of_an_item_that_has_ended_is_swept(void **state)
{
    (void)state;
    torn_behind_the_line(true, false);
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

/* Changes the time to live in a job's record. */
static void keep_for(const char *id, int ttl_ms)
{
    static const char script[] =
        "local fixed = redis.call('HGET', KEYS[1], 'fixed') "
        "return redis.call('HSET', KEYS[1], 'fixed', string.sub(fixed, 1, 8) .. "
        "struct.pack('<d', tonumber(ARGV[1])) .. string.sub(fixed, 17))";
    char key[128], ttl[16], said[64];

    snprintf(key, sizeof key, "pseg:{%s}:job:%s", queue_name, id);
    snprintf(ttl, sizeof ttl, "%d", ttl_ms);
    assert_true(test_redis_ask_words(&server, said, sizeof said, 5,
                                     (const char *const[]){"EVAL", script, "1", key, ttl}));
    assert_string_equal(said, ":0\r\n");
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
    keep_for(id.s, 50);
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
    case_create_batch(q, 50);
    put_item(q, 1, 50);
    CALL(r, pseg_queue_cancel_batch, q, T, "b");
    case_keep(r);
    SWEEP_UNTIL(q, count("ZCARD", "batch_cancels") == 0);
    /* One waits, one runs with a dead worker, one is cancelled there, the others have ended. */
    assert_int_equal(case_stats(q).live, 3);
    for (int i = 0; i < 3; i++)
        SWEEP_UNTIL(q, test_redis_number(&server, "ZCARD pseg:{%s}:leases", queue_name) == 0);
    while (case_stats(q).live)
        case_publish(q, "w", case_claim(q, "w"), NULL);
    only_what_stays(q);
}

/* Who has an image at hand is forgotten by itself; the job's own mark goes with the job. */
static void holders_are_forgotten_in_time(void **state)
{
    pseg_queue_reply *r;
    id_text id;

    (void)state;
    start(NULL);
    pseg_queue_options o = options_of(server.socket_url);
    o.lease_ms = 600000;
    pseg_queue *q = case_open(&o);
    case_register(q, "w");
    case_register(q, "other");
    for (int i = 0; i < 2; i++) {
        id = case_submit(q);
        CALL(r, pseg_queue_claim_jobs, q, i ? "other" : "w", "m", 1, 0, 1000000000);
        case_keep(r);
        assert_int_equal(r->n_claims, i ? 0 : 1);
    }
    assert_in_range(test_redis_number(&server, "PTTL pseg:{%s}:holder:m:" T ":" SHA, queue_name), 1,
                    60000);
    assert_int_equal(test_redis_number(&server, "HEXISTS pseg:{%s}:job:%s left", queue_name, id.s),
                     1);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest own[] = {
        OWN(the_dead_leave_no_places_behind),
        OWN(what_a_torn_log_left_is_mended),
        OWN(a_torn_log_leaves_batches_whole),
        OWN(a_torn_log_makes_no_item_two_jobs),
        OWN(a_half_torn_behind_the_line_is_not_claimed),
        OWN(a_half_torn_behind_the_line_is_swept),
        OWN(a_half_of_an_item_that_has_ended_is_not_claimed),
        OWN(a_half_of_an_item_that_has_ended_is_swept),
        OWN(a_record_that_is_lost_is_found),
        OWN(an_ended_record_that_is_lost_goes),
        OWN(a_pass_begins_anew_in_another_redis),
        OWN(an_image_counted_too_often_goes),
        OWN(every_key_has_an_end),
        OWN(holders_are_forgotten_in_time),
    };

    return own_run("queue on redis, housekeeping", own, sizeof own / sizeof *own, argc, argv);
}
