/* The features that a cache gives are those that the encoder computes, bit for bit, whatever was
 * there before and whatever images are broken. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/golden/golden.h"
#include "tests/unit/data_support.h"
#include "worker/data/arrays.h"
#include "worker/data/features.h"
#include "worker/scenes/dataset.h"

#define MODEL PSEG_TEST_SOURCE_DIR "/tests/golden/data/models/pseg_pooled"

enum { N = 40 }; /* more than two batches */

static pseg_cl *cl;
static pseg_err err;

#define OK(call)                                \
    do {                                        \
        if ((call) != PSEG_OK)                  \
            fail_msg("%s: %s", #call, err.msg); \
    } while (0)

typedef struct fixture {
    char dir[64];
    pseg_dataset *d;
    pseg_model *m;
    pseg_vision *v;
    pseg_preprocess how;
    pseg_data_selection all;
    pseg_feature_cache *c;
    told told;
    size_t n_told, last_done;
    bool stops;
} fixture;

static bool progress(void *ud, size_t done, size_t n_skipped, size_t total)
{
    fixture *f = ud;

    (void)n_skipped;
    assert_int_equal(total, f->all.n);
    assert_true(done >= f->last_done && done <= total);
    f->last_done = done;
    f->n_told++;
    return !f->stops;
}

/* N scenes of 64 px on disk; image 3 is broken, 5 is missing and 7 has become another's size. */
static void set_up(fixture *f)
{
    pseg_model_source src = {.folder = MODEL};
    pseg_model_options o = {.max_images = 3, .max_phrases = 1};
    pseg_data_options dopt = PSEG_DATA_OPTIONS_DEFAULT;
    pseg_scene_dataset *out;
    pseg_scene *s;

    snprintf(f->dir, sizeof f->dir, "%s", make_folder());
    OK(pseg_scene_dataset_open(&out, f->dir, &err));
    for (uint64_t i = 0; i < N; i++) {
        OK(pseg_scene_make(&s, i, 64, &err));
        OK(pseg_scene_dataset_add(out, s, &err));
        pseg_scene_free(s);
    }
    OK(pseg_scene_dataset_finish(out, &err));
    pseg_scene_dataset_free(out);
    OK(pseg_dataset_open(&f->d, f->dir, &dopt, &err));
    OK(pseg_data_select(&f->all, f->d, "all", &err));
    OK(pseg_model_open(&f->m, cl, &src, &o, &err));
    OK(pseg_vision_of_model(&f->v, f->m, &err));
    pseg_data_preprocess_of(&f->how, pseg_model_get_info(f->m));
}

static void break_images(fixture *f)
{
    char command[256];

    put_file(f->dir, "images/000003.png", "\x89PNG", 4);
    snprintf(command, sizeof command, "rm %s/images/000005.png", f->dir);
    assert_int_equal(system(command), 0);
    pseg_buf png;
    uint8_t rgb[3 * 32 * 32] = {0};
    pseg_buf_init(&png, 1 << 20);
    OK(pseg_png_write(&png, rgb, 32, 32, 3, &err));
    put_file(f->dir, "images/000007.png", png.data, png.len);
    pseg_buf_deinit(&png);
}

static void tear_down(fixture *f)
{
    pseg_feature_cache_close(f->c);
    pseg_data_selection_free(&f->all);
    pseg_dataset_close(f->d);
    pseg_vision_close(f->v);
    pseg_model_close(f->m);
    drop_folder(f->dir);
}

static pseg_status fill(fixture *f, uint32_t *entries, size_t *n_skipped)
{
    pseg_feature_job job = {.d = f->d,
                            .images = &f->all,
                            .has_mirrored = true,
                            .report = tell,
                            .report_ud = &f->told,
                            .progress = progress,
                            .progress_ud = f};

    f->n_told = f->last_done = 0;
    f->told = (told){0};
    return pseg_feature_fill(entries, n_skipped, f->c, f->v, &job, &err);
}

static void open_cache(fixture *f)
{
    char dir[96];

    pseg_feature_cache_close(f->c);
    snprintf(dir, sizeof dir, "%s/cache", f->dir);
    OK(pseg_feature_cache_open(&f->c, dir, pseg_vision_get_info(f->v), &f->how, &err));
}

static void check_entries(fixture *f, const uint32_t *entries)
{
    size_t pixels = 3 * (size_t)f->how.width * f->how.height, n = pseg_vision_numbers(f->v);
    float *chw = pseg_calloc(pixels, sizeof *chw);
    uint16_t *want = pseg_calloc(n, sizeof *want);
    uint32_t w, h;

    for (size_t i = 0; i < 2 * N; i++) {
        pseg_data_bytes file;
        pseg_feature x;
        if (entries[i] == PSEG_NO_FEATURE)
            continue;
        OK(pseg_dataset_image(&file, f->d, i / 2, &err));
        OK(pseg_data_make_input(chw, &w, &h, &file, &f->how, i % 2, &err));
        OK(pseg_vision_run(want, f->v, chw, 1, &err));
        OK(pseg_feature_cache_get(&x, f->c, entries[i], &err));
        assert_memory_equal(x.taps, want, n * sizeof *want);
        assert_true(x.width == w && x.height == h);
        pseg_data_bytes_free(&file);
    }
    pseg_free(chw);
    pseg_free(want);
}

static void fills_and_leaves_out(void **state)
{
    static fixture f;
    uint32_t entries[2 * N], again[2 * N];
    size_t n_skipped;

    (void)state;
    set_up(&f);
    break_images(&f);
    open_cache(&f);
    OK(fill(&f, entries, &n_skipped));
    assert_int_equal(n_skipped, 3);
    assert_non_null(strstr(f.told.text, "image_broken scenes.jsonl:4:"));
    assert_non_null(strstr(f.told.text, "image_missing scenes.jsonl:6:"));
    assert_non_null(strstr(f.told.text, "mask_size scenes.jsonl:8: the image has 32 x 32"));
    for (size_t i = 0; i < 2 * N; i++)
        assert_int_equal(entries[i] == PSEG_NO_FEATURE, i / 2 == 3 || i / 2 == 5 || i / 2 == 7);
    check_entries(&f, entries);
    size_t count = pseg_feature_cache_count(f.c);
    assert_int_equal(count, 2 * (N - 2));
    assert_true(f.n_told >= 5);

    /* Another process, later: nothing is computed again. */
    open_cache(&f);
    OK(fill(&f, again, &n_skipped));
    assert_int_equal(f.n_told, 0);
    assert_int_equal(n_skipped, 3);
    assert_int_equal(pseg_feature_cache_count(f.c), count);
    assert_memory_equal(entries, again, sizeof entries);
    tear_down(&f);
}

/* Stopped after the first batch: what is done is kept, and the rest follows. A file that changes is
 * read again. */
static void goes_on_where_it_stopped(void **state)
{
    static fixture f;
    uint32_t entries[2 * N];
    size_t n_skipped, count;

    (void)state;
    set_up(&f);
    open_cache(&f);
    f.stops = true;
    assert_int_equal(fill(&f, entries, &n_skipped), PSEG_ECANCELLED);
    count = pseg_feature_cache_count(f.c);
    assert_int_equal(count, 16);
    f.stops = false;
    open_cache(&f);
    OK(fill(&f, entries, &n_skipped));
    assert_int_equal(n_skipped, 0);
    assert_int_equal(pseg_feature_cache_count(f.c), 2 * N);
    check_entries(&f, entries);

    char command[256];
    snprintf(command, sizeof command, "cp %s/images/000001.png %s/images/000002.png", f.dir, f.dir);
    assert_int_equal(system(command), 0);
    OK(fill(&f, entries, &n_skipped));
    assert_int_equal(pseg_feature_cache_count(f.c), 2 * N); /* the bytes are known */
    assert_int_equal(entries[2], entries[4]);
    check_entries(&f, entries);
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fills_and_leaves_out),
        cmocka_unit_test(goes_on_where_it_stopped),
    };

    cl = gold_cl();
    if (pseg_image_init(&err) != PSEG_OK)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pseg_image_shutdown();
    pseg_cl_close(cl);
    return failed;
}
