/* Mean IoU by threshold, on images kept apart from those of the figures. */
#ifndef PSEG_EVAL_SWEEP_H
#define PSEG_EVAL_SWEEP_H

#include "worker/eval/bootstrap.h"
#include "worker/eval/evaluate.h"

/* iou: [o->n_sweep] intervals of the mean over the run's phrases; *best: the threshold with the
 * highest mean, of equal ones the nearest to 0.5. r was made with options of that sweep. Errors:
 * PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_eval_sweep_intervals(pseg_eval_interval *iou, size_t *best,
                                      const pseg_eval_plan *p, const pseg_eval_run *r,
                                      const pseg_eval_options *o,
                                      const pseg_eval_bootstrap_options *b, pseg_err *err);

/* PSEG_R_CONFIG_INVALID, which names one, if an image of `tuned` is in `scored` too. */
pseg_status pseg_eval_check_apart(const pseg_eval_plan *tuned, const pseg_eval_plan *scored,
                                  pseg_err *err);

#endif
