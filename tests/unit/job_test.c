#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/job/job.h"

#include <string.h>

static void states_have_names_and_ends(void **state)
{
    (void)state;
    for (int s = PSEG_JOB_QUEUED; s <= PSEG_JOB_EXPIRED; s++)
        assert_int_equal(pseg_job_state_parse(pseg_job_state_name((pseg_job_state)s)), s);
    assert_int_equal(pseg_job_state_parse("nonsense"), PSEG_JOB_UNKNOWN);
    assert_string_equal(pseg_job_state_name((pseg_job_state)99), "UNKNOWN");
    assert_false(pseg_job_state_is_terminal(PSEG_JOB_QUEUED));
    assert_false(pseg_job_state_is_terminal(PSEG_JOB_RUNNING));
    assert_true(pseg_job_state_is_terminal(PSEG_JOB_SUCCEEDED));
    assert_true(pseg_job_state_is_terminal(PSEG_JOB_EXPIRED));
}

static void ids_sort_by_time_and_differ(void **state)
{
    char a[33], b[33];

    (void)state;
    assert_int_equal(pseg_job_new_id(a, NULL), PSEG_OK);
    assert_int_equal(strlen(a), 32);
    assert_int_equal(strspn(a, "0123456789abcdef"), 32);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(pseg_job_new_id(b, NULL), PSEG_OK);
        assert_string_not_equal(a, b);
        assert_true(memcmp(b, a, 16) >= 0); /* 16 digits of time */
        memcpy(a, b, sizeof a);
    }
}

static void retries_wait_longer_and_not_for_ever(void **state)
{
    (void)state;
    assert_int_equal(pseg_job_retry_delay_ms(1), 1000);
    assert_int_equal(pseg_job_retry_delay_ms(2), 4000);
    assert_int_equal(pseg_job_retry_delay_ms(100), 300000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states_have_names_and_ends),
        cmocka_unit_test(ids_sort_by_time_and_differ),
        cmocka_unit_test(retries_wait_longer_and_not_for_ever),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
