/* Phrases as a tree: which rows they share. */
#include "worker/model/text_tree.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define ADD(rows, t, ...)                                       \
    pseg_text_tree_add(rows, t, (const int32_t[]){__VA_ARGS__}, \
                       sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t), &err)

static void expect(const int32_t *got, const int32_t *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        assert_int_equal(got[i], want[i]);
}

static void shares_beginnings(void **state)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_text_tree t;
    int32_t rows[5];

    (void)state;
    assert_int_equal(pseg_text_tree_init(&t, 16, &err), PSEG_OK);
    for (int round = 0; round < 2; round++) { /* again after it was cleared */
        assert_int_equal(ADD(rows, &t, 9, 5, 6, 8), PSEG_OK);
        expect(rows, (int32_t[]){0, 1, 2, 3}, 4);
        assert_int_equal(ADD(rows, &t, 9, 5, 7, 8), PSEG_OK); /* 8 behind 7 is another 8 */
        expect(rows, (int32_t[]){0, 1, 4, 5}, 4);
        assert_int_equal(ADD(rows, &t, 9, 5, 8), PSEG_OK);
        expect(rows, (int32_t[]){0, 1, 6}, 3);
        assert_int_equal(ADD(rows, &t, 9, 5, 6, 8), PSEG_OK); /* the first once more */
        expect(rows, (int32_t[]){0, 1, 2, 3}, 4);
        assert_int_equal(ADD(rows, &t, 9, 6, 5), PSEG_OK);
        expect(rows, (int32_t[]){0, 7, 8}, 3);
        assert_int_equal(ADD(rows, &t, 9), PSEG_OK);
        expect(rows, (int32_t[]){0}, 1);
        assert_int_equal(t.n, 9);
        expect(t.token, (int32_t[]){9, 5, 6, 8, 7, 8, 8, 6, 5}, 9);
        expect(t.position, (int32_t[]){0, 1, 2, 3, 2, 3, 2, 1, 2}, 9);
        expect(t.back, (int32_t[]){0, 1, 1, 1, 3, 1, 5, 7, 1}, 9);
        pseg_text_tree_clear(&t);
    }
    pseg_text_tree_deinit(&t);
}

static void refuses_what_it_cannot_hold(void **state)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_text_tree t;
    int32_t rows[4];

    (void)state;
    assert_int_equal(pseg_text_tree_init(&t, 3, &err), PSEG_OK);
    assert_int_equal(ADD(rows, &t, 9, 5, 6), PSEG_OK);
    assert_int_equal(ADD(rows, &t, 9, 5, 6), PSEG_OK);
    assert_int_not_equal(ADD(rows, &t, 9, 5, 7), PSEG_OK);
    assert_int_not_equal(ADD(rows, &t, 8), PSEG_OK); /* another first token */
    assert_int_equal(t.n, 3);
    pseg_text_tree_deinit(&t);
    pseg_text_tree_deinit(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shares_beginnings),
        cmocka_unit_test(refuses_what_it_cannot_hold),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
