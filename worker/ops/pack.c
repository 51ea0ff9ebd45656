/* Weights on the host: conversion and the layouts that kernels want. */
#include "worker/ops/ops.h"

#include "common/base/alloc.h"
#include "common/base/half.h"

#include <math.h>
#include <string.h>

static float bf16_to_f32(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

void pseg_to_f32(float *out, const void *src, pseg_dtype type, size_t n)
{
    const unsigned char *at = src;

    if (type == PSEG_F32) {
        memcpy(out, src, n * sizeof *out);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint16_t h;

        memcpy(&h, at + 2 * i, sizeof h);
        out[i] = type == PSEG_F16 ? pseg_half_to_float(h) : bf16_to_f32(h);
    }
}

size_t pseg_gemm_packed_elems(size_t n, size_t k)
{
    size_t e;

    if (n > SIZE_MAX - PSEG_PANEL || !pseg_mul_size(&e, (n + PSEG_PANEL - 1) / PSEG_PANEL, k) ||
        !pseg_mul_size(&e, e, PSEG_PANEL))
        return 0;
    return e;
}

void pseg_gemm_pack_rows(float *out, size_t row, const void *w, pseg_dtype type, size_t n, size_t k)
{
    enum { CHUNK = 64 }; /* columns at a time: rows are read, and panels written, in runs */
    size_t width = type == PSEG_F32 ? sizeof(float) : sizeof(uint16_t);
    float values[CHUNK];

    for (size_t k0 = 0; k0 < k; k0 += CHUNK) {
        size_t nk = k - k0 < CHUNK ? k - k0 : CHUNK;

        for (size_t r = 0; r < n; r++) {
            size_t at = row + r;
            float *to = out + (at / PSEG_PANEL * k + k0) * PSEG_PANEL + at % PSEG_PANEL;

            pseg_to_f32(values, (const unsigned char *)w + (r * k + k0) * width, type, nk);
            for (size_t i = 0; i < nk; i++)
                to[i * PSEG_PANEL] = values[i];
        }
    }
}

void pseg_gemm_pack(float *out, const void *w, pseg_dtype type, size_t n, size_t k)
{
    size_t tail = n % PSEG_PANEL;

    if (tail)
        memset(out + n / PSEG_PANEL * k * PSEG_PANEL, 0, k * PSEG_PANEL * sizeof *out);
    pseg_gemm_pack_rows(out, 0, w, type, n, k);
}

static uint16_t to_bf16(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void pseg_to_bf16(uint16_t *out, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = to_bf16(src[i]);
}

size_t pseg_gemm_packed_bf16_elems(size_t n, size_t k)
{
    return k > SIZE_MAX - PSEG_BF16_STEP
               ? 0
               : pseg_gemm_packed_elems(n,
                                        (k + PSEG_BF16_STEP - 1) / PSEG_BF16_STEP * PSEG_BF16_STEP);
}

void pseg_gemm_pack_bf16_rows(uint16_t *out, size_t row, const void *w, pseg_dtype type, size_t n,
                              size_t k)
{
    enum { CHUNK = 64 };
    size_t width = type == PSEG_F32 ? sizeof(float) : sizeof(uint16_t);
    size_t kp = (k + PSEG_BF16_STEP - 1) / PSEG_BF16_STEP * PSEG_BF16_STEP;
    float values[CHUNK];

    for (size_t k0 = 0; k0 < k; k0 += CHUNK) {
        size_t nk = k - k0 < CHUNK ? k - k0 : CHUNK;

        for (size_t r = 0; r < n; r++) {
            size_t at = row + r;
            uint16_t *to = out + (at / PSEG_PANEL * kp + k0) * PSEG_PANEL + at % PSEG_PANEL * 2;

            pseg_to_f32(values, (const unsigned char *)w + (r * k + k0) * width, type, nk);
            for (size_t i = 0; i < nk; i++)
                to[i / 2 * 2 * PSEG_PANEL + i % 2] = to_bf16(values[i]);
        }
    }
}

static void to_parts(uint16_t *hi, uint16_t *lo, float f)
{
    *hi = to_bf16(f);
    float rest = f - bf16_to_f32(*hi);
    *lo = isfinite(rest) ? to_bf16(rest) : 0;
}

void pseg_to_bf16x2(uint16_t *out, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to_parts(&out[i / 1024 * 2048 + i % 1024], &out[i / 1024 * 2048 + 1024 + i % 1024], src[i]);
}

void pseg_gemm_pack_bf16x2_rows(uint16_t *out, size_t row, const void *w, pseg_dtype type, size_t n,
                                size_t k)
{
    size_t width = type == PSEG_F32 ? sizeof(float) : sizeof(uint16_t);
    size_t kp = (k + PSEG_BF16_STEP - 1) / PSEG_BF16_STEP * PSEG_BF16_STEP;
    float values[PSEG_BF16_STEP];

    for (size_t k0 = 0; k0 < k; k0 += PSEG_BF16_STEP) {
        size_t nk = k - k0 < PSEG_BF16_STEP ? k - k0 : PSEG_BF16_STEP;

        for (size_t r = 0; r < n; r++) {
            size_t at = row + r;
            uint16_t *to = out + (at / PSEG_PANEL * kp + k0) * 2 * PSEG_PANEL + at % PSEG_PANEL * 2;

            pseg_to_f32(values, (const unsigned char *)w + (r * k + k0) * width, type, nk);
            for (size_t i = 0; i < nk; i++) {
                uint16_t *hi = to + i / 2 * 2 * PSEG_PANEL + i % 2;

                to_parts(hi, hi + PSEG_BF16_STEP * PSEG_PANEL, values[i]);
            }
        }
    }
}

void pseg_conv3_weight(float *out, const float *w, size_t cout, size_t cin)
{
    for (size_t o = 0; o < cout; o++)
        for (size_t tap = 0; tap < 9; tap++)
            for (size_t c = 0; c < cin; c++)
                out[(o * 9 + tap) * cin + c] = w[(o * cin + c) * 9 + tap];
}

void pseg_convt2_weight(float *out, const float *w, size_t cin, size_t cout)
{
    for (size_t tap = 0; tap < 4; tap++)
        for (size_t o = 0; o < cout; o++)
            for (size_t c = 0; c < cin; c++)
                out[(tap * cout + o) * cin + c] = w[(c * cout + o) * 4 + tap];
}

void pseg_convt2_bias(float *out, const float *bias, size_t cout)
{
    for (size_t tap = 0; tap < 4; tap++)
        memcpy(out + tap * cout, bias, cout * sizeof *out);
}
