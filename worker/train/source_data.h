/* Batches out of data sets on disk (worker/data): with features of the frozen image encoder out of
 * a cache, which is filled when the source is opened, or, for an encoder that is trained, with
 * pixels that are decoded for each batch. */
#ifndef PSEG_TRAIN_SOURCE_DATA_H
#define PSEG_TRAIN_SOURCE_DATA_H

#include "worker/data/features.h"
#include "worker/model/text_table.h"
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
    bool has_pixels;        /* pixels instead of features; neither vision nor cache is read then */
    const char *vision;     /* folder of the image encoder */
    const char *cache;      /* folder of the features */
    const pseg_text_table
        *table;      /* phrases must stand in it, mirrored ones too; NULL: any may be */
    bool has_mirror; /* every other example is taken from the mirrored photo, by seed, its
                        phrase with left and right exchanged */
    /* Told of what is left out, or NULL; until the source is closed: of pixels, an image whose
     * header is good and whose rest is not shows when it is decoded, on the loader's thread. */
    pseg_data_report_fn *report;
    void *report_ud;
    pseg_feature_progress_fn *progress; /* while images are looked at; or NULL */
    void *progress_ud;
} pseg_train_data_options;

/* An epoch has every phrase of every set as often as the set's weight says. With as many images as
 * samples each sample has an image of its own, drawn by itself. With fewer an image comes with
 * several of its phrases, batch / images of them and up to twice as many where batches are fuller
 * so; one that has more comes again with the others, mixed anew each epoch. A batch ends where its
 * images or its samples are full: one of images with few phrases has fewer samples. Its mirrored
 * images are those all of whose phrases in it allow it.
 *
 * Images that are validated on are left out of everything that is trained on, whatever set they
 * stand in. cl is used during the call only. A batch lacks the examples whose image turns out to be
 * broken; one of nothing else takes the next image that is good. Errors: those of worker/data;
 * PSEG_R_CONFIG_INVALID, also if nothing is left to train on; PSEG_R_PROMPT_UNKNOWN. */
pseg_status pseg_train_data(pseg_train_source *out, pseg_cl *cl, const pseg_head_config *head,
                            const pseg_train_sizes *sizes, const pseg_train_data_options *o,
                            pseg_err *err);

#endif
