/* Sums over rows, in an order that sizes alone decide. */
#ifndef PSEG_OPS_REDUCE_H
#define PSEG_OPS_REDUCE_H

#include "worker/ops/internal.h"

/* out[g][0..c) (+)= alpha * the sum of group g's rows of x. */
typedef struct pseg_sum {
    pseg_tensor out, x;
    size_t out_row; /* elements from one group's sum to the next */
    size_t groups, count, c;
    size_t group;                             /* elements from one group's first row to the next */
    size_t inner, outer_stride, inner_stride; /* row r: r / inner, r % inner; inner 0: count */
    float alpha;
    bool add;
} pseg_sum;

/* Takes the stream's scratch memory from byte `scratch_used` on, for a part of x's size or less:
 * who keeps something before that byte must have asked for so much. */
pseg_status pseg_sum_rows(pseg_stream *s, const pseg_sum *sum, size_t scratch_used, pseg_err *err);

/* The gradient of something that lies in blocks and may repeat over the batch or over rows (stride
 * 0), from a gradient that does not: copied, scaled, added or summed as it takes. */
typedef struct pseg_spread {
    pseg_tensor out, x; /* to, from */
    size_t out_batch, out_row, x_batch, x_row;
    size_t batch, n, c;
    float alpha;
    bool add;
} pseg_spread;
pseg_status pseg_sum_block(pseg_stream *s, const pseg_spread *b, size_t scratch_used,
                           pseg_err *err);

#endif
