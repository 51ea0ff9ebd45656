/* Images with phrases, prepared for a model: drawn scenes, or photos of a data set. */
#ifndef PSEG_TESTS_FIDELITY_DATA_H
#define PSEG_TESTS_FIDELITY_DATA_H

#include "worker/model/pseg.h"

enum { FIDELITY_MAX_PHRASES = 64 };

typedef struct fidelity_image {
    float *chw; /* of the model's input */
    uint32_t width, height;
    float rect[4];
    char *phrases[FIDELITY_MAX_PHRASES];
    size_t n_phrases;
} fidelity_image;

typedef struct fidelity_data fidelity_data;

/* path NULL: scenes from a fixed seed on; else a data set, whose last n images of those with
 * phrases of kind `class` are taken. End the test on failure. */
fidelity_data *fidelity_data_open(const char *path, size_t n, const pseg_model_info *info);
void fidelity_data_read(fidelity_image *out, fidelity_data *d, size_t i);
void fidelity_image_free(fidelity_image *m);
size_t fidelity_data_n(const fidelity_data *d);
void fidelity_data_close(fidelity_data *d);

#endif
