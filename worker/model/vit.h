/* The image encoder: DINOv2, DINOv2 with registers, or a plain ViT.
 *
 * Tokens are [CLS][registers][patches]. A block is x += ls1 * Wo(MHA(LN1 x)); x += ls2 * MLP(LN2
 * x); a plain ViT has no LayerScale (ls = 1). Taps are the patches' rows after so many blocks,
 * without CLS and registers, through the final layer norm where the decoder asks for it; blocks
 * behind the last tap are neither loaded nor computed.
 *
 * Weights may bear Hugging Face's names, with or without "dinov2." or "vit." before them, or those
 * of timm and of Meta's own files. */
#ifndef PSEG_MODEL_VIT_H
#define PSEG_MODEL_VIT_H

#include "worker/model/config.h"
#include "worker/model/stage.h"
#include "worker/model/weights.h"

/* Meta's and timm's names have one tensor for query, key and value; they differ where there are
 * registers or SwiGLU. A timm encoder with registers has no position for CLS: it stands in the CLS
 * token already. */
typedef enum pseg_vit_names {
    PSEG_VIT_NAMES_HF,
    PSEG_VIT_NAMES_META,
    PSEG_VIT_NAMES_TIMM
} pseg_vit_names;

/* All tensors of such an encoder, mask token included: what Hugging Face counts as its
 * parameters. */
pseg_status pseg_vit_specs(pseg_specs *out, const pseg_vit_config *c, pseg_vit_names names,
                           pseg_err *err);

/* Where a part of the encoder is found: without .weight and .bias, but for those in capitals in the
 * comment, which are the tensor's whole name. From NORM1 on: parts of block i. */
typedef enum pseg_vit_part {
    PSEG_VIT_CLS,  /* CLS */
    PSEG_VIT_POS,  /* POS */
    PSEG_VIT_REGS, /* REGS */
    PSEG_VIT_PATCH,
    PSEG_VIT_NORM,
    PSEG_VIT_NORM1,
    PSEG_VIT_Q,
    PSEG_VIT_K,
    PSEG_VIT_V,
    PSEG_VIT_OUT,
    PSEG_VIT_LS1, /* LS1 */
    PSEG_VIT_NORM2,
    PSEG_VIT_FC1, /* SwiGLU: the gate's */
    PSEG_VIT_FC2,
    PSEG_VIT_LS2, /* LS2 */
} pseg_vit_part;
/* False, and "", where names have no such part: Q, K and V outside of Hugging Face's. */
bool pseg_vit_part_name(char out[PSEG_SPEC_NAME], const pseg_vit_config *c, pseg_vit_names names,
                        pseg_vit_part part, uint32_t i);

/* Under which of Hugging Face's names the numbers of Meta's or timm's tensor `name` stand: one, or
 * three for query, key and value, each an equal part of its rows. Positions may lack the row of CLS
 * (below). Returns how many; 0: no encoder has such a tensor. */
uint32_t pseg_vit_hf_names(char out[3][PSEG_SPEC_NAME], const pseg_vit_config *c,
                           pseg_vit_names names, const char *name);

/* Do position embeddings begin with one for CLS, [1 + places], or are they [places]? */
bool pseg_vit_has_cls_position(const pseg_vit_config *c, pseg_vit_names names);

/* Finds out prefix and names of the tensors in t; c->has_swiglu etc. say what to look for.
 * prefix: static. Errors: PSEG_R_MODEL_MISMATCH. */
pseg_status pseg_vit_detect(const char **prefix, pseg_vit_names *names, const pseg_tensors *t,
                            pseg_err *err);

/* Position embeddings [1 + gh*gw, hidden] for the grid gh x gw, out of w's; zeros for CLS where w
 * has none. Caller frees with pseg_free, or gives them to pseg_store_floats. Errors:
 * PSEG_R_OUT_OF_MEMORY, those of pseg_weights_get. */
pseg_status pseg_vit_positions(float **out, pseg_weights *w, pseg_vit_names names,
                               const pseg_vit_config *c, uint32_t gh, uint32_t gw, pseg_err *err);

typedef struct pseg_vit pseg_vit;

/* taps: completed blocks, ascending, each 1..c->layers. gh, gw: the grid to run at; max_batch
 * images at once. Everything on the device belongs to store; w is used during the call only. */
pseg_status pseg_vit_new(pseg_vit **out, pseg_store *store, pseg_weights *w, pseg_vit_names names,
                         const pseg_vit_config *c, const uint32_t *taps, uint32_t n_taps,
                         bool is_tap_normed, uint32_t gh, uint32_t gw, uint32_t max_batch,
                         pseg_err *err);
void pseg_vit_free(pseg_vit *v); /* NULL: nothing happens */

/* pixels: device [batch, 3, gh*patch, gw*patch]. Enqueues; pseg_vit_tap(v, i) is then
 * [batch, gh*gw, hidden], valid until the next run. */
pseg_status pseg_vit_run(pseg_vit *v, pseg_stage *st, pseg_view pixels, uint32_t batch,
                         pseg_err *err);
pseg_view pseg_vit_tap(const pseg_vit *v, uint32_t i);

#endif
