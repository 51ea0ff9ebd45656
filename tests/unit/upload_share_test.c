#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "scheduler/service/upload_share.h"

/* How many uploads of a size a tenant gets, one after the other. */
static int fill(upload_shares *s, const char *tenant, int64_t size, upload_answer *last)
{
    int n = 0;

    while ((*last = upload_take(s, tenant, size, NULL)) == UPLOAD_TAKEN)
        n++;
    return n;
}

static void one_tenant_never_has_all(void **state)
{
    upload_shares s;
    upload_answer last;
    int64_t allowed;

    (void)state;
    upload_shares_init(&s, 900, true);
    assert_int_equal(fill(&s, "slow", 1, &last), 600);
    assert_int_equal(last, UPLOAD_OVER_SHARE);
    assert_int_equal(upload_take(&s, "slow", 1, &allowed), UPLOAD_OVER_SHARE);
    assert_int_equal(allowed, 600);
    assert_false(upload_has_room(&s, "slow") && upload_take(&s, "slow", 1, NULL) == UPLOAD_TAKEN);
    /* There is room for whoever comes, and for the next. */
    assert_int_equal(fill(&s, "b", 1, &last), 200);
    assert_int_equal(fill(&s, "c", 1, &last), 66);
    assert_int_equal(last, UPLOAD_OVER_SHARE);
    /* What is given back goes to those who hold little. */
    upload_give(&s, "slow", 500);
    assert_true(upload_has_room(&s, "c"));
    assert_int_equal(fill(&s, "c", 1, &last), (900 - 100 - 200) / 3 * 2 - 66);
    upload_give(&s, "slow", 100);
    upload_give(&s, "b", 200);
    upload_give(&s, "c", 400);
    assert_null(s.first);
    assert_int_equal(s.total, 0);
    upload_shares_deinit(&s);
}

static void a_large_upload_is_taken_while_there_is_room(void **state)
{
    upload_shares s;
    int64_t allowed;

    (void)state;
    upload_shares_init(&s, 900, true);
    assert_int_equal(upload_take(&s, "a", 901, &allowed), UPLOAD_FULL);
    assert_int_equal(allowed, 900);
    assert_int_equal(upload_take(&s, "a", 800, NULL), UPLOAD_TAKEN);
    assert_int_equal(upload_take(&s, "a", 1, NULL), UPLOAD_OVER_SHARE);
    assert_int_equal(upload_take(&s, "b", 101, NULL), UPLOAD_FULL);
    assert_int_equal(upload_take(&s, "b", 100, NULL), UPLOAD_TAKEN);
    upload_shares_deinit(&s);
}

static void what_has_come_is_counted_and_stops_its_sender(void **state)
{
    upload_shares s;

    (void)state;
    upload_shares_init(&s, 900, true);
    assert_true(upload_has_room(&s, "a"));
    assert_true(upload_count(&s, "a", 600));
    assert_true(upload_has_room(&s, "a"));
    assert_true(upload_count(&s, "a", 1));
    assert_false(upload_has_room(&s, "a"));
    assert_true(upload_has_room(&s, "b"));
    assert_true(upload_count(&s, "a", 400)); /* more than there is */
    assert_false(upload_has_room(&s, "b"));
    upload_give(&s, "a", 1001);
    assert_true(upload_has_room(&s, "a"));
    upload_shares_deinit(&s);
}

static void where_nobody_has_a_name_all_is_for_all(void **state)
{
    upload_shares s;
    upload_answer last;

    (void)state;
    upload_shares_init(&s, 900, false);
    assert_int_equal(fill(&s, "default", 9, &last), 100);
    assert_int_equal(last, UPLOAD_FULL);
    assert_true(upload_has_room(&s, "default"));
    upload_shares_deinit(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_tenant_never_has_all),
        cmocka_unit_test(a_large_upload_is_taken_while_there_is_room),
        cmocka_unit_test(what_has_come_is_counted_and_stops_its_sender),
        cmocka_unit_test(where_nobody_has_a_name_all_is_for_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
