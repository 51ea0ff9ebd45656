/* Helpers shared by the files of worker/ops. */
#ifndef PSEG_OPS_INTERNAL_H
#define PSEG_OPS_INTERNAL_H

#include "kernels/params.h"
#include "worker/ops/backward.h"
#include "worker/ops/table.h"

extern const pseg_op pseg_op_row_gemm, pseg_op_row_layernorm, pseg_op_row_groupnorm,
    pseg_op_row_l2norm, pseg_op_row_attention, pseg_op_row_tree_attention, pseg_op_row_patches,
    pseg_op_row_tokens, pseg_op_row_gather, pseg_op_row_copy, pseg_op_row_add, pseg_op_row_act,
    pseg_op_row_swiglu, pseg_op_row_maskdot, pseg_op_row_im2col3, pseg_op_row_shuffle2,
    pseg_op_row_transpose, pseg_op_row_conv3;

extern const pseg_op_backward pseg_op_backward_gemm, pseg_op_backward_conv3,
    pseg_op_backward_attention, pseg_op_backward_act, pseg_op_backward_swiglu,
    pseg_op_backward_copy, pseg_op_backward_add, pseg_op_backward_maskdot, pseg_op_backward_im2col3,
    pseg_op_backward_shuffle2, pseg_op_backward_layernorm, pseg_op_backward_groupnorm,
    pseg_op_backward_l2norm, pseg_op_backward_transpose, pseg_op_backward_tokens,
    pseg_op_backward_gather;

/* Typed arguments as generic ones. */
pseg_op_args pseg_gemm_args(const pseg_gemm *g);
pseg_op_args pseg_layernorm_args(const pseg_layernorm *l);
pseg_op_args pseg_groupnorm_args(const pseg_groupnorm *g);
pseg_op_args pseg_attention_args(const pseg_attention *t);
pseg_op_args pseg_add_args(const pseg_add *d);
pseg_op_args pseg_gather_args(const pseg_gather *g);
pseg_op_args pseg_tokens_args(const pseg_tokens *t);
pseg_op_args pseg_conv3_args(const pseg_conv3 *v);

#define N_OF(x) (sizeof(x) / sizeof *(x))

#define MAX_DIM    INT64_C(0x7fffffff)
#define MAX_STRIDE (INT64_C(1) << 40)

/* Typed arguments' sizes are size_t; anything over 2^62 is refused by the checks as too large. */
static inline int64_t pseg_dim(size_t n)
{
    return n > (size_t)1 << 62 ? INT64_C(1) << 62 : (int64_t)n;
}

static inline pseg_tensor pseg_tensor_of(pseg_view v)
{
    return (pseg_tensor){.mem = v.mem, .off = v.off, .type = v.type};
}

static inline bool pseg_has(const pseg_op_args *a, size_t slot)
{
    return a->t[slot].mem || a->t[slot].host;
}

/* The slot's first element, for references. */
static inline double *pseg_reals(const pseg_op_args *a, size_t slot)
{
    return (double *)a->t[slot].host + a->t[slot].off;
}
static inline const int32_t *pseg_ints(const pseg_op_args *a, size_t slot)
{
    return (const int32_t *)a->t[slot].host + a->t[slot].off;
}

/* Is the gradient of slot wanted? */
static inline bool pseg_wants(const pseg_op_grads *g, size_t slot)
{
    return g->t[slot].mem || g->t[slot].host;
}
static inline double *pseg_grad_reals(const pseg_op_grads *g, size_t slot)
{
    return (double *)g->t[slot].host + g->t[slot].off;
}
/* For references: sets an element of a gradient, or adds to it, as is wanted. */
static inline void pseg_grad_put(const pseg_op_grads *g, size_t slot, int64_t at, double v)
{
    double *to = pseg_grad_reals(g, slot) + at;

    *to = g->add >> slot & 1 ? *to + v : v;
}

static inline bool pseg_is_bf16(const pseg_op_args *a, size_t slot)
{
    return a->t[slot].type == PSEG_BF16;
}

static inline pseg_arg pseg_arg_of(const pseg_op_args *a, size_t slot)
{
    return a->t[slot].mem ? PSEG_ARG_MEM(a->t[slot].mem) : PSEG_ARG_NONE;
}

/* The product of n sizes; SIZE_MAX on overflow. */
size_t pseg_product(size_t n, const int64_t *sizes);
#define PSEG_PRODUCT(...) \
    pseg_product(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t), (int64_t[]){__VA_ARGS__})
/* Elements from the first to the last of n rows of c, `stride` apart; SIZE_MAX on overflow. */
size_t pseg_extent_rows(int64_t n, int64_t stride, int64_t c);
/* The same for blocks of rows. */
size_t pseg_extent_block(int64_t batch, int64_t batch_stride, int64_t n, int64_t stride, int64_t c);

/* Device memory for every tensor of the case, filled; the caller frees what is not NULL in m. */
pseg_status pseg_op_case_memory(pseg_mem *m[PSEG_OP_MAX_SLOTS], pseg_op_args *a, pseg_stream *s,
                                const pseg_op *op, const pseg_op_case *c, pseg_err *err);
/* Rows of the table: room for what is kept with a device. */
#define PSEG_MAX_ROWS 60u
_Static_assert(PSEG_MAX_ROWS *(PSEG_OP_MAX_CLASSES + PSEG_OP_MAX_FIXED / 2) <= PSEG_CL_CHOICES,
               "room in a pseg_cl");
/* Remembers with the device that the operation ran, in which types and with what fixed. */
void pseg_op_note_use(pseg_cl *cl, const pseg_op *op, const pseg_op_args *a);
/* Did it run with these types, and what these numbers fix? */
bool pseg_op_was_used(const pseg_cl *cl, size_t row, const pseg_op_args *a);
/* Launches the variant chosen, or the only way, and checks nothing. */
pseg_status pseg_op_launch(pseg_stream *s, const pseg_op *op, const pseg_op_args *a, pseg_err *err);
/* Refuses unless 1 <= i[first..first+n) < 2^31. */
pseg_status pseg_check_dims(const pseg_op *op, const pseg_op_args *a, size_t first, size_t n,
                            pseg_err *err);
pseg_status pseg_check_act(int64_t act, pseg_err *err);
size_t pseg_type_size(pseg_dtype type);
/* Refuses unless the product stays below 2^31: kernels count rows in 32 bits. */
#define PSEG_CHECK_ROWS(...) \
    PSEG_REQUIRE(PSEG_PRODUCT(__VA_ARGS__) <= (size_t)MAX_DIM, "product of dimensions")

double pseg_act_ref(double x, int64_t act);
double pseg_act_grad_ref(double x, int64_t act);

/* Launches a kernel of pointwise.cl or layout.cl, whose dimensions 0 and 1 stride over channels and
 * rows. */
pseg_status pseg_launch_rows(pseg_stream *s, const pseg_kernel *k, uint64_t rows, uint64_t c,
                             const pseg_arg *args, size_t n_args, pseg_err *err);
/* Launches a kernel of norm.cl: one work-group a row; local memory for sums is its last argument.
 */
pseg_status pseg_launch_groups(pseg_stream *s, const pseg_kernel *k, uint64_t groups,
                               pseg_arg *args, size_t n_args, pseg_err *err);

#endif
