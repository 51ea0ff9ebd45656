/* PSEG as a whole against the reference: from a photo and a phrase to the mask, every stage on the
 * way; and the head at its reference shape. */
#include "tests/golden/golden.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/image/image.h"
#include "worker/model/decoder.h"
#include "worker/model/neck.h"
#include "worker/model/sam.h"
#include "worker/text/tokenizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PHOTOS  2
#define PHRASES 3

static pseg_cl *cl;
static pseg_precision precision; /* of the runs */

/* In 17 bits the encoders keep float32's tolerance (encoders_test.c); logits, small sums of large
 * terms, are off by 5e-9 at most. */
static double allowance(void)
{
    return precision == PSEG_PRECISION_BF16X3 ? 10 : 1;
}
static bool all_good = true;

static void must(pseg_status rc, const char *what, const pseg_err *err)
{
    gold_must(rc == PSEG_OK, what, err);
}

typedef struct photo {
    float *chw, rect[4];
    uint32_t width, height;
} photo;

/* Decodes and preprocesses the photo as the model asks, and compares that too. */
static void read_photo(photo *out, gold *g, const pseg_model_info *info, const char *file, size_t k)
{
    static const pseg_image_fit fits[] = {[PSEG_MODEL_SQUASH] = PSEG_IMAGE_SQUASH,
                                          [PSEG_MODEL_LETTERBOX] = PSEG_IMAGE_LETTERBOX,
                                          [PSEG_MODEL_CENTRE_CROP] = PSEG_IMAGE_CENTRE_CROP};
    const pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_preprocess how = {.fit = fits[info->fit],
                           .width = info->width,
                           .height = info->height,
                           .resize_edge = info->resize_edge};
    size_t places = (size_t)info->width * info->height, n;
    pseg_image *image;
    uint8_t *data;
    char name[96];

    memcpy(how.mean, info->mean, sizeof how.mean);
    memcpy(how.std, info->std, sizeof how.std);
    snprintf(name, sizeof name, GOLD_DATA "%s", file);
    must(pseg_file_read(&data, &n, name, 1 << 20, &err), file, &err);
    must(pseg_image_decode(&image, data, n, &limits, &err), file, &err);
    out->width = image->width;
    out->height = image->height;
    out->chw = pseg_malloc(3 * places * sizeof *out->chw);
    gold_must(out->chw, file, NULL);
    must(pseg_image_preprocess(out->chw, out->rect, image, &how, &err), file, &err);
    snprintf(name, sizeof name, "photo.%zu.pixel_values", k);
    gold_compare(g, name, out->chw, 3, places, false);
    snprintf(name, sizeof name, "photo.%zu.rect", k);
    gold_compare(g, name, out->rect, 1, 4, false);
    pseg_image_free(image);
    pseg_free(data);
}

/* README: bilinear with half-pixel centres, -100 where the grid does not reach. */
static void enlarge(double *out, const float *logits, const pseg_model_info *info, const photo *p)
{
    const float *r = p->rect;
    uint32_t gh = info->mask_height, gw = info->mask_width;

    for (uint32_t y = 0; y < p->height; y++)
        for (uint32_t x = 0; x < p->width; x++) {
            double px = x + 0.5, py = y + 0.5;
            double *to = &out[(size_t)y * p->width + x];
            if (px < r[0] || px > r[2] || py < r[1] || py > r[3]) {
                *to = -100;
                continue;
            }
            double u = (px - r[0]) / (r[2] - r[0]) * gw - 0.5;
            double v = (py - r[1]) / (r[3] - r[1]) * gh - 0.5;
            u = fmin(fmax(u, 0), gw - 1);
            v = fmin(fmax(v, 0), gh - 1);
            size_t i = (size_t)u, j = (size_t)v;
            size_t i1 = i + 1 < gw ? i + 1 : i, j1 = j + 1 < gh ? j + 1 : j;
            double a = u - (double)i, b = v - (double)j;
            *to = (1 - b) * ((1 - a) * logits[j * gw + i] + a * logits[j * gw + i1]) +
                  b * ((1 - a) * logits[j1 * gw + i] + a * logits[j1 * gw + i1]);
        }
}

/* The mask must be the reference's, pixel for pixel, but where the logit is within 1e-3 of the
 * threshold. */
static void check_mask(gold *g, const char *pair, const float *logits, const pseg_model_info *info,
                       const photo *p)
{
    size_t n = (size_t)p->width * p->height, n_near = 0, n_wrong = 0;
    double *big = pseg_malloc(n * sizeof *big);
    float *rounded = pseg_malloc(n * sizeof *rounded);
    char name[96];
    const pseg_tensor *t;

    gold_must(big && rounded, pair, NULL);
    enlarge(big, logits, info, p);
    for (size_t i = 0; i < n; i++)
        rounded[i] = (float)big[i];
    snprintf(name, sizeof name, "%sphoto_logits", pair);
    gold_compare(g, name, rounded, p->height, p->width, false);
    snprintf(name, sizeof name, "%smask", pair);
    t = gold_find(g, name);
    gold_must(t && t->bytes == n, name, NULL);
    for (size_t i = 0; i < n; i++) {
        bool is_near = fabs(big[i]) < 1e-3;
        n_near += is_near;
        n_wrong += !is_near && (big[i] > 0) != (t->data[i] != 0);
    }
    g->n_compared++;
    if (n_wrong || n_near * 100 > n) {
        printf("  %s: %zu pixels differ, %zu of %zu are near the threshold\n", name, n_wrong,
               n_near, n);
        g->n_failed++;
    }
    pseg_free(big);
    pseg_free(rounded);
}

static void check_ids(gold *g, const pseg_tokenizer *t, const char *phrase, uint32_t max, size_t j)
{
    pseg_err err = PSEG_ERR_INIT;
    char name[64];
    int32_t ids[128];
    size_t n;

    snprintf(name, sizeof name, "phrase.%zu.ids", j);
    const pseg_tensor *want = gold_need(g, name, PSEG_TENSOR_I64);
    must(pseg_tokenizer_encode(ids, max, &n, NULL, t, phrase, strlen(phrase), &err), phrase, &err);
    bool good = n == want->n;
    for (size_t i = 0; good && i < n; i++) {
        int64_t id;
        memcpy(&id, want->data + 8 * i, 8);
        good = id == ids[i];
    }
    g->n_compared++;
    if (!good) {
        printf("  %s %s: other ids for \"%s\"\n", g->name, name, phrase);
        g->n_failed++;
    }
}

static void decode_photo(gold *g, pseg_model *m, const photo *p, pseg_features *const f,
                         pseg_prompt *const *prompts, size_t k)
{
    const pseg_model_info *info = pseg_model_get_info(m);
    size_t mask = (size_t)info->mask_height * info->mask_width;
    const pseg_features *images[PHRASES] = {f, f, f};
    float *logits = pseg_malloc(PHRASES * mask * sizeof *logits), iou[PHRASES];
    gold_watch watch = {.g = g, .n_items = PHRASES};
    pseg_err err = PSEG_ERR_INIT;
    char name[96];

    gold_must(logits, "memory", NULL);
    for (size_t j = 0; j < PHRASES; j++)
        snprintf(watch.items[j], sizeof watch.items[j], "pair.%zu.%zu.", k, j);
    pseg_model_set_stage_hook(m, gold_hook, &watch);
    must(pseg_model_decode(logits, iou, m, images, (const pseg_prompt *const *)prompts, PHRASES,
                           &err),
         "decode", &err);
    pseg_model_set_stage_hook(m, NULL, NULL);
    for (size_t j = 0; j < PHRASES; j++) {
        snprintf(name, sizeof name, "%siou", watch.items[j]);
        gold_compare(g, name, &iou[j], 1, 1, false);
        check_mask(g, watch.items[j], logits + j * mask, info, p);
    }
    pseg_free(logits);
}

/* Room for more than there is must not change anything: max_images >= 2, max_phrases >= 3. */
static void test_folder(const char *name, uint32_t max_images, uint32_t max_phrases)
{
    /* Row 0 of text.prompt; and where words are no prompt they are not computed to the end. */
    const char *const ignored[] = {".text.pooled",
                                   strcmp(name, "pseg_pooled") ? NULL : ".text.hidden", NULL};
    pseg_model_options o = PSEG_MODEL_OPTIONS_DEFAULT;
    pseg_model_source src = {0};
    pseg_err err = PSEG_ERR_INIT;
    pseg_tokenizer *t;
    pseg_model *m;
    gold_watch images = {.n_items = PHOTOS, .items = {"photo.0.", "photo.1."}};
    gold_watch texts = {.n_items = PHRASES, .items = {"phrase.0.", "phrase.1.", "phrase.2."}};
    photo photos[PHOTOS];
    pseg_features *features[PHOTOS];
    pseg_prompt *prompts[PHRASES];
    const char *phrases[PHRASES];
    char path[512], key[32];
    gold g;

    snprintf(path, sizeof path, "%s.stages", name);
    gold_open(&g, path);
    g.allowance = allowance();
    snprintf(path, sizeof path, GOLD_DATA "models/%s", name);
    src.folder = path;
    o.precision = precision;
    o.max_images = max_images;
    o.max_phrases = max_phrases;
    must(pseg_model_open(&m, cl, &src, &o, &err), name, &err);
    const pseg_model_info *info = pseg_model_get_info(m);
    size_t image = 3 * (size_t)info->width * info->height;
    float *both = pseg_malloc(PHOTOS * image * sizeof *both);
    gold_must(both, "memory", NULL);
    for (size_t k = 0; k < PHOTOS; k++) {
        snprintf(key, sizeof key, "photo.%zu", k);
        read_photo(&photos[k], &g, info, pseg_tensors_metadata(g.file, key), k);
        memcpy(both + k * image, photos[k].chw, image * sizeof *both);
    }
    images.g = texts.g = &g;
    pseg_model_set_stage_hook(m, gold_hook, &images);
    must(pseg_model_encode_images(features, m, both, PHOTOS, &err), name, &err);
    snprintf(path, sizeof path, GOLD_DATA "models/%s/text", name);
    must(pseg_tokenizer_open(&t, path, &err), path, &err);
    for (size_t j = 0; j < PHRASES; j++) {
        snprintf(key, sizeof key, "phrase.%zu", j);
        phrases[j] = pseg_tensors_metadata(g.file, key);
        check_ids(&g, t, phrases[j], info->max_tokens, j);
    }
    pseg_model_set_stage_hook(m, gold_hook, &texts);
    must(pseg_model_encode_texts(prompts, m, phrases, PHRASES, &err), name, &err);
    gold_must(pseg_prompt_is_cut(prompts[2]) && !pseg_prompt_is_cut(prompts[0]), "cut", NULL);
    for (size_t k = 0; k < PHOTOS; k++)
        decode_photo(&g, m, &photos[k], features[k], prompts, k);
    for (size_t j = 0; j < PHRASES; j++)
        pseg_prompt_free(prompts[j]);
    for (size_t k = 0; k < PHOTOS; k++) {
        pseg_features_free(features[k]);
        pseg_free(photos[k].chw);
    }
    pseg_free(both);
    pseg_tokenizer_free(t);
    pseg_model_close(m);
    all_good &= gold_close(&g, ignored);
}

/* The head at its reference shape, on taps and a text embedding by formula. */
static void test_head(void)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_head_config c;
    pseg_specs specs = {0};
    pseg_weights *w;
    pseg_store *store;
    pseg_neck *neck;
    pseg_decoder *d;
    pseg_stream *s;
    pseg_view taps[4], embeds, prompt;
    pseg_mem *image, *phrase;
    gold g;

    gold_open(&g, "pseg1.sampled");
    g.allowance = allowance();
    pseg_head_config_default(&c);
    must(pseg_neck_specs(&specs, &c, &err), "head", &err);
    must(pseg_decoder_specs(&specs, &c, &err), "head", &err);
    gold_must(pseg_specs_params(&specs) == 9254913, "parameters of PSEG-1", NULL);
    gold_formula f = {"pseg1", &specs};
    must(pseg_stream_open(&s, cl, &err), "stream", &err);
    must(pseg_weights_from_fn(&w, gold_fill, &f, &err), "head", &err);
    must(pseg_store_new(&store, cl, &err), "head", &err);
    if (precision == PSEG_PRECISION_BF16X3)
        pseg_store_set_type(store, PSEG_BF16X2);
    must(pseg_neck_new(&neck, store, w, &c, 16, 16, 1, &err), "head", &err);
    pseg_decoder_limits limits = {16, 16, 1, 1};
    must(pseg_decoder_new(&d, store, w, &c, &limits, &err), "head", &err);
    gold_watch watch = {.g = &g, .prefix = ""};
    pseg_stage st = {s, gold_hook, &watch};
    size_t n = 768 * 256;
    float *planar = pseg_malloc(n * sizeof *planar), *turned = pseg_malloc(n * sizeof *turned);
    gold_must(planar && turned, "memory", NULL);
    for (size_t i = 0; i < 4; i++) {
        char key[32];
        snprintf(key, sizeof key, "pseg1:input.tap.%zu", i);
        gold_fill_as(planar, n, key, 0, 1.75f);
        for (size_t k = 0; k < n; k++)
            turned[k % 256 * 768 + k / 256] = planar[k];
        must(pseg_store_scratch(&taps[i], store, n, &err), "head", &err);
        must(pseg_mem_write(s, taps[i].mem, 0, turned, n * sizeof *turned, &err), "head", &err);
        must(pseg_stream_finish(s, &err), "head", &err);
    }
    gold_fill_as(planar, 512, "pseg1:input.text_embeds", 0, 1);
    must(pseg_store_scratch(&embeds, store, 512, &err), "head", &err);
    must(pseg_mem_write(s, embeds.mem, 0, planar, 512 * sizeof *planar, &err), "head", &err);
    must(pseg_neck_run(neck, &st, taps, 1, &err), "head", &err);
    must(pseg_decoder_prompts(&prompt, d, &st, &(pseg_text_rows){.embeds = embeds}, 1, &err),
         "head", &err);
    float *pooled = gold_read(s, prompt, 256);
    gold_compare(&g, "text.pooled", pooled, 1, 256, false);
    pseg_free(pooled);
    image = pseg_neck_out(neck).mem;
    phrase = prompt.mem;
    pseg_decoder_input in = {image, phrase, 1};
    must(pseg_decoder_run(d, &st, &in, 1, &err), "head", &err);
    must(pseg_stream_finish(s, &err), "head", &err);
    pseg_free(planar);
    pseg_free(turned);
    pseg_decoder_free(d);
    pseg_neck_free(neck);
    pseg_store_free(store);
    pseg_weights_free(w);
    pseg_specs_deinit(&specs);
    pseg_stream_close(s);
    all_good &= gold_close(&g, NULL);
}

/* A head that starts from SAM: every tensor that changes, and that no other does. */
static void test_sam(void)
{
    static const char sam_folder[] = GOLD_DATA "models/sam_tiny";
    pseg_err err = PSEG_ERR_INIT;
    pseg_head_config c;
    pseg_specs specs = {0};
    pseg_tensors *head;
    pseg_weights *w;
    pseg_sam *sam;
    gold g;

    gold_open(&g, "sam_init.stages");
    must(pseg_tensors_open_file(&head, GOLD_DATA "models/sam_head/pseg.safetensors", &err), "head",
         &err);
    must(pseg_head_config_read(&c, head, &err), "head", &err);
    must(pseg_neck_specs(&specs, &c, &err), "head", &err);
    must(pseg_decoder_specs(&specs, &c, &err), "head", &err);
    must(pseg_sam_open(&sam, sam_folder, &specs, &err), "sam", &err);
    must(pseg_weights_from_tensors(&w, head, "", &err), "head", &err);
    must(pseg_weights_check(w, &specs, &err), "head", &err);
    pseg_weights_overlay(w, pseg_sam_fill, sam);
    for (size_t i = 0; i < specs.n; i++) {
        const pseg_tensor *own = pseg_tensors_find(head, specs.items[i].name);
        pseg_values v;
        must(pseg_weights_get(&v, w, own->n, &err, "%s", own->name), own->name, &err);
        if (gold_find(&g, own->name)) {
            gold_must(v.type == PSEG_F32, own->name, NULL);
            gold_compare(&g, own->name, v.data, 1, own->n, false);
        } else
            gold_must(v.data == own->data, own->name, NULL);
    }
    pseg_weights_free(w);
    pseg_sam_close(sam);
    pseg_tensors_close(head);
    /* Of another width, it is refused by name. */
    pseg_specs_deinit(&specs);
    pseg_head_config_default(&c);
    must(pseg_decoder_specs(&specs, &c, &err), "head", &err);
    gold_must(pseg_sam_open(&sam, sam_folder, &specs, &err) == PSEG_EINVAL &&
                  err.reason == PSEG_R_MODEL_MISMATCH && strstr(err.msg, "mask_decoder.iou_token"),
              "a SAM of another width", &err);
    pseg_specs_deinit(&specs);
    all_good &= gold_close(&g, NULL);
}

int main(void)
{
    pseg_err err = PSEG_ERR_INIT;

    must(pseg_image_init(&err), "images", &err);
    cl = gold_cl();
    test_sam();
    static const pseg_precision precisions[] = {PSEG_PRECISION_FP32, PSEG_PRECISION_BF16X3};
    for (size_t i = 0; i < sizeof precisions / sizeof *precisions; i++) {
        precision = precisions[i];
        printf("precision %s\n", pseg_precision_name(precision));
        test_head();
        test_folder("pseg_pooled", 2, 3);
        test_folder("pseg_tokens", 2, 3);
        test_folder("pseg_crop", 4, 8);
    }
    pseg_cl_close(cl);
    pseg_image_shutdown();
    return all_good ? 0 : 1;
}
