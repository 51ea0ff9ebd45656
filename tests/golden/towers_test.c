/* The frozen encoders alone give what the model's own run gives, and a table of a tower's
 * embeddings stands in for the tower. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/base/buf.h"
#include "common/base/file.h"
#include "common/base/half.h"
#include "tests/golden/golden.h"
#include "tests/support/skips.h"
#include "worker/model/text_table.h"
#include "worker/model/towers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODELS PSEG_TEST_SOURCE_DIR "/tests/golden/data/models/"

static pseg_cl *cl;
static pseg_err err;

#define OK(call)                                \
    do {                                        \
        if ((call) != PSEG_OK)                  \
            fail_msg("%s: %s", #call, err.msg); \
    } while (0)

static float *noise(size_t n)
{
    float *x = pseg_calloc(n, sizeof *x);
    uint32_t seed = 11;

    for (size_t i = 0; i < n; i++)
        x[i] = (float)(seed = seed * 1664525u + 1013904223u) / 4.3e9f * 4 - 2;
    return x;
}

static pseg_model *open_model(const char *folder, const char *text, pseg_precision p)
{
    pseg_model_source src = {.folder = folder, .text = text};
    pseg_model_options o = {.max_images = 2, .max_phrases = 3, .precision = p};
    pseg_model *m = NULL;

    OK(pseg_model_open(&m, cl, &src, &o, &err));
    return m;
}

/* ---- images ---- */

typedef struct seen {
    float *taps; /* [n_taps, n, places, hidden] */
    size_t n;
} seen;

static void see(void *ud, pseg_stream *s, const char *name, pseg_view v, size_t batch, size_t rows,
                size_t c)
{
    seen *x = ud;
    size_t n = batch * rows * c;

    if (strncmp(name, "vision.tap.", 11) != 0)
        return;
    x->taps = pseg_realloc(x->taps, (x->n + n) * sizeof *x->taps);
    if (v.type == PSEG_BF16) {
        uint16_t *half = pseg_malloc(2 * n);
        OK(pseg_mem_read(half, s, v.mem, 2 * v.off, 2 * n, &err));
        OK(pseg_stream_finish(s, &err));
        for (size_t i = 0; i < n; i++) {
            uint32_t word = (uint32_t)half[i] << 16;
            memcpy(&x->taps[x->n + i], &word, 4);
        }
        pseg_free(half);
    } else {
        OK(pseg_mem_read(x->taps + x->n, s, v.mem, 4 * v.off, 4 * n, &err));
        OK(pseg_stream_finish(s, &err));
    }
    x->n += n;
}

static void check_vision(const char *folder, const char *vision, pseg_precision precision)
{
    pseg_model *m = open_model(folder, NULL, precision);
    const pseg_model_info *mi = pseg_model_get_info(m);
    float *chw = noise(3 * 3 * (size_t)mi->height * mi->width);
    size_t image = 3 * (size_t)mi->height * mi->width;
    pseg_features *f[2];
    pseg_vision *v, *alone;
    seen x = {0};

    OK(pseg_vision_of_model(&v, m, &err));
    const pseg_vision_info *i = pseg_vision_get_info(v);
    size_t all = pseg_vision_numbers(v), each = all / i->n_taps;
    uint16_t *a = pseg_calloc(3 * all, 2), *b = pseg_calloc(3 * all, 2);

    /* What the neck takes in the model's own run, to float16. */
    pseg_model_set_stage_hook(m, see, &x);
    OK(pseg_model_encode_images(f, m, chw, 2, &err));
    pseg_model_set_stage_hook(m, NULL, NULL);
    assert_int_equal(x.n, 2 * all);
    OK(pseg_vision_run(a, v, chw, 3, &err)); /* two passes */
    for (size_t t = 0; t < i->n_taps; t++)
        for (size_t k = 0; k < 2; k++)
            for (size_t e = 0; e < each; e++)
                assert_int_equal(a[k * all + t * each + e],
                                 pseg_half_from_float(x.taps[(t * 2 + k) * each + e]));

    /* The encoder opened for itself gives the same bits, and calls itself the same. */
    pseg_vision_options o = {.n_taps = i->n_taps,
                             .is_tap_normed = i->is_tap_normed,
                             .height = i->height,
                             .width = i->width,
                             .max_images = 2,
                             .precision = precision};
    memcpy(o.taps, i->taps, sizeof o.taps);
    OK(pseg_vision_open(&alone, cl, vision, &o, &err));
    OK(pseg_vision_run(b, alone, chw, 3, &err));
    assert_memory_equal(a, b, 3 * all * 2);
    assert_string_equal(pseg_vision_get_info(alone)->digest, i->digest);
    assert_true(memcmp(a, a + all, 2 * all) != 0);

    chw[image] = NAN; /* of the second image */
    assert_int_equal(pseg_vision_run(b, alone, chw, 3, &err), PSEG_EUNSUPPORTED);

    pseg_vision_close(v);
    pseg_vision_close(alone);
    pseg_features_free(f[0]);
    pseg_features_free(f[1]);
    pseg_model_close(m);
    pseg_free(a);
    pseg_free(b);
    pseg_free(chw);
    pseg_free(x.taps);
}

static void vision_is_the_models(void **state)
{
    (void)state;
    check_vision(MODELS "pseg_pooled", MODELS "pseg_pooled/vision", PSEG_PRECISION_FP32);
    check_vision(MODELS "pseg_tokens", MODELS "pseg_tokens/vision", PSEG_PRECISION_FP32);
    check_vision(PSEG_TEST_SOURCE_DIR "/deploy/models/scenes",
                 PSEG_TEST_SOURCE_DIR "/deploy/models/scenes/vision", PSEG_PRECISION_BF16);
}

static void vision_refuses_what_does_not_fit(void **state)
{
    static const pseg_vision_options bad[] = {
        {.taps = {1}, .n_taps = 1},                                 /* no images */
        {.n_taps = 0, .max_images = 1},                             /* no taps */
        {.taps = {2, 1}, .n_taps = 2, .max_images = 1},             /* not ascending */
        {.taps = {99}, .n_taps = 1, .max_images = 1},               /* too deep */
        {.taps = {1}, .n_taps = 1, .max_images = 1, .height = 225}, /* no multiple */
    };
    pseg_vision *v;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(pseg_vision_open(&v, cl, MODELS "dinov2_tiny", &bad[i], &err),
                         PSEG_EINVAL);
    assert_int_equal(pseg_vision_open(&v, cl, "/nowhere", &bad[3], &err), PSEG_ENOTFOUND);
}

/* ---- phrases ---- */

static const char *const phrases[] = {"a red circle", "the small blue star", "A red  Circle",
                                      "left", "a red circle to the left of the star"};
enum { N = sizeof phrases / sizeof *phrases };

/* What the decoder projects, of the model's own run. */
typedef struct heard {
    float hidden[8192], embeds[8192];
    size_t n_hidden, n_embeds, length;
} heard;

static void hear(void *ud, pseg_stream *s, const char *name, pseg_view v, size_t batch, size_t rows,
                 size_t c)
{
    heard *h = ud;
    size_t n = batch * rows * c;

    if (strcmp(name, "text.hidden") == 0) {
        assert_true(n <= 8192);
        OK(pseg_mem_read(h->hidden, s, v.mem, 4 * v.off, 4 * n, &err));
        h->n_hidden = n;
        h->length = rows;
    } else if (strcmp(name, "text.embeds") == 0) {
        OK(pseg_mem_read(h->embeds, s, v.mem, 4 * v.off, 4 * n, &err));
        h->n_embeds = n;
    }
    OK(pseg_stream_finish(s, &err));
}

static void phrases_are_the_models(void **state)
{
    pseg_phrases_options o = {.max_phrases = 3, .has_words = true};
    pseg_model *m = open_model(MODELS "pseg_tokens", NULL, PSEG_PRECISION_FP32);
    pseg_phrases *p;
    pseg_prompt *prompts[1];
    uint32_t n_tokens[N];
    bool is_cut[N];

    (void)state;
    OK(pseg_phrases_open(&p, cl, MODELS "pseg_tokens/text", &o, &err));
    const pseg_phrases_info *i = pseg_phrases_get_info(p);
    size_t row = i->max_tokens - 1;
    float *pooled = pseg_calloc(N * i->dim, 4), *words = noise(N * row * i->hidden);
    OK(pseg_phrases_run(&(pseg_phrases_out){pooled, words, row, n_tokens, is_cut}, p, phrases, N,
                        &err));
    for (size_t k = 0; k < N; k++) {
        static heard h;
        double length = 0;
        pseg_model_set_stage_hook(m, hear, &h);
        OK(pseg_model_encode_texts(prompts, m, &phrases[k], 1, &err));
        pseg_model_set_stage_hook(m, NULL, NULL);
        assert_int_equal(n_tokens[k], pseg_prompt_n_tokens(prompts[0]));
        assert_int_equal(is_cut[k], pseg_prompt_is_cut(prompts[0]));
        assert_int_equal(h.length, n_tokens[k]);
        /* a row comes out the same whatever else the batch holds (text.h) */
        assert_memory_equal(words + k * row * i->hidden, h.hidden + i->hidden,
                            (n_tokens[k] - 1) * i->hidden * 4);
        for (size_t e = (n_tokens[k] - 1) * i->hidden; e < row * i->hidden; e++)
            assert_true(words[k * row * i->hidden + e] == 0);
        for (size_t e = 0; e < i->dim; e++)
            length += (double)h.embeds[e] * h.embeds[e];
        assert_int_equal(h.n_embeds, i->dim);
        for (size_t e = 0; e < i->dim; e++)
            assert_true(fabs(pooled[k * i->dim + e] - h.embeds[e] / sqrt(length)) < 1e-6);
        pseg_prompt_free(prompts[0]);
    }
    static const char *const bad[] = {"fine", "\xff"};
    assert_int_equal(pseg_phrases_run(&(pseg_phrases_out){.pooled = pooled}, p, bad, 2, &err),
                     PSEG_EINVAL);
    assert_string_equal(err.field, "prompts[1].text");
    pseg_free(pooled);
    pseg_free(words);
    pseg_phrases_close(p);
    pseg_model_close(m);
}

/* ---- tables ---- */

/* A folder with a table of the tower's embeddings of the first and the last two phrases. */
static void write_table(const char *dir, const char *tower)
{
    static const char *const names[] = {"a red circle", "Left",
                                        "a red circle to the left of the star"};
    pseg_phrases_options o = {.max_phrases = 4};
    pseg_phrases *p;
    pseg_buf b;
    char path[256], head[256];
    uint64_t n;

    OK(pseg_phrases_open(&p, cl, tower, &o, &err));
    uint32_t dim = pseg_phrases_get_info(p)->dim;
    float *pooled = pseg_calloc(3 * dim, 4);
    OK(pseg_phrases_run(&(pseg_phrases_out){.pooled = pooled}, p, names, 3, &err));
    pseg_phrases_close(p);
    snprintf(path, sizeof path, "%s/names.json", dir);
    static const char json[] =
        "[\"a red circle\", \"Left\", \"a red circle to the left of the star\"]";
    OK(pseg_file_write(path, json, strlen(json), &err));
    n = (uint64_t)snprintf(
        head, sizeof head,
        "{\"embeddings\":{\"dtype\":\"F32\",\"shape\":[3,%u],\"data_offsets\":[0,"
        "%u]}}",
        dim, 12 * dim);
    pseg_buf_init(&b, 1 << 20);
    OK(pseg_buf_append(&b, &n, 8, &err));
    OK(pseg_buf_append(&b, head, n, &err));
    OK(pseg_buf_append(&b, pooled, 12 * dim, &err));
    snprintf(path, sizeof path, "%s/embeddings.safetensors", dir);
    OK(pseg_file_write(path, b.data, b.len, &err));
    pseg_buf_deinit(&b);
    pseg_free(pooled);
}

static void a_table_stands_in_for_the_tower(void **state)
{
    static const char *const asked[] = {" A  red circle\n", "left",
                                        "A RED CIRCLE to the left of the star"};
    char dir[] = "/tmp/pseg-table-XXXXXX", command[64];
    float a[3][16384], b[3][16384], iou_a[3], iou_b[3];
    pseg_model *tower, *table;
    pseg_prompt *pa[3], *pb[3];
    pseg_features *fa[3], *fb[3];

    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_false(pseg_text_table_is(dir));
    write_table(dir, MODELS "pseg_pooled/text");
    assert_true(pseg_text_table_is(dir));
    tower = open_model(MODELS "pseg_pooled", NULL, PSEG_PRECISION_FP32);
    table = open_model(MODELS "pseg_pooled", dir, PSEG_PRECISION_FP32);
    const pseg_model_info *i = pseg_model_get_info(table);
    size_t mask = (size_t)i->mask_height * i->mask_width;
    float *chw = noise(3 * 3 * (size_t)i->height * i->width);
    assert_true(mask <= 16384);
    assert_string_not_equal(i->digest, pseg_model_get_info(tower)->digest);
    assert_int_equal(i->max_tokens, 1);
    OK(pseg_model_warm_up(table, &err));
    OK(pseg_model_encode_images(fa, tower, chw, 3, &err));
    OK(pseg_model_encode_images(fb, table, chw, 3, &err));
    OK(pseg_model_encode_texts(pa, tower, asked, 3, &err));
    OK(pseg_model_encode_texts(pb, table, asked, 3, &err));
    OK(pseg_model_decode(&a[0][0], iou_a, tower, (const pseg_features *const *)fa,
                         (const pseg_prompt *const *)pa, 3, &err));
    OK(pseg_model_decode(&b[0][0], iou_b, table, (const pseg_features *const *)fb,
                         (const pseg_prompt *const *)pb, 3, &err));
    for (size_t e = 0; e < 3 * mask; e++)
        assert_true(fabsf((&a[0][0])[e] - (&b[0][0])[e]) < 1e-4f * (1 + fabsf((&a[0][0])[e])));
    for (int k = 0; k < 3; k++) {
        assert_true(fabsf(iou_a[k] - iou_b[k]) < 1e-5f);
        pseg_prompt_free(pa[k]);
        pseg_prompt_free(pb[k]);
        pseg_features_free(fa[k]);
        pseg_features_free(fb[k]);
    }

    static const char *const lacking[] = {"left", "a red circel"};
    assert_int_equal(pseg_model_encode_texts(pb, table, lacking, 2, &err), PSEG_EINVAL);
    assert_int_equal(err.reason, PSEG_R_PROMPT_UNKNOWN);
    assert_string_equal(err.field, "prompts[1].text");
    assert_string_equal(err.value, "a red circel");
    assert_non_null(
        strstr(err.msg, "lacks \"a red circel\"; the nearest it has: \"a red circle\""));
    pseg_model_close(tower);
    pseg_model_close(table);

    pseg_model_source src = {.folder = MODELS "pseg_tokens", .text = dir};
    pseg_model_options o = PSEG_MODEL_OPTIONS_DEFAULT;
    assert_int_equal(pseg_model_open(&table, cl, &src, &o, &err), PSEG_EINVAL);
    assert_int_equal(err.reason, PSEG_R_MODEL_MISMATCH);
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
    pseg_free(chw);
}

static void put(const char *dir, const char *name, const char *text)
{
    char path[256];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    OK(pseg_file_write(path, text, strlen(text), &err));
}

static void tables_that_are_wrong_are_refused(void **state)
{
    static const char *const names[] = {"{}",      "[]", "[5]", "[\"a\", \"b\", \"A \"]",
                                        "[\"a\"]", "["};
    char dir[] = "/tmp/pseg-table-XXXXXX", command[64];
    pseg_text_table *t;

    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(pseg_text_table_open(&t, dir, &err), PSEG_ENOTFOUND);
    write_table(dir, MODELS "pseg_pooled/text");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        put(dir, "names.json", names[i]);
        assert_int_equal(pseg_text_table_open(&t, dir, &err), PSEG_ECORRUPT);
    }
    put(dir, "names.json", "[\"a\", \"b\", \"c\"]");
    OK(pseg_text_table_open(&t, dir, &err));
    pseg_text_table_close(t);
    put(dir, "embeddings.safetensors", "12345678");
    assert_int_equal(pseg_text_table_open(&t, dir, &err), PSEG_ECORRUPT);
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

static void reads_the_table_of_coco_names(void **state)
{
    pseg_text_table *t;
    uint32_t row;

    (void)state;
    if (!pseg_text_table_is(PSEG_TEST_DATA_DIR "/clip_text_table"))
        skip_here();
    OK(pseg_text_table_open(&t, PSEG_TEST_DATA_DIR "/clip_text_table", &err));
    assert_int_equal(pseg_text_table_count(t), 80);
    assert_int_equal(pseg_text_table_dim(t), 512);
    OK(pseg_text_table_find(&row, t, "Traffic Light", &err));
    assert_string_equal(pseg_text_table_name(t, row), "traffic light");
    assert_int_equal(pseg_text_table_find(&row, t, "the dog", &err), PSEG_EINVAL);
    assert_non_null(strstr(err.msg, "\"dog\""));
    pseg_text_table_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vision_is_the_models),
        cmocka_unit_test(vision_refuses_what_does_not_fit),
        cmocka_unit_test(phrases_are_the_models),
        cmocka_unit_test(a_table_stands_in_for_the_tower),
        cmocka_unit_test(tables_that_are_wrong_are_refused),
        cmocka_unit_test(reads_the_table_of_coco_names),
    };

    cl = gold_cl();
    int failed = with_skips(cmocka_run_group_tests(tests, NULL, NULL));
    pseg_cl_close(cl);
    return failed;
}
