/* A model's input from a picture whose rows come one at a time. Private to common/image. */
#ifndef PSEG_IMAGE_PREPARE_H
#define PSEG_IMAGE_PREPARE_H

#include "common/image/image.h"
#include "common/image/resample.h"

typedef struct preparer {
    const pseg_preprocess *how; /* borrowed */
    uint32_t width, height;     /* of the photo, upright */
    int64_t left, top;          /* of the resized photo in the model's input */
    resampler resampler;        /* takes the rows */
} preparer;

/* The rows that will come are those of the photo shrunk by 1, 2, 4 or 8: sides divided and rounded
 * up. Free with preparer_deinit, also on failure. Errors: those of pseg_image_preprocess. */
pseg_status preparer_init(preparer *p, uint32_t width, uint32_t height, uint32_t shrink,
                          const pseg_preprocess *how, pseg_err *err);
void preparer_deinit(preparer *p);
/* After all rows; chw and rect as of pseg_image_preprocess. */
pseg_status preparer_finish(preparer *p, float *chw, float rect[4], pseg_err *err);

#endif
