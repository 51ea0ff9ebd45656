/* A data set on disk (worker/data) as a source of an evaluation. */
#ifndef PSEG_EVAL_SOURCE_DATA_H
#define PSEG_EVAL_SOURCE_DATA_H

#include "worker/data/split.h"
#include "worker/eval/source.h"

/* Images of the selection, which is copied; d is borrowed until close. description: of the data,
 * for the report; copied. An image's name is its key in the data set. Errors: those of
 * pseg_dataset_read, PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_eval_source_data(pseg_eval_source **out, pseg_dataset *d,
                                  const pseg_data_selection *images, const char *description,
                                  const pseg_image_limits *limits, pseg_err *err);

#endif
