/* What is wrong in a data set, before hours are spent on it.
 *
 * Goes through records, image files, masks and phrases, and tells of everything that a trainer
 * would leave out, and of what it would take but should not. Of two or more sets it also tells
 * which images they share, by key and by the bytes of the files: what is trained on must not be
 * scored on.
 *
 *     pseg_check *c;
 *     PSEG_TRY(pseg_check_new(&c, &options, err));
 *     PSEG_TRY(pseg_check_add(c, "train.jsonl", &o, err));
 *     PSEG_TRY(pseg_check_add(c, "val.jsonl", &o, err));
 *     pseg_check_set_of(c, 0)->faults[PSEG_DATA_IMAGE_BROKEN] ...
 *     pseg_check_free(c);
 *
 * An object of one thread. */
#ifndef PSEG_DATA_CHECK_H
#define PSEG_DATA_CHECK_H

#include "worker/data/dataset.h"

typedef struct pseg_check pseg_check;

typedef struct pseg_check_options {
    const char *text;  /* folder of a text encoder or a table: tokens are counted, phrases sought */
    bool headers_only; /* image files are looked at, not decoded */
    pseg_data_report_fn *report; /* told of every fault as it is met */
    void *report_ud;
    /* after each image; false: stop. or NULL */
    bool (*progress)(void *ud, size_t done, size_t total);
    void *progress_ud;
} pseg_check_options;

/* Errors: those of pseg_tokenizer_open and pseg_text_table_open. */
pseg_status pseg_check_new(pseg_check **out, const pseg_check_options *o, pseg_err *err);
void pseg_check_free(pseg_check *c); /* NULL: nothing happens */

/* Opens the set at path and checks it; report and keeps_faults of o are this module's. Errors:
 * those of pseg_dataset_open; PSEG_R_CANCELLED. */
pseg_status pseg_check_add(pseg_check *c, const char *path, const pseg_data_options *o,
                           pseg_err *err);

typedef struct pseg_check_set {
    char *path, *split; /* split: "" for all */
    pseg_data_format format;
    size_t n_images, n_samples, n_phrases;
    size_t faults[PSEG_DATA_N_FAULTS];
    size_t n_usable_images;       /* whose file is good */
    uint32_t min_side, max_side;  /* of its images, px */
    double mean_words, mean_area; /* of phrases; of masks, as a share of the image */
} pseg_check_set;
size_t pseg_check_n_sets(const pseg_check *c);
const pseg_check_set *pseg_check_set_of(const pseg_check *c, size_t i);
size_t pseg_check_n_faults(const pseg_check *c); /* of all sets and kinds */

#endif
