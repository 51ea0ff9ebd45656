/* Written out by hand from the rows' `params` and ops.h, so that a number in the wrong place shows.
 */
#include "tests/ops/typed.h"

#include <string.h>

static pseg_view at(const pseg_op_args *a, size_t slot)
{
    return (pseg_view){a->t[slot].mem, a->t[slot].off, a->t[slot].type};
}

static size_t num(const pseg_op_args *a, size_t i)
{
    return (size_t)a->i[i];
}

/* Strides that are dense are passed as 0, which means the same. */
static size_t stride(const pseg_op_args *a, size_t i, size_t dense)
{
    return num(a, i) == dense ? 0 : num(a, i);
}

static pseg_status gemm(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    pseg_gemm g = {.out = at(a, 0),
                   .a = at(a, 1),
                   .w = at(a, 2),
                   .bias = at(a, 3),
                   .res = at(a, 4),
                   .scale = at(a, 5),
                   .m = num(a, 0),
                   .n = num(a, 1),
                   .k = num(a, 2),
                   .a_stride = stride(a, 3, num(a, 2)),
                   .out_stride = stride(a, 4, num(a, 1)),
                   .res_stride = stride(a, 5, num(a, 1)),
                   .act = (pseg_act)a->i[6]};

    return pseg_op_gemm(s, &g, err);
}

static pseg_status conv3(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    pseg_conv3 v = {.out = at(a, 0),
                    .x = at(a, 1),
                    .w = at(a, 2),
                    .bias = at(a, 3),
                    .batch = num(a, 0),
                    .h = num(a, 1),
                    .width = num(a, 2),
                    .c = num(a, 3),
                    .n = num(a, 4)};

    return pseg_op_conv3(s, &v, err);
}

static pseg_status layernorm(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    pseg_layernorm l = {.out = at(a, 0),
                        .x = at(a, 1),
                        .w = at(a, 2),
                        .b = at(a, 3),
                        .rows = num(a, 0),
                        .c = num(a, 1),
                        .x_stride = stride(a, 2, num(a, 1)),
                        .out_stride = stride(a, 3, num(a, 1)),
                        .act = (pseg_act)a->i[4],
                        .eps = (float)a->f[0]};

    return pseg_op_layernorm(s, &l, err);
}

static pseg_status groupnorm(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    pseg_groupnorm g = {.out = at(a, 0),
                        .x = at(a, 1),
                        .w = at(a, 2),
                        .b = at(a, 3),
                        .b_n = num(a, 0),
                        .hw = num(a, 1),
                        .c = num(a, 2),
                        .groups = num(a, 3),
                        .act = (pseg_act)a->i[4],
                        .eps = (float)a->f[0]};

    return pseg_op_groupnorm(s, &g, err);
}

static pseg_status attention(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    pseg_attention t = {.out = at(a, 0),
                        .q = at(a, 1),
                        .k = at(a, 2),
                        .v = at(a, 3),
                        .key_len = at(a, 4),
                        .batch = num(a, 0),
                        .heads = num(a, 1),
                        .d = num(a, 2),
                        .n_q = num(a, 3),
                        .n_k = num(a, 4),
                        .q_row = num(a, 5),
                        .k_row = num(a, 6),
                        .v_row = num(a, 7),
                        .out_row = num(a, 8),
                        .q_batch = num(a, 9),
                        .k_batch = num(a, 10),
                        .v_batch = num(a, 11),
                        .out_batch = num(a, 12),
                        .causal = a->i[13] != 0,
                        .scale = (float)a->f[0]};

    return pseg_op_attention(s, &t, err);
}

static pseg_status tree_attention(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    pseg_tree_attention t = {.out = at(a, 0),
                             .q = at(a, 1),
                             .k = at(a, 2),
                             .v = at(a, 3),
                             .from = at(a, 4),
                             .back = at(a, 5),
                             .heads = num(a, 0),
                             .d = num(a, 1),
                             .n_q = num(a, 2),
                             .n_k = num(a, 3),
                             .q_row = num(a, 4),
                             .k_row = num(a, 5),
                             .v_row = num(a, 6),
                             .out_row = num(a, 7),
                             .scale = (float)a->f[0]};

    return pseg_op_tree_attention(s, &t, err);
}

static pseg_status tokens(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    pseg_tokens t = {.out = at(a, 0),
                     .patch = at(a, 1),
                     .cls = at(a, 2),
                     .regs = at(a, 3),
                     .pos = at(a, 4),
                     .batch = num(a, 0),
                     .n_patches = num(a, 1),
                     .c = num(a, 2),
                     .n_regs = num(a, 3)};

    return pseg_op_tokens(s, &t, err);
}

static pseg_status gather(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    pseg_gather g = {.out = at(a, 0),
                     .x = at(a, 1),
                     .idx = at(a, 2),
                     .pos = at(a, 3),
                     .rows = num(a, 0),
                     .c = num(a, 1),
                     .n_x = num(a, 2),
                     .x_stride = stride(a, 3, num(a, 1)),
                     .n_pos = num(a, 4)};

    return pseg_op_gather(s, &g, err);
}

static pseg_block block(const pseg_op_args *a, size_t slot)
{
    return pseg_block_of(at(a, slot), num(a, 3 + 2 * slot), num(a, 4 + 2 * slot));
}

static pseg_status add(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    pseg_add d = {.out = block(a, 0),
                  .x = block(a, 1),
                  .y = block(a, 2),
                  .batch = num(a, 0),
                  .n = num(a, 1),
                  .c = num(a, 2),
                  .alpha = (float)a->f[0]};

    return pseg_op_add(s, &d, err);
}

pseg_status typed_run(pseg_stream *s, const char *name, const pseg_op_args *a, pseg_err *err)
{
    pseg_view out = at(a, 0), x = at(a, 1);

    if (strcmp(name, "gemm") == 0)
        return gemm(s, a, err);
    if (strcmp(name, "conv3") == 0)
        return conv3(s, a, err);
    if (strcmp(name, "layernorm") == 0)
        return layernorm(s, a, err);
    if (strcmp(name, "groupnorm") == 0)
        return groupnorm(s, a, err);
    if (strcmp(name, "attention") == 0)
        return attention(s, a, err);
    if (strcmp(name, "tree_attention") == 0)
        return tree_attention(s, a, err);
    if (strcmp(name, "tokens") == 0)
        return tokens(s, a, err);
    if (strcmp(name, "gather") == 0)
        return gather(s, a, err);
    if (strcmp(name, "add") == 0)
        return add(s, a, err);
    if (strcmp(name, "copy") == 0)
        return pseg_op_copy(s, block(a, 0), block(a, 1), num(a, 0), num(a, 1), num(a, 2),
                            (float)a->f[0], err);
    if (strcmp(name, "l2norm") == 0)
        return pseg_op_l2norm(s, out, x, num(a, 0), num(a, 1), (float)a->f[0], err);
    if (strcmp(name, "act") == 0)
        return pseg_op_act(s, out, x, num(a, 0), (pseg_act)a->i[1], err);
    if (strcmp(name, "swiglu") == 0)
        return pseg_op_swiglu(s, out, x, num(a, 0), num(a, 1), err);
    if (strcmp(name, "maskdot") == 0)
        return pseg_op_maskdot(s, out, x, at(a, 2), num(a, 0), num(a, 1), num(a, 2), num(a, 3),
                               err);
    if (strcmp(name, "patches") == 0)
        return pseg_op_patches(s, out, x, num(a, 0), num(a, 1), num(a, 2), num(a, 3), num(a, 4),
                               stride(a, 5, num(a, 1) * num(a, 4) * num(a, 4)), err);
    if (strcmp(name, "im2col3") == 0)
        return pseg_op_im2col3(s, out, x, num(a, 0), num(a, 1), num(a, 2), num(a, 3), err);
    if (strcmp(name, "pixel_shuffle2") == 0)
        return pseg_op_shuffle2(s, out, x, num(a, 0), num(a, 1), num(a, 2), num(a, 3), err);
    if (strcmp(name, "transpose") == 0)
        return pseg_op_transpose(s, out, x, num(a, 0), num(a, 1), num(a, 2), err);
    return pseg_err_set(err, PSEG_R_UNSUPPORTED, 0, PSEG_HERE, "typed.c does not know %s", name);
}
