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

/* The rows that will come are `w` pixels each and `h` of them: the upright photo's, or those of the
 * photo shrunk by 2, 4 or 8, whose outer column and row may be but partly covered: the last ones,
 * or the first if the picture was stored mirrored or upside down. */
typedef struct preparer_photo {
    uint32_t width, height, w, h, shrink;
    bool is_first_column_partial, is_first_row_partial;
} preparer_photo;

/* By how much, 1, 2, 4 or 8, a photo may be shrunk before it is resampled: so that it is still at
 * least twice as wide and high as what it becomes. */
uint32_t preparer_shrink(uint32_t width, uint32_t height, const pseg_preprocess *how);

/* Free with preparer_deinit, also on failure. Errors: those of pseg_image_preprocess. */
pseg_status preparer_init(preparer *p, const preparer_photo *photo, const pseg_preprocess *how,
                          pseg_err *err);
void preparer_deinit(preparer *p);
/* After all rows; chw and rect as of pseg_image_preprocess. */
pseg_status preparer_finish(preparer *p, float *chw, float rect[4], pseg_err *err);

#endif
