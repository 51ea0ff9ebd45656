/* Muon (Jordan et al. 2024): steps of weight matrices along their momentum, made orthogonal. For
 * the gradient G of a matrix or convolution W [n, k] (a convolution's taps and channels are k),
 * clipped as AdamW's is:
 *
 *     M = beta M + (1 - beta) G,  U = beta M + (1 - beta) G
 *     X = U / (|U| + 1e-7), transposed where n > k; then five times (Newton, Schulz):
 *         A = X X^T,  X = 3.4445 X + (-4.7750 A + 2.0315 A A) X
 *     W = (1 - lr decay) W - lr sqrt(max(1, n / k)) X
 *
 * so that all its directions are learnt at about the same speed. Products are pseg_op_gemm's.
 * Matrices with a side of 16 or less, embeddings, positions, the upsampler's and the probes' are
 * AdamW's, as are vectors. M lies in PSEG_PARAMS_MEAN. An object of one thread. */
#ifndef PSEG_TRAIN_MUON_H
#define PSEG_TRAIN_MUON_H

#include "worker/train/params.h"

typedef struct pseg_muon pseg_muon;

typedef struct pseg_muon_options {
    float lr, decay, beta;
} pseg_muon_options;

/* Does this tensor get Muon's steps? */
bool pseg_muon_takes(const pseg_param *p);

/* params: borrowed until free. */
pseg_status pseg_muon_new(pseg_muon **out, pseg_cl *cl, pseg_params *params,
                          const pseg_muon_options *options, pseg_err *err);
void pseg_muon_free(pseg_muon *m);            /* NULL: nothing happens */
uint64_t pseg_muon_bytes(const pseg_muon *m); /* of device memory, beside the parameters' */

/* One step of all its tensors, with the rate times `scale`. norm: of all gradients, as
 * pseg_train_norm leaves it; where it is no number nothing changes. ema_keep: of the slow average,
 * if params have one. Enqueues and returns. */
pseg_status pseg_muon_step(pseg_muon *m, pseg_stream *s, pseg_view norm, float scale,
                           float ema_keep, pseg_err *err);

#endif
