/* Where a PSEG-1 decoder may start: the mask decoder of a SAM checkpoint in Hugging Face's form.
 *
 *   two-way blocks 0 and 1   SAM's layers 0 and 1
 *   later blocks             SAM's layer 1, with weight and bias of each out_proj and of mlp.lin2
 *                            times 0.1, so that they begin near doing nothing
 *   final attention, norm    SAM's
 *   iou and mask token       SAM's iou token and mask token 0
 *   mask_mlp                 SAM's hypernetwork 0
 *   iou_head                 SAM's, the last layer's row 0
 *   last upsampling stage    SAM's upscale_conv2
 *
 * The rest of the head (neck, text projection, positions, earlier stages) has nothing there to
 * start from. SAM-base fits PSEG-1's reference shape. */
#ifndef PSEG_MODEL_SAM_H
#define PSEG_MODEL_SAM_H

#include "worker/model/weights.h"

typedef struct pseg_sam pseg_sam;

/* folder: config.json with model_type sam, and safetensors. head: the decoder's tensors, whose
 * shapes must fit. Errors: PSEG_R_MODEL_MISSING, PSEG_R_MODEL_CORRUPT, PSEG_R_MODEL_UNSUPPORTED,
 * PSEG_R_MODEL_MISMATCH (which tensor). */
pseg_status pseg_sam_open(pseg_sam **out, const char *folder, const pseg_specs *head,
                          pseg_err *err);
void pseg_sam_close(pseg_sam *s); /* NULL: nothing happens */
const pseg_tensors *pseg_sam_tensors(const pseg_sam *s);

/* A pseg_overlay_fn; ud: a pseg_sam. */
pseg_overlay_fn pseg_sam_fill;

#endif
