/* Pillow's resize(BICUBIC), bit for bit, of a picture whose rows come one at a time, so that they
 * are worked on while they are in the cache and the picture need never be whole in memory.
 *
 * Private to common/image. The arithmetic is Pillow's (Resample.c): coefficients in 22-bit fixed
 * point, across first, rounded to bytes between the passes. Threads: one resampler, one thread. */
#ifndef PSEG_IMAGE_RESAMPLE_H
#define PSEG_IMAGE_RESAMPLE_H

#include "common/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PSEG_RESAMPLE_BITS = 32 - 8 - 2, PSEG_RESAMPLE_STEP = 16 };

/* What is made of what. Of the input of w x h pixels the box (Pillow's) is resized to out_w x
 * out_h, of which the part is wanted. The box is the whole input, unless an outer column or row of
 * a shrunk picture is but partly covered. */
typedef struct resample_plan {
    uint32_t w, h;
    double box_x, box_y, box_w, box_h;
    uint32_t out_w, out_h;
    struct {
        uint32_t x, y, w, h;
    } part;
} resample_plan;

/* One pass: output i is made of inputs first[i].. first[i] + n[i] - 1. */
typedef struct resample_axis {
    uint32_t *first, *n;
    int32_t *k;          /* [outputs, size] */
    int16_t *high, *low; /* [outputs, padded], across only: k = high * 2^15 + low, zeros behind */
    size_t size, padded; /* padded: a multiple of PSEG_RESAMPLE_STEP */
    bool is_copy;        /* output i is input first[0] + i */
} resample_axis;

/* The three inner loops, in plain C and for the vector units that a plain compiler does not use.
 * All give the same bytes. */
typedef struct resample_ops {
    const char *name;
    bool (*is_usable)(void);
    /* n pixels of interleaved bytes to three planes, `plane` numbers from one to the next. */
    void (*split)(int16_t *planes, size_t plane, const uint8_t *rgb, size_t n);
    /* One row of n_out pixels; writes up to 1 byte beyond them. axis->first is taken `from` the
     * first number of the planes; numbers behind a row are read, and count nothing. */
    void (*across)(uint8_t *out, const int16_t *planes, size_t plane, uint32_t n_out,
                   const resample_axis *axis, uint32_t from);
    /* out[i] = sum of k[j] * in[j * stride + i] over n rows, for i < stride. sums: [stride]. */
    void (*down)(uint8_t *out, const uint8_t *in, size_t stride, const int32_t *k, size_t n,
                 int32_t *sums);
} resample_ops;

/* All that this build has, the portable first; static. */
const resample_ops *const *resample_variants(size_t *n);

typedef struct resampler {
    resample_plan plan;
    const resample_ops *ops;
    resample_axis across, down;
    uint32_t left, right, top, bottom; /* the columns and rows of the input that count */
    size_t stride, plane;
    uint8_t *between; /* [bottom - top, part.w, 3] and a byte more */
    int16_t *planes;
    int32_t *sums;
} resampler;

/* The fastest variant, or `ops` if not NULL. Free with resampler_deinit, also on failure. Errors:
 * PSEG_R_OUT_OF_MEMORY. */
pseg_status resampler_init(resampler *r, const resample_plan *plan, const resample_ops *ops,
                           pseg_err *err);
void resampler_deinit(resampler *r);
/* Row y of the input, 3 * w bytes; each that counts once, in any order. */
void resampler_take_row(resampler *r, uint32_t y, const uint8_t *rgb);
/* After all rows. out: [part.h, part.w, 3]. */
void resampler_finish(resampler *r, uint8_t *out);

#endif
