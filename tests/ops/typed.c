/* Written out by hand from the rows' `params` and ops.h, so that a number in the wrong place shows.
 */
#include "tests/ops/typed.h"
#include "worker/ops/backward.h"

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

static pseg_gemm gemm(const pseg_op_args *a)
{
    return (pseg_gemm){.out = at(a, 0),
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
}

static pseg_conv3 conv3(const pseg_op_args *a)
{
    return (pseg_conv3){.out = at(a, 0),
                        .x = at(a, 1),
                        .w = at(a, 2),
                        .bias = at(a, 3),
                        .batch = num(a, 0),
                        .h = num(a, 1),
                        .width = num(a, 2),
                        .c = num(a, 3),
                        .n = num(a, 4)};
}

static pseg_layernorm layernorm(const pseg_op_args *a)
{
    return (pseg_layernorm){.out = at(a, 0),
                            .x = at(a, 1),
                            .w = at(a, 2),
                            .b = at(a, 3),
                            .rows = num(a, 0),
                            .c = num(a, 1),
                            .x_stride = stride(a, 2, num(a, 1)),
                            .out_stride = stride(a, 3, num(a, 1)),
                            .act = (pseg_act)a->i[4],
                            .eps = (float)a->f[0]};
}

static pseg_groupnorm groupnorm(const pseg_op_args *a)
{
    return (pseg_groupnorm){.out = at(a, 0),
                            .x = at(a, 1),
                            .w = at(a, 2),
                            .b = at(a, 3),
                            .b_n = num(a, 0),
                            .hw = num(a, 1),
                            .c = num(a, 2),
                            .groups = num(a, 3),
                            .act = (pseg_act)a->i[4],
                            .eps = (float)a->f[0]};
}

static pseg_attention attention(const pseg_op_args *a)
{
    return (pseg_attention){.out = at(a, 0),
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
}

static pseg_tree_attention tree_attention(const pseg_op_args *a)
{
    return (pseg_tree_attention){.out = at(a, 0),
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
}

static pseg_tokens tokens(const pseg_op_args *a)
{
    return (pseg_tokens){.out = at(a, 0),
                         .patch = at(a, 1),
                         .cls = at(a, 2),
                         .regs = at(a, 3),
                         .pos = at(a, 4),
                         .batch = num(a, 0),
                         .n_patches = num(a, 1),
                         .c = num(a, 2),
                         .n_regs = num(a, 3)};
}

static pseg_gather gather(const pseg_op_args *a)
{
    return (pseg_gather){.out = at(a, 0),
                         .x = at(a, 1),
                         .idx = at(a, 2),
                         .pos = at(a, 3),
                         .rows = num(a, 0),
                         .c = num(a, 1),
                         .n_x = num(a, 2),
                         .x_stride = stride(a, 3, num(a, 1)),
                         .n_pos = num(a, 4)};
}

static pseg_block block(const pseg_op_args *a, size_t slot)
{
    return pseg_block_of(at(a, slot), num(a, 3 + 2 * slot), num(a, 4 + 2 * slot));
}

static pseg_add add(const pseg_op_args *a)
{
    return (pseg_add){.out = block(a, 0),
                      .x = block(a, 1),
                      .y = block(a, 2),
                      .batch = num(a, 0),
                      .n = num(a, 1),
                      .c = num(a, 2),
                      .alpha = (float)a->f[0]};
}

pseg_status typed_run(pseg_stream *s, const char *name, const pseg_op_args *a, pseg_err *err)
{
    pseg_view out = at(a, 0), x = at(a, 1);

    if (strcmp(name, "gemm") == 0) {
        pseg_gemm t = gemm(a);

        return pseg_op_gemm(s, &t, err);
    }
    if (strcmp(name, "conv3") == 0) {
        pseg_conv3 t = conv3(a);

        return pseg_op_conv3(s, &t, err);
    }
    if (strcmp(name, "layernorm") == 0) {
        pseg_layernorm t = layernorm(a);

        return pseg_op_layernorm(s, &t, err);
    }
    if (strcmp(name, "groupnorm") == 0) {
        pseg_groupnorm t = groupnorm(a);

        return pseg_op_groupnorm(s, &t, err);
    }
    if (strcmp(name, "attention") == 0) {
        pseg_attention t = attention(a);

        return pseg_op_attention(s, &t, err);
    }
    if (strcmp(name, "tree_attention") == 0) {
        pseg_tree_attention t = tree_attention(a);

        return pseg_op_tree_attention(s, &t, err);
    }
    if (strcmp(name, "tokens") == 0) {
        pseg_tokens t = tokens(a);

        return pseg_op_tokens(s, &t, err);
    }
    if (strcmp(name, "gather") == 0) {
        pseg_gather t = gather(a);

        return pseg_op_gather(s, &t, err);
    }
    if (strcmp(name, "add") == 0) {
        pseg_add t = add(a);

        return pseg_op_add(s, &t, err);
    }
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

/* ---- gradients ---------------------------------------------------------------------------- */

static pseg_view view(pseg_tensor t)
{
    return (pseg_view){t.mem, t.off, t.type};
}

static pseg_grad grad(const pseg_op_grads *g, size_t slot)
{
    return g->add >> slot & 1 ? pseg_grad_add(view(g->t[slot])) : pseg_grad_set(view(g->t[slot]));
}

/* w[n, taps*c] turned, in memory of its own. */
static pseg_status turned(pseg_mem **out, pseg_stream *s, pseg_view w, size_t n, size_t c,
                          size_t taps, pseg_err *err)
{
    size_t bytes = pseg_gemm_packed_elems(c, taps * n) * sizeof(float);
    pseg_status rc = pseg_mem_new(out, pseg_stream_cl(s), bytes, err);

    if (rc != PSEG_OK)
        return rc;
    return taps == 1 ? pseg_op_turn(s, pseg_view_of(*out, 0), w, n, c, err)
                     : pseg_op_conv3_turn(s, pseg_view_of(*out, 0), w, n, c, err);
}

static pseg_status product_backward(pseg_stream *s, bool is_conv, const pseg_op_args *a,
                                    const pseg_op_grads *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mem *w_t = NULL;
    pseg_gemm m = gemm(a);
    pseg_conv3 v = conv3(a);
    pseg_gemm_grads dm = {.out = view(g->t[0]),
                          .a = grad(g, 1),
                          .w = grad(g, 2),
                          .bias = grad(g, 3),
                          .res = grad(g, 4)};
    pseg_conv3_grads dv = {
        .out = view(g->t[0]), .x = grad(g, 1), .w = grad(g, 2), .bias = grad(g, 3)};

    PSEG_TRY(
        turned(&w_t, s, at(a, 2), is_conv ? v.n : m.n, is_conv ? v.c : m.k, is_conv ? 9 : 1, err));
    dm.w_t = dv.w_t = pseg_view_of(w_t, 0);
    PSEG_TRY(is_conv ? pseg_op_conv3_backward(s, &v, &dv, err)
                     : pseg_op_gemm_backward(s, &m, &dm, err));
    PSEG_TRY(pseg_stream_finish(s, err));
out:
    pseg_mem_free(w_t);
    return rc;
}

pseg_status typed_run_backward(pseg_stream *s, const char *name, const pseg_op_args *a,
                               const pseg_op_grads *g, pseg_err *err)
{
    pseg_view out = view(g->t[0]), x = at(a, 1);
    pseg_norm_grads norm = {.out = out, .x = grad(g, 1), .w = grad(g, 2), .b = grad(g, 3)};

    if (strcmp(name, "gemm") == 0 || strcmp(name, "conv3") == 0)
        return product_backward(s, strcmp(name, "conv3") == 0, a, g, err);
    if (strcmp(name, "layernorm") == 0) {
        pseg_layernorm l = layernorm(a);

        return pseg_op_layernorm_backward(s, &l, &norm, err);
    }
    if (strcmp(name, "groupnorm") == 0) {
        pseg_groupnorm n = groupnorm(a);

        return pseg_op_groupnorm_backward(s, &n, &norm, err);
    }
    if (strcmp(name, "attention") == 0) {
        pseg_attention t = attention(a);
        pseg_attention_grads d = {out, grad(g, 1), grad(g, 2), grad(g, 3)};

        return pseg_op_attention_backward(s, &t, &d, err);
    }
    if (strcmp(name, "add") == 0) {
        pseg_add t = add(a);
        pseg_add_grads d = {out, grad(g, 1), grad(g, 2)};

        return pseg_op_add_backward(s, &t, &d, err);
    }
    if (strcmp(name, "copy") == 0) {
        pseg_block d_x = block(a, 1), d_out = block(a, 0);

        d_x.v = view(g->t[1]);
        d_out.v = out;
        return pseg_op_copy_backward(s, d_out, d_x, g->add >> 1 & 1, num(a, 0), num(a, 1),
                                     num(a, 2), (float)a->f[0], err);
    }
    if (strcmp(name, "gather") == 0) {
        pseg_gather t = gather(a);
        pseg_gather_grads d = {out, grad(g, 1), grad(g, 3)};

        return pseg_op_gather_backward(s, &t, &d, err);
    }
    if (strcmp(name, "tokens") == 0) {
        pseg_tokens t = tokens(a);
        pseg_tokens_grads d = {out, grad(g, 1), grad(g, 2), grad(g, 3), grad(g, 4)};

        return pseg_op_tokens_backward(s, &t, &d, err);
    }
    if (strcmp(name, "maskdot") == 0)
        return pseg_op_maskdot_backward(s, grad(g, 1), grad(g, 2), out, x, at(a, 2), num(a, 0),
                                        num(a, 1), num(a, 2), num(a, 3), err);
    if (strcmp(name, "l2norm") == 0)
        return pseg_op_l2norm_backward(s, grad(g, 1), out, x, num(a, 0), num(a, 1), (float)a->f[0],
                                       err);
    if (strcmp(name, "act") == 0)
        return pseg_op_act_backward(s, grad(g, 1), out, x, num(a, 0), (pseg_act)a->i[1], err);
    if (strcmp(name, "swiglu") == 0)
        return pseg_op_swiglu_backward(s, grad(g, 1), out, x, num(a, 0), num(a, 1), err);
    if (strcmp(name, "im2col3") == 0)
        return pseg_op_im2col3_backward(s, grad(g, 1), out, num(a, 0), num(a, 1), num(a, 2),
                                        num(a, 3), err);
    if (strcmp(name, "pixel_shuffle2") == 0)
        return pseg_op_shuffle2_backward(s, grad(g, 1), out, num(a, 0), num(a, 1), num(a, 2),
                                         num(a, 3), err);
    if (strcmp(name, "transpose") == 0)
        return pseg_op_transpose_backward(s, grad(g, 1), out, num(a, 0), num(a, 1), num(a, 2), err);
    return pseg_err_set(err, PSEG_R_UNSUPPORTED, 0, PSEG_HERE, "typed.c does not know %s", name);
}
