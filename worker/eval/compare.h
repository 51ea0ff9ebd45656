/* Two runs on the same phrases: the difference of each figure with a paired interval. */
#ifndef PSEG_EVAL_COMPARE_H
#define PSEG_EVAL_COMPARE_H

#include "worker/eval/analysis.h"

typedef struct pseg_eval_compared {
    char *name;           /* of the other run's model */
    char *digest;         /* of its model */
    uint32_t n, n_images; /* phrases in both */
    uint32_t n_only_here, n_only_there;
    uint32_t n_better, n_worse; /* phrases whose IoU is higher, lower here */
    pseg_eval_interval here[PSEG_EVAL_N_FIGURES], there[PSEG_EVAL_N_FIGURES],
        difference[PSEG_EVAL_N_FIGURES]; /* here - there */
} pseg_eval_compared;

/* path: the other run's report.json, which names its records; or the records themselves; or the
 * folder with both. Phrases are the same if image, target, sentence and text are. Intervals of a
 * difference come from replicates in which both runs have the same images. Caller frees with
 * pseg_eval_compared_free. Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_FILE_IO, PSEG_R_INVALID_ARGUMENT
 * (no report; one without records; no phrase in both). */
pseg_status pseg_eval_compare(pseg_eval_compared **out, const char *path, const pseg_eval_plan *p,
                              const pseg_eval_run *r, const pseg_eval_bootstrap_options *o,
                              pseg_err *err);
void pseg_eval_compared_free(pseg_eval_compared *c);

#endif
