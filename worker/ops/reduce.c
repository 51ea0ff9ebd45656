#include "worker/ops/reduce.h"

/* Rows of a piece, at least; and pieces, at most. */
#define PIECE  64u
#define PIECES 256u

static pseg_status enqueue(pseg_stream *s, pseg_arg out, pseg_arg x, const pseg_sum_params *p,
                           pseg_err *err)
{
    static const pseg_kernel kernel = {"reduce.cl", "sum_rows", NULL};
    uint64_t rows = (uint64_t)p->groups * ((p->count + p->piece - 1) / p->piece);
    pseg_arg args[] = {out, x, PSEG_ARG_VALUE(*p)};

    return pseg_launch_rows(s, &kernel, rows, p->c, args, N_OF(args), err);
}

pseg_status pseg_sum_rows(pseg_stream *s, const pseg_sum *sum, size_t scratch_used, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t piece = (sum->count + PIECES - 1) / PIECES;
    pseg_mem *mem = NULL;
    pseg_sum_params p = {
        .out_off = sum->out.off,
        .x_off = sum->x.off,
        .out_row = sum->out_row,
        .group = sum->group,
        .outer_stride = sum->outer_stride,
        .inner_stride = sum->inner_stride,
        .groups = (uint32_t)sum->groups,
        .count = (uint32_t)sum->count,
        .c = (uint32_t)sum->c,
        .inner = (uint32_t)(sum->inner ? sum->inner : sum->count),
        .piece = (uint32_t)sum->count,
        .add = sum->add,
        .alpha = sum->alpha,
    };

    piece = piece < PIECE ? PIECE : piece;
    if (sum->count <= 2 * PIECE) {
        PSEG_TRY(enqueue(s, PSEG_ARG_MEM(sum->out.mem), PSEG_ARG_MEM(sum->x.mem), &p, err));
    } else {
        size_t pieces = (sum->count + piece - 1) / piece;
        size_t bytes = PSEG_PRODUCT((int64_t)sum->groups, (int64_t)pieces, (int64_t)sum->c,
                                    (int64_t)sizeof(float));
        pseg_sum_params q = p;

        PSEG_REQUIRE(bytes < SIZE_MAX / 2, "size of partial sums");
        PSEG_TRY(pseg_stream_scratch(&mem, s, scratch_used + bytes, err));
        q.piece = (uint32_t)piece;
        q.out_off = scratch_used / sizeof(float);
        q.out_row = sum->c;
        q.add = 0;
        q.alpha = 1.0f;
        PSEG_TRY(enqueue(s, PSEG_ARG_MEM(mem), PSEG_ARG_MEM(sum->x.mem), &q, err));
        p.x_off = q.out_off;
        p.group = pieces * sum->c;
        p.count = p.inner = p.piece = (uint32_t)pieces;
        p.outer_stride = 0;
        p.inner_stride = sum->c;
        PSEG_TRY(enqueue(s, PSEG_ARG_MEM(sum->out.mem), PSEG_ARG_MEM(mem), &p, err));
    }
out:
    return rc;
}

static pseg_status move(pseg_stream *s, const pseg_spread *b, pseg_err *err)
{
    pseg_op_args a = {
        .t = {b->out, b->x},
        .i = {(int64_t)b->batch, (int64_t)b->n, (int64_t)b->c, (int64_t)b->out_batch,
              (int64_t)b->out_row, (int64_t)b->x_batch, (int64_t)b->x_row},
        .f = {b->alpha},
    };

    if (!b->add)
        return pseg_op_row_copy.launch(s, &a, err);
    a.t[1] = b->out; /* out = out + alpha * x */
    a.t[2] = b->x;
    a.i[5] = (int64_t)b->out_batch;
    a.i[6] = (int64_t)b->out_row;
    a.i[7] = (int64_t)b->x_batch;
    a.i[8] = (int64_t)b->x_row;
    return pseg_op_row_add.launch(s, &a, err);
}

pseg_status pseg_sum_block(pseg_stream *s, const pseg_spread *b, size_t scratch_used, pseg_err *err)
{
    bool over_batch = b->batch > 1 && b->out_batch == 0, over_n = b->n > 1 && b->out_row == 0;
    pseg_sum sum = {.out = b->out, .x = b->x, .c = b->c, .alpha = b->alpha, .add = b->add};

    if (!over_batch && !over_n)
        return move(s, b, err);
    if (over_batch && over_n) {
        sum.groups = 1;
        sum.count = b->batch * b->n;
        sum.inner = b->n;
        sum.outer_stride = b->x_batch;
        sum.inner_stride = b->x_row;
    } else if (over_batch) {
        sum.groups = b->n;
        sum.count = b->batch;
        sum.group = b->x_row;
        sum.inner_stride = b->x_batch;
        sum.out_row = b->out_row;
    } else {
        sum.groups = b->batch;
        sum.count = b->n;
        sum.group = b->x_batch;
        sum.inner_stride = b->x_row;
        sum.out_row = b->out_batch;
    }
    return pseg_sum_rows(s, &sum, scratch_used, err);
}
