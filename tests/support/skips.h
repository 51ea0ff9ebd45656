/* A test within a program of several that cannot run here. cmocka's skip() alone leaves the
 * program's status at 0, and CTest counts it as passed. After <cmocka.h>.
 *
 *     if (!has_data) skip_here();
 *     ...
 *     return with_skips(cmocka_run_group_tests(tests, NULL, NULL));
 */
#ifndef PSEG_TEST_SKIPS_H
#define PSEG_TEST_SKIPS_H

static int skips_so_far;

#define skip_here()     \
    do {                \
        skips_so_far++; \
        skip();         \
    } while (0)

/* 77, which CTest counts as skipped, if nothing failed and something was skipped. */
static inline int with_skips(int failed)
{
    return failed ? failed : skips_so_far ? 77 : 0;
}

#endif
