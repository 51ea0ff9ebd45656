/* What the forward and the backward launches of 3x3 convolutions share. */
#ifndef PSEG_OPS_CONV_H
#define PSEG_OPS_CONV_H

#include "worker/ops/internal.h"

/* Enqueues conv3 for p, all of it but tiles_per_item. args: out, x, w, bias, zeros. */
pseg_status pseg_conv3_enqueue(pseg_stream *s, const pseg_arg *args, pseg_conv3_params *p,
                               pseg_err *err);

#endif
