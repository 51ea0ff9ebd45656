/* Learning curves from a training run's log of JSON lines: objects of "type" "step" and "epoch".
 * Fields that are not there, lines of other types and a last line that was cut off are passed over.
 */
#ifndef PSEG_EVAL_CURVES_H
#define PSEG_EVAL_CURVES_H

#include "common/base/err.h"

#include <stddef.h>

typedef struct pseg_eval_curve_point {
    double epoch; /* of a step: with its fraction, where the log tells; else its number */
    double loss, val_loss, iou, val_iou; /* NAN: not told */
} pseg_eval_curve_point;

typedef struct pseg_eval_curves {
    pseg_eval_curve_point *epochs; /* n_epochs; a later line of the same epoch wins */
    size_t n_epochs;
    size_t n_lines, n_unread; /* of the file; those that are no JSON object */
} pseg_eval_curves;

/* Caller frees with pseg_eval_curves_free. Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_FILE_IO,
 * PSEG_R_INVALID_ARGUMENT (no epoch in it). */
pseg_status pseg_eval_curves_read(pseg_eval_curves **out, const char *path, pseg_err *err);
void pseg_eval_curves_free(pseg_eval_curves *c);

#endif
