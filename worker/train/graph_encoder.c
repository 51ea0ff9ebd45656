/* The operations of a graph that encoders have and neck and decoder have not: built, forward and
 * backward. */
#include "worker/train/graph_parts.h"

#include <math.h>

/* ---- building -------------------------------------------------------------------------------- */

pseg_var pseg_graph_causal_attention(pseg_graph *g, pseg_var q, pseg_var k, pseg_var v,
                                     size_t batch, size_t heads, size_t d, size_t n)
{
    pseg_var out = pseg_graph_attention(g, q, k, v, PSEG_NO_VAR, batch, heads, d, n, n);

    if (out >= 0)
        g->ops[g->vars[out].by].u.attention.causal = true;
    return out;
}

pseg_var pseg_graph_patches(pseg_graph *g, pseg_var x, size_t batch, size_t channels, size_t gh,
                            size_t gw, size_t p)
{
    pseg_graph_op op = {.kind = PSEG_GRAPH_PATCHES,
                        .in = {x},
                        .n_in = 1,
                        .u.patches = {batch, channels, gh, gw, p}};

    return pseg_graph_add_op(g, op, 1, batch * gh * gw * channels * p * p);
}

pseg_var pseg_graph_tokens(pseg_graph *g, pseg_var patch, pseg_var cls, pseg_var regs, pseg_var pos,
                           pseg_tokens shape)
{
    pseg_graph_op op = {
        .kind = PSEG_GRAPH_TOKENS, .in = {patch, cls, regs, pos}, .n_in = 4, .u.tokens = shape};

    return pseg_graph_add_op(g, op, 2,
                             shape.batch * (1 + shape.n_regs + shape.n_patches) * shape.c);
}

static pseg_var flat(pseg_graph *g, pseg_graph_kind kind, pseg_var x, pseg_var y, size_t rows,
                     size_t c, float eps)
{
    uint32_t n = y >= 0 ? 2 : 1;
    pseg_graph_op op = {.kind = kind, .in = {x, y}, .n_in = n, .u.flat = {rows, c, eps}};

    return pseg_graph_add_op(g, op, n, rows * c);
}

pseg_var pseg_graph_swiglu(pseg_graph *g, pseg_var x, size_t rows, size_t c)
{
    return flat(g, PSEG_GRAPH_SWIGLU, x, PSEG_NO_VAR, rows, c, 0);
}

pseg_var pseg_graph_l2norm(pseg_graph *g, pseg_var x, size_t rows, size_t c, float eps)
{
    return flat(g, PSEG_GRAPH_L2NORM, x, PSEG_NO_VAR, rows, c, eps);
}

pseg_var pseg_graph_scale(pseg_graph *g, pseg_var x, pseg_var s, size_t rows, size_t c)
{
    return flat(g, PSEG_GRAPH_SCALE, x, s, rows, c, 0);
}

/* ---- running --------------------------------------------------------------------------------- */

static pseg_tokens tokens_of(const pseg_graph *g, const pseg_graph_op *op)
{
    pseg_tokens t = op->u.tokens;

    t.out = pseg_graph_view(g, op->out);
    t.patch = pseg_graph_view(g, op->in[0]);
    t.cls = pseg_graph_view(g, op->in[1]);
    t.regs = pseg_graph_view(g, op->in[2]);
    t.pos = pseg_graph_view(g, op->in[3]);
    return t;
}

pseg_status pseg_graph_forward_encoder(const pseg_graph *g, pseg_stream *s, const pseg_graph_op *op,
                                       pseg_err *err)
{
    pseg_view x = pseg_graph_view(g, op->in[0]), out = pseg_graph_view(g, op->out);
    size_t rows = op->u.flat.rows, c = op->u.flat.c;

    switch (op->kind) {
    case PSEG_GRAPH_PATCHES:
        return pseg_op_patches(s, out, x, op->u.patches.batch, op->u.patches.channels,
                               op->u.patches.gh, op->u.patches.gw, op->u.patches.p, 0, err);
    case PSEG_GRAPH_TOKENS: {
        pseg_tokens t = tokens_of(g, op);
        return pseg_op_tokens(s, &t, err);
    }
    case PSEG_GRAPH_SWIGLU:
        return pseg_op_swiglu(s, out, x, rows, c, err);
    case PSEG_GRAPH_L2NORM:
        return pseg_op_l2norm(s, out, x, rows, c, op->u.flat.eps, err);
    case PSEG_GRAPH_SCALE:
        return pseg_train_scale(s, out, x, pseg_graph_view(g, op->in[1]), rows, c, false, err);
    default:
        return pseg_err_set(err, PSEG_R_INTERNAL, 0, PSEG_HERE, "an operation of no kind");
    }
}

static pseg_status scale_back(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_view out = pseg_graph_grad_view(g, op->out);
    size_t rows = op->u.flat.rows, c = op->u.flat.c;
    pseg_grad d_x = pseg_graph_wanted(g, op->in[0]), d_s = pseg_graph_wanted(g, op->in[1]);

    if (d_s.v.mem)
        PSEG_TRY(pseg_train_scale_sums(s, d_s.v, out, pseg_graph_view(g, op->in[0]), rows, c,
                                       d_s.add, err));
    if (d_x.v.mem)
        PSEG_TRY(
            pseg_train_scale(s, d_x.v, out, pseg_graph_view(g, op->in[1]), rows, c, d_x.add, err));
out:
    return rc;
}

pseg_status pseg_graph_backward_encoder(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op,
                                        pseg_err *err)
{
    pseg_view x = pseg_graph_view(g, op->in[0]), out = pseg_graph_grad_view(g, op->out);
    size_t rows = op->u.flat.rows, c = op->u.flat.c;

    switch (op->kind) {
    case PSEG_GRAPH_TOKENS: {
        pseg_tokens t = tokens_of(g, op);
        pseg_tokens_grads d = {.out = out,
                               .patch = pseg_graph_wanted(g, op->in[0]),
                               .cls = pseg_graph_wanted(g, op->in[1]),
                               .regs = pseg_graph_wanted(g, op->in[2]),
                               .pos = pseg_graph_wanted(g, op->in[3])};
        return pseg_op_tokens_backward(s, &t, &d, err);
    }
    case PSEG_GRAPH_SWIGLU:
        return pseg_op_swiglu_backward(s, pseg_graph_wanted(g, op->in[0]), out, x, rows, c, err);
    case PSEG_GRAPH_L2NORM:
        return pseg_op_l2norm_backward(s, pseg_graph_wanted(g, op->in[0]), out, x, rows, c,
                                       op->u.flat.eps, err);
    case PSEG_GRAPH_SCALE:
        return scale_back(g, s, op, err);
    default:
        return pseg_err_set(err, PSEG_R_INTERNAL, 0, PSEG_HERE, "an operation without a gradient");
    }
}
