/* The inside of a source of data sets, shared by source_data.c (what the examples are) and
 * source_data_batch.c (their order, and batches of them) only. */
#ifndef PSEG_TRAIN_SOURCE_DATA_PARTS_H
#define PSEG_TRAIN_SOURCE_DATA_PARTS_H

#include "worker/train/source_data.h"

/* One phrase of one image. */
typedef struct data_item {
    uint32_t part;  /* the validation set is the last */
    uint32_t place; /* of the image, in the part's list */
    pseg_data_example example;
} data_item;

typedef struct data_part {
    pseg_dataset *d;
    pseg_data_selection images;
    /* [images.n], or [images.n, 2] where photos may be mirrored: entries of the cache; of pixels, 0
     * for an image that can be used. PSEG_NO_FEATURE: it is left out. */
    uint32_t *entries;
    double weight;
    data_item *items;
    size_t n;
} data_part;

typedef struct data_sets {
    pseg_head_config head;
    pseg_train_sizes sizes;
    pseg_preprocess how;
    pseg_feature_cache *cache; /* NULL: pixels */
    bool has_mirror;
    data_part *parts; /* n_parts, and one more for validation */
    size_t n_parts;
    const data_item **order; /* of an epoch */
    size_t length;
    uint64_t order_of; /* the epoch; UINT64_MAX: none yet */
    pseg_data_report_fn *report;
    void *report_ud;
} data_sets;

/* Examples of an epoch that part p has by its weight. */
size_t data_sets_copies(const data_part *p);

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
