/* A file straight to a model's input: the same numbers as decoded whole and then resampled, and
 * near them where a JPEG is shrunk while it is decoded. */
#include "common/image/header.h"
#include "common/image/prepare.h"
#include "tests/unit/image_support.h"

#include <math.h>

static const pseg_image_limits usual = PSEG_IMAGE_LIMITS_DEFAULT;

enum { MAX_SIDE = 64 };

typedef struct input {
    float chw[3 * MAX_SIDE * MAX_SIDE], rect[4];
} input;

static const pseg_preprocess hows[] = {
    {PSEG_IMAGE_SQUASH, 7, 5, 0, {0.5F, 0.25F, 0}, {0.5F, 0.3F, 1}, false},
    {PSEG_IMAGE_SQUASH, 64, 48, 0, {0}, {1, 1, 1}, false},
    {PSEG_IMAGE_LETTERBOX, 6, 6, 0, {0}, {1, 1, 1}, false},
    {PSEG_IMAGE_CENTRE_CROP, 4, 4, 5, {0}, {1, 1, 1}, false},
    {PSEG_IMAGE_CENTRE_CROP, 9, 3, 5, {0}, {1, 1, 1}, false},
};

static void prepare_whole(input *out, const uint8_t *file, size_t n, const pseg_preprocess *how)
{
    pseg_image *photo;

    assert_int_equal(pseg_image_decode(&photo, file, n, &usual, NULL), PSEG_OK);
    assert_int_equal(pseg_image_preprocess(out->chw, out->rect, photo, how, NULL), PSEG_OK);
    pseg_image_free(photo);
}

static size_t n_numbers(const pseg_preprocess *how)
{
    return 3 * (size_t)how->width * how->height;
}

static void row_by_row_is_the_same(void **state)
{
    static const char *const names[] = {
        "rgb.jpg",   "progressive.jpg", "cmyk_icc.jpg", "p3.jpg",         "grey.jpg",  "turn1.jpg",
        "turn2.jpg", "turn3.jpg",       "turn4.jpg",    "turn5.jpg",      "turn6.jpg", "turn7.jpg",
        "turn8.jpg", "rgba16.png",      "turn6.png",    "interlaced.png", "rgb.tif",   "alpha.webp",
        "odd1.jpg",  "odd3.jpg",        "odd6.jpg"};

    (void)state;
    for (size_t f = 0; f < sizeof names / sizeof *names; f++)
        for (size_t k = 0; k < sizeof hows / sizeof *hows; k++) {
            static input whole, rows;
            pseg_image_prepared p;
            pseg_image_info info;
            size_t n;
            uint8_t *file = read_fixture(names[f], &n);

            prepare_whole(&whole, file, n, &hows[k]);
            assert_int_equal(pseg_image_probe(&info, file, n, &usual, NULL), PSEG_OK);
            assert_int_equal(pseg_image_prepare(&p, rows.chw, (pseg_image_file){file, n}, &usual,
                                                &hows[k], NULL),
                             PSEG_OK);
            assert_int_equal(p.width, info.width);
            assert_int_equal(p.height, info.height);
            assert_int_equal(p.shrink, 1);
            assert_memory_equal(p.rect, whole.rect, sizeof p.rect);
            if (memcmp(rows.chw, whole.chw, n_numbers(&hows[k]) * sizeof(float)) != 0)
                fail_msg("%s, way %zu: other numbers row by row", names[f], k);
            pseg_free(file);
        }
}

/* The fixtures are smooth, so that the two ways are near: a partly covered column at the wrong
 * side, or counted as a whole one, is off by more. */
static void shrunk_is_near(void **state)
{
    static const struct {
        const char *name;
        uint32_t width, height, shrink, w, h; /* of the input; by how much; of the upright photo */
        double levels;                        /* off at most */
    } cases[] = {
        {"odd1.jpg", 10, 9, 2, 61, 45, 3},    {"odd1.jpg", 7, 5, 4, 61, 45, 3},
        {"odd1.jpg", 3, 2, 8, 61, 45, 13},    {"odd3.jpg", 10, 9, 2, 61, 45, 3},
        {"odd3.jpg", 7, 5, 4, 61, 45, 3},     {"odd3.jpg", 3, 2, 8, 61, 45, 13},
        {"odd6.jpg", 10, 9, 2, 61, 45, 3},    {"odd6.jpg", 7, 5, 4, 61, 45, 3},
        {"odd6.jpg", 3, 2, 8, 61, 45, 13},    {"turn1.jpg", 4, 3, 2, 24, 16, 2},
        {"turn2.jpg", 4, 3, 2, 24, 16, 2},    {"turn4.jpg", 4, 3, 2, 24, 16, 2},
        {"turn5.jpg", 4, 3, 2, 24, 16, 2},    {"turn7.jpg", 4, 3, 2, 24, 16, 2},
        {"turn8.jpg", 4, 3, 2, 24, 16, 2},    {"progressive.jpg", 4, 3, 2, 24, 16, 3},
        {"cmyk_icc.jpg", 4, 3, 2, 24, 16, 3}, {"p3.jpg", 3, 2, 4, 24, 16, 5},
        {"grey.jpg", 1, 1, 8, 24, 16, 3},     {"odd1.jpg", 16, 9, 1, 61, 45, 0},
        {"rgb.png", 1, 1, 1, 24, 16, 0},      {"lossy.webp", 1, 1, 1, 24, 16, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pseg_preprocess how = {
            PSEG_IMAGE_SQUASH, cases[i].width, cases[i].height, 0, {0}, {1, 1, 1}, true};
        static input whole, fast, again;
        pseg_image_prepared p;
        double worst = 0;
        size_t n;
        uint8_t *data = read_fixture(cases[i].name, &n);
        pseg_image_file file = {data, n};

        prepare_whole(&whole, data, n, &how);
        assert_int_equal(pseg_image_prepare(&p, fast.chw, file, &usual, &how, NULL), PSEG_OK);
        assert_int_equal(pseg_image_prepare(&p, again.chw, file, &usual, &how, NULL), PSEG_OK);
        assert_int_equal(p.width, cases[i].w);
        assert_int_equal(p.height, cases[i].h);
        assert_int_equal(p.shrink, cases[i].shrink);
        assert_memory_equal(p.rect, whole.rect, sizeof p.rect);
        assert_memory_equal(fast.chw, again.chw, n_numbers(&how) * sizeof(float));
        for (size_t k = 0; k < n_numbers(&how); k++)
            worst = fmax(worst, fabs((double)fast.chw[k] - (double)whole.chw[k]) * 255);
        if (!(worst <= cases[i].levels + 1e-3))
            fail_msg("%s to %u x %u, 1/%u: off by %.2f levels, %.2f are allowed", cases[i].name,
                     cases[i].width, cases[i].height, p.shrink, worst, cases[i].levels);
        pseg_free(data);
    }
}

/* Always twice what the photo becomes, in both directions. */
static void the_factor_leaves_twice_the_input(void **state)
{
    static const struct {
        uint32_t width, height, shrink;
        pseg_preprocess how;
    } cases[] = {
        {4032, 3024, 4, {PSEG_IMAGE_SQUASH, 224, 224, 0, {0}, {1, 1, 1}, true}},
        {3584, 3584, 8, {PSEG_IMAGE_SQUASH, 224, 224, 0, {0}, {1, 1, 1}, true}},
        {3583, 3584, 4, {PSEG_IMAGE_SQUASH, 224, 224, 0, {0}, {1, 1, 1}, true}},
        {896, 896, 2, {PSEG_IMAGE_SQUASH, 224, 224, 0, {0}, {1, 1, 1}, true}},
        {895, 896, 1, {PSEG_IMAGE_SQUASH, 224, 224, 0, {0}, {1, 1, 1}, true}},
        {1, 1, 1, {PSEG_IMAGE_SQUASH, 224, 224, 0, {0}, {1, 1, 1}, true}},
        {1, 32768, 1, {PSEG_IMAGE_SQUASH, 224, 224, 0, {0}, {1, 1, 1}, true}},
        {4000, 30, 4, {PSEG_IMAGE_LETTERBOX, 224, 224, 0, {0}, {1, 1, 1}, true}},
        {4032, 3024, 4, {PSEG_IMAGE_CENTRE_CROP, 224, 224, 256, {0}, {1, 1, 1}, true}},
        {4032, 2047, 2, {PSEG_IMAGE_CENTRE_CROP, 224, 224, 256, {0}, {1, 1, 1}, true}},
        {4032, 3024, 1, {PSEG_IMAGE_CENTRE_CROP, 224, 224, 0, {0}, {1, 1, 1}, true}},
        {32768, 32768, 8, {PSEG_IMAGE_SQUASH, 1, 1, 0, {0}, {1, 1, 1}, true}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(preparer_shrink(cases[i].width, cases[i].height, &cases[i].how),
                         cases[i].shrink);
}

/* A picture that would be small once shrunk is refused by what its header says. */
static void limits_are_of_the_photo(void **state)
{
    const pseg_preprocess how = {PSEG_IMAGE_SQUASH, 1, 1, 0, {0}, {1, 1, 1}, true};
    pseg_image_limits tight = PSEG_IMAGE_LIMITS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_image_prepared p;
    float chw[3];
    size_t n;
    uint8_t *data = read_fixture("odd1.jpg", &n);

    (void)state;
    tight.max_pixels = 61 * 45 - 1;
    assert_int_not_equal(
        pseg_image_prepare(&p, chw, (pseg_image_file){data, n}, &tight, &how, &err), PSEG_OK);
    assert_int_equal(err.reason, PSEG_R_IMAGE_TOO_MANY_PIXELS);
    tight.max_pixels++;
    assert_int_equal(pseg_image_prepare(&p, chw, (pseg_image_file){data, n}, &tight, &how, NULL),
                     PSEG_OK);
    pseg_free(data);
}

static void cut_files_are_refused_shrunk_too(void **state)
{
    static const char *const names[] = {"odd1.jpg", "progressive.jpg"};
    const pseg_preprocess how = {PSEG_IMAGE_SQUASH, 3, 2, 0, {0}, {1, 1, 1}, true};

    (void)state;
    for (size_t f = 0; f < 2; f++) {
        float whole[18], part[18];
        pseg_image_prepared p;
        size_t n, n_refused = 0;
        uint8_t *data = read_fixture(names[f], &n);

        assert_int_equal(
            pseg_image_prepare(&p, whole, (pseg_image_file){data, n}, &usual, &how, NULL), PSEG_OK);
        assert_true(p.shrink > 1);
        for (size_t cut = 0; cut < n; cut++) {
            pseg_err err = PSEG_ERR_INIT;
            uint8_t *copy = pseg_memdup(data, cut ? cut : 1); /* so that reading past it shows */

            assert_non_null(copy);
            if (pseg_image_prepare(&p, part, (pseg_image_file){copy, cut}, &usual, &how, &err) !=
                PSEG_OK) {
                assert_true(err.msg[0]);
                n_refused++;
            } else {
                assert_memory_equal(part, whole, sizeof whole);
            }
            pseg_free(copy);
        }
        assert_true(n_refused > n - 10);
        pseg_free(data);
    }
}

/* Alone in the process, a file that cannot be decoded is tried once, and its error says why. */
static void a_bad_file_is_decoded_once(void **state)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_image *i;
    size_t n;
    uint8_t *data = read_fixture("odd1.jpg", &n);
    uint64_t before = attempts_begun();

    (void)state;
    assert_int_not_equal(pseg_image_decode(&i, data, n / 2, &usual, &err), PSEG_OK);
    assert_int_equal(err.reason, PSEG_R_IMAGE_UNDECODABLE);
    assert_non_null(strstr(err.msg, "JPEG"));
    assert_null(strstr(err.msg, "it is damaged")); /* said where libvips' own words are missing */
    assert_int_equal(attempts_begun() - before, 1);
    pseg_free(data);
}

static int set_up(void **state)
{
    (void)state;
    return pseg_image_init(NULL) == PSEG_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    pseg_image_shutdown();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(row_by_row_is_the_same),
        cmocka_unit_test(shrunk_is_near),
        cmocka_unit_test(the_factor_leaves_twice_the_input),
        cmocka_unit_test(limits_are_of_the_photo),
        cmocka_unit_test(cut_files_are_refused_shrunk_too),
        cmocka_unit_test(a_bad_file_is_decoded_once),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
