/* Counting the pixels of one image's masks. Private to worker/eval. */
#ifndef PSEG_EVAL_MEASURE_H
#define PSEG_EVAL_MEASURE_H

#include "worker/eval/evaluate.h"

#include <pthread.h>

/* What all threads of a run share. */
typedef struct eval_common {
    pseg_eval_source *source;
    const pseg_eval_plan *plan;
    const pseg_eval_options *o;
    const pseg_model_info *info;
    pseg_eval_run *run;
    pthread_mutex_t report_mu;
} eval_common;

/* Counts and reports; any thread. */
void eval_fault(eval_common *c, pseg_eval_fault fault, const char *where, const char *what);

/* What the model made of one image. */
typedef struct eval_answers {
    uint32_t image;
    pseg_eval_photo photo;
    uint32_t *phrases; /* distinct numbers of texts, n of them */
    bool *is_cut;      /* [n] */
    uint32_t n;
    uint16_t *logits; /* float16, [n, mask_height, mask_width] */
    float *predicted; /* [n] */
} eval_answers;
/* Where a phrase stands among the answers, or PSEG_EVAL_NONE. */
uint32_t eval_answer_of(const eval_answers *a, uint32_t phrase);

/* The mask of answer k. */
pseg_status eval_make_mask(pseg_mask **out, const eval_answers *a, const pseg_model_info *info,
                           uint32_t k, float threshold, pseg_err *err);

/* Fills the outcomes of the image's entries. A truth that cannot be used is left out and counted;
 * an error is one that ends the run. */
pseg_status eval_measure(eval_common *c, const eval_answers *a, pseg_err *err);

#endif
