/* Masks: from the model's logits on its grid to a mask of the photo's size in every encoding.
 *
 * Scheduler, worker and client use this one piece of code on the same stored float16 logits, so
 * that a mask is the same pixel for pixel wherever it is made. It knows no images, models or
 * servers.
 *
 * Enlarging: bilinear with half-pixel centres and clamped edges (as PyTorch's interpolate with
 * align_corners=False), of the logits; a pixel belongs to the mask if its centre lies in the grid's
 * rectangle (edges included) and sigmoid(logit) > threshold. Infinite logits count as the largest
 * finite ones, and what is no number as the smallest.
 *
 * All functions may be called from any thread; none keeps what it is given. docs/modules/mask.md
 * shows how to read each encoding.
 */
#ifndef PSEG_MASK_MASK_H
#define PSEG_MASK_MASK_H

#include "common/base/buf.h"
#include "common/base/err.h"

#include <stdint.h>

/* Logits on a grid, and the rectangle of the photo that the grid covers, in photo pixels: all of it
 * (squash), more than it (letterbox), or a part (centre crop: outside is background). */
typedef struct pseg_mask_grid {
    const uint16_t *logits; /* float16, [grid_height, grid_width], borrowed */
    uint32_t grid_width, grid_height;
    uint32_t width, height; /* of the photo, pixels */
    float x0, y0, x1, y1;
} pseg_mask_grid;

/* A mask of the photo's size. */
typedef struct pseg_mask {
    uint8_t *data; /* [height, width], 1 inside, 0 outside */
    uint32_t width, height;
    uint64_t area;                                /* pixels inside */
    uint32_t box_x, box_y, box_width, box_height; /* tight; width 0 if the mask is empty */
} pseg_mask;

/* threshold in (0, 1). Caller frees with pseg_mask_free. Errors: PSEG_R_INVALID_ARGUMENT (a mask or
 * grid of no pixels or more than 2^30, a rectangle that is empty or not finite),
 * PSEG_R_THRESHOLD_OUT_OF_RANGE, PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_mask_make(pseg_mask **out, const pseg_mask_grid *g, float threshold,
                           pseg_err *err);
/* Area and box of the mask that pseg_mask_make would make, without making it: out->data is NULL.
 * Errors: as pseg_mask_make. */
pseg_status pseg_mask_measure(pseg_mask *out, const pseg_mask_grid *g, float threshold,
                              pseg_err *err);
/* From pixels (0: outside), copied. */
pseg_status pseg_mask_from_pixels(pseg_mask **out, const uint8_t *pixels, uint32_t width,
                                  uint32_t height, pseg_err *err);
void pseg_mask_free(pseg_mask *m);

/* Probabilities of the photo's size as little-endian float16, appended to out; 0 outside the grid's
 * rectangle. Errors: as pseg_mask_make, PSEG_R_REQUEST_TOO_LARGE (past out's maximum). */
pseg_status pseg_mask_probabilities(pseg_buf *out, const pseg_mask_grid *g, pseg_err *err);

/* Each appends to out, which is as before on failure. Errors: PSEG_R_REQUEST_TOO_LARGE (past out's
 * maximum), PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_mask_png(pseg_buf *out, const pseg_mask *m, pseg_err *err); /* 8 bit, 0 and 255 */
pseg_status pseg_mask_rle(pseg_buf *out, const pseg_mask *m, pseg_err *err); /* COCO's counts */
pseg_status pseg_mask_bits(pseg_buf *out, const pseg_mask *m,
                           pseg_err *err); /* rows to bytes, MSB first */
/* JSON: an array of rings [x0,y0,x1,y1,...] of pixel corners; outer rings clockwise on screen,
 * holes the other way, each from its highest and there leftmost left edge, without the first corner
 * again at its end; regions that touch at a corner are apart. Time and bytes grow with the outline:
 * a checkerboard has two corners a pixel. */
pseg_status pseg_mask_polygon(pseg_buf *out, const pseg_mask *m, pseg_err *err);

/* COCO's compressed counts of a width x height mask; anything else is PSEG_R_INVALID_ARGUMENT.
 * Caller frees with pseg_mask_free. */
pseg_status pseg_mask_from_rle(pseg_mask **out, const char *counts, uint32_t width, uint32_t height,
                               pseg_err *err);

/* Pixels that lie in both; sizes must agree. Only where the two boxes overlap is looked at. */
uint64_t pseg_mask_overlap(const pseg_mask *a, const pseg_mask *b);
/* Intersection over union; 1 if both are empty. Sizes must agree. */
double pseg_mask_iou(const pseg_mask *a, const pseg_mask *b);

/* 8-bit PNG of [height, width, channels] pixels, channels 1 (grey) or 3 (RGB), appended to out.
 * Errors: PSEG_R_INVALID_ARGUMENT (size, channels) and those of the encoders above. */
pseg_status pseg_png_write(pseg_buf *out, const uint8_t *pixels, uint32_t width, uint32_t height,
                           int channels, pseg_err *err);

#endif
