/* The inside of the decoder, shared by decoder.c (running), decoder_mask.c (its second half)
 * and decoder_load.c (loading) only. */
#ifndef PSEG_MODEL_DECODER_PARTS_H
#define PSEG_MODEL_DECODER_PARTS_H

#include "worker/model/decoder.h"

/* One two-way block. self: tokens to tokens; ti: tokens to image; it: image to tokens. keys_kq is
 * ti's key and it's query below each other: both act on the same k + kpe. */
typedef struct pseg_decoder_layer {
    pseg_linear self_qk, self_v, self_out;
    pseg_linear ti_q, keys_kq, ti_v, ti_out;
    pseg_linear it_k, it_v, it_out;
    pseg_linear lin1, lin2;
    pseg_norm norm1, norm2, norm3, norm4;
} pseg_decoder_layer;

/* Samples first .. first + count - 1 of a batch attend to the keys of `image`, each to its own if
 * the groups are not shared. */
typedef struct pseg_decoder_group {
    uint32_t first, count, image;
} pseg_decoder_group;

struct pseg_decoder {
    pseg_head_config c;
    pseg_decoder_limits limits;
    pseg_store *store;
    size_t inner;  /* width of the cross attentions, D / downsample */
    size_t places; /* gh * gw of the limits */

    pseg_linear text_proj, word_proj;
    pseg_view pos, lead;
    pseg_decoder_layer *layers; /* c.depth */
    pseg_linear final_q, final_k, final_v, final_out;
    pseg_norm final_norm;
    pseg_linear up_conv[PSEG_MAX_UPSAMPLE];
    pseg_norm up_norm[PSEG_MAX_UPSAMPLE];
    pseg_linear mask_mlp[3], iou_head[3];

    int32_t *lens; /* [max_batch]: tokens that count, on their way to key_len */
    /* Before the first block the keys of all phrases of an image are the same, and so are their
     * projections: they are made once an image. Then n_groups = 1, is_shared = false. */
    pseg_decoder_group *groups; /* [max_batch] */
    uint32_t n_groups;
    bool is_shared;
    /* Tokens, all [max_batch, T, .]: q; pe = q at first; qp = q + pe; qkv, also the MLP's inner
     * layer; attended. Keys, all [max_batch, places, .]: k; kp = k + kpe; kq, v, attended. q, pe
     * and k are float32; what is multiplied has the matrices' type: q_in and k_in are q and k for
     * that. */
    pseg_view q, q_in, pe, qp, qkv, tok_attended, key_len;
    pseg_view k, k_in, kp, kq, v, key_attended;
    pseg_view up[2];     /* stages of the upsampler, in turn, of the matrices' type */
    pseg_view raster[2]; /* for a stage hook; made when the first one comes */
    pseg_view subpixels; /* logits in the upsampler's order */
    pseg_view small[2], mask_weights, logits, iou;
    pseg_view embeds, prompts, words;
};

pseg_status pseg_decoder_load(pseg_decoder *d, pseg_store *store, pseg_weights *w, pseg_err *err);
/* Memory for the second half. */
pseg_status pseg_decoder_plan_mask(pseg_decoder *d, pseg_store *store, pseg_err *err);
/* From q [batch, t, D] and k [batch, places, D] to logits and iou. */
pseg_status pseg_decoder_run_mask(pseg_decoder *d, pseg_stage *st, size_t batch, size_t t,
                                  pseg_err *err);

#endif
