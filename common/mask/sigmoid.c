/* Probabilities as halves, without a call of the mathematical library for each: plain arithmetic
 * that compilers turn into vector code, and whose result is the same on every machine. */
#include "common/mask/mask_impl.h"

#include <endian.h>
#include <string.h>

static inline uint32_t bits_of(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float float_of(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

/* exp(x), |x| <= 20, to 2 units in the last place: 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2.
 */
static inline float exp_of(float x)
{
    const float to_whole =
        12582912; /* 1.5 * 2^23: adding it leaves the whole number in the low bits */
    float shifted = x * 1.44269504F + to_whole, n = shifted - to_whole;
    float r = x - n * 0.693359375F + n * 2.12194440e-4F; /* ln 2 in two parts, the first exact */
    float p = 1.0F / 720;

    p = p * r + 1.0F / 120;
    p = p * r + 1.0F / 24;
    p = p * r + 1.0F / 6;
    p = p * r + 0.5F;
    p = p * r + 1;
    p = p * r + 1;
    return float_of(bits_of(p) + (bits_of(shifted) << 23));
}

/* pseg_half_from_float for 0..1, both ways worked out, since a choice costs a vector unit less than
 * a branch. */
static inline uint16_t half_of(float p)
{
    uint32_t u = bits_of(p), small = bits_of(p + 0.5F) - 0x3F000000;
    uint32_t usual = (u + 0xFFF + (u >> 13 & 1) - 0x38000000) >> 13;

    return (uint16_t)(u < 0x38800000 ? small : usual);
}

/* Inlined into each function below, for the compiler to use that one's vector unit. */
__attribute__((always_inline)) static inline void
sigmoid_halves(uint16_t *restrict out, const float *restrict logits, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        /* Beyond 20 the half is 0 or 1. */
        float x = logits[i] > 20 ? 20 : logits[i];
        x = x < -20 ? -20 : x;
        out[i] = htole16(half_of(1 / (1 + exp_of(-x))));
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void with_avx2(uint16_t *out, const float *logits, size_t n)
{
    sigmoid_halves(out, logits, n);
}
#endif

void mask_sigmoid_halves_portable(uint16_t *out, const float *logits, size_t n)
{
    sigmoid_halves(out, logits, n);
}

void mask_sigmoid_halves(uint16_t *out, const float *logits, size_t n)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        with_avx2(out, logits, n);
        return;
    }
#endif
    mask_sigmoid_halves_portable(out, logits, n);
}
