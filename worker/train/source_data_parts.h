/* The inside of a source of data sets, shared by source_data.c (what the examples are),
 * source_data_phrases.c (may they be), source_data_order.c (which of them make a batch) and
 * source_data_batch.c (its arrays) only. */
#ifndef PSEG_TRAIN_SOURCE_DATA_PARTS_H
#define PSEG_TRAIN_SOURCE_DATA_PARTS_H

#include "worker/train/source_data.h"

/* A phrase of an image. */
typedef struct data_example {
    uint32_t sample, sentence; /* sentence: of the sample */
} data_example;

/* Phrases of one image that come together, so that the image is looked at once. */
typedef struct data_block {
    uint32_t part;     /* the validation set is the last */
    uint32_t place;    /* of the image, in the part's list */
    uint32_t first, n; /* of its phrases, in the order that they have in an epoch */
} data_block;

typedef struct data_part {
    pseg_dataset *d;
    pseg_data_selection images;
    /* [images.n], or [images.n, 2] where photos may be mirrored: entries of the cache; of pixels, 0
     * for an image that can be used. PSEG_NO_FEATURE: it is left out. */
    uint32_t *entries;
    double weight;
    data_example *examples; /* [n], an image's one behind the other: */
    size_t *first_of;       /* [images.n + 1]: where each image's begin */
    size_t n;
    data_block *blocks;
    size_t n_blocks;
} data_part;

/* Where a block stands. */
typedef struct data_place {
    const data_block *of;
    uint32_t room; /* phrases that a block may have here */
    bool is_rest;  /* of a weight's fraction: drawn anew each epoch */
} data_place;

typedef struct data_cut {
    size_t place;
    uint32_t from; /* the place's phrases before this one belong to the batch before */
} data_cut;

/* Training, or validation: blocks in a row, cut into batches. Rooms and cuts are the same in every
 * epoch, so that all have as many batches; which block of a size stands where is drawn. */
typedef struct data_side {
    data_place *places; /* [n] */
    data_cut *cuts;     /* [n_batches + 1] */
    size_t n, n_batches;
} data_side;

typedef struct data_sets {
    pseg_head_config head;
    pseg_train_sizes sizes;
    pseg_preprocess how;
    pseg_feature_cache *cache; /* NULL: pixels */
    bool has_mirror;
    data_part *parts; /* n_parts, and one more for validation */
    size_t n_parts;
    data_side val, train;
    uint32_t most;     /* phrases of a block */
    uint64_t order_of; /* the epoch that train is laid out for */
    pseg_data_report_fn *report;
    void *report_ud;
} data_sets;

bool data_sets_is_wanted(const pseg_data_sample *s, const char *kind);
/* Are all phrases of p in the table? Asked before features are made. Errors: PSEG_R_PROMPT_UNKNOWN,
 * naming record and phrase. */
pseg_status data_sets_seek_phrases(const data_part *p, const pseg_train_data_options *o,
                                   bool is_mirrored, pseg_err *err);

/* Blocks of all parts, and how they are cut into batches; train is laid out for epoch 0. */
pseg_status data_sets_plan(data_sets *q, pseg_err *err);
/* Of an epoch. */
uint64_t data_sets_n_phrases(const data_sets *q);
/* Lays train out for another epoch. */
pseg_status data_sets_draw(data_sets *q, uint64_t epoch, pseg_err *err);
/* The phrases of a block's image in the order that they have in an epoch, as numbers of the part's
 * examples; in a validation always the set's. Caller frees with pseg_free. */
pseg_status data_sets_phrases(size_t **out, const data_sets *q, const data_block *k, bool is_train,
                              uint64_t epoch, pseg_err *err);

/* Is it a fault of the image, which is left out, or one that ends the work? */
bool data_sets_is_of_image(const pseg_err *e);
pseg_data_fault data_sets_fault_of(const pseg_err *e);
/* No image at that place from now on; what: why. */
void data_sets_leave_out(const data_sets *q, data_part *p, size_t place, pseg_data_fault fault,
                         const char *what);
bool data_sets_is_left_out(const data_sets *q, const data_part *p, size_t place);

/* pseg_train_source's. */
pseg_status data_sets_load(void *ud, pseg_train_batch *b, bool is_train, uint64_t epoch,
                           uint64_t batch, pseg_err *err);

#endif
