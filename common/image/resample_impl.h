/* What the variants of the inner loops share. */
#ifndef PSEG_IMAGE_RESAMPLE_IMPL_H
#define PSEG_IMAGE_RESAMPLE_IMPL_H

#include "common/image/resample.h"

#if defined(__x86_64__)
#define PSEG_RESAMPLE_AVX2
extern const resample_ops resample_avx2;
#endif
extern const resample_ops resample_portable;

static inline uint8_t resample_clip(int32_t x)
{
    x >>= PSEG_RESAMPLE_BITS;
    return x < 0 ? 0 : x > 255 ? 255 : (uint8_t)x;
}

/* Row by row into sums, so that memory is read in order. Inlined into each variant, for the
 * compiler to use that variant's vector unit. */
__attribute__((always_inline)) static inline void
resample_down(uint8_t *restrict out, const uint8_t *restrict in, size_t stride,
              const int32_t *restrict k, size_t n, int32_t *restrict sums)
{
    for (size_t i = 0; i < stride; i++)
        sums[i] = 1 << (PSEG_RESAMPLE_BITS - 1);
    for (size_t j = 0; j < n; j++, in += stride)
        for (size_t i = 0; i < stride; i++)
            sums[i] += in[i] * k[j];
    for (size_t i = 0; i < stride; i++)
        out[i] = resample_clip(sums[i]);
}

#endif
