/* The end of a graph: logits enlarged, and the loss. Built, forward and backward. */
#include "worker/train/graph_parts.h"

/* ---- building -------------------------------------------------------------------------------- */

pseg_var pseg_graph_enlarge(pseg_graph *g, pseg_var x, pseg_enlarge shape)
{
    pseg_graph_op op = {.kind = PSEG_GRAPH_ENLARGE, .in = {x}, .n_in = 1, .u.enlarge = shape};

    return pseg_graph_add_op(g, op, 1, shape.batch * shape.oh * shape.ow);
}

pseg_var pseg_graph_mask_loss(pseg_graph *g, pseg_var logits, pseg_var target, pseg_var weight,
                              pseg_var iou, size_t batch, size_t n, pseg_loss_weights w)
{
    pseg_graph_op op = {.kind = PSEG_GRAPH_LOSS,
                        .in = {logits, target, weight, iou},
                        .n_in = 4,
                        .u.loss = {.batch = batch, .n = n, .w = w}};
    pseg_var out = pseg_graph_add_op(g, op, 4, batch * PSEG_LOSS_STATS);

    pseg_graph_keep(g, out);
    if (out >= 0)
        g->vars[out].has_grad = false; /* it is 1 */
    return out;
}

/* ---- running --------------------------------------------------------------------------------- */

static pseg_mask_loss loss_of(const pseg_graph *g, const pseg_graph_op *op)
{
    return (pseg_mask_loss){.stats = pseg_graph_view(g, op->out),
                            .logits = pseg_graph_view(g, op->in[0]),
                            .target = pseg_graph_view(g, op->in[1]),
                            .weight = pseg_graph_view(g, op->in[2]),
                            .iou = pseg_graph_view(g, op->in[3]),
                            .batch = op->u.loss.batch,
                            .n = op->u.loss.n,
                            .w = op->u.loss.w};
}

static pseg_enlarge enlarge_of(const pseg_graph *g, const pseg_graph_op *op)
{
    pseg_enlarge e = op->u.enlarge;

    e.out = pseg_graph_view(g, op->out);
    e.x = pseg_graph_view(g, op->in[0]);
    return e;
}

pseg_status pseg_graph_forward_loss(const pseg_graph *g, pseg_stream *s, const pseg_graph_op *op,
                                    pseg_err *err)
{
    if (op->kind == PSEG_GRAPH_ENLARGE) {
        pseg_enlarge e = enlarge_of(g, op);
        return pseg_train_enlarge(s, &e, err);
    }
    pseg_mask_loss a = loss_of(g, op);
    return pseg_train_loss(s, &a, err);
}

static pseg_status loss_back(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op, pseg_err *err)
{
    pseg_mask_loss a = loss_of(g, op);
    pseg_grad logits = pseg_graph_wanted(g, op->in[0]), iou = pseg_graph_wanted(g, op->in[3]);

    if (!logits.v.mem || (!iou.v.mem && a.w.iou > 0) || logits.add || iou.add)
        return pseg_err_set(err, PSEG_R_INTERNAL, 0, PSEG_HERE, "a loss of what is not trained");
    return pseg_train_loss_backward(s, &a, logits.v, iou.v, err);
}

pseg_status pseg_graph_backward_loss(pseg_graph *g, pseg_stream *s, const pseg_graph_op *op,
                                     pseg_err *err)
{
    if (op->kind == PSEG_GRAPH_ENLARGE) {
        pseg_enlarge e = enlarge_of(g, op);
        pseg_grad d = pseg_graph_wanted(g, op->in[0]);
        return pseg_train_enlarge_backward(s, &e, d.v, d.add, pseg_graph_grad_view(g, op->out),
                                           err);
    }
    return loss_back(g, s, op, err);
}
