#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "scheduler/service/result_place.h"

#include <string.h>

/* End number i of a list; by: how much later it came than it did the first time. */
static pseg_queue_item end(int64_t i, int64_t by)
{
    return (pseg_queue_item){.seq = i + 1,
                             .at_unix_us = 1767323045000000 + 1000 * (i + by),
                             .custom_id = "line",
                             .state = PSEG_JOB_SUCCEEDED,
                             .job_id = "0123456789abcdef0123456789abcdef",
                             .message = ""};
}

static void walk(result_trail *t, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        pseg_queue_item it = end(t->now.n, 0);
        result_trail_step(t, &it);
    }
}

/* By way of a token, as a reader does that was sent away. */
static result_trail resumed(const result_trail *t)
{
    char token[RESULT_TOKEN_BYTES];
    result_trail out;
    pseg_err err = PSEG_ERR_INIT;

    result_trail_write(token, t);
    assert_int_equal(result_trail_parse(&out, token, &err), PSEG_OK);
    assert_memory_equal(&out, t, sizeof out);
    return out;
}

static void a_place_is_known_by_its_last_end(void **state)
{
    result_trail t = {0};
    (void)state;

    assert_true(result_trail_holds(&t, NULL, 0));
    assert_int_equal(result_trail_first(&t), 0);
    walk(&t, 10);
    t = resumed(&t);
    assert_int_equal(result_trail_first(&t), 9);
    pseg_queue_item same = end(9, 0), later = end(9, 1), other = end(8, 1), job = end(9, 0);
    pseg_queue_item state_of_it = end(9, 0);
    job.job_id = "1123456789abcdef0123456789abcdef";
    state_of_it.state = PSEG_JOB_CANCELLED;
    assert_true(result_trail_holds(&t, &same, 1));
    assert_false(result_trail_holds(&t, &later, 1));
    assert_false(result_trail_holds(&t, &other, 1));
    assert_false(result_trail_holds(&t, &job, 1));
    assert_false(result_trail_holds(&t, &state_of_it, 1));
    assert_false(result_trail_holds(&t, NULL, 0)); /* the list is shorter */
}

/* However often a reader is sent away, it never goes back further than it must, nor for ever. */
static void going_back_is_short_and_ends(void **state)
{
    result_trail t = {0};
    (void)state;

    walk(&t, 20);
    result_trail_go_back(&t);
    assert_int_equal(t.now.n, 0);
    for (int i = 0; i < 30; i++) {
        walk(&t, 1000);
        t = resumed(&t);
    }
    int64_t at[4];
    for (int i = 0; i < 4; i++) {
        at[i] = t.now.n;
        t = resumed(&t);
        result_trail_go_back(&t);
    }
    assert_int_equal(at[0], 30000);
    assert_in_range(at[1], 30000 - RESULT_BACK_STEP + 1, 29999);
    assert_int_equal(at[2], at[1] - RESULT_BACK_STEP);
    assert_int_equal(at[3], 0);
    assert_int_equal(t.now.n, 0);
}

/* At a mark itself, going back goes to the one before. */
static void a_mark_is_no_way_back_to_itself(void **state)
{
    result_trail t = {0};
    (void)state;

    walk(&t, 2 * RESULT_BACK_STEP);
    result_trail_go_back(&t);
    assert_int_equal(t.now.n, RESULT_BACK_STEP);
    result_trail_go_back(&t);
    assert_int_equal(t.now.n, 0);
}

static void what_is_no_token_is_refused(void **state)
{
    static const char *const bad[] = {
        "x",
        "1",
        "-1-0123456789abcdef",
        "1-0123456789abcde",
        "1-0123456789abcdef0",
        "1-0123456789abcdef.",
        "1-0123456789ABCDEF",
        "1234567890123456789-0123456789abcdef",
        "1-0123456789abcdef.2-0123456789abcdef",
        "3-0123456789abcdef.1-0123456789abcdef.2-0123456789abcdef",
        "3-0123456789abcdef.2-0123456789abcdef.1-0123456789abcdef.0-0123456789abcdef",
        " 1-0123456789abcdef",
        "1-0123456789abcdef "};
    (void)state;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        result_trail t;
        pseg_err err = PSEG_ERR_INIT;
        if (result_trail_parse(&t, bad[i], &err) == PSEG_OK)
            fail_msg("taken: %s", bad[i]);
        assert_int_equal(err.reason, PSEG_R_PAGE_TOKEN_INVALID);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_place_is_known_by_its_last_end),
        cmocka_unit_test(going_back_is_short_and_ends),
        cmocka_unit_test(a_mark_is_no_way_back_to_itself),
        cmocka_unit_test(what_is_no_token_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
