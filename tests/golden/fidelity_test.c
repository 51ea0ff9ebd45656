/* What each precision does to masks: a model on drawn scenes or on photos, run by the kernels in
 * each of them, mask against mask with the same model run by the CPU references of the operations
 * (plain loops in double, each result rounded to float32).
 *
 *     test_golden_fidelity [IMAGES]                   scenes and the model in the box (default 2)
 *     test_golden_fidelity IMAGES MODEL DATA          photos: the last IMAGES of a data set
 */
#include "common/base/alloc.h"
#include "common/base/half.h"
#include "common/image/image.h"
#include "common/mask/mask.h"
#include "tests/golden/fidelity_data.h"
#include "tests/golden/fidelity_reference.h"
#include "tests/golden/golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_IMAGES = 2000 };

static void must(pseg_status rc, const char *what, const pseg_err *err)
{
    gold_must(rc == PSEG_OK, what, err);
}

/* ---- masks ---- */

typedef struct setting {
    const char *name;
    pseg_precision precision;
    uint32_t without; /* features of the device */
    bool is_reference, halves_features;
    double least; /* mean IoU with the reference's masks */
} setting;

typedef struct masks {
    pseg_mask **list;
    size_t n, cap;
} masks;

static void add_mask(masks *all, const pseg_model_info *info, const fidelity_image *photo,
                     const float *logits)
{
    size_t n = (size_t)info->mask_width * info->mask_height;
    uint16_t *half = pseg_malloc(n * sizeof *half);
    pseg_err err = PSEG_ERR_INIT;

    if (all->n == all->cap) {
        all->cap = all->cap ? 2 * all->cap : 256;
        all->list = realloc(all->list, all->cap * sizeof(pseg_mask *));
    }
    gold_must(half && all->list, "memory", NULL);
    pseg_half_from_floats(half, logits, n);
    pseg_mask_grid g = {.logits = half,
                        .grid_width = info->mask_width,
                        .grid_height = info->mask_height,
                        .width = photo->width,
                        .height = photo->height,
                        .x0 = photo->rect[0],
                        .y0 = photo->rect[1],
                        .x1 = photo->rect[2],
                        .y1 = photo->rect[3]};
    must(pseg_mask_make(&all->list[all->n++], &g, 0.5f, &err), "mask", &err);
    pseg_free(half);
}

static void free_masks(masks *all)
{
    for (size_t i = 0; i < all->n; i++)
        pseg_mask_free(all->list[i]);
    free(all->list);
}

/* As through the cache of features that workers share. */
static void halve(pseg_features **f, pseg_model *m)
{
    const pseg_model_info *info = pseg_model_get_info(m);
    size_t n = (size_t)info->gh * info->gw * info->dim;
    float *numbers = pseg_aligned_alloc(n * sizeof *numbers);
    uint16_t *half = pseg_malloc(n * sizeof *half);
    pseg_err err = PSEG_ERR_INIT;

    gold_must(numbers && half, "memory", NULL);
    must(pseg_features_read(numbers, m, *f, &err), "features", &err);
    pseg_half_from_floats(half, numbers, n);
    pseg_half_to_floats(numbers, half, n);
    pseg_features_free(*f);
    must(pseg_features_write(f, m, numbers, &err), "features", &err);
    pseg_free(numbers);
    pseg_free(half);
}

static void segment(masks *all, pseg_model *m, const fidelity_image *photo, bool halves_features)
{
    const pseg_model_info *info = pseg_model_get_info(m);
    size_t n = photo->n_phrases, mask = (size_t)info->mask_width * info->mask_height;
    const pseg_features *images[FIDELITY_MAX_PHRASES];
    pseg_prompt *prompts[FIDELITY_MAX_PHRASES];
    float iou[FIDELITY_MAX_PHRASES], *logits = pseg_malloc(n * mask * sizeof *logits);
    pseg_err err = PSEG_ERR_INIT;
    pseg_features *f;

    gold_must(logits != NULL, "memory", NULL);
    must(pseg_model_encode_images(&f, m, photo->chw, 1, &err), "encode", &err);
    if (halves_features)
        halve(&f, m);
    for (size_t i = 0; i < n; i++)
        images[i] = f;
    must(pseg_model_encode_texts(prompts, m, (const char *const *)photo->phrases, n, &err), "text",
         &err);
    must(pseg_model_decode(logits, iou, m, images, (const pseg_prompt *const *)prompts, n, &err),
         "decode", &err);
    for (size_t i = 0; i < n; i++) {
        add_mask(all, info, photo, logits + i * mask);
        pseg_prompt_free(prompts[i]);
    }
    pseg_features_free(f);
    pseg_free(logits);
}

/* All masks in this setting. Returns the features that the device's kernels used. */
static uint32_t segment_all(masks *all, const setting *how, const char *model, const char *data,
                            size_t n)
{
    pseg_model_source src = {.folder = model};
    pseg_model_options o = PSEG_MODEL_OPTIONS_DEFAULT;
    pseg_cl_options co = PSEG_CL_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_model *m;
    pseg_cl *cl;

    *all = (masks){0};
    co.without = how->without;
    o.precision = how->precision;
    o.max_images = 1;
    must(pseg_cl_open(&cl, &co, &err), "device", &err);
    uint32_t features = pseg_cl_features(cl);
    must(pseg_model_open(&m, cl, &src, &o, &err), "model", &err);
    fidelity_use_references(how->is_reference);
    fidelity_data *d = fidelity_data_open(data, n, pseg_model_get_info(m));
    for (size_t i = 0; i < fidelity_data_n(d); i++) {
        fidelity_image photo;
        fidelity_data_read(&photo, d, i);
        segment(all, m, &photo, how->halves_features);
        fidelity_image_free(&photo);
    }
    fidelity_use_references(false);
    fidelity_data_close(d);
    pseg_model_close(m);
    pseg_cl_close(cl);
    return features;
}

static bool compare(const masks *exact, const masks *rough, const setting *how)
{
    uint64_t changed = 0, pixels = 0;
    double sum = 0, worst = 1;

    gold_must(exact->n == rough->n && exact->n > 0, "masks to compare", NULL);
    for (size_t k = 0; k < exact->n; k++) {
        const pseg_mask *a = exact->list[k], *b = rough->list[k];
        double iou = pseg_mask_iou(a, b);

        sum += iou;
        worst = iou < worst ? iou : worst;
        pixels += (uint64_t)a->width * a->height;
        changed += a->area + b->area - 2 * pseg_mask_overlap(a, b);
    }
    double mean = sum / (double)exact->n;
    bool good = mean >= how->least;
    printf("%s %-22s %zu masks, IoU with the reference %.5f (worst %.4f), %.5f %% of the pixels "
           "changed\n",
           good ? "ok  " : "FAIL", how->name, exact->n, mean, worst,
           100 * (double)changed / (double)pixels);
    fflush(stdout);
    return good;
}

int main(int argc, char **argv)
{
    static const setting reference = {"references", PSEG_PRECISION_FP32, 0, true, false, 1};
    static const setting settings[] = {
        {"fp32", PSEG_PRECISION_FP32, 0, false, false, 0.9999},
        {"fp32, float16 features", PSEG_PRECISION_FP32, 0, false, true, 0.998},
        {"bf16x3", PSEG_PRECISION_BF16X3, 0, false, false, 0.9995},
        {"bf16x3, plain", PSEG_PRECISION_BF16X3, UINT32_MAX, false, false, 0.9995},
        {"bf16", PSEG_PRECISION_BF16, 0, false, false, 0.98},
        {"bf16, plain", PSEG_PRECISION_BF16, UINT32_MAX, false, false, 0.98},
    };
    size_t n = argc > 1 ? (size_t)strtoul(argv[1], NULL, 10) : 2;
    const char *model = argc > 2 ? argv[2] : PSEG_TEST_SOURCE_DIR "/deploy/models/scenes";
    const char *data = argc > 3 ? argv[3] : NULL;
    pseg_err err = PSEG_ERR_INIT;
    masks exact, rough;
    bool good = true;

    pseg_cl_close(gold_cl()); /* skips where there is no device */
    gold_must(n >= 1 && n <= MAX_IMAGES, "images", NULL);
    must(pseg_image_init(&err), "images", &err);
    segment_all(&exact, &reference, model, data, n);
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        uint32_t has = segment_all(&rough, &settings[i], model, data, n);
        good &= compare(&exact, &rough, &settings[i]);
        free_masks(&rough);
        /* Where there are no instructions of its own the plain form is the same. */
        i += settings[i].precision != PSEG_PRECISION_FP32 && settings[i].without == 0 && !has;
    }
    free_masks(&exact);
    pseg_image_shutdown();
    return good ? 0 : 1;
}
