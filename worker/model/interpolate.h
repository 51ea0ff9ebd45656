/* Position embeddings at another grid, exactly as PyTorch's interpolate(mode="bicubic",
 * align_corners=False) makes them. Done once, when a model is loaded. */
#ifndef PSEG_MODEL_INTERPOLATE_H
#define PSEG_MODEL_INTERPOLATE_H

#include "common/base/err.h"

#include <stdint.h>

/* src: [h, w, c] to out: [out_h, out_w, c], caller's memory. is_antialiased: PyTorch's
 * antialias=True, a wider kernel when shrinking (DINOv2 with registers); else four taps a side
 * whatever the scale (DINOv2, ViT). The same grid gives the same numbers.
 * Errors: PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_interpolate_bicubic(float *out, uint32_t out_h, uint32_t out_w, const float *src,
                                     uint32_t h, uint32_t w, uint32_t c, bool is_antialiased,
                                     pseg_err *err);

#endif
