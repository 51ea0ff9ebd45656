/* The comparator of all numeric tests must itself be impossible to fool. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/support/compare.h"

#include <math.h>

static void equal_values_pass(void **state)
{
    float a[] = {1, -2, 0, INFINITY}, b[] = {1, -2, 0, INFINITY};
    pseg_compare c;

    (void)state;
    assert_true(pseg_compare_f32(&c, a, b, 4, 0, 0, 0));
    assert_int_equal(c.n_bad, 0);
}

static void nan_never_passes(void **state)
{
    float nan1[] = {NAN}, one[] = {1};
    pseg_compare c;

    (void)state;
    assert_false(pseg_compare_f32(&c, nan1, one, 1, 1e9, 1e9, -1));
    assert_false(pseg_compare_f32(&c, one, nan1, 1, 1e9, 1e9, -1));
    assert_false(pseg_compare_f32(&c, nan1, nan1, 1, 1e9, 1e9, 1e9));
}

static void opposite_infinities_fail(void **state)
{
    float a[] = {INFINITY}, b[] = {-INFINITY}, f[] = {1};
    pseg_compare c;

    (void)state;
    assert_false(pseg_compare_f32(&c, a, b, 1, 1e30, 1e30, -1));
    assert_false(pseg_compare_f32(&c, a, f, 1, 1e30, 1e30, -1));
}

static void worst_element_is_named(void **state)
{
    float a[] = {1, 2.5f, 3}, b[] = {1, 2, 3.1f};
    pseg_compare c;

    (void)state;
    assert_false(pseg_compare_f32(&c, a, b, 3, 0.2, 0, -1));
    assert_int_equal(c.worst, 1);
    assert_int_equal(c.n_bad, 1);
    assert_true(fabs(c.max_abs - 0.5) < 1e-6);
}

static void nmse_is_a_criterion_of_its_own(void **state)
{
    float a[] = {1.1f, 0.9f}, b[] = {1, 1}, zero[] = {0, 0}, some[] = {1e-3f, 0};
    pseg_compare c;

    (void)state;
    assert_true(pseg_compare_f32(&c, a, b, 2, 1, 0, 0.011));
    assert_false(pseg_compare_f32(&c, a, b, 2, 1, 0, 0.009));
    assert_false(pseg_compare_f32(&c, some, zero, 2, 1, 0, 0.5)); /* zero reference: infinite */
    assert_true(pseg_compare_f32(&c, zero, zero, 2, 0, 0, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_values_pass),
        cmocka_unit_test(nan_never_passes),
        cmocka_unit_test(opposite_infinities_fail),
        cmocka_unit_test(worst_element_is_named),
        cmocka_unit_test(nmse_is_a_criterion_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
