#include "common/base/half.h"

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

void pseg_half_to_floats(float *out, const uint16_t *in, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = pseg_half_to_float(in[i]);
}

void pseg_half_from_floats(uint16_t *out, const float *in, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = pseg_half_from_float(in[i]);
}
