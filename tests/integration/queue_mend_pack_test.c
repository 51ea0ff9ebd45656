/* What a queue on Redis tidies and mends of packs, in which items lie that were sent together. */
#include "tests/support/queue_own.h"

#include <stdio.h>
#include <stdlib.h>

static void publish_items(pseg_queue *q, const pseg_queue_reply *r, size_t from, size_t n)
{
    for (size_t i = from; i < from + n; i++)
        assert_int_equal(case_publish(q, "w", &r->claims[i], NULL), PSEG_JOB_SUCCEEDED);
}

/* A number that a script finds out of all packs of the queue: it is called with each one's key. */
static long long of_packs(const char *script)
{
    char said[64], whole[1200], pattern[80];

    snprintf(whole, sizeof whole,
             "local n = 0 for _, key in ipairs(redis.call('KEYS', ARGV[1])) do n = n + (%s) end "
             "return n",
             script);
    snprintf(pattern, sizeof pattern, "pseg:{%s}:pack:*", queue_name);
    assert_true(test_redis_ask_words(&server, said, sizeof said, 4,
                                     (const char *const[]){"EVAL", whole, "0", pattern}));
    assert_int_equal(said[0], ':');
    return atoll(said + 1);
}

static void every_key_of_packs_has_an_end(void **state)
{
    enum { N = 40 };
    pseg_queue_reply *r;

    (void)state;
    start(NULL);
    pseg_queue_options o = options_of(server.socket_url);
    o.image_ttl_ms = 50;
    pseg_queue *q = case_open(&o);
    case_register(q, "w");
    case_create_batch(q, 50);
    case_put_items(q, 1, N, &(pseg_queue_submit_args){.ttl_ms = 50});
    assert_true(of_packs("1") > 0);
    const pseg_queue_reply *a = case_claim_many(q, "w", 20);
    publish_items(q, a, 0, 10);
    assert_int_equal(case_release(q, "w", &a->claims[10], NULL), PSEG_JOB_QUEUED);
    assert_int_equal(case_fail(q, "w", &a->claims[11], PSEG_R_IMAGE_UNDECODABLE, 0, NULL),
                     PSEG_JOB_FAILED);
    CALL(r, pseg_queue_cancel, q, T, a->claims[12].id);
    case_keep(r);
    publish_items(q, a, 13, 7);
    SWEEP_UNTIL(q, case_stats(q).leased == 0); /* the cancelled one's lease ends */
    /* Those that are left while others' records have gone already. */
    for (const pseg_queue_reply *some; (some = case_claim_many(q, "w", 5))->n_claims;) {
        publish_items(q, some, 0, some->n_claims);
        queue_pause_ms(20);
        case_sweep(q);
    }
    assert_int_equal(case_stats(q).live, 0);
    only_what_stays(q);
}

/* Whoever looks for its images takes packs apart, but no more than it must: Redis waits meanwhile.
 */
static void a_look_takes_one_pack_apart(void **state)
{
    enum { N = 90 };
    static const char waiting[] =
        "string.find(redis.call('HGET', key, 'map'), 'Q', 1, true) and 1 or 0";
    pseg_queue_reply *r;
    int n = 0;

    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    case_register(q, "w");
    case_create_batch(q, 60000);
    for (int k = 0; k < 3; k++)
        case_put_items(q, 1 + k * N / 3, N / 3, NULL);
    long long before = of_packs(waiting);
    assert_true(before >= 3);
    CALL(r, pseg_queue_claim_jobs, q, "w", "m", 4, 0, 1000000000);
    case_keep(r);
    assert_int_equal(r->n_claims, 4);
    assert_in_range(of_packs(waiting), 1, before - 1);
    publish_items(q, r, 0, 4);
    for (n = 4; n < N; n += (int)r->n_claims) {
        CALL(r, pseg_queue_claim_jobs, q, "w", "m", 10, 0, 1000000000);
        case_keep(r);
        assert_true(r->n_claims > 0);
        publish_items(q, r, 0, r->n_claims);
    }
    assert_int_equal(count("LLEN", "batch_done:default:b"), N);
    assert_int_equal(case_stats(q).live, 0);
}

/* As what_a_torn_log_left_is_mended and its like, for packs. */
static void a_torn_log_leaves_packs_whole(void **state)
{
    enum { N = 30 };
    static const char *const all[] = {"line:m:default", "fair:m", "index:default", "live"};

    (void)state;
    for (int n_lost = 2; n_lost <= 4; n_lost++) {
        start(NULL);
        pseg_queue *q = open_queue();
        case_register(q, "w");
        case_create_batch(q, 60000);
        case_put_items(q, 1, N, NULL);
        for (int k = 0; k < n_lost; k++)
            if (n_lost == 4 || k != 2)
                lose(all[k]);
        if (n_lost == 4)
            count("HDEL", "count more"), lose("ready:m"), lose("tenant_jobs");
        SWEEP_UNTIL(q, count("ZCARD", "line:m:default") > 0 && case_stats(q).live == N);
        for (int k = 0; k < 20; k++)
            case_sweep(q);
        /* A claim whose lease was not written. */
        const pseg_queue_reply *a = case_claim_many(q, "w", 10);
        assert_int_equal(a->n_claims, 10);
        publish_items(q, a, 0, 4);
        lose("leases");
        int n = 4;
        for (int k = 0; k < 150 && n < N; k++) {
            case_sweep(q);
            a = case_claim_many(q, "w", N);
            publish_items(q, a, 0, a->n_claims);
            n += (int)a->n_claims;
            queue_pause_ms(a->n_claims ? 0 : 50);
        }
        assert_int_equal(n, N);
        assert_int_equal(count("LLEN", "batch_done:default:b"), N);
        assert_int_equal(count("HLEN", "batch_live:default:b"), 0);
        assert_int_equal(count("LLEN", "ready:m"), 0);
        assert_int_equal(case_stats(q).live, 0);
        assert_int_equal(count("HGET", "count more"), 0);
    }
}

/* Ends of which the pack's part was written, and not the batch's. */
static void torn_ends_of_packs_are_told(void **state)
{
    enum { N = 30 };

    (void)state;
    start(NULL);
    pseg_queue_options o = options_of(server.socket_url);
    o.lease_ms = 60000;
    pseg_queue *q = case_open(&o);
    case_register(q, "w");
    case_create_batch(q, 60000);
    case_put_items(q, 1, N, NULL);
    const pseg_queue_reply *a = case_claim_many(q, "w", N - 1);
    publish_items(q, a, 0, N - 5);
    lose("batch_done:default:b");
    assert_true(of_packs("redis.call('HSET', key, 'open', '1')") > 0);
    /* Of a pack all of whose items have ended no end is missing, but its own may be. */
    of_packs("redis.call('PERSIST', key)");
    /* An item that was sent alone lies in none. */
    long long n = of_packs("select(2, string.gsub(redis.call('HGET', key, 'map'), 'S', 'S'))");
    assert_in_range(n, 1, N - 5);
    SWEEP_UNTIL(q, count("LLEN", "batch_done:default:b") == n);
    for (int k = 0; k < 20; k++)
        case_sweep(q);
    assert_int_equal(count("LLEN", "batch_done:default:b"), n);
    publish_items(q, a, N - 5, 4);
    publish_items(q, case_claim_many(q, "w", 1), 0, 1);
    assert_int_equal(count("LLEN", "batch_done:default:b"), n + 5);
}

/* Of what took a pack apart a torn log ran half, and then what had become of the items in truth, in
 * their pack: they have records of their own, and have ended there. */
static void a_pack_torn_apart_does_no_item_twice(void **state)
{
    enum { N = 30 };
    static const char is_begun[] = "string.byte(redis.call('HGET', key, 'map'), -1) > 0 and "
                                   "string.find(redis.call('HGET', key, 'map'), 'Q', 1, true) "
                                   "and 1 or 0";
    static const char end_there[] =
        "(function() local map = redis.call('HGET', key, 'map') "
        "if not string.find(map, 'S', 1, true) then return 0 end "
        "redis.call('HSET', key, 'map', (string.gsub(map, 'X', 'S'))) return 1 end)()";
    long long n_begun = 0, n_rest = N, n = 0;
    pseg_queue_reply *r;

    (void)state;
    start(NULL);
    pseg_queue *q = open_queue();
    case_register(q, "w");
    case_create_batch(q, 60000);
    case_put_items(q, 1, N, NULL);
    for (; !n_begun && n_rest > 1; n_rest--) {
        publish_items(q, case_claim_many(q, "w", 1), 0, 1);
        n_begun = of_packs(is_begun);
    }
    assert_int_equal(n_begun, 1);
    long long ended = N - n_rest;
    CALL(r, pseg_queue_claim_jobs, q, "w", "m", N, 0, 1000000000);
    case_keep(r);
    assert_int_equal(r->n_claims, n_rest); /* and the answer is lost */
    assert_true(of_packs(end_there) > 0);
    for (int k = 0; k < 40; k++) {
        case_sweep(q);
        const pseg_queue_reply *a = case_claim_many(q, "w", 7);
        publish_items(q, a, 0, a->n_claims);
        n += (long long)a->n_claims;
        queue_pause_ms(20);
    }
    /* Those of other packs, and who was sent alone. */
    assert_in_range(n, 0, n_rest - 1);
    assert_int_equal(count("LLEN", "batch_done:default:b"), ended + n);
}

/* Packs that were never promised, and whose items were sent again, in other groups. by_claim:
 * before the sweep has come by. */
static void unpromised_packs(bool by_claim)
{
    enum { N = 30 };
    static const char forget[] =
        "(function() local b = string.gsub(key, 'pack:.*', 'batch:default:b') "
        "for _, f in ipairs(redis.call('HKEYS', b)) do "
        "if string.match(f, '^c%d') and f ~= 'c1' then redis.call('HDEL', b, f) end end return 1 "
        "end)()";
    int n = 0;

    start(NULL);
    pseg_queue *q = open_queue();
    case_register(q, "w");
    case_create_batch(q, 60000);
    case_put_items(q, 1, N, NULL);
    assert_true(of_packs(forget) > 0);
    count("HSET", "batch:default:b next 1");
    case_put_items(q, 1, 3, NULL);
    case_put_items(q, 4, N - 3, NULL);
    assert_true(case_stats(q).live > N);
    if (!by_claim)
        SWEEP_UNTIL(q, case_stats(q).live == N);
    for (const pseg_queue_reply *a; (a = case_claim_many(q, "w", 7))->n_claims;
         n += (int)a->n_claims)
        publish_items(q, a, 0, a->n_claims);
    assert_int_equal(n, N);
    assert_int_equal(count("LLEN", "batch_done:default:b"), N);
    SWEEP_UNTIL(q, case_stats(q).live == 0);
    assert_int_equal(case_claim_many(q, "w", N)->n_claims, 0);
    assert_int_equal(count("LLEN", "ready:m"), 0);
    assert_int_equal(count("EXISTS", "tenant_jobs"), 0);
    assert_int_equal(count("HGET", "count more"), 0);
}

static void a_pack_that_was_not_promised_is_not_claimed(void **state)
{
    (void)state;
    unpromised_packs(true);
}

static void a_pack_that_was_not_promised_is_swept(void **state)
{
    (void)state;
    unpromised_packs(false);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest own[] = {
        OWN(every_key_of_packs_has_an_end),
        OWN(a_look_takes_one_pack_apart),
        OWN(a_torn_log_leaves_packs_whole),
        OWN(torn_ends_of_packs_are_told),
        OWN(a_pack_torn_apart_does_no_item_twice),
        OWN(a_pack_that_was_not_promised_is_not_claimed),
        OWN(a_pack_that_was_not_promised_is_swept),
    };

    return own_run("queue on redis, packs", own, sizeof own / sizeof *own, argc, argv);
}
