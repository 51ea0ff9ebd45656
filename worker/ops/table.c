#include "worker/ops/internal.h"

#include <math.h>
#include <string.h>

const pseg_op *const pseg_ops[] = {
    &pseg_op_row_gemm,     &pseg_op_row_layernorm, &pseg_op_row_groupnorm,
    &pseg_op_row_l2norm,   &pseg_op_row_attention, &pseg_op_row_tree_attention,
    &pseg_op_row_patches,  &pseg_op_row_tokens,    &pseg_op_row_gather,
    &pseg_op_row_copy,     &pseg_op_row_add,       &pseg_op_row_act,
    &pseg_op_row_swiglu,   &pseg_op_row_maskdot,   &pseg_op_row_im2col3,
    &pseg_op_row_shuffle2, &pseg_op_row_transpose, &pseg_op_row_conv3,
};
const size_t pseg_n_ops = N_OF(pseg_ops);
_Static_assert(N_OF(pseg_ops) <= PSEG_MAX_ROWS, "rows");

/* The kernels count activations by the same numbers. */
_Static_assert(PSEG_ACT_NONE == ACT_NONE && PSEG_ACT_GELU == ACT_GELU &&
                   PSEG_ACT_QUICK_GELU == ACT_QUICK_GELU && PSEG_ACT_RELU == ACT_RELU &&
                   PSEG_ACT_SILU == ACT_SILU && PSEG_ACT_SIGMOID == ACT_SIGMOID &&
                   PSEG_PANEL == PANEL,
               "kernels/params.h and worker/ops/ops.h differ");

const pseg_op *pseg_op_find(const char *name)
{
    for (size_t i = 0; i < pseg_n_ops; i++)
        if (strcmp(pseg_ops[i]->name, name) == 0)
            return pseg_ops[i];
    return NULL;
}

/* ---- sizes -------------------------------------------------------------------------------- */

size_t pseg_product(size_t n, const int64_t *sizes)
{
    size_t p = 1;

    for (size_t i = 0; i < n; i++)
        if (sizes[i] < 0 || __builtin_mul_overflow(p, (size_t)sizes[i], &p))
            return SIZE_MAX;
    return p;
}

size_t pseg_extent_rows(int64_t n, int64_t stride, int64_t c)
{
    return pseg_extent_block(1, 0, n, stride, c);
}

size_t pseg_extent_block(int64_t batch, int64_t batch_stride, int64_t n, int64_t stride, int64_t c)
{
    size_t a, b, e;

    if (batch < 1 || n < 1 || c < 1 || stride < 0 || batch_stride < 0)
        return SIZE_MAX;
    if (__builtin_mul_overflow((size_t)batch - 1, (size_t)batch_stride, &a) ||
        __builtin_mul_overflow((size_t)n - 1, (size_t)stride, &b) ||
        __builtin_add_overflow(a, b, &e) || __builtin_add_overflow(e, (size_t)c, &e))
        return SIZE_MAX;
    return e;
}

/* ---- checks ------------------------------------------------------------------------------- */

pseg_status pseg_check_dims(const pseg_op *op, const pseg_op_args *a, size_t first, size_t n,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t i = first; i < first + n; i++)
        if (a->i[i] < 1 || a->i[i] > MAX_DIM)
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                      "%s: dimension %zu of (%s) is %lld; allowed are 1 to 2^31-1", op->name, i,
                      op->params, (long long)a->i[i]);
out:
    return rc;
}

pseg_status pseg_check_act(int64_t act, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(act >= PSEG_ACT_NONE && act <= PSEG_ACT_SIGMOID, "activation");
out:
    return rc;
}

size_t pseg_type_size(pseg_dtype type)
{
    return type == PSEG_F16 || type == PSEG_BF16 ? sizeof(uint16_t) : sizeof(float);
}

static bool overlaps(const pseg_tensor *a, size_t an, const pseg_tensor *b, size_t bn)
{
    size_t sa = pseg_type_size(a->type), sb = pseg_type_size(b->type);

    return sa * a->off < sb * (b->off + bn) && sb * b->off < sa * (a->off + an);
}

pseg_status pseg_op_check(const pseg_op *op, const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t extent[PSEG_OP_MAX_SLOTS];

    PSEG_TRY(op->check(a, err));
    for (size_t i = 0; i < op->n_slots; i++) {
        const pseg_tensor *t = &a->t[i];
        size_t have = 0;

        extent[i] = 0;
        if (!pseg_has(a, i)) {
            if (!op->slots[i].is_optional)
                PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s: tensor %s is missing", op->name,
                          op->slots[i].name);
            continue;
        }
        if (t->type == PSEG_F16 || (t->type == PSEG_BF16 && !op->slots[i].may_be_bf16) ||
            (t->type == PSEG_BF16X2 && !op->slots[i].may_be_bf16x2))
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s: tensor %s cannot be of type %d", op->name,
                      op->slots[i].name, (int)t->type);
        extent[i] = op->extent(a, i);
        if (!t->mem)
            continue;
        have = pseg_mem_size(t->mem) / pseg_type_size(t->type);
        if (t->off > have || extent[i] > have - t->off)
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                      "%s: tensor %s needs %zu elements at %zu; its buffer holds %zu", op->name,
                      op->slots[i].name, extent[i], t->off, have);
    }
    for (size_t i = 1; i < op->n_slots; i++) {
        if (!a->t[i].mem || a->t[i].mem != a->t[0].mem ||
            !overlaps(&a->t[0], extent[0], &a->t[i], extent[i]))
            continue;
        if (a->t[i].off != a->t[0].off || a->t[i].type != a->t[0].type || !op->may_alias ||
            !op->may_alias(a, i))
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s: the output overlaps tensor %s", op->name,
                      op->slots[i].name);
    }
out:
    return rc;
}

pseg_status pseg_op_launch(pseg_stream *s, const pseg_op *op, const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (op->variants) {
        const pseg_op_variant *v = pseg_op_choose(pseg_stream_cl(s), op, a);

        PSEG_ASSERT(v != NULL);
        PSEG_TRY(op->variants->launch(s, v, a, err));
    } else {
        PSEG_TRY(op->launch(s, a, err));
    }
out:
    return rc;
}

pseg_status pseg_op_run(pseg_stream *s, const pseg_op *op, const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_op_check(op, a, err));
    PSEG_TRY(pseg_op_launch(s, op, a, err));
    pseg_op_note_use(pseg_stream_cl(s), op, a);
    pseg_stream_credit(s, op->flops(a), op->bytes(a));
out:
    return rc;
}

/* ---- references --------------------------------------------------------------------------- */

double pseg_act_ref(double x, int64_t act)
{
    switch (act) {
    case PSEG_ACT_GELU:
        return x == -INFINITY ? 0.0 : 0.5 * x * erfc(-x * M_SQRT1_2);
    case PSEG_ACT_QUICK_GELU:
        return x == -INFINITY ? 0.0 : x / (1.0 + exp(-1.702 * x));
    case PSEG_ACT_RELU:
        return x < 0.0 ? 0.0 : x;
    case PSEG_ACT_SILU:
        return x == -INFINITY ? 0.0 : x / (1.0 + exp(-x));
    case PSEG_ACT_SIGMOID:
        return 1.0 / (1.0 + exp(-x));
    default:
        return x;
    }
}

static double swish_grad(double x, double a)
{
    double s = 1.0 / (1.0 + exp(-a * x));

    return isinf(x) ? s : s + a * x * s * (1.0 - s);
}

double pseg_act_grad_ref(double x, int64_t act)
{
    double s = 1.0 / (1.0 + exp(-x));

    switch (act) {
    case PSEG_ACT_GELU:
        return 0.5 * erfc(-x * M_SQRT1_2) +
               (isinf(x) ? 0.0 : x * exp(-0.5 * x * x) * 0.5 * M_SQRT1_2 * M_2_SQRTPI);
    case PSEG_ACT_QUICK_GELU:
        return swish_grad(x, 1.702);
    case PSEG_ACT_RELU:
        return x <= 0.0 ? 0.0 : 1.0;
    case PSEG_ACT_SILU:
        return swish_grad(x, 1.0);
    case PSEG_ACT_SIGMOID:
        return s * (1.0 - s);
    default:
        return 1.0;
    }
}

/* ---- launches ----------------------------------------------------------------------------- */

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

pseg_status pseg_launch_rows(pseg_stream *s, const pseg_kernel *k, uint64_t rows, uint64_t c,
                             const pseg_arg *args, size_t n_args, pseg_err *err)
{
    const pseg_cl *cl = pseg_stream_cl(s);
    size_t global[2], local[2] = {1, 1};

    if (pseg_cl_variant_of(cl) == PSEG_CL_CPU) {
        /* Enough items to balance the cores, few enough that starting them costs nothing. */
        uint64_t items = 32 * (uint64_t)pseg_cl_device(cl)->compute_units;

        global[0] = rows > 1 ? 1 : (size_t)least((c + 15) / 16, items);
        global[1] = (size_t)least(rows, items);
    } else {
        local[0] = 64;
        global[0] = (size_t)least((c + 63) / 64 * 64, rows > 1 ? 1024 : 1u << 20);
        global[1] = (size_t)least(rows, 1u << 16);
    }
    return pseg_launch(s, k, 2, global, local, args, n_args, err);
}

pseg_status pseg_launch_groups(pseg_stream *s, const pseg_kernel *k, uint64_t groups,
                               pseg_arg *args, size_t n_args, pseg_err *err)
{
    const pseg_cl *cl = pseg_stream_cl(s);
    size_t local = 1, global;

    if (pseg_cl_variant_of(cl) == PSEG_CL_CPU) {
        global = (size_t)least(groups, 32 * (uint64_t)pseg_cl_device(cl)->compute_units);
    } else {
        local = 64;
        global = (size_t)groups * local;
    }
    args[n_args - 1] = PSEG_ARG_LOCAL(local * sizeof(float));
    return pseg_launch(s, k, 1, &global, &local, args, n_args, err);
}

/* ---- cases -------------------------------------------------------------------------------- */

void pseg_op_case_args(pseg_op_args *out, const pseg_op_case *c)
{
    memset(out, 0, sizeof *out);
    memcpy(out->i, c->i, sizeof out->i);
    memcpy(out->f, c->f, sizeof out->f);
    for (size_t i = 0; i < PSEG_OP_MAX_SLOTS; i++)
        out->t[i].type = c->bf16 >> i & 1 ? PSEG_BF16 : c->bf16x2 >> i & 1 ? PSEG_BF16X2 : PSEG_F32;
}

pseg_op_tol pseg_op_case_tol(const pseg_op *op, const pseg_op_case *c)
{
    pseg_op_tol t = op->tol;

    if (c->bf16 & 1) {
        t.abs += 4e-3;
        t.rel += 0x1p-8;
        t.nmse += 1e-5;
    }
    if (c->bf16x2)
        t.nmse += 1e-10; /* 2^-17 each way, at random: 5e-11 */
    return t;
}

bool pseg_op_case_has(const pseg_op *op, const pseg_op_case *c, size_t slot)
{
    return slot < op->n_slots && !(op->slots[slot].is_optional && (c->absent >> slot & 1));
}

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t next_random(uint64_t *seed)
{
    uint64_t z = *seed += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

void pseg_op_fill(void *out, const pseg_op *op, const pseg_op_args *a, size_t slot, size_t n,
                  uint64_t *seed)
{
    int32_t lo = 0, hi = 0;

    if (op->slots[slot].type == PSEG_I32) {
        op->int_range(a, slot, &lo, &hi);
        for (size_t i = 0; i < n; i++)
            ((int32_t *)out)[i] =
                lo + (int32_t)(next_random(seed) % (uint64_t)((int64_t)hi - lo + 1));
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint64_t r = next_random(seed);

        ((float *)out)[i] = pseg_is_bf16(a, slot)            ? (float)(r >> 56) * 0x1p-7f - 1.0f
                            : a->t[slot].type == PSEG_BF16X2 ? (float)(r >> 49) * 0x1p-14f - 1.0f
                                                             : (float)(r >> 40) * 0x1p-23f - 1.0f;
    }
}
