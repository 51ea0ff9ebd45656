/* The text encoder alone: a tower, or a table of phrases. */
#include "common/base/alloc.h"
#include "worker/model/pseg_parts.h"
#include "worker/model/text_table.h"
#include "worker/model/towers.h"

#include <math.h>
#include <string.h>

struct pseg_phrases {
    pseg_text_table *table; /* alone; or all that follows */
    pseg_cl *cl;
    pseg_stage stage;
    pseg_tensors *file;
    pseg_store *store;
    pseg_text *text;
    pseg_tokenizer *tokenizer;
    pseg_phrases_info info;
    pseg_phrases_options o;
    int32_t *ids, *index; /* [max_phrases, max_tokens] */
    uint32_t *lens;       /* [max_phrases] */
    float *pooled;        /* [max_phrases, dim] */
    float *hidden;        /* rows of a pass, if has_words */
};

const pseg_phrases_info *pseg_phrases_get_info(const pseg_phrases *p)
{
    return &p->info;
}

void pseg_phrases_close(pseg_phrases *p)
{
    if (!p)
        return;
    pseg_stream_close(p->stage.s);
    pseg_text_free(p->text);
    pseg_store_free(p->store);
    pseg_tokenizer_free(p->tokenizer);
    pseg_tensors_close(p->file);
    pseg_text_table_close(p->table);
    pseg_free(p->ids);
    pseg_free(p->index);
    pseg_free(p->lens);
    pseg_free(p->pooled);
    pseg_free(p->hidden);
    pseg_free(p);
}

/* ---- opening --------------------------------------------------------------------------------- */

static pseg_status open_table(pseg_phrases *p, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = NULL;

    if (p->o.has_words)
        PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                  "%s is a table of whole phrases: a decoder that reads words needs a text tower",
                  folder);
    PSEG_TRY(pseg_text_table_open(&p->table, folder, err));
    path = pseg_text_table_file(folder);
    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a text encoder");
    PSEG_TRY(pseg_tensors_open_file(&p->file, path, err));
    PSEG_TRY(pseg_digest_part(p->info.digest, folder, true, p->file, err));
    p->info.is_table = true;
    p->info.dim = p->info.hidden = pseg_text_table_dim(p->table);
    p->info.max_tokens = 1;
    p->info.params = (uint64_t)pseg_text_table_count(p->table) * p->info.dim;
out:
    pseg_free(path);
    return rc;
}

static pseg_status make_host(pseg_phrases *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = p->o.max_phrases, tokens = n * p->info.max_tokens;

    p->ids = pseg_calloc(tokens, sizeof *p->ids);
    p->index = pseg_calloc(tokens, sizeof *p->index);
    p->lens = pseg_calloc(n, sizeof *p->lens);
    p->pooled = pseg_calloc(n * p->info.dim, sizeof *p->pooled);
    if (p->o.has_words)
        p->hidden = pseg_calloc(tokens * p->info.hidden, sizeof *p->hidden);
    if (!p->ids || !p->index || !p->lens || !p->pooled || (p->o.has_words && !p->hidden))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu phrases", n);
out:
    return rc;
}

static pseg_status load_tower(pseg_phrases *p, const pseg_clip_config *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_weights *w = NULL;
    pseg_specs specs = {0};
    const char *prefix;

    PSEG_TRY(pseg_text_detect(&prefix, p->file, err));
    PSEG_TRY(pseg_weights_from_tensors(&w, p->file, "", err));
    PSEG_TRY(pseg_text_specs(&specs, c, prefix, err));
    PSEG_TRY(pseg_weights_check(w, &specs, err));
    p->info.params = pseg_specs_params(&specs);
    PSEG_TRY(pseg_store_new(&p->store, p->cl, err));
    if (p->o.precision != PSEG_PRECISION_FP32)
        pseg_store_set_type(p->store,
                            p->o.precision == PSEG_PRECISION_BF16 ? PSEG_BF16 : PSEG_BF16X2);
    PSEG_TRY(pseg_text_new(&p->text, p->store, w, prefix, c, c->max_pos, p->o.max_phrases, err));
out:
    pseg_weights_free(w);
    pseg_specs_deinit(&specs);
    return rc;
}

static pseg_status open_tower(pseg_phrases *p, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_clip_config c;

    PSEG_TRY(pseg_clip_config_read(&c, folder, err));
    if (p->o.precision == PSEG_PRECISION_BF16 &&
        (c.hidden % PSEG_BF16_STEP || c.mlp % PSEG_BF16_STEP))
        PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                  "widths of %u and %u in precision bf16: they must be multiples of %d; use fp32",
                  c.hidden, c.mlp, PSEG_BF16_STEP);
    PSEG_TRY(pseg_tensors_open_folder(&p->file, folder, err));
    PSEG_TRY(pseg_tokenizer_open(&p->tokenizer, folder, err));
    if (pseg_tokenizer_vocab(p->tokenizer) > c.vocab)
        PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0,
                  "%s: its tokenizer makes ids up to %u, but the text encoder has %u", folder,
                  pseg_tokenizer_vocab(p->tokenizer) - 1, c.vocab);
    pseg_tuning_load(p->cl);
    PSEG_TRY(pseg_stream_open(&p->stage.s, p->cl, err));
    PSEG_TRY(load_tower(p, &c, err));
    PSEG_TRY(pseg_digest_part(p->info.digest, folder, true, p->file, err));
    p->info.dim = c.proj;
    p->info.hidden = c.hidden;
    p->info.max_tokens = c.max_pos;
    PSEG_TRY(make_host(p, err));
out:
    return rc;
}

pseg_status pseg_phrases_open(pseg_phrases **out, pseg_cl *cl, const char *folder,
                              const pseg_phrases_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_phrases *p = NULL;

    *out = NULL;
    if (o->max_phrases < 1 || o->max_phrases > 1024)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "a batch of %u phrases: the limits are 1..1024",
                  o->max_phrases);
    p = pseg_calloc(1, sizeof *p);
    if (!p)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a text encoder");
    p->cl = cl;
    p->o = *o;
    if (pseg_text_table_is(folder))
        PSEG_TRY(open_table(p, folder, err));
    else
        PSEG_TRY(open_tower(p, folder, err));
    *out = p;
    p = NULL;
out:
    pseg_phrases_close(p);
    return rc;
}

/* ---- running --------------------------------------------------------------------------------- */

static pseg_status run_table(const pseg_phrases_out *out, pseg_phrases *p,
                             const char *const *phrases, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t i = 0; i < n; i++) {
        uint32_t row = 0;
        rc = pseg_text_table_find(&row, p->table, phrases[i], err);
        if (rc == PSEG_EINVAL)
            pseg_err_field(err, "prompts[%zu].text", i);
        PSEG_TRY(rc);
        memcpy(out->pooled + i * p->info.dim, pseg_text_table_row(p->table, row),
               p->info.dim * sizeof *out->pooled);
        if (out->n_tokens)
            out->n_tokens[i] = 1;
        if (out->is_cut)
            out->is_cut[i] = false;
    }
out:
    return rc;
}

static pseg_status tokenise(const pseg_phrases_out *out, pseg_phrases *p,
                            const char *const *phrases, size_t first, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t i = 0; i < n; i++) {
        bool is_cut;
        rc = pseg_tokenize_phrase(p->ids + i * p->info.max_tokens, &p->lens[i], &is_cut,
                                  p->tokenizer, p->info.max_tokens, phrases[i], err);
        if (rc == PSEG_EINVAL)
            pseg_err_field(err, "prompts[%zu].text", first + i);
        PSEG_TRY(rc);
        if (out->words && p->lens[i] - 1 > out->row)
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "phrase %zu has %u words; there is room for %zu",
                      first + i, p->lens[i] - 1, out->row);
        if (out->n_tokens)
            out->n_tokens[first + i] = p->lens[i];
        if (out->is_cut)
            out->is_cut[first + i] = is_cut;
    }
out:
    return rc;
}

static void put_pooled(float *out, const float *in, uint32_t dim)
{
    double sum = 0;

    for (uint32_t k = 0; k < dim; k++)
        sum += (double)in[k] * in[k];
    /* as the decoder's l2norm: at least 1e-12 */
    double length = sqrt(sum) > 1e-12 ? sqrt(sum) : 1e-12;
    for (uint32_t k = 0; k < dim; k++)
        out[k] = (float)(in[k] / length);
}

static void put_words(const pseg_phrases_out *out, const pseg_phrases *p, size_t first, size_t n,
                      uint32_t length)
{
    uint32_t hidden = p->info.hidden;

    for (size_t i = 0; i < n; i++) {
        float *to = out->words + (first + i) * out->row * hidden;
        memset(to, 0, out->row * hidden * sizeof *to);
        for (uint32_t t = 1; t < p->lens[i]; t++, to += hidden)
            memcpy(to, p->hidden + (size_t)p->index[i * length + t] * hidden, hidden * sizeof *to);
    }
}

static pseg_status run_pass(const pseg_phrases_out *out, pseg_phrases *p,
                            const char *const *phrases, size_t first, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_stream *s = p->stage.s;
    pseg_text_phrases batch = {.ids = p->ids,
                               .lens = p->lens,
                               .row = p->info.max_tokens,
                               .batch = (uint32_t)n,
                               .has_words = out->words != NULL};
    pseg_text_rows rows;

    PSEG_TRY(tokenise(out, p, phrases + first, first, n, err));
    PSEG_TRY(pseg_text_run(&rows, p->text, &p->stage, &batch, err));
    PSEG_TRY(pseg_mem_read(p->pooled, s, rows.embeds.mem, rows.embeds.off * sizeof *p->pooled,
                           n * p->info.dim * sizeof *p->pooled, err));
    if (out->words) {
        PSEG_TRY(pseg_mem_read(p->hidden, s, rows.hidden.mem, rows.hidden.off * sizeof *p->hidden,
                               (size_t)rows.n * p->info.hidden * sizeof *p->hidden, err));
        PSEG_TRY(pseg_mem_read(p->index, s, rows.words.mem, rows.words.off * sizeof *p->index,
                               n * rows.length * sizeof *p->index, err));
    }
    PSEG_TRY(pseg_stream_finish(s, err));
    for (size_t i = 0; i < n; i++)
        put_pooled(out->pooled + (first + i) * p->info.dim, p->pooled + i * p->info.dim,
                   p->info.dim);
    if (out->words)
        put_words(out, p, first, n, rows.length);
out:
    return rc == PSEG_OK ? PSEG_OK : (pseg_stream_finish(s, NULL), rc);
}

pseg_status pseg_phrases_run(const pseg_phrases_out *out, pseg_phrases *p,
                             const char *const *phrases, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(!out->words || p->o.has_words, "words");
    if (p->table)
        return run_table(out, p, phrases, n, err);
    for (size_t at = 0; at < n; at += p->o.max_phrases) {
        size_t k = n - at < p->o.max_phrases ? n - at : p->o.max_phrases;
        PSEG_TRY(run_pass(out, p, phrases, at, k, err));
    }
out:
    return rc;
}

pseg_status pseg_phrases_tokens(int32_t *ids, uint32_t *lens, bool *is_cut, const pseg_phrases *p,
                                uint32_t row, const char *const *phrases, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (p->table)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "a table of phrases has no tokens");
    PSEG_REQUIRE(row >= 2 && row <= p->info.max_tokens, "row");
    for (size_t i = 0; i < n; i++) {
        int32_t *to = ids + i * row;

        PSEG_TRY(
            pseg_tokenize_phrase(to, &lens[i], &is_cut[i], p->tokenizer, row, phrases[i], err));
        for (uint32_t k = lens[i]; k < row; k++)
            to[k] = to[lens[i] - 1];
    }
out:
    return rc;
}
