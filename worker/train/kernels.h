/* The kernels that only training has: the loss, the gradient's norm, AdamW (kernels/train.cl).
 *
 * All enqueue and return; sums have a fixed order, so the same device gives the same bits. Views
 * are float32. */
#ifndef PSEG_TRAIN_KERNELS_H
#define PSEG_TRAIN_KERNELS_H

#include "worker/cl/cl.h"
#include "worker/ops/ops.h"

/* Launches a kernel whose dimension 1 strides over lines, 0 over their width: on a CPU some items
 * for each core, elsewhere work-groups of 64 to a line. */
pseg_status pseg_train_launch_lines(pseg_stream *s, const pseg_kernel *k, size_t lines,
                                    size_t width, const pseg_arg *args, size_t n_args,
                                    pseg_err *err);

/* The loss of one sample with logits x_j, target t_j in 0..1, p_j = sigmoid(x_j), j < n:
 *
 *     bce  = mean_j(max(x, 0) - x t + log(1 + exp(-|x|)))
 *     dice = 1 - (2 sum p t + 1) / (sum p + sum t + 1)
 *     miss = (sigmoid(iou) - actual)^2, actual = |x > 0 and t > 1/2| / max(|x > 0 or t > 1/2|, 1);
 *            nothing flows back through actual
 *     loss = weight * (w.bce * bce + w.dice * dice + w.iou * miss)
 *
 * The batch's loss is the sum; with weights that add up to 1 it is a weighted mean. */
typedef struct pseg_loss_weights {
    float bce, dice, iou;
} pseg_loss_weights;

/* What is told of each sample. SUM_*: for the gradient. */
enum {
    PSEG_LOSS_TOTAL, /* loss */
    PSEG_LOSS_BCE,
    PSEG_LOSS_DICE,
    PSEG_LOSS_MISS,
    PSEG_LOSS_IOU,  /* actual */
    PSEG_LOSS_PRED, /* sigmoid(iou) */
    PSEG_LOSS_SUM_PT,
    PSEG_LOSS_SUM_P_T, /* sum p + sum t */
    PSEG_LOSS_STATS
};

typedef struct pseg_mask_loss {
    pseg_view stats;          /* [batch, PSEG_LOSS_STATS] */
    pseg_view logits, target; /* [batch, n] */
    pseg_view weight, iou;    /* [batch] */
    size_t batch, n;
    pseg_loss_weights w;
} pseg_mask_loss;
pseg_status pseg_train_loss(pseg_stream *s, const pseg_mask_loss *l, pseg_err *err);
/* After pseg_train_loss, whose stats are read. Overwrites. d_iou: absent if w.iou is 0. */
pseg_status pseg_train_loss_backward(pseg_stream *s, const pseg_mask_loss *l, pseg_view d_logits,
                                     pseg_view d_iou, pseg_err *err);

/* Logits in the upsampler's order (pseg_train_head_order), [batch, (gh << stages) * (gw <<
 * stages)], enlarged to out [batch, oh, ow], row by row, as inference does it: bilinear, half-pixel
 * centres, clamped edges. */
typedef struct pseg_enlarge {
    pseg_view out, x;
    size_t batch, gh, gw, stages, oh, ow;
} pseg_enlarge;
pseg_status pseg_train_enlarge(pseg_stream *s, const pseg_enlarge *e, pseg_err *err);
/* d_x from d_out, overwritten or added to. Reads nothing else. Takes the stream's scratch memory.
 */
pseg_status pseg_train_enlarge_backward(pseg_stream *s, const pseg_enlarge *e, pseg_view d_x,
                                        bool add, pseg_view d_out, pseg_err *err);

/* out[r, c] = x[r, c] * s[c], or added to what is there; out may be x. */
pseg_status pseg_train_scale(pseg_stream *s, pseg_view out, pseg_view x, pseg_view scale,
                             size_t rows, size_t c, bool add, pseg_err *err);
/* out[c] = the sum over rows of d[r, c] * x[r, c], or added to what is there: the gradient of such
 * a scale. Takes the stream's scratch memory. */
pseg_status pseg_train_scale_sums(pseg_stream *s, pseg_view out, pseg_view d, pseg_view x,
                                  size_t rows, size_t c, bool add, pseg_err *err);

/* out[PSEG_NORM_NORM] = sqrt(sum x^2) over n elements; [PSEG_NORM_SCALE] = min(1, limit / (norm +
 * 1e-6)), as torch.nn.utils.clip_grad_norm_, or 1 with limit <= 0; [PSEG_NORM_IS_FINITE] = 1 if the
 * norm is a finite number, else 0. work: pseg_train_norm_work(n) floats. */
enum { PSEG_NORM_NORM, PSEG_NORM_SCALE, PSEG_NORM_IS_FINITE, PSEG_NORM_OUT };
size_t pseg_train_norm_work(size_t n);
pseg_status pseg_train_norm(pseg_stream *s, pseg_view out, pseg_view x, size_t n, float limit,
                            pseg_view work, pseg_err *err);

/* One step of AdamW (Loshchilov, Hutter 2019) as torch.optim.AdamW does it, over n elements:
 *
 *     g *= norm[SCALE]; value -= lr * decay * value
 *     mean += (1 - beta1) (g - mean); square = beta2 * square + (1 - beta2) g^2
 *     value -= lr / correct1 * mean / (sqrt(square) / sqrt(correct2) + eps)
 *
 * with correct_i = 1 - beta_i^t, and ema += (1 - ema_keep) (value - ema) if there is an ema. Where
 * norm[IS_FINITE] is 0, nothing changes. */
typedef struct pseg_adamw {
    pseg_view value, grad, mean, square, ema, norm; /* ema: optional */
    size_t n;
    float lr, decay, beta1, beta2, eps, correct1, correct2, ema_keep;
} pseg_adamw;
pseg_status pseg_train_adamw(pseg_stream *s, const pseg_adamw *a, pseg_err *err);

#endif
