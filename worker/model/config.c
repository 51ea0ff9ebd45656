#include "worker/model/config.h"
#include "common/base/alloc.h"
#include "common/base/file.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_JSON_BYTES (4u << 20)
/* Bounds far above any model of these families; products of any three fit in 64 bits. */
#define MAX_WIDTH  65536
#define MAX_LAYERS 512
#define MAX_SIDE   8192
#define MAX_VOCAB  (1 << 24)

/* A JSON file with its path, for messages. */
typedef struct doc {
    char *path;
    json_t *root;
} doc;

static void doc_close(doc *d)
{
    json_decref(d->root);
    pseg_free(d->path);
    *d = (doc){NULL, NULL};
}

static pseg_status doc_open(doc *out, const char *folder, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *text = NULL;
    size_t n = 0;
    json_error_t why;

    *out = (doc){.path = pseg_path_join(folder, name)};
    if (!out->path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to read %s", name);
    if (!pseg_file_exists(out->path))
        PSEG_FAIL(PSEG_R_MODEL_MISSING, 0, "%s: no such %s; give a model folder that has one",
                  pseg_file_exists(folder) ? out->path : folder,
                  pseg_file_exists(folder) ? "file" : "folder");
    rc = pseg_file_read(&text, &n, out->path, MAX_JSON_BYTES, err);
    if (rc == PSEG_EINVAL)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: larger than the limit of %u bytes", out->path,
                  MAX_JSON_BYTES);
    PSEG_TRY(rc);
    out->root = json_loadb((const char *)text, n, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(out->root))
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: not a JSON object: %.80s (line %d)", out->path,
                  out->root ? "another value" : why.text, out->root ? 1 : why.line);
out:
    pseg_free(text);
    if (rc != PSEG_OK)
        doc_close(out);
    return rc;
}

/* ---- single fields: absent or null leaves *out as it is ------------------------------------ */

static pseg_status get_u32(uint32_t *out, const doc *d, const json_t *o, const char *key,
                           uint32_t min, uint32_t max, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const json_t *v = json_object_get(o, key);

    if (v && !json_is_null(v)) {
        json_int_t x = json_integer_value(v);
        if (!json_is_integer(v) || x < min || x > max)
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: %s must be a whole number of %u..%u", d->path,
                      key, min, max);
        *out = (uint32_t)x;
    }
    if (*out < min || *out > max)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: %s is missing", d->path, key);
out:
    return rc;
}

static pseg_status get_float(float *out, const doc *d, const json_t *o, const char *key, double min,
                             double max, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const json_t *v = json_object_get(o, key);

    if (!v || json_is_null(v))
        goto out;
    if (!json_is_number(v) || !(json_number_value(v) >= min && json_number_value(v) <= max))
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: %s must be a number of %g..%g", d->path, key, min,
                  max);
    *out = (float)json_number_value(v);
out:
    return rc;
}

static void get_bool(bool *out, const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);

    if (json_is_boolean(v))
        *out = json_is_true(v);
}

static pseg_status get_act(pseg_act *out, const doc *d, const json_t *o, pseg_err *err)
{
    static const struct {
        const char *name;
        pseg_act act;
    } known[] = {{"gelu", PSEG_ACT_GELU},
                 {"quick_gelu", PSEG_ACT_QUICK_GELU},
                 {"relu", PSEG_ACT_RELU},
                 {"silu", PSEG_ACT_SILU}};
    pseg_status rc = PSEG_OK;
    const char *name = json_string_value(json_object_get(o, "hidden_act"));

    if (!name)
        goto out;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0) {
            *out = known[i].act;
            goto out;
        }
    PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
              "%s: hidden_act \"%.40s\": supported are gelu, quick_gelu, relu, silu", d->path,
              name);
out:
    return rc;
}

/* One number, or [rows, columns]. */
static pseg_status get_pair(uint32_t *h, uint32_t *w, const doc *d, const json_t *o,
                            const char *key, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const json_t *v = json_object_get(o, key), *a = v, *b = v;

    if (!v || json_is_null(v))
        goto out;
    if (json_is_array(v) && json_array_size(v) == 2) {
        a = json_array_get(v, 0);
        b = json_array_get(v, 1);
    }
    json_int_t x = json_integer_value(a), y = json_integer_value(b);
    if (!json_is_integer(a) || !json_is_integer(b) || x < 1 || y < 1 || x > MAX_SIDE ||
        y > MAX_SIDE)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: %s must be a size of 1..%d px", d->path, key,
                  MAX_SIDE);
    *h = (uint32_t)x;
    *w = (uint32_t)y;
out:
    return rc;
}

static pseg_status get_rgb(float out[3], bool *found, const doc *d, const json_t *o,
                           const char *key, bool is_divisor, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const json_t *v = json_object_get(o, key);

    if (!v || json_is_null(v))
        goto out;
    for (size_t i = 0; i < 3; i++) {
        const json_t *x = json_array_get(v, i);
        double f = json_number_value(x);
        if (json_array_size(v) != 3 || !json_is_number(x) || !(fabs(f) <= 10) ||
            (is_divisor && f < 1e-3))
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: %s must be three numbers", d->path, key);
        out[i] = (float)f;
    }
    *found = true;
out:
    return rc;
}

/* ---- image encoders ------------------------------------------------------------------------ */

/* "size" is a number or {"height", "width"} (each side on its own) or {"shortest_edge"}. */
static pseg_status get_preprocess(pseg_vit_config *c, const doc *d, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const json_t *size = json_object_get(d->root, "size");
    const json_t *crop = json_object_get(d->root, "crop_size");
    bool is_cropped = false;
    uint32_t h = 0, w = 0, edge = 0;

    get_bool(&is_cropped, d->root, "do_center_crop");
    if (json_is_object(size) && json_object_get(size, "shortest_edge"))
        PSEG_TRY(get_u32(&edge, d, size, "shortest_edge", 1, MAX_SIDE, err));
    else if (json_is_object(size)) {
        PSEG_TRY(get_u32(&h, d, size, "height", 1, MAX_SIDE, err));
        PSEG_TRY(get_u32(&w, d, size, "width", 1, MAX_SIDE, err));
    } else
        PSEG_TRY(get_pair(&h, &w, d, d->root, "size", err));
    if (is_cropped && json_is_object(crop)) {
        PSEG_TRY(get_u32(&h, d, crop, "height", 1, MAX_SIDE, err));
        PSEG_TRY(get_u32(&w, d, crop, "width", 1, MAX_SIDE, err));
    } else if (is_cropped)
        PSEG_TRY(get_pair(&h, &w, d, d->root, "crop_size", err));
    c->fit = is_cropped && edge ? PSEG_MODEL_CENTRE_CROP : PSEG_MODEL_SQUASH;
    c->resize_edge = is_cropped ? edge : 0;
    c->height = h;
    c->width = w;
    c->has_preprocess = true;
out:
    return rc;
}

static pseg_status read_preprocessor(pseg_vit_config *c, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    doc d = {NULL, NULL};
    char *path = pseg_path_join(folder, "preprocessor_config.json");

    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to read %s", folder);
    if (!pseg_file_exists(path))
        goto out;
    PSEG_TRY(doc_open(&d, folder, "preprocessor_config.json", err));
    PSEG_TRY(get_preprocess(c, &d, err));
    PSEG_TRY(get_rgb(c->mean, &c->has_preprocess, &d, d.root, "image_mean", false, err));
    PSEG_TRY(get_rgb(c->std, &c->has_preprocess, &d, d.root, "image_std", true, err));
out:
    doc_close(&d);
    pseg_free(path);
    return rc;
}

static const float imagenet_mean[3] = {0.485f, 0.456f, 0.406f};
static const float imagenet_std[3] = {0.229f, 0.224f, 0.225f};

static uint32_t swiglu_width(uint64_t mlp)
{
    return (uint32_t)((mlp * 2 / 3 + 7) / 8 * 8);
}

static pseg_status read_dinov2(pseg_vit_config *c, const doc *d, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float ratio = 4;

    c->eps = 1e-6f;
    c->has_layer_scale = c->has_mask_token = true;
    get_bool(&c->has_mask_token, d->root, "use_mask_token");
    get_bool(&c->has_swiglu, d->root, "use_swiglu_ffn");
    PSEG_TRY(get_float(&ratio, d, d->root, "mlp_ratio", 0.01, 64, err));
    c->mlp = (uint32_t)((double)c->hidden * (double)ratio);
    if (c->has_swiglu)
        c->mlp = swiglu_width(c->mlp);
    if (c->kind == PSEG_VIT_DINOV2_REG) {
        c->n_regs = 4;
        PSEG_TRY(get_u32(&c->n_regs, d, d->root, "num_register_tokens", 0, 256, err));
    }
out:
    return rc;
}

pseg_status pseg_vit_config_read(pseg_vit_config *out, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_vit_config c = {.act = PSEG_ACT_GELU, .has_qkv_bias = true, .eps = 1e-12f};
    doc d = {NULL, NULL};
    uint32_t h = 224, w = 224, channels = 3;
    const char *type;

    memcpy(c.mean, imagenet_mean, sizeof c.mean);
    memcpy(c.std, imagenet_std, sizeof c.std);
    PSEG_TRY(doc_open(&d, folder, "config.json", err));
    type = json_string_value(json_object_get(d.root, "model_type"));
    if (type && strcmp(type, "dinov2") == 0)
        c.kind = PSEG_VIT_DINOV2;
    else if (type && strcmp(type, "dinov2_with_registers") == 0)
        c.kind = PSEG_VIT_DINOV2_REG;
    else if (type && strcmp(type, "vit") == 0)
        c.kind = PSEG_VIT_PLAIN;
    else
        PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                  "%s: model_type %s%.40s%s as an image encoder: supported are dinov2, "
                  "dinov2_with_registers, vit",
                  d.path, type ? "\"" : "", type ? type : "missing", type ? "\"" : "");
    PSEG_TRY(get_u32(&c.hidden, &d, d.root, "hidden_size", 8, MAX_WIDTH, err));
    PSEG_TRY(get_u32(&c.layers, &d, d.root, "num_hidden_layers", 1, MAX_LAYERS, err));
    PSEG_TRY(get_u32(&c.heads, &d, d.root, "num_attention_heads", 1, 1024, err));
    c.patch = c.kind == PSEG_VIT_PLAIN ? 16 : 14;
    PSEG_TRY(get_u32(&c.patch, &d, d.root, "patch_size", 1, 256, err));
    PSEG_TRY(get_u32(&channels, &d, d.root, "num_channels", 1, 64, err));
    PSEG_TRY(get_pair(&h, &w, &d, d.root, "image_size", err));
    PSEG_TRY(get_act(&c.act, &d, d.root, err));
    get_bool(&c.has_qkv_bias, d.root, "qkv_bias");
    if (c.kind == PSEG_VIT_PLAIN)
        PSEG_TRY(get_u32(&c.mlp, &d, d.root, "intermediate_size", 8, MAX_WIDTH, err));
    else
        PSEG_TRY(read_dinov2(&c, &d, err));
    PSEG_TRY(get_float(&c.eps, &d, d.root, "layer_norm_eps", PSEG_MIN_EPS, 1, err));
    if (channels != 3)
        PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0, "%s: num_channels %u: only 3 is supported", d.path,
                  channels);
    if (c.hidden % c.heads || c.hidden / c.heads > 128 || c.mlp < 8 || c.mlp > MAX_WIDTH)
        PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                  "%s: hidden_size %u with %u heads and inner width %u: a head must have a whole "
                  "number of at most 128 channels, the inner width 8..%d",
                  d.path, c.hidden, c.heads, c.mlp, MAX_WIDTH);
    if (h < c.patch || w < c.patch)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: image_size is smaller than patch_size %u", d.path,
                  c.patch);
    c.pos_h = h / c.patch;
    c.pos_w = w / c.patch;
    PSEG_TRY(get_rgb(c.mean, &c.has_preprocess, &d, d.root, "image_mean", false, err));
    PSEG_TRY(get_rgb(c.std, &c.has_preprocess, &d, d.root, "image_std", true, err));
    PSEG_TRY(read_preprocessor(&c, folder, err));
    *out = c;
out:
    doc_close(&d);
    return rc;
}

bool pseg_vit_config_preset(pseg_vit_config *out, const char *name)
{
    static const struct {
        const char *name;
        uint32_t hidden, layers, heads;
    } sizes[] = {{"dinov2-small", 384, 12, 6},
                 {"dinov2-base", 768, 12, 12},
                 {"dinov2-large", 1024, 24, 16},
                 {"dinov2-giant", 1536, 40, 24},
                 {"vit-base", 768, 12, 12}};
    size_t n = strlen(name);
    bool has_regs = n > 4 && strcmp(name + n - 4, "-reg") == 0;
    pseg_vit_config c = {.kind = PSEG_VIT_DINOV2,
                         .patch = 14,
                         .pos_h = 37,
                         .pos_w = 37,
                         .has_layer_scale = true,
                         .has_mask_token = true,
                         .has_qkv_bias = true,
                         .act = PSEG_ACT_GELU,
                         .eps = 1e-6f};

    if (has_regs) {
        n -= 4;
        c.kind = PSEG_VIT_DINOV2_REG;
        c.n_regs = 4;
    }
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (strlen(sizes[i].name) != n || strncmp(sizes[i].name, name, n) != 0)
            continue;
        c.hidden = sizes[i].hidden;
        c.layers = sizes[i].layers;
        c.heads = sizes[i].heads;
        c.has_swiglu = c.layers == 40;
        c.mlp = c.has_swiglu ? swiglu_width(4 * (uint64_t)c.hidden) : 4 * c.hidden;
        if (name[0] == 'v') {
            if (has_regs)
                return false;
            c.kind = PSEG_VIT_PLAIN;
            c.patch = 16;
            c.pos_h = c.pos_w = 14;
            c.has_layer_scale = c.has_mask_token = false;
            c.eps = 1e-12f;
        }
        memcpy(c.mean, imagenet_mean, sizeof c.mean);
        memcpy(c.std, imagenet_std, sizeof c.std);
        *out = c;
        return true;
    }
    return false;
}

/* ---- text towers --------------------------------------------------------------------------- */

void pseg_clip_config_default(pseg_clip_config *out)
{
    *out = (pseg_clip_config){.vocab = 49408,
                              .hidden = 512,
                              .layers = 12,
                              .heads = 8,
                              .mlp = 2048,
                              .max_pos = 77,
                              .proj = 512,
                              .act = PSEG_ACT_QUICK_GELU,
                              .eps = 1e-5f};
}

pseg_status pseg_clip_config_read(pseg_clip_config *out, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_clip_config c;
    doc d = {NULL, NULL};
    const json_t *o;
    const char *type;

    pseg_clip_config_default(&c); /* as Hugging Face: absent fields have these values */
    PSEG_TRY(doc_open(&d, folder, "config.json", err));
    o = d.root;
    type = json_string_value(json_object_get(o, "model_type"));
    if (type && strcmp(type, "clip") == 0) {
        o = json_object_get(d.root, "text_config");
        if (o && !json_is_object(o))
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: text_config is not an object", d.path);
    } else if (!type || strcmp(type, "clip_text_model") != 0)
        PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                  "%s: model_type %s%.40s%s as a text encoder: supported are clip_text_model, clip",
                  d.path, type ? "\"" : "", type ? type : "missing", type ? "\"" : "");
    PSEG_TRY(get_u32(&c.vocab, &d, o, "vocab_size", 514, MAX_VOCAB, err));
    PSEG_TRY(get_u32(&c.hidden, &d, o, "hidden_size", 8, MAX_WIDTH, err));
    PSEG_TRY(get_u32(&c.layers, &d, o, "num_hidden_layers", 1, MAX_LAYERS, err));
    PSEG_TRY(get_u32(&c.heads, &d, o, "num_attention_heads", 1, 1024, err));
    PSEG_TRY(get_u32(&c.mlp, &d, o, "intermediate_size", 8, MAX_WIDTH, err));
    PSEG_TRY(get_u32(&c.max_pos, &d, o, "max_position_embeddings", 3, 4096, err));
    PSEG_TRY(get_act(&c.act, &d, o, err));
    PSEG_TRY(get_float(&c.eps, &d, o, "layer_norm_eps", PSEG_MIN_EPS, 1, err));
    /* In a whole CLIP the projection's width stands at the top; the text half has a default. */
    PSEG_TRY(get_u32(&c.proj, &d, d.root, "projection_dim", 8, MAX_WIDTH, err));
    if (c.hidden % c.heads || c.hidden / c.heads > 128)
        PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                  "%s: hidden_size %u with %u heads: a head must have a whole number of at most "
                  "128 channels",
                  d.path, c.hidden, c.heads);
    *out = c;
out:
    doc_close(&d);
    return rc;
}

pseg_status pseg_sam_config_check(const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    doc d = {NULL, NULL};
    const char *type;

    PSEG_TRY(doc_open(&d, folder, "config.json", err));
    type = json_string_value(json_object_get(d.root, "model_type"));
    if (!type || strcmp(type, "sam") != 0)
        PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                  "%s: model_type %s%.40s%s to start a decoder from: supported is sam", d.path,
                  type ? "\"" : "", type ? type : "missing", type ? "\"" : "");
out:
    doc_close(&d);
    return rc;
}

/* ---- a PSEG folder ------------------------------------------------------------------------- */

static pseg_status get_string(char *out, size_t size, const doc *d, const char *key, bool required,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *s = json_string_value(json_object_get(d->root, key));

    if (required && (!s || !*s || strlen(s) >= size))
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: %s is missing, or longer than %zu bytes", d->path,
                  key, size - 1);
    size_t n = s ? strlen(s) : 0;
    if (n >= size) {
        n = size - 1;
        while (n && ((unsigned char)s[n] & 0xC0) == 0x80)
            n--;
    }
    if (n)
        memcpy(out, s, n);
    out[n] = '\0';
out:
    return rc;
}

pseg_status pseg_folder_read(pseg_folder *out, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    doc d = {NULL, NULL};

    *out = (pseg_folder){{0}};
    PSEG_TRY(doc_open(&d, folder, "pseg.json", err));
    PSEG_TRY(get_string(out->name, sizeof out->name, &d, "name", true, err));
    PSEG_TRY(get_string(out->description, sizeof out->description, &d, "description", false, err));
    PSEG_TRY(get_string(out->vision, sizeof out->vision, &d, "vision", true, err));
    PSEG_TRY(get_string(out->text, sizeof out->text, &d, "text", true, err));
    PSEG_TRY(get_string(out->decoder, sizeof out->decoder, &d, "decoder", true, err));
out:
    doc_close(&d);
    return rc;
}
