/* Figures against NumPy, SciPy and pycocotools; the bootstrap; words of phrases; texts by number.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/mask/mask.h"
#include "worker/eval/bootstrap.h"
#include "worker/eval/figures.h"
#include "worker/eval/texts.h"
#include "worker/eval/words.h"

#include "tests/unit/eval_golden.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define N_GOLDEN (sizeof golden_examples / sizeof *golden_examples)

static void assert_near(double got, double want, double tolerance, const char *what)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("%s: %.15g, expected %.15g", what, got, want);
}

static pseg_eval_set *set_of(const pseg_eval_example *e, size_t n, uint32_t n_images)
{
    pseg_eval_set *s;
    pseg_err err = PSEG_ERR_INIT;

    if (pseg_eval_set_new(&s, e, n, n_images, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    return s;
}

static void compute(double out[PSEG_EVAL_N_FIGURES], const pseg_eval_set *s, const uint32_t *weight)
{
    double *scratch = pseg_calloc(pseg_eval_set_scratch(s), sizeof *scratch);

    pseg_eval_figures(out, s, weight, scratch);
    pseg_free(scratch);
}

static void figures_are_numpys(void **state)
{
    (void)state;
    pseg_eval_set *s = set_of(golden_examples, N_GOLDEN, GOLDEN_IMAGES);
    double got[PSEG_EVAL_N_FIGURES];
    pseg_eval_reliability bins[PSEG_EVAL_BINS];

    compute(got, s, NULL);
    for (int f = 0; f < PSEG_EVAL_N_FIGURES; f++)
        assert_near(got[f], golden_plain[f], 1e-12, pseg_eval_figure_name((pseg_eval_figure)f));
    compute(got, s, golden_weight);
    for (int f = 0; f < PSEG_EVAL_N_FIGURES; f++)
        assert_near(got[f], golden_weighted[f], 1e-12, pseg_eval_figure_name((pseg_eval_figure)f));
    pseg_eval_reliability_of(bins, s, NULL);
    for (int b = 0; b < PSEG_EVAL_BINS; b++) {
        assert_near(bins[b].n, golden_bins[b].n, 0, "phrases of a bin");
        if (golden_bins[b].n == 0) {
            assert_true(isnan(bins[b].iou) && isnan(bins[b].predicted));
            continue;
        }
        assert_near(bins[b].predicted, golden_bins[b].predicted, 1e-12, "predicted IoU of a bin");
        assert_near(bins[b].iou, golden_bins[b].iou, 1e-12, "IoU of a bin");
    }
    pseg_eval_set_free(s);
}

/* What our own code counts in masks is what pycocotools counts. */
static void masks_are_pycocotools(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof golden_masks / sizeof *golden_masks; i++) {
        pseg_mask *a, *b;
        assert_int_equal(pseg_mask_from_rle(&a, golden_masks[i].a, golden_masks[i].width,
                                            golden_masks[i].height, NULL),
                         PSEG_OK);
        assert_int_equal(pseg_mask_from_rle(&b, golden_masks[i].b, golden_masks[i].width,
                                            golden_masks[i].height, NULL),
                         PSEG_OK);
        pseg_eval_example e = {0, a->area, b->area, pseg_mask_overlap(a, b), NAN};
        assert_int_equal(e.truth, golden_masks[i].area_a);
        assert_int_equal(e.area, golden_masks[i].area_b);
        assert_int_equal(e.both, golden_masks[i].both);
        assert_int_equal(pseg_mask_overlap(b, a), golden_masks[i].both);
        assert_near(pseg_eval_iou(&e), golden_masks[i].iou, 1e-12, "IoU");
        assert_near(pseg_mask_iou(a, b), golden_masks[i].iou, 1e-12, "pseg_mask_iou");
        pseg_mask_free(a);
        pseg_mask_free(b);
    }
}

static void empty_masks(void **state)
{
    (void)state;
    const pseg_eval_example nothing_came = {0, 5, 0, 0, 0}, nothing_meant = {0, 0, 5, 0, 0};
    const pseg_eval_example neither = {0, 0, 0, 0, 0}, one_pixel = {0, 1, 1, 1, 0};

    assert_near(pseg_eval_iou(&nothing_came), 0, 0, "IoU");
    assert_near(pseg_eval_precision(&nothing_came), 0, 0, "precision");
    assert_near(pseg_eval_recall(&nothing_came), 0, 0, "recall");
    assert_near(pseg_eval_iou(&nothing_meant), 0, 0, "IoU");
    assert_near(pseg_eval_precision(&nothing_meant), 0, 0, "precision");
    assert_near(pseg_eval_recall(&nothing_meant), 0, 0, "recall");
    assert_near(pseg_eval_iou(&neither), 1, 0, "IoU");
    assert_near(pseg_eval_precision(&neither), 1, 0, "precision");
    assert_near(pseg_eval_recall(&neither), 1, 0, "recall");
    assert_near(pseg_eval_iou(&one_pixel), 1, 0, "IoU");
    assert_int_equal(pseg_eval_bin(0), 0);
    assert_int_equal(pseg_eval_bin(0.1), 1);
    assert_int_equal(pseg_eval_bin(1), 9);
    assert_int_equal(pseg_eval_bin(-3), 0);
    assert_int_equal(pseg_eval_bin(7), 9);
}

static void figures_without_a_value(void **state)
{
    (void)state;
    const pseg_eval_example one = {0, 4, 2, 2, 0.25};
    const pseg_eval_example no_guess[2] = {{0, 4, 2, 2, 0.25}, {1, 4, 4, 4, NAN}};
    const pseg_eval_example same[3] = {{0, 3, 1, 1, 0.1}, {0, 3, 1, 1, 0.1}, {1, 3, 1, 1, 0.1}};
    const uint32_t none[2] = {0, 0};
    double got[PSEG_EVAL_N_FIGURES];

    pseg_eval_set *s = set_of(&one, 1, 1);
    compute(got, s, NULL);
    assert_near(got[PSEG_EVAL_MEDIAN_IOU], 0.5, 0, "median");
    assert_near(got[PSEG_EVAL_P50], 0, 0, "exactly at the limit is not above it");
    assert_near(got[PSEG_EVAL_MAE], 0.25, 1e-15, "error");
    assert_true(isnan(got[PSEG_EVAL_PEARSON]) && isnan(got[PSEG_EVAL_SPEARMAN]));
    pseg_eval_set_free(s);

    s = set_of(no_guess, 2, 2);
    compute(got, s, NULL);
    assert_near(got[PSEG_EVAL_MEAN_IOU], 0.75, 1e-15, "mean");
    assert_true(isnan(got[PSEG_EVAL_ECE]) && isnan(got[PSEG_EVAL_PREDICTED]));
    compute(got, s, none);
    for (int f = 0; f < PSEG_EVAL_N_FIGURES; f++)
        assert_true(isnan(got[f]));
    pseg_eval_set_free(s);

    s = set_of(same, 3, 2);
    compute(got, s, NULL);
    assert_true(isnan(got[PSEG_EVAL_PEARSON]) && isnan(got[PSEG_EVAL_SPEARMAN]));
    pseg_eval_set_free(s);
}

static void impossible_examples_are_refused(void **state)
{
    (void)state;
    const pseg_eval_example bad[] = {{2, 5, 5, 1, 0}, {0, 5, 5, 6, 0}, {0, 5, 2, 3, 0}};

    for (int i = 0; i < 3; i++) {
        pseg_eval_set *s;
        pseg_err err = PSEG_ERR_INIT;
        assert_int_equal(pseg_eval_set_new(&s, &bad[i], 1, 2, &err), PSEG_EINVAL);
        assert_null(s);
    }
}

static void mean_iou(void *ud, double *out, const uint32_t *weight, double *scratch)
{
    double all[PSEG_EVAL_N_FIGURES];

    pseg_eval_figures(all, ud, weight, scratch);
    out[0] = all[PSEG_EVAL_MEAN_IOU];
    out[1] = NAN;
    out[2] = weight ? (weight[0] ? 1 : NAN) : 7; /* defined in some replicates alone */
}

static void bootstrap_agrees_with_numpy(void **state)
{
    (void)state;
    pseg_eval_set *s = set_of(golden_examples, N_GOLDEN, GOLDEN_IMAGES);
    pseg_eval_bootstrap_options o = {.replicates = 20000,
                                     .level = 0.95,
                                     .seed = 3,
                                     .threads = 2,
                                     .n_scratch = pseg_eval_set_scratch(s)};
    pseg_eval_interval got[3], again[3], other[3];

    assert_int_equal(pseg_eval_bootstrap(got, 3, GOLDEN_IMAGES, mean_iou, s, &o, NULL), PSEG_OK);
    assert_near(got[0].value, golden_plain[0], 1e-12, "value");
    assert_near(got[0].low, golden_interval[0], 0.003, "low end");
    assert_near(got[0].high, golden_interval[1], 0.003, "high end");
    assert_true(isnan(got[1].value) && isnan(got[1].low) && isnan(got[1].high));
    assert_near(got[2].low, 1, 0, "over the replicates with a value");

    /* The same seed gives the same, whatever the threads; another seed does not. */
    o.replicates = 301;
    o.threads = 1;
    assert_int_equal(pseg_eval_bootstrap(got, 3, GOLDEN_IMAGES, mean_iou, s, &o, NULL), PSEG_OK);
    o.threads = 7;
    assert_int_equal(pseg_eval_bootstrap(again, 3, GOLDEN_IMAGES, mean_iou, s, &o, NULL), PSEG_OK);
    o.seed = 4;
    assert_int_equal(pseg_eval_bootstrap(other, 3, GOLDEN_IMAGES, mean_iou, s, &o, NULL), PSEG_OK);
    assert_true(got[0].low == again[0].low && got[0].high == again[0].high);
    assert_true(got[0].low != other[0].low);

    o.replicates = 0;
    assert_int_equal(pseg_eval_bootstrap(got, 3, GOLDEN_IMAGES, mean_iou, s, &o, NULL), PSEG_OK);
    assert_near(got[0].value, golden_plain[0], 1e-12, "value");
    assert_true(isnan(got[0].low) && isnan(got[0].high));
    o.level = 1;
    assert_int_equal(pseg_eval_bootstrap(got, 3, GOLDEN_IMAGES, mean_iou, s, &o, NULL),
                     PSEG_EINVAL);
    pseg_eval_set_free(s);
}

/* Phrases of one image that are alike: 95 % intervals must hold the truth about as often as they
 * say. Resampling phrases in place of images would do so for a half of the sets. */
static void intervals_hold_the_truth(void **state)
{
    (void)state;
    enum { SETS = 200, IMAGES = 60, PHRASES = 8 };
    int held = 0;

    for (uint64_t set = 0; set < SETS; set++) {
        pseg_eval_example e[IMAGES * PHRASES];
        pseg_eval_random random;
        pseg_eval_interval got[3];
        uint32_t of_image = 0;
        pseg_eval_random_seed(&random, 99, set);
        for (uint32_t i = 0; i < IMAGES * PHRASES; i++) {
            if (i % PHRASES == 0)
                of_image = pseg_eval_random_below(&random, 901);
            /* An IoU whose mean over all sets is 0.5. */
            uint64_t iou = of_image + pseg_eval_random_below(&random, 101);
            e[i] = (pseg_eval_example){i / PHRASES, 1000, iou, iou, NAN};
        }
        pseg_eval_set *s = set_of(e, IMAGES * PHRASES, IMAGES);
        pseg_eval_bootstrap_options o = {.replicates = 400,
                                         .level = 0.95,
                                         .seed = set,
                                         .threads = 2,
                                         .n_scratch = pseg_eval_set_scratch(s)};
        assert_int_equal(pseg_eval_bootstrap(got, 3, IMAGES, mean_iou, s, &o, NULL), PSEG_OK);
        held += got[0].low <= 0.5 && 0.5 <= got[0].high;
        pseg_eval_set_free(s);
    }
    if (held < SETS * 88 / 100 || held > SETS * 99 / 100)
        fail_msg("the truth lies in %d of %d intervals of 95 %%", held, SETS);
}

static void draws_are_even(void **state)
{
    (void)state;
    pseg_eval_random r, same, other;
    int seen[7] = {0};

    pseg_eval_random_seed(&r, 1, 2);
    pseg_eval_random_seed(&same, 1, 2);
    pseg_eval_random_seed(&other, 2, 1);
    bool differs = false;
    for (int i = 0; i < 70000; i++) {
        uint32_t v = pseg_eval_random_below(&r, 7);
        assert_true(v < 7);
        assert_int_equal(v, pseg_eval_random_below(&same, 7));
        differs = differs || v != pseg_eval_random_below(&other, 7);
        seen[v]++;
    }
    assert_true(differs);
    for (int v = 0; v < 7; v++)
        assert_in_range(seen[v], 9600, 10400);
    assert_int_equal(pseg_eval_random_below(&r, 1), 0);
}

static void words_of_phrases(void **state)
{
    (void)state;
#define R(x) (1u << PSEG_EVAL_RELATION_##x)
    static const struct {
        const char *text;
        uint32_t words, relations;
    } cases[] = {
        {"", 0, R(NONE)},
        {"dog", 1, R(NONE)},
        {"  the  small\tred circle ", 4, R(NONE)},
        {"the man on the left", 5, R(LEFT)},
        {"LEFTMOST chair", 2, R(LEFT)},
        {"leftover pizza, bright", 3, R(NONE)},
        {"the cup to the right of the top plate", 9, R(RIGHT) | R(ABOVE)},
        {"woman behind the counter, next to a dog", 8, R(BEHIND) | R(NEAR)},
        {"second from left", 3, R(LEFT) | R(ORDER)},
        {"between two cars in front", 5, R(MIDDLE) | R(FRONT)},
        {"\xC3\xA9t\xC3\xA9\xC2\xA0\xE4\xB8\xAD\xE3\x80\x80x", 3, R(NONE)},
        {"beneath-the-table", 1, R(BELOW)},
        {"antidisestablishmentarianisms left", 2, R(LEFT)},
    };
#undef R
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (pseg_eval_count_words(cases[i].text) != cases[i].words)
            fail_msg("\"%s\": %u words", cases[i].text, pseg_eval_count_words(cases[i].text));
        if (pseg_eval_relations(cases[i].text) != cases[i].relations)
            fail_msg("\"%s\": relations %x", cases[i].text, pseg_eval_relations(cases[i].text));
    }
}

static void texts_have_numbers(void **state)
{
    (void)state;
    pseg_arena *arena = pseg_arena_new(1 << 24);
    pseg_eval_texts t;
    uint32_t number;
    char text[40];

    pseg_eval_texts_init(&t, arena);
    for (int round = 0; round < 2; round++)
        for (uint32_t i = 0; i < 5000; i++) {
            snprintf(text, sizeof text, "phrase %u", i);
            assert_int_equal(pseg_eval_texts_put(&number, &t, text, NULL), PSEG_OK);
            assert_int_equal(number, i);
        }
    assert_int_equal(t.n, 5000);
    assert_string_equal(t.text[4321], "phrase 4321");
    pseg_eval_texts_deinit(&t);
    pseg_arena_free(arena);
}

static void memory_runs_out(void **state)
{
    (void)state;
    bool done = false;

    for (uint64_t nth = 1; !done; nth++) {
        pseg_eval_set *s = NULL;
        pseg_eval_interval got[3];
        pseg_eval_bootstrap_options o = {
            .replicates = 5, .level = 0.9, .threads = 1, .n_scratch = 2 * N_GOLDEN};
        pseg_alloc_fail_nth(nth);
        pseg_status rc = pseg_eval_set_new(&s, golden_examples, N_GOLDEN, GOLDEN_IMAGES, NULL);
        if (rc == PSEG_OK)
            rc = pseg_eval_bootstrap(got, 3, GOLDEN_IMAGES, mean_iou, s, &o, NULL);
        pseg_alloc_fail_nth(0);
        pseg_eval_set_free(s);
        done = rc == PSEG_OK;
        if (!done)
            assert_int_equal(rc, PSEG_ENOMEM);
        assert_true(nth < 100);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_are_numpys),
        cmocka_unit_test(masks_are_pycocotools),
        cmocka_unit_test(empty_masks),
        cmocka_unit_test(figures_without_a_value),
        cmocka_unit_test(impossible_examples_are_refused),
        cmocka_unit_test(bootstrap_agrees_with_numpy),
        cmocka_unit_test(intervals_hold_the_truth),
        cmocka_unit_test(draws_are_even),
        cmocka_unit_test(words_of_phrases),
        cmocka_unit_test(texts_have_numbers),
        cmocka_unit_test(memory_runs_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
