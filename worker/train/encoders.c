#include "worker/train/encoders.h"
#include "common/base/alloc.h"
#include "worker/model/interpolate.h"
#include "worker/model/text.h"
#include "worker/model/text_table.h"
#include "worker/model/towers.h"
#include "worker/model/vit.h"
#include "worker/train/init.h"

#include <stdio.h>
#include <string.h>

#define KEEP_BYTES ((size_t)512 << 20) /* of phrases; past it all are forgotten */

/* A phrase that has been encoded, in a table by hash. */
typedef struct kept {
    char *phrase;   /* NULL: free */
    float *numbers; /* embed, then words */
    uint32_t n_tokens;
    bool is_cut;
} kept;

struct pseg_encoders {
    pseg_cl *cl;
    pseg_stage stage;
    pseg_vit_config vit_config;
    const char *vision_prefix;
    pseg_vit_names names;
    pseg_tensors *vision_file;
    char vision_digest[PSEG_SHA256_HEX + 1];
    char *text_folder;
    pseg_text_shape shape;
    pseg_clip_config clip;
    const char *text_prefix; /* NULL: a table */
    pseg_store *store;
    pseg_vit *vit;
    pseg_phrases *phrases;
    pseg_view pixels;
    pseg_head_config head;
    uint32_t max_images, max_phrases;
    kept *table;
    size_t n_kept, cap, bytes;
};

/* ---- opening --------------------------------------------------------------------------------- */

/* The widths alone: whether words are read, and so what is loaded, is the head's matter. */
static pseg_status read_text(pseg_encoders *e, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_text_table *table = NULL;
    pseg_tensors *file = NULL;

    if (pseg_text_table_is(e->text_folder)) {
        PSEG_TRY(pseg_text_table_open(&table, e->text_folder, err));
        e->shape.dim = e->shape.hidden = pseg_text_table_dim(table);
        e->shape.is_table = true;
    } else {
        PSEG_TRY(pseg_clip_config_read(&e->clip, e->text_folder, err));
        e->shape.dim = e->clip.proj;
        e->shape.hidden = e->clip.hidden;
        PSEG_TRY(pseg_tensors_open_folder(&file, e->text_folder, err));
        PSEG_TRY(pseg_text_detect(&e->text_prefix, file, err));
    }
out:
    pseg_tensors_close(file);
    pseg_text_table_close(table);
    return rc;
}

pseg_status pseg_encoders_open(pseg_encoders **out, pseg_cl *cl, const char *vision,
                               const char *text, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_encoders *e = pseg_calloc(1, sizeof *e);

    *out = NULL;
    if (!e || !(e->text_folder = pseg_strdup(text)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for encoders");
    e->cl = cl;
    if (vision) {
        PSEG_TRY(pseg_vit_config_read(&e->vit_config, vision, err));
        PSEG_TRY(pseg_tensors_open_folder(&e->vision_file, vision, err));
        PSEG_TRY(pseg_vit_detect(&e->vision_prefix, &e->names, e->vision_file, err));
    }
    PSEG_TRY(read_text(e, err));
    *out = e;
    e = NULL;
out:
    pseg_encoders_close(e);
    return rc;
}

static void forget_all(pseg_encoders *e)
{
    for (size_t i = 0; i < e->cap; i++) {
        pseg_free(e->table[i].phrase);
        pseg_free(e->table[i].numbers);
        e->table[i] = (kept){0};
    }
    e->n_kept = e->bytes = 0;
}

void pseg_encoders_close(pseg_encoders *e)
{
    if (!e)
        return;
    forget_all(e);
    pseg_free(e->table);
    pseg_free(e->text_folder);
    pseg_phrases_close(e->phrases);
    pseg_vit_free(e->vit);
    pseg_store_free(e->store);
    pseg_tensors_close(e->vision_file);
    pseg_free(e);
}

const pseg_vit_config *pseg_encoders_vision(const pseg_encoders *e)
{
    return e->vision_file ? &e->vit_config : NULL;
}

const pseg_text_shape *pseg_encoders_text(const pseg_encoders *e)
{
    return &e->shape;
}

const char *pseg_encoders_vision_digest(const pseg_encoders *e)
{
    return e->vision_digest;
}

const char *pseg_encoders_text_digest(const pseg_encoders *e)
{
    return pseg_phrases_get_info(e->phrases)->digest;
}

static pseg_status hash_vision(pseg_encoders *e, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t sum[PSEG_SHA256_BYTES];
    pseg_sha256 *hash = pseg_sha256_new();

    if (!hash)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a digest");
    pseg_tensors_digest(e->vision_file, hash);
    pseg_sha256_finish(hash, sum);
    pseg_hex(e->vision_digest, sum, sizeof sum);
out:
    pseg_sha256_free(hash);
    return rc;
}

static pseg_status load_vision(pseg_encoders *e, pseg_err *err)
{
    const pseg_head_config *h = &e->head;
    pseg_status rc = PSEG_OK;
    pseg_specs specs = {0};
    pseg_weights *w = NULL;
    PSEG_TRY(pseg_vit_specs(&specs, &e->vit_config, e->names, err));
    PSEG_TRY(pseg_weights_from_tensors(&w, e->vision_file, e->vision_prefix, err));
    PSEG_TRY(pseg_weights_check(w, &specs, err));
    PSEG_TRY(pseg_vit_new(&e->vit, e->store, w, e->names, &e->vit_config, h->taps, h->n_taps,
                          h->is_tap_normed, h->gh, h->gw, e->max_images, err));
    PSEG_TRY(pseg_store_scratch(&e->pixels, e->store,
                                (size_t)e->max_images * 3 * h->height * h->width, err));
    pseg_tensors_drop(e->vision_file);
out:
    pseg_specs_deinit(&specs);
    pseg_weights_free(w);
    return rc;
}

pseg_status pseg_encoders_load(pseg_encoders *e, pseg_stream *s, const pseg_head_config *head,
                               uint32_t max_images, uint32_t max_phrases, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_phrases_options o = {.max_phrases = max_phrases, .has_words = head->has_word_tokens};

    PSEG_REQUIRE(!e->phrases && max_phrases, "loaded once");
    e->stage.s = s;
    e->head = *head;
    e->max_images = max_images;
    e->max_phrases = max_phrases;
    if (e->vision_file)
        PSEG_TRY(hash_vision(e, err));
    if (e->vision_file && max_images) {
        PSEG_TRY(pseg_store_new(&e->store, e->cl, err));
        PSEG_TRY(load_vision(e, err));
    }
    PSEG_TRY(pseg_phrases_open(&e->phrases, e->cl, e->text_folder, &o, err));
    e->cap = 1024;
    e->table = pseg_calloc(e->cap, sizeof *e->table);
    if (!e->table)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for phrases");
out:
    return rc;
}

uint64_t pseg_encoders_bytes(const pseg_encoders *e)
{
    return e->store ? pseg_store_weight_bytes(e->store) + pseg_store_activation_bytes(e->store) : 0;
}

/* ---- encoders in the graph ------------------------------------------------------------------- */

pseg_status pseg_encoders_towers(pseg_train_towers *out, const pseg_encoders *e, bool has_vision,
                                 bool has_text, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (has_text && !e->text_prefix)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%s is a table of phrases: there is no text encoder to train", e->text_folder);
    if (has_vision && !e->vision_file)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "there is no image encoder to train");
    out->vision = has_vision ? &e->vit_config : NULL;
    out->vision_names = e->names;
    out->text = has_text ? &e->clip : NULL;
    out->text_prefix = e->text_prefix;
out:
    return rc;
}

const char *pseg_encoders_text_folder(const pseg_encoders *e)
{
    return e->text_folder;
}

/* What a folder does not have as it is needed: positions at another grid, LoRA's matrices. */
typedef struct filler {
    const pseg_encoders *e;
    const pseg_head_config *head;
    const char *under, *pos;
    float *positions; /* at the head's grid */
    pseg_init init;
} filler;

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), k = strlen(with);

    return n >= k && strcmp(s + n - k, with) == 0;
}

static bool fill_in(void *ud, float *out, uint64_t n, const char *name)
{
    filler *f = ud;
    char full[PSEG_SPEC_NAME + 16];

    if (f->positions && strcmp(name, f->pos) == 0) {
        memcpy(out, f->positions, n * sizeof *out);
        return true;
    }
    if (ends(name, ".lora_b.weight")) {
        memset(out, 0, n * sizeof *out);
        return true;
    }
    if (!ends(name, ".lora_a.weight"))
        return false;
    snprintf(full, sizeof full, "%s%s", f->under, name);
    pseg_init_fill(&f->init, out, n, full);
    return true;
}

static pseg_status interpolate(filler *f, pseg_weights *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_vit_config *c = &f->e->vit_config;
    const pseg_head_config *h = f->head;
    size_t stored = (1 + (size_t)c->pos_h * c->pos_w) * c->hidden;
    size_t needed = (1 + (size_t)h->gh * h->gw) * c->hidden;
    float *given = pseg_malloc(stored * sizeof *given), *made = pseg_malloc(needed * sizeof *made);
    pseg_values p;

    if (!given || !made)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for position embeddings");
    PSEG_TRY(pseg_weights_get(&p, w, stored, err, "%s", f->pos));
    pseg_to_f32(given, p.data, p.type, stored);
    memcpy(made, given, c->hidden * sizeof *made);
    PSEG_TRY(pseg_interpolate_bicubic(made + c->hidden, h->gh, h->gw, given + c->hidden, c->pos_h,
                                      c->pos_w, c->hidden, c->kind == PSEG_VIT_DINOV2_REG, err));
    f->positions = made;
    made = NULL;
out:
    pseg_free(given);
    pseg_free(made);
    return rc;
}

static pseg_status fill_vision(filler *f, pseg_params *params, pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_encoders *e = f->e;
    const pseg_vit_config *c = &e->vit_config;
    pseg_specs specs = {0};
    pseg_weights *w = NULL;
    char pos[PSEG_SPEC_NAME];

    f->under = "vision.";
    f->pos = pos;
    pseg_vit_part_name(pos, c, e->names, PSEG_VIT_POS, 0);
    PSEG_TRY(pseg_vit_specs(&specs, c, e->names, err));
    PSEG_TRY(pseg_weights_from_tensors(&w, e->vision_file, e->vision_prefix, err));
    PSEG_TRY(pseg_weights_check(w, &specs, err));
    if (f->head->gh != c->pos_h || f->head->gw != c->pos_w)
        PSEG_TRY(interpolate(f, w, err));
    pseg_weights_overlay(w, fill_in, f);
    PSEG_TRY(pseg_params_load(params, s, PSEG_PARAMS_VALUE, w, "", f->under, true, err));
out:
    pseg_free(f->positions);
    f->positions = NULL;
    pseg_specs_deinit(&specs);
    pseg_weights_free(w);
    return rc;
}

static pseg_status fill_text(filler *f, pseg_params *params, pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_encoders *e = f->e;
    pseg_tensors *file = NULL;
    pseg_specs specs = {0};
    pseg_weights *w = NULL;

    f->under = "text.";
    PSEG_TRY(pseg_text_specs(&specs, &e->clip, e->text_prefix, err));
    PSEG_TRY(pseg_tensors_open_folder(&file, e->text_folder, err));
    PSEG_TRY(pseg_weights_from_tensors(&w, file, "", err));
    PSEG_TRY(pseg_weights_check(w, &specs, err));
    pseg_weights_overlay(w, fill_in, f);
    PSEG_TRY(pseg_params_load(params, s, PSEG_PARAMS_VALUE, w, "", f->under, true, err));
out:
    pseg_specs_deinit(&specs);
    pseg_weights_free(w);
    pseg_tensors_close(file);
    return rc;
}

pseg_status pseg_encoders_fill(pseg_encoders *e, pseg_params *params, pseg_stream *s,
                               const pseg_train_towers *t, const pseg_head_config *head,
                               const pseg_specs *specs, uint64_t seed, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    filler f = {.e = e, .head = head, .init = {seed, specs}};

    if (t->vision)
        PSEG_TRY(fill_vision(&f, params, s, err));
    if (t->text)
        PSEG_TRY(fill_text(&f, params, s, err));
out:
    return rc;
}

/* ---- images ---------------------------------------------------------------------------------- */

pseg_status pseg_encoders_images(pseg_encoders *e, const pseg_view *taps, const float *pixels,
                                 uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_head_config *h = &e->head;
    pseg_stream *s = e->stage.s;
    size_t one = 3 * (size_t)h->height * h->width, tap = (size_t)h->gh * h->gw * h->vision_dim;

    PSEG_REQUIRE(e->vit, "an image encoder");
    for (uint32_t at = 0; at < n; at += e->max_images) {
        uint32_t k = n - at < e->max_images ? n - at : e->max_images;

        PSEG_TRY(
            pseg_mem_write(s, e->pixels.mem, 0, pixels + at * one, k * one * sizeof *pixels, err));
        PSEG_TRY(pseg_vit_run(e->vit, &e->stage, e->pixels, k, err));
        for (uint32_t i = 0; i < h->n_taps; i++) {
            pseg_view from = pseg_vit_tap(e->vit, i);
            PSEG_TRY(pseg_mem_copy(s, taps[i].mem, (taps[i].off + at * tap) * sizeof(float),
                                   from.mem, from.off * sizeof(float), k * tap * sizeof(float),
                                   err));
        }
    }
    PSEG_TRY(pseg_stream_finish(s, err));
out:
    return rc;
}

/* ---- phrases --------------------------------------------------------------------------------- */

static uint64_t hash_of(const char *s)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * UINT64_C(0x100000001b3);
    return h ^ h >> 32;
}

/* The phrase's place, or the free one where it belongs. */
static kept *find(kept *table, size_t cap, const char *phrase)
{
    size_t i = (size_t)hash_of(phrase) & (cap - 1);

    while (table[i].phrase && strcmp(table[i].phrase, phrase) != 0)
        i = (i + 1) & (cap - 1);
    return &table[i];
}

/* Room for n more without a table that is over half full. */
static pseg_status grow(pseg_encoders *e, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t cap = e->cap;
    kept *table;

    while (2 * (e->n_kept + n) > cap)
        cap *= 2;
    if (cap == e->cap)
        goto out;
    table = pseg_calloc(cap, sizeof *table);
    if (!table)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for phrases");
    for (size_t i = 0; i < e->cap; i++)
        if (e->table[i].phrase)
            *find(table, cap, e->table[i].phrase) = e->table[i];
    pseg_free(e->table);
    e->table = table;
    e->cap = cap;
out:
    return rc;
}

/* One phrase of a pass. words: [n_tokens - 1, hidden], or NULL. */
static pseg_status keep(pseg_encoders *e, const char *phrase, kept as, const float *embed,
                        const float *words, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t dim = e->head.text_dim, n_words = words ? (size_t)as.n_tokens - 1 : 0;
    size_t n = dim + n_words * e->head.text_hidden;

    as.numbers = pseg_malloc(n * sizeof *as.numbers);
    as.phrase = pseg_strdup(phrase);
    if (!as.numbers || !as.phrase) {
        pseg_free(as.numbers);
        pseg_free(as.phrase);
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for phrases");
    }
    memcpy(as.numbers, embed, dim * sizeof *embed);
    if (words)
        memcpy(as.numbers + dim, words, (n - dim) * sizeof *words);
    *find(e->table, e->cap, phrase) = as;
    e->n_kept++;
    e->bytes += n * sizeof *as.numbers + strlen(phrase) + sizeof as;
out:
    return rc;
}

/* n phrases that are not kept yet, all different. */
static pseg_status encode(pseg_encoders *e, const char *const *phrases, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool has_words = e->head.has_word_tokens;
    size_t dim = e->head.text_dim, width = e->head.text_hidden;
    size_t row = has_words ? pseg_phrases_get_info(e->phrases)->max_tokens - 1 : 0;
    float *pooled = pseg_malloc(n * dim * sizeof *pooled);
    float *words = has_words ? pseg_malloc(n * row * width * sizeof *words) : NULL;
    uint32_t *n_tokens = pseg_calloc(n, sizeof *n_tokens);
    bool *is_cut = pseg_calloc(n, sizeof *is_cut);
    pseg_phrases_out out = {pooled, words, row, n_tokens, is_cut};

    if (!pooled || (has_words && !words) || !n_tokens || !is_cut)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for phrases");
    PSEG_TRY(pseg_phrases_run(&out, e->phrases, phrases, n, err));
    PSEG_TRY(grow(e, n, err));
    for (size_t i = 0; i < n; i++)
        PSEG_TRY(keep(e, phrases[i], (kept){.n_tokens = n_tokens[i], .is_cut = is_cut[i]},
                      pooled + i * dim, has_words ? words + i * row * width : NULL, err));
out:
    pseg_free(pooled);
    pseg_free(words);
    pseg_free(n_tokens);
    pseg_free(is_cut);
    return rc;
}

/* Encodes what is missing among phrases[0..n). */
static pseg_status fill(pseg_encoders *e, const char *const *phrases, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char **missing = pseg_calloc(n, sizeof *missing);
    size_t k = 0;

    if (!missing)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for phrases");
    for (size_t i = 0; i < n; i++) {
        bool is_known = find(e->table, e->cap, phrases[i])->phrase;

        for (size_t j = 0; j < k && !is_known; j++)
            is_known = strcmp(missing[j], phrases[i]) == 0;
        if (!is_known)
            missing[k++] = phrases[i];
    }
    if (k)
        PSEG_TRY(encode(e, missing, k, err));
out:
    pseg_free(missing);
    return rc;
}

pseg_status pseg_encoders_phrases(pseg_encoded_text *out, pseg_encoders *e,
                                  const char *const *phrases, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(e->phrases, "encoders that are loaded");
    if (e->bytes > KEEP_BYTES)
        forget_all(e);
    for (size_t at = 0; at < n; at += e->max_phrases) {
        size_t k = n - at < e->max_phrases ? n - at : e->max_phrases;
        PSEG_TRY(fill(e, phrases + at, k, err));
    }
    for (size_t i = 0; i < n; i++) {
        const kept *k = find(e->table, e->cap, phrases[i]);

        out[i] = (pseg_encoded_text){
            .embed = k->numbers,
            .words = e->head.has_word_tokens ? k->numbers + e->head.text_dim : NULL,
            .n_tokens = k->n_tokens,
            .is_cut = k->is_cut};
    }
out:
    return rc;
}

pseg_status pseg_encoders_tokens(int32_t *ids, uint32_t *lens, bool *is_cut, const pseg_encoders *e,
                                 uint32_t row, const char *const *phrases, size_t n, pseg_err *err)
{
    return pseg_phrases_tokens(ids, lens, is_cut, e->phrases, row, phrases, n, err);
}
