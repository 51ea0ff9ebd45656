/* Batches out of data sets on disk (worker/data), with features of the frozen image encoder out of
 * a cache, which is filled when the source is opened. */
#ifndef PSEG_TRAIN_SOURCE_DATA_H
#define PSEG_TRAIN_SOURCE_DATA_H

#include "worker/data/features.h"
#include "worker/train/source.h"

/* A set, and how often each of its examples comes in an epoch: 1 once, 0.5 every other one, drawn
 * anew each epoch. */
typedef struct pseg_train_part {
    const char *path;
    double weight;
} pseg_train_part;

typedef struct pseg_train_data_options {
    const pseg_train_part *parts; /* what is trained on; borrowed for the call, as all strings */
    size_t n_parts;
    const char *val;        /* the set that is validated on; NULL: none */
    const char *val_images; /* which of its images (split.h) */
    const char *kind;       /* samples of this kind alone; NULL: all */
    const char *vision;     /* folder of the image encoder */
    const char *cache;      /* folder of the features */
    bool has_mirror;        /* every other example is taken from the mirrored photo, by seed, its
                               phrase with left and right exchanged */
    pseg_data_report_fn *report; /* told of what is left out; or NULL */
    void *report_ud;
    pseg_feature_progress_fn *progress; /* while features are computed; or NULL */
    void *progress_ud;
} pseg_train_data_options;

/* Images that are validated on are left out of everything that is trained on, whatever set they
 * stand in. sizes->images must be sizes->batch. cl is used during the call only. Errors: those of
 * worker/data; PSEG_R_CONFIG_INVALID, also if nothing is left to train on. */
pseg_status pseg_train_data(pseg_train_source *out, pseg_cl *cl, const pseg_head_config *head,
                            const pseg_train_sizes *sizes, const pseg_train_data_options *o,
                            pseg_err *err);

#endif
