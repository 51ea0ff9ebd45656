/* What holds for every gradient: the check, the call, and the typed forms of backward.h. */
#include "worker/ops/backward.h"

#include "worker/ops/internal.h"

/* ---- check and call ----------------------------------------------------------------------- */

/* A piece of memory that a backward call reads or writes. */
typedef struct piece {
    const pseg_tensor *t;
    size_t elems, slot;
    const char *what, *name;
} piece;

static pseg_status check_piece(const pseg_op *op, const piece *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (p->t->type != PSEG_F32 && op->slots[p->slot].type == PSEG_F32)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "%s: gradients are float32; %s%s is of type %d", op->name,
                  p->what, p->name, (int)p->t->type);
    if (p->elems == SIZE_MAX)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s: %s%s is too large", op->name, p->what, p->name);
    if (p->t->mem) {
        size_t have = pseg_mem_size(p->t->mem) / sizeof(float);

        if (p->t->off > have || p->elems > have - p->t->off)
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                      "%s: %s%s needs %zu elements at %zu; its buffer holds %zu", op->name, p->what,
                      p->name, p->elems, p->t->off, have);
    }
out:
    return rc;
}

static bool touches(const piece *a, const piece *b)
{
    return a->t->mem && a->t->mem == b->t->mem && a->t->off < b->t->off + b->elems &&
           b->t->off < a->t->off + a->elems;
}

/* May gradient w touch p, which is another gradient, the output's (slot 0 of `what` gradients), or
 * something read? */
static bool may_touch(const pseg_op *op, const pseg_op_args *a, const pseg_op_grads *g,
                      const piece *w, const piece *p, bool is_grad)
{
    const pseg_op_backward *b = op->backward;

    if (!is_grad)
        return false;
    if (p->slot == 0)
        return b->may_alias && !(g->add >> w->slot & 1) && w->t->off == p->t->off &&
               b->may_alias(a, w->slot);
    if (!b->is_apart)
        return false;
    return w->t->off <= p->t->off ? b->is_apart(a, w->slot, p->slot, p->t->off - w->t->off)
                                  : b->is_apart(a, p->slot, w->slot, w->t->off - p->t->off);
}

pseg_status pseg_op_check_backward(const pseg_op *op, const pseg_op_args *a, const pseg_op_grads *g,
                                   pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_op_backward *b = op->backward;
    piece grads[PSEG_OP_MAX_SLOTS], reads[PSEG_OP_MAX_SLOTS + 1];
    size_t n_grads = 0, n_reads = 0;

    if (!b)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "%s has no gradient", op->name);
    for (size_t i = 0; i < op->n_slots; i++)
        if (op->slots[i].type == PSEG_F32 && a->t[i].type != PSEG_F32)
            PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "%s: gradients are float32; tensor %s is of type %d",
                      op->name, op->slots[i].name, (int)a->t[i].type);
    PSEG_TRY(op->check(a, err));
    if (b->check)
        PSEG_TRY(b->check(a, g, err));
    uint32_t read = b->reads(a, g);
    for (size_t i = 0; i < op->n_slots; i++) {
        const char *name = op->slots[i].name;
        bool is_there = g->t[i].mem || g->t[i].host;

        if (i == 0 && !is_there)
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s: the gradient of %s is missing", op->name,
                      name);
        if (is_there && i > 0 && !(b->slots >> i & 1))
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s: %s has no gradient", op->name, name);
        if (is_there) {
            grads[n_grads] = (piece){&g->t[i], op->extent(a, i), i, "the gradient of ", name};
            PSEG_TRY(check_piece(op, &grads[n_grads++], err));
        }
        if (!(read >> i & 1))
            continue;
        if (!pseg_has(a, i)) {
            if (!op->slots[i].is_optional)
                PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s: tensor %s is missing", op->name, name);
            continue;
        }
        reads[n_reads] = (piece){&a->t[i], op->extent(a, i), i, "tensor ", name};
        PSEG_TRY(check_piece(op, &reads[n_reads++], err));
    }
    if (g->turned.mem) {
        PSEG_REQUIRE(b->turned_elems != NULL, "turned weights");
        reads[n_reads] = (piece){&g->turned, b->turned_elems(a), 0, "", "the turned weight"};
        PSEG_TRY(check_piece(op, &reads[n_reads++], err));
    }
    for (size_t w = 1; w < n_grads; w++) {
        for (size_t k = 0; k < w; k++)
            if (touches(&grads[w], &grads[k]) && !may_touch(op, a, g, &grads[w], &grads[k], true))
                PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s: the gradients of %s and %s overlap",
                          op->name, grads[k].name, grads[w].name);
        for (size_t k = 0; k < n_reads; k++)
            if (touches(&grads[w], &reads[k]))
                PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s: the gradient of %s overlaps %s%s",
                          op->name, grads[w].name, reads[k].what, reads[k].name);
    }
out:
    return rc;
}

pseg_status pseg_op_run_backward(pseg_stream *s, const pseg_op *op, const pseg_op_args *a,
                                 const pseg_op_grads *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_op_check_backward(op, a, g, err));
    PSEG_TRY(op->backward->launch(s, a, g, err));
out:
    return rc;
}

/* ---- typed forms -------------------------------------------------------------------------- */

static void want(pseg_op_grads *out, size_t slot, pseg_grad g)
{
    out->t[slot] = pseg_tensor_of(g.v);
    if (g.add)
        out->add |= 1u << slot;
}

pseg_status pseg_op_gemm_backward(pseg_stream *s, const pseg_gemm *g, const pseg_gemm_grads *d,
                                  pseg_err *err)
{
    pseg_op_args a = pseg_gemm_args(g);
    pseg_op_grads o = {.t = {pseg_tensor_of(d->out)}, .turned = pseg_tensor_of(d->w_t)};

    want(&o, 1, d->a);
    want(&o, 2, d->w);
    want(&o, 3, d->bias);
    want(&o, 4, d->res);
    return pseg_op_run_backward(s, &pseg_op_row_gemm, &a, &o, err);
}

pseg_status pseg_op_conv3_backward(pseg_stream *s, const pseg_conv3 *v, const pseg_conv3_grads *d,
                                   pseg_err *err)
{
    pseg_op_args a = pseg_conv3_args(v);
    pseg_op_grads o = {.t = {pseg_tensor_of(d->out)}, .turned = pseg_tensor_of(d->w_t)};

    want(&o, 1, d->x);
    want(&o, 2, d->w);
    want(&o, 3, d->bias);
    return pseg_op_run_backward(s, &pseg_op_row_conv3, &a, &o, err);
}

pseg_status pseg_op_attention_backward(pseg_stream *s, const pseg_attention *t,
                                       const pseg_attention_grads *d, pseg_err *err)
{
    pseg_op_args a = pseg_attention_args(t);
    pseg_op_grads o = {.t = {pseg_tensor_of(d->out)}};

    want(&o, 1, d->q);
    want(&o, 2, d->k);
    want(&o, 3, d->v);
    return pseg_op_run_backward(s, &pseg_op_row_attention, &a, &o, err);
}

static pseg_status norm_backward(pseg_stream *s, const pseg_op *op, const pseg_op_args *a,
                                 const pseg_norm_grads *d, pseg_err *err)
{
    pseg_op_grads o = {.t = {pseg_tensor_of(d->out)}};

    want(&o, 1, d->x);
    want(&o, 2, d->w);
    want(&o, 3, d->b);
    return pseg_op_run_backward(s, op, a, &o, err);
}

pseg_status pseg_op_layernorm_backward(pseg_stream *s, const pseg_layernorm *l,
                                       const pseg_norm_grads *d, pseg_err *err)
{
    pseg_op_args a = pseg_layernorm_args(l);

    return norm_backward(s, &pseg_op_row_layernorm, &a, d, err);
}

pseg_status pseg_op_groupnorm_backward(pseg_stream *s, const pseg_groupnorm *g,
                                       const pseg_norm_grads *d, pseg_err *err)
{
    pseg_op_args a = pseg_groupnorm_args(g);

    return norm_backward(s, &pseg_op_row_groupnorm, &a, d, err);
}

pseg_status pseg_op_add_backward(pseg_stream *s, const pseg_add *t, const pseg_add_grads *d,
                                 pseg_err *err)
{
    pseg_op_args a = pseg_add_args(t);
    pseg_op_grads o = {.t = {pseg_tensor_of(d->out)}};

    want(&o, 1, d->x);
    want(&o, 2, d->y);
    return pseg_op_run_backward(s, &pseg_op_row_add, &a, &o, err);
}

pseg_status pseg_op_gather_backward(pseg_stream *s, const pseg_gather *t,
                                    const pseg_gather_grads *d, pseg_err *err)
{
    pseg_op_args a = pseg_gather_args(t);
    pseg_op_grads o = {.t = {pseg_tensor_of(d->out)}};

    want(&o, 1, d->x);
    want(&o, 3, d->pos);
    return pseg_op_run_backward(s, &pseg_op_row_gather, &a, &o, err);
}

pseg_status pseg_op_tokens_backward(pseg_stream *s, const pseg_tokens *t,
                                    const pseg_tokens_grads *d, pseg_err *err)
{
    pseg_op_args a = pseg_tokens_args(t);
    pseg_op_grads o = {.t = {pseg_tensor_of(d->out)}};

    want(&o, 1, d->patch);
    want(&o, 2, d->cls);
    want(&o, 3, d->regs);
    want(&o, 4, d->pos);
    return pseg_op_run_backward(s, &pseg_op_row_tokens, &a, &o, err);
}

pseg_status pseg_op_maskdot_backward(pseg_stream *s, pseg_grad d_q, pseg_grad d_x, pseg_view d_out,
                                     pseg_view q, pseg_view x, size_t batch, size_t n_q, size_t n,
                                     size_t c, pseg_err *err)
{
    pseg_op_args a = {.t = {{0}, pseg_tensor_of(q), pseg_tensor_of(x)},
                      .i = {pseg_dim(batch), pseg_dim(n_q), pseg_dim(n), pseg_dim(c)}};
    pseg_op_grads o = {.t = {pseg_tensor_of(d_out)}};

    want(&o, 1, d_q);
    want(&o, 2, d_x);
    return pseg_op_run_backward(s, &pseg_op_row_maskdot, &a, &o, err);
}

pseg_status pseg_op_copy_backward(pseg_stream *s, pseg_block d_out, pseg_block d_x, bool add,
                                  size_t batch, size_t n, size_t c, float alpha, pseg_err *err)
{
    pseg_op_args a = {.i = {pseg_dim(batch), pseg_dim(n), pseg_dim(c), pseg_dim(d_out.batch),
                            pseg_dim(d_out.row), pseg_dim(d_x.batch), pseg_dim(d_x.row)},
                      .f = {alpha}};
    pseg_op_grads o = {.t = {pseg_tensor_of(d_out.v)}};

    want(&o, 1, (pseg_grad){d_x.v, add});
    return pseg_op_run_backward(s, &pseg_op_row_copy, &a, &o, err);
}

/* One input x, which is read or not, and its gradient. */
static pseg_status unary(pseg_stream *s, const pseg_op *op, pseg_op_args *a, pseg_grad d_x,
                         pseg_view d_out, pseg_view x, pseg_err *err)
{
    pseg_op_grads o = {.t = {pseg_tensor_of(d_out)}};

    a->t[1] = pseg_tensor_of(x);
    want(&o, 1, d_x);
    return pseg_op_run_backward(s, op, a, &o, err);
}

pseg_status pseg_op_l2norm_backward(pseg_stream *s, pseg_grad d_x, pseg_view d_out, pseg_view x,
                                    size_t rows, size_t c, float eps, pseg_err *err)
{
    pseg_op_args a = {.i = {pseg_dim(rows), pseg_dim(c)}, .f = {eps}};

    return unary(s, &pseg_op_row_l2norm, &a, d_x, d_out, x, err);
}

pseg_status pseg_op_act_backward(pseg_stream *s, pseg_grad d_x, pseg_view d_out, pseg_view x,
                                 size_t n, pseg_act act, pseg_err *err)
{
    pseg_op_args a = {.i = {pseg_dim(n), act}};

    return unary(s, &pseg_op_row_act, &a, d_x, d_out, x, err);
}

pseg_status pseg_op_swiglu_backward(pseg_stream *s, pseg_grad d_x, pseg_view d_out, pseg_view x,
                                    size_t rows, size_t c, pseg_err *err)
{
    pseg_op_args a = {.i = {pseg_dim(rows), pseg_dim(c)}};

    return unary(s, &pseg_op_row_swiglu, &a, d_x, d_out, x, err);
}

pseg_status pseg_op_im2col3_backward(pseg_stream *s, pseg_grad d_x, pseg_view d_out, size_t batch,
                                     size_t h, size_t w, size_t c, pseg_err *err)
{
    pseg_op_args a = {.i = {pseg_dim(batch), pseg_dim(h), pseg_dim(w), pseg_dim(c)}};

    return unary(s, &pseg_op_row_im2col3, &a, d_x, d_out, PSEG_NO_VIEW, err);
}

pseg_status pseg_op_shuffle2_backward(pseg_stream *s, pseg_grad d_x, pseg_view d_out, size_t batch,
                                      size_t h, size_t w, size_t c, pseg_err *err)
{
    pseg_op_args a = {.i = {pseg_dim(batch), pseg_dim(h), pseg_dim(w), pseg_dim(c)}};

    return unary(s, &pseg_op_row_shuffle2, &a, d_x, d_out, PSEG_NO_VIEW, err);
}

pseg_status pseg_op_transpose_backward(pseg_stream *s, pseg_grad d_x, pseg_view d_out, size_t batch,
                                       size_t r, size_t c, pseg_err *err)
{
    pseg_op_args a = {.i = {pseg_dim(batch), pseg_dim(r), pseg_dim(c)}};

    return unary(s, &pseg_op_row_transpose, &a, d_x, d_out, PSEG_NO_VIEW, err);
}
