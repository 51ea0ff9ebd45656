/* worker/train without a device: the learning rate over a run, targets, the order of pixels, first
 * weights, the loader, the log; and writing of safetensors files. */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/model/config.h"
#include "worker/model/safetensors_write.h"
#include "worker/train/head.h"
#include "worker/train/init.h"
#include "worker/train/loader.h"
#include "worker/train/optim.h"
#include "worker/train/report.h"
#include "worker/train/source.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/pseg-train-unit-XXXXXX";

static char *in_folder(const char *name)
{
    static char path[256];

    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* ---- schedule -------------------------------------------------------------------------------- */

static void rate_rises_and_falls(void **state)
{
    (void)state;
    assert_float_equal(pseg_optim_schedule(0, 10, 110), 0.1, 1e-7);
    assert_float_equal(pseg_optim_schedule(9, 10, 110), 1, 1e-7);
    assert_float_equal(pseg_optim_schedule(10, 10, 110), 1, 1e-7);
    assert_float_equal(pseg_optim_schedule(60, 10, 110), 0.5, 1e-6);
    assert_float_equal(pseg_optim_schedule(110, 10, 110), 0, 0);
    assert_float_equal(pseg_optim_schedule(1000, 10, 110), 0, 0);
    assert_float_equal(pseg_optim_schedule(0, 0, 4), 1, 0);          /* no warm-up */
    assert_float_equal(pseg_optim_schedule(0, 100, 10), 0.01, 1e-8); /* nothing but warm-up */
    for (uint64_t i = 11; i < 110; i++)
        assert_true(pseg_optim_schedule(i, 10, 110) <= pseg_optim_schedule(i - 1, 10, 110));
}

/* ---- targets --------------------------------------------------------------------------------- */

static void area_is_a_mean(void **state)
{
    uint8_t mask[7 * 7] = {0};
    float out[4];
    double sum = 0, want = 0;

    (void)state;
    for (size_t y = 0; y < 7; y++)
        for (size_t x = 0; x < 7; x++)
            mask[y * 7 + x] = x < 4 ? 3 : 5; /* of 7 columns, 3.5 lie in the left half */
    assert_int_equal(pseg_train_area(out, 2, 2, mask, 3, 7, 7, NULL), PSEG_OK);
    assert_float_equal(out[0], 1, 1e-6);
    assert_float_equal(out[1], 0.5 / 3.5, 1e-6);
    assert_float_equal(out[2], 1, 1e-6);
    assert_float_equal(out[3], 0.5 / 3.5, 1e-6);
    for (size_t i = 0; i < 49; i++) {
        mask[i] = (uint8_t)(pseg_hash3(1, i, 0) % 2);
        want += mask[i] / 49.0;
    }
    float big[9];
    assert_int_equal(pseg_train_area(big, 3, 3, mask, 1, 7, 7, NULL), PSEG_OK);
    for (size_t i = 0; i < 9; i++) {
        assert_true(big[i] >= 0 && big[i] <= 1);
        sum += (double)big[i] / 9;
    }
    assert_float_equal(sum, want, 1e-6); /* parts are equal, so their mean is the whole's */
}

/* Each stage of the upsampler is shuffle2: done step by step on numbers, it must give the order. */
/* Numbers as they are, where parts are whole; by their share, where a border runs through one. */
static void coarse_is_a_mean(void **state)
{
    const float map[3 * 4] = {0, 1, 0, 0, 1, 1, 0, 0.5f, 0, 0, 1, 1};
    const float whole[1 * 2] = {3.0f / 6, 2.5f / 6};
    float out[2 * 2];

    (void)state;
    assert_int_equal(pseg_train_coarsen(out, 1, 2, map, 3, 4, NULL), PSEG_OK);
    for (size_t i = 0; i < 2; i++)
        assert_float_equal(out[i], whole[i], 1e-6);
    assert_int_equal(pseg_train_coarsen(out, 2, 2, map, 3, 4, NULL), PSEG_OK);
    assert_float_equal(out[0], (1 + 2 / 2.0) / 3, 1e-6); /* a row and a half of the left half */
    assert_float_equal(out[1], (0.5 / 2) / 3, 1e-6);
    assert_float_equal(out[2], (2 / 2.0) / 3, 1e-6);
    assert_float_equal(out[3], (0.5 / 2 + 2) / 3, 1e-6);
}

static void order_is_the_upsamplers(void **state)
{
    pseg_head_config c;
    enum { GH = 3, GW = 2, STAGES = 3, PIXELS = GH * GW << 2 * STAGES };
    uint32_t order[PIXELS], place[PIXELS], next[PIXELS];

    (void)state;
    pseg_head_config_default(&c);
    c.n_upsample = STAGES;
    pseg_train_head_order(order, &c, GH, GW);
    for (uint32_t i = 0; i < PIXELS; i++)
        place[i] = i;
    /* place[j]: which number stands at j, of maps h x w whose pixels hold `in` numbers each. */
    for (uint32_t h = GH, w = GW, in = PIXELS / (GH * GW); in > 1; in /= 4, h *= 2, w *= 2) {
        uint32_t part = in / 4;
        for (uint32_t y = 0; y < h; y++)
            for (uint32_t x = 0; x < w; x++)
                for (uint32_t tap = 0; tap < 4; tap++)
                    for (uint32_t k = 0; k < part; k++) {
                        uint32_t to = ((2 * y + tap / 2) * 2 * w + 2 * x + tap % 2) * part + k;
                        next[to] = place[((y * w + x) * 4 + tap) * part + k];
                    }
        memcpy(place, next, sizeof place);
    }
    for (uint32_t i = 0; i < PIXELS; i++)
        assert_int_equal(order[place[i]], i);
}

/* ---- first weights --------------------------------------------------------------------------- */

static void first_weights_are_pytorchs(void **state)
{
    pseg_specs specs = {0};
    pseg_head_config c;
    pseg_init init = {1, &specs}, other = {2, &specs};
    static float a[256 * 2048], b[256 * 2048];
    const struct {
        const char *name;
        size_t n;
        double bound; /* of a uniform tensor; 0: ones, -1: zeros, -2: normal */
    } want[] = {
        {"decoder.layers.0.mlp.lin1.weight", 2048 * 256, 1 / 16.0},
        {"decoder.layers.0.mlp.lin1.bias", 2048, 1 / 16.0},
        {"decoder.layers.0.mlp.lin2.bias", 256, 0.022097086912079608},
        {"neck.smooth.0.conv.weight", 256 * 2304 / 2, 1 / 48.0},
        {"decoder.upsample.0.conv.bias", 128, 0.04419417382415922}, /* 1/sqrt(128 * 4) */
        {"decoder.layers.1.layer_norm2.weight", 256, 0},
        {"neck.fuse.norm.bias", 256, -1},
        {"decoder.mask_token", 256, -2},
    };

    (void)state;
    pseg_head_config_default(&c);
    assert_int_equal(pseg_train_head_specs(&specs, &c, NULL), PSEG_OK);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        double most = 0, sum = 0, squares = 0;

        pseg_init_fill(&init, a, want[i].n, want[i].name);
        pseg_init_fill(&init, b, want[i].n, want[i].name);
        assert_memory_equal(a, b, want[i].n * sizeof *a);
        pseg_init_fill(&other, b, want[i].n, want[i].name);
        for (size_t k = 0; k < want[i].n; k++) {
            most = fmax(most, fabs((double)a[k]));
            sum += (double)a[k];
            squares += (double)a[k] * (double)a[k];
        }
        double n = (double)want[i].n, mean = sum / n, size = sqrt(squares / n);
        if (want[i].bound > 0) {
            assert_true(most <= want[i].bound && most > 0.9 * want[i].bound);
            assert_true(fabs(size / (want[i].bound / sqrt(3)) - 1) < 4 / sqrt(n));
            assert_true(fabs(mean) < 4 * size / sqrt(n));
            assert_memory_not_equal(a, b, want[i].n * sizeof *a);
        } else if (want[i].bound > -2) {
            assert_float_equal(mean, want[i].bound < 0 ? 0 : 1, 0);
            assert_float_equal(size, want[i].bound < 0 ? 0 : 1, 0);
        } else {
            assert_true(fabs(size - 1) < 0.2 && fabs(mean) < 0.3);
        }
    }
    pseg_specs_deinit(&specs);
}

/* ---- the loader ------------------------------------------------------------------------------ */

typedef struct fake {
    uint64_t n_loads, fails_at;
} fake;

static pseg_status fake_load(void *ud, pseg_train_batch *b, bool is_train, uint64_t epoch,
                             uint64_t batch, pseg_err *err)
{
    fake *f = ud;

    if (++f->n_loads == f->fails_at)
        return pseg_err_set(err, PSEG_R_FILE_IO, 0, PSEG_HERE, "a broken batch");
    b->n_images = b->n_samples = 1;
    b->target[0] = (float)(epoch * 100 + batch * 10 + is_train);
    return PSEG_OK;
}

static pseg_head_config small_head(void)
{
    pseg_head_config c;

    pseg_head_config_default(&c);
    c.gh = c.gw = 1;
    c.height = c.width = 14;
    c.n_upsample = 1;
    return c;
}

static void loader_goes_through_everything(void **state)
{
    fake f = {0};
    pseg_train_source source = {.ud = &f, .load = fake_load, .n_train = 3, .n_val = 2};
    pseg_train_sizes sizes = {2, 1, 0};
    pseg_head_config c = small_head();
    const float want[] = {11, 21, 0, 10, 101, 111, 121, 100, 110}; /* from batch 1 of epoch 0 */
    const pseg_train_batch *b;
    pseg_loader_place place;
    pseg_loader *l;

    (void)state;
    assert_int_equal(
        pseg_loader_open(&l, &source, &c, &sizes, (pseg_loader_place){0, 1, true}, 2, NULL),
        PSEG_OK);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        assert_int_equal(pseg_loader_next(&b, &place, l, NULL), PSEG_OK);
        assert_non_null(b);
        assert_float_equal(b->target[0], want[i], 0);
        assert_float_equal((float)(place.epoch * 100 + place.batch * 10 + place.is_train), want[i],
                           0);
    }
    assert_int_equal(pseg_loader_next(&b, &place, l, NULL), PSEG_OK);
    assert_null(b);
    pseg_loader_close(l);
    /* Closed with batches in hand, and one that fails. */
    assert_int_equal(
        pseg_loader_open(&l, &source, &c, &sizes, (pseg_loader_place){0, 0, true}, 2, NULL),
        PSEG_OK);
    pseg_loader_close(l);
    f = (fake){0, 2};
    pseg_err err = PSEG_ERR_INIT;
    assert_int_equal(
        pseg_loader_open(&l, &source, &c, &sizes, (pseg_loader_place){0, 0, true}, 2, NULL),
        PSEG_OK);
    assert_int_equal(pseg_loader_next(&b, &place, l, &err), PSEG_OK);
    assert_int_equal(pseg_loader_next(&b, &place, l, &err), PSEG_EIO);
    assert_string_equal(err.msg, "a broken batch");
    pseg_loader_close(l);
}

/* ---- scenes ---------------------------------------------------------------------------------- */

static void scenes_are_the_same_again(void **state)
{
    pseg_head_config c;
    pseg_train_sizes sizes = {6, 2, 3};
    pseg_train_scene_set set = {5, 2, false};
    pseg_train_source source;
    pseg_loader *l;
    const pseg_train_batch *b;
    pseg_loader_place place;
    char seen[2][64][PSEG_TRAIN_ID];
    size_t n[2] = {0};

    (void)state;
    pseg_head_config_default(&c);
    c.height = c.width = 112;
    c.gh = c.gw = 8;
    assert_int_equal(pseg_train_scenes(&source, &c, &sizes, &set, NULL), PSEG_OK);
    assert_int_equal(source.n_train, 3);
    assert_int_equal(source.n_val, 1);
    for (int round = 0; round < 2; round++) {
        assert_int_equal(
            pseg_loader_open(&l, &source, &c, &sizes, (pseg_loader_place){0, 0, true}, 2, NULL),
            PSEG_OK);
        for (;;) {
            assert_int_equal(pseg_loader_next(&b, &place, l, NULL), PSEG_OK);
            if (!b)
                break;
            assert_true(b->n_images >= 1 && b->n_images <= 2 && b->n_samples <= 6);
            assert_int_equal(b->n_images, place.is_train && place.batch == 2 ? 1 : 2);
            for (uint32_t i = 0; i < b->n_samples; i++) {
                double sum = 0;
                assert_true(b->image_of[i] < b->n_images);
                for (size_t k = 0; k < 64 * 64; k++)
                    sum += (double)b->target[i * 64 * 64 + k];
                assert_true(sum > 4 && sum < 64 * 64);
                assert_true(strlen(b->phrases[i]) > 3);
                memcpy(seen[round][n[round]++], b->id[i], PSEG_TRAIN_ID);
            }
        }
        pseg_loader_close(l);
    }
    assert_int_equal(n[0], n[1]);
    assert_memory_equal(seen[0], seen[1], n[0] * PSEG_TRAIN_ID);
    for (size_t i = 1; i < n[0]; i++) /* nothing twice within an epoch, nor in the next */
        for (size_t k = 0; k < i; k++)
            if (strncmp(seen[0][i], "scene 500", 9) != 0)
                assert_string_not_equal(seen[0][i], seen[0][k]);
    pseg_train_source_close(&source);
    c.width = 126;
    assert_int_equal(pseg_train_scenes(&source, &c, &sizes, &set, NULL), PSEG_EINVAL);
}

/* How many of the phrases of an epoch are of each kind. */
static void count_kinds(size_t *out, const pseg_train_scene_set *set)
{
    pseg_head_config c;
    pseg_train_sizes sizes = {12, 4, 1};
    pseg_train_source source;
    pseg_loader *l;
    const pseg_train_batch *b;
    pseg_loader_place place;

    pseg_head_config_default(&c);
    c.height = c.width = 112;
    c.gh = c.gw = 8;
    assert_int_equal(pseg_train_scenes(&source, &c, &sizes, set, NULL), PSEG_OK);
    assert_int_equal(
        pseg_loader_open(&l, &source, &c, &sizes, (pseg_loader_place){0, 0, true}, 1, NULL),
        PSEG_OK);
    while (pseg_loader_next(&b, &place, l, NULL) == PSEG_OK && b)
        for (uint32_t i = 0; i < b->n_samples; i++) {
            const char *text = b->phrases[i];
            bool is_relational = strstr(text, " to ") || strstr(text, " of ") ||
                                 strstr(text, "above ") || strstr(text, "over ") ||
                                 strstr(text, "below ") || strstr(text, "under ") ||
                                 strstr(text, "beneath ");

            assert_true(b->image_of[i] < b->n_images);
            out[pseg_train_phrase_of(text, is_relational, false)]++;
        }
    pseg_loader_close(l);
    pseg_train_source_close(&source);
}

static void kinds_are_drawn_by_weight(void **state)
{
    pseg_train_scene_set plain = {160, 0, false}, near = plain, fixed = {160, 0, true};
    size_t a[PSEG_TRAIN_N_PHRASES] = {0}, b[PSEG_TRAIN_N_PHRASES] = {0},
           c[PSEG_TRAIN_N_PHRASES] = {0};

    (void)state;
    for (size_t k = 0; k < PSEG_TRAIN_N_PHRASES; k++)
        near.weights[k] = fixed.weights[k] = k == PSEG_TRAIN_NEAR ? 20 : 1;
    count_kinds(a, &plain);
    count_kinds(b, &near);
    count_kinds(c, &fixed);
    /* Not preferred, near has its share of one phrase in seven; all batches are full either way. */
    assert_int_equal(a[0] + a[1] + a[2], 40 * 12);
    assert_int_equal(b[0] + b[1] + b[2], 40 * 12);
    assert_in_range(a[PSEG_TRAIN_NEAR], 40, 100);
    assert_in_range(b[PSEG_TRAIN_NEAR], 120, 300);
    assert_true(c[PSEG_TRAIN_NEAR] > a[PSEG_TRAIN_NEAR] && c[PSEG_TRAIN_NEAR] < b[PSEG_TRAIN_NEAR]);
}

/* ---- the log --------------------------------------------------------------------------------- */

static char *text_of(const char *name)
{
    uint8_t *text = NULL;
    size_t n;

    assert_int_equal(pseg_file_read(&text, &n, in_folder(name), 1 << 20, NULL), PSEG_OK);
    return (char *)text;
}

static void log_is_cut_where_a_run_goes_on(void **state)
{
    pseg_report *r;
    pseg_report_step s = {.loss = 1.0 / 3, .norm = NAN};
    pseg_report_epoch e = {.loss = 1, .iou = 0.5, .val_loss = 2, .val_iou = 0.25};
    const char *names[] = {"a \"b\"\\\n"};
    char *text, *again;

    (void)state;
    assert_int_equal(pseg_report_open(&r, folder, 0, 0, NULL), PSEG_OK);
    for (s.step = 0; s.step < 4; s.step++)
        assert_int_equal(pseg_report_add_step(r, &s, NULL), PSEG_OK);
    assert_int_equal(pseg_report_add_epoch(r, &e, NULL), PSEG_OK);
    text = text_of("log.jsonl");
    assert_non_null(strstr(text, "\"loss\":0.33333333333333331"));
    assert_non_null(strstr(text, "\"norm\":null"));
    assert_int_equal(pseg_report_add_skip(r, &s, names, 1, NULL), PSEG_OK);
    e.epoch = 1;
    assert_int_equal(pseg_report_add_epoch(r, &e, NULL), PSEG_OK);
    pseg_report_close(r);
    FILE *f = fopen(in_folder("log.jsonl"), "a"); /* a line that a fall cut */
    assert_non_null(f);
    fputs("{\"type\":\"step\",\"step\":0,\"lo", f);
    fclose(f);
    assert_int_equal(pseg_report_open(&r, folder, 4, 1, NULL), PSEG_OK);
    again = text_of("log.jsonl");
    assert_string_equal(again, text);
    pseg_free(again);
    assert_int_equal(pseg_report_add_skip(r, &s, names, 1, NULL), PSEG_OK);
    again = text_of("log.jsonl");
    assert_non_null(strstr(again, "\"samples\":[\"a \\u0022b\\u0022\\u005c\\u000a\"]"));
    assert_int_equal(pseg_report_add_epoch(r, &e, NULL), PSEG_OK);
    pseg_report_close(r);
    pseg_free(again);
    pseg_free(text);
    text = text_of("curves.svg");
    size_t points = 0; /* both epochs are drawn, though only one is of this process */
    for (const char *at = text; (at = strstr(at, "<circle")); at++)
        points++;
    assert_int_equal(points, 8);
    pseg_free(text);
    assert_int_equal(pseg_report_open(&r, folder, 0, 0, NULL), PSEG_OK); /* begins anew */
    text = text_of("log.jsonl");
    assert_string_equal(text, "");
    pseg_free(text);
    pseg_report_close(r);
}

/* ---- files of tensors ------------------------------------------------------------------------ */

static void head_config_comes_back(void **state)
{
    pseg_head_config c, got;
    pseg_tensors_writer *w;
    pseg_tensors *t;
    float v[6] = {1, -2, 0.1f, INFINITY, -0.0f, 1e-40f};
    uint64_t dims[] = {2, 3};

    (void)state;
    pseg_head_config_default(&c);
    c.taps[1] = 4;
    c.is_tap_normed = true;
    c.gh = 32;
    c.gw = 16;
    c.height = 448;
    c.gn_eps = 1.2345678e-5f;
    c.mean[1] = 0.1f;
    c.fit = PSEG_MODEL_LETTERBOX;
    c.has_word_tokens = true;
    c.n_upsample = 2;
    c.upsample[2] = 0;
    assert_int_equal(pseg_tensors_writer_new(&w, in_folder("x.safetensors"), NULL), PSEG_OK);
    assert_int_equal(pseg_head_config_write(w, &c, NULL), PSEG_OK);
    assert_int_equal(pseg_tensors_writer_meta(w, "odd \"key\"", "line\nbreak \\ \xc3\xa4", NULL),
                     PSEG_OK);
    assert_int_equal(pseg_tensors_writer_declare(w, "b", 2, dims, NULL), PSEG_OK);
    assert_int_equal(pseg_tensors_writer_declare(w, "a", 1, dims, NULL), PSEG_OK);
    assert_int_equal(pseg_tensors_writer_data(w, v, 5, NULL), PSEG_EINVAL);
    assert_int_equal(pseg_tensors_writer_data(w, v, 6, NULL), PSEG_OK);
    assert_false(pseg_file_exists(in_folder("x.safetensors")));
    assert_int_equal(pseg_tensors_writer_finish(w, NULL), PSEG_EINVAL); /* one is missing */
    assert_int_equal(pseg_tensors_writer_data(w, v, 2, NULL), PSEG_OK);
    assert_int_equal(pseg_tensors_writer_finish(w, NULL), PSEG_OK);
    pseg_tensors_writer_free(w);
    assert_false(pseg_file_exists(in_folder("x.safetensors.new")));
    assert_int_equal(pseg_tensors_open_file(&t, in_folder("x.safetensors"), NULL), PSEG_OK);
    assert_int_equal(pseg_head_config_read(&got, t, NULL), PSEG_OK);
    got.upsample[2] = 0; /* behind the list: the default's */
    assert_memory_equal(&got, &c, sizeof c);
    assert_string_equal(pseg_tensors_metadata(t, "odd \"key\""), "line\nbreak \\ \xc3\xa4");
    const pseg_tensor *b = pseg_tensors_find(t, "b");
    assert_true(b && b->rank == 2 && b->dims[1] == 3 && b->type == PSEG_TENSOR_F32);
    assert_memory_equal(b->data, v, sizeof v);
    assert_int_equal((uintptr_t)b->data % 64, 0);
    pseg_tensors_close(t);
    /* Given up: what was there stays. */
    assert_int_equal(pseg_tensors_writer_new(&w, in_folder("x.safetensors"), NULL), PSEG_OK);
    assert_int_equal(pseg_tensors_writer_declare(w, "b", 2, dims, NULL), PSEG_OK);
    assert_int_equal(pseg_tensors_writer_data(w, v, 6, NULL), PSEG_OK);
    assert_true(pseg_file_exists(in_folder("x.safetensors.new")));
    pseg_tensors_writer_free(w);
    assert_false(pseg_file_exists(in_folder("x.safetensors.new")));
    assert_int_equal(pseg_tensors_open_file(&t, in_folder("x.safetensors"), NULL), PSEG_OK);
    assert_non_null(pseg_tensors_find(t, "a"));
    pseg_tensors_close(t);
    /* A disk without room: /dev/full says so at the first write. */
    assert_int_equal(symlink("/dev/full", in_folder("full.new")), 0);
    assert_int_equal(pseg_tensors_writer_new(&w, in_folder("full"), NULL), PSEG_OK);
    assert_int_equal(pseg_tensors_writer_declare(w, "b", 2, dims, NULL), PSEG_OK);
    pseg_err err = PSEG_ERR_INIT;
    assert_int_equal(pseg_tensors_writer_data(w, v, 6, &err), PSEG_EIO);
    assert_non_null(strstr(err.msg, "No space left"));
    pseg_tensors_writer_free(w);
    assert_int_equal(pseg_tensors_writer_new(&w, "/proc/no/such/file", NULL), PSEG_OK);
    assert_int_equal(pseg_tensors_writer_declare(w, "b", 2, dims, NULL), PSEG_OK);
    assert_int_equal(pseg_tensors_writer_data(w, v, 6, NULL), PSEG_ENOTFOUND);
    pseg_tensors_writer_free(w);
}

/* float16 ends at 65504: what is larger is refused by name, and the file of before stays. */
static void half_refuses_what_it_cannot_hold(void **state)
{
    const float good[] = {65504.0f, -65504.0f, 1e-8f};
    const float bad[] = {65505.0f, -65505.0f, 1e30f, INFINITY, -INFINITY, NAN};
    uint64_t dims[] = {3};
    pseg_tensors_writer *w;
    pseg_tensors *t;

    (void)state;
    for (size_t i = 0; i <= sizeof bad / sizeof *bad; i++) {
        float v[3] = {1, 2, i ? bad[i - 1] : 3};
        pseg_err err = PSEG_ERR_INIT;

        assert_int_equal(pseg_tensors_writer_new(&w, in_folder("half.safetensors"), NULL), PSEG_OK);
        pseg_tensors_writer_set_type(w, PSEG_F16);
        assert_int_equal(pseg_tensors_writer_declare(w, "w", 1, dims, NULL), PSEG_OK);
        if (i == 0) {
            assert_int_equal(pseg_tensors_writer_data(w, good, 3, NULL), PSEG_OK);
            assert_int_equal(pseg_tensors_writer_finish(w, NULL), PSEG_OK);
        } else {
            assert_int_equal(pseg_tensors_writer_data(w, v, 3, &err), PSEG_EUNSUPPORTED);
            assert_int_equal(err.reason, PSEG_R_MODEL_UNSUPPORTED);
            assert_non_null(strstr(err.msg, "half.safetensors"));
            assert_non_null(strstr(err.msg, "65504"));
        }
        pseg_tensors_writer_free(w);
    }
    assert_false(pseg_file_exists(in_folder("half.safetensors.new")));
    assert_int_equal(pseg_tensors_open_file(&t, in_folder("half.safetensors"), NULL), PSEG_OK);
    const uint16_t want[] = {0x7bff, 0xfbff, 0};
    const pseg_tensor *found = pseg_tensors_find(t, "w");
    assert_true(found && found->type == PSEG_TENSOR_F16);
    assert_memory_equal(found->data, want, sizeof want);
    pseg_tensors_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rate_rises_and_falls),
        cmocka_unit_test(area_is_a_mean),
        cmocka_unit_test(coarse_is_a_mean),
        cmocka_unit_test(order_is_the_upsamplers),
        cmocka_unit_test(first_weights_are_pytorchs),
        cmocka_unit_test(loader_goes_through_everything),
        cmocka_unit_test(scenes_are_the_same_again),
        cmocka_unit_test(kinds_are_drawn_by_weight),
        cmocka_unit_test(log_is_cut_where_a_run_goes_on),
        cmocka_unit_test(head_config_comes_back),
        cmocka_unit_test(half_refuses_what_it_cannot_hold),
    };
    char command[300];

    if (!mkdtemp(folder))
        return 1;
    int bad = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command) || bad;
}
