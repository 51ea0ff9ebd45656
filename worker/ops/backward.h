/* Gradients of the operations of ops.h, for training: one typed function each.
 *
 * Each takes the forward call's arguments, the gradient of its output, and where to put the
 * gradients of its inputs:
 *
 *     pseg_op_gemm(s, &g, &err);                                     // out = a w^T + bias
 *     pseg_gemm_grads d = {.out = d_out, .a = pseg_grad_set(d_a), .w = pseg_grad_add(d_w)};
 *     pseg_op_gemm_backward(s, &g, &d, &err);                        // bias: not wanted
 *
 * Rules for all:
 *  - The gradient of a tensor lies as the tensor does: same shape, row and batch strides, layout (a
 *    packed weight's is packed), in memory and at an offset of its own. Gaps between strided rows
 *    are not touched; padding of a packed weight's last panel is set or added zeros.
 *  - pseg_grad_set overwrites, pseg_grad_add adds to what is there, an absent one is not computed,
 *    nor paid for. Parameters usually want add, so that gradients of several calls sum up.
 *  - Where an input repeats (stride 0 over the batch or over rows), its gradient is the sum.
 *  - The forward arguments must be those of the forward call. Only the tensors that a function's
 *    comment says it reads are read, and must still have their values; the memory of the others may
 *    hold something else by now (it is still named, and checked for size).
 *  - Gradients alias neither each other nor anything read, except where the text says so. Parts of
 *    a row of one buffer (q, k and v in fused rows) are not aliases.
 *  - Same bits on the same device every time: sums have a fixed order, whatever the scheduling.
 *  - Everything is float32; BF16 tensors are refused: PSEG_R_UNSUPPORTED. So is an operation that
 *    has no gradient yet. Errors and threads otherwise as in ops.h; work space is the stream's
 *    scratch memory, which grows as needed (PSEG_R_DEVICE_OUT_OF_MEMORY).
 *
 * Not differentiable here: patches (an image needs no gradient; the patch embedding's weight gets
 * its own through gemm) and tree_attention (train with causal attention). */
#ifndef PSEG_OPS_BACKWARD_H
#define PSEG_OPS_BACKWARD_H

#include "worker/ops/ops.h"

/* A gradient that is wanted. */
typedef struct pseg_grad {
    pseg_view v; /* mem NULL: not wanted */
    bool add;    /* to what is there, instead of overwriting it */
} pseg_grad;

static inline pseg_grad pseg_grad_set(pseg_view v)
{
    return (pseg_grad){v, false};
}
static inline pseg_grad pseg_grad_add(pseg_view v)
{
    return (pseg_grad){v, true};
}
#define PSEG_NO_GRAD ((pseg_grad){{NULL, 0, PSEG_F32}, false})

/* ---- weights the other way round ------------------------------------------------------------ */

/* d_a = d_out w needs the packed w[N,K] as a packed [K,N]. The backward of gemm and conv3 makes it
 * in scratch memory, or takes it from w_t if the caller has it: turn once after each step of the
 * optimiser, where a weight is used more than once between steps.
 * out: pseg_gemm_packed_elems(k, n) floats. w: packed [n, k]. */
pseg_status pseg_op_turn(pseg_stream *s, pseg_view out, pseg_view w, size_t n, size_t k,
                         pseg_err *err);
/* The same for conv3: w packed [n, 9*c] to out packed [c, 9*n], taps in reverse order:
 * pseg_gemm_packed_elems(c, 9 * n) floats. */
pseg_status pseg_op_conv3_turn(pseg_stream *s, pseg_view out, pseg_view w, size_t n, size_t c,
                               pseg_err *err);

/* ---- products ------------------------------------------------------------------------------- */

/* act must be PSEG_ACT_NONE (use pseg_op_act) and scale absent (PSEG_R_UNSUPPORTED otherwise).
 * Reads a for w, and w (or w_t) for a. The gradient of res is that of out; where a graph can let
 * both share one buffer, leave it out. w's is packed like w, so an optimiser may treat packed
 * weights element by element. */
typedef struct pseg_gemm_grads {
    pseg_view out;
    pseg_grad a, w, bias, res;
    pseg_view w_t; /* optional: w turned */
} pseg_gemm_grads;
pseg_status pseg_op_gemm_backward(pseg_stream *s, const pseg_gemm *g, const pseg_gemm_grads *d,
                                  pseg_err *err);

/* Reads x for w, and w (or w_t, from pseg_op_conv3_turn) for x. */
typedef struct pseg_conv3_grads {
    pseg_view out;
    pseg_grad x, w, bias;
    pseg_view w_t; /* optional */
} pseg_conv3_grads;
pseg_status pseg_op_conv3_backward(pseg_stream *s, const pseg_conv3 *v, const pseg_conv3_grads *d,
                                   pseg_err *err);

/* Reads q, k, v and out; probabilities are computed again. Causal and key lengths as forward; a
 * query without keys gives zeros, and so does a key that no query sees. */
typedef struct pseg_attention_grads {
    pseg_view out;
    pseg_grad q, k, v;
} pseg_attention_grads;
pseg_status pseg_op_attention_backward(pseg_stream *s, const pseg_attention *a,
                                       const pseg_attention_grads *d, pseg_err *err);

/* d_q[B,Q,C] = sum_n d_out x, d_x[B,N,C] = sum_q d_out q. Reads x for q, and q for x. */
pseg_status pseg_op_maskdot_backward(pseg_stream *s, pseg_grad d_q, pseg_grad d_x, pseg_view d_out,
                                     pseg_view q, pseg_view x, size_t batch, size_t n_q, size_t n,
                                     size_t c, pseg_err *err);

/* ---- norms ---------------------------------------------------------------------------------- */

/* Reads x, w and b (for act); statistics are computed again, so x must not have been normalised in
 * place. act may be any: its derivative is taken from the same pass. The gradient of x may be the
 * memory of out's, unless it is added to. */
typedef struct pseg_norm_grads {
    pseg_view out;
    pseg_grad x, w, b; /* w and b: [C], both or none */
} pseg_norm_grads;
pseg_status pseg_op_layernorm_backward(pseg_stream *s, const pseg_layernorm *l,
                                       const pseg_norm_grads *d, pseg_err *err);
pseg_status pseg_op_groupnorm_backward(pseg_stream *s, const pseg_groupnorm *g,
                                       const pseg_norm_grads *d, pseg_err *err);
/* Reads x. A row whose norm is not above eps was divided by a constant. d_x may be d_out, unless it
 * is added to. */
pseg_status pseg_op_l2norm_backward(pseg_stream *s, pseg_grad d_x, pseg_view d_out, pseg_view x,
                                    size_t rows, size_t c, float eps, pseg_err *err);

/* ---- element by element --------------------------------------------------------------------- */

/* Reads x, what went into the activation; for RELU what came out of it serves as well, so that one
 * may be done in place. RELU's derivative at 0 is 0. d_x may be d_out, unless it is added to. */
pseg_status pseg_op_act_backward(pseg_stream *s, pseg_grad d_x, pseg_view d_out, pseg_view x,
                                 size_t n, pseg_act act, pseg_err *err);
/* Reads x. d_x: [rows, 2C]. */
pseg_status pseg_op_swiglu_backward(pseg_stream *s, pseg_grad d_x, pseg_view d_out, pseg_view x,
                                    size_t rows, size_t c, pseg_err *err);
/* Reads nothing. d_x = alpha d_out, summed over what x repeats. d_x may be d_out if strides agree,
 * unless it is added to. */
pseg_status pseg_op_copy_backward(pseg_stream *s, pseg_block d_out, pseg_block d_x, bool add,
                                  size_t batch, size_t n, size_t c, float alpha, pseg_err *err);
/* Reads nothing. The gradient of x is that of out, of y alpha times it, each summed over what it
 * repeats. If x and y were one tensor, or their gradients are one, ask for them in two calls. */
typedef struct pseg_add_grads {
    pseg_view out;
    pseg_grad x, y;
} pseg_add_grads;
pseg_status pseg_op_add_backward(pseg_stream *s, const pseg_add *a, const pseg_add_grads *d,
                                 pseg_err *err);

/* ---- layout --------------------------------------------------------------------------------- */

/* None reads anything but the indices of gather, whose rows may repeat: their gradients are summed
 * in the order of rows. An overwritten d_x has zeros in the rows that no index names. */
typedef struct pseg_gather_grads {
    pseg_view out;
    pseg_grad x, pos;
} pseg_gather_grads;
pseg_status pseg_op_gather_backward(pseg_stream *s, const pseg_gather *g,
                                    const pseg_gather_grads *d, pseg_err *err);
typedef struct pseg_tokens_grads {
    pseg_view out;
    pseg_grad patch, cls, regs, pos;
} pseg_tokens_grads;
pseg_status pseg_op_tokens_backward(pseg_stream *s, const pseg_tokens *t,
                                    const pseg_tokens_grads *d, pseg_err *err);
pseg_status pseg_op_im2col3_backward(pseg_stream *s, pseg_grad d_x, pseg_view d_out, size_t batch,
                                     size_t h, size_t w, size_t c, pseg_err *err);
pseg_status pseg_op_shuffle2_backward(pseg_stream *s, pseg_grad d_x, pseg_view d_out, size_t batch,
                                      size_t h, size_t w, size_t c, pseg_err *err);
pseg_status pseg_op_transpose_backward(pseg_stream *s, pseg_grad d_x, pseg_view d_out, size_t batch,
                                       size_t r, size_t c, pseg_err *err);

#endif
