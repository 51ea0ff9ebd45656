/* The layers that every part of a model is made of, on the device: a Linear and a LayerNorm with
 * their weights. All enqueue and return; arguments as in worker/ops/ops.h, rows dense. */
#ifndef PSEG_MODEL_LAYERS_H
#define PSEG_MODEL_LAYERS_H

#include "worker/model/weights.h"

/* out = act(a w^T + bias). */
pseg_status pseg_linear_run(pseg_stream *s, const pseg_linear *l, pseg_view out, pseg_view a,
                            size_t rows, pseg_act act, pseg_err *err);
/* x += scale * (a w^T + bias); scale: PSEG_NO_VIEW is 1. */
pseg_status pseg_linear_add(pseg_stream *s, const pseg_linear *l, pseg_view x, pseg_view a,
                            pseg_view scale, size_t rows, pseg_err *err);
/* out = act(LN(x)), rows of c; out may be x. */
pseg_status pseg_norm_run(pseg_stream *s, const pseg_norm *n, pseg_view out, pseg_view x,
                          size_t rows, size_t c, float eps, pseg_act act, pseg_err *err);

#endif
