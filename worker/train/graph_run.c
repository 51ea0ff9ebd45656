/* Running a graph: each operation forward and backward, as a call of worker/ops. */
#include "worker/ops/backward.h"
#include "worker/train/graph_parts.h"

/* ---- where things are ------------------------------------------------------------------------ */

static pseg_view value(const pseg_graph *g, pseg_var v)
{
    if (v < 0)
        return PSEG_NO_VIEW;
    const pseg_graph_var *x = &g->vars[v];
    return x->kind == PSEG_VAR_PARAM ? pseg_params_view(g->params, x->param, PSEG_PARAMS_VALUE)
                                     : pseg_view_of(g->mem, x->off);
}

pseg_view pseg_graph_view(const pseg_graph *g, pseg_var v)
{
    return value(g, v);
}

pseg_view pseg_graph_grad_view(const pseg_graph *g, pseg_var v)
{
    const pseg_graph_var *x = &g->vars[v];

    return x->kind == PSEG_VAR_PARAM ? pseg_params_view(g->params, x->param, PSEG_PARAMS_GRAD)
                                     : pseg_view_of(g->mem, g->vars[x->grad_as].grad_off);
}

pseg_grad pseg_graph_wanted(pseg_graph *g, pseg_var v)
{
    if (!pseg_graph_wants(g, v))
        return PSEG_NO_GRAD;
    pseg_graph_var *x = &g->vars[v];
    bool add = x->kind == PSEG_VAR_PARAM || x->is_grad_begun;
    x->is_grad_begun = true;
    return (pseg_grad){pseg_graph_grad_view(g, v), add};
}

/* The same for an input that the output's gradient passes to as it is: nothing is to be done where
 * both are one. */
static pseg_grad wanted_as(pseg_graph *g, pseg_var v, pseg_var out)
{
    pseg_grad d = pseg_graph_wanted(g, v);

    if (d.v.mem && !d.add && g->vars[v].kind == PSEG_VAR_MADE &&
        g->vars[v].grad_as == g->vars[out].grad_as)
        return PSEG_NO_GRAD;
    return d;
}

/* ---- arguments ------------------------------------------------------------------------------- */

static pseg_gemm linear_of(const pseg_graph *g, const pseg_graph_op *op)
{
    pseg_gemm a = op->u.linear;

    a.out = value(g, op->out);
    a.a = value(g, op->in[0]);
    a.w = value(g, op->in[1]);
    a.bias = value(g, op->in[2]);
    a.res = value(g, op->in[3]);
    return a;
}

static pseg_conv3 conv3_of(const pseg_graph *g, const pseg_graph_op *op)
{
    pseg_conv3 a = op->u.conv3;

    a.out = value(g, op->out);
    a.x = value(g, op->in[0]);
    a.w = value(g, op->in[1]);
    a.bias = value(g, op->in[2]);
    return a;
}

static pseg_layernorm layernorm_of(const pseg_graph *g, const pseg_graph_op *op)
{
    pseg_layernorm a = op->u.layernorm;

    a.out = value(g, op->out);
    a.x = value(g, op->in[0]);
    a.w = value(g, op->in[1]);
    a.b = value(g, op->in[2]);
    return a;
}

static pseg_groupnorm groupnorm_of(const pseg_graph *g, const pseg_graph_op *op)
{
    pseg_groupnorm a = op->u.groupnorm;

    a.out = value(g, op->out);
    a.x = value(g, op->in[0]);
    a.w = value(g, op->in[1]);
    a.b = value(g, op->in[2]);
    return a;
}

static pseg_attention attention_of(const pseg_graph *g, const pseg_graph_op *op)
{
    pseg_attention a = op->u.attention;

    a.out = value(g, op->out);
    a.q = value(g, op->in[0]);
    a.k = value(g, op->in[1]);
    a.v = value(g, op->in[2]);
    a.key_len = value(g, op->in[3]);
    return a;
}

static pseg_add add_of(const pseg_graph *g, const pseg_graph_op *op)
{
    size_t n = op->u.add.n, c = op->u.add.c;

    return (pseg_add){.out = pseg_block_of(value(g, op->out), n * c, c),
                      .x = pseg_block_of(value(g, op->in[0]), n * c, c),
                      .y = pseg_block_of(value(g, op->in[1]), op->u.add.y_repeats ? 0 : n * c, c),
                      .batch = op->u.add.batch,
                      .n = n,
                      .c = c,
                      .alpha = 1};
}

static pseg_gather gather_of(const pseg_graph *g, const pseg_graph_op *op)
{
    return (pseg_gather){.out = value(g, op->out),
                         .x = value(g, op->in[0]),
                         .idx = value(g, op->in[1]),
                         .rows = op->u.rows.batch,
                         .c = op->u.rows.c,
                         .n_x = op->u.rows.n_x};
}

/* ---- forward --------------------------------------------------------------------------------- */

static pseg_status stack(const pseg_graph *g, pseg_stream *s, const pseg_graph_op *op,
                         pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = op->u.stack.c, at = 0;

    for (uint32_t i = 0; i < op->n_in; i++) {
        size_t rows = op->u.stack.rows[i];
        pseg_block to =
            pseg_block_of(pseg_view_at(value(g, op->out), at * c), op->u.stack.t * c, c);
        pseg_block from =
            pseg_block_of(value(g, op->in[i]), op->u.stack.repeats[i] ? 0 : rows * c, c);

        PSEG_TRY(pseg_op_copy(s, to, from, op->u.stack.batch, rows, c, 1, err));
        at += rows;
    }
out:
    return rc;
}

static pseg_status forward(const pseg_graph *g, pseg_stream *s, const pseg_graph_op *op,
                           pseg_err *err)
{
    pseg_view x = value(g, op->in[0]), to = value(g, op->out);
    size_t c = op->u.rows.c;

    switch (op->kind) {
    case PSEG_GRAPH_LINEAR: {
        pseg_gemm a = linear_of(g, op);
        return pseg_op_gemm(s, &a, err);
    }
    case PSEG_GRAPH_CONV3: {
        pseg_conv3 a = conv3_of(g, op);
        return pseg_op_conv3(s, &a, err);
    }
    case PSEG_GRAPH_LAYERNORM: {
        pseg_layernorm a = layernorm_of(g, op);
        return pseg_op_layernorm(s, &a, err);
    }
    case PSEG_GRAPH_GROUPNORM: {
        pseg_groupnorm a = groupnorm_of(g, op);
        return pseg_op_groupnorm(s, &a, err);
    }
    case PSEG_GRAPH_ACT:
        return pseg_op_act(s, to, x, op->u.act.elems, op->u.act.act, err);
    case PSEG_GRAPH_ADD: {
        pseg_add a = add_of(g, op);
        return pseg_op_add(s, &a, err);
    }
    case PSEG_GRAPH_ATTENTION: {
        pseg_attention a = attention_of(g, op);
        return pseg_op_attention(s, &a, err);
    }
    case PSEG_GRAPH_ROWS:
        return pseg_op_copy(s, pseg_block_of(to, op->u.rows.n * c, c),
                            pseg_block_of(pseg_view_at(x, op->u.rows.row * c), op->u.rows.t * c, c),
                            op->u.rows.batch, op->u.rows.n, c, 1, err);
    case PSEG_GRAPH_REPEAT:
        return pseg_op_copy(s, pseg_block_of(to, 0, c), pseg_block_of(x, 0, 0), 1, op->u.rows.batch,
                            c, 1, err);
    case PSEG_GRAPH_GATHER: {
        pseg_gather a = gather_of(g, op);
        return pseg_op_gather(s, &a, err);
    }
    case PSEG_GRAPH_STACK:
        return stack(g, s, op, err);
    case PSEG_GRAPH_MASKDOT:
        return pseg_op_maskdot(s, to, x, value(g, op->in[1]), op->u.maskdot.batch, 1,
                               op->u.maskdot.n, op->u.maskdot.c, err);
    case PSEG_GRAPH_LOSS:
    case PSEG_GRAPH_ENLARGE:
        return pseg_graph_forward_loss(g, s, op, err);
    default:
        return pseg_graph_forward_encoder(g, s, op, err);
    }
}

/* ---- backward -------------------------------------------------------------------------------- */

static pseg_status linear_back(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_gemm a = linear_of(g, op);
    pseg_gemm_grads d = {.out = pseg_graph_grad_view(g, op->out)};

    if (a.act == PSEG_ACT_RELU) {
        PSEG_TRY(pseg_op_act_backward(s, pseg_grad_set(d.out), d.out, a.out, a.m * a.n,
                                      PSEG_ACT_RELU, err));
        a.act = PSEG_ACT_NONE;
    }
    d.res = wanted_as(g, op->in[3], op->out);
    d.a = pseg_graph_wanted(g, op->in[0]);
    d.w = pseg_graph_wanted(g, op->in[1]);
    d.bias = pseg_graph_wanted(g, op->in[2]);
    PSEG_TRY(pseg_op_gemm_backward(s, &a, &d, err));
out:
    return rc;
}

static pseg_status conv3_back(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op, pseg_err *err)
{
    pseg_conv3 a = conv3_of(g, op);
    pseg_conv3_grads d = {.out = pseg_graph_grad_view(g, op->out),
                          .x = pseg_graph_wanted(g, op->in[0]),
                          .w = pseg_graph_wanted(g, op->in[1]),
                          .bias = pseg_graph_wanted(g, op->in[2])};

    return pseg_op_conv3_backward(s, &a, &d, err);
}

static pseg_norm_grads norm_grads(pseg_graph *g, const pseg_graph_op *op)
{
    return (pseg_norm_grads){.out = pseg_graph_grad_view(g, op->out),
                             .x = pseg_graph_wanted(g, op->in[0]),
                             .w = pseg_graph_wanted(g, op->in[1]),
                             .b = pseg_graph_wanted(g, op->in[2])};
}

/* The gradient of y first: where x's is the output's own, nothing has been added to it yet. */
static pseg_status add_back(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_add a = add_of(g, op);
    pseg_add_grads y = {.out = pseg_graph_grad_view(g, op->out),
                        .y = pseg_graph_wanted(g, op->in[1])};
    pseg_add_grads x = {.out = y.out};

    if (y.y.v.mem)
        PSEG_TRY(pseg_op_add_backward(s, &a, &y, err));
    x.x = wanted_as(g, op->in[0], op->out);
    if (x.x.v.mem)
        PSEG_TRY(pseg_op_add_backward(s, &a, &x, err));
out:
    return rc;
}

static pseg_status rows_back(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = op->u.rows.c, t = op->u.rows.t, n = op->u.rows.n, batch = op->u.rows.batch;
    pseg_grad d = pseg_graph_wanted(g, op->in[0]);

    if (!d.add)
        PSEG_TRY(
            pseg_mem_zero(s, d.v.mem, d.v.off * sizeof(float), batch * t * c * sizeof(float), err));
    PSEG_TRY(pseg_op_copy_backward(s, pseg_block_of(pseg_graph_grad_view(g, op->out), n * c, c),
                                   pseg_block_of(pseg_view_at(d.v, op->u.rows.row * c), t * c, c),
                                   true, batch, n, c, 1, err));
out:
    return rc;
}

static pseg_status stack_back(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = op->u.stack.c, at = 0;
    pseg_view out = pseg_graph_grad_view(g, op->out);

    for (uint32_t i = 0; i < op->n_in; i++) {
        size_t rows = op->u.stack.rows[i];
        pseg_grad d = pseg_graph_wanted(g, op->in[i]);

        if (d.v.mem)
            PSEG_TRY(pseg_op_copy_backward(
                s, pseg_block_of(pseg_view_at(out, at * c), op->u.stack.t * c, c),
                pseg_block_of(d.v, op->u.stack.repeats[i] ? 0 : rows * c, c), d.add,
                op->u.stack.batch, rows, c, 1, err));
        at += rows;
    }
out:
    return rc;
}

static pseg_status attention_back(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op,
                                  pseg_err *err)
{
    pseg_attention a = attention_of(g, op);
    pseg_attention_grads d = {.out = pseg_graph_grad_view(g, op->out),
                              .q = pseg_graph_wanted(g, op->in[0]),
                              .k = pseg_graph_wanted(g, op->in[1]),
                              .v = pseg_graph_wanted(g, op->in[2])};

    return pseg_op_attention_backward(s, &a, &d, err);
}

static pseg_status backward(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op, pseg_err *err)
{
    switch (op->kind) {
    case PSEG_GRAPH_LINEAR:
        return linear_back(g, s, op, err);
    case PSEG_GRAPH_CONV3:
        return conv3_back(g, s, op, err);
    case PSEG_GRAPH_LAYERNORM: {
        pseg_layernorm a = layernorm_of(g, op);
        pseg_norm_grads d = norm_grads(g, op);
        return pseg_op_layernorm_backward(s, &a, &d, err);
    }
    case PSEG_GRAPH_GROUPNORM: {
        pseg_groupnorm a = groupnorm_of(g, op);
        pseg_norm_grads d = norm_grads(g, op);
        return pseg_op_groupnorm_backward(s, &a, &d, err);
    }
    case PSEG_GRAPH_ACT:
        return pseg_op_act_backward(s, pseg_graph_wanted(g, op->in[0]),
                                    pseg_graph_grad_view(g, op->out), value(g, op->in[0]),
                                    op->u.act.elems, op->u.act.act, err);
    case PSEG_GRAPH_ADD:
        return add_back(g, s, op, err);
    case PSEG_GRAPH_ATTENTION:
        return attention_back(g, s, op, err);
    case PSEG_GRAPH_ROWS:
        return rows_back(g, s, op, err);
    case PSEG_GRAPH_REPEAT: {
        pseg_grad d = pseg_graph_wanted(g, op->in[0]);
        size_t c = op->u.rows.c;
        return pseg_op_copy_backward(s, pseg_block_of(pseg_graph_grad_view(g, op->out), 0, c),
                                     pseg_block_of(d.v, 0, 0), d.add, 1, op->u.rows.batch, c, 1,
                                     err);
    }
    case PSEG_GRAPH_GATHER: {
        pseg_gather a = gather_of(g, op);
        pseg_gather_grads d = {.out = pseg_graph_grad_view(g, op->out),
                               .x = pseg_graph_wanted(g, op->in[0])};
        return pseg_op_gather_backward(s, &a, &d, err);
    }
    case PSEG_GRAPH_STACK:
        return stack_back(g, s, op, err);
    case PSEG_GRAPH_MASKDOT: {
        pseg_grad q = pseg_graph_wanted(g, op->in[0]), x = pseg_graph_wanted(g, op->in[1]);
        return pseg_op_maskdot_backward(
            s, q, x, pseg_graph_grad_view(g, op->out), value(g, op->in[0]), value(g, op->in[1]),
            op->u.maskdot.batch, 1, op->u.maskdot.n, op->u.maskdot.c, err);
    }
    case PSEG_GRAPH_LOSS:
    case PSEG_GRAPH_ENLARGE:
        return pseg_graph_backward_loss(g, s, op, err);
    default:
        return pseg_graph_backward_encoder(g, s, op, err);
    }
}

/* ---- both ------------------------------------------------------------------------------------ */

pseg_status pseg_graph_forward(pseg_graph *g, pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(g->mem, "a planned graph");
    for (size_t i = 0; i < g->n_ops; i++)
        PSEG_TRY(forward(g, s, &g->ops[i], err));
out:
    return rc;
}

pseg_status pseg_graph_backward(pseg_graph *g, pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(g->mem && g->has_backward, "a graph planned with gradients");
    for (size_t i = 0; i < g->n_vars; i++)
        g->vars[i].is_grad_begun = false;
    for (size_t i = g->n_ops; i-- > 0;) {
        const pseg_graph_op *op = &g->ops[i];

        if (op->kind == PSEG_GRAPH_LOSS || g->vars[op->out].is_grad_begun)
            PSEG_TRY(backward(g, s, op, err));
    }
out:
    return rc;
}
