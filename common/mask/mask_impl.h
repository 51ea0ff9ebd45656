/* What the files of this folder share. */
#ifndef PSEG_MASK_MASK_IMPL_H
#define PSEG_MASK_MASK_IMPL_H

#include "common/mask/mask.h"

#define PSEG_MASK_MAX_PIXELS ((uint64_t)1 << 30)

/* PSEG_R_INVALID_ARGUMENT unless a mask may have this size. */
pseg_status mask_check_size(uint32_t width, uint32_t height, pseg_err *err);
/* All outside. Caller frees with pseg_mask_free. */
pseg_status mask_new(pseg_mask **out, uint32_t width, uint32_t height, pseg_err *err);
/* Adds row y to area and box. Each row once, from the top; rows of zeros may be left out. */
void mask_measure_row(pseg_mask *m, uint32_t y);

/* out[i] = the half of sigmoid(logits[i]), little-endian, off by 1 ulp at most; logits are finite.
 * Both give the same; the first uses what the processor has. */
void mask_sigmoid_halves(uint16_t *out, const float *logits, size_t n);
void mask_sigmoid_halves_portable(uint16_t *out, const float *logits, size_t n);

#endif
