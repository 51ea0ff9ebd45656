/* Which images are trained on and which are held out.
 *
 * Images, never phrases, are divided, and two images are the same if their keys are (dataset.h),
 * whatever set they stand in.
 *
 *     PSEG_TRY(pseg_data_select(&val, d, "last:46", err));
 *     pseg_data_selection_free(&val); */
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

#endif
