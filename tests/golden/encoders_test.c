/* Image and text encoders, block by block, against the reference: every supported family at several
 * sizes, then the published shapes of DINOv2-base and CLIP ViT-B/16. */
#include "tests/golden/golden.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/model/interpolate.h"
#include "worker/model/text.h"
#include "worker/model/vit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pseg_cl *cl;
static pseg_dtype weights; /* of the runs */
static pseg_stream *stream;
static bool all_good = true;

static void must(pseg_status rc, const char *what, const pseg_err *err)
{
    gold_must(rc == PSEG_OK, what, err);
}

/* ---- position embeddings --------------------------------------------------------------------- */

static void test_pos_embed(void)
{
    static const char *const ignored[] = {"stored.", NULL};
    pseg_err err = PSEG_ERR_INIT;
    gold g;

    gold_open(&g, "pos_embed.stages");
    for (size_t i = 0; i < pseg_tensors_count(g.file); i++) {
        const char *name = pseg_tensors_at(g.file, i)->name;
        bool is_wide = strncmp(name, "registers.", 10) == 0;
        char key[64], label[96];
        unsigned side, h, w;
        if (sscanf(name, is_wide ? "registers.%u.%ux%u" : "plain.%u.%ux%u", &side, &h, &w) != 3)
            continue;
        snprintf(key, sizeof key, "stored.%u", side);
        const pseg_tensor *t = gold_need(&g, key, PSEG_TENSOR_F32);
        size_t n = (1 + (size_t)h * w) * 3;
        float *src = pseg_malloc(t->bytes), *out = pseg_malloc(n * sizeof *out);
        gold_must(src && out && t->n == 3 * (1 + (size_t)side * side), key, NULL);
        memcpy(src, t->data, t->bytes);
        memcpy(out, src, 3 * sizeof *out);
        must(pseg_interpolate_bicubic(out + 3, h, w, src + 3, side, side, 3, is_wide, &err), name,
             &err);
        snprintf(label, sizeof label, "%s", name);
        gold_compare(&g, label, out, 1 + (size_t)h * w, 3, false);
        pseg_free(src);
        pseg_free(out);
    }
    all_good &= gold_close(&g, ignored);
}

/* ---- image encoders -------------------------------------------------------------------------- */

/* One run at gh x gw, every block watched, and the last tap through the final layer norm. */
static void run_vision(gold *g, const char *prefix, const pseg_vit_config *c, pseg_weights *w,
                       pseg_vit_names names, const float *pixels, uint32_t batch, uint32_t gh,
                       uint32_t gw)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_store *store;
    pseg_vit *v;
    pseg_view in;
    gold_watch watch = {.g = g, .prefix = prefix};
    pseg_stage st = {stream, gold_hook, &watch};
    size_t n = 3 * (size_t)batch * gh * gw * c->patch * c->patch;
    size_t places = (size_t)gh * gw, tokens = 1 + c->n_regs + places, d = c->hidden;
    uint32_t tap = c->layers;
    char key[96];

    must(pseg_store_new(&store, cl, &err), prefix, &err);
    pseg_store_set_type(store, weights);
    must(pseg_vit_new(&v, store, w, names, c, &tap, 1, true, gh, gw, batch, &err), prefix, &err);
    must(pseg_store_scratch(&in, store, n, &err), prefix, &err);
    must(pseg_mem_write(stream, in.mem, 0, pixels, n * sizeof *pixels, &err), prefix, &err);
    must(pseg_vit_run(v, &st, in, batch, &err), prefix, &err);
    /* The reference's final norm has CLS and registers too; taps have only patches. */
    snprintf(key, sizeof key, "%svision.final_norm", prefix);
    const pseg_tensor *t = gold_find(g, key);
    if (t) {
        float *got = gold_read(stream, pseg_vit_tap(v, 0), batch * places * d);
        float *want = pseg_malloc(t->bytes);
        gold_must(want && t->n == batch * tokens * d, key, NULL);
        memcpy(want, t->data, t->bytes);
        double error = 0, power = 0;
        for (uint32_t b = 0; b < batch; b++)
            for (size_t i = 0; i < places * d; i++) {
                double x = want[(b * tokens + tokens - places) * d + i];
                double e = got[b * places * d + i] - x;
                error += e * e;
                power += x * x;
            }
        g->n_compared++;
        if (!(error <= 1e-9 * power)) {
            printf("  %s %s: NMSE %.3g, allowed 1e-9\n", g->name, key, error / power);
            g->n_failed++;
        }
        pseg_free(got);
        pseg_free(want);
    }
    pseg_vit_free(v);
    pseg_store_free(store);
}

/* made_from: another folder with the same numbers, whose results are to come out; or NULL. */
static void test_vision_folder(const char *name, const char *made_from, uint64_t params)
{
    static const char *const ignored[] = {".vision.block.", NULL};
    pseg_err err = PSEG_ERR_INIT;
    pseg_vit_config c;
    pseg_tensors *file;
    pseg_weights *w;
    pseg_specs specs = {0};
    const char *prefix;
    pseg_vit_names names;
    char path[512], stages[64];
    gold g;

    snprintf(path, sizeof path, GOLD_DATA "models/%s", name);
    snprintf(stages, sizeof stages, "%s.stages", made_from ? made_from : name);
    gold_open(&g, stages);
    must(pseg_vit_config_read(&c, path, &err), name, &err);
    must(pseg_tensors_open_folder(&file, path, &err), name, &err);
    must(pseg_vit_detect(&prefix, &names, file, &err), name, &err);
    must(pseg_vit_specs(&specs, &c, names, &err), name, &err);
    must(pseg_weights_from_tensors(&w, file, prefix, &err), name, &err);
    must(pseg_weights_check(w, &specs, &err), name, &err);
    if (params && pseg_specs_params(&specs) != params) {
        printf("  %s: %llu parameters, expected %llu\n", name,
               (unsigned long long)pseg_specs_params(&specs), (unsigned long long)params);
        all_good = false;
    }
    for (size_t i = 0; i < pseg_tensors_count(g.file); i++) {
        const pseg_tensor *t = pseg_tensors_at(g.file, i);
        unsigned h, wd;
        char key[96], at[32];
        if (!strstr(t->name, "pixel_values") || sscanf(t->name, "%ux%u.", &h, &wd) != 2)
            continue;
        snprintf(at, sizeof at, "%ux%u.", h, wd);
        snprintf(key, sizeof key, "%spixel_values", at);
        t = gold_need(&g, key, PSEG_TENSOR_F32);
        float *pixels = pseg_malloc(t->bytes);
        gold_must(pixels && t->rank == 4, key, NULL);
        memcpy(pixels, t->data, t->bytes);
        run_vision(&g, at, &c, w, names, pixels, (uint32_t)t->dims[0], h / c.patch, wd / c.patch);
        pseg_free(pixels);
    }
    pseg_specs_deinit(&specs);
    pseg_weights_free(w);
    pseg_tensors_close(file);
    all_good &= gold_close(&g, ignored);
}

/* README's pattern: row y, column x. */
static void pattern(float *chw, size_t h, size_t w)
{
    for (size_t y = 0; y < h; y++)
        for (size_t x = 0; x < w; x++) {
            size_t v[3] = {x * y / 32 % 256, 255 - (x + 256 * 256 - y) % 256,
                           ((x ^ y) * 3 + 20 * ((x / 28 + y / 28) % 2)) % 256};
            for (size_t k = 0; k < 3; k++)
                chw[(k * h + y) * w + x] = ((float)v[k] / 255.0f - 0.5f) / 0.5f;
        }
}

/* Real weights under timm's names. */
static void test_vit_tiny_real(void)
{
    static const char *const ignored[] = {".vision.final_norm", ".cls", NULL};
    static const uint32_t sizes[][2] = {{224, 224}, {256, 320}};
    static const char folder[] = PSEG_TEST_DATA_DIR "/vit_tiny";
    pseg_err err = PSEG_ERR_INIT;
    pseg_vit_config c;
    pseg_tensors *file;
    pseg_weights *w;
    const char *prefix;
    pseg_vit_names names;
    gold g;

    if (!pseg_file_exists(folder)) {
        printf("skip vit_tiny_real: no %s\n", folder);
        return;
    }
    gold_open(&g, "vit_tiny_real.sampled");
    must(pseg_vit_config_read(&c, folder, &err), folder, &err);
    must(pseg_tensors_open_folder(&file, folder, &err), folder, &err);
    must(pseg_vit_detect(&prefix, &names, file, &err), folder, &err);
    gold_must(names == PSEG_VIT_NAMES_TIMM, "timm's names", NULL);
    must(pseg_weights_from_tensors(&w, file, prefix, &err), folder, &err);
    for (size_t i = 0; i < 2; i++) {
        uint32_t h = sizes[i][0], wd = sizes[i][1];
        float *pixels = pseg_malloc(3 * sizeof *pixels * h * wd);
        char at[32];
        gold_must(pixels, folder, NULL);
        pattern(pixels, h, wd);
        snprintf(at, sizeof at, "%ux%u.", h, wd);
        run_vision(&g, at, &c, w, names, pixels, 1, h / c.patch, wd / c.patch);
        pseg_free(pixels);
    }
    pseg_weights_free(w);
    pseg_tensors_close(file);
    all_good &= gold_close(&g, ignored);
}

static void test_dinov2_base(void)
{
    static const char *const ignored[] = {"vision.final_norm", NULL};
    pseg_err err = PSEG_ERR_INIT;
    pseg_vit_config c;
    pseg_specs specs = {0};
    pseg_weights *w;
    size_t n = 3 * 224 * 224;
    float *pixels = pseg_malloc(n * sizeof *pixels);
    gold g;

    gold_open(&g, "dinov2_base.sampled");
    gold_must(pixels && pseg_vit_config_preset(&c, "dinov2-base"), "dinov2-base", NULL);
    must(pseg_vit_specs(&specs, &c, PSEG_VIT_NAMES_HF, &err), "dinov2-base", &err);
    gold_must(pseg_specs_params(&specs) == 86580480, "parameters of dinov2-base", NULL);
    gold_formula f = {"dinov2_base", &specs};
    must(pseg_weights_from_fn(&w, gold_fill, &f, &err), "dinov2-base", &err);
    gold_fill_as(pixels, n, "dinov2_base:pixel_values", 0, 1.75f);
    run_vision(&g, "", &c, w, PSEG_VIT_NAMES_HF, pixels, 1, 16, 16);
    pseg_free(pixels);
    pseg_weights_free(w);
    pseg_specs_deinit(&specs);
    all_good &= gold_close(&g, ignored);
}

/* ---- text encoders --------------------------------------------------------------------------- */

static void run_text(gold *g, const char *prefix, pseg_text *text, const pseg_clip_config *c,
                     int64_t eos)
{
    pseg_err err = PSEG_ERR_INIT;
    gold_watch watch = {.g = g, .prefix = prefix};
    pseg_stage st = {stream, gold_hook, &watch};
    int32_t ids[128];
    uint32_t length, first_eos;
    char key[96];

    snprintf(key, sizeof key, "%sids", prefix);
    const pseg_tensor *t = gold_need(g, key, PSEG_TENSOR_I64);
    gold_must(t->n <= 128, key, NULL);
    length = (uint32_t)t->n;
    first_eos = length;
    for (uint32_t i = length; i-- > 0;) {
        int64_t id;
        memcpy(&id, t->data + 8 * (size_t)i, 8);
        ids[i] = (int32_t)id;
        if (id == eos)
            first_eos = i;
    }
    gold_must(first_eos < length, "EOS in ids", NULL);
    first_eos++;
    pseg_text_phrases p = {.ids = ids, .lens = &first_eos, .row = length, .batch = 1};
    pseg_text_rows rows;
    /* Once for EOS alone and once for all tokens; what stands behind EOS is not computed. */
    g->may_be_short = true;
    for (int k = 0; k < 2; k++) {
        p.has_words = k;
        must(pseg_text_run(&rows, text, &st, &p, &err), prefix, &err);
        gold_must(rows.n == first_eos && rows.length == first_eos && !rows.hidden.mem == !k,
                  "rows of a phrase", NULL);
    }
    g->may_be_short = false;
    snprintf(key, sizeof key, "%stext.normalised", prefix);
    float *e = gold_read(stream, rows.embeds, c->proj);
    double sum = 0;
    for (uint32_t i = 0; i < c->proj; i++)
        sum += (double)e[i] * e[i];
    for (uint32_t i = 0; i < c->proj; i++)
        e[i] = (float)(e[i] / sqrt(sum));
    gold_compare(g, key, e, 1, c->proj, false);
    pseg_free(e);
}

static void test_text(const char *name, const char *folder, const char *const *cases, int64_t eos)
{
    static const char *const ignored[] = {".layer.0.", NULL};
    pseg_err err = PSEG_ERR_INIT;
    pseg_clip_config c;
    pseg_tensors *file = NULL;
    pseg_weights *w;
    pseg_store *store;
    pseg_text *text;
    pseg_specs specs = {0};
    const char *prefix = "text_model.";
    gold_formula f;
    gold g;

    gold_open(&g, name);
    if (folder) {
        must(pseg_clip_config_read(&c, folder, &err), name, &err);
        must(pseg_tensors_open_folder(&file, folder, &err), name, &err);
        must(pseg_text_detect(&prefix, file, &err), name, &err);
        must(pseg_weights_from_tensors(&w, file, "", &err), name, &err);
    } else
        pseg_clip_config_default(&c);
    must(pseg_text_specs(&specs, &c, prefix, &err), name, &err);
    if (!folder) {
        gold_must(pseg_specs_params(&specs) == 63428096, "parameters of CLIP's text tower", NULL);
        f = (gold_formula){"clip_base", &specs};
        must(pseg_weights_from_fn(&w, gold_fill, &f, &err), name, &err);
    }
    must(pseg_weights_check(w, &specs, &err), name, &err);
    must(pseg_store_new(&store, cl, &err), name, &err);
    pseg_store_set_type(store, weights);
    must(pseg_text_new(&text, store, w, prefix, &c, c.max_pos, 1, &err), name, &err);
    for (; *cases; cases++)
        run_text(&g, *cases, text, &c, eos);
    pseg_text_free(text);
    pseg_store_free(store);
    pseg_weights_free(w);
    pseg_specs_deinit(&specs);
    pseg_tensors_close(file);
    all_good &= gold_close(&g, ignored);
}

int main(void)
{
    static const char *const tiny[] = {"len2.",   "len3.",  "len7.", "len16.",
                                       "padded.", "added.", NULL};
    static const char *const legacy[] = {"len2.", "len3.", "len7.", "len16.", "padded.", NULL};
    static const char *const base[] = {"short.", "long.", NULL};
    pseg_err err = PSEG_ERR_INIT;

    test_pos_embed();
    cl = gold_cl();
    must(pseg_stream_open(&stream, cl, &err), "stream", &err);
    static const pseg_dtype types[] = {PSEG_F32, PSEG_BF16X2};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        weights = types[i];
        printf("weights in %s\n", weights == PSEG_F32 ? "float32" : "two bfloat16");
        test_vision_folder("dinov2_tiny", NULL, 0);
        test_vision_folder("dinov2_reg_tiny", NULL, 0);
        test_vision_folder("dinov2_swiglu_tiny", NULL, 0);
        test_vision_folder("vit_tiny_hf", NULL, 0);
        test_vision_folder("vit_tiny_timm", "vit_tiny_hf", 0);
        test_vision_folder("dinov2_d64", NULL, 0);
        test_text("clip_text_tiny.stages", GOLD_DATA "models/clip_text_tiny", tiny, 577);
        test_text("clip_legacy_tiny.stages", GOLD_DATA "models/clip_legacy_tiny", legacy, 577);
        test_vit_tiny_real();
        test_dinov2_base();
        test_text("clip_base.sampled", NULL, base, 49407);
    }
    pseg_stream_close(stream);
    pseg_cl_close(cl);
    return all_good ? 0 : 1;
}
