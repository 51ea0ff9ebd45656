/* The histogram of latencies against sorted lists of the same times. */
#include "worker/apps/latency.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 20000 };

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static void percentiles_are_those_of_the_sorted_list(void **state)
{
    static const double ps[] = {0, 1, 10, 50, 90, 99, 99.9, 99.99, 100};
    static int64_t us[N];
    pseg_latency *h = NULL;
    uint64_t x = 1;

    (void)state;
    assert_int_equal(pseg_latency_new(&h, NULL), PSEG_OK);
    for (int i = 0; i < N; i++) { /* from microseconds to hours */
        x = x * 6364136223846793005u + 1442695040888963407u;
        us[i] = (int64_t)exp2((double)(x >> 40) / (double)(1 << 24) * 34);
        pseg_latency_add(h, us[i]);
    }
    qsort(us, N, sizeof *us, by_size);
    assert_int_equal(pseg_latency_count(h), N);
    for (size_t i = 0; i < sizeof ps / sizeof *ps; i++) {
        size_t k = (size_t)ceil(ps[i] / 100 * N);
        double want = (double)us[k ? k - 1 : 0] / 1e3, got = pseg_latency_percentile(h, ps[i]);
        if (got < want * (1 - 1e-9) || got > want * 1.002)
            fail_msg("p%g: %g, not %g", ps[i], got, want);
    }
    assert_true(pseg_latency_percentile(h, 100) == (double)us[N - 1] / 1e3);
    pseg_latency_free(h);
}

/* Rows do not overlap, leave no gap, and hold each time once. */
static void rows_are_in_order(void **state)
{
    pseg_latency *h = NULL, *two = NULL;
    size_t row = 0;
    double ms, last = -1;
    uint64_t n, all = 0;

    (void)state;
    assert_int_equal(pseg_latency_new(&h, NULL), PSEG_OK);
    assert_int_equal(pseg_latency_new(&two, NULL), PSEG_OK);
    for (int bit = 0; bit < 40; bit++)
        for (int64_t d = -1; d <= 1; d++)
            pseg_latency_add(h, ((int64_t)1 << bit) + d);
    while (pseg_latency_next(h, &row, &ms, &n)) {
        assert_true(ms > last);
        last = ms;
        all += n;
    }
    assert_int_equal(all, 120);
    pseg_latency_merge(two, h);
    pseg_latency_merge(two, h);
    assert_int_equal(pseg_latency_count(two), 240);
    assert_true(pseg_latency_percentile(two, 50) == pseg_latency_percentile(h, 50));
    pseg_latency_clear(two);
    assert_int_equal(pseg_latency_count(two), 0);
    assert_true(pseg_latency_percentile(two, 99) == 0);
    pseg_latency_free(h);
    pseg_latency_free(two);
}

static void the_ends(void **state)
{
    pseg_latency *h = NULL;

    (void)state;
    assert_int_equal(pseg_latency_new(&h, NULL), PSEG_OK);
    pseg_latency_add(h, -5);
    assert_true(pseg_latency_percentile(h, 100) == 0);
    pseg_latency_add(h, INT64_MAX);
    assert_true(pseg_latency_percentile(h, 100) == (double)(((int64_t)1 << 40) - 1) / 1e3);
    pseg_latency_free(h);
    pseg_latency_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles_are_those_of_the_sorted_list),
        cmocka_unit_test(rows_are_in_order),
        cmocka_unit_test(the_ends),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
