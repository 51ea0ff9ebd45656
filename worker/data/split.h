/* Which images are trained on and which are held out; several sets as one, with weights.
 *
 * Images, never phrases, are divided, and two images are the same if their keys are (dataset.h),
 * whatever set they stand in: a mix leaves out of every part the images of the held-out ones.
 *
 *     PSEG_TRY(pseg_data_select(&train, d, "not last:46", err));
 *     PSEG_TRY(pseg_data_select(&val, d, "last:46", err));
 *     pseg_mix_part part = {d, &train, 1};
 *     PSEG_TRY(pseg_mix_new(&mix, &part, 1, &val_of, 1, err));
 *     PSEG_TRY(pseg_mix_order(order, mix, seed, epoch, err));     // pseg_mix_length of them
 *     pseg_mix_item item = pseg_mix_at(mix, order[i]);
 *     pseg_mix_free(mix);
 *     pseg_data_selection_free(&train); ... */
#ifndef PSEG_DATA_SPLIT_H
#define PSEG_DATA_SPLIT_H

#include "worker/data/dataset.h"

/* Images of one set, by number, ascending. */
typedef struct pseg_data_selection {
    uint32_t *images;
    size_t n;
} pseg_data_selection;

/* spec, optionally with "not " before it for all other images:
 *   "all"
 *   "last:N", "first:N"    the N images whose file names sort last or first (byte by byte)
 *   "hash:10%", "hash:10%@SEED"   those whose key and seed hash into the first tenth: the same in
 *                           every set, whatever else it holds; seed 0 if none is given
 *   "list:FILE"             those that the file names, one a line: a key, or a file name; a line
 *                           that names no image of the set is an error, unless it is empty or
 *                           begins with #
 * Caller frees with pseg_data_selection_free. Errors: PSEG_R_CONFIG_INVALID (the spec, or nothing
 * selected), PSEG_R_FILE_NOT_FOUND, PSEG_R_FILE_IO, PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_data_select(pseg_data_selection *out, const pseg_dataset *d, const char *spec,
                             pseg_err *err);
void pseg_data_selection_free(pseg_data_selection *s);

typedef struct pseg_mix pseg_mix;

/* weight: how often each example comes in an epoch: 1 once, 3 three times, 0.5 every other one,
 * drawn anew each epoch. Greater than 0, at most 1000. */
typedef struct pseg_mix_part {
    const pseg_dataset *d;
    const pseg_data_selection *images;
    double weight;
} pseg_mix_part;

/* Images of held_out (weights do not matter) are left out of every part. What parts and held_out
 * point at is borrowed: the data sets until pseg_mix_free, the rest for the call. Errors:
 * PSEG_R_CONFIG_INVALID (a weight; a part of which nothing is left). */
pseg_status pseg_mix_new(pseg_mix **out, const pseg_mix_part *parts, size_t n,
                         const pseg_mix_part *held_out, size_t n_held_out, pseg_err *err);
void pseg_mix_free(pseg_mix *m); /* NULL: nothing happens */

size_t pseg_mix_n_left_out(const pseg_mix *m, size_t part); /* images, for being held out */
size_t pseg_mix_n_examples(const pseg_mix *m);              /* distinct */
size_t pseg_mix_length(const pseg_mix *m);                  /* examples of an epoch */

/* order: pseg_mix_length numbers for pseg_mix_at. The same seed and epoch give the same order on
 * every machine, so that seed, epoch and a position are all that a checkpoint must hold. Any
 * thread. */
pseg_status pseg_mix_order(uint32_t *order, const pseg_mix *m, uint64_t seed, uint64_t epoch,
                           pseg_err *err);

typedef struct pseg_mix_item {
    uint32_t part;
    pseg_data_example example; /* of the part's data set */
} pseg_mix_item;
pseg_mix_item pseg_mix_at(const pseg_mix *m, uint32_t example); /* below pseg_mix_n_examples */

#endif
