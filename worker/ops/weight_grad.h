/* The gradient of a packed weight of gemm or conv3 (kernels/gemm_backward.cl). */
#ifndef PSEG_OPS_WEIGHT_GRAD_H
#define PSEG_OPS_WEIGHT_GRAD_H

#include "kernels/params.h"
#include "worker/ops/internal.h"

/* out, packed, is overwritten or added to, with x^T g: x the input, g the gradient of the output;
 * and bias [n], unless its mem is NULL, with the sums of g's rows. p: all but flags, out_off,
 * bias_off, g_off, piece and what ends in _per_item, which are filled in. Takes the stream's
 * scratch memory. */
typedef struct pseg_weight_grads {
    pseg_tensor w, bias;
    bool adds_w, adds_bias;
} pseg_weight_grads;
pseg_status pseg_weight_grad(pseg_stream *s, const pseg_weight_grads *out, pseg_arg x,
                             const pseg_tensor *g, pseg_weight_grad_params *p, pseg_err *err);

/* bias [n] alone: the sums of g's rows. */
pseg_status pseg_bias_grad(pseg_stream *s, const pseg_tensor *bias, bool adds, const pseg_tensor *g,
                           size_t rows, size_t n, size_t stride, pseg_err *err);

#endif
