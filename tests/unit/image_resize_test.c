/* Resampling and the model's input, bit for bit what Pillow and numpy make (cases.h). */
#include "common/image/resample.h"
#include "tests/unit/image_support.h"

#include "tests/unit/data/image/cases.h"

#include <math.h>

static void resize_is_pillows(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof resize_cases / sizeof *resize_cases; i++) {
        const struct resize_case *c = &resize_cases[i];
        uint8_t *in = noise(3 * (size_t)c->w * c->h, c->hard);
        size_t n = 3 * (size_t)c->out_w * c->out_h;
        uint8_t *out = pseg_malloc(n);
        char digest[PSEG_SHA256_HEX + 1];

        assert_non_null(out);
        assert_int_equal(pseg_image_resize(out, c->out_w, c->out_h, in, c->w, c->h, NULL), PSEG_OK);
        hex_digest(digest, out, n);
        if (strcmp(digest, c->sha256) != 0)
            fail_msg("%u x %u to %u x %u%s differs from Pillow", c->w, c->h, c->out_w, c->out_h,
                     c->hard ? ", black and white" : "");
        pseg_free(in);
        pseg_free(out);
    }
}

/* Each variant of the inner loops that this processor can run, rows in disorder, parts of the
 * picture, and a box that ends within the last pixel. */
static void variants_agree(void **state)
{
    static const resample_plan plans[] = {
        {333, 61, 0, 0, 333, 61, 40, 20, {0, 0, 40, 20}},
        {333, 61, 0.75, 0.5, 332.25, 60.5, 47, 9, {3, 2, 41, 6}},
        {5, 3, 0, 0, 5, 3, 37, 31, {11, 0, 17, 31}},
        {1, 1, 0, 0, 1, 1, 8, 8, {0, 0, 8, 8}},
        {4000, 2, 0, 0, 4000, 2, 3, 1, {0, 0, 3, 1}},
        {18, 50, 0, 0.75, 17.5, 49.25, 18, 7, {0, 0, 18, 7}},
        {2, 3000, 0, 0, 2, 3000, 2, 224, {1, 100, 1, 100}},
    };
    size_t n_variants, n_run = 0;
    const resample_ops *const *all = resample_variants(&n_variants);

    (void)state;
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++)
        for (int hard = 0; hard < 2; hard++) {
            const resample_plan *p = &plans[i];
            size_t n = 3 * (size_t)p->part.w * p->part.h;
            uint8_t *in = noise(3 * (size_t)p->w * p->h, hard), *want = pseg_calloc(n, 1);
            assert_non_null(want);
            for (size_t v = 0; v < n_variants; v++) {
                resampler r;
                uint8_t *out = v ? pseg_calloc(n, 1) : want;

                if (!all[v]->is_usable())
                    continue;
                assert_int_equal(resampler_init(&r, p, all[v], NULL), PSEG_OK);
                for (uint32_t y = 0; y < p->h; y++) {
                    uint32_t row = v ? p->h - 1 - y : y;
                    resampler_take_row(&r, row, in + 3 * (size_t)p->w * row);
                }
                resampler_finish(&r, out);
                if (v && memcmp(out, want, n) != 0)
                    fail_msg("plan %zu: %s differs from %s", i, all[v]->name, all[0]->name);
                resampler_deinit(&r);
                n_run += v;
                if (v)
                    pseg_free(out);
            }
            pseg_free(in);
            pseg_free(want);
        }
    print_message("%zu of %zu variants compared\n", n_run / (2 * sizeof plans / sizeof *plans),
                  n_variants - 1);
}

/* Pixel for pixel, also a part of it. */
static void what_keeps_its_size_is_as_it_was(void **state)
{
    enum { W = 37, H = 23 };
    static const resample_plan plan = {W, H, 0, 0, W, H, W, H, {5, 3, 20, 9}};
    uint8_t *in = noise(3 * W * H, false), out[3 * W * H];
    resampler r;

    (void)state;
    assert_int_equal(pseg_image_resize(out, W, H, in, W, H, NULL), PSEG_OK);
    assert_memory_equal(out, in, sizeof out);
    assert_int_equal(resampler_init(&r, &plan, NULL, NULL), PSEG_OK);
    for (uint32_t y = H; y-- > 0;)
        resampler_take_row(&r, y, in + 3 * W * y);
    resampler_finish(&r, out);
    resampler_deinit(&r);
    for (uint32_t y = 0; y < 9; y++)
        assert_memory_equal(out + 3 * 20 * y, in + 3 * (W * (3 + y) + 5), 3 * 20);
    pseg_free(in);
}

static void input_is_the_references(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof prepare_cases / sizeof *prepare_cases; i++) {
        const struct prepare_case *c = &prepare_cases[i];
        pseg_image photo = {noise(3 * (size_t)c->w * c->h, false), c->w, c->h};
        size_t plane = (size_t)c->how.width * c->how.height;
        float *chw = pseg_malloc(3 * plane * sizeof *chw), rect[4];
        char digest[PSEG_SHA256_HEX + 1];

        assert_non_null(chw);
        assert_int_equal(pseg_image_preprocess(chw, rect, &photo, &c->how, NULL), PSEG_OK);
        hex_digest(digest, chw, 3 * plane * sizeof *chw);
        if (strcmp(digest, c->sha256) != 0)
            fail_msg("case %zu, fit %d, %u x %u to %u x %u: the numbers differ; the first is %.9g, "
                     "the reference's %.9g, the middle %.9g and %.9g",
                     i, (int)c->how.fit, c->w, c->h, c->how.width, c->how.height, (double)chw[0],
                     (double)c->first,
                     (double)chw[c->how.height / 2 * c->how.width + c->how.width / 2],
                     (double)c->middle);
        for (int k = 0; k < 4; k++)
            if (fabs(rect[k] - c->rect[k]) > 1e-4 * fmax(1, fabs(c->rect[k])))
                fail_msg("case %zu, fit %d, %u x %u: rect[%d] is %g, the reference's %g", i,
                         (int)c->how.fit, c->w, c->h, k, (double)rect[k], c->rect[k]);
        pseg_free(photo.rgb);
        pseg_free(chw);
    }
}

/* By the definition: inside tinted, but white where a pixel outside is within reach (a pixel more
 * for every 600 of the longer side; the picture's border is no outside), and outside dimmed. */
static void check_overlay(uint32_t w, uint32_t h, int kind)
{
    size_t n = (size_t)w * h;
    pseg_image photo = {noise(3 * n, false), w, h}, *shown;
    uint8_t *mask = pseg_malloc(n), *dice = noise(n, false);
    int64_t reach = (w > h ? w : h) / 600 + 1;
    size_t n_wrong = 0;

    assert_non_null(mask);
    for (int64_t i = 0; i < (int64_t)n; i++) {
        int64_t x = i % w - w / 2, y = i / w - h / 2;
        mask[i] = kind == 0   ? x * x + y * y < (int64_t)(n / 9)
                  : kind == 1 ? 0
                  : kind == 2 ? 1
                              : dice[i] > 6;
    }
    assert_int_equal(pseg_image_overlay(&shown, &photo, mask, NULL), PSEG_OK);
    assert_int_equal(shown->width, w);
    assert_int_equal(shown->height, h);
    for (int64_t i = 0; i < (int64_t)n; i++) {
        const uint8_t *p = photo.rgb + 3 * i, *q = shown->rgb + 3 * i;
        bool is_edge = false;

        for (int64_t y = i / w - reach; mask[i] && y <= i / w + reach; y++)
            for (int64_t x = i % w - reach; x <= i % w + reach; x++)
                is_edge |= x >= 0 && y >= 0 && x < w && y < h && !mask[y * w + x];
        int grey = (p[0] * 77 + p[1] * 150 + p[2] * 29) >> 8;
        const int tinted[3] = {(p[0] * 11 + 255 * 9) / 20, (p[1] * 11 + 40 * 9) / 20,
                               (p[2] * 11 + 120 * 9) / 20};
        for (int c = 0; c < 3; c++)
            n_wrong += q[c] != (is_edge ? 255 : mask[i] ? tinted[c] : (p[c] * 2 + grey) / 4);
    }
    if (n_wrong)
        fail_msg("%u x %u, mask %d: %zu channels differ from the definition", w, h, kind, n_wrong);
    pseg_image_free(shown);
    pseg_free(photo.rgb);
    pseg_free(mask);
    pseg_free(dice);
}

static void overlay_is_as_defined(void **state)
{
    static const uint32_t sizes[][2] = {{90, 60}, {1, 1}, {1, 40}, {37, 2}, {1300, 30}, {5, 1900}};

    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int kind = 0; kind < 4; kind++)
            check_overlay(sizes[s][0], sizes[s][1], kind);
}

static void pictures_are_put_beside_each_other(void **state)
{
    enum { W = 5, H = 4 };
    pseg_image a = {noise(3 * W * H, false), W, H}, *mask, *both;
    const uint8_t pixels[W * H] = {0, 1, 1, 0, 0, 0, 1};
    const pseg_image *all[3];

    (void)state;
    assert_int_equal(pseg_image_of_mask(&mask, pixels, W, H, NULL), PSEG_OK);
    for (size_t i = 0; i < W * H; i++)
        for (size_t c = 0; c < 3; c++)
            assert_int_equal(mask->rgb[3 * i + c], pixels[i] ? 255 : 0);
    all[0] = &a;
    all[1] = mask;
    all[2] = &a;
    assert_int_equal(pseg_image_beside(&both, all, 3, NULL), PSEG_OK);
    assert_int_equal(both->height, H);
    assert_true(both->width >= 3 * W);
    uint32_t step = (both->width - W) / 2;
    for (uint32_t y = 0; y < H; y++)
        for (uint32_t k = 0; k < 3; k++)
            assert_memory_equal(both->rgb + 3 * (y * both->width + k * step),
                                all[k]->rgb + 3 * (y * W), 3 * W);
    pseg_image_free(mask);
    pseg_image_free(both);
    pseg_free(a.rgb);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resize_is_pillows),
        cmocka_unit_test(variants_agree),
        cmocka_unit_test(what_keeps_its_size_is_as_it_was),
        cmocka_unit_test(input_is_the_references),
        cmocka_unit_test(overlay_is_as_defined),
        cmocka_unit_test(pictures_are_put_beside_each_other),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
