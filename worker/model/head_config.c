/* PSEG-1's configuration: strings in __metadata__, lists joined by commas. */
#include "worker/model/config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LIST 8

void pseg_head_config_default(pseg_head_config *out)
{
    *out = (pseg_head_config){
        .taps = {3, 6, 9, 11},
        .n_taps = 4,
        .dim = 256,
        .heads = 8,
        .depth = 3,
        .mlp = 2048,
        .downsample = 2,
        .groups = 32,
        .gh = 16,
        .gw = 16,
        .upsample = {128, 64, 32},
        .n_upsample = 3,
        .gn_eps = 1e-5f,
        .upsample_eps = 1e-6f,
        .ln_eps = 1e-6f,
        .final_ln_eps = 1e-5f,
        .vision_dim = 768,
        .text_dim = 512,
        .text_hidden = 512,
        .patch = 14,
        .height = 224,
        .width = 224,
        .fit = PSEG_MODEL_SQUASH,
        .mean = {0.485f, 0.456f, 0.406f},
        .std = {0.229f, 0.224f, 0.225f},
        .threshold = 0.5f,
    };
}

/* min..max numbers in min_n..max_n places. Absent: *n = 0 and *out as it is. */
static pseg_status get_numbers(double *out, size_t *n, const pseg_tensors *file, const char *key,
                               size_t min_n, size_t max_n, double min, double max, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *s = pseg_tensors_metadata(file, key);
    double found[MAX_LIST];
    size_t k = 0;

    *n = 0;
    if (!s)
        goto out;
    for (const char *at = s;;) {
        char *end;
        double x = strtod(at, &end);
        if (end == at || (*end && *end != ',') || !(x >= min && x <= max) || k == max_n)
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0,
                      "%s: metadata %s = \"%.60s\": expected %zu to %zu numbers of %g..%g",
                      pseg_tensors_path(file), key, s, min_n, max_n, min, max);
        found[k++] = x;
        if (!*end)
            break;
        at = end + 1;
    }
    if (k < min_n)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: metadata %s = \"%.60s\": expected %zu numbers",
                  pseg_tensors_path(file), key, s, min_n);
    memcpy(out, found, k * sizeof *out);
    *n = k;
out:
    return rc;
}

static pseg_status get_u32s(uint32_t *out, uint32_t *count, const pseg_tensors *file,
                            const char *key, size_t min_n, size_t max_n, uint32_t min, uint32_t max,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    double v[MAX_LIST];
    size_t n;

    PSEG_TRY(get_numbers(v, &n, file, key, min_n, max_n, min, max, err));
    for (size_t i = 0; i < n; i++) {
        if (v[i] != floor(v[i]))
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: metadata %s: %g is not a whole number",
                      pseg_tensors_path(file), key, v[i]);
        out[i] = (uint32_t)v[i];
    }
    if (n && count)
        *count = (uint32_t)n;
out:
    return rc;
}

static pseg_status get_floats(float *out, const pseg_tensors *file, const char *key, size_t count,
                              double min, double max, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    double v[MAX_LIST];
    size_t n;

    PSEG_TRY(get_numbers(v, &n, file, key, count, count, min, max, err));
    for (size_t i = 0; i < n; i++)
        out[i] = (float)v[i];
out:
    return rc;
}

/* *out = the index of the value in names (NULL-terminated). */
static pseg_status get_choice(uint32_t *out, const pseg_tensors *file, const char *key,
                              const char *const *names, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *s = pseg_tensors_metadata(file, key);

    if (!s)
        goto out;
    for (uint32_t i = 0; names[i]; i++)
        if (strcmp(names[i], s) == 0) {
            *out = i;
            goto out;
        }
    PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0, "%s: metadata %s = \"%.40s\": known are %s, %s%s%s",
              pseg_tensors_path(file), key, s, names[0], names[1], names[2] ? ", " : "",
              names[2] ? names[2] : "");
out:
    return rc;
}

static pseg_status check(const pseg_head_config *c, const pseg_tensors *file, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (uint32_t i = 1; i < c->n_taps; i++)
        if (c->taps[i] < c->taps[i - 1])
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: metadata taps must not fall",
                      pseg_tensors_path(file));
    if (c->dim % c->groups || c->dim % (c->downsample * c->heads) || c->dim / c->heads > 128)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0,
                  "%s: metadata dim %u must be a multiple of gn_groups %u and of heads %u times "
                  "downsample %u, with at most 128 channels a head",
                  pseg_tensors_path(file), c->dim, c->groups, c->heads, c->downsample);
    if (c->height % c->patch || c->width % c->patch || c->gh != c->height / c->patch ||
        c->gw != c->width / c->patch)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0,
                  "%s: metadata image_size %ux%u with patch %u does not give grid %ux%u",
                  pseg_tensors_path(file), c->height, c->width, c->patch, c->gh, c->gw);
out:
    return rc;
}

pseg_status pseg_head_config_read(pseg_head_config *out, const pseg_tensors *file, pseg_err *err)
{
    static const char *const norms[] = {"none", "final_ln", NULL};
    static const char *const modes[] = {"pooled", "tokens", NULL};
    static const char *const fits[] = {"squash", "letterbox", "centre_crop", NULL};
    pseg_status rc = PSEG_OK;
    pseg_head_config c;
    const char *format = pseg_tensors_metadata(file, "format");
    uint32_t norm = 0, mode = 0, fit = 0, pair[2];

    pseg_head_config_default(&c);
    if (!format || strcmp(format, "pseg-1") != 0)
        PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                  "%s: metadata format is %s%.40s%s, expected \"pseg-1\": not a PSEG decoder",
                  pseg_tensors_path(file), format ? "\"" : "", format ? format : "missing",
                  format ? "\"" : "");
    PSEG_TRY(get_u32s(c.taps, &c.n_taps, file, "taps", 1, PSEG_MAX_TAPS, 1, 512, err));
    PSEG_TRY(get_choice(&norm, file, "tap_norm", norms, err));
    PSEG_TRY(get_u32s(&c.dim, NULL, file, "dim", 1, 1, 8, 4096, err));
    PSEG_TRY(get_u32s(&c.heads, NULL, file, "heads", 1, 1, 1, 256, err));
    PSEG_TRY(get_u32s(&c.depth, NULL, file, "depth", 1, 1, 1, 64, err));
    PSEG_TRY(get_u32s(&c.mlp, NULL, file, "mlp_dim", 1, 1, 8, 65536, err));
    PSEG_TRY(get_u32s(&c.downsample, NULL, file, "downsample", 1, 1, 1, 16, err));
    PSEG_TRY(get_u32s(&c.groups, NULL, file, "gn_groups", 1, 1, 1, 4096, err));
    PSEG_TRY(get_floats(&c.gn_eps, file, "gn_eps", 1, PSEG_MIN_EPS, 1, err));
    pair[0] = c.gh, pair[1] = c.gw;
    PSEG_TRY(get_u32s(pair, NULL, file, "grid", 2, 2, 1, 1024, err));
    c.gh = pair[0], c.gw = pair[1];
    PSEG_TRY(
        get_u32s(c.upsample, &c.n_upsample, file, "upsample", 1, PSEG_MAX_UPSAMPLE, 1, 4096, err));
    PSEG_TRY(get_floats(&c.upsample_eps, file, "upsample_eps", 1, PSEG_MIN_EPS, 1, err));
    PSEG_TRY(get_floats(&c.ln_eps, file, "layer_norm_eps", 1, PSEG_MIN_EPS, 1, err));
    PSEG_TRY(get_floats(&c.final_ln_eps, file, "final_layer_norm_eps", 1, PSEG_MIN_EPS, 1, err));
    PSEG_TRY(get_choice(&mode, file, "text_mode", modes, err));
    PSEG_TRY(get_u32s(&c.vision_dim, NULL, file, "vision_dim", 1, 1, 8, 65536, err));
    PSEG_TRY(get_u32s(&c.text_dim, NULL, file, "text_dim", 1, 1, 8, 65536, err));
    PSEG_TRY(get_u32s(&c.text_hidden, NULL, file, "text_hidden", 1, 1, 8, 65536, err));
    pair[0] = c.height, pair[1] = c.width;
    PSEG_TRY(get_u32s(pair, NULL, file, "image_size", 2, 2, 1, 8192, err));
    c.height = pair[0], c.width = pair[1];
    PSEG_TRY(get_u32s(&c.patch, NULL, file, "patch", 1, 1, 1, 256, err));
    PSEG_TRY(get_choice(&fit, file, "preprocess", fits, err));
    PSEG_TRY(get_floats(c.mean, file, "image_mean", 3, -10, 10, err));
    PSEG_TRY(get_floats(c.std, file, "image_std", 3, 1e-3, 10, err));
    PSEG_TRY(get_floats(&c.threshold, file, "threshold", 1, 0, 1, err));
    c.is_tap_normed = norm == 1;
    c.has_word_tokens = mode == 1;
    c.fit = (pseg_model_fit)fit;
    PSEG_TRY(check(&c, file, err));
    *out = c;
out:
    return rc;
}

pseg_status pseg_config_check(const pseg_vit_config *v, const pseg_clip_config *t,
                              const pseg_head_config *h, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (v->hidden != h->vision_dim)
        PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0,
                  "the decoder was made for an image encoder of width %u, this one has %u",
                  h->vision_dim, v->hidden);
    if (h->taps[h->n_taps - 1] > v->layers)
        PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0,
                  "the decoder reads the image encoder after block %u, this one has %u blocks",
                  h->taps[h->n_taps - 1], v->layers);
    if (v->patch != h->patch)
        PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0,
                  "the decoder was made for patches of %u px, the image encoder has %u", h->patch,
                  v->patch);
    if (t->proj != h->text_dim)
        PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0,
                  "the decoder was made for text embeddings of width %u, this text encoder has %u",
                  h->text_dim, t->proj);
    if (h->has_word_tokens && t->hidden != h->text_hidden)
        PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0,
                  "the decoder was made for a text encoder of width %u, this one has %u",
                  h->text_hidden, t->hidden);
out:
    return rc;
}
