/* The parameters of the kernels, one struct an operation, passed by value. Shared by the host and
 * OpenCL C: fixed-size members only, 64-bit ones first, sizes asserted on both sides.
 * Offsets and strides count elements. Every dimension is below 2^31 (the host checks). */
#ifndef PSEG_KERNELS_PARAMS_H
#define PSEG_KERNELS_PARAMS_H

#if defined(__OPENCL_VERSION__) || defined(__OPENCL_C_VERSION__)
typedef ulong pseg_u64;
typedef uint pseg_u32;
typedef float pseg_f32;
#define PSEG_SIZE_IS(type, bytes) typedef char type##_size_check[sizeof(type) == (bytes) ? 1 : -1]
#else
#include <stdint.h>
typedef uint64_t pseg_u64;
typedef uint32_t pseg_u32;
typedef float pseg_f32;
#define PSEG_SIZE_IS(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)
#endif

/* Activations; the values are those of pseg_act. */
#define ACT_NONE       0
#define ACT_GELU       1
#define ACT_QUICK_GELU 2
#define ACT_RELU       3
#define ACT_SILU       4
#define ACT_SIGMOID    5

/* Outputs of a panel of packed weights. */
#define PANEL 32

/* Bits of flags: which optional tensors are there. */
#define HAS_BIAS  1u
#define HAS_RES   2u
#define HAS_SCALE 4u

typedef struct pseg_gemm_params {
    pseg_u64 out_off, a_off, w_off, bias_off, res_off, scale_off;
    pseg_u64 out_stride, a_stride, res_stride;
    pseg_u32 m, n, k, act, flags, tiles_per_item, panels_per_item, pad;
} pseg_gemm_params;
PSEG_SIZE_IS(pseg_gemm_params, 104);

typedef struct pseg_conv3_params {
    pseg_u64 out_off, x_off, w_off, bias_off, zeros_off;
    pseg_u32 m, h, w, c, n, flags, tiles_per_item, pad;
} pseg_conv3_params;
PSEG_SIZE_IS(pseg_conv3_params, 72);

/* Rows r of a group: r / inner * outer_stride + r % inner * inner_stride. */
typedef struct pseg_sum_params {
    pseg_u64 out_off, x_off, out_row, group, outer_stride, inner_stride;
    pseg_u32 groups, count, c, inner, piece, add;
    pseg_f32 alpha;
    pseg_u32 pad;
} pseg_sum_params;
PSEG_SIZE_IS(pseg_sum_params, 80);

/* Of a weight [n, taps*c], and of a bias [n]; h, w: the map, 1 x 1 with one tap. piece: elements
 * between the results of two pieces of rows, of either. */
typedef struct pseg_weight_grad_params {
    pseg_u64 out_off, bias_off, x_off, g_off, x_stride, g_stride, piece;
    pseg_u32 m, n, c, taps, h, w, blocks_per_item, columns_per_item, rows_per_item, flags;
} pseg_weight_grad_params;
PSEG_SIZE_IS(pseg_weight_grad_params, 96);

/* flags of both */
#define WANTS_BIAS 1u
#define ADDS_W     2u
#define ADDS_BIAS  4u

/* The pieces' sums: of a weight's elems, and of a bias' n that lie behind them. */
typedef struct pseg_weight_sum_params {
    pseg_u64 out_off, bias_off, elems, piece;
    pseg_u32 n, pieces, flags, pad;
} pseg_weight_sum_params;
PSEG_SIZE_IS(pseg_weight_sum_params, 48);

typedef struct pseg_turn_params {
    pseg_u64 out_off, w_off;
    pseg_u32 n, c, taps, pad;
} pseg_turn_params;
PSEG_SIZE_IS(pseg_turn_params, 32);

/* Gradients of act (one row of c), swiglu and l2norm: out is that of x, g that of the result. */
typedef struct pseg_rows_grad_params {
    pseg_u64 out_off, g_off, x_off, c;
    pseg_u32 rows, act, add;
    pseg_f32 eps;
} pseg_rows_grad_params;
PSEG_SIZE_IS(pseg_rows_grad_params, 48);

/* A sum over n in pieces, for maskdot's q; else pieces is unused. */
typedef struct pseg_maskdot_grad_params {
    pseg_u64 out_off, g_off, x_off;
    pseg_u32 batch, n_q, n, c, piece, add;
} pseg_maskdot_grad_params;
PSEG_SIZE_IS(pseg_maskdot_grad_params, 48);

typedef struct pseg_map_grad_params {
    pseg_u64 out_off, g_off;
    pseg_u32 batch, h, w, c, add, pad;
} pseg_map_grad_params;
PSEG_SIZE_IS(pseg_map_grad_params, 40);

typedef struct pseg_gather_grad_params {
    pseg_u64 out_off, g_off, idx_off, x_stride;
    pseg_u32 rows, c, n_x, n_pos, add, pad;
} pseg_gather_grad_params;
PSEG_SIZE_IS(pseg_gather_grad_params, 56);

/* Gradients of layernorm (rows of c) and groupnorm (batch of hw rows). stats_off: of scratch. */
typedef struct pseg_norm_grad_params {
    pseg_u64 out_off, g_off, x_off, w_off, b_off, stats_off, sums_off, x_stride, g_stride;
    pseg_u32 rows, c, batch, hw, groups, act, flags, add, piece;
    pseg_f32 eps;
} pseg_norm_grad_params;
PSEG_SIZE_IS(pseg_norm_grad_params, 112);

typedef struct pseg_split_params {
    pseg_u64 x_off, x_stride;
    pseg_u32 m, k;
} pseg_split_params;
PSEG_SIZE_IS(pseg_split_params, 24);

#define HAS_AFFINE 1u

typedef struct pseg_layernorm_params {
    pseg_u64 out_off, x_off, w_off, b_off, out_stride, x_stride;
    pseg_u32 rows, c, act, flags;
    pseg_f32 eps, pad;
} pseg_layernorm_params;
PSEG_SIZE_IS(pseg_layernorm_params, 72);

typedef struct pseg_groupnorm_params {
    pseg_u64 out_off, x_off, w_off, b_off;
    pseg_u32 batch, hw, c, groups, act;
    pseg_f32 eps;
} pseg_groupnorm_params;
PSEG_SIZE_IS(pseg_groupnorm_params, 56);

#define IS_CAUSAL   1u
#define HAS_KEY_LEN 2u

typedef struct pseg_attention_params {
    pseg_u64 out_off, q_off, k_off, v_off, key_len_off;
    pseg_u64 out_row, q_row, k_row, v_row;
    pseg_u64 out_batch, q_batch, k_batch, v_batch;
    pseg_u32 batch, heads, d, n_q, n_k, flags;
    pseg_f32 scale;
    pseg_u32 pad;
} pseg_attention_params;
PSEG_SIZE_IS(pseg_attention_params, 136);

/* Gradients of q, k and v that are wanted, and those that are added to what is there. */
#define WANTS_Q 4u
#define WANTS_K 8u
#define WANTS_V 16u
#define ADDS_Q  32u
#define ADDS_K  64u
#define ADDS_V  128u

/* g: of the output, which has the strides of o. first: sample of a portable launch. */
typedef struct pseg_attention_grad_params {
    pseg_u64 g_off, o_off, q_off, k_off, v_off, key_len_off, dq_off, dk_off, dv_off;
    pseg_u64 g_row, q_row, k_row, v_row, dq_row, dk_row, dv_row;
    pseg_u64 g_batch, q_batch, k_batch, v_batch, dq_batch, dk_batch, dv_batch;
    pseg_u32 batch, heads, d, n_q, n_k, flags, first;
    pseg_f32 scale;
} pseg_attention_grad_params;
PSEG_SIZE_IS(pseg_attention_grad_params, 216);

#define HAS_FROM 1u

typedef struct pseg_tree_params {
    pseg_u64 out_off, q_off, k_off, v_off, from_off, back_off;
    pseg_u64 out_row, q_row, k_row, v_row;
    pseg_u32 heads, d, n_q, n_k, flags;
    pseg_f32 scale;
} pseg_tree_params;
PSEG_SIZE_IS(pseg_tree_params, 104);

typedef struct pseg_patches_params {
    pseg_u64 out_off, x_off, out_stride;
    pseg_u32 batch, channels, gh, gw, p, pad;
} pseg_patches_params;
PSEG_SIZE_IS(pseg_patches_params, 48);

#define HAS_CLS 1u
#define HAS_POS 2u

typedef struct pseg_tokens_params {
    pseg_u64 out_off, patch_off, cls_off, regs_off, pos_off;
    pseg_u32 batch, n_patches, n_regs, c, flags, pad;
} pseg_tokens_params;
PSEG_SIZE_IS(pseg_tokens_params, 64);

typedef struct pseg_gather_params {
    pseg_u64 out_off, x_off, idx_off, pos_off, x_stride;
    pseg_u32 rows, c, n_x, n_pos;
} pseg_gather_params;
PSEG_SIZE_IS(pseg_gather_params, 56);

/* copy (without y) and add. */
typedef struct pseg_add_params {
    pseg_u64 out_off, x_off, y_off;
    pseg_u64 out_batch, out_row, x_batch, x_row, y_batch, y_row;
    pseg_u32 batch, n, c;
    pseg_f32 alpha;
} pseg_add_params;
PSEG_SIZE_IS(pseg_add_params, 88);

/* l2norm and swiglu: rows of c; act: one row of c. */
typedef struct pseg_rows_params {
    pseg_u64 out_off, x_off, c;
    pseg_u32 rows, act;
    pseg_f32 eps, pad;
} pseg_rows_params;
PSEG_SIZE_IS(pseg_rows_params, 40);

typedef struct pseg_maskdot_params {
    pseg_u64 out_off, q_off, x_off;
    pseg_u32 batch, n_q, n, c;
} pseg_maskdot_params;
PSEG_SIZE_IS(pseg_maskdot_params, 40);

/* im2col3, shuffle2: a map h x w; transpose: h rows, w columns, c unused. */
typedef struct pseg_map_params {
    pseg_u64 out_off, x_off;
    pseg_u32 batch, h, w, c;
} pseg_map_params;
PSEG_SIZE_IS(pseg_map_params, 32);

/* mask_loss and its gradient (without d_...). */
typedef struct pseg_loss_params {
    pseg_u64 stats_off, logits_off, target_off, weight_off, iou_off, d_logits_off, d_iou_off;
    pseg_u32 batch, n;
    pseg_f32 w_bce, w_dice, w_iou, pad;
} pseg_loss_params;
PSEG_SIZE_IS(pseg_loss_params, 80);

/* scale_rows, and scale_sums: pieces of `piece` rows, of x, or with has_y of x * y. */
typedef struct pseg_scale_params {
    pseg_u64 out_off, x_off, y_off, c;
    pseg_u32 rows, piece, add, has_y;
} pseg_scale_params;
PSEG_SIZE_IS(pseg_scale_params, 48);

/* Logits in the upsampler's order, `stages` doublings of a grid of gh x gw, and the map of oh x ow
 * that they are enlarged to. */
typedef struct pseg_resize_params {
    pseg_u64 out_off, x_off;
    pseg_u32 batch, gh, gw, stages, oh, ow, add, pad;
} pseg_resize_params;
PSEG_SIZE_IS(pseg_resize_params, 48);

typedef struct pseg_sums_params {
    pseg_u64 out_off, x_off, work_off, n;
    pseg_u32 chunk, n_chunks;
    pseg_f32 limit;
    pseg_u32 pad;
} pseg_sums_params;
PSEG_SIZE_IS(pseg_sums_params, 48);

#define HAS_EMA 1u
#define TURNED  2u /* of muon: x is the matrix's transpose */

typedef struct pseg_adamw_params {
    pseg_u64 value_off, grad_off, mean_off, square_off, ema_off, norm_off, n;
    pseg_f32 shrink, step, beta1, beta2, eps, root2, ema_keep;
    pseg_u32 flags;
} pseg_adamw_params;
PSEG_SIZE_IS(pseg_adamw_params, 88);

/* muon.cl: numbers, or rows and columns of a matrix. */
typedef struct pseg_muon_params {
    pseg_u64 value_off, grad_off, mean_off, ema_off, norm_off;
    pseg_u32 n, k, flags;
    pseg_f32 alpha, beta, ema_keep;
} pseg_muon_params;
PSEG_SIZE_IS(pseg_muon_params, 64);

#endif
