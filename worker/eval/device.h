/* The model's part of an evaluation: batches of images with all phrases that are asked of them.
 * One thread at a time. Private to worker/eval. */
#ifndef PSEG_EVAL_DEVICE_H
#define PSEG_EVAL_DEVICE_H

#include "worker/eval/measure.h"

typedef struct eval_device {
    eval_common *c;
    pseg_model *m;
    pseg_prompt **prompts; /* [plan's texts] */
    bool *is_refused;      /* [plan's texts]: the model will not have it */
    uint32_t *held;        /* those with a prompt, n_held of them */
    uint32_t n_held;
} eval_device;

/* Is this an error of one image or phrase, and not of the run? */
bool eval_is_of_data(const pseg_err *e);

/* c and m must outlive *d; eval_device_deinit is due whatever this returns. */
pseg_status eval_device_init(eval_device *d, eval_common *c, pseg_model *m, pseg_err *err);
void eval_device_deinit(eval_device *d); /* of one that is all zeros, too */

/* chw: [n, 3, height, width]. Fills the phrases, logits (as halves) and predicted IoU of each of
 * answers[n], whose `image` says which phrases of the plan are asked. A phrase that the model
 * refuses is told once as a fault and left out. What is filled belongs to the answers, on failure
 * as well. */
pseg_status eval_device_answer(eval_answers **answers, eval_device *d, const float *chw, uint32_t n,
                               pseg_err *err);

#endif
