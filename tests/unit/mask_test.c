/* Masks against PyTorch, pycocotools and libpng, and against plain loops over pixels. The data and
 * what made it: tests/unit/data/mask/make_masks.py. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/base/half.h"
#include "common/image/image.h"
#include "common/mask/mask_impl.h"

#include <float.h>
#include <endian.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define DATA(name) PSEG_TEST_SOURCE_DIR "/tests/unit/data/mask/" name

static uint32_t random_bits(void)
{
    static uint64_t state = 1;

    state = state * 6364136223846793005 + 1442695040888963407;
    return (uint32_t)(state >> 32);
}

/* Takes n bytes off the front of what is left; fails the test if they are not there. */
static const uint8_t *take(const uint8_t **p, size_t *left, size_t n)
{
    const uint8_t *at = *p;

    assert_true(n <= *left);
    *p += n;
    *left -= n;
    return at;
}

static pseg_mask *mask_of(const uint8_t *pixels, uint32_t width, uint32_t height)
{
    pseg_mask *m;

    assert_int_equal(pseg_mask_from_pixels(&m, pixels, width, height, NULL), PSEG_OK);
    return m;
}

/* density: of 256. */
static pseg_mask *random_mask(uint32_t width, uint32_t height, uint32_t density)
{
    uint8_t *pixels = malloc((size_t)width * height);

    assert_non_null(pixels);
    for (size_t i = 0; i < (size_t)width * height; i++)
        pixels[i] = (random_bits() & 0xFF) < density;
    pseg_mask *m = mask_of(pixels, width, height);
    free(pixels);
    return m;
}

static void check_measures(const pseg_mask *m)
{
    uint32_t x0 = UINT32_MAX, y0 = UINT32_MAX, x1 = 0, y1 = 0;
    uint64_t area = 0;
    uint8_t most = 0;

    for (uint32_t y = 0; y < m->height; y++)
        for (uint32_t x = 0; x < m->width; x++) {
            uint8_t v = m->data[(size_t)y * m->width + x];
            most = v > most ? v : most;
            if (!v)
                continue;
            area++;
            x0 = x < x0 ? x : x0;
            y0 = y < y0 ? y : y0;
            x1 = x + 1 > x1 ? x + 1 : x1;
            y1 = y + 1 > y1 ? y + 1 : y1;
        }
    assert_true(most <= 1);
    assert_int_equal(m->area, area);
    assert_int_equal(m->box_x, area ? x0 : 0);
    assert_int_equal(m->box_y, area ? y0 : 0);
    assert_int_equal(m->box_width, area ? x1 - x0 : 0);
    assert_int_equal(m->box_height, area ? y1 - y0 : 0);
}

static void check_same(const pseg_mask *a, const pseg_mask *b)
{
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->height, b->height);
    assert_memory_equal(a->data, b->data, (size_t)a->width * a->height);
    assert_int_equal(a->area, b->area);
    assert_int_equal(a->box_x, b->box_x);
    assert_int_equal(a->box_y, b->box_y);
    assert_int_equal(a->box_width, b->box_width);
    assert_int_equal(a->box_height, b->box_height);
}

/* What a decoder of another make reads behind `at` in b: [height, width, channels], from malloc. */
static uint8_t *read_png(const pseg_buf *b, size_t at, uint32_t width, uint32_t height,
                         size_t channels)
{
    pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
    const uint8_t *head = b->data + at;
    size_t n = (size_t)width * height;
    pseg_image *i;

    assert_memory_equal(head, "\x89PNG\r\n\x1A\n\0\0\0\rIHDR", 16);
    assert_int_equal(head[24], 8);                     /* bits */
    assert_int_equal(head[25], channels == 1 ? 0 : 2); /* grey or RGB */
    assert_int_equal(pseg_image_decode(&i, head, b->len - at, &limits, NULL), PSEG_OK);
    assert_int_equal(i->width, width);
    assert_int_equal(i->height, height);
    uint8_t *out = malloc(n * channels);
    assert_non_null(out);
    for (size_t k = 0; k < n; k++) {
        memcpy(out + k * channels, i->rgb + 3 * k, channels);
        if (channels == 1)
            assert_true(i->rgb[3 * k + 1] == i->rgb[3 * k] && i->rgb[3 * k + 2] == i->rgb[3 * k]);
    }
    pseg_image_free(i);
    return out;
}

/* ---- enlarging ---- */

static void check_enlarged(const pseg_mask_grid *g, const float *want)
{
    static const float thresholds[] = {0.1F, 0.5F, 0.9F};
    size_t n = (size_t)g->width * g->height, near = 0;
    pseg_buf b;

    for (int k = 0; k < 3; k++) {
        pseg_mask *m;
        double limit = log((double)thresholds[k] / (1 - (double)thresholds[k]));
        assert_int_equal(pseg_mask_make(&m, g, thresholds[k], NULL), PSEG_OK);
        check_measures(m);
        pseg_mask measured;
        assert_int_equal(pseg_mask_measure(&measured, g, thresholds[k], NULL), PSEG_OK);
        assert_null(measured.data);
        measured.data = m->data;
        assert_memory_equal(&measured, m, sizeof measured);
        for (size_t i = 0; i < n; i++) {
            if (fabs(want[i] - limit) < 2e-5)
                near++;
            else
                assert_int_equal(m->data[i], !isnan(want[i]) && want[i] > limit);
        }
        pseg_mask_free(m);
    }
    assert_true(near <= 3 + n / 1000);
    pseg_buf_init(&b, 1 << 20);
    assert_int_equal(pseg_buf_puts(&b, "ab", NULL), PSEG_OK);
    assert_int_equal(pseg_mask_probabilities(&b, g, NULL), PSEG_OK);
    assert_int_equal(b.len, 2 + 2 * n);
    assert_memory_equal(b.data, "ab", 2);
    for (size_t i = 0; i < n; i++) {
        uint16_t h = (uint16_t)(b.data[2 + 2 * i] | b.data[3 + 2 * i] << 8);
        double p = isnan(want[i]) ? 0 : 1 / (1 + exp(-(double)want[i]));
        int ulps = h - pseg_half_from_float((float)p);
        assert_in_range(ulps + 1, 0, isnan(want[i]) ? 1 : 2);
        assert_true(!isnan(want[i]) || h == 0);
    }
    pseg_buf_deinit(&b);
}

/* Every float from -20 to 20 in small steps, and beyond: within 1 half ulp of the right one, and
 * the same with and without the processor's vector unit. */
static void probabilities_are_right(void **state)
{
    enum { N = 4099 };
    static float logits[N];
    static uint16_t fast[N], plain[N];
    float at = -30;

    (void)state;
    for (int round = 0; round < 100; round++) {
        for (size_t i = 0; i < N; i++, at += 60.0F / (100 * N))
            logits[i] = at;
        if (round == 0) {
            logits[1] = 65504;
            logits[2] = -65504;
            logits[3] = -0.0F;
        }
        mask_sigmoid_halves(fast, logits, N);
        mask_sigmoid_halves_portable(plain, logits, N);
        assert_memory_equal(fast, plain, sizeof fast);
        for (size_t i = 0; i < N; i++) {
            float p = (float)(1 / (1 + exp(-(double)logits[i])));
            assert_in_range(le16toh(fast[i]) - pseg_half_from_float(p) + 1, 0, 2);
        }
    }
}

static void enlarging_is_pytorchs(void **state)
{
    uint8_t *data;
    size_t left;
    int n = 0;

    (void)state;
    assert_int_equal(pseg_file_read(&data, &left, DATA("enlarge.bin"), 1 << 20, NULL), PSEG_OK);
    for (const uint8_t *p = data; left; n++) {
        uint32_t size[4];
        float rect[4];
        memcpy(size, take(&p, &left, 16), 16);
        memcpy(rect, take(&p, &left, 16), 16);
        size_t n_grid = (size_t)size[0] * size[1], n_photo = (size_t)size[2] * size[3];
        uint16_t *logits = malloc(n_grid * 2);
        float *want = malloc(n_photo * 4);
        assert_true(logits && want);
        memcpy(logits, take(&p, &left, n_grid * 2), n_grid * 2);
        memcpy(want, take(&p, &left, n_photo * 4), n_photo * 4);
        pseg_mask_grid g = {logits,  size[0], size[1], size[2], size[3],
                            rect[0], rect[1], rect[2], rect[3]};
        check_enlarged(&g, want);
        free(logits);
        free(want);
    }
    assert_int_equal(n, 17);
    pseg_free(data);
}

static void numbers_that_are_not_finite_do_not_spread(void **state)
{
    const uint16_t inf = 0x7C00, nan = 0x7E00;
    uint16_t logits[4] = {inf, inf, inf, inf};
    pseg_mask_grid g = {logits, 2, 2, 9, 9, 0, 0, 9, 9};
    pseg_mask *m;

    (void)state;
    assert_int_equal(pseg_mask_make(&m, &g, 0.5F, NULL), PSEG_OK);
    assert_int_equal(m->area, 81);
    pseg_mask_free(m);
    for (int i = 0; i < 4; i++)
        logits[i] = i == 3 ? inf : 0xFC00;
    assert_int_equal(pseg_mask_make(&m, &g, 0.5F, NULL), PSEG_OK);
    assert_true(m->area > 4 && m->area < 40 && m->data[80] && !m->data[0]);
    pseg_mask_free(m);
    for (int i = 0; i < 4; i++)
        logits[i] = nan;
    assert_int_equal(pseg_mask_make(&m, &g, 0.5F, NULL), PSEG_OK);
    assert_int_equal(m->area, 0);
    pseg_mask_free(m);
}

static void what_cannot_be_a_mask_is_refused(void **state)
{
    static const uint16_t logits[4] = {0};
    const pseg_mask_grid good = {logits, 2, 2, 8, 8, 0, 0, 8, 8};
    pseg_mask_grid bad[14];
    pseg_mask *m;
    pseg_buf b;
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    for (int i = 0; i < 14; i++)
        bad[i] = good;
    bad[0].width = 0;
    bad[1].height = 0;
    bad[2].grid_width = 0;
    bad[3].grid_height = 0;
    bad[4].width = bad[4].height = 40000;
    bad[5].width = bad[5].height = UINT32_MAX;
    bad[6].grid_width = bad[6].grid_height = UINT32_MAX;
    bad[7].x1 = 0;
    bad[8].y1 = -1;
    bad[9].x0 = NAN;
    bad[10].y1 = NAN;
    bad[11].x1 = INFINITY;
    bad[12].x0 = -FLT_MAX;
    bad[12].x1 = FLT_MAX;
    bad[13].y0 = -INFINITY;
    pseg_buf_init(&b, 1 << 20);
    for (int i = 0; i < 14; i++) {
        m = (pseg_mask *)&b;
        assert_int_equal(pseg_mask_make(&m, &bad[i], 0.5F, &e), PSEG_EINVAL);
        assert_null(m);
        assert_int_equal(e.reason, PSEG_R_INVALID_ARGUMENT);
        assert_int_equal(pseg_mask_probabilities(&b, &bad[i], &e), PSEG_EINVAL);
        assert_int_equal(b.len, 0);
    }
    static const float thresholds[] = {0, 1, -0.5F, 2, NAN, INFINITY};
    for (int i = 0; i < 6; i++) {
        assert_int_equal(pseg_mask_make(&m, &good, thresholds[i], &e), PSEG_EINVAL);
        assert_null(m);
        assert_int_equal(e.reason, PSEG_R_THRESHOLD_OUT_OF_RANGE);
    }
    const uint8_t pixel = 1;
    assert_int_equal(pseg_mask_from_pixels(&m, &pixel, 0, 1, &e), PSEG_EINVAL);
    assert_int_equal(pseg_mask_from_pixels(&m, &pixel, 65536, 65536, &e), PSEG_EINVAL);
    assert_null(m);
    static const int channels[] = {0, 2, 4};
    for (int i = 0; i < 3; i++)
        assert_int_equal(pseg_png_write(&b, &pixel, 1, 1, channels[i], &e), PSEG_EINVAL);
    assert_int_equal(pseg_png_write(&b, &pixel, 0, 1, 1, &e), PSEG_EINVAL);
    pseg_buf_deinit(&b);
    pseg_mask_free(NULL);
}

/* Of this process so far. 0 where a sanitizer keeps memory of its own. */
static long peak_kib(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return 0;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
    return 0;
#endif
#endif
    struct rusage use;

    assert_int_equal(getrusage(RUSAGE_SELF, &use), 0);
    return use.ru_maxrss;
}

static void a_photo_of_16k_takes_little_beside_its_mask(void **state)
{
    enum { SIDE = 16384 };
    static uint16_t logits[64 * 64];
    pseg_mask_grid g = {logits, 64, 64, SIDE, SIDE, 0, 0, SIDE, SIDE};
    pseg_mask *m;
    pseg_buf png;
    long before = peak_kib();

    (void)state;
    for (int i = 0; i < 64 * 64; i++) /* a box, and a half above it, that ends on whole cells */
        logits[i] = i / 64 >= 20 && i / 64 < 24 && i % 64 >= 8 && i % 64 < 60 ? 0x4400 : 0xC400;
    assert_int_equal(pseg_mask_make(&m, &g, 0.5F, NULL), PSEG_OK);
    assert_int_equal(m->box_x, 8 * 256);
    assert_int_equal(m->box_y, 20 * 256);
    assert_int_equal(m->box_width, 52 * 256);
    assert_int_equal(m->box_height, 4 * 256);
    assert_true(m->area > 50L * 256 * 4 * 256 && m->area <= 52L * 256 * 4 * 256);
    pseg_buf_init(&png, 1 << 20);
    assert_int_equal(pseg_mask_png(&png, m, NULL), PSEG_OK);
    assert_in_range(png.len, 1, 600000);
    assert_true(peak_kib() - before < (256 + 16) * 1024);
    pseg_mask_free(m);
    pseg_buf_deinit(&png);
}

/* ---- RLE and bits ---- */

/* The next case of rle.bin; NULL at its end. */
static pseg_mask *next_rle(const uint8_t **p, size_t *left, const char **counts,
                           const uint8_t **bits, size_t *n_bits)
{
    uint32_t head[8];

    if (*left == 0)
        return NULL;
    memcpy(head, take(p, left, sizeof head), sizeof head);
    *n_bits = head[6];
    *bits = take(p, left, head[6]);
    *counts = (const char *)take(p, left, head[7]);
    size_t stride = (head[0] + 7) / 8;
    uint8_t *pixels = calloc(head[1], head[0]);
    assert_non_null(pixels);
    for (uint32_t y = 0; y < head[1]; y++) {
        uint8_t *row = pixels + (size_t)y * head[0];
        if (*n_bits == 0 && y >= head[3] && y < head[5])
            memset(row + head[2], 1, head[4] - head[2]);
        for (uint32_t x = 0; *n_bits && x < head[0]; x++)
            row[x] = (*bits)[y * stride + x / 8] >> (7 - x % 8) & 1;
    }
    pseg_mask *m = mask_of(pixels, head[0], head[1]);
    free(pixels);
    return m;
}

static void rle_is_pycocotools_and_comes_back(void **state)
{
    uint8_t *data;
    const uint8_t *bits;
    size_t left, n_bits;
    const char *counts;
    pseg_mask *m, *again;
    int n = 0;

    (void)state;
    assert_int_equal(pseg_file_read(&data, &left, DATA("rle.bin"), 1 << 20, NULL), PSEG_OK);
    for (const uint8_t *p = data; (m = next_rle(&p, &left, &counts, &bits, &n_bits)); n++) {
        pseg_buf b;
        pseg_buf_init(&b, 1 << 24);
        check_measures(m);
        assert_int_equal(pseg_mask_rle(&b, m, NULL), PSEG_OK);
        assert_int_equal(b.len, strlen(counts));
        assert_memory_equal(b.data, counts, b.len);
        assert_int_equal(pseg_mask_from_rle(&again, counts, m->width, m->height, NULL), PSEG_OK);
        check_same(again, m);
        pseg_buf_clear(&b);
        assert_int_equal(pseg_mask_bits(&b, m, NULL), PSEG_OK);
        assert_int_equal(b.len, (m->width + 7) / 8 * (size_t)m->height);
        if (n_bits)
            assert_memory_equal(b.data, bits, n_bits); /* numpy.packbits */
        pseg_buf_deinit(&b);
        pseg_mask_free(again);
        pseg_mask_free(m);
    }
    assert_int_equal(n, 31);
    pseg_free(data);
}

static void malformed_counts_are_refused(void **state)
{
    static const char *const bad[] = {
        "",                                          /* nothing */
        "?",                                         /* 15 of 16 pixels */
        "a0",                                        /* 17 */
        "01",                                        /* 1 */
        "00000000",                                  /* runs, but no pixels */
        "@",                                         /* -16 */
        "444K",                                      /* the fourth run is 4 - 5 */
        "4440N",                                     /* the fifth run leaves the mask */
        "`",                                         /* says "more" and ends */
        "P",          "oooooooo", "oooooooooooooo0", /* more digits than any run has */
        "ooooooooo0",                                /* too large for a mask */
        "/0",         "p",        " `0",
        "`0 ",        "`0\n",     "\x80",
        "\xFF`0",
    };
    pseg_mask *m;
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pseg_err_clear(&e);
        assert_int_equal(pseg_mask_from_rle(&m, bad[i], 4, 4, &e), PSEG_EINVAL);
        assert_int_equal(e.reason, PSEG_R_INVALID_ARGUMENT);
        assert_null(m);
    }
    assert_int_equal(pseg_mask_from_rle(&m, "`0", 4, 4, NULL), PSEG_OK);
    assert_int_equal(m->area, 0);
    pseg_mask_free(m);
    assert_int_equal(pseg_mask_from_rle(&m, "`0", 0, 4, NULL), PSEG_EINVAL);
    assert_int_equal(pseg_mask_from_rle(&m, "`0", 65536, 65536, NULL), PSEG_EINVAL);
}

static void changed_counts_are_refused_or_a_mask(void **state)
{
    pseg_mask *m = random_mask(41, 37, 60), *again;
    pseg_buf b;
    int good = 0;

    (void)state;
    pseg_buf_init(&b, 1 << 16);
    assert_int_equal(pseg_mask_rle(&b, m, NULL), PSEG_OK);
    char *text = malloc(b.len + 1);
    assert_non_null(text);
    for (int i = 0; i < 20000; i++) {
        memcpy(text, b.data, b.len + 1);
        for (uint32_t k = random_bits() % 4 + 1; k; k--)
            text[random_bits() % b.len] = (char)(48 + random_bits() % 64);
        if (random_bits() % 4 == 0)
            text[random_bits() % b.len] = (char)random_bits();
        if (pseg_mask_from_rle(&again, text, 41, 37, NULL) == PSEG_OK) {
            good++;
            check_measures(again);
            pseg_mask_free(again);
        }
    }
    assert_true(good > 0 && good < 19000);
    free(text);
    pseg_buf_deinit(&b);
    pseg_mask_free(m);
}

/* Many sizes, since strips, words and padding end differently in each. */
static void random_masks_survive_rle_and_png(void **state)
{
    pseg_mask *again;

    (void)state;
    for (int i = 0; i < 200; i++) {
        uint32_t w = random_bits() % 70 + 1, h = random_bits() % 70 + 1;
        if (i % 50 == 0)
            w = 600 + random_bits() % 600;
        pseg_mask *m = random_mask(w, h, random_bits() % 257);
        pseg_buf rle, png;
        pseg_buf_init(&rle, 1 << 20);
        pseg_buf_init(&png, 1 << 20);
        check_measures(m);
        assert_int_equal(pseg_mask_rle(&rle, m, NULL), PSEG_OK);
        assert_int_equal(pseg_mask_from_rle(&again, (const char *)rle.data, w, h, NULL), PSEG_OK);
        check_same(again, m);
        pseg_mask_free(again);
        assert_int_equal(pseg_mask_png(&png, m, NULL), PSEG_OK);
        uint8_t *pixels = read_png(&png, 0, w, h, 1);
        for (size_t k = 0; k < (size_t)w * h; k++)
            assert_int_equal(pixels[k], m->data[k] ? 255 : 0);
        free(pixels);
        pseg_buf_deinit(&rle);
        pseg_buf_deinit(&png);
        pseg_mask_free(m);
    }
}

/* Runs of every length up to the longest match and past it, alone and behind each other. */
static void runs_of_every_length_survive_png(void **state)
{
    enum { W = 1100 };
    uint8_t *pixels = calloc(W, W);
    pseg_buf b;

    (void)state;
    assert_non_null(pixels);
    for (size_t y = 0; y < W; y++)
        memset(pixels + y * W + (y % 3 ? 0 : (W - y) / 2), 1, y);
    pseg_mask *m = mask_of(pixels, W, W);
    pseg_buf_init(&b, 1 << 20);
    assert_int_equal(pseg_buf_puts(&b, "before", NULL), PSEG_OK);
    assert_int_equal(pseg_mask_png(&b, m, NULL), PSEG_OK);
    uint8_t *got = read_png(&b, 6, W, W, 1);
    for (size_t i = 0; i < (size_t)W * W; i++)
        assert_int_equal(got[i], pixels[i] * 255);
    free(got);
    free(pixels);
    pseg_buf_deinit(&b);
    pseg_mask_free(m);
}

static void pictures_survive_png(void **state)
{
    enum { W = 123, H = 57 };
    uint8_t rgb[W * H * 3];
    pseg_buf b;

    (void)state;
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)(i / 3 % W + (random_bits() & 3));
    for (int channels = 1; channels <= 3; channels += 2) {
        pseg_buf_init(&b, 1 << 20);
        assert_int_equal(pseg_png_write(&b, rgb, W, H, channels, NULL), PSEG_OK);
        uint8_t *got = read_png(&b, 0, W, H, (size_t)channels);
        assert_memory_equal(got, rgb, (size_t)W * H * (size_t)channels);
        free(got);
        pseg_buf_deinit(&b);
    }
}

static void a_buffer_that_is_too_small_is_left_as_it_was(void **state)
{
    typedef pseg_status (*encoder)(pseg_buf *, const pseg_mask *, pseg_err *);
    static const encoder encoders[] = {pseg_mask_png, pseg_mask_rle, pseg_mask_bits,
                                       pseg_mask_polygon};
    pseg_mask *m = random_mask(60, 60, 128);
    pseg_err e = PSEG_ERR_INIT;
    pseg_buf b;

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        pseg_buf_init(&b, 100);
        assert_int_equal(pseg_buf_puts(&b, "before", NULL), PSEG_OK);
        assert_int_equal(encoders[i](&b, m, &e), PSEG_EINVAL);
        assert_int_equal(e.reason, PSEG_R_REQUEST_TOO_LARGE);
        assert_int_equal(b.len, 6);
        assert_memory_equal(b.data, "before", 6);
        pseg_buf_deinit(&b);
        for (uint64_t nth = 1; nth < 4; nth++) { /* the sanitizer build sees leaks */
            pseg_buf_init(&b, 1 << 20);
            pseg_alloc_fail_nth(nth);
            pseg_status rc = encoders[i](&b, m, NULL);
            pseg_alloc_fail_nth(0);
            assert_true(rc == PSEG_OK || (rc == PSEG_ENOMEM && b.len == 0));
            assert_true(nth > 1 || rc == PSEG_ENOMEM);
            pseg_buf_deinit(&b);
        }
    }
    pseg_mask_free(m);
}

static void short_memory_makes_no_mask(void **state)
{
    static const uint16_t logits[4] = {0x4400, 0, 0, 0};
    const pseg_mask_grid g = {logits, 2, 2, 8, 8, 0, 0, 8, 8};
    pseg_status rc = PSEG_ENOMEM;
    pseg_mask *m;
    uint64_t nth;

    (void)state;
    for (nth = 1; rc == PSEG_ENOMEM; nth++) {
        pseg_alloc_fail_nth(nth);
        rc = pseg_mask_make(&m, &g, 0.5F, NULL);
        assert_true((rc == PSEG_OK) == (m != NULL));
    }
    pseg_alloc_fail_nth(0);
    assert_int_equal(rc, PSEG_OK);
    assert_int_equal(nth, 10); /* axes 4, grid 2, mask 2 failed */
    pseg_mask_free(m);
}

/* ---- iou ---- */

static void iou_counts_pixels(void **state)
{
    static const uint8_t a[6] = {1, 1, 1, 0, 0, 0}, b[6] = {0, 1, 1, 7, 0, 0}, none[6] = {0};
    pseg_mask *x = mask_of(a, 3, 2), *y = mask_of(b, 3, 2), *z = mask_of(none, 3, 2);

    (void)state;
    assert_true(pseg_mask_iou(x, y) == 0.5);
    assert_true(pseg_mask_iou(y, x) == 0.5);
    assert_true(pseg_mask_iou(x, x) == 1);
    assert_true(pseg_mask_iou(x, z) == 0);
    assert_true(pseg_mask_iou(z, z) == 1);
    pseg_mask_free(x);
    pseg_mask_free(y);
    pseg_mask_free(z);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probabilities_are_right),
        cmocka_unit_test(enlarging_is_pytorchs),
        cmocka_unit_test(numbers_that_are_not_finite_do_not_spread),
        cmocka_unit_test(what_cannot_be_a_mask_is_refused),
        cmocka_unit_test(a_photo_of_16k_takes_little_beside_its_mask),
        cmocka_unit_test(rle_is_pycocotools_and_comes_back),
        cmocka_unit_test(malformed_counts_are_refused),
        cmocka_unit_test(changed_counts_are_refused_or_a_mask),
        cmocka_unit_test(random_masks_survive_rle_and_png),
        cmocka_unit_test(runs_of_every_length_survive_png),
        cmocka_unit_test(pictures_survive_png),
        cmocka_unit_test(a_buffer_that_is_too_small_is_left_as_it_was),
        cmocka_unit_test(short_memory_makes_no_mask),
        cmocka_unit_test(iou_counts_pixels),
    };
    if (pseg_image_init(NULL) != PSEG_OK)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pseg_image_shutdown();
    return failed;
}
