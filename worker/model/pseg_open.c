/* Opening a model: which files, do they fit, and all memory that it will ever work in. */
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "worker/model/pseg_parts.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define MAX_SIDE   8192
#define MAX_PLACES (1u << 20)
#define CROP_AT    224 /* Hugging Face crops 224 px out of a shortest side of 256 */
#define RESIZE_AT  256

/* Everything known about a model before its memory is planned. */
typedef struct plan {
    pseg_vit_config vit;
    pseg_clip_config clip;
    pseg_head_config head;
    pseg_vit_names names;
    const char *vision_prefix, *text_prefix;
    uint32_t height, width, gh, gw;
} plan;

/* ---- sizes ----------------------------------------------------------------------------------- */

static pseg_status choose_size(plan *p, uint32_t height, uint32_t width, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t patch = p->vit.patch;

    p->height = height ? height : p->head.height;
    p->width = width ? width : p->head.width;
    if (p->height % patch || p->width % patch || p->height > MAX_SIDE || p->width > MAX_SIDE)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "image size %ux%u: each side must be a multiple of the patch, %u px, and at most "
                  "%d px",
                  p->height, p->width, patch, MAX_SIDE);
    p->gh = p->height / patch;
    p->gw = p->width / patch;
out:
    return rc;
}

static void fill_info(pseg_model *m, const plan *p)
{
    pseg_model_info *i = &m->info;

    i->height = p->height;
    i->width = p->width;
    i->patch = p->vit.patch;
    i->gh = p->gh;
    i->gw = p->gw;
    i->dim = p->head.dim;
    i->mask_height = p->gh << p->head.n_upsample;
    i->mask_width = p->gw << p->head.n_upsample;
    i->max_tokens = p->clip.max_pos;
    i->fit = p->head.fit;
    if (i->fit == PSEG_MODEL_CENTRE_CROP)
        i->resize_edge = RESIZE_AT * p->height / CROP_AT;
    memcpy(i->mean, p->head.mean, sizeof i->mean);
    memcpy(i->std, p->head.std, sizeof i->std);
    i->precision = m->options.precision;
    i->threshold = p->head.threshold;
    i->is_pos_resized = p->gh != p->head.gh || p->gw != p->head.gw;
}

static void fill_memory(pseg_model *m)
{
    m->info.weight_bytes = pseg_store_weight_bytes(m->store);
    m->info.shared_bytes = pseg_store_shared_bytes(m->store);
    m->info.activation_bytes = pseg_store_activation_bytes(m->store);
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* The three sources of tensors, checked against what the configurations ask for. sam: a folder that
 * goes before the decoder's own, or NULL. */
static pseg_status check_all(pseg_model *m, const plan *p, pseg_weights *const w[3],
                             const char *sam, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_specs s[3] = {{0}};

    PSEG_TRY(pseg_vit_specs(&s[0], &p->vit, p->names, err));
    if (!m->table)
        PSEG_TRY(pseg_text_specs(&s[1], &p->clip, p->text_prefix, err));
    PSEG_TRY(pseg_neck_specs(&s[2], &p->head, err));
    PSEG_TRY(pseg_decoder_specs(&s[2], &p->head, err));
    m->info.vision_params = pseg_specs_params(&s[0]);
    m->info.text_params = m->table ? (uint64_t)pseg_text_table_count(m->table) * p->clip.proj
                                   : pseg_specs_params(&s[1]);
    m->info.decoder_params = pseg_specs_params(&s[2]);
    for (size_t i = 0; i < 3; i++)
        PSEG_TRY(pseg_weights_check(w[i], &s[i], err));
    if (sam) {
        PSEG_TRY(pseg_sam_open(&m->sam, sam, &s[2], err));
        pseg_weights_overlay(w[2], pseg_sam_fill, m->sam);
    }
out:
    for (size_t i = 0; i < 3; i++)
        pseg_specs_deinit(&s[i]);
    return rc;
}

static pseg_status make_parts(pseg_model *m, const plan *p, pseg_weights *const w[3], pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_model_options *o = &m->options;
    size_t pixels = 3 * (size_t)p->height * p->width;
    pseg_decoder_limits limits = {.gh = p->gh, .gw = p->gw, .max_batch = o->max_phrases};

    if (o->precision == PSEG_PRECISION_BF16) {
        const uint32_t widths[] = {p->vit.hidden, p->vit.mlp,  p->clip.hidden,
                                   p->clip.mlp,   p->head.dim, p->head.dim / p->head.downsample,
                                   p->head.mlp};

        for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
            if (widths[i] % PSEG_BF16_STEP && !(m->table && (i == 2 || i == 3)))
                PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                          "a width of %u in precision bf16: it must be a multiple of %d; use fp32",
                          widths[i], PSEG_BF16_STEP);
        for (uint32_t i = 0; i + 1 < p->head.n_upsample; i++)
            if (p->head.upsample[i] % PSEG_BF16_STEP)
                PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                          "an upsampler of %u channels in precision bf16: they must be a multiple "
                          "of %d; use fp32",
                          p->head.upsample[i], PSEG_BF16_STEP);
        pseg_store_set_type(m->store, PSEG_BF16);
    } else if (o->precision == PSEG_PRECISION_BF16X3) {
        pseg_store_set_type(m->store, PSEG_BF16X2);
    }
    m->has_word_tokens = p->head.has_word_tokens;
    m->max_prompt = limits.max_prompt = m->has_word_tokens ? p->clip.max_pos : 1;
    PSEG_TRY(pseg_vit_new(&m->vit, m->store, w[0], p->names, &p->vit, p->head.taps, p->head.n_taps,
                          p->head.is_tap_normed, p->gh, p->gw, o->max_images, err));
    for (uint32_t i = 0; i < p->head.n_taps; i++)
        m->taps[i] = pseg_vit_tap(m->vit, i);
    if (m->table)
        PSEG_TRY(
            pseg_store_scratch(&m->embeds, m->store, (size_t)o->max_phrases * p->clip.proj, err));
    else
        PSEG_TRY(pseg_text_new(&m->text, m->store, w[1], p->text_prefix, &p->clip, p->clip.max_pos,
                               o->max_phrases, err));
    PSEG_TRY(pseg_neck_new(&m->neck, m->store, w[2], &p->head, p->gh, p->gw, o->max_images, err));
    PSEG_TRY(pseg_decoder_new(&m->decoder, m->store, w[2], &p->head, &limits, err));
    PSEG_TRY(pseg_store_scratch(&m->pixels, m->store, o->max_images * pixels, err));
    m->ids = pseg_calloc(o->max_phrases, p->clip.max_pos * sizeof *m->ids);
    m->lens = pseg_calloc(o->max_phrases, sizeof *m->lens);
    m->inputs = pseg_calloc(o->max_phrases, sizeof *m->inputs);
    m->rows = pseg_calloc(m->table ? (size_t)o->max_phrases * p->clip.proj : 1, sizeof *m->rows);
    if (!m->ids || !m->lens || !m->inputs || !m->rows)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a batch of phrases");
out:
    return rc;
}

void pseg_parts_free(pseg_model *m)
{
    pseg_vit_free(m->vit);
    pseg_text_free(m->text);
    pseg_neck_free(m->neck);
    pseg_decoder_free(m->decoder);
    pseg_free(m->ids);
    pseg_free(m->lens);
    pseg_free(m->inputs);
    pseg_free(m->rows);
    m->vit = NULL;
    m->text = NULL;
    m->neck = NULL;
    m->decoder = NULL;
    m->ids = NULL;
    m->lens = NULL;
    m->inputs = NULL;
    m->rows = NULL;
}

static pseg_status model_new(pseg_model **out, pseg_cl *cl, const pseg_model_options *o,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_model *m = NULL;

    if (o->max_images < 1 || o->max_images > 256 || o->max_phrases < 1 || o->max_phrases > 1024)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "batch of %u images and %u phrases: the limits are 1..256 and 1..1024",
                  o->max_images, o->max_phrases);
    m = pseg_calloc(1, sizeof *m);
    if (!m)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a model");
    m->cl = cl;
    m->options = *o;
    pseg_tuning_load(cl);
    PSEG_TRY(pseg_stream_open(&m->stage.s, cl, err));
    PSEG_TRY(pseg_store_new(&m->store, cl, err));
    *out = m;
    m = NULL;
out:
    pseg_model_close(m);
    return rc;
}

void pseg_model_close(pseg_model *m)
{
    if (!m)
        return;
    pseg_stream_close(m->stage.s);
    while (m->free_features) {
        pseg_features *f = m->free_features;
        m->free_features = f->next;
        pseg_mem_free(f->mem);
        pseg_free(f);
    }
    while (m->free_prompts) {
        pseg_prompt *p = m->free_prompts;
        m->free_prompts = p->next;
        pseg_mem_free(p->mem);
        pseg_free(p);
    }
    pseg_parts_free(m);
    pseg_store_free(m->store);
    pseg_tokenizer_free(m->tokenizer);
    pseg_text_table_close(m->table);
    pseg_tensors_close(m->vision_file);
    pseg_free(m->vision_folder);
    pseg_tensors_close(m->text_file);
    pseg_tensors_close(m->head_file);
    pseg_sam_close(m->sam);
    pseg_free(m);
}

/* ---- from files ------------------------------------------------------------------------------ */

typedef struct paths {
    char *vision, *text, *decoder;
} paths;

static void paths_deinit(paths *p)
{
    pseg_free(p->vision);
    pseg_free(p->text);
    pseg_free(p->decoder);
}

/* given, or folder/name (name itself if it is absolute), or NULL if there is no folder. */
static char *choose_path(const char *given, const char *folder, const char *name)
{
    return given            ? pseg_strdup(given)
           : !folder        ? NULL
           : name[0] == '/' ? pseg_strdup(name)
                            : pseg_path_join(folder, name);
}

static pseg_status find_parts(paths *out, pseg_model *m, const pseg_model_source *src,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_folder f = {.name = "custom"};

    if (src->folder)
        PSEG_TRY(pseg_folder_read(&f, src->folder, err));
    else if (!src->vision || !src->text || !src->decoder)
        PSEG_FAIL(PSEG_R_MODEL_MISSING, 0,
                  "no model given: name a PSEG folder, or all of vision, text and decoder");
    memcpy(m->info.name, f.name, sizeof m->info.name);
    memcpy(m->info.description, f.description, sizeof m->info.description);
    out->vision = choose_path(src->vision, src->folder, f.vision);
    out->text = choose_path(src->text, src->folder, f.text);
    out->decoder = choose_path(src->decoder, src->folder, f.decoder);
    m->vision_folder = out->vision ? pseg_strdup(out->vision) : NULL;
    if (!m->vision_folder || !out->text || !out->decoder)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a model");
out:
    return rc;
}

/* A table in place of a tower: as wide as its rows, a token long. */
static pseg_status read_table(plan *p, pseg_model *m, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = pseg_text_table_file(folder);

    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a model");
    PSEG_TRY(pseg_text_table_open(&m->table, folder, err));
    PSEG_TRY(pseg_tensors_open_file(&m->text_file, path, err));
    p->clip.proj = p->clip.hidden = pseg_text_table_dim(m->table);
    p->clip.max_pos = 1;
    p->text_prefix = "";
out:
    pseg_free(path);
    return rc;
}

static pseg_status read_tower(plan *p, pseg_model *m, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_tensors_open_folder(&m->text_file, folder, err));
    PSEG_TRY(pseg_text_detect(&p->text_prefix, m->text_file, err));
    PSEG_TRY(pseg_tokenizer_open(&m->tokenizer, folder, err));
    if (pseg_tokenizer_vocab(m->tokenizer) > p->clip.vocab)
        PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0,
                  "%s: its tokenizer makes ids up to %u, but the text encoder has %u", folder,
                  pseg_tokenizer_vocab(m->tokenizer) - 1, p->clip.vocab);
out:
    return rc;
}

static pseg_status read_plan(plan *p, pseg_model *m, const paths *at, const pseg_model_source *src,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_vit_config_read(&p->vit, at->vision, err));
    if (pseg_text_table_is(at->text))
        PSEG_TRY(read_table(p, m, at->text, err));
    else
        PSEG_TRY(pseg_clip_config_read(&p->clip, at->text, err));
    PSEG_TRY(pseg_tensors_open_file(&m->head_file, at->decoder, err));
    PSEG_TRY(pseg_head_config_read(&p->head, m->head_file, err));
    if (!pseg_tensors_metadata(m->head_file, "image_mean") && p->vit.has_preprocess) {
        memcpy(p->head.mean, p->vit.mean, sizeof p->head.mean);
        memcpy(p->head.std, p->vit.std, sizeof p->head.std);
    }
    PSEG_TRY(pseg_config_check(&p->vit, &p->clip, &p->head, err));
    PSEG_TRY(choose_size(p, src->height, src->width, err));
    PSEG_TRY(pseg_tensors_open_folder(&m->vision_file, at->vision, err));
    PSEG_TRY(pseg_vit_detect(&p->vision_prefix, &p->names, m->vision_file, err));
    if (m->table && p->head.has_word_tokens)
        PSEG_FAIL(
            PSEG_R_MODEL_MISMATCH, 0,
            "%s is a table of whole phrases, and the decoder reads every word: it needs a text "
            "tower",
            at->text);
    if (!m->table)
        PSEG_TRY(read_tower(p, m, at->text, err));
out:
    return rc;
}

/* The three sources of tensors, checked; caller frees them also on failure. */
static pseg_status open_weights(pseg_weights *w[3], pseg_model *m, const plan *p, const char *sam,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_weights_from_tensors(&w[0], m->vision_file, p->vision_prefix, err));
    PSEG_TRY(pseg_weights_from_tensors(&w[1], m->text_file, "", err));
    PSEG_TRY(pseg_weights_from_tensors(&w[2], m->head_file, "", err));
    PSEG_TRY(check_all(m, p, w, sam, err));
out:
    return rc;
}

typedef struct parts_job {
    const plan *p;
    pseg_weights *const *w;
} parts_job;

static pseg_status make_from_job(pseg_model *m, void *ud, pseg_err *err)
{
    const parts_job *j = ud;

    return make_parts(m, j->p, j->w, err);
}

/* Without a cache: hashing 600 MB takes as long as packing them, so the two go side by side. */
static pseg_status load_alone(pseg_model *m, pseg_digest_job *digest, parts_job *parts,
                              pseg_err *err)
{
    pthread_t hasher;
    bool is_hashing = pthread_create(&hasher, NULL, pseg_digest_run, digest) == 0;
    pseg_status rc = make_from_job(m, parts, err);

    if (is_hashing)
        pthread_join(hasher, NULL);
    else if (rc == PSEG_OK)
        pseg_digest_run(digest);
    return rc;
}

static pseg_status load(pseg_model *m, const plan *p, pseg_weights *const w[3], const char *folder,
                        const paths *at, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *dir = pseg_cl_cache_dir(m->cl);
    pseg_digest_job digest = {.m = m, .folder = folder, .vision = at->vision, .text = at->text};
    parts_job parts = {p, w};

    if (dir)
        pseg_digest_find(&digest, dir);
    else
        PSEG_TRY(load_alone(m, &digest, &parts, err));
    if (!digest.hex[0])
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory or no access for the model's digest");
    memcpy(m->info.digest, digest.hex, sizeof m->info.digest);
    fill_info(m, p);
    if (dir)
        PSEG_TRY(pseg_packed_load(m, dir, make_from_job, &parts, err));
    fill_memory(m);
    /* Few of their pages are needed again: the rows of the words that are asked for. */
    pseg_tensors_drop(m->vision_file);
    pseg_tensors_drop(m->text_file);
    pseg_tensors_drop(m->head_file);
out:
    return rc;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void log_opened(const pseg_model *m, int64_t start_us)
{
    const pseg_model_info *i = &m->info;
    struct rusage use = {0};

    getrusage(RUSAGE_SELF, &use);
    PSEG_INFO(m->options.log, "model",
              "opened name=%s digest=%.12s params=%" PRIu64 " weights_mib=%.0f shared_mib=%.0f "
              "activations_mib=%.0f peak_resident_mib=%.0f ms=%" PRId64,
              i->name, i->digest, i->vision_params + i->text_params + i->decoder_params,
              mib(i->weight_bytes), mib(i->shared_bytes), mib(i->activation_bytes),
              (double)use.ru_maxrss / 1024, (pseg_clock_mono_us() - start_us) / 1000);
}

pseg_status pseg_model_open(pseg_model **out, pseg_cl *cl, const pseg_model_source *src,
                            const pseg_model_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_model *m = NULL;
    pseg_weights *w[3] = {NULL};
    paths at = {0};
    plan p = {0};
    int64_t start = pseg_clock_mono_us();

    *out = NULL;
    PSEG_TRY(model_new(&m, cl, o, err));
    PSEG_TRY(find_parts(&at, m, src, err));
    PSEG_TRY(read_plan(&p, m, &at, src, err));
    PSEG_TRY(open_weights(w, m, &p, src->sam, err));
    PSEG_TRY(load(m, &p, w, src->folder, &at, err));
    log_opened(m, start);
    *out = m;
    m = NULL;
out:
    for (size_t i = 0; i < 3; i++)
        pseg_weights_free(w[i]);
    pseg_model_close(m);
    paths_deinit(&at);
    return rc;
}

/* ---- random ---------------------------------------------------------------------------------- */

/* "dinov2-base@448": fills the plan. */
static pseg_status preset_plan(plan *p, const char *preset, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *at = strchr(preset, '@');
    size_t n = at ? (size_t)(at - preset) : strlen(preset);
    char name[64] = "";
    uint32_t side = 224;

    if (n < sizeof name)
        memcpy(name, preset, n);
    if (!pseg_vit_config_preset(&p->vit, name))
        PSEG_FAIL(PSEG_R_MODEL_UNKNOWN, 0,
                  "no preset \"%.40s\": there are dinov2-small, dinov2-base, dinov2-large, "
                  "dinov2-giant, each also with -reg, and vit-base",
                  preset);
    if (at) {
        char *end;
        unsigned long v = strtoul(at + 1, &end, 10);
        if (at[1] < '0' || at[1] > '9' || *end || v == 0 || v > MAX_SIDE)
            PSEG_FAIL(PSEG_R_MODEL_UNKNOWN, 0, "preset \"%.40s\": expected NAME@PIXELS", preset);
        side = (uint32_t)v;
    }
    pseg_clip_config_default(&p->clip);
    pseg_head_config_default(&p->head);
    p->head.vision_dim = p->vit.hidden;
    p->head.patch = p->vit.patch;
    /* The reference taps 3, 6, 9, 11 of 12 blocks, at the same depths of more. */
    for (uint32_t i = 0; i < p->head.n_taps; i++)
        p->head.taps[i] = (p->head.taps[i] * p->vit.layers + 6) / 12;
    p->text_prefix = "text_model.";
    p->names = PSEG_VIT_NAMES_HF;
    PSEG_TRY(choose_size(p, side, side, err));
    p->head.height = p->height;
    p->head.width = p->width;
    p->head.gh = p->gh;
    p->head.gw = p->gw;
out:
    return rc;
}

pseg_status pseg_model_random(pseg_model **out, pseg_cl *cl, const char *preset, uint64_t seed,
                              const pseg_model_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_model *m = NULL;
    pseg_weights *w = NULL;
    uint8_t sum[PSEG_SHA256_BYTES];
    char text[128];
    plan p = {0};

    *out = NULL;
    PSEG_TRY(preset_plan(&p, preset, err));
    PSEG_TRY(model_new(&m, cl, o, err));
    PSEG_TRY(pseg_tokenizer_bytes(&m->tokenizer, err));
    PSEG_TRY(pseg_weights_from_fn(&w, pseg_fill_random, &seed, err));
    PSEG_TRY(check_all(m, &p, (pseg_weights *[]){w, w, w}, NULL, err));
    PSEG_TRY(make_parts(m, &p, (pseg_weights *[]){w, w, w}, err));
    snprintf(m->info.name, sizeof m->info.name, "random-%.40s", preset);
    snprintf(m->info.description, sizeof m->info.description,
             "Random weights, for measurements: its masks mean nothing.");
    int n = snprintf(text, sizeof text, "random %.40s %" PRIu64, preset, seed);
    pseg_sha256_of(sum, text, (size_t)n);
    pseg_hex(m->info.digest, sum, sizeof sum);
    fill_info(m, &p);
    fill_memory(m);
    *out = m;
    m = NULL;
out:
    pseg_weights_free(w);
    pseg_model_close(m);
    return rc;
}
