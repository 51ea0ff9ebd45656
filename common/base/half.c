#include "common/base/half.h"

#include <stdbool.h>
#include <string.h>

static uint32_t bits_of(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

float pseg_half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7FFF;

    if (rest >= 0x7C00) /* infinity or NaN */
        return float_of(sign | 0x7F800000 | (rest & 0x3FF) << 13);
    if (rest >= 0x0400)
        return float_of(sign | ((rest << 13) + 0x38000000));
    /* Subnormal: rest * 2^-24, exact in float. */
    float f = (float)rest * 0x1p-24f;
    return sign ? -f : f;
}

uint16_t pseg_half_from_float(float f)
{
    uint32_t u = bits_of(f), sign = u >> 16 & 0x8000;

    u &= 0x7FFFFFFF;
    if (u > 0x7F800000) {
        uint32_t payload = u >> 13 & 0x3FF;
        return (uint16_t)(sign | 0x7C00 | (payload ? payload : 1));
    }
    if (u >= 0x47800000) /* 65536 and above */
        return (uint16_t)(sign | 0x7C00);
    if (u < 0x38800000) {
        /* Below the smallest normal half: adding 0.5 leaves the rounded multiple of 2^-24 in the
         * low bits. */
        return (uint16_t)(sign | (bits_of(float_of(u) + 0.5f) - 0x3F000000));
    }
    u += 0xFFF + (u >> 13 & 1);
    return (uint16_t)(sign | (u - 0x38000000) >> 13);
}

/* ---- many at once ---- */

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#define F16C __attribute__((target("avx2,f16c")))

enum { LANES = 8 };

static bool has_f16c(void)
{
    static _Atomic int known; /* asking costs microseconds in a virtual machine */
    unsigned a, b, c, d;
    int has = known;

    if (has == 0) {
        bool is_there =
            __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
        has = is_there ? 1 : -1;
        known = has;
    }
    return has > 0;
}

/* How many of n were converted: up to the first vector with a NaN, whose payload the processor does
 * not keep, and whole vectors only. */
F16C static size_t to_floats_fast(float *out, const uint16_t *in, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m256 v = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(in + i)));
        if (_mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)))
            break;
        _mm256_storeu_ps(out + i, v);
    }
    return i;
}

F16C static size_t from_floats_fast(uint16_t *out, const float *in, size_t n)
{
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        __m256 v = _mm256_loadu_ps(in + i);
        if (_mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)))
            break;
        _mm_storeu_si128((__m128i *)(void *)(out + i),
                         _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    return i;
}

#else

enum { LANES = 1 };

static bool has_f16c(void)
{
    return false;
}

static size_t to_floats_fast(float *out, const uint16_t *in, size_t n)
{
    (void)out;
    (void)in;
    (void)n;
    return 0;
}

static size_t from_floats_fast(uint16_t *out, const float *in, size_t n)
{
    (void)out;
    (void)in;
    (void)n;
    return 0;
}

#endif

void pseg_half_to_floats(float *out, const uint16_t *in, size_t n)
{
    bool is_fast = has_f16c();

    for (size_t i = 0; i < n;) {
        if (is_fast)
            i += to_floats_fast(out + i, in + i, n - i);
        for (size_t end = i + LANES; i < n && i < end; i++)
            out[i] = pseg_half_to_float(in[i]);
    }
}

void pseg_half_from_floats(uint16_t *out, const float *in, size_t n)
{
    bool is_fast = has_f16c();

    for (size_t i = 0; i < n;) {
        if (is_fast)
            i += from_floats_fast(out + i, in + i, n - i);
        for (size_t end = i + LANES; i < n && i < end; i++)
            out[i] = pseg_half_from_float(in[i]);
    }
}
