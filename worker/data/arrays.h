/* From a sample to the numbers that a trainer or evaluator takes: photo to input, mask to target,
 * and the mirror image of both with the phrase to fit.
 *
 * The input is made exactly as a worker makes it (common/image), so that what is trained is what is
 * served. All functions may be called from any thread. */
#ifndef PSEG_DATA_ARRAYS_H
#define PSEG_DATA_ARRAYS_H

#include "common/image/image.h"
#include "common/mask/mask.h"
#include "worker/data/dataset.h"
#include "worker/model/pseg.h"

/* How a model wants its input, exact decoding. */
void pseg_data_preprocess_of(pseg_preprocess *out, const pseg_model_info *info);

/* chw: 3 * height * width floats of `how`. *width, *height: of the photo, upright, in px. mirrored:
 * of the photo with left and right exchanged, pixel by pixel, before anything else. Errors: those
 * of pseg_image_prepare. */
pseg_status pseg_data_make_input(float *chw, uint32_t *width, uint32_t *height,
                                 const pseg_data_bytes *file, const pseg_preprocess *how,
                                 bool is_mirrored, pseg_err *err);

/* out: [gh, gw], the part of each cell that lies in the mask, 0 to 1. The grid covers what the
 * input covers of a photo of the mask's size; what lies outside of the photo is 0. mirrored: of the
 * mask with left and right exchanged. Errors: PSEG_R_INVALID_ARGUMENT, PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_data_make_target(float *out, uint32_t gw, uint32_t gh, const pseg_mask *m,
                                  const pseg_preprocess *how, bool is_mirrored, pseg_err *err);

/* The phrase for the mirrored photo: "left" and "right" change places where they are words of
 * their own or the first part of one that means a side (leftmost, left-hand, leftward, lefty); not
 * inside other words (bright, leftover), not where "right" is an adverb ("right next to", "right
 * behind"), and letters' case is kept. Caller frees *out with pseg_free. Phrases of
 * PSEG_MIRROR_UNSAFE must not be used with a mirrored photo: they tell a side in another way ("at 3
 * o'clock") or quote what a mirror turns round (letters, numbers). */
typedef enum pseg_mirror {
    PSEG_MIRROR_SAME,    /* it says nothing of left and right */
    PSEG_MIRROR_CHANGED, /* words were exchanged */
    PSEG_MIRROR_UNSAFE,  /* *out is the phrase as it was */
} pseg_mirror;
pseg_status pseg_data_mirror_phrase(char **out, pseg_mirror *what, const char *phrase,
                                    pseg_err *err);

#endif
