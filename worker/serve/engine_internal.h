/* What the files of the engine share. */
#ifndef PSEG_SERVE_ENGINE_INTERNAL_H
#define PSEG_SERVE_ENGINE_INTERNAL_H

#include "worker/serve/engine.h"

#include "worker/decode/decoders.h"

struct pseg_engine {
    pseg_cl *cl;
    pseg_model *model;       /* NULL: the empty model */
    pseg_decoders *decoders; /* NULL: images are decoded in this process */
    pseg_pictures pictures;
    bool reads_features;
    size_t max_encode, max_decode;
    const pseg_model_info *info;
    pseg_preprocess how;
    pseg_image_limits limits;
    char name[64], digest[PSEG_SHA256_HEX + 1], kernel_digest[PSEG_SHA256_HEX + 1];
    char device[192], driver[224], worker[96];
};

/* Numbers of one image's features. */
static inline size_t pseg_engine_n_features(const pseg_engine *e)
{
    return (size_t)e->info->gh * e->info->gw * e->info->dim;
}

/* Logits of one mask. */
static inline size_t pseg_engine_grid(const pseg_engine *e)
{
    return e->model ? (size_t)e->info->mask_width * e->info->mask_height : 1;
}

#endif
