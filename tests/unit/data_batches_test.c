#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/data_support.h"
#include "worker/data/arrays.h"
#include "worker/data/batches.h"
#include "worker/scenes/dataset.h"

#include <math.h>

enum { N = 12, SIDE = 64, GRID = 16, BATCH = 8, IMAGES = 4, PIXELS = 3 * SIDE * SIDE };

static pseg_err err;

#define OK(call)                                \
    do {                                        \
        if ((call) != PSEG_OK)                  \
            fail_msg("%s: %s", #call, err.msg); \
    } while (0)

typedef struct fixture {
    char dir[64];
    pseg_dataset *d;
    pseg_data_selection train, val;
    pseg_mix_part parts[2];
    pseg_batches_options o;
    pseg_data_batch b;
    told told;
} fixture;

static void set_up(fixture *f)
{
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    pseg_scene_dataset *out;
    pseg_scene *s;

    *f = (fixture){.dir = ""};
    snprintf(f->dir, sizeof f->dir, "%s", make_folder());
    OK(pseg_scene_dataset_open(&out, f->dir, &err));
    for (uint64_t i = 0; i < N; i++) {
        OK(pseg_scene_make(&s, i, SIDE, &err));
        OK(pseg_scene_dataset_add(out, s, &err));
        pseg_scene_free(s);
    }
    OK(pseg_scene_dataset_finish(out, &err));
    pseg_scene_dataset_free(out);
    OK(pseg_dataset_open(&f->d, f->dir, &o, &err));
    OK(pseg_data_select(&f->train, f->d, "all", &err));
    OK(pseg_data_select(&f->val, f->d, "last:3", &err));
    f->parts[0] = (pseg_mix_part){f->d, &f->train, 1};
    f->parts[1] = (pseg_mix_part){f->d, &f->val, 1};
    f->o = (pseg_batches_options){.train = &f->parts[0],
                                  .n_train = 1,
                                  .val = &f->parts[1],
                                  .n_val = 1,
                                  .how = {.width = SIDE, .height = SIDE, .std = {1, 1, 1}},
                                  .mask_width = GRID,
                                  .mask_height = GRID,
                                  .batch = BATCH,
                                  .images = IMAGES,
                                  .seed = 4,
                                  .report = tell,
                                  .report_ud = &f->told};
    f->b.pixels = pseg_calloc(IMAGES * PIXELS, sizeof(float));
    f->b.image_of = pseg_calloc(BATCH, sizeof *f->b.image_of);
    f->b.phrases = pseg_calloc(BATCH, sizeof *f->b.phrases);
    f->b.target = pseg_calloc(BATCH * GRID * GRID, sizeof(float));
    f->b.id = pseg_calloc(BATCH, sizeof *f->b.id);
    f->b.arena = pseg_arena_new(1 << 26);
}

static void tear_down(fixture *f)
{
    pseg_free(f->b.pixels);
    pseg_free(f->b.image_of);
    pseg_free(f->b.phrases);
    pseg_free(f->b.target);
    pseg_free(f->b.id);
    pseg_arena_free(f->b.arena);
    pseg_data_selection_free(&f->train);
    pseg_data_selection_free(&f->val);
    pseg_dataset_close(f->d);
    drop_folder(f->dir);
}

/* Finds a sample of the batch among all; returns its phrase's number. Its target and image must be
 * its own. */
static size_t find(fixture *f, uint32_t k)
{
    float *chw = pseg_calloc(PIXELS, sizeof *chw), want[GRID * GRID];
    size_t found = SIZE_MAX;
    uint32_t w, h;

    for (size_t i = 0; i < N && found == SIZE_MAX; i++) {
        pseg_data_record *r;
        pseg_data_bytes file;
        OK(pseg_dataset_read(&r, f->d, i, &err));
        if (pseg_dataset_image(&file, f->d, i, &err) != PSEG_OK) {
            pseg_data_record_free(r);
            continue;
        }
        for (int mirrored = 0; mirrored < 2; mirrored++) {
            if (pseg_data_make_input(chw, &w, &h, &file, &f->o.how, mirrored, &err) != PSEG_OK ||
                memcmp(chw, f->b.pixels + f->b.image_of[k] * PIXELS, PIXELS * sizeof *chw) != 0)
                continue;
            for (uint32_t s = 0; s < r->n_samples; s++) {
                pseg_mirror what;
                pseg_mask *m;
                char *phrase = pseg_strdup(r->samples[s].sentences[0]);
                if (mirrored) {
                    pseg_free(phrase);
                    OK(pseg_data_mirror_phrase(&phrase, &what, r->samples[s].sentences[0], &err));
                }
                bool is_it = strcmp(phrase, f->b.phrases[k]) == 0;
                pseg_free(phrase);
                if (!is_it)
                    continue;
                OK(pseg_data_mask_decode(&m, &r->samples[s].mask, &err));
                OK(pseg_data_make_target(want, GRID, GRID, m, &f->o.how, mirrored, &err));
                pseg_mask_free(m);
                if (memcmp(want, f->b.target + k * GRID * GRID, sizeof want) == 0)
                    found = pseg_dataset_at(f->d, i).first_phrase + s;
            }
        }
        pseg_data_bytes_free(&file);
        pseg_data_record_free(r);
    }
    pseg_free(chw);
    assert_true(found != SIZE_MAX);
    return found;
}

/* How often each phrase of the set came in an epoch. */
static void count(fixture *f, pseg_batches *b, bool is_train, uint64_t epoch, uint32_t *times)
{
    uint64_t n = is_train ? pseg_batches_n_train(b) : pseg_batches_n_val(b);

    memset(times, 0, 256 * sizeof *times);
    for (uint64_t i = 0; i < n; i++) {
        OK(pseg_batches_load(&f->b, b, is_train, epoch, i, &err));
        assert_true(f->b.n_images >= 1 && f->b.n_images <= IMAGES);
        assert_true(f->b.n_samples >= 1 && f->b.n_samples <= BATCH);
        for (uint32_t k = 0; k < f->b.n_samples; k++)
            times[find(f, k)]++;
    }
}

static void each_example_comes_once(void **state)
{
    static fixture f;
    uint32_t times[256], first_held;
    pseg_batches *b;

    (void)state;
    set_up(&f);
    f.o.mirror = 0.5;
    first_held = (uint32_t)pseg_dataset_at(f.d, N - 3).first_phrase;
    OK(pseg_batches_open(&b, &f.o, &err));
    assert_int_equal(pseg_batches_n_held_out(b), 3);
    assert_int_equal(pseg_batches_n_examples(b, true), first_held);
    for (uint64_t epoch = 0; epoch < 2; epoch++) {
        count(&f, b, true, epoch, times);
        for (size_t i = 0; i < pseg_dataset_n_phrases(f.d); i++)
            assert_int_equal(times[i], i < first_held);
    }
    count(&f, b, false, 1, times);
    for (size_t i = 0; i < pseg_dataset_n_phrases(f.d); i++)
        assert_int_equal(times[i], i >= first_held);
    assert_non_null(strstr(pseg_batches_description(b), "train 12 images"));
    pseg_batches_close(b);
    tear_down(&f);
}

/* Batch 1 of epoch 5 is the same whatever was loaded before, and differs from that of epoch 6. */
static void a_batch_depends_on_its_numbers_alone(void **state)
{
    static fixture f;
    float *pixels = pseg_calloc(IMAGES * PIXELS, sizeof *pixels), target[BATCH * GRID * GRID];
    pseg_batches *b, *other;

    (void)state;
    set_up(&f);
    f.o.mirror = 0.5;
    OK(pseg_batches_open(&b, &f.o, &err));
    OK(pseg_batches_load(&f.b, b, true, 5, 1, &err));
    memcpy(pixels, f.b.pixels, IMAGES * PIXELS * sizeof *pixels);
    memcpy(target, f.b.target, sizeof target);
    OK(pseg_batches_load(&f.b, b, true, 6, 1, &err));
    assert_true(memcmp(pixels, f.b.pixels, IMAGES * PIXELS * sizeof *pixels) != 0);
    OK(pseg_batches_load(&f.b, b, false, 6, 0, &err));
    OK(pseg_batches_open(&other, &f.o, &err));
    OK(pseg_batches_load(&f.b, other, true, 5, 1, &err));
    assert_memory_equal(pixels, f.b.pixels, IMAGES * PIXELS * sizeof *pixels);
    assert_memory_equal(target, f.b.target, sizeof target);
    pseg_batches_close(b);
    pseg_batches_close(other);
    pseg_free(pixels);
    tear_down(&f);
}

static void broken_images_are_left_out(void **state)
{
    static fixture f;
    uint32_t times[256];
    pseg_batches *b;

    (void)state;
    set_up(&f);
    put_file(f.dir, "images/000002.png", "nothing", 7);
    OK(pseg_batches_open(&b, &f.o, &err));
    count(&f, b, true, 0, times);
    assert_non_null(strstr(f.told.text, "image_broken scenes.jsonl:3:"));
    assert_true(pseg_batches_n_broken(b) >= 1);
    for (size_t i = 0; i < pseg_dataset_n_phrases(f.d); i++)
        assert_int_equal(times[i], i < pseg_dataset_at(f.d, N - 3).first_phrase &&
                                       (i < pseg_dataset_at(f.d, 2).first_phrase ||
                                        i >= pseg_dataset_at(f.d, 3).first_phrase));
    pseg_batches_close(b);
    tear_down(&f);
}

static pseg_status note(void *ud, const char *phrase, const char *where, pseg_err *e)
{
    told *t = ud;

    (void)e;
    t->n += (size_t)snprintf(t->text + t->n, sizeof t->text - t->n, "%s|%s\n", phrase, where);
    return t->n > 60000 ? PSEG_EINVAL : PSEG_OK;
}

static void tells_every_phrase(void **state)
{
    static fixture f;
    static told t;
    pseg_data_record *r;
    pseg_batches *b;
    char *mirrored;
    pseg_mirror what;

    (void)state;
    set_up(&f);
    f.o.mirror = 0.1;
    OK(pseg_batches_open(&b, &f.o, &err));
    OK(pseg_batches_each_phrase(b, note, &t, &err));
    for (size_t i = 0; i < N; i++) {
        OK(pseg_dataset_read(&r, f.d, i, &err));
        for (uint32_t k = 0; k < r->n_samples; k++) {
            assert_non_null(strstr(t.text, r->samples[k].sentences[0]));
            OK(pseg_data_mirror_phrase(&mirrored, &what, r->samples[k].sentences[0], &err));
            assert_true(i >= N - 3 || strstr(t.text, mirrored));
            pseg_free(mirrored);
        }
        pseg_data_record_free(r);
    }
    pseg_batches_close(b);

    f.o.images = 3;
    assert_int_equal(pseg_batches_open(&b, &f.o, &err), PSEG_EINVAL);
    f.o.images = IMAGES;
    f.o.mirror = 2;
    assert_int_equal(pseg_batches_open(&b, &f.o, &err), PSEG_EINVAL);
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_example_comes_once),
        cmocka_unit_test(a_batch_depends_on_its_numbers_alone),
        cmocka_unit_test(broken_images_are_left_out),
        cmocka_unit_test(tells_every_phrase),
    };

    if (pseg_image_init(&err) != PSEG_OK)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pseg_image_shutdown();
    return failed;
}
