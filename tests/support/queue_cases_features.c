/* Cases of the cache of features. */
#include "tests/support/queue_cases_impl.h"

#define TTL_MS 600000

static bool put(pseg_queue *q, const char *key, const char *data, int64_t budget, int64_t ttl_ms)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_put_features, q, key, case_bytes(data), budget, ttl_ms);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    return r->created;
}

/* NULL: not there. */
static pseg_bytes got(pseg_queue *q, const char *key, int64_t ttl_ms)
{
    pseg_queue_reply *r;

    CALL(r, pseg_queue_get_features, q, key, ttl_ms);
    case_keep(r);
    assert_int_equal(r->err.code, PSEG_OK);
    assert_int_equal(r->n_blobs, 1);
    return r->blobs[0];
}

static void features_are_kept_by_their_key(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    assert_null(got(q, "m:t:1", TTL_MS).data);
    assert_true(put(q, "m:t:1", "one", 100, TTL_MS));
    assert_true(put(q, "m:u:1", "other", 100, TTL_MS));
    assert_bytes(got(q, "m:t:1", TTL_MS), "one");
    assert_bytes(got(case_open_again(), "m:u:1", TTL_MS), "other");
    assert_null(got(q, "m:t:2", TTL_MS).data);
    assert_true(put(q, "m:t:1", "one", 100, TTL_MS)); /* again: nothing changes */
    assert_bytes(got(q, "m:t:1", TTL_MS), "one");
}

static void those_used_longest_ago_make_room(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    assert_true(put(q, "a", "0123456789", 30, TTL_MS));
    queue_pause_ms(2); /* times of use are milliseconds */
    assert_true(put(q, "b", "0123456789", 30, TTL_MS));
    queue_pause_ms(2);
    assert_true(put(q, "c", "0123456789", 30, TTL_MS));
    queue_pause_ms(2);
    assert_non_null(got(q, "a", TTL_MS).data); /* used again */
    queue_pause_ms(2);
    assert_true(put(q, "d", "0123456789", 30, TTL_MS));
    assert_null(got(q, "b", TTL_MS).data);
    assert_non_null(got(q, "a", TTL_MS).data);
    assert_non_null(got(q, "c", TTL_MS).data);
    assert_non_null(got(q, "d", TTL_MS).data);
    assert_false(put(q, "e", "0123456789", 9, TTL_MS)); /* larger than all that may be held */
    assert_non_null(got(q, "d", TTL_MS).data);
    assert_true(put(q, "f", "0123456789", 10, TTL_MS)); /* an operator who gives less */
    assert_null(got(q, "a", TTL_MS).data);
    assert_non_null(got(q, "f", TTL_MS).data);
}

static void features_end_by_themselves(void **state)
{
    pseg_queue *q = case_open(NULL);

    (void)state;
    assert_true(put(q, "a", "0123456789", 20, 30));
    assert_true(put(q, "b", "0123456789", 20, TTL_MS));
    for (int i = 0; i < 2000 && got(q, "a", 1).data; i++)
        queue_pause_ms(5);
    assert_null(got(q, "a", TTL_MS).data);
    /* What it took is free again, and b need not go for it. */
    assert_true(put(q, "a", "0123456789", 20, TTL_MS));
    assert_non_null(got(q, "a", TTL_MS).data);
    assert_non_null(got(q, "b", TTL_MS).data);
}

const struct CMUnitTest feature_cases[] = {
    CASE(features_are_kept_by_their_key),
    CASE(those_used_longest_ago_make_room),
    CASE(features_end_by_themselves),
};
const size_t n_feature_cases = sizeof feature_cases / sizeof *feature_cases;
