/* What a run leaves to read: log.jsonl, one object a line, curves.svg, and event files for
 * TensorBoard (events.h): train/ and step/ by step, epoch/ and validation/ at an epoch's last step.
 *
 *   {"type":"step","step":17,"epoch":0,"batch":17,"loss":1.23,"bce":..,"dice":..,"iou_loss":..,
 *    "iou":..,"norm":..,"lr":..,"images_per_s":..,"seconds":..}
 *   {"type":"skip","step":18,"epoch":0,"batch":18,"samples":["scene 1000012, phrase 3",..]}
 *   {"type":"epoch","epoch":0,"step":473,"loss":..,"iou":..,"val_loss":..,"val_iou":..,
 *    "val_iou_50":..,"val_pred_off":..,"best":true,"seconds":..}
 *
 * loss, iou and the like have 17 digits: equal text means equal bits. A run that goes on drops the
 * lines behind its checkpoint, which are written again. */
#ifndef PSEG_TRAIN_REPORT_H
#define PSEG_TRAIN_REPORT_H

#include "common/base/err.h"

#include <stdint.h>

typedef struct pseg_report pseg_report;

typedef struct pseg_report_step {
    uint64_t step, epoch, batch;
    double loss, bce, dice, iou_loss, iou, norm, lr;
    double images_per_s, seconds;
} pseg_report_step;

typedef struct pseg_report_epoch {
    uint64_t epoch, step;
    double loss, iou;                                   /* of training, mean */
    double val_loss, val_iou, val_iou_50, val_pred_off; /* NAN: there was no validation */
    bool is_best;
    double seconds;
} pseg_report_epoch;

/* Opens folder/log.jsonl to append and an event file; with steps < from_step and epochs <
 * from_epoch kept, or empty. Errors: PSEG_R_FILE_IO, PSEG_R_FILE_NOT_FOUND. */
pseg_status pseg_report_open(pseg_report **out, const char *folder, uint64_t from_step,
                             uint64_t from_epoch, pseg_err *err);
void pseg_report_close(pseg_report *r); /* NULL: nothing happens */

pseg_status pseg_report_add_step(pseg_report *r, const pseg_report_step *s, pseg_err *err);
/* samples: n names of what was in the batch. */
pseg_status pseg_report_add_skip(pseg_report *r, const pseg_report_step *s,
                                 const char *const *samples, size_t n, pseg_err *err);
/* Draws curves.svg anew. */
pseg_status pseg_report_add_epoch(pseg_report *r, const pseg_report_epoch *e, pseg_err *err);

#endif
