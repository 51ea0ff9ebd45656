#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/mask/mask.h"
#include "tests/unit/data_support.h"
#include "worker/data/arrays.h"
#include "worker/data/split.h"

#include <math.h>

/* ---- phrases ---- */

static void swaps_sides_as_words(void **state)
{
    static const struct {
        const char *in, *out;
        pseg_mirror what;
    } cases[] = {
        {"the cat to the left of the dog", "the cat to the right of the dog", PSEG_MIRROR_CHANGED},
        {"Left", "Right", PSEG_MIRROR_CHANGED},
        {"RIGHT GUY", "LEFT GUY", PSEG_MIRROR_CHANGED},
        {"leftmost of the right-hand pair", "rightmost of the left-hand pair", PSEG_MIRROR_CHANGED},
        {"left/right", "right/left", PSEG_MIRROR_CHANGED},
        {"Rightmost, lefty", "Leftmost, righty", PSEG_MIRROR_CHANGED},
        {"right's hat", "left's hat", PSEG_MIRROR_CHANGED},
        {"left left left", "right right right", PSEG_MIRROR_CHANGED},
        {"bright cleft leftover upright", "bright cleft leftover upright", PSEG_MIRROR_SAME},
        {"dog right next to the man", "dog right next to the man", PSEG_MIRROR_SAME},
        {"on the right next to the man", "on the left next to the man", PSEG_MIRROR_CHANGED},
        {"left over", "left over", PSEG_MIRROR_SAME},
        {"cup at 3 o'clock", "cup at 3 o'clock", PSEG_MIRROR_UNSAFE},
        {"left with the letter b", "left with the letter b", PSEG_MIRROR_UNSAFE},
        {"l\xc3\xa9"
         "left",
         "l\xc3\xa9"
         "left",
         PSEG_MIRROR_SAME},
        {"", "", PSEG_MIRROR_SAME},
    };
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pseg_mirror what;
        char *out;
        assert_int_equal(pseg_data_mirror_phrase(&out, &what, cases[i].in, &err), PSEG_OK);
        assert_string_equal(out, cases[i].out);
        assert_int_equal(what, cases[i].what);
        if (what == PSEG_MIRROR_CHANGED) { /* twice is once */
            char *back;
            assert_int_equal(pseg_data_mirror_phrase(&back, &what, out, &err), PSEG_OK);
            assert_string_equal(back, cases[i].in);
            pseg_free(back);
        }
        pseg_free(out);
    }
}

/* ---- targets ---- */

/* By the definition: the share of a cell that lies in the mask, over 24 x 24 points a pixel. */
static float slow_cell(const pseg_mask *m, double x0, double y0, double x1, double y1)
{
    enum { N = 240 };
    int n = 0;

    for (int j = 0; j < N; j++)
        for (int i = 0; i < N; i++) {
            double x = x0 + (x1 - x0) * (i + 0.5) / N, y = y0 + (y1 - y0) * (j + 0.5) / N;
            if (x >= 0 && y >= 0 && x < m->width && y < m->height)
                n += m->data[(size_t)y * m->width + (size_t)x];
        }
    return (float)n / (N * N);
}

static pseg_mask *random_mask(uint32_t w, uint32_t h, uint32_t seed)
{
    uint8_t *p = pseg_calloc(w, h);
    pseg_err err = PSEG_ERR_INIT;
    pseg_mask *m;

    for (size_t i = 0; i < (size_t)w * h; i++)
        p[i] = (seed = seed * 1664525u + 1013904223u) >> 30 == 0;
    assert_int_equal(pseg_mask_from_pixels(&m, p, w, h, &err), PSEG_OK);
    pseg_free(p);
    return m;
}

static void targets_are_the_shares_of_cells(void **state)
{
    static const pseg_preprocess hows[] = {
        {.fit = PSEG_IMAGE_SQUASH, .width = 56, .height = 56},
        {.fit = PSEG_IMAGE_LETTERBOX, .width = 56, .height = 56},
        {.fit = PSEG_IMAGE_CENTRE_CROP, .width = 56, .height = 56, .resize_edge = 64},
    };
    static const uint32_t sizes[][2] = {{40, 30}, {9, 31}, {3, 2}, {57, 57}};
    pseg_err err = PSEG_ERR_INIT;
    float target[64], rect[4];

    (void)state;
    for (size_t h = 0; h < 3; h++)
        for (size_t s = 0; s < 4; s++) {
            pseg_mask *m = random_mask(sizes[s][0], sizes[s][1], (uint32_t)(h * 7 + s));
            assert_int_equal(pseg_image_rect(rect, m->width, m->height, &hows[h], &err), PSEG_OK);
            assert_int_equal(pseg_data_make_target(target, 8, 8, m, &hows[h], false, &err),
                             PSEG_OK);
            double dx = (rect[2] - rect[0]) / 8, dy = (rect[3] - rect[1]) / 8;
            for (int r = 0; r < 8; r++)
                for (int c = 0; c < 8; c++) {
                    float want = slow_cell(m, rect[0] + c * dx, rect[1] + r * dy,
                                           rect[0] + (c + 1) * dx, rect[1] + (r + 1) * dy);
                    assert_true(fabsf(target[r * 8 + c] - want) < 0.012f);
                }
            pseg_mask_free(m);
        }
}

static void mirrored_targets_are_those_of_the_mirrored_mask(void **state)
{
    static const pseg_preprocess hows[] = {
        {.fit = PSEG_IMAGE_SQUASH, .width = 56, .height = 56},
        {.fit = PSEG_IMAGE_LETTERBOX, .width = 57, .height = 56},
        {.fit = PSEG_IMAGE_CENTRE_CROP, .width = 56, .height = 56, .resize_edge = 63},
    };
    pseg_err err = PSEG_ERR_INIT;
    float a[64], b[64];

    (void)state;
    for (size_t h = 0; h < 3; h++) {
        pseg_mask *m = random_mask(41, 30, 5), *t;
        uint8_t *p = pseg_calloc(41, 30);
        for (size_t y = 0; y < 30; y++)
            for (size_t x = 0; x < 41; x++)
                p[y * 41 + x] = m->data[y * 41 + 40 - x];
        assert_int_equal(pseg_mask_from_pixels(&t, p, 41, 30, &err), PSEG_OK);
        assert_int_equal(pseg_data_make_target(a, 8, 8, m, &hows[h], true, &err), PSEG_OK);
        assert_int_equal(pseg_data_make_target(b, 8, 8, t, &hows[h], false, &err), PSEG_OK);
        for (int i = 0; i < 64; i++)
            assert_true(fabsf(a[i] - b[i]) < 1e-6f);
        pseg_free(p);
        pseg_mask_free(m);
        pseg_mask_free(t);
    }
}

/* ---- inputs ---- */

static void mirrored_inputs_are_those_of_the_mirrored_file(void **state)
{
    pseg_preprocess how = {
        .fit = PSEG_IMAGE_LETTERBOX, .width = 33, .height = 32, .std = {1, 1, 1}};
    uint8_t rgb[3 * 20 * 11], turned[3 * 20 * 11];
    float *a = pseg_calloc(3 * 33 * 32, sizeof *a), *b = pseg_calloc(3 * 33 * 32, sizeof *b);
    pseg_data_bytes file[2] = {{0}};
    pseg_buf png[2];
    pseg_err err = PSEG_ERR_INIT;
    uint32_t w, h, seed = 9;

    (void)state;
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)((seed = seed * 1664525u + 1013904223u) >> 24);
    for (size_t y = 0; y < 11; y++)
        for (size_t x = 0; x < 20; x++)
            memcpy(turned + 3 * (y * 20 + x), rgb + 3 * (y * 20 + 19 - x), 3);
    for (int i = 0; i < 2; i++) {
        pseg_buf_init(&png[i], 1 << 20);
        assert_int_equal(pseg_png_write(&png[i], i ? turned : rgb, 20, 11, 3, &err), PSEG_OK);
        file[i] = (pseg_data_bytes){png[i].data, png[i].len, NULL};
    }
    assert_int_equal(pseg_data_make_input(a, &w, &h, &file[0], &how, true, &err), PSEG_OK);
    assert_true(w == 20 && h == 11);
    assert_int_equal(pseg_data_make_input(b, &w, &h, &file[1], &how, false, &err), PSEG_OK);
    assert_memory_equal(a, b, 3 * 33 * 32 * sizeof *a);
    assert_int_equal(pseg_data_make_input(b, &w, &h, &file[0], &how, false, &err), PSEG_OK);
    assert_true(memcmp(a, b, 3 * 33 * 32 * sizeof *a) != 0);
    pseg_buf_deinit(&png[0]);
    pseg_buf_deinit(&png[1]);
    pseg_free(a);
    pseg_free(b);
}

/* ---- splits ---- */

/* n images called PREFIX000000000001.jpg and so on, each with `phrases` phrases. */
static pseg_dataset *make_set(const char *prefix, int first, int n, int phrases)
{
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_dataset *d;
    pseg_buf text;
    char *dir = make_folder();

    pseg_buf_init(&text, 1 << 24);
    for (int i = 0; i < n; i++) {
        pseg_buf_printf(&text, &err, "{\"image\":\"%s%012d.jpg\",\"samples\":[{\"sentences\":[",
                        prefix, first + n - 1 - i);
        for (int k = 0; k < phrases; k++)
            pseg_buf_printf(&text, &err, "%s\"p%d\"", k ? "," : "", k);
        pseg_buf_puts(&text, "],\"mask\":{\"size\":[2,3],\"counts\":\"222\"}}]}\n", &err);
    }
    assert_int_equal(pseg_dataset_open(&d, put_file(dir, "a.jsonl", text.data, text.len), &o, &err),
                     PSEG_OK);
    drop_folder(dir);
    pseg_buf_deinit(&text);
    return d;
}

static pseg_data_selection choose(const pseg_dataset *d, const char *spec)
{
    pseg_data_selection s;
    pseg_err err = PSEG_ERR_INIT;

    if (pseg_data_select(&s, d, spec, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    return s;
}

static void splits_by_name_hash_and_list(void **state)
{
    pseg_dataset *d = make_set("x/", 1, 200, 1), *e = make_set("COCO_val2014_", 101, 100, 2);
    static const char *const bad[] = {"last:0",  "last:201",  "last:-1", "hash:0%", "hash:100%",
                                      "hash:10", "hash:10%7", "some",    "not all", "last:"};
    pseg_data_selection s, t;
    pseg_err err = PSEG_ERR_INIT;
    size_t n = 0, shared = 0;
    char *dir;

    (void)state;
    s = choose(d, "last:3"); /* file names run down: the last by name come first */
    assert_true(s.n == 3 && s.images[0] == 0 && s.images[2] == 2);
    pseg_data_selection_free(&s);
    s = choose(d, "not last:3");
    assert_true(s.n == 197 && s.images[0] == 3);
    pseg_data_selection_free(&s);
    s = choose(d, "first:1");
    assert_true(s.n == 1 && s.images[0] == 199);
    pseg_data_selection_free(&s);

    /* The same photos in another set fall on the same side. */
    s = choose(d, "hash:30%@5");
    t = choose(e, "hash:30%@5");
    assert_true(s.n > 40 && s.n < 80);
    for (size_t i = 0; i < s.n; i++)
        n += s.images[i] < 100;
    assert_int_equal(n, t.n);
    for (size_t i = 0; i < t.n; i++)
        for (size_t k = 0; k < s.n; k++)
            shared += pseg_dataset_at(e, t.images[i]).key == pseg_dataset_at(d, s.images[k]).key;
    assert_int_equal(shared, n);
    pseg_data_selection_free(&s);
    s = choose(d, "hash:30%@6");
    t.images[0] = 0;
    for (n = 0; n < s.n && s.images[n] == n; n++)
        ;
    assert_true(n < s.n);
    pseg_data_selection_free(&s);
    pseg_data_selection_free(&t);

    dir = make_folder();
    char spec[600];
    snprintf(spec, sizeof spec, "list:%s",
             put_file(dir, "l", "# these\n000000000007.jpg\r\n\ncoco:9\n", 35));
    s = choose(d, spec);
    assert_true(s.n == 2 && s.images[0] == 191 && s.images[1] == 193);
    pseg_data_selection_free(&s);
    put_file(dir, "l", "coco:7\nnobody.jpg\n", 18);
    assert_int_equal(pseg_data_select(&s, d, spec, &err), PSEG_EINVAL);
    assert_non_null(strstr(err.msg, "l:2:"));
    assert_non_null(strstr(err.msg, "nobody.jpg"));
    drop_folder(dir);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(pseg_data_select(&s, d, bad[i], &err), PSEG_EINVAL);
    pseg_dataset_close(d);
    pseg_dataset_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(swaps_sides_as_words),
        cmocka_unit_test(targets_are_the_shares_of_cells),
        cmocka_unit_test(mirrored_targets_are_those_of_the_mirrored_mask),
        cmocka_unit_test(mirrored_inputs_are_those_of_the_mirrored_file),
        cmocka_unit_test(splits_by_name_hash_and_list),
    };
    pseg_err err = PSEG_ERR_INIT;

    if (pseg_image_init(&err) != PSEG_OK)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pseg_image_shutdown();
    return failed;
}
