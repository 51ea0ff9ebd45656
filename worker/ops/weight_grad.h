/* The gradient of a packed weight of gemm or conv3 (kernels/gemm_backward.cl). */
#ifndef PSEG_OPS_WEIGHT_GRAD_H
#define PSEG_OPS_WEIGHT_GRAD_H

#include "kernels/params.h"
#include "worker/ops/internal.h"

/* out, packed, is overwritten or added to, with x^T g: x the input, g the gradient of the output.
 * p: all but add, out_off, g_off, piece and what ends in _per_item, which are filled in. Takes the
 * stream's scratch memory. */
pseg_status pseg_weight_grad(pseg_stream *s, const pseg_tensor *out, bool add, pseg_arg x,
                             const pseg_tensor *g, pseg_weight_grad_params *p, pseg_err *err);

#endif
