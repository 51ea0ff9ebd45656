/* Where every tensor of a graph lies. Moments: inputs are written at 0, operation i runs forward at
 * i + 1 and backward at 2n - i; 2n + 1 is after everything. */
#include "common/base/alloc.h"
#include "worker/train/graph_parts.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN 64 /* elements */

typedef struct block {
    size_t elems, first, last, off;
    pseg_var v;
    bool is_grad;
} block;

static size_t later(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* The input of op whose gradient may lie where the output's lies, or UINT32_MAX. */
static uint32_t shares(const pseg_graph_op *op)
{
    switch (op->kind) {
    case PSEG_GRAPH_LAYERNORM:
    case PSEG_GRAPH_GROUPNORM:
    case PSEG_GRAPH_ACT:
    case PSEG_GRAPH_L2NORM:
    case PSEG_GRAPH_SCALE:
        return 0;
    default:
        return pseg_graph_passes(op);
    }
}

/* A gradient is its consumer's output's where that consumer is the last: the first, backwards, to
 * say anything of it. */
static void join_gradients(pseg_graph *g)
{
    for (size_t i = g->n_ops; i-- > 0;) {
        const pseg_graph_op *op = &g->ops[i];
        uint32_t which = shares(op);
        pseg_var x = which == UINT32_MAX ? PSEG_NO_VAR : op->in[which];

        if (x < 0 || !g->vars[x].has_grad || g->vars[x].kind != PSEG_VAR_MADE ||
            g->vars[x].last_by != i || !g->vars[op->out].has_grad)
            continue;
        for (uint32_t k = 0; k < op->n_in; k++)
            if (k != which && op->in[k] == x)
                x = PSEG_NO_VAR;
        if (x >= 0)
            g->vars[x].grad_as = g->vars[op->out].grad_as;
    }
}

static size_t backward_at(const pseg_graph *g, uint32_t op)
{
    return 2 * g->n_ops - op;
}

static void span_values(block *blocks, size_t *n, const pseg_graph *g)
{
    for (size_t v = 0; v < g->n_vars; v++) {
        const pseg_graph_var *x = &g->vars[v];

        if (x->kind == PSEG_VAR_PARAM)
            continue;
        size_t first = x->by == PSEG_NO_OP ? 0 : x->by + 1;
        size_t end = x->last_by == PSEG_NO_OP ? first : x->last_by + 1;
        if (x->is_kept)
            end = 2 * g->n_ops + 1;
        blocks[(*n)++] = (block){x->elems, first, end, 0, (pseg_var)v, false};
    }
}

/* Values that gradients read live until then. */
static void extend_values(block *blocks, size_t n, const pseg_graph *g)
{
    for (size_t b = 0; b < n; b++) {
        block *x = &blocks[b];
        const pseg_graph_var *v = &g->vars[x->v];

        if (v->by != PSEG_NO_OP && pseg_graph_reads_out(&g->ops[v->by]) && v->has_grad)
            x->last = later(x->last, backward_at(g, v->by));
        for (size_t i = 0; i < g->n_ops; i++) {
            const pseg_graph_op *op = &g->ops[i];

            if (op->kind != PSEG_GRAPH_LOSS && !g->vars[op->out].has_grad)
                continue;
            for (uint32_t k = 0; k < op->n_in; k++)
                if (op->in[k] == x->v && pseg_graph_reads(g, op, k))
                    x->last = later(x->last, backward_at(g, (uint32_t)i));
        }
    }
}

static void span_gradients(block *blocks, size_t *n, const pseg_graph *g)
{
    for (size_t v = 0; v < g->n_vars; v++) {
        block b = {0, SIZE_MAX, 0, 0, (pseg_var)v, true};

        for (size_t i = 0; i < g->n_vars; i++) {
            const pseg_graph_var *x = &g->vars[i];

            if (x->kind != PSEG_VAR_MADE || !x->has_grad || x->grad_as != (pseg_var)v ||
                x->last_by == PSEG_NO_OP)
                continue;
            size_t first = backward_at(g, x->last_by);
            b.first = first < b.first ? first : b.first;
            b.last = later(b.last, backward_at(g, x->by));
            b.elems = x->elems;
        }
        if (b.elems)
            blocks[(*n)++] = b;
    }
}

static int larger_first(const void *a, const void *b)
{
    const block *x = a, *y = b;

    if (x->elems != y->elems)
        return x->elems < y->elems ? 1 : -1;
    return x->v != y->v ? (x->v > y->v ? 1 : -1) : (int)x->is_grad - (int)y->is_grad;
}

static int lower_first(const void *a, const void *b)
{
    const block *const *x = a, *const *y = b;

    return (*x)->off < (*y)->off ? -1 : (*x)->off > (*y)->off;
}

/* The largest first, each at the lowest place where nothing alive with it lies. near: n pointers to
 * work in. Returns the elements that all take. */
static size_t lay_out(block *blocks, size_t n, const block **near)
{
    size_t total = 0;

    qsort(blocks, n, sizeof *blocks, larger_first);
    for (size_t i = 0; i < n; i++) {
        size_t n_near = 0, at = 0, size = (blocks[i].elems + ALIGN - 1) / ALIGN * ALIGN;

        for (size_t k = 0; k < i; k++)
            if (blocks[k].first <= blocks[i].last && blocks[i].first <= blocks[k].last)
                near[n_near++] = &blocks[k];
        qsort(near, n_near, sizeof *near, lower_first);
        for (size_t k = 0; k < n_near && at + size > near[k]->off; k++)
            at = later(at, (near[k]->off + near[k]->elems + ALIGN - 1) / ALIGN * ALIGN);
        blocks[i].off = at;
        total = later(total, at + size);
    }
    return total;
}

pseg_status pseg_graph_plan(pseg_graph *g, pseg_err *err)
{
    pseg_status rc = g->rc;
    block *blocks = NULL;
    const block **near = NULL;
    size_t n = 0, total, bytes;

    if (rc != PSEG_OK) {
        if (err)
            *err = g->why;
        goto out;
    }
    PSEG_REQUIRE(g->n_ops > 0 && !g->mem, "a graph, planned once");
    blocks = pseg_calloc(2 * g->n_vars, sizeof *blocks);
    near = pseg_calloc(2 * g->n_vars, sizeof *near);
    if (!blocks || !near)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to plan a training graph");
    span_values(blocks, &n, g);
    if (g->has_backward) {
        extend_values(blocks, n, g);
        join_gradients(g);
        span_gradients(blocks, &n, g);
    }
    for (size_t i = 0; i < n; i++)
        g->unshared += blocks[i].elems * sizeof(float);
    total = lay_out(blocks, n, near);
    for (size_t i = 0; i < n; i++)
        if (blocks[i].is_grad)
            g->vars[blocks[i].v].grad_off = blocks[i].off;
        else
            g->vars[blocks[i].v].off = blocks[i].off;
    if (!pseg_mul_size(&bytes, total, sizeof(float)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "a training graph of %zu numbers is too large", total);
    g->bytes = bytes;
    PSEG_TRY(pseg_mem_new(&g->mem, g->cl, bytes, err));
out:
    pseg_free(blocks);
    pseg_free(near);
    return rc;
}

uint64_t pseg_graph_bytes(const pseg_graph *g)
{
    return g->bytes;
}

uint64_t pseg_graph_bytes_unshared(const pseg_graph *g)
{
    return g->unshared;
}
