/* A static training graph: operations on tensors, built once for a batch's shape, then run forward
 * and backward as often as one likes.
 *
 * Building calls never fail by themselves: the first fault is kept and pseg_graph_plan tells it.
 * Planning lays all activations, gradients and work space into one piece of device memory: every
 * tensor has a first and a last moment on the time line forward 0..n-1, backward n-1..0, and two
 * that are never alive together share their bytes. An activation that no gradient needs dies in the
 * forward pass; a residual's gradient is its sum's, in the same place.
 *
 *     pseg_graph_new(&g, cl, params, true, &err);
 *     pseg_var x = pseg_graph_input(g, rows * k);
 *     pseg_var y = pseg_graph_linear(g, x, w, b, PSEG_NO_VAR, rows, n, k, PSEG_ACT_RELU);
 *     ... pseg_var stats = pseg_graph_mask_loss(g, ...);
 *     pseg_graph_plan(g, &err);
 *     pseg_mem_write(s, pseg_graph_view(g, x).mem, ...);  // inputs, before each forward
 *     pseg_graph_forward(g, s, &err);
 *     pseg_graph_backward(g, s, &err);                    // adds to the parameters' gradients
 *
 * To add an operation: its kind and arguments in graph_parts.h, what it keeps for its gradient in
 * graph.c, its two directions in graph_run.c, or all three in graph_encoder.c. An object of one
 * thread. */
#ifndef PSEG_TRAIN_GRAPH_H
#define PSEG_TRAIN_GRAPH_H

#include "worker/ops/backward.h"
#include "worker/train/kernels.h"
#include "worker/train/params.h"

typedef struct pseg_graph pseg_graph;
typedef int32_t pseg_var; /* a tensor of the graph */
#define PSEG_NO_VAR ((pseg_var)-1)

/* params is borrowed until pseg_graph_free. has_backward: without it, memory is planned for the
 * forward pass alone. */
pseg_status pseg_graph_new(pseg_graph **out, pseg_cl *cl, const pseg_params *params,
                           bool has_backward, pseg_err *err);
void pseg_graph_free(pseg_graph *g); /* NULL: nothing happens */

/* ---- building -------------------------------------------------------------------------------- */

/* elems numbers of 4 bytes that are written before each forward pass. */
pseg_var pseg_graph_input(pseg_graph *g, size_t elems);
/* A parameter by name; its gradient is added to. */
pseg_var pseg_graph_param(pseg_graph *g, const char *name);
/* Its value is still there after the forward and the backward pass. */
void pseg_graph_keep(pseg_graph *g, pseg_var v);

/* act(x w^T + b) + res: [rows, n]. act: NONE or RELU, RELU without res; b, res: optional. */
pseg_var pseg_graph_linear(pseg_graph *g, pseg_var x, pseg_var w, pseg_var b, pseg_var res,
                           size_t rows, size_t n, size_t k, pseg_act act);
/* 3x3, padding 1: x [batch, h*w, c] to [batch, h*w, n]. shape: batch, h, width, c and n. */
pseg_var pseg_graph_conv3(pseg_graph *g, pseg_var x, pseg_var w, pseg_var b, pseg_conv3 shape);
pseg_var pseg_graph_layernorm(pseg_graph *g, pseg_var x, pseg_var w, pseg_var b, size_t rows,
                              size_t c, float eps, pseg_act act);
/* shape: b_n, hw, c, groups, eps and act. */
pseg_var pseg_graph_groupnorm(pseg_graph *g, pseg_var x, pseg_var w, pseg_var b,
                              pseg_groupnorm shape);
pseg_var pseg_graph_act(pseg_graph *g, pseg_var x, size_t elems, pseg_act act);
/* x + y: [batch, n, c]; y_repeats: y is [n, c], the same for all of the batch. */
pseg_var pseg_graph_add(pseg_graph *g, pseg_var x, pseg_var y, size_t batch, size_t n, size_t c,
                        bool y_repeats);
/* Dense rows: q [batch, n_q, heads*d], k and v [batch, n_k, heads*d]. key_len: an input of int32
 * [batch], or none. */
pseg_var pseg_graph_attention(pseg_graph *g, pseg_var q, pseg_var k, pseg_var v, pseg_var key_len,
                              size_t batch, size_t heads, size_t d, size_t n_q, size_t n_k);
/* The same under a causal mask, as many keys as queries. */
pseg_var pseg_graph_causal_attention(pseg_graph *g, pseg_var q, pseg_var k, pseg_var v,
                                     size_t batch, size_t heads, size_t d, size_t n);
/* n rows of each sample from `row` on: x [batch, t, c] to [batch, n, c]. */
pseg_var pseg_graph_rows(pseg_graph *g, pseg_var x, size_t batch, size_t t, size_t c, size_t row,
                         size_t n);
/* One of them: [batch, c]. */
pseg_var pseg_graph_row(pseg_graph *g, pseg_var x, size_t batch, size_t t, size_t c, size_t row);
/* x [n], times over: [times, n]. */
pseg_var pseg_graph_repeat(pseg_graph *g, pseg_var x, size_t times, size_t n);
/* out[i] = x[idx[i]], rows of c; idx: an input of int32 [rows], below n_x. */
pseg_var pseg_graph_gather(pseg_graph *g, pseg_var x, pseg_var idx, size_t rows, size_t n_x,
                           size_t c);
/* Parts below each other: part i is [batch, rows, c], or [rows, c] where it repeats. */
#define PSEG_GRAPH_MAX_PARTS 4
typedef struct pseg_graph_piece {
    pseg_var v;
    size_t rows;
    bool repeats;
} pseg_graph_piece;
pseg_var pseg_graph_stack(pseg_graph *g, const pseg_graph_piece *parts, size_t n, size_t batch,
                          size_t c);
/* x [batch, n, c] . q [batch, c]: [batch, n]. */
pseg_var pseg_graph_maskdot(pseg_graph *g, pseg_var q, pseg_var x, size_t batch, size_t n,
                            size_t c);
/* Images [batch, channels, gh*p, gw*p] to patches [batch * gh*gw, channels*p*p]; x is an input. */
pseg_var pseg_graph_patches(pseg_graph *g, pseg_var x, size_t batch, size_t channels, size_t gh,
                            size_t gw, size_t p);
/* ViT's tokens (ops.h): shape has batch, n_patches, n_regs and c; regs: none without registers. */
pseg_var pseg_graph_tokens(pseg_graph *g, pseg_var patch, pseg_var cls, pseg_var regs, pseg_var pos,
                           pseg_tokens shape);
/* x [rows, 2c] to [rows, c]. */
pseg_var pseg_graph_swiglu(pseg_graph *g, pseg_var x, size_t rows, size_t c);
/* Rows of c divided by their length, at least eps. */
pseg_var pseg_graph_l2norm(pseg_graph *g, pseg_var x, size_t rows, size_t c, float eps);
/* Each row of x [rows, c] times s [c], element by element: LayerScale. */
pseg_var pseg_graph_scale(pseg_graph *g, pseg_var x, pseg_var s, size_t rows, size_t c);
/* Logits in the upsampler's order to a map row by row (kernels.h). shape: all but views. */
pseg_var pseg_graph_enlarge(pseg_graph *g, pseg_var x, pseg_enlarge shape);
/* The loss; kernels.h has the formulas. logits and target: [batch, n]; iou: [batch], before the
 * sigmoid, or, with w.iou 0, any input of as many numbers; weight: an input [batch]. Returns what
 * is told of each sample, [batch, PSEG_LOSS_STATS], kept. Backward begins here. */
pseg_var pseg_graph_mask_loss(pseg_graph *g, pseg_var logits, pseg_var target, pseg_var weight,
                              pseg_var iou, size_t batch, size_t n, pseg_loss_weights w);

/* ---- planning and running -------------------------------------------------------------------- */

/* Errors: whatever building met, PSEG_R_DEVICE_OUT_OF_MEMORY. */
pseg_status pseg_graph_plan(pseg_graph *g, pseg_err *err);
/* Device memory of the plan; and what it would be if nothing shared. */
uint64_t pseg_graph_bytes(const pseg_graph *g);
uint64_t pseg_graph_bytes_unshared(const pseg_graph *g);

/* Where a tensor's value lies; what has not been kept may be something else by now. */
pseg_view pseg_graph_view(const pseg_graph *g, pseg_var v);

/* Enqueue and return. backward: after forward, with the inputs as they were. */
pseg_status pseg_graph_forward(pseg_graph *g, pseg_stream *s, pseg_err *err);
pseg_status pseg_graph_backward(pseg_graph *g, pseg_stream *s, pseg_err *err);

#endif
