/* The decoder's second half: from tokens and keys to mask logits and a predicted IoU. */
#include "worker/model/decoder_parts.h"
#include "worker/model/layers.h"

/* Elements of the largest stage with i % 2 == parity, for the whole batch. */
static size_t stage_elems(const pseg_decoder *d, uint32_t parity)
{
    size_t places = d->limits.max_batch * d->places, most = 1;

    for (uint32_t i = 0; i < d->c.n_upsample; i++) {
        places *= 4;
        if (i % 2 == parity)
            most = places * d->c.upsample[i] > most ? places * d->c.upsample[i] : most;
    }
    return most;
}

pseg_status pseg_decoder_plan_mask(pseg_decoder *d, pseg_store *store, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t batch = d->limits.max_batch, last = d->c.upsample[d->c.n_upsample - 1];
    size_t pixels = (batch * d->places) << (2 * d->c.n_upsample);

    PSEG_TRY(pseg_store_scratch_of(&d->up[0], store, pseg_store_input_type(store),
                                   stage_elems(d, 0), err));
    PSEG_TRY(pseg_store_scratch_of(&d->up[1], store, pseg_store_input_type(store),
                                   stage_elems(d, 1), err));
    PSEG_TRY(pseg_store_scratch(&d->subpixels, store, pixels, err));
    PSEG_TRY(pseg_store_scratch(&d->logits, store, pixels, err));
    PSEG_TRY(pseg_store_scratch(&d->small[0], store, batch * d->c.dim, err));
    PSEG_TRY(pseg_store_scratch(&d->small[1], store, batch * d->c.dim, err));
    PSEG_TRY(pseg_store_scratch(&d->mask_weights, store, batch * last, err));
    PSEG_TRY(pseg_store_scratch(&d->iou, store, batch, err));
out:
    return rc;
}

pseg_view pseg_decoder_logits(const pseg_decoder *d)
{
    return d->logits;
}

pseg_view pseg_decoder_iou(const pseg_decoder *d)
{
    return d->iou;
}

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
    PSEG_TRY(pseg_linear_run(s, &mlp[1], d->small[1], d->small[0], batch, PSEG_ACT_RELU, err));
    PSEG_TRY(pseg_linear_run(s, &mlp[2], out, d->small[1], batch, PSEG_ACT_NONE, err));
out:
    return rc;
}

/* x[batch, gh*gw, 4^stages * c], the upsampler's order, to rows and columns of pixels. *out is one
 * of the two buffers, or x itself for no stages. */
static pseg_status to_raster(pseg_view *out, pseg_decoder *d, pseg_stream *s, pseg_view x,
                             const pseg_view buffers[2], size_t batch, uint32_t stages, size_t c,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t h = d->limits.gh, w = d->limits.gw;

    *out = x;
    for (uint32_t i = 0; i < stages; i++) {
        pseg_view to = buffers[(stages - 1 - i) % 2];
        PSEG_TRY(pseg_op_shuffle2(s, to, *out, batch, h, w, c << (2 * (stages - 1 - i)), err));
        *out = to;
        h *= 2;
        w *= 2;
    }
out:
    return rc;
}

/* Shows stage i as the map of pixels that it is, in float32 only. */
static pseg_status show_stage(pseg_decoder *d, pseg_stage *st, pseg_view x, size_t batch,
                              uint32_t i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t even = stage_elems(d, 0), odd = stage_elems(d, 1), elems = even > odd ? even : odd;
    pseg_view map;

    if (!st->fn || x.type != PSEG_F32)
        goto out;
    for (size_t k = 0; k < 2; k++)
        if (!d->raster[k].mem)
            PSEG_TRY(pseg_store_scratch(&d->raster[k], d->store, elems, err));
    PSEG_TRY(to_raster(&map, d, st->s, x, d->raster, batch, i + 1, d->c.upsample[i], err));
    pseg_stage_done(st, map, batch, d->places << (2 * (i + 1)), d->c.upsample[i],
                    "decoder.upsample.%u", i);
out:
    return rc;
}

/* *out = [batch, places * 4^stages, last channels]. ConvTranspose2d k2 s2 makes four pixels of
 * each, which look at no neighbour, nor do the norms: so nothing is moved into place here. The four
 * stand behind each other, in turn for every stage, until logits() puts the one channel that is
 * left into rows and columns. */
static pseg_status upsample(pseg_view *out, pseg_decoder *d, pseg_stage *st, size_t batch,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t rows = batch * d->places;

    *out = d->k_in; /* as run_final left it */
    for (uint32_t i = 0; i < d->c.n_upsample; i++) {
        bool is_last = i + 1 == d->c.n_upsample;
        PSEG_TRY(pseg_linear_run(st->s, &d->up_conv[i], d->up[i % 2], *out, rows,
                                 is_last ? PSEG_ACT_GELU : PSEG_ACT_NONE, err));
        *out = d->up[i % 2];
        rows *= 4;
        if (!is_last)
            PSEG_TRY(pseg_norm_run(st->s, &d->up_norm[i], *out, *out, rows, d->c.upsample[i],
                                   d->c.upsample_eps, PSEG_ACT_GELU, err));
        PSEG_TRY(show_stage(d, st, *out, batch, i, err));
    }
out:
    return rc;
}

/* logits = mask weights . channels, in rows and columns. */
static pseg_status make_logits(pseg_decoder *d, pseg_stage *st, pseg_view channels, size_t batch,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t stages = d->c.n_upsample;
    size_t n = d->places << (2 * stages), last = d->c.upsample[stages - 1];
    /* The last of the shuffles writes buffer 0. */
    const pseg_view buffers[2] = {d->logits, d->subpixels};
    pseg_view dots = buffers[stages % 2], made;

    PSEG_TRY(pseg_op_maskdot(st->s, dots, d->mask_weights, channels, batch, 1, n, last, err));
    PSEG_TRY(to_raster(&made, d, st->s, dots, buffers, batch, stages, 1, err));
    pseg_stage_done(st, d->logits, batch, 1, n, "mask_logits");
out:
    return rc;
}

pseg_status pseg_decoder_run_mask(pseg_decoder *d, pseg_stage *st, size_t batch, size_t t,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t last = d->c.upsample[d->c.n_upsample - 1];
    pseg_view channels;

    PSEG_TRY(upsample(&channels, d, st, batch, err));
    PSEG_TRY(head(d, st->s, d->mask_mlp, d->mask_weights, 1, batch, t, err));
    pseg_stage_done(st, d->mask_weights, batch, 1, last, "decoder.mask_weights");
    PSEG_TRY(make_logits(d, st, channels, batch, err));
    PSEG_TRY(head(d, st->s, d->iou_head, d->iou, 0, batch, t, err));
    pseg_stage_done(st, d->iou, batch, 1, 1, "iou_logit");
out:
    return rc;
}
