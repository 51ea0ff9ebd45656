/* PSEG-1's decoder: SAM's two-way transformer over prompt tokens and image features, an upsampler,
 * a mask from a hypernetwork, and a predicted IoU.
 *
 *   prompt : e = embeds / |embeds|; [text_proj(e)] or, by tokens, [text_proj(e),
 * text_token_proj(h_1)
 *            .. text_token_proj(h_EOS)], h_t the text tower's output. BOS is left out: the causal
 *            mask makes it the same for every phrase.
 *   tokens : [iou, mask, prompt...]; pe = these tokens; kpe = learned position of each patch
 *   block  : q = LN1(q + SA(q + pe, q + pe, q))     the first block: q = LN1(SA(q, q, q))
 *            q = LN2(q + CA(q + pe, k + kpe, k))
 *            q = LN3(q + MLP(q))
 *            k = LN4(k + CA(k + kpe, q + pe, q))
 *   final  : q = LN(q + CA(q + pe, k + kpe, k))
 *   mask   : k -> (ConvT2x2, LayerNorm2d, GELU) per stage, the last without norm; its channels
 *            times MLP(mask token)
 *   IoU    : sigmoid(MLP(iou token))
 *
 * Phrases of one batch may have different lengths: padded tokens are masked as keys. */
#ifndef PSEG_MODEL_DECODER_H
#define PSEG_MODEL_DECODER_H

#include "worker/model/config.h"
#include "worker/model/stage.h"
#include "worker/model/text.h"
#include "worker/model/weights.h"

pseg_status pseg_decoder_specs(pseg_specs *out, const pseg_head_config *c, pseg_err *err);

typedef struct pseg_decoder pseg_decoder;

typedef struct pseg_decoder_limits {
    uint32_t gh, gw;     /* the grid to run at */
    uint32_t max_prompt; /* prompt tokens of a phrase */
    uint32_t max_batch;  /* phrases */
} pseg_decoder_limits;

/* Everything on the device belongs to store; w is used during the call only. */
pseg_status pseg_decoder_new(pseg_decoder **out, pseg_store *store, pseg_weights *w,
                             const pseg_head_config *c, const pseg_decoder_limits *limits,
                             pseg_err *err);
void pseg_decoder_free(pseg_decoder *d); /* NULL: nothing happens */

/* The text tower's results to prompts, *out = [batch, length, D] by tokens, else [batch, 1, D];
 * valid until the next call. Of phrase i its own tokens (by tokens) or the only row count.
 * Enqueues.
 */
pseg_status pseg_decoder_prompts(pseg_view *out, pseg_decoder *d, pseg_stage *st,
                                 const pseg_text_rows *text, uint32_t batch, pseg_err *err);

/* One pair of image and phrase. */
typedef struct pseg_decoder_input {
    const pseg_mem *image;  /* [gh*gw, D] */
    const pseg_mem *prompt; /* [n_prompt, D] */
    uint32_t n_prompt;
} pseg_decoder_input;

/* Enqueues; pseg_decoder_logits is then [batch, mask_h*mask_w] and pseg_decoder_iou [batch], before
 * the sigmoid, valid until the next run. in is used during the call only. */
pseg_status pseg_decoder_run(pseg_decoder *d, pseg_stage *st, const pseg_decoder_input *in,
                             uint32_t batch, pseg_err *err);
pseg_view pseg_decoder_logits(const pseg_decoder *d);
pseg_view pseg_decoder_iou(const pseg_decoder *d);

#endif
