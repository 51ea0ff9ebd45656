#include "worker/model/text.h"
#include "common/base/alloc.h"
#include "worker/model/layers.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct part_name {
    char s[PSEG_SPEC_NAME - 8];
} part_name;

static part_name part(const char *prefix, const char *name)
{
    part_name out;

    snprintf(out.s, sizeof out.s, "%s%s", prefix, name);
    return out;
}

static part_name layer_part(const char *prefix, uint32_t i, const char *name)
{
    part_name out;

    snprintf(out.s, sizeof out.s, "%sencoder.layers.%u.%s", prefix, i, name);
    return out;
}

#define TOKENS     "embeddings.token_embedding.weight"
#define POSITIONS  "embeddings.position_embedding.weight"
#define PROJECTION "text_projection"

pseg_status pseg_text_specs(pseg_specs *out, const pseg_clip_config *c, const char *prefix,
                            pseg_err *err)
{
    static const char *const attention[] = {"self_attn.q_proj", "self_attn.k_proj",
                                            "self_attn.v_proj", "self_attn.out_proj"};
    pseg_status rc = PSEG_OK;
    const uint64_t d = c->hidden;

    PSEG_TRY(pseg_specs_add(out, 2, (uint64_t[]){c->vocab, d}, err, "%s" TOKENS, prefix));
    PSEG_TRY(pseg_specs_add(out, 2, (uint64_t[]){c->max_pos, d}, err, "%s" POSITIONS, prefix));
    for (uint32_t i = 0; i < c->layers; i++) {
        PSEG_TRY(pseg_specs_norm(out, layer_part(prefix, i, "layer_norm1").s, d, err));
        for (size_t k = 0; k < 4; k++)
            PSEG_TRY(
                pseg_specs_linear(out, layer_part(prefix, i, attention[k]).s, d, d, true, err));
        PSEG_TRY(pseg_specs_norm(out, layer_part(prefix, i, "layer_norm2").s, d, err));
        PSEG_TRY(pseg_specs_linear(out, layer_part(prefix, i, "mlp.fc1").s, c->mlp, d, true, err));
        PSEG_TRY(pseg_specs_linear(out, layer_part(prefix, i, "mlp.fc2").s, d, c->mlp, true, err));
    }
    PSEG_TRY(pseg_specs_norm(out, part(prefix, "final_layer_norm").s, d, err));
    PSEG_TRY(pseg_specs_linear(out, PROJECTION, c->proj, d, false, err));
out:
    return rc;
}

pseg_status pseg_text_detect(const char **prefix, const pseg_tensors *t, pseg_err *err)
{
    static const char *const prefixes[] = {"text_model.", ""};
    pseg_status rc = PSEG_OK;

    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (pseg_tensors_find(t, part(prefixes[i], TOKENS).s)) {
            *prefix = prefixes[i];
            goto out;
        }
    PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0,
              "%s: no tensor " TOKENS
              ", with or without text_model. before it: not the weights of a CLIP text encoder",
              pseg_tensors_path(t));
out:
    return rc;
}

/* ---- on the device --------------------------------------------------------------------------- */

typedef struct block {
    pseg_norm norm1, norm2;
    pseg_linear qkv, out, fc1, fc2;
} block;

struct pseg_text {
    pseg_clip_config c;
    uint32_t max_tokens, max_batch;
    pseg_values table; /* [vocab, hidden] where the file lies, or in own_table */
    float *own_table;
    float *positions; /* [max_pos, hidden] */
    float *staging;   /* [max_batch * max_tokens, hidden]: embedded tokens on their way */
    int32_t *rows;    /* [max_batch]: which row is a phrase's EOS */
    pseg_norm norm;
    pseg_linear projection;
    block *blocks;
    /* x: tokens; y, wide: what is multiplied next, of the matrices' type; hidden: the last x,
     * normed */
    pseg_view x, y, wide, hidden, eos_rows, pooled, embeds;
};

static pseg_status load_block(block *b, pseg_store *store, pseg_weights *w,
                              const pseg_clip_config *c, const char *prefix, uint32_t i,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    part_name q = layer_part(prefix, i, "self_attn.q_proj");
    part_name k = layer_part(prefix, i, "self_attn.k_proj");
    part_name v = layer_part(prefix, i, "self_attn.v_proj");
    const char *const parts[] = {q.s, k.s, v.s};
    const size_t d = c->hidden;

    PSEG_TRY(pseg_load_norm(&b->norm1, store, w, layer_part(prefix, i, "layer_norm1").s, d, err));
    PSEG_TRY(pseg_load_stacked(&b->qkv, store, w, parts, 3, d, d, true, err));
    PSEG_TRY(pseg_load_linear(&b->out, store, w, layer_part(prefix, i, "self_attn.out_proj").s, d,
                              d, true, err));
    PSEG_TRY(pseg_load_norm(&b->norm2, store, w, layer_part(prefix, i, "layer_norm2").s, d, err));
    PSEG_TRY(pseg_load_linear(&b->fc1, store, w, layer_part(prefix, i, "mlp.fc1").s, c->mlp, d,
                              true, err));
    PSEG_TRY(pseg_load_linear(&b->fc2, store, w, layer_part(prefix, i, "mlp.fc2").s, d, c->mlp,
                              true, err));
out:
    return rc;
}

/* What stays on the host: the table where it lies, positions as float32. */
static pseg_status load_embeddings(pseg_text *t, pseg_weights *w, const char *prefix, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_clip_config *c = &t->c;
    size_t n = (size_t)c->max_pos * c->hidden, n_table = (size_t)c->vocab * c->hidden;
    pseg_values v;

    PSEG_TRY(pseg_weights_get(&v, w, n, err, "%s" POSITIONS, prefix));
    t->positions = pseg_calloc(n, sizeof *t->positions);
    if (!t->positions)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the text encoder");
    pseg_to_f32(t->positions, v.data, v.type, n);
    PSEG_TRY(pseg_weights_get(&t->table, w, n_table, err, "%s" TOKENS, prefix));
    if (!pseg_weights_is_mapped(w)) {
        t->own_table = pseg_memdup(t->table.data, n_table * sizeof(float));
        if (!t->own_table)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the text encoder");
        t->table.data = t->own_table;
    }
out:
    return rc;
}

static pseg_status plan(pseg_text *t, pseg_store *store, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_clip_config *c = &t->c;
    size_t rows = (size_t)t->max_batch * t->max_tokens;
    size_t wide = 3 * (size_t)c->hidden > c->mlp ? 3 * (size_t)c->hidden : c->mlp;
    pseg_dtype type = pseg_store_input_type(store);

    t->staging = pseg_calloc(rows, c->hidden * sizeof *t->staging);
    t->rows = pseg_calloc(t->max_batch, sizeof *t->rows);
    if (!t->staging || !t->rows)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the text encoder");
    PSEG_TRY(pseg_store_scratch(&t->x, store, rows * c->hidden, err));
    PSEG_TRY(pseg_store_scratch_of(&t->y, store, type, rows * c->hidden, err));
    PSEG_TRY(pseg_store_scratch_of(&t->wide, store, type, rows * wide, err));
    t->hidden = t->y;
    if (type != PSEG_F32)
        PSEG_TRY(pseg_store_scratch(&t->hidden, store, rows * c->hidden, err));
    PSEG_TRY(pseg_store_scratch(&t->eos_rows, store, t->max_batch, err));
    PSEG_TRY(pseg_store_scratch(&t->pooled, store, (size_t)t->max_batch * c->hidden, err));
    PSEG_TRY(pseg_store_scratch(&t->embeds, store, (size_t)t->max_batch * c->proj, err));
out:
    return rc;
}

pseg_status pseg_text_new(pseg_text **out, pseg_store *store, pseg_weights *w, const char *prefix,
                          const pseg_clip_config *c, uint32_t max_tokens, uint32_t max_batch,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_text *t = NULL;
    const pseg_dtype type = pseg_store_type(store);

    *out = NULL;
    PSEG_REQUIRE(max_tokens >= 2 && max_tokens <= c->max_pos && max_batch, "sizes");
    t = pseg_calloc(1, sizeof *t);
    if (!t || !(t->blocks = pseg_calloc(c->layers, sizeof *t->blocks)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the text encoder");
    t->c = *c;
    t->max_tokens = max_tokens;
    t->max_batch = max_batch;
    PSEG_TRY(load_embeddings(t, w, prefix, err));
    for (uint32_t i = 0; i < c->layers; i++)
        PSEG_TRY(load_block(&t->blocks[i], store, w, c, prefix, i, err));
    PSEG_TRY(
        pseg_load_norm(&t->norm, store, w, part(prefix, "final_layer_norm").s, c->hidden, err));
    PSEG_TRY(plan(t, store, err));
    pseg_store_set_type(store, PSEG_F32); /* one row a phrase: nothing to be won */
    PSEG_TRY(
        pseg_load_linear(&t->projection, store, w, PROJECTION, c->proj, c->hidden, false, err));
    pseg_store_set_type(store, type);
    *out = t;
    t = NULL;
out:
    pseg_text_free(t);
    return rc;
}

void pseg_text_free(pseg_text *t)
{
    if (!t)
        return;
    pseg_free(t->own_table);
    pseg_free(t->positions);
    pseg_free(t->staging);
    pseg_free(t->rows);
    pseg_free(t->blocks);
    pseg_free(t);
}

pseg_view pseg_text_hidden(const pseg_text *t)
{
    return t->hidden;
}

pseg_view pseg_text_embeds(const pseg_text *t)
{
    return t->embeds;
}

/* Token plus position embeddings, made on the host, into x. */
static pseg_status embed(pseg_text *t, pseg_stream *s, const int32_t *ids, uint32_t batch,
                         uint32_t length, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const size_t d = t->c.hidden, row = d * (t->table.type == PSEG_F32 ? 4 : 2);

    for (size_t i = 0; i < (size_t)batch * length; i++) {
        const float *pos = t->positions + i % length * d;
        float *to = t->staging + i * d;
        PSEG_REQUIRE(ids[i] >= 0 && (uint32_t)ids[i] < t->c.vocab, "token id");
        pseg_to_f32(to, (const uint8_t *)t->table.data + (size_t)ids[i] * row, t->table.type, d);
        for (size_t k = 0; k < d; k++)
            to[k] += pos[k];
    }
    PSEG_TRY(pseg_mem_write(s, t->x.mem, 0, t->staging,
                            (size_t)batch * length * d * sizeof *t->staging, err));
out:
    return rc;
}

static pseg_status run_block(pseg_text *t, pseg_stream *s, const block *b, size_t batch,
                             size_t length, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t rows = batch * length, d = t->c.hidden, head = d / t->c.heads;

    PSEG_TRY(
        pseg_norm_run(s, &b->norm1, t->y, t->x, rows, t->c.hidden, t->c.eps, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_linear_run(s, &b->qkv, t->wide, t->y, rows, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_op_attention(s,
                               &(pseg_attention){.out = t->y,
                                                 .q = t->wide,
                                                 .k = pseg_view_at(t->wide, d),
                                                 .v = pseg_view_at(t->wide, 2 * d),
                                                 .batch = batch,
                                                 .heads = t->c.heads,
                                                 .d = head,
                                                 .n_q = length,
                                                 .n_k = length,
                                                 .q_row = 3 * d,
                                                 .k_row = 3 * d,
                                                 .v_row = 3 * d,
                                                 .out_row = d,
                                                 .q_batch = length * 3 * d,
                                                 .k_batch = length * 3 * d,
                                                 .v_batch = length * 3 * d,
                                                 .out_batch = length * d,
                                                 .scale = 1.0f / sqrtf((float)head),
                                                 .causal = true},
                               err));
    PSEG_TRY(pseg_linear_add(s, &b->out, t->x, t->y, PSEG_NO_VIEW, rows, err));
    PSEG_TRY(
        pseg_norm_run(s, &b->norm2, t->y, t->x, rows, t->c.hidden, t->c.eps, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_linear_run(s, &b->fc1, t->wide, t->y, rows, t->c.act, err));
    PSEG_TRY(pseg_linear_add(s, &b->fc2, t->x, t->wide, PSEG_NO_VIEW, rows, err));
out:
    return rc;
}

pseg_status pseg_text_run(pseg_text *t, pseg_stage *st, const int32_t *ids, const uint32_t *lens,
                          uint32_t batch, uint32_t length, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t rows = (size_t)batch * length, d = t->c.hidden;

    PSEG_REQUIRE(batch >= 1 && batch <= t->max_batch, "batch");
    PSEG_REQUIRE(length >= 1 && length <= t->max_tokens, "length");
    PSEG_TRY(embed(t, st->s, ids, batch, length, err));
    pseg_stage_done(st, t->x, batch, length, d, "text.embeddings");
    for (uint32_t i = 0; i < t->c.layers; i++) {
        PSEG_TRY(run_block(t, st->s, &t->blocks[i], batch, length, err));
        pseg_stage_done(st, t->x, batch, length, d, "text.layer.%u", i);
    }
    PSEG_TRY(pseg_norm_run(st->s, &t->norm, t->hidden, t->x, rows, t->c.hidden, t->c.eps,
                           PSEG_ACT_NONE, err));
    pseg_stage_done(st, t->hidden, batch, length, d, "text.hidden");
    for (uint32_t i = 0; i < batch; i++) {
        PSEG_REQUIRE(lens[i] >= 1 && lens[i] <= length, "lens");
        t->rows[i] = (int32_t)((size_t)i * length + lens[i] - 1);
    }
    PSEG_TRY(pseg_mem_write(st->s, t->eos_rows.mem, 0, t->rows, batch * sizeof *t->rows, err));
    PSEG_TRY(pseg_op_gather(st->s,
                            &(pseg_gather){.out = t->pooled,
                                           .x = t->hidden,
                                           .idx = t->eos_rows,
                                           .rows = batch,
                                           .c = d,
                                           .n_x = rows},
                            err));
    pseg_stage_done(st, t->pooled, batch, 1, d, "text.eos_row");
    PSEG_TRY(
        pseg_linear_run(st->s, &t->projection, t->embeds, t->pooled, batch, PSEG_ACT_NONE, err));
    pseg_stage_done(st, t->embeds, batch, 1, t->c.proj, "text.embeds");
out:
    return rc;
}
