#include "worker/model/decoder.h"
#include "common/base/alloc.h"
#include "worker/model/decoder_parts.h"

#include <math.h>
#include <string.h>

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static pseg_status plan_upsampler(pseg_decoder *d, pseg_store *store, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t batch = d->limits.max_batch, places = d->places, cols = 0, even = 1, odd = 1;

    for (uint32_t i = 0; i < d->c.n_upsample; i++) {
        size_t n = batch * places * 4 * d->c.upsample[i];
        cols = max_size(cols, n);
        if (i % 2)
            odd = max_size(odd, n);
        else
            even = max_size(even, n);
        places *= 4;
    }
    PSEG_TRY(pseg_store_scratch(&d->up_cols, store, cols, err));
    PSEG_TRY(pseg_store_scratch(&d->up[0], store, even, err));
    PSEG_TRY(pseg_store_scratch(&d->up[1], store, odd, err));
    PSEG_TRY(pseg_store_scratch(&d->logits, store, batch * places, err));
out:
    return rc;
}

static pseg_status plan(pseg_decoder *d, pseg_store *store, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, batch = d->limits.max_batch;
    size_t tokens = batch * (2 + (size_t)d->limits.max_prompt), keys = batch * d->places;
    size_t last = d->c.upsample[d->c.n_upsample - 1];

    PSEG_TRY(pseg_store_scratch(&d->q, store, tokens * c, err));
    PSEG_TRY(pseg_store_scratch(&d->pe, store, tokens * c, err));
    PSEG_TRY(pseg_store_scratch(&d->qp, store, tokens * c, err));
    PSEG_TRY(pseg_store_scratch(&d->qkv, store, tokens * max_size(3 * c, d->c.mlp), err));
    PSEG_TRY(pseg_store_scratch(&d->tok_attended, store, tokens * c, err));
    PSEG_TRY(pseg_store_scratch(&d->key_len, store, batch, err));
    PSEG_TRY(pseg_store_scratch(&d->k, store, keys * c, err));
    PSEG_TRY(pseg_store_scratch(&d->kp, store, keys * c, err));
    PSEG_TRY(pseg_store_scratch(&d->kq, store, keys * 2 * d->inner, err));
    PSEG_TRY(pseg_store_scratch(&d->v, store, keys * d->inner, err));
    PSEG_TRY(pseg_store_scratch(&d->key_attended, store, keys * d->inner, err));
    PSEG_TRY(plan_upsampler(d, store, err));
    PSEG_TRY(pseg_store_scratch(&d->small[0], store, batch * c, err));
    PSEG_TRY(pseg_store_scratch(&d->small[1], store, batch * c, err));
    PSEG_TRY(pseg_store_scratch(&d->mask_weights, store, batch * last, err));
    PSEG_TRY(pseg_store_scratch(&d->iou, store, batch, err));
    PSEG_TRY(pseg_store_scratch(&d->embeds, store, batch * d->c.text_dim, err));
    PSEG_TRY(pseg_store_scratch(&d->prompts, store, batch * d->limits.max_prompt * c, err));
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
        !(d->lens = pseg_calloc(limits->max_batch, sizeof *d->lens)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the decoder");
    d->c = *c;
    d->limits = *limits;
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
    pseg_free(d);
}

pseg_view pseg_decoder_logits(const pseg_decoder *d)
{
    return d->logits;
}

pseg_view pseg_decoder_iou(const pseg_decoder *d)
{
    return d->iou;
}

/* ---- small steps ----------------------------------------------------------------------------- */

/* out = act(a w^T + bias), dense. */
static pseg_status linear(pseg_stream *s, const pseg_linear *l, pseg_view out, pseg_view a,
                          size_t rows, pseg_act act, pseg_err *err)
{
    return pseg_op_gemm(s,
                        &(pseg_gemm){.out = out,
                                     .a = a,
                                     .w = l->w,
                                     .bias = l->bias,
                                     .m = rows,
                                     .n = l->n,
                                     .k = l->k,
                                     .act = act},
                        err);
}

/* x += a w^T + bias. */
static pseg_status add_linear(pseg_stream *s, const pseg_linear *l, pseg_view x, pseg_view a,
                              size_t rows, pseg_err *err)
{
    return pseg_op_gemm(s,
                        &(pseg_gemm){.out = x,
                                     .a = a,
                                     .w = l->w,
                                     .bias = l->bias,
                                     .res = x,
                                     .m = rows,
                                     .n = l->n,
                                     .k = l->k},
                        err);
}

static pseg_status norm(pseg_stream *s, const pseg_norm *n, pseg_view x, size_t rows, size_t c,
                        float eps, pseg_act act, pseg_err *err)
{
    return pseg_op_layernorm(
        s,
        &(pseg_layernorm){
            .out = x, .x = x, .w = n->w, .b = n->b, .rows = rows, .c = c, .eps = eps, .act = act},
        err);
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
                   .a = is_first ? d->q : d->qp,
                   .w = l->self_qk.w,
                   .bias = l->self_qk.bias,
                   .m = rows,
                   .n = 2 * c,
                   .k = c,
                   .out_stride = 3 * c};

    if (!is_first)
        PSEG_TRY(add_pe(d, s, rows, err));
    PSEG_TRY(pseg_op_gemm(s, &g, err));
    g.out = pseg_view_at(d->qkv, 2 * c);
    g.a = d->q;
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
        PSEG_TRY(linear(s, &l->self_out, d->q, d->tok_attended, rows, PSEG_ACT_NONE, err));
    else
        PSEG_TRY(add_linear(s, &l->self_out, d->q, d->tok_attended, rows, err));
    PSEG_TRY(norm(s, &l->norm1, d->q, rows, c, d->c.ln_eps, PSEG_ACT_NONE, err));
out:
    return rc;
}

/* q += CA(q + pe, k + kpe, k), with the key's projection in the first columns of kq, whose rows
 * are kq_row wide. */
static pseg_status tokens_to_image(pseg_decoder *d, pseg_stream *s, const pseg_linear *to_q,
                                   const pseg_linear *to_out, size_t kq_row, size_t batch, size_t t,
                                   pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t rows = batch * t, inner = d->inner, head = inner / d->c.heads;

    PSEG_TRY(add_pe(d, s, rows, err));
    PSEG_TRY(linear(s, to_q, d->qkv, d->qp, rows, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_op_attention(s,
                               &(pseg_attention){.out = d->tok_attended,
                                                 .q = d->qkv,
                                                 .k = d->kq,
                                                 .v = d->v,
                                                 .batch = batch,
                                                 .heads = d->c.heads,
                                                 .d = head,
                                                 .n_q = t,
                                                 .n_k = d->places,
                                                 .q_row = inner,
                                                 .k_row = kq_row,
                                                 .v_row = inner,
                                                 .out_row = inner,
                                                 .q_batch = t * inner,
                                                 .k_batch = d->places * kq_row,
                                                 .v_batch = d->places * inner,
                                                 .out_batch = t * inner,
                                                 .scale = 1.0f / sqrtf((float)head)},
                               err));
    PSEG_TRY(add_linear(s, to_out, d->q, d->tok_attended, rows, err));
out:
    return rc;
}

/* k = LN4(k + CA(k + kpe, q + pe, q)), with the query's projection in the last columns of kq. */
static pseg_status image_to_tokens(pseg_decoder *d, pseg_stream *s, const pseg_decoder_layer *l,
                                   size_t batch, size_t t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, rows = batch * t, inner = d->inner, head = inner / d->c.heads;
    pseg_view values = pseg_view_at(d->qkv, rows * inner);

    PSEG_TRY(add_pe(d, s, rows, err));
    PSEG_TRY(linear(s, &l->it_k, d->qkv, d->qp, rows, PSEG_ACT_NONE, err));
    PSEG_TRY(linear(s, &l->it_v, values, d->q, rows, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_op_attention(s,
                               &(pseg_attention){.out = d->key_attended,
                                                 .q = pseg_view_at(d->kq, inner),
                                                 .k = d->qkv,
                                                 .v = values,
                                                 .key_len = d->key_len,
                                                 .batch = batch,
                                                 .heads = d->c.heads,
                                                 .d = head,
                                                 .n_q = d->places,
                                                 .n_k = t,
                                                 .q_row = 2 * inner,
                                                 .k_row = inner,
                                                 .v_row = inner,
                                                 .out_row = inner,
                                                 .q_batch = d->places * 2 * inner,
                                                 .k_batch = t * inner,
                                                 .v_batch = t * inner,
                                                 .out_batch = d->places * inner,
                                                 .scale = 1.0f / sqrtf((float)head)},
                               err));
    PSEG_TRY(add_linear(s, &l->it_out, d->k, d->key_attended, batch * d->places, err));
    PSEG_TRY(norm(s, &l->norm4, d->k, batch * d->places, c, d->c.ln_eps, PSEG_ACT_NONE, err));
out:
    return rc;
}

static pseg_status run_layer(pseg_decoder *d, pseg_stream *s, const pseg_decoder_layer *l,
                             bool is_first, size_t batch, size_t t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, rows = batch * t, keys = batch * d->places;

    PSEG_TRY(self_attention(d, s, l, is_first, batch, t, err));
    PSEG_TRY(add_kpe(d, s, batch, err));
    PSEG_TRY(linear(s, &l->keys_kq, d->kq, d->kp, keys, PSEG_ACT_NONE, err));
    PSEG_TRY(linear(s, &l->ti_v, d->v, d->k, keys, PSEG_ACT_NONE, err));
    PSEG_TRY(tokens_to_image(d, s, &l->ti_q, &l->ti_out, 2 * d->inner, batch, t, err));
    PSEG_TRY(norm(s, &l->norm2, d->q, rows, c, d->c.ln_eps, PSEG_ACT_NONE, err));
    PSEG_TRY(linear(s, &l->lin1, d->qkv, d->q, rows, PSEG_ACT_RELU, err));
    PSEG_TRY(add_linear(s, &l->lin2, d->q, d->qkv, rows, err));
    PSEG_TRY(norm(s, &l->norm3, d->q, rows, c, d->c.ln_eps, PSEG_ACT_NONE, err));
    PSEG_TRY(image_to_tokens(d, s, l, batch, t, err));
out:
    return rc;
}

static pseg_status run_final(pseg_decoder *d, pseg_stream *s, size_t batch, size_t t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t keys = batch * d->places;

    PSEG_TRY(add_kpe(d, s, batch, err));
    PSEG_TRY(linear(s, &d->final_k, d->kq, d->kp, keys, PSEG_ACT_NONE, err));
    PSEG_TRY(linear(s, &d->final_v, d->v, d->k, keys, PSEG_ACT_NONE, err));
    PSEG_TRY(tokens_to_image(d, s, &d->final_q, &d->final_out, d->inner, batch, t, err));
    PSEG_TRY(
        norm(s, &d->final_norm, d->q, batch * t, d->c.dim, d->c.final_ln_eps, PSEG_ACT_NONE, err));
out:
    return rc;
}

/* ---- from tokens and keys to a mask ---------------------------------------------------------- */

/* out = MLP(token `row` of each sample). */
static pseg_status head(pseg_decoder *d, pseg_stream *s, const pseg_linear mlp[3], pseg_view out,
                        size_t row, size_t batch, size_t t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim;

    PSEG_TRY(pseg_op_gemm(s,
                          &(pseg_gemm){.out = d->small[0],
                                       .a = pseg_view_at(d->q, row * c),
                                       .w = mlp[0].w,
                                       .bias = mlp[0].bias,
                                       .m = batch,
                                       .n = c,
                                       .k = c,
                                       .a_stride = t * c,
                                       .act = PSEG_ACT_RELU},
                          err));
    PSEG_TRY(linear(s, &mlp[1], d->small[1], d->small[0], batch, PSEG_ACT_RELU, err));
    PSEG_TRY(linear(s, &mlp[2], out, d->small[1], batch, PSEG_ACT_NONE, err));
out:
    return rc;
}

/* *out = [batch, places * 4^stages, last channels]. */
static pseg_status upsample(pseg_view *out, pseg_decoder *d, pseg_stage *st, size_t batch,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t h = d->limits.gh, w = d->limits.gw;

    *out = d->k;
    for (uint32_t i = 0; i < d->c.n_upsample; i++) {
        bool is_last = i + 1 == d->c.n_upsample;
        size_t n = d->c.upsample[i];
        /* GELU of the last stage acts on each number alone, so it may come before the shuffle. */
        PSEG_TRY(linear(st->s, &d->up_conv[i], d->up_cols, *out, batch * h * w,
                        is_last ? PSEG_ACT_GELU : PSEG_ACT_NONE, err));
        *out = d->up[i % 2];
        PSEG_TRY(pseg_op_shuffle2(st->s, *out, d->up_cols, batch, h, w, n, err));
        h *= 2;
        w *= 2;
        if (!is_last)
            PSEG_TRY(norm(st->s, &d->up_norm[i], *out, batch * h * w, n, d->c.upsample_eps,
                          PSEG_ACT_GELU, err));
        pseg_stage_done(st, *out, batch, h * w, n, "decoder.upsample.%u", i);
    }
out:
    return rc;
}

/* ---- running --------------------------------------------------------------------------------- */

pseg_status pseg_decoder_prompts(pseg_view *out, pseg_decoder *d, pseg_stage *st, pseg_view hidden,
                                 pseg_view embeds, uint32_t batch, uint32_t length, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, t = d->c.has_word_tokens ? length : 1;

    PSEG_REQUIRE(batch >= 1 && batch <= d->limits.max_batch && t <= d->limits.max_prompt, "sizes");
    PSEG_TRY(pseg_op_l2norm(st->s, d->embeds, embeds, batch, d->c.text_dim, 1e-12f, err));
    /* Every token is projected; the phrase as a whole then takes the place of BOS. */
    if (d->c.has_word_tokens)
        PSEG_TRY(linear(st->s, &d->word_proj, d->prompts, hidden, batch * t, PSEG_ACT_NONE, err));
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

/* Fills q, pe, k and key_len from the inputs; *out_t = tokens of the longest sample. */
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
    for (uint32_t i = 0; i < batch; i++) {
        PSEG_TRY(pseg_mem_copy(s, d->q.mem, (i * t + 2) * row, in[i].prompt, 0,
                               in[i].n_prompt * row, err));
        PSEG_TRY(
            pseg_mem_copy(s, d->k.mem, i * d->places * row, in[i].image, 0, d->places * row, err));
    }
    PSEG_TRY(pseg_mem_copy(s, d->pe.mem, 0, d->q.mem, 0, batch * t * row, err));
    *out_t = t;
out:
    return rc;
}

pseg_status pseg_decoder_run(pseg_decoder *d, pseg_stage *st, const pseg_decoder_input *in,
                             uint32_t batch, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, t = 0, n = d->places, last = d->c.upsample[d->c.n_upsample - 1];
    pseg_view channels;

    PSEG_REQUIRE(batch >= 1 && batch <= d->limits.max_batch, "batch");
    PSEG_TRY(gather(&t, d, st->s, in, batch, err));
    for (uint32_t i = 0; i < d->c.depth; i++) {
        PSEG_TRY(run_layer(d, st->s, &d->layers[i], i == 0, batch, t, err));
        pseg_stage_done(st, d->q, batch, t, c, "decoder.layers.%u.tokens", i);
        pseg_stage_done(st, d->k, batch, n, c, "decoder.layers.%u.keys", i);
    }
    PSEG_TRY(run_final(d, st->s, batch, t, err));
    pseg_stage_done(st, d->q, batch, t, c, "decoder.tokens");
    PSEG_TRY(upsample(&channels, d, st, batch, err));
    PSEG_TRY(head(d, st->s, d->mask_mlp, d->mask_weights, 1, batch, t, err));
    pseg_stage_done(st, d->mask_weights, batch, 1, last, "decoder.mask_weights");
    n <<= 2 * d->c.n_upsample;
    PSEG_TRY(pseg_op_maskdot(st->s, d->logits, d->mask_weights, channels, batch, 1, n, last, err));
    pseg_stage_done(st, d->logits, batch, 1, n, "mask_logits");
    PSEG_TRY(head(d, st->s, d->iou_head, d->iou, 0, batch, t, err));
    pseg_stage_done(st, d->iou, batch, 1, 1, "iou_logit");
out:
    return rc;
}
