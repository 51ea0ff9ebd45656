#include "worker/model/decoder.h"
#include "common/base/alloc.h"
#include "worker/model/decoder_parts.h"
#include "worker/model/layers.h"

#include <math.h>
#include <string.h>

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static pseg_status plan(pseg_decoder *d, pseg_store *store, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, batch = d->limits.max_batch;
    size_t tokens = batch * (2 + (size_t)d->limits.max_prompt), keys = batch * d->places;
    pseg_dtype type = pseg_store_input_type(store);

    const struct {
        pseg_view *out;
        size_t n;
    } operands[] = {
        {&d->qp, tokens * c},
        {&d->qkv, tokens * max_size(3 * c, d->c.mlp)},
        {&d->tok_attended, tokens * c},
        {&d->kp, keys * c},
        {&d->kq, keys * 2 * d->inner},
        {&d->v, keys * d->inner},
        {&d->key_attended, keys * d->inner},
    };

    for (size_t i = 0; i < sizeof operands / sizeof *operands; i++)
        PSEG_TRY(pseg_store_scratch_of(operands[i].out, store, type, operands[i].n, err));
    PSEG_TRY(pseg_store_scratch(&d->q, store, tokens * c, err));
    PSEG_TRY(pseg_store_scratch(&d->pe, store, tokens * c, err));
    PSEG_TRY(pseg_store_scratch(&d->key_len, store, batch, err));
    PSEG_TRY(pseg_store_scratch(&d->k, store, keys * c, err));
    d->q_in = d->q;
    d->k_in = d->k;
    if (type != PSEG_F32) {
        PSEG_TRY(pseg_store_scratch_of(&d->q_in, store, type, tokens * c, err));
        PSEG_TRY(pseg_store_scratch_of(&d->k_in, store, type, keys * c, err));
    }
    PSEG_TRY(pseg_decoder_plan_mask(d, store, err));
    PSEG_TRY(pseg_store_scratch(&d->embeds, store, batch * d->c.text_dim, err));
    PSEG_TRY(pseg_store_scratch(&d->prompts, store, batch * d->limits.max_prompt * c, err));
    if (d->c.has_word_tokens)
        PSEG_TRY(pseg_store_scratch(&d->words, store, batch * d->limits.max_prompt * c, err));
out:
    return rc;
}

pseg_status pseg_decoder_new(pseg_decoder **out, pseg_store *store, pseg_weights *w,
                             const pseg_head_config *c, const pseg_decoder_limits *limits,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_decoder *d = NULL;

    *out = NULL;
    PSEG_REQUIRE(limits->gh && limits->gw && limits->max_prompt && limits->max_batch, "limits");
    d = pseg_calloc(1, sizeof *d);
    if (!d || !(d->layers = pseg_calloc(c->depth, sizeof *d->layers)) ||
        !(d->lens = pseg_calloc(limits->max_batch, sizeof *d->lens)) ||
        !(d->groups = pseg_calloc(limits->max_batch, sizeof *d->groups)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the decoder");
    d->c = *c;
    d->limits = *limits;
    d->store = store;
    d->inner = c->dim / c->downsample;
    d->places = (size_t)limits->gh * limits->gw;
    PSEG_TRY(pseg_decoder_load(d, store, w, err));
    PSEG_TRY(plan(d, store, err));
    *out = d;
    d = NULL;
out:
    pseg_decoder_free(d);
    return rc;
}

void pseg_decoder_free(pseg_decoder *d)
{
    if (!d)
        return;
    pseg_free(d->layers);
    pseg_free(d->lens);
    pseg_free(d->groups);
    pseg_free(d);
}

/* ---- small steps ----------------------------------------------------------------------------- */

/* to = from as an operand of a product, rows of D; nothing is to be done if they are one. */
static pseg_status as_operand(pseg_decoder *d, pseg_stream *s, pseg_view to, pseg_view from,
                              size_t rows, pseg_err *err)
{
    size_t c = d->c.dim;

    return to.mem == from.mem ? PSEG_OK
                              : pseg_op_copy(s, pseg_block_of(to, 0, c), pseg_block_of(from, 0, c),
                                             1, rows, c, 1.0f, err);
}

/* qp = q + pe, all tokens. */
static pseg_status add_pe(pseg_decoder *d, pseg_stream *s, size_t rows, pseg_err *err)
{
    size_t c = d->c.dim;

    return pseg_op_add(s,
                       &(pseg_add){.out = pseg_block_of(d->qp, 0, c),
                                   .x = pseg_block_of(d->q, 0, c),
                                   .y = pseg_block_of(d->pe, 0, c),
                                   .batch = 1,
                                   .n = rows,
                                   .c = c,
                                   .alpha = 1},
                       err);
}

/* kp = k + kpe. */
static pseg_status add_kpe(pseg_decoder *d, pseg_stream *s, size_t batch, pseg_err *err)
{
    size_t c = d->c.dim;

    return pseg_op_add(s,
                       &(pseg_add){.out = pseg_block_of(d->kp, d->places * c, c),
                                   .x = pseg_block_of(d->k, d->places * c, c),
                                   .y = pseg_block_of(d->pos, 0, c),
                                   .batch = batch,
                                   .n = d->places,
                                   .c = c,
                                   .alpha = 1},
                       err);
}

/* ---- the two-way transformer ----------------------------------------------------------------- */

/* q = LN1(q + SA(q + pe, q + pe, q)); the first block: q = LN1(SA(q, q, q)). */
static pseg_status self_attention(pseg_decoder *d, pseg_stream *s, const pseg_decoder_layer *l,
                                  bool is_first, size_t batch, size_t t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, rows = batch * t, head = c / d->c.heads;
    pseg_gemm g = {.out = d->qkv,
                   .a = is_first ? d->q_in : d->qp,
                   .w = l->self_qk.w,
                   .bias = l->self_qk.bias,
                   .m = rows,
                   .n = 2 * c,
                   .k = c,
                   .out_stride = 3 * c};

    PSEG_TRY(as_operand(d, s, d->q_in, d->q, rows, err));
    if (!is_first)
        PSEG_TRY(add_pe(d, s, rows, err));
    PSEG_TRY(pseg_op_gemm(s, &g, err));
    g.out = pseg_view_at(d->qkv, 2 * c);
    g.a = d->q_in;
    g.w = l->self_v.w;
    g.bias = l->self_v.bias;
    g.n = c;
    PSEG_TRY(pseg_op_gemm(s, &g, err));
    PSEG_TRY(pseg_op_attention(s,
                               &(pseg_attention){.out = d->tok_attended,
                                                 .q = d->qkv,
                                                 .k = pseg_view_at(d->qkv, c),
                                                 .v = pseg_view_at(d->qkv, 2 * c),
                                                 .key_len = d->key_len,
                                                 .batch = batch,
                                                 .heads = d->c.heads,
                                                 .d = head,
                                                 .n_q = t,
                                                 .n_k = t,
                                                 .q_row = 3 * c,
                                                 .k_row = 3 * c,
                                                 .v_row = 3 * c,
                                                 .out_row = c,
                                                 .q_batch = t * 3 * c,
                                                 .k_batch = t * 3 * c,
                                                 .v_batch = t * 3 * c,
                                                 .out_batch = t * c,
                                                 .scale = 1.0f / sqrtf((float)head)},
                               err));
    if (is_first)
        PSEG_TRY(pseg_linear_run(s, &l->self_out, d->q, d->tok_attended, rows, PSEG_ACT_NONE, err));
    else
        PSEG_TRY(pseg_linear_add(s, &l->self_out, d->q, d->tok_attended, PSEG_NO_VIEW, rows, err));
    PSEG_TRY(pseg_norm_run(s, &l->norm1, d->q, d->q, rows, c, d->c.ln_eps, PSEG_ACT_NONE, err));
out:
    return rc;
}

/* tok_attended = CA(queries of tokens, keys and values of the image). */
static pseg_status attend_image(pseg_decoder *d, pseg_stream *s, const pseg_decoder_group *g,
                                size_t k_row, size_t t, pseg_err *err)
{
    size_t inner = d->inner, head = inner / d->c.heads, n = d->places;
    size_t keys = (d->is_shared ? g->image : g->first) * n, tokens = g->first * t * inner;

    return pseg_op_attention(s,
                             &(pseg_attention){.out = pseg_view_at(d->tok_attended, tokens),
                                               .q = pseg_view_at(d->qkv, tokens),
                                               .k = pseg_view_at(d->kq, keys * k_row),
                                               .v = pseg_view_at(d->v, keys * inner),
                                               .batch = g->count,
                                               .heads = d->c.heads,
                                               .d = head,
                                               .n_q = t,
                                               .n_k = n,
                                               .q_row = inner,
                                               .k_row = k_row,
                                               .v_row = inner,
                                               .out_row = inner,
                                               .q_batch = t * inner,
                                               .k_batch = d->is_shared ? 0 : n * k_row,
                                               .v_batch = d->is_shared ? 0 : n * inner,
                                               .out_batch = t * inner,
                                               .scale = 1.0f / sqrtf((float)head)},
                             err);
}

/* key_attended = CA(queries of the image, keys and values of tokens). */
static pseg_status attend_tokens(pseg_decoder *d, pseg_stream *s, const pseg_decoder_group *g,
                                 pseg_view values, size_t t, pseg_err *err)
{
    size_t inner = d->inner, head = inner / d->c.heads, n = d->places;
    size_t keys = (d->is_shared ? g->image : g->first) * n, tokens = g->first * t * inner;

    return pseg_op_attention(
        s,
        &(pseg_attention){.out = pseg_view_at(d->key_attended, g->first * n * inner),
                          .q = pseg_view_at(d->kq, keys * 2 * inner + inner),
                          .k = pseg_view_at(d->qkv, tokens),
                          .v = pseg_view_at(values, tokens),
                          .key_len = pseg_view_at(d->key_len, g->first),
                          .batch = g->count,
                          .heads = d->c.heads,
                          .d = head,
                          .n_q = n,
                          .n_k = t,
                          .q_row = 2 * inner,
                          .k_row = inner,
                          .v_row = inner,
                          .out_row = inner,
                          .q_batch = d->is_shared ? 0 : n * 2 * inner,
                          .k_batch = t * inner,
                          .v_batch = t * inner,
                          .out_batch = n * inner,
                          .scale = 1.0f / sqrtf((float)head)},
        err);
}

/* q += CA(q + pe, k + kpe, k), with the key's projection in the first columns of kq, whose rows
 * are kq_row wide. */
static pseg_status tokens_to_image(pseg_decoder *d, pseg_stream *s, const pseg_linear *to_q,
                                   const pseg_linear *to_out, size_t kq_row, size_t batch, size_t t,
                                   pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t rows = batch * t;

    PSEG_TRY(add_pe(d, s, rows, err));
    PSEG_TRY(pseg_linear_run(s, to_q, d->qkv, d->qp, rows, PSEG_ACT_NONE, err));
    for (uint32_t i = 0; i < d->n_groups; i++)
        PSEG_TRY(attend_image(d, s, &d->groups[i], kq_row, t, err));
    PSEG_TRY(pseg_linear_add(s, to_out, d->q, d->tok_attended, PSEG_NO_VIEW, rows, err));
out:
    return rc;
}

/* k = LN4(k + CA(k + kpe, q + pe, q)), with the query's projection in the last columns of kq. */
static pseg_status image_to_tokens(pseg_decoder *d, pseg_stream *s, const pseg_decoder_layer *l,
                                   size_t batch, size_t t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, rows = batch * t;
    pseg_view values = pseg_view_at(d->qkv, rows * d->inner);

    PSEG_TRY(as_operand(d, s, d->q_in, d->q, rows, err));
    PSEG_TRY(add_pe(d, s, rows, err));
    PSEG_TRY(pseg_linear_run(s, &l->it_k, d->qkv, d->qp, rows, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_linear_run(s, &l->it_v, values, d->q_in, rows, PSEG_ACT_NONE, err));
    for (uint32_t i = 0; i < d->n_groups; i++)
        PSEG_TRY(attend_tokens(d, s, &d->groups[i], values, t, err));
    PSEG_TRY(pseg_linear_add(s, &l->it_out, d->k, d->key_attended, PSEG_NO_VIEW, batch * d->places,
                             err));
    PSEG_TRY(pseg_norm_run(s, &l->norm4, d->k, d->k, batch * d->places, c, d->c.ln_eps,
                           PSEG_ACT_NONE, err));
out:
    return rc;
}

/* Projections of the keys of n_images images (before the first block) or of all samples. */
static pseg_status project_keys(pseg_decoder *d, pseg_stream *s, const pseg_decoder_layer *l,
                                size_t n_images, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t keys = n_images * d->places;

    PSEG_TRY(add_kpe(d, s, n_images, err));
    PSEG_TRY(as_operand(d, s, d->k_in, d->k, keys, err));
    PSEG_TRY(pseg_linear_run(s, &l->keys_kq, d->kq, d->kp, keys, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_linear_run(s, &l->ti_v, d->v, d->k_in, keys, PSEG_ACT_NONE, err));
out:
    return rc;
}

static pseg_status run_layer(pseg_decoder *d, pseg_stream *s, const pseg_decoder_layer *l,
                             bool is_first, size_t batch, size_t t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, rows = batch * t;

    PSEG_TRY(self_attention(d, s, l, is_first, batch, t, err));
    if (!is_first)
        PSEG_TRY(project_keys(d, s, l, batch, err));
    PSEG_TRY(tokens_to_image(d, s, &l->ti_q, &l->ti_out, 2 * d->inner, batch, t, err));
    PSEG_TRY(pseg_norm_run(s, &l->norm2, d->q, d->q, rows, c, d->c.ln_eps, PSEG_ACT_NONE, err));
    PSEG_TRY(as_operand(d, s, d->q_in, d->q, rows, err));
    PSEG_TRY(pseg_linear_run(s, &l->lin1, d->qkv, d->q_in, rows, PSEG_ACT_RELU, err));
    PSEG_TRY(pseg_linear_add(s, &l->lin2, d->q, d->qkv, PSEG_NO_VIEW, rows, err));
    PSEG_TRY(pseg_norm_run(s, &l->norm3, d->q, d->q, rows, c, d->c.ln_eps, PSEG_ACT_NONE, err));
    PSEG_TRY(image_to_tokens(d, s, l, batch, t, err));
out:
    return rc;
}

static pseg_status run_final(pseg_decoder *d, pseg_stream *s, size_t batch, size_t t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t keys = batch * d->places;

    PSEG_TRY(add_kpe(d, s, batch, err));
    PSEG_TRY(as_operand(d, s, d->k_in, d->k, keys, err));
    PSEG_TRY(pseg_linear_run(s, &d->final_k, d->kq, d->kp, keys, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_linear_run(s, &d->final_v, d->v, d->k_in, keys, PSEG_ACT_NONE, err));
    PSEG_TRY(tokens_to_image(d, s, &d->final_q, &d->final_out, d->inner, batch, t, err));
    PSEG_TRY(pseg_norm_run(s, &d->final_norm, d->q, d->q, batch * t, d->c.dim, d->c.final_ln_eps,
                           PSEG_ACT_NONE, err));
out:
    return rc;
}

/* ---- running --------------------------------------------------------------------------------- */

pseg_status pseg_decoder_prompts(pseg_view *out, pseg_decoder *d, pseg_stage *st,
                                 const pseg_text_rows *text, uint32_t batch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, t = d->c.has_word_tokens ? text->length : 1;

    PSEG_REQUIRE(batch >= 1 && batch <= d->limits.max_batch && t <= d->limits.max_prompt, "sizes");
    PSEG_TRY(pseg_op_l2norm(st->s, d->embeds, text->embeds, batch, d->c.text_dim, 1e-12f, err));
    /* Every token is projected; the phrase as a whole then takes the place of BOS. */
    if (d->c.has_word_tokens) {
        PSEG_TRY(pseg_linear_run(st->s, &d->word_proj, d->words, text->hidden, text->n,
                                 PSEG_ACT_NONE, err));
        PSEG_TRY(pseg_op_gather(st->s,
                                &(pseg_gather){.out = d->prompts,
                                               .x = d->words,
                                               .idx = text->words,
                                               .rows = batch * t,
                                               .c = c,
                                               .n_x = text->n},
                                err));
    }
    PSEG_TRY(pseg_op_gemm(st->s,
                          &(pseg_gemm){.out = d->prompts,
                                       .a = d->embeds,
                                       .w = d->text_proj.w,
                                       .bias = d->text_proj.bias,
                                       .m = batch,
                                       .n = c,
                                       .k = d->c.text_dim,
                                       .out_stride = t * c},
                          err));
    pseg_stage_done(st, d->prompts, batch, t, c, "text.prompt");
    *out = d->prompts;
out:
    return rc;
}

/* Groups of neighbouring samples with one image. Where they save too little, all of the batch is
 * one group whose samples have keys of their own. Returns the number of images to project. */
static uint32_t make_groups(pseg_decoder *d, const pseg_decoder_input *in, uint32_t batch)
{
    d->n_groups = 0;
    for (uint32_t i = 0; i < batch; i++) {
        if (i == 0 || in[i].image != in[i - 1].image) {
            d->groups[d->n_groups] = (pseg_decoder_group){i, 0, d->n_groups};
            d->n_groups++;
        }
        d->groups[d->n_groups - 1].count++;
    }
    d->is_shared = d->n_groups <= batch / 2;
    if (d->is_shared)
        return d->n_groups;
    d->groups[0] = (pseg_decoder_group){0, batch, 0};
    d->n_groups = 1;
    return batch;
}

/* k = the images of the groups, or those of all samples. */
static pseg_status take_images(pseg_decoder *d, pseg_stream *s, const pseg_decoder_input *in,
                               uint32_t batch, bool each_group, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t bytes = d->places * d->c.dim * sizeof(float);
    uint32_t n = each_group ? d->n_groups : batch;

    for (uint32_t i = 0; i < n; i++)
        PSEG_TRY(pseg_mem_copy(s, d->k.mem, i * bytes,
                               in[each_group ? d->groups[i].first : i].image, 0, bytes, err));
out:
    return rc;
}

/* Fills q, pe and key_len from the inputs; *out_t = tokens of the longest sample. */
static pseg_status gather(size_t *out_t, pseg_decoder *d, pseg_stream *s,
                          const pseg_decoder_input *in, uint32_t batch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, t = 0, row = c * sizeof(float);

    for (uint32_t i = 0; i < batch; i++) {
        PSEG_REQUIRE(in[i].n_prompt >= 1 && in[i].n_prompt <= d->limits.max_prompt, "n_prompt");
        d->lens[i] = (int32_t)in[i].n_prompt + 2;
        t = max_size(t, in[i].n_prompt + 2);
    }
    /* Padded rows take part in products, and NaN times zero is NaN: they must hold numbers. */
    PSEG_TRY(pseg_mem_zero(s, d->q.mem, 0, batch * t * row, err));
    PSEG_TRY(pseg_mem_write(s, d->key_len.mem, 0, d->lens, batch * sizeof *d->lens, err));
    PSEG_TRY(pseg_op_copy(s, pseg_block_of(d->q, t * c, c), pseg_block_of(d->lead, 0, c), batch, 2,
                          c, 1.0f, err));
    for (uint32_t i = 0; i < batch; i++)
        PSEG_TRY(pseg_mem_copy(s, d->q.mem, (i * t + 2) * row, in[i].prompt, 0,
                               in[i].n_prompt * row, err));
    PSEG_TRY(pseg_mem_copy(s, d->pe.mem, 0, d->q.mem, 0, batch * t * row, err));
    *out_t = t;
out:
    return rc;
}

pseg_status pseg_decoder_run(pseg_decoder *d, pseg_stage *st, const pseg_decoder_input *in,
                             uint32_t batch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, t = 0;
    uint32_t n_images;

    PSEG_REQUIRE(batch >= 1 && batch <= d->limits.max_batch, "batch");
    PSEG_TRY(gather(&t, d, st->s, in, batch, err));
    n_images = make_groups(d, in, batch);
    PSEG_TRY(take_images(d, st->s, in, batch, d->is_shared, err));
    PSEG_TRY(project_keys(d, st->s, &d->layers[0], n_images, err));
    if (d->is_shared)
        PSEG_TRY(take_images(d, st->s, in, batch, false, err));
    for (uint32_t i = 0; i < d->c.depth; i++) {
        PSEG_TRY(run_layer(d, st->s, &d->layers[i], i == 0, batch, t, err));
        d->groups[0] = (pseg_decoder_group){0, batch, 0};
        d->n_groups = 1;
        d->is_shared = false;
        pseg_stage_done(st, d->q, batch, t, c, "decoder.layers.%u.tokens", i);
        pseg_stage_done(st, d->k, batch, d->places, c, "decoder.layers.%u.keys", i);
    }
    PSEG_TRY(run_final(d, st->s, batch, t, err));
    pseg_stage_done(st, d->q, batch, t, c, "decoder.tokens");
    PSEG_TRY(pseg_decoder_run_mask(d, st, batch, t, err));
out:
    return rc;
}
