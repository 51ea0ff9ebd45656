#include "worker/model/text.h"
#include "common/base/alloc.h"
#include "worker/model/layers.h"
#include "worker/model/text_tree.h"

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
    pseg_store *store;
    uint32_t max_tokens, max_batch;
    pseg_values table; /* [vocab, hidden] where the file lies, or in own_table */
    float *own_table;
    float *positions; /* [max_pos, hidden] */
    pseg_text_tree tree;
    /* On their way to the device: embedded tokens, [rows of the tree, hidden]; the row of each
     * token, [batch, length]; each phrase's row of EOS, [batch]. */
    float *staging;
    int32_t *words, *ends;
    pseg_norm norm;
    pseg_linear projection;
    block *blocks;
    /* x: tokens; y, wide: what is multiplied next, of the matrices' type; hidden: the last x,
     * normed; eos: rows of EOS, as x and then normed */
    pseg_view x, y, wide, hidden, eos, pooled, embeds;
    pseg_view back_of, row_of, end_of; /* int32: back, words and ends on the device */
    pseg_view shown;                   /* for a stage hook; made when the first one comes */
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
    size_t rows = (size_t)t->max_batch * t->max_tokens, batch = t->max_batch;
    size_t wide = 3 * (size_t)c->hidden > c->mlp ? 3 * (size_t)c->hidden : c->mlp;
    pseg_dtype type = pseg_store_input_type(store);
    const struct {
        pseg_view *out;
        size_t n;
    } buffers[] = {{&t->x, rows * c->hidden},
                   {&t->eos, batch * c->hidden},
                   {&t->pooled, batch * c->hidden},
                   {&t->embeds, batch * c->proj},
                   {&t->back_of, rows},
                   {&t->row_of, rows},
                   {&t->end_of, batch}};

    PSEG_TRY(pseg_text_tree_init(&t->tree, (uint32_t)rows, err));
    t->staging = pseg_calloc(rows, c->hidden * sizeof *t->staging);
    t->words = pseg_calloc(rows, sizeof *t->words);
    t->ends = pseg_calloc(batch, sizeof *t->ends);
    if (!t->staging || !t->words || !t->ends)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the text encoder");
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        PSEG_TRY(pseg_store_scratch(buffers[i].out, store, buffers[i].n, err));
    PSEG_TRY(pseg_store_scratch_of(&t->y, store, type, rows * c->hidden, err));
    PSEG_TRY(pseg_store_scratch_of(&t->wide, store, type, rows * wide, err));
    t->hidden = t->y;
    if (type != PSEG_F32)
        PSEG_TRY(pseg_store_scratch(&t->hidden, store, rows * c->hidden, err));
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
    t->store = store;
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
    pseg_text_tree_deinit(&t->tree);
    pseg_free(t->staging);
    pseg_free(t->words);
    pseg_free(t->ends);
    pseg_free(t->blocks);
    pseg_free(t);
}

/* ---- running --------------------------------------------------------------------------------- */

/* The phrases become the tree, words and ends; *length = tokens of the longest. */
static pseg_status plant(uint32_t *length, pseg_text *t, const pseg_text_phrases *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *length = 0;
    for (uint32_t i = 0; i < p->batch; i++) {
        PSEG_REQUIRE(p->lens[i] >= 1 && p->lens[i] <= t->max_tokens, "lens");
        *length = p->lens[i] > *length ? p->lens[i] : *length;
    }
    pseg_text_tree_clear(&t->tree);
    for (uint32_t i = 0; i < p->batch; i++) {
        int32_t *rows = t->words + (size_t)i * *length;
        PSEG_TRY(pseg_text_tree_add(rows, &t->tree, p->ids + i * p->row, p->lens[i], err));
        t->ends[i] = rows[p->lens[i] - 1];
        for (uint32_t k = p->lens[i]; k < *length; k++)
            rows[k] = -1;
    }
out:
    return rc;
}

/* Token plus position embeddings, made on the host, into x; the tree's rows beside them. */
static pseg_status embed(pseg_text *t, pseg_stream *s, uint32_t batch, uint32_t length,
                         pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_text_tree *tree = &t->tree;
    const size_t d = t->c.hidden, row = d * (t->table.type == PSEG_F32 ? 4 : 2);

    for (size_t i = 0; i < tree->n; i++) {
        const float *pos = t->positions + (size_t)tree->position[i] * d;
        const size_t id = (size_t)tree->token[i];
        float *to = t->staging + i * d;
        PSEG_REQUIRE(tree->token[i] >= 0 && id < t->c.vocab, "token id");
        pseg_to_f32(to, (const uint8_t *)t->table.data + id * row, t->table.type, d);
        for (size_t k = 0; k < d; k++)
            to[k] += pos[k];
    }
    PSEG_TRY(pseg_mem_write(s, t->x.mem, 0, t->staging, tree->n * d * sizeof *t->staging, err));
    PSEG_TRY(pseg_mem_write(s, t->back_of.mem, 0, tree->back, tree->n * sizeof *tree->back, err));
    PSEG_TRY(pseg_mem_write(s, t->row_of.mem, 0, t->words,
                            (size_t)batch * length * sizeof *t->words, err));
    PSEG_TRY(pseg_mem_write(s, t->end_of.mem, 0, t->ends, batch * sizeof *t->ends, err));
out:
    return rc;
}

/* y = attention of n queries, in the first columns of wide, which sit at the nodes `from`. */
static pseg_status attend(pseg_text *t, pseg_stream *s, size_t n, pseg_view from, pseg_err *err)
{
    const size_t d = t->c.hidden, head = d / t->c.heads;

    return pseg_op_tree_attention(s,
                                  &(pseg_tree_attention){.out = t->y,
                                                         .q = t->wide,
                                                         .k = pseg_view_at(t->wide, d),
                                                         .v = pseg_view_at(t->wide, 2 * d),
                                                         .from = from,
                                                         .back = t->back_of,
                                                         .heads = t->c.heads,
                                                         .d = head,
                                                         .n_q = n,
                                                         .n_k = t->tree.n,
                                                         .q_row = 3 * d,
                                                         .k_row = 3 * d,
                                                         .v_row = 3 * d,
                                                         .out_row = d,
                                                         .scale = 1.0f / sqrtf((float)head)},
                                  err);
}

static pseg_status norm(pseg_text *t, pseg_stream *s, const pseg_norm *n, pseg_view out,
                        pseg_view x, size_t rows, pseg_err *err)
{
    return pseg_norm_run(s, n, out, x, rows, t->c.hidden, t->c.eps, PSEG_ACT_NONE, err);
}

/* x += out(y), x += MLP(LN2(x)). */
static pseg_status finish_block(pseg_text *t, pseg_stream *s, const block *b, pseg_view x,
                                size_t rows, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_linear_add(s, &b->out, x, t->y, PSEG_NO_VIEW, rows, err));
    PSEG_TRY(norm(t, s, &b->norm2, t->y, x, rows, err));
    PSEG_TRY(pseg_linear_run(s, &b->fc1, t->wide, t->y, rows, t->c.act, err));
    PSEG_TRY(pseg_linear_add(s, &b->fc2, x, t->wide, PSEG_NO_VIEW, rows, err));
out:
    return rc;
}

/* All rows of the tree. */
static pseg_status run_block(pseg_text *t, pseg_stream *s, const block *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t rows = t->tree.n;

    PSEG_TRY(norm(t, s, &b->norm1, t->y, t->x, rows, err));
    PSEG_TRY(pseg_linear_run(s, &b->qkv, t->wide, t->y, rows, PSEG_ACT_NONE, err));
    PSEG_TRY(attend(t, s, rows, PSEG_NO_VIEW, err));
    PSEG_TRY(finish_block(t, s, b, t->x, rows, err));
out:
    return rc;
}

/* Columns first .. first + n - 1 of a stacked projection, whose panels are whole there. */
static pseg_status project_part(pseg_text *t, pseg_stream *s, const pseg_linear *l, size_t first,
                                size_t n, size_t rows, pseg_err *err)
{
    const size_t step = l->w.type == PSEG_F32 ? 1 : PSEG_BF16_STEP;
    const size_t k = (l->k + step - 1) / step * step; /* as packed */

    return pseg_op_gemm(s,
                        &(pseg_gemm){.out = pseg_view_at(t->wide, first),
                                     .a = t->y,
                                     .w = pseg_view_at(l->w, first * k),
                                     .bias = pseg_view_at(l->bias, first),
                                     .m = rows,
                                     .n = n,
                                     .k = l->k,
                                     .out_stride = l->n},
                        err);
}

/* The last block, where only the rows of EOS are asked for: they are gathered in eos, and the other
 * rows have keys and values alone. Queries then lie in the first rows of wide. */
static pseg_status run_last_block(pseg_text *t, pseg_stream *s, const block *b, size_t batch,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t d = t->c.hidden, rows = t->tree.n;
    pseg_gather choose = {
        .out = t->eos, .x = t->x, .idx = t->end_of, .rows = batch, .c = d, .n_x = rows};

    PSEG_TRY(norm(t, s, &b->norm1, t->y, t->x, rows, err));
    if (d % PSEG_PANEL == 0)
        PSEG_TRY(project_part(t, s, &b->qkv, d, 2 * d, rows, err));
    else
        PSEG_TRY(pseg_linear_run(s, &b->qkv, t->wide, t->y, rows, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_op_gather(s, &choose, err));
    PSEG_TRY(norm(t, s, &b->norm1, t->y, t->eos, batch, err));
    PSEG_TRY(project_part(t, s, &b->qkv, 0, d, batch, err));
    PSEG_TRY(attend(t, s, batch, t->end_of, err));
    PSEG_TRY(finish_block(t, s, b, t->eos, batch, err));
    PSEG_TRY(norm(t, s, &t->norm, t->pooled, t->eos, batch, err));
out:
    return rc;
}

/* Shows rows of the tree to a hook as what they stand for: [batch, length, hidden], zeros behind a
 * phrase's end. */
static pseg_status show(pseg_text *t, pseg_stage *st, pseg_view x, uint32_t batch, uint32_t length,
                        const char *name, uint32_t i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const size_t d = t->c.hidden, rows = (size_t)t->max_batch * t->max_tokens;

    if (!st->fn)
        goto out;
    if (!t->shown.mem)
        PSEG_TRY(pseg_store_scratch(&t->shown, t->store, rows * d, err));
    PSEG_TRY(pseg_op_gather(st->s,
                            &(pseg_gather){.out = t->shown,
                                           .x = x,
                                           .idx = t->row_of,
                                           .rows = (size_t)batch * length,
                                           .c = d,
                                           .n_x = t->tree.n},
                            err));
    pseg_stage_done(st, t->shown, batch, length, d, name, i);
out:
    return rc;
}

/* The blocks, to pooled and, with words, hidden. */
static pseg_status run_blocks(pseg_text *t, pseg_stage *st, const pseg_text_phrases *p,
                              uint32_t length, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const size_t d = t->c.hidden;
    uint32_t whole = p->has_words ? t->c.layers : t->c.layers - 1;

    for (uint32_t i = 0; i < whole; i++) {
        PSEG_TRY(run_block(t, st->s, &t->blocks[i], err));
        PSEG_TRY(show(t, st, t->x, p->batch, length, "text.layer.%u", i, err));
    }
    if (!p->has_words) {
        PSEG_TRY(run_last_block(t, st->s, &t->blocks[whole], p->batch, err));
        goto out;
    }
    PSEG_TRY(norm(t, st->s, &t->norm, t->hidden, t->x, t->tree.n, err));
    PSEG_TRY(show(t, st, t->hidden, p->batch, length, "text.hidden", 0, err));
    PSEG_TRY(pseg_op_gather(st->s,
                            &(pseg_gather){.out = t->pooled,
                                           .x = t->hidden,
                                           .idx = t->end_of,
                                           .rows = p->batch,
                                           .c = d,
                                           .n_x = t->tree.n},
                            err));
out:
    return rc;
}

pseg_status pseg_text_run(pseg_text_rows *out, pseg_text *t, pseg_stage *st,
                          const pseg_text_phrases *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t length;

    PSEG_REQUIRE(p->batch >= 1 && p->batch <= t->max_batch, "batch");
    PSEG_TRY(plant(&length, t, p, err));
    PSEG_TRY(embed(t, st->s, p->batch, length, err));
    PSEG_TRY(show(t, st, t->x, p->batch, length, "text.embeddings", 0, err));
    PSEG_TRY(run_blocks(t, st, p, length, err));
    pseg_stage_done(st, t->pooled, p->batch, 1, t->c.hidden, "text.eos_row");
    PSEG_TRY(
        pseg_linear_run(st->s, &t->projection, t->embeds, t->pooled, p->batch, PSEG_ACT_NONE, err));
    pseg_stage_done(st, t->embeds, p->batch, 1, t->c.proj, "text.embeds");
    *out = (pseg_text_rows){.embeds = t->embeds,
                            .hidden = p->has_words ? t->hidden : PSEG_NO_VIEW,
                            .words = t->row_of,
                            .n = t->tree.n,
                            .length = length};
out:
    return rc;
}
