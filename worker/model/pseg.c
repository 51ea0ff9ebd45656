#include "worker/model/pseg.h"
#include "common/base/alloc.h"
#include "worker/model/pseg_parts.h"

#include <math.h>
#include <string.h>

const char *pseg_precision_name(pseg_precision p)
{
    return p == PSEG_PRECISION_BF16 ? "bf16" : p == PSEG_PRECISION_BF16X3 ? "bf16x3" : "fp32";
}

const pseg_model_info *pseg_model_get_info(const pseg_model *m)
{
    return &m->info;
}

pseg_stream *pseg_model_stream(const pseg_model *m)
{
    return m->stage.s;
}

void pseg_model_set_stage_hook(pseg_model *m, pseg_stage_fn *fn, void *ud)
{
    m->stage.fn = fn;
    m->stage.ud = ud;
}

/* Bytes of n rows of the decoder's width. */
static size_t row_bytes(const pseg_model *m, size_t n)
{
    return n * m->info.dim * sizeof(float);
}

static size_t places(const pseg_model *m)
{
    return (size_t)m->info.gh * m->info.gw;
}

/* ---- images ---------------------------------------------------------------------------------- */

static pseg_status features_new(pseg_features **out, pseg_model *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_features *f = m->free_features;

    if (f) {
        m->free_features = f->next;
        *out = f;
        return rc;
    }
    f = pseg_calloc(1, sizeof *f);
    if (!f)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an image's features");
    f->m = m;
    PSEG_TRY(pseg_mem_new(&f->mem, m->cl, row_bytes(m, places(m)), err));
    *out = f;
    f = NULL;
out:
    pseg_free(f);
    return rc;
}

void pseg_features_free(pseg_features *f)
{
    if (!f)
        return;
    f->next = f->m->free_features;
    f->m->free_features = f;
}

pseg_status pseg_features_read(float *out, pseg_model *m, const pseg_features *f, pseg_err *err)
{
    pseg_status rc = pseg_mem_read(out, m->stage.s, f->mem, 0, row_bytes(m, places(m)), err);

    return rc == PSEG_OK ? pseg_stream_finish(m->stage.s, err) : rc;
}

pseg_status pseg_features_write(pseg_features **out, pseg_model *m, const float *numbers,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_features *f = NULL;

    *out = NULL;
    PSEG_TRY(features_new(&f, m, err));
    PSEG_TRY(pseg_mem_write(m->stage.s, f->mem, 0, numbers, row_bytes(m, places(m)), err));
    PSEG_TRY(pseg_stream_finish(m->stage.s, err));
    *out = f;
    f = NULL;
out:
    pseg_features_free(f);
    return rc;
}

static pseg_status encode_pass(pseg_features **out, pseg_model *m, const float *chw, uint32_t n,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t bytes = row_bytes(m, places(m));
    size_t image = 3 * (size_t)m->info.height * m->info.width * sizeof(float);
    pseg_stream *s = m->stage.s;

    PSEG_TRY(pseg_mem_write(s, m->pixels.mem, 0, chw, n * image, err));
    PSEG_TRY(pseg_vit_run(m->vit, &m->stage, m->pixels, n, err));
    PSEG_TRY(pseg_neck_run(m->neck, &m->stage, m->taps, n, err));
    for (uint32_t i = 0; i < n; i++) {
        PSEG_TRY(features_new(&out[i], m, err));
        PSEG_TRY(
            pseg_mem_copy(s, out[i]->mem, 0, pseg_neck_out(m->neck).mem, i * bytes, bytes, err));
    }
out:
    /* Also on failure: what is enqueued may read the caller's pixels. */
    return rc == PSEG_OK ? pseg_stream_finish(s, err) : (pseg_stream_finish(s, NULL), rc);
}

pseg_status pseg_model_encode_images(pseg_features **out, pseg_model *m, const float *chw, size_t n,
                                     pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t image = 3 * (size_t)m->info.height * m->info.width;

    memset(out, 0, n * sizeof *out);
    for (size_t at = 0; at < n; at += m->options.max_images) {
        size_t k = n - at < m->options.max_images ? n - at : m->options.max_images;
        PSEG_TRY(encode_pass(out + at, m, chw + at * image, (uint32_t)k, err));
    }
out:
    for (size_t i = 0; rc != PSEG_OK && i < n; i++) {
        pseg_features_free(out[i]);
        out[i] = NULL;
    }
    return rc;
}

/* ---- phrases --------------------------------------------------------------------------------- */

static pseg_status prompt_new(pseg_prompt **out, pseg_model *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_prompt *p = m->free_prompts;

    if (p) {
        m->free_prompts = p->next;
        *out = p;
        return rc;
    }
    p = pseg_calloc(1, sizeof *p);
    if (!p)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a phrase");
    p->m = m;
    PSEG_TRY(pseg_mem_new(&p->mem, m->cl, row_bytes(m, m->max_prompt), err));
    *out = p;
    p = NULL;
out:
    pseg_free(p);
    return rc;
}

void pseg_prompt_free(pseg_prompt *p)
{
    if (!p)
        return;
    p->next = p->m->free_prompts;
    p->m->free_prompts = p;
}

uint32_t pseg_prompt_n_tokens(const pseg_prompt *p)
{
    return p->n_tokens;
}

bool pseg_prompt_is_cut(const pseg_prompt *p)
{
    return p->is_cut;
}

pseg_status pseg_tokenize_phrase(int32_t *ids, uint32_t *len, bool *is_cut, const pseg_tokenizer *t,
                                 uint32_t max, const char *phrase, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n, i = 1;

    PSEG_TRY(pseg_tokenizer_encode(ids, max, &n, is_cut, t, phrase, strlen(phrase), err));
    while (i + 1 < n && ids[i] != pseg_tokenizer_eos(t))
        i++;
    *len = (uint32_t)i + 1;
out:
    return rc;
}

/* m->ids becomes [*n_distinct, max_tokens] with the phrases' tokens, each phrase that differs from
 * those before it (letters' case does not) in a row of its own; out: prompts to be filled in from
 * their `slot`. */
static pseg_status tokenise_all(uint32_t *n_distinct, pseg_prompt **out, pseg_model *m,
                                const char *const *phrases, size_t first, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const size_t row = m->info.max_tokens;

    *n_distinct = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t made = *n_distinct, k = 0;
        int32_t *ids = m->ids + made * row;
        PSEG_TRY(prompt_new(&out[i], m, err));
        rc = pseg_tokenize_phrase(ids, &m->lens[made], &out[i]->is_cut, m->tokenizer,
                                  m->info.max_tokens, phrases[i], err);
        if (rc == PSEG_EINVAL)
            pseg_err_field(err, "prompts[%zu].text", first + i);
        PSEG_TRY(rc);
        out[i]->n_tokens = m->lens[made];
        out[i]->n_rows = m->has_word_tokens ? m->lens[made] : 1;
        while (k < made && (m->lens[k] != m->lens[made] ||
                            memcmp(m->ids + k * row, ids, m->lens[k] * sizeof *ids) != 0))
            k++;
        out[i]->slot = k;
        *n_distinct += k == made;
    }
out:
    return rc;
}

/* The same for a table: rows of embeddings, each phrase in its own. */
static pseg_status look_up_all(pseg_text_rows *rows, pseg_prompt **out, pseg_model *m,
                               const char *const *phrases, size_t first, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t dim = pseg_text_table_dim(m->table), row = 0;

    for (uint32_t i = 0; i < n; i++) {
        PSEG_TRY(prompt_new(&out[i], m, err));
        rc = pseg_text_table_find(&row, m->table, phrases[i], err);
        if (rc == PSEG_EINVAL)
            pseg_err_field(err, "prompts[%zu].text", first + i);
        PSEG_TRY(rc);
        memcpy(m->rows + (size_t)i * dim, pseg_text_table_row(m->table, row),
               dim * sizeof *m->rows);
        out[i]->n_tokens = out[i]->n_rows = 1;
        out[i]->slot = i;
        out[i]->is_cut = false;
    }
    PSEG_TRY(pseg_mem_write(m->stage.s, m->embeds.mem, 0, m->rows, n * dim * sizeof *m->rows, err));
    *rows = (pseg_text_rows){.embeds = m->embeds};
out:
    return rc;
}

static pseg_status prompt_pass(pseg_prompt **out, pseg_model *m, const char *const *phrases,
                               size_t first, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_stream *s = m->stage.s;
    pseg_text_phrases p = {
        .ids = m->ids, .lens = m->lens, .row = m->info.max_tokens, .has_words = m->has_word_tokens};
    pseg_text_rows rows;
    pseg_view made;

    if (m->table) {
        p.batch = n;
        PSEG_TRY(look_up_all(&rows, out, m, phrases, first, n, err));
    } else {
        PSEG_TRY(tokenise_all(&p.batch, out, m, phrases, first, n, err));
        PSEG_TRY(pseg_text_run(&rows, m->text, &m->stage, &p, err));
    }
    PSEG_TRY(pseg_decoder_prompts(&made, m->decoder, &m->stage, &rows, p.batch, err));
    for (uint32_t i = 0; i < n; i++)
        PSEG_TRY(pseg_mem_copy(
            s, out[i]->mem, 0, made.mem,
            row_bytes(m, (size_t)out[i]->slot * (m->has_word_tokens ? rows.length : 1)),
            row_bytes(m, out[i]->n_rows), err));
out:
    return rc == PSEG_OK ? pseg_stream_finish(s, err) : (pseg_stream_finish(s, NULL), rc);
}

pseg_status pseg_model_encode_texts(pseg_prompt **out, pseg_model *m, const char *const *phrases,
                                    size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    memset(out, 0, n * sizeof *out);
    for (size_t at = 0; at < n; at += m->options.max_phrases) {
        size_t k = n - at < m->options.max_phrases ? n - at : m->options.max_phrases;
        PSEG_TRY(prompt_pass(out + at, m, phrases + at, at, (uint32_t)k, err));
    }
out:
    for (size_t i = 0; rc != PSEG_OK && i < n; i++) {
        pseg_prompt_free(out[i]);
        out[i] = NULL;
    }
    return rc;
}

/* ---- pairs ----------------------------------------------------------------------------------- */

static pseg_status decode_pass(float *logits, float *iou, pseg_model *m,
                               const pseg_features *const *images,
                               const pseg_prompt *const *prompts, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_stream *s = m->stage.s;
    size_t mask = (size_t)m->info.mask_height * m->info.mask_width;

    for (uint32_t i = 0; i < n; i++)
        m->inputs[i] = (pseg_decoder_input){images[i]->mem, prompts[i]->mem, prompts[i]->n_rows};
    PSEG_TRY(pseg_decoder_run(m->decoder, &m->stage, m->inputs, n, err));
    PSEG_TRY(pseg_mem_read(logits, s, pseg_decoder_logits(m->decoder).mem, 0,
                           n * mask * sizeof *logits, err));
    PSEG_TRY(pseg_mem_read(iou, s, pseg_decoder_iou(m->decoder).mem, 0, n * sizeof *iou, err));
    PSEG_TRY(pseg_stream_finish(s, err));
    for (uint32_t i = 0; i < n; i++)
        iou[i] = (float)(1 / (1 + exp(-(double)iou[i])));
out:
    if (rc != PSEG_OK)
        pseg_stream_finish(s, NULL);
    return rc;
}

pseg_status pseg_model_decode(float *logits, float *iou, pseg_model *m,
                              const pseg_features *const *images, const pseg_prompt *const *prompts,
                              size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t mask = (size_t)m->info.mask_height * m->info.mask_width;

    for (size_t at = 0; at < n; at += m->options.max_phrases) {
        size_t k = n - at < m->options.max_phrases ? n - at : m->options.max_phrases;
        PSEG_TRY(decode_pass(logits + at * mask, iou + at, m, images + at, prompts + at,
                             (uint32_t)k, err));
    }
out:
    return rc;
}

pseg_status pseg_model_warm_up(pseg_model *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t pixels = 3 * (size_t)m->info.height * m->info.width;
    size_t mask = (size_t)m->info.mask_height * m->info.mask_width;
    const char *phrase = m->table ? pseg_text_table_name(m->table, 0) : "a";
    float *numbers = pseg_calloc(pixels + mask + 1, sizeof *numbers);
    pseg_features *image = NULL;
    pseg_prompt *prompt = NULL;

    if (!numbers)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to warm up");
    PSEG_TRY(pseg_model_encode_images(&image, m, numbers, 1, err));
    PSEG_TRY(pseg_model_encode_texts(&prompt, m, &phrase, 1, err));
    PSEG_TRY(pseg_model_decode(numbers + pixels, numbers + pixels + mask, m,
                               (const pseg_features *const *)&image,
                               (const pseg_prompt *const *)&prompt, 1, err));
    /* What other numbers of images and phrases take of the operations that were just used. */
    PSEG_TRY(pseg_ops_prepare(m->stage.s, err));
out:
    pseg_features_free(image);
    pseg_prompt_free(prompt);
    pseg_free(numbers);
    return rc;
}
