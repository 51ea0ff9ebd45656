/* From gradients to new weights: clipping by the norm of all gradients, AdamW or Muon, a slow
 * average; and the learning rate over a run. An object of one thread. */
#ifndef PSEG_TRAIN_OPTIM_H
#define PSEG_TRAIN_OPTIM_H

#include "worker/train/kernels.h"
#include "worker/train/muon.h"
#include "worker/train/params.h"

typedef struct pseg_optim pseg_optim;

typedef struct pseg_optim_options {
    float lr[PSEG_PARAM_N_GROUPS]; /* at their highest */
    float decay;                   /* of what param.has_decay */
    float beta1, beta2, eps;
    float clip; /* of the norm; 0: none */
    /* What the slow average keeps of itself in a step, 0..1; 0: there is none. In the first t steps
     * it is at most (1 + t) / (10 + t), so that the beginning is forgotten soon. */
    float ema;
    /* Steps of matrices are Muon's (muon.h), with this as their highest rate, in place of lr; 0:
     * AdamW's. */
    float lr_muon;
} pseg_optim_options;

#define PSEG_OPTIM_OPTIONS_DEFAULT                                                        \
    {                                                                                     \
        {1e-4f, 2e-4f, 1e-5f, 1e-5f, 1e-3f}, 1e-2f, 0.9f, 0.999f, 1e-8f, 1.0f, 0.0f, 0.0f \
    }

/* params: borrowed until free; with a slow average if options->ema > 0. */
pseg_status pseg_optim_new(pseg_optim **out, pseg_cl *cl, pseg_params *params,
                           const pseg_optim_options *options, pseg_err *err);
void pseg_optim_free(pseg_optim *o); /* NULL: nothing happens */

/* Of device memory, beside the parameters'. */
uint64_t pseg_optim_bytes(const pseg_optim *o);

/* Steps that were taken: t of the bias correction. To be set when a run goes on. */
uint64_t pseg_optim_steps(const pseg_optim *o);
void pseg_optim_set_steps(pseg_optim *o, uint64_t steps);

/* One step with the learning rates times `scale`. Waits. *norm: of the gradients before clipping.
 * Where it is not a finite number nothing changes, nor is the step counted. */
pseg_status pseg_optim_step(float *norm, pseg_optim *o, pseg_stream *s, float scale, pseg_err *err);

/* The share of the highest learning rate at step `step` (from 0) of `total`: rises in a straight
 * line over the first `warm` steps, from 1/warm on, then falls to 0 along half a cosine. */
float pseg_optim_schedule(uint64_t step, uint64_t warm, uint64_t total);

#endif
