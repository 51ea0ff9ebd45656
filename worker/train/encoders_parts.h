/* The inside of the frozen encoders, shared by encoders.c (folders and images), encoders_phrases.c
 * and encoders_fill.c (weights of those that are trained) only. */
#ifndef PSEG_TRAIN_ENCODERS_PARTS_H
#define PSEG_TRAIN_ENCODERS_PARTS_H

#include "worker/model/towers.h"
#include "worker/model/vit.h"
#include "worker/train/encoders.h"

/* A phrase that has been encoded, in a table by hash. */
typedef struct encoders_kept {
    char *phrase;   /* NULL: free */
    float *numbers; /* embed, then words */
    uint32_t n_tokens;
    bool is_cut;
} encoders_kept;

struct pseg_encoders {
    pseg_cl *cl;
    pseg_stage stage;
    pseg_vit_config vit_config;
    const char *vision_prefix;
    pseg_vit_names names;
    pseg_tensors *vision_file;
    char vision_digest[PSEG_SHA256_HEX + 1];
    char *text_folder;
    pseg_text_shape shape;
    pseg_clip_config clip;
    const char *text_prefix; /* NULL: a table */
    pseg_store *store;
    pseg_vit *vit;
    pseg_phrases *phrases;
    pseg_view pixels;
    pseg_head_config head;
    uint32_t max_images, max_phrases;
    encoders_kept *table;
    size_t n_kept, cap, bytes;
};

/* All phrases that are kept. */
void encoders_forget(pseg_encoders *e);

#endif
