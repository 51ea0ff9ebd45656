/* Building a graph: which operations there are and what each looks at. */
#include "worker/train/graph.h"
#include "common/base/alloc.h"
#include "worker/train/graph_parts.h"

#include <math.h>
#include <string.h>

pseg_status pseg_graph_new(pseg_graph **out, pseg_cl *cl, const pseg_params *params,
                           bool has_backward, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_graph *g = pseg_calloc(1, sizeof *g);

    *out = NULL;
    if (!g)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a graph");
    g->cl = cl;
    g->params = params;
    g->has_backward = has_backward;
    *out = g;
out:
    return rc;
}

void pseg_graph_free(pseg_graph *g)
{
    if (!g)
        return;
    pseg_mem_free(g->mem);
    pseg_free(g->ops);
    pseg_free(g->vars);
    pseg_free(g);
}

/* ---- lists ----------------------------------------------------------------------------------- */

static void blame(pseg_graph *g, pseg_reason reason, const char *what)
{
    if (g->rc == PSEG_OK)
        g->rc = pseg_err_set(&g->why, reason, 0, PSEG_HERE, "training graph: %s", what);
}

/* Room for one more of `size` bytes. */
static bool reserve(void **items, size_t *cap, size_t n, size_t size)
{
    if (n < *cap)
        return true;
    size_t more = *cap ? 2 * *cap : 128;
    void *p = pseg_realloc(*items, more * size);
    if (!p)
        return false;
    *items = p;
    *cap = more;
    return true;
}

static pseg_var new_var(pseg_graph *g, pseg_var_kind kind, size_t elems, uint32_t by)
{
    void *items = g->vars;

    if (!reserve(&items, &g->cap_vars, g->n_vars, sizeof *g->vars)) {
        blame(g, PSEG_R_OUT_OF_MEMORY, "no memory");
        return PSEG_NO_VAR;
    }
    g->vars = items;
    if (elems == 0 || g->n_vars == INT32_MAX) {
        blame(g, PSEG_R_INVALID_ARGUMENT, "a tensor without elements");
        return PSEG_NO_VAR;
    }
    pseg_var v = (pseg_var)g->n_vars++;
    g->vars[v] = (pseg_graph_var){
        .kind = kind, .elems = elems, .by = by, .last_by = PSEG_NO_OP, .grad_as = v};
    return v;
}

pseg_var pseg_graph_input(pseg_graph *g, size_t elems)
{
    return new_var(g, PSEG_VAR_INPUT, elems, PSEG_NO_OP);
}

pseg_var pseg_graph_param(pseg_graph *g, const char *name)
{
    size_t i = pseg_params_find(g->params, name);
    pseg_var v;

    if (i == SIZE_MAX) {
        blame(g, PSEG_R_INVALID_ARGUMENT, name);
        return PSEG_NO_VAR;
    }
    v = new_var(g, PSEG_VAR_PARAM, pseg_params_at(g->params, i)->elems, PSEG_NO_OP);
    if (v >= 0) {
        g->vars[v].param = i;
        g->vars[v].has_grad = g->has_backward && !pseg_params_at(g->params, i)->is_frozen;
    }
    return v;
}

void pseg_graph_keep(pseg_graph *g, pseg_var v)
{
    if (v >= 0)
        g->vars[v].is_kept = true;
}

/* An input that is missing where one is required has been blamed already or is blamed here. */
pseg_var pseg_graph_add_op(pseg_graph *g, pseg_graph_op op, uint32_t n_required, size_t elems)
{
    void *items = g->ops;
    uint32_t number = (uint32_t)g->n_ops;

    for (uint32_t i = 0; i < op.n_in; i++)
        if (op.in[i] >= (pseg_var)g->n_vars || (i < n_required && op.in[i] < 0)) {
            blame(g, PSEG_R_INVALID_ARGUMENT, "an operation without its input");
            return PSEG_NO_VAR;
        }
    if (!reserve(&items, &g->cap_ops, g->n_ops, sizeof *g->ops)) {
        blame(g, PSEG_R_OUT_OF_MEMORY, "no memory");
        return PSEG_NO_VAR;
    }
    g->ops = items;
    op.out = new_var(g, PSEG_VAR_MADE, elems, number);
    if (op.out < 0)
        return PSEG_NO_VAR;
    for (uint32_t i = 0; i < op.n_in; i++) {
        if (op.in[i] < 0)
            continue;
        g->vars[op.in[i]].last_by = number;
        if (g->vars[op.in[i]].has_grad)
            g->vars[op.out].has_grad = true;
    }
    g->ops[g->n_ops++] = op;
    return op.out;
}

/* ---- operations ------------------------------------------------------------------------------ */

pseg_var pseg_graph_linear(pseg_graph *g, pseg_var x, pseg_var w, pseg_var b, pseg_var res,
                           size_t rows, size_t n, size_t k, pseg_act act)
{
    pseg_graph_op op = {.kind = PSEG_GRAPH_LINEAR,
                        .in = {x, w, b, res},
                        .n_in = 4,
                        .u.linear = {.m = rows, .n = n, .k = k, .act = act}};

    if ((act != PSEG_ACT_NONE && act != PSEG_ACT_RELU) || (act == PSEG_ACT_RELU && res >= 0))
        blame(g, PSEG_R_INVALID_ARGUMENT, "a product with this activation");
    return pseg_graph_add_op(g, op, 2, rows * n);
}

pseg_var pseg_graph_conv3(pseg_graph *g, pseg_var x, pseg_var w, pseg_var b, pseg_conv3 shape)
{
    pseg_graph_op op = {.kind = PSEG_GRAPH_CONV3, .in = {x, w, b}, .n_in = 3, .u.conv3 = shape};

    return pseg_graph_add_op(g, op, 2, shape.batch * shape.h * shape.width * shape.n);
}

pseg_var pseg_graph_layernorm(pseg_graph *g, pseg_var x, pseg_var w, pseg_var b, size_t rows,
                              size_t c, float eps, pseg_act act)
{
    pseg_graph_op op = {.kind = PSEG_GRAPH_LAYERNORM,
                        .in = {x, w, b},
                        .n_in = 3,
                        .u.layernorm = {.rows = rows, .c = c, .eps = eps, .act = act}};

    return pseg_graph_add_op(g, op, 3, rows * c);
}

pseg_var pseg_graph_groupnorm(pseg_graph *g, pseg_var x, pseg_var w, pseg_var b,
                              pseg_groupnorm shape)
{
    pseg_graph_op op = {
        .kind = PSEG_GRAPH_GROUPNORM, .in = {x, w, b}, .n_in = 3, .u.groupnorm = shape};

    return pseg_graph_add_op(g, op, 3, shape.b_n * shape.hw * shape.c);
}

pseg_var pseg_graph_act(pseg_graph *g, pseg_var x, size_t elems, pseg_act act)
{
    pseg_graph_op op = {
        .kind = PSEG_GRAPH_ACT, .in = {x}, .n_in = 1, .u.act = {.elems = elems, .act = act}};

    return pseg_graph_add_op(g, op, 1, elems);
}

pseg_var pseg_graph_add(pseg_graph *g, pseg_var x, pseg_var y, size_t batch, size_t n, size_t c,
                        bool y_repeats)
{
    pseg_graph_op op = {.kind = PSEG_GRAPH_ADD,
                        .in = {x, y},
                        .n_in = 2,
                        .u.add = {.batch = batch, .n = n, .c = c, .y_repeats = y_repeats}};

    return pseg_graph_add_op(g, op, 2, batch * n * c);
}

pseg_var pseg_graph_attention(pseg_graph *g, pseg_var q, pseg_var k, pseg_var v, pseg_var key_len,
                              size_t batch, size_t heads, size_t d, size_t n_q, size_t n_k)
{
    size_t row = heads * d;
    pseg_graph_op op = {.kind = PSEG_GRAPH_ATTENTION,
                        .in = {q, k, v, key_len},
                        .n_in = 4,
                        .u.attention = {.batch = batch,
                                        .heads = heads,
                                        .d = d,
                                        .n_q = n_q,
                                        .n_k = n_k,
                                        .q_row = row,
                                        .k_row = row,
                                        .v_row = row,
                                        .out_row = row,
                                        .q_batch = n_q * row,
                                        .k_batch = n_k * row,
                                        .v_batch = n_k * row,
                                        .out_batch = n_q * row,
                                        .scale = 1.0f / sqrtf((float)d)}};

    return pseg_graph_add_op(g, op, 3, batch * n_q * row);
}

pseg_var pseg_graph_rows(pseg_graph *g, pseg_var x, size_t batch, size_t t, size_t c, size_t row,
                         size_t n)
{
    pseg_graph_op op = {.kind = PSEG_GRAPH_ROWS,
                        .in = {x},
                        .n_in = 1,
                        .u.rows = {.batch = batch, .t = t, .c = c, .row = row, .n = n}};

    if (row + n > t)
        blame(g, PSEG_R_INVALID_ARGUMENT, "rows that a sample has not");
    return pseg_graph_add_op(g, op, 1, batch * n * c);
}

pseg_var pseg_graph_row(pseg_graph *g, pseg_var x, size_t batch, size_t t, size_t c, size_t row)
{
    return pseg_graph_rows(g, x, batch, t, c, row, 1);
}

pseg_var pseg_graph_repeat(pseg_graph *g, pseg_var x, size_t times, size_t n)
{
    pseg_graph_op op = {
        .kind = PSEG_GRAPH_REPEAT, .in = {x}, .n_in = 1, .u.rows = {.batch = times, .c = n}};

    return pseg_graph_add_op(g, op, 1, times * n);
}

pseg_var pseg_graph_gather(pseg_graph *g, pseg_var x, pseg_var idx, size_t rows, size_t n_x,
                           size_t c)
{
    pseg_graph_op op = {.kind = PSEG_GRAPH_GATHER,
                        .in = {x, idx},
                        .n_in = 2,
                        .u.rows = {.batch = rows, .c = c, .n_x = n_x}};

    return pseg_graph_add_op(g, op, 2, rows * c);
}

pseg_var pseg_graph_stack(pseg_graph *g, const pseg_graph_piece *parts, size_t n, size_t batch,
                          size_t c)
{
    pseg_graph_op op = {
        .kind = PSEG_GRAPH_STACK, .n_in = (uint32_t)n, .u.stack = {.batch = batch, .c = c}};

    if (n > PSEG_GRAPH_MAX_PARTS) {
        blame(g, PSEG_R_INVALID_ARGUMENT, "too many parts");
        return PSEG_NO_VAR;
    }
    for (size_t i = 0; i < n; i++) {
        op.in[i] = parts[i].v;
        op.u.stack.rows[i] = parts[i].rows;
        op.u.stack.repeats[i] = parts[i].repeats;
        op.u.stack.t += parts[i].rows;
    }
    return pseg_graph_add_op(g, op, (uint32_t)n, batch * op.u.stack.t * c);
}

pseg_var pseg_graph_maskdot(pseg_graph *g, pseg_var q, pseg_var x, size_t batch, size_t n, size_t c)
{
    pseg_graph_op op = {.kind = PSEG_GRAPH_MASKDOT,
                        .in = {q, x},
                        .n_in = 2,
                        .u.maskdot = {.batch = batch, .n = n, .c = c}};

    return pseg_graph_add_op(g, op, 2, batch * n);
}

/* ---- what gradients read --------------------------------------------------------------------- */

bool pseg_graph_reads(const pseg_graph *g, const pseg_graph_op *op, uint32_t i)
{
    switch (op->kind) {
    case PSEG_GRAPH_LINEAR:
    case PSEG_GRAPH_CONV3:
        return i == 0 ? pseg_graph_wants(g, op->in[1]) : i == 1;
    case PSEG_GRAPH_LAYERNORM:
    case PSEG_GRAPH_GROUPNORM:
    case PSEG_GRAPH_ATTENTION:
    case PSEG_GRAPH_MASKDOT:
    case PSEG_GRAPH_LOSS:
    case PSEG_GRAPH_ACT:
    case PSEG_GRAPH_SWIGLU:
    case PSEG_GRAPH_L2NORM:
    case PSEG_GRAPH_SCALE:
        return true;
    case PSEG_GRAPH_GATHER:
        return i == 1;
    default:
        return false;
    }
}

bool pseg_graph_reads_out(const pseg_graph_op *op)
{
    return op->kind == PSEG_GRAPH_ATTENTION || op->kind == PSEG_GRAPH_LOSS ||
           (op->kind == PSEG_GRAPH_LINEAR && op->u.linear.act == PSEG_ACT_RELU);
}

uint32_t pseg_graph_passes(const pseg_graph_op *op)
{
    if (op->kind == PSEG_GRAPH_LINEAR && op->in[3] >= 0)
        return 3;
    return op->kind == PSEG_GRAPH_ADD ? 0 : UINT32_MAX;
}
