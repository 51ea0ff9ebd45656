/* The operations of the engine: one typed function each, for model code.
 *
 * Every function checks shapes, buffer sizes and aliasing (PSEG_R_INVALID_ARGUMENT), enqueues its
 * kernels on s and returns; results are valid after pseg_stream_finish(). Thread: the owner of s.
 * Other errors: those of worker/cl. The table behind them (checks, CPU references, costs, test
 * cases) is worker/ops/table.h; model code does not need it.
 *
 * Everything is row-major float32, or, where the text says so, bfloat16 (BF16): then products are
 * exact and sums are float32. Feature maps are token-major, [B, H*W, C]: a 1x1 convolution is a
 * gemm. A pseg_view names where a tensor begins and what its elements are; strides and offsets
 * count elements. A view with mem = NULL is absent, where the text says optional. Nothing may alias
 * unless the text says so. Letters: B batch, H heads, N tokens, C channels, D channels of a head, K
 * inner dimension. */
#ifndef PSEG_OPS_OPS_H
#define PSEG_OPS_OPS_H

#include "common/base/err.h"
#include "worker/cl/cl.h"

#include <stdint.h>

/* BF16X2: a number is the sum of two BF16, good to 17 bits, in 4 bytes; only weights are. */
typedef enum pseg_dtype { PSEG_F32, PSEG_F16, PSEG_BF16, PSEG_I32, PSEG_BF16X2 } pseg_dtype;

typedef struct pseg_view {
    pseg_mem *mem;
    size_t off;      /* elements */
    pseg_dtype type; /* PSEG_F32, PSEG_BF16 or PSEG_BF16X2; of indices: ignored */
} pseg_view;

static inline pseg_view pseg_view_of(pseg_mem *mem, size_t off)
{
    return (pseg_view){mem, off, PSEG_F32};
}
static inline pseg_view pseg_view_at(pseg_view v, size_t off) /* off elements further */
{
    return (pseg_view){v.mem, v.off + off, v.type};
}
#define PSEG_NO_VIEW ((pseg_view){NULL, 0, PSEG_F32})

typedef enum pseg_act {
    PSEG_ACT_NONE,
    PSEG_ACT_GELU,       /* x (1 + erf(x / sqrt 2)) / 2, exact */
    PSEG_ACT_QUICK_GELU, /* x sigmoid(1.702 x) */
    PSEG_ACT_RELU,
    PSEG_ACT_SILU,    /* x sigmoid(x) */
    PSEG_ACT_SIGMOID, /* 1 / (1 + exp(-x)) */
} pseg_act;

/* ---- weights, on the host ------------------------------------------------------------------ */

/* Packed weights are kept in files. Raise this with every change of what the functions of this
 * section write; tests/unit/packed_test.c compares their results with those of this version. */
#define PSEG_PACK_VERSION 1

/* A weight matrix [n, k] (PyTorch's Linear: out features, in features) in panels of 32 outputs,
 * [ceil(n/32)][k][32] float32, missing outputs zero. The same layout on every device. */
#define PSEG_PANEL 32
size_t pseg_gemm_packed_elems(size_t n, size_t k); /* 0 on overflow */
/* out: pseg_gemm_packed_elems(n, k) floats. w: [n, k] of type F32, F16 or BF16, row-major, any
 * alignment. To stack matrices (q, k, v in one), pack each with `row` = where its first row goes,
 * into an out that was zeroed and sized for n_total rows. */
void pseg_gemm_pack(float *out, const void *w, pseg_dtype type, size_t n, size_t k);
void pseg_gemm_pack_rows(float *out, size_t row, const void *w, pseg_dtype type, size_t n,
                         size_t k);
/* The same matrix in BF16, rounded to nearest even: [ceil(n/32)][kp/2][32][2], where kp is k
 * rounded up to a multiple of 32, and what lies past n or k is zero. row, stacking: as above. */
#define PSEG_BF16_STEP 32
size_t pseg_gemm_packed_bf16_elems(size_t n, size_t k); /* 0 on overflow */
void pseg_gemm_pack_bf16_rows(uint16_t *out, size_t row, const void *w, pseg_dtype type, size_t n,
                              size_t k);
/* The same matrix in BF16X2: as BF16, but each 32 of k is there twice, first the rounded numbers,
 * then the rounded remainders, [ceil(n/32)][kp/32][2][16][32][2]. elems counts whole numbers, of 4
 * bytes: those of BF16. */
void pseg_gemm_pack_bf16x2_rows(uint16_t *out, size_t row, const void *w, pseg_dtype type, size_t n,
                                size_t k);
/* A convolution's weight [cout, cin, 3, 3] for im2col3 + gemm: [cout, 9*cin], column
 * (ky*3+kx)*cin+c. */
void pseg_conv3_weight(float *out, const float *w, size_t cout, size_t cin);
/* ConvTranspose2d k2 s2 weight [cin, cout, 2, 2] for gemm + shuffle2: [4*cout, cin], row
 * (dy*2+dx)*cout+co; and its bias [cout], repeated four times. */
void pseg_convt2_weight(float *out, const float *w, size_t cin, size_t cout);
void pseg_convt2_bias(float *out, const float *bias, size_t cout);
/* n values to float32, exactly; src of any alignment. I32 is not converted: do not pass it. */
void pseg_to_f32(float *out, const void *src, pseg_dtype type, size_t n);
/* n floats to BF16, to nearest even; NaN stays NaN. */
void pseg_to_bf16(uint16_t *out, const float *src, size_t n);
/* n floats, in groups of 1024 as a packed matrix has them, to BF16X2; n a multiple of 1024. */
void pseg_to_bf16x2(uint16_t *out, const float *src, size_t n);

/* ---- operations ---------------------------------------------------------------------------- */

/* out[M,N] = act(a[M,K] w^T + bias), or, with res: out = res + scale * act(...) per column.
 * w: packed [N,K]. bias, scale: [N], optional. scale without res: out = scale * act(...).
 * Row strides 0 mean dense (K, N, N). out may be res (same view and stride), nothing else.
 * a and w may be BF16, both, with K a multiple of 32 (zeros may fill a up); then out may be BF16
 * too, unless there is a res, and GELU is good to 3e-4. w may be BF16X2 beside an a of float32,
 * which is split likewise on the way: the error is that of rounding both to 17 bits. */
typedef struct pseg_gemm {
    pseg_view out, a, w, bias, res, scale;
    size_t m, n, k, a_stride, out_stride, res_stride;
    pseg_act act;
} pseg_gemm;
pseg_status pseg_op_gemm(pseg_stream *s, const pseg_gemm *g, pseg_err *err);

/* Each row of C: (x - mean) / sqrt(var + eps) * w + b, then act. w, b: [C], optional together.
 * Strides 0: dense. out may be x, or BF16, as x may then be. LayerNorm2d on a token-major map is
 * this with rows = B*H*W. */
typedef struct pseg_layernorm {
    pseg_view out, x, w, b;
    size_t rows, c, x_stride, out_stride;
    float eps;
    pseg_act act;
} pseg_layernorm;
pseg_status pseg_op_layernorm(pseg_stream *s, const pseg_layernorm *l, pseg_err *err);

/* PyTorch's GroupNorm(groups, C) of a token-major map x[B, HW, C], then act. out may be x. */
typedef struct pseg_groupnorm {
    pseg_view out, x, w, b; /* w, b: [C] */
    size_t b_n, hw, c, groups;
    float eps;
    pseg_act act;
} pseg_groupnorm;
pseg_status pseg_op_groupnorm(pseg_stream *s, const pseg_groupnorm *g, pseg_err *err);

/* out[b, i, h*D+d] = sum_j softmax_j(scale q.k) v over keys j < key_len[b] (all, if absent) and,
 * with causal, j <= i (then n_q == n_k). Head h lies in columns h*D..h*D+D of each row. Row strides
 * are given (a fused qkv buffer: 3*H*D); batch strides 0 share one q, k or v by all of the batch
 * (out's may be 0 only if batch == 1). D <= 128. A query without keys gives zeros.
 * key_len: int32 [B], optional, taken as min(max(., 0), n_k). q, k, v and out may be BF16, all of
 * them; the weights of the sum are then rounded to BF16 as well. */
typedef struct pseg_attention {
    pseg_view out, q, k, v, key_len;
    size_t batch, heads, d, n_q, n_k;
    size_t q_row, k_row, v_row, out_row;         /* elements from token to token */
    size_t q_batch, k_batch, v_batch, out_batch; /* elements from sample to sample */
    float scale;
    bool causal;
} pseg_attention;
pseg_status pseg_op_attention(pseg_stream *s, const pseg_attention *a, pseg_err *err);

/* Causal attention of phrases that share their beginnings: rows of k and v are the nodes of trees.
 * back: int32 [n_k], how many rows before it a row's parent lies; 0, or more than there are, ends
 * the path. out[i, h*D+d] = sum_j softmax_j(scale q_i.k_j) v_j over node from[i] and all above it;
 * from: int32 [n_q], absent: i itself; a node that is not there gives zeros. D <= 128. q, k, v and
 * out may be BF16, all of them. A query's result does not depend on other rows, to the last bit. */
typedef struct pseg_tree_attention {
    pseg_view out, q, k, v, from, back;
    size_t heads, d, n_q, n_k;
    size_t q_row, k_row, v_row, out_row; /* elements from row to row */
    float scale;
} pseg_tree_attention;
pseg_status pseg_op_tree_attention(pseg_stream *s, const pseg_tree_attention *t, pseg_err *err);

/* Images x[B, ch, gh*p, gw*p] (planar) to patches out[B*gh*gw, ch*p*p], columns in the order of
 * Conv2d's weight [C, ch, p, p], so that the patch embedding is a gemm. out's rows are out_stride
 * apart (0: dense); what lies between them is set to zero. out may be BF16. */
pseg_status pseg_op_patches(pseg_stream *s, pseg_view out, pseg_view x, size_t batch,
                            size_t channels, size_t gh, size_t gw, size_t p, size_t out_stride,
                            pseg_err *err);

/* out[B, 1+R+P, C] = [cls + pos[0] | regs | patch + pos[1..P]], ViT's token order: registers get no
 * position. cls [C] optional (then no such row, and pos is [P, C]), regs [R, C] with R = 0 absent,
 * pos optional. patch: [B, P, C]. */
typedef struct pseg_tokens {
    pseg_view out, patch, cls, regs, pos;
    size_t batch, n_patches, n_regs, c;
} pseg_tokens;
pseg_status pseg_op_tokens(pseg_stream *s, const pseg_tokens *t, pseg_err *err);

/* out[r] = x[idx[r]] (+ pos[r % n_pos]), r < rows. x: [n_x, C] with row stride x_stride (0: C),
 * idx: int32 [rows], pos [n_pos, C] optional (n_pos 0). An index outside 0..n_x-1 gives a row of
 * zeros. Token embeddings and the choice of EOS rows are both this. */
typedef struct pseg_gather {
    pseg_view out, x, idx, pos;
    size_t rows, c, n_x, x_stride, n_pos;
} pseg_gather;
pseg_status pseg_op_gather(pseg_stream *s, const pseg_gather *g, pseg_err *err);

/* A block [B, N, C] with strides: element (b, n, c) at off + b*batch + n*row + c. A stride of 0
 * repeats on inputs and is refused on outputs where the dimension exceeds 1. */
typedef struct pseg_block {
    pseg_view v;
    size_t batch, row;
} pseg_block;
static inline pseg_block pseg_block_of(pseg_view v, size_t batch, size_t row)
{
    return (pseg_block){v, batch, row};
}

/* out = alpha * x. Slices, concatenation, broadcasting over the batch, scaling. out may be x if
 * strides agree, or BF16. */
pseg_status pseg_op_copy(pseg_stream *s, pseg_block out, pseg_block x, size_t batch, size_t n,
                         size_t c, float alpha, pseg_err *err);
/* out = x + alpha * y. Residuals, position encodings (y.batch = 0), biases (y.row = 0 too). out may
 * be x or y if strides agree, or BF16. */
typedef struct pseg_add {
    pseg_block out, x, y;
    size_t batch, n, c;
    float alpha;
} pseg_add;
pseg_status pseg_op_add(pseg_stream *s, const pseg_add *a, pseg_err *err);

/* Rows of C divided by max(their 2-norm, eps). out may be x. */
pseg_status pseg_op_l2norm(pseg_stream *s, pseg_view out, pseg_view x, size_t rows, size_t c,
                           float eps, pseg_err *err);
/* n elements. out may be x. */
pseg_status pseg_op_act(pseg_stream *s, pseg_view out, pseg_view x, size_t n, pseg_act act,
                        pseg_err *err);
/* out[rows, C] = silu(x[:, :C]) * x[:, C:] of x[rows, 2C]. Both may be BF16. */
pseg_status pseg_op_swiglu(pseg_stream *s, pseg_view out, pseg_view x, size_t rows, size_t c,
                           pseg_err *err);
/* out[B, Q, N] = sum_c q[B, Q, C] x[B, N, C]: mask logits, Q masks of each sample. x may be BF16.
 */
pseg_status pseg_op_maskdot(pseg_stream *s, pseg_view out, pseg_view q, pseg_view x, size_t batch,
                            size_t n_q, size_t n, size_t c, pseg_err *err);
/* x[B, H*W, C] to out[B*H*W, 9*C] for a 3x3 convolution with padding 1: column (ky*3+kx)*C + c. out
 * may be BF16. */
pseg_status pseg_op_im2col3(pseg_stream *s, pseg_view out, pseg_view x, size_t batch, size_t h,
                            size_t w, size_t c, pseg_err *err);
/* out[B, H*W, N] = 3x3 convolution with padding 1 of x[B, H*W, C], w packed [N, 9*C] as for im2col3
 * and gemm, without their columns in memory. bias: [N], optional. */
typedef struct pseg_conv3 {
    pseg_view out, x, w, bias;
    size_t batch, h, width, c, n;
} pseg_conv3;
pseg_status pseg_op_conv3(pseg_stream *s, const pseg_conv3 *v, pseg_err *err);
/* x[B, H*W, 4*C] (from the gemm of ConvTranspose2d k2 s2) to out[B, 2H*2W, C]. */
pseg_status pseg_op_shuffle2(pseg_stream *s, pseg_view out, pseg_view x, size_t batch, size_t h,
                             size_t w, size_t c, pseg_err *err);
/* x[B, R, C] to out[B, C, R]: planar to token-major and back. */
pseg_status pseg_op_transpose(pseg_stream *s, pseg_view out, pseg_view x, size_t batch, size_t r,
                              size_t c, pseg_err *err);

/* Of the operations that have run on this device, in the types they ran in and for what a model
 * fixes, as the channels of a head: builds what other shapes take, and runs each once on small data
 * (some drivers compile again at the first launch), so that no job waits for it. To be called when
 * a model has run once. */
pseg_status pseg_ops_prepare(pseg_stream *s, pseg_err *err);

/* Which variants of the operations are taken on this device: applies what the program brings for
 * it, then what `pseg devices --tune` left in the cache folder (tune.h). To be called before the
 * first operation. */
void pseg_tuning_load(pseg_cl *cl);

#endif
