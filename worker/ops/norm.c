#include "worker/ops/internal.h"

#include <math.h>

#define NORM_TOL_WHY                                                                             \
    "mean and variance of up to 1e5 values in 16 or more partial sums of single precision, and " \
    "an erf good to 3.3e-7"

/* ---- layernorm ---------------------------------------------------------------------------- */

enum { OUT, X, W, B };
enum { ROWS, C, X_STRIDE, OUT_STRIDE, ACT };

static const pseg_op_slot layernorm_slots[] = {
    {"out", PSEG_F32, true, false, true},
    {"x", PSEG_F32, false, false, true},
    {"w", PSEG_F32, false, true, false},
    {"b", PSEG_F32, false, true, false},
};

static pseg_status layernorm_check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_layernorm, a, ROWS, 2, err));
    PSEG_TRY(pseg_check_act(a->i[ACT], err));
    PSEG_REQUIRE(a->i[X_STRIDE] >= a->i[C] && a->i[X_STRIDE] <= MAX_STRIDE, "x's row stride");
    PSEG_REQUIRE(a->i[OUT_STRIDE] >= a->i[C] && a->i[OUT_STRIDE] <= MAX_STRIDE, "out's row stride");
    PSEG_REQUIRE(pseg_has(a, W) == pseg_has(a, B), "w and b");
    PSEG_REQUIRE(!pseg_is_bf16(a, X) || pseg_is_bf16(a, OUT), "a BF16 output of a BF16 x");
    PSEG_REQUIRE(a->f[0] >= 0, "eps");
out:
    return rc;
}

static size_t layernorm_extent(const pseg_op_args *a, size_t slot)
{
    switch (slot) {
    case OUT:
        return pseg_extent_rows(a->i[ROWS], a->i[OUT_STRIDE], a->i[C]);
    case X:
        return pseg_extent_rows(a->i[ROWS], a->i[X_STRIDE], a->i[C]);
    default:
        return (size_t)a->i[C];
    }
}

static bool layernorm_may_alias(const pseg_op_args *a, size_t slot)
{
    return slot == X && a->i[X_STRIDE] == a->i[OUT_STRIDE];
}

static void layernorm_ref(const pseg_op_args *a)
{
    int64_t n = a->i[C];

    for (int64_t r = 0; r < a->i[ROWS]; r++) {
        const double *x = pseg_reals(a, X) + r * a->i[X_STRIDE];
        double *out = pseg_reals(a, OUT) + r * a->i[OUT_STRIDE];
        double mean = 0, var = 0;

        for (int64_t c = 0; c < n; c++)
            mean += x[c];
        mean /= (double)n;
        for (int64_t c = 0; c < n; c++)
            var += (x[c] - mean) * (x[c] - mean);
        var /= (double)n;
        for (int64_t c = 0; c < n; c++) {
            double v = (x[c] - mean) / sqrt(var + a->f[0]);

            if (pseg_has(a, W))
                v = v * pseg_reals(a, W)[c] + pseg_reals(a, B)[c];
            out[c] = pseg_act_ref(v, a->i[ACT]);
        }
    }
}

static pseg_status layernorm_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel kernels[3] = {{"norm.cl", "layernorm", NULL},
                                           {"norm.cl", "layernorm", "-DOUT_BF16"},
                                           {"norm.cl", "layernorm", "-DIN_BF16 -DOUT_BF16"}};
    pseg_layernorm_params p = {
        .out_off = a->t[OUT].off,
        .x_off = a->t[X].off,
        .w_off = a->t[W].off,
        .b_off = a->t[B].off,
        .out_stride = (uint64_t)a->i[OUT_STRIDE],
        .x_stride = (uint64_t)a->i[X_STRIDE],
        .rows = (uint32_t)a->i[ROWS],
        .c = (uint32_t)a->i[C],
        .act = (uint32_t)a->i[ACT],
        .flags = pseg_has(a, W) ? HAS_AFFINE : 0,
        .eps = (float)a->f[0],
    };
    pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, X), pseg_arg_of(a, W),
                       pseg_arg_of(a, B),   PSEG_ARG_VALUE(p), PSEG_ARG_NONE};

    return pseg_launch_groups(s, &kernels[pseg_is_bf16(a, OUT) + pseg_is_bf16(a, X)], p.rows, args,
                              N_OF(args), err);
}

static double layernorm_flops(const pseg_op_args *a)
{
    return 8.0 * (double)a->i[ROWS] * (double)a->i[C];
}

static double layernorm_bytes(const pseg_op_args *a)
{
    return 8.0 * (double)a->i[ROWS] * (double)a->i[C];
}

static const pseg_op_case layernorm_cases[] = {
    {"one", {1, 1, 1, 1, 0}, {1e-5}, 0, 0, 0},
    {"plain", {3, 17, 17, 17, 0}, {1e-6}, 1u << W | 1u << B, 0, 0},
    {"odd", {5, 100, 100, 100, 0}, {1e-6}, 0, 0, 0},
    {"strides", {7, 33, 40, 50, 0}, {1e-5}, 0, 0, 0},
    {"gelu", {19, 64, 64, 64, PSEG_ACT_GELU}, {1e-6}, 0, 0, 0},
    {"in place", {4, 48, 48, 48, 0}, {1e-6}, 0, 1u << X, 0},
    {"many rows", {300, 16, 16, 16, 0}, {1e-6}, 0, 0, 0},
    {"dinov2-base", {257, 768, 768, 768, 0}, {1e-6}, 0, 0, PSEG_CASE_BIG | PSEG_CASE_REAL},
    {"clip", {20, 512, 512, 512, 0}, {1e-5}, 0, 0, PSEG_CASE_REAL},
    {"upsampler",
     {4096, 64, 64, 64, PSEG_ACT_GELU},
     {1e-6},
     0,
     1u << X,
     PSEG_CASE_BIG | PSEG_CASE_REAL},
    {"upsampler, batch 32",
     {32768, 128, 128, 128, PSEG_ACT_GELU},
     {1e-6},
     0,
     0,
     PSEG_CASE_REAL | PSEG_CASE_BIG | PSEG_CASE_SLOW},
    {"to BF16", {3, 37, 40, 38, PSEG_ACT_NONE}, {1e-5}, 0, 0, 0, 1u << OUT},
    {"to BF16, dinov2-base",
     {257, 768, 768, 768, PSEG_ACT_NONE},
     {1e-6},
     0,
     0,
     PSEG_CASE_BIG | PSEG_CASE_REAL,
     1u << OUT},
    {"BF16, in place", {4, 48, 48, 48, PSEG_ACT_GELU}, {1e-6}, 0, 1u << X, 0, 1u << OUT | 1u << X},
    {"BF16, strides", {5, 33, 40, 50, 0}, {1e-6}, 0, 0, 0, 1u << OUT | 1u << X},
};

const pseg_op pseg_op_row_layernorm = {
    .name = "layernorm",
    .slots = layernorm_slots,
    .n_slots = N_OF(layernorm_slots),
    .params = "rows, c, x_stride, out_stride, act; eps",
    .check = layernorm_check,
    .extent = layernorm_extent,
    .may_alias = layernorm_may_alias,
    .ref = layernorm_ref,
    .launch = layernorm_launch,
    .backward = &pseg_op_backward_layernorm,
    .flops = layernorm_flops,
    .bytes = layernorm_bytes,
    .tol = {5e-6, 5e-6, 1e-12},
    .tol_why = NORM_TOL_WHY,
    .cases = layernorm_cases,
    .n_cases = N_OF(layernorm_cases),
};

pseg_op_args pseg_layernorm_args(const pseg_layernorm *l)
{
    return (pseg_op_args){
        .t = {pseg_tensor_of(l->out), pseg_tensor_of(l->x), pseg_tensor_of(l->w),
              pseg_tensor_of(l->b)},
        .i = {pseg_dim(l->rows), pseg_dim(l->c), pseg_dim(l->x_stride ? l->x_stride : l->c),
              pseg_dim(l->out_stride ? l->out_stride : l->c), l->act},
        .f = {l->eps},
    };
}

pseg_status pseg_op_layernorm(pseg_stream *s, const pseg_layernorm *l, pseg_err *err)
{
    pseg_op_args a = pseg_layernorm_args(l);

    return pseg_op_run(s, &pseg_op_row_layernorm, &a, err);
}

/* ---- groupnorm ---------------------------------------------------------------------------- */

enum { G_BATCH, G_HW, G_C, G_GROUPS, G_ACT };

static const pseg_op_slot groupnorm_slots[] = {
    {"out", PSEG_F32, true, false},
    {"x", PSEG_F32, false, false},
    {"w", PSEG_F32, false, false},
    {"b", PSEG_F32, false, false},
};

static pseg_status groupnorm_check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_groupnorm, a, G_BATCH, 4, err));
    PSEG_TRY(pseg_check_act(a->i[G_ACT], err));
    PSEG_REQUIRE(a->i[G_C] % a->i[G_GROUPS] == 0, "channels a multiple of groups");
    PSEG_CHECK_ROWS(a->i[G_BATCH], a->i[G_GROUPS]);
    PSEG_REQUIRE(a->f[0] >= 0, "eps");
out:
    return rc;
}

static size_t groupnorm_extent(const pseg_op_args *a, size_t slot)
{
    return slot <= X ? pseg_product(3, a->i) : (size_t)a->i[G_C];
}

static bool x_is_out(const pseg_op_args *a, size_t slot)
{
    (void)a;
    return slot == X;
}

static void groupnorm_ref(const pseg_op_args *a)
{
    int64_t hw = a->i[G_HW], c_all = a->i[G_C], groups = a->i[G_GROUPS], cg = c_all / groups;
    double count = (double)(hw * cg);

    for (int64_t i = 0; i < a->i[G_BATCH] * groups; i++) {
        int64_t c0 = i % groups * cg, base = i / groups * hw * c_all;
        const double *x = pseg_reals(a, X) + base;
        double mean = 0, var = 0;

        for (int64_t t = 0; t < hw; t++)
            for (int64_t c = c0; c < c0 + cg; c++)
                mean += x[t * c_all + c];
        mean /= count;
        for (int64_t t = 0; t < hw; t++)
            for (int64_t c = c0; c < c0 + cg; c++)
                var += (x[t * c_all + c] - mean) * (x[t * c_all + c] - mean);
        var /= count;
        for (int64_t t = 0; t < hw; t++)
            for (int64_t c = c0; c < c0 + cg; c++) {
                double v = (x[t * c_all + c] - mean) / sqrt(var + a->f[0]);

                v = v * pseg_reals(a, W)[c] + pseg_reals(a, B)[c];
                pseg_reals(a, OUT)[base + t * c_all + c] = pseg_act_ref(v, a->i[G_ACT]);
            }
    }
}

enum { G_ANY, G_BY_8, G_BY_4 };

/* By the channels of a group. */
static unsigned groupnorm_fixed(const pseg_op_args *a)
{
    int64_t cg = a->i[G_C] / a->i[G_GROUPS];

    return cg % 16 == 8 ? G_BY_8 : cg == 4 ? G_BY_4 : G_ANY;
}

static pseg_status groupnorm_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel kernels[] = {[G_ANY] = {"norm.cl", "groupnorm", NULL},
                                          [G_BY_8] = {"norm.cl", "groupnorm", "-DGV=8"},
                                          [G_BY_4] = {"norm.cl", "groupnorm", "-DGV=4"}};
    pseg_groupnorm_params p = {
        .out_off = a->t[OUT].off,
        .x_off = a->t[X].off,
        .w_off = a->t[W].off,
        .b_off = a->t[B].off,
        .batch = (uint32_t)a->i[G_BATCH],
        .hw = (uint32_t)a->i[G_HW],
        .c = (uint32_t)a->i[G_C],
        .groups = (uint32_t)a->i[G_GROUPS],
        .act = (uint32_t)a->i[G_ACT],
        .eps = (float)a->f[0],
    };
    pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, X), pseg_arg_of(a, W),
                       pseg_arg_of(a, B),   PSEG_ARG_VALUE(p), PSEG_ARG_NONE};
    bool is_cpu = pseg_cl_variant_of(pseg_stream_cl(s)) == PSEG_CL_CPU;
    const pseg_kernel *k = &kernels[is_cpu ? groupnorm_fixed(a) : G_ANY];

    return pseg_launch_groups(s, k, (uint64_t)p.batch * p.groups, args, N_OF(args), err);
}

static double groupnorm_flops(const pseg_op_args *a)
{
    return 8.0 * (double)a->i[0] * (double)a->i[1] * (double)a->i[2];
}

static double groupnorm_bytes(const pseg_op_args *a)
{
    return 8.0 * (double)a->i[0] * (double)a->i[1] * (double)a->i[2];
}

static const pseg_op_case groupnorm_cases[] = {
    {"small", {1, 2, 6, 2, 0}, {1e-5}, 0, 0, 0},
    {"many samples", {140, 2, 6, 2, 0}, {1e-5}, 0, 0, 0},
    {"a group a channel", {2, 9, 5, 5, 0}, {1e-5}, 0, 0, 0},
    {"one group", {1, 7, 20, 1, PSEG_ACT_GELU}, {1e-5}, 0, 0, 0},
    {"groups of 8, odd tokens", {2, 13, 24, 3, PSEG_ACT_GELU}, {1e-5}, 0, 0, 0},
    {"groups of 4, odd tokens", {2, 15, 12, 3, PSEG_ACT_GELU}, {1e-5}, 0, 0, 0},
    {"groups of 4, few tokens", {3, 2, 8, 2, 0}, {1e-5}, 0, 0, 0},
    {"groups of 16", {1, 9, 32, 2, 0}, {1e-5}, 0, 0, 0},
    {"groups of 24", {1, 5, 48, 2, 0}, {1e-5}, 0, 0, 0},
    {"in place", {2, 10, 16, 2, PSEG_ACT_GELU}, {1e-5}, 0, 1u << X, 0},
    {"neck", {1, 256, 256, 32, PSEG_ACT_GELU}, {1e-5}, 0, 1u << X, PSEG_CASE_BIG | PSEG_CASE_REAL},
    {"neck, batch 32",
     {32, 256, 256, 32, PSEG_ACT_GELU},
     {1e-5},
     0,
     0,
     PSEG_CASE_BIG | PSEG_CASE_REAL | PSEG_CASE_SLOW},
    {"neck, batch 8",
     {8, 256, 256, 32, PSEG_ACT_GELU},
     {1e-5},
     0,
     0,
     PSEG_CASE_BIG | PSEG_CASE_REAL},
};

const pseg_op pseg_op_row_groupnorm = {
    .name = "groupnorm",
    .slots = groupnorm_slots,
    .n_slots = N_OF(groupnorm_slots),
    .params = "batch, hw, c, groups, act; eps",
    .check = groupnorm_check,
    .extent = groupnorm_extent,
    .may_alias = x_is_out,
    .ref = groupnorm_ref,
    .launch = groupnorm_launch,
    .fixed = groupnorm_fixed,
    .backward = &pseg_op_backward_groupnorm,
    .flops = groupnorm_flops,
    .bytes = groupnorm_bytes,
    .tol = {5e-6, 5e-6, 1e-12},
    .tol_why = NORM_TOL_WHY,
    .cases = groupnorm_cases,
    .n_cases = N_OF(groupnorm_cases),
};

pseg_op_args pseg_groupnorm_args(const pseg_groupnorm *g)
{
    return (pseg_op_args){
        .t = {pseg_tensor_of(g->out), pseg_tensor_of(g->x), pseg_tensor_of(g->w),
              pseg_tensor_of(g->b)},
        .i = {pseg_dim(g->b_n), pseg_dim(g->hw), pseg_dim(g->c), pseg_dim(g->groups), g->act},
        .f = {g->eps},
    };
}

pseg_status pseg_op_groupnorm(pseg_stream *s, const pseg_groupnorm *g, pseg_err *err)
{
    pseg_op_args a = pseg_groupnorm_args(g);

    return pseg_op_run(s, &pseg_op_row_groupnorm, &a, err);
}

/* ---- l2norm ------------------------------------------------------------------------------- */

static const pseg_op_slot l2norm_slots[] = {
    {"out", PSEG_F32, true, false},
    {"x", PSEG_F32, false, false},
};

static pseg_status l2norm_check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_l2norm, a, 0, 2, err));
    PSEG_REQUIRE(a->f[0] >= 0, "eps");
out:
    return rc;
}

static size_t l2norm_extent(const pseg_op_args *a, size_t slot)
{
    (void)slot;
    return pseg_product(2, a->i);
}

static void l2norm_ref(const pseg_op_args *a)
{
    int64_t n = a->i[1];

    for (int64_t r = 0; r < a->i[0]; r++) {
        const double *x = pseg_reals(a, X) + r * n;
        double sum = 0;

        for (int64_t c = 0; c < n; c++)
            sum += (double)x[c] * x[c];
        sum = sqrt(sum);
        for (int64_t c = 0; c < n; c++)
            pseg_reals(a, OUT)[r * n + c] = x[c] / (sum < a->f[0] ? a->f[0] : sum);
    }
}

static pseg_status l2norm_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel kernel = {"norm.cl", "l2norm", NULL};
    pseg_rows_params p = {
        .out_off = a->t[OUT].off,
        .x_off = a->t[X].off,
        .c = (uint64_t)a->i[1],
        .rows = (uint32_t)a->i[0],
        .eps = (float)a->f[0],
    };
    pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, X), PSEG_ARG_VALUE(p), PSEG_ARG_NONE};

    return pseg_launch_groups(s, &kernel, p.rows, args, N_OF(args), err);
}

static double l2norm_flops(const pseg_op_args *a)
{
    return 3.0 * (double)a->i[0] * (double)a->i[1];
}

static double l2norm_bytes(const pseg_op_args *a)
{
    return 8.0 * (double)a->i[0] * (double)a->i[1];
}

static const pseg_op_case l2norm_cases[] = {
    {"one", {1, 1}, {1e-12}, 0, 0, 0},
    {"odd", {3, 37}, {1e-12}, 0, 0, 0},
    {"eps wins", {2, 20}, {100.0}, 0, 0, 0},
    {"text", {8, 512}, {1e-12}, 0, 1u << X, PSEG_CASE_REAL},
};

const pseg_op pseg_op_row_l2norm = {
    .name = "l2norm",
    .slots = l2norm_slots,
    .n_slots = N_OF(l2norm_slots),
    .params = "rows, c; eps",
    .check = l2norm_check,
    .extent = l2norm_extent,
    .may_alias = x_is_out,
    .ref = l2norm_ref,
    .launch = l2norm_launch,
    .backward = &pseg_op_backward_l2norm,
    .flops = l2norm_flops,
    .bytes = l2norm_bytes,
    .tol = {1e-6, 2e-6, 1e-12},
    .tol_why = NORM_TOL_WHY,
    .cases = l2norm_cases,
    .n_cases = N_OF(l2norm_cases),
};

pseg_status pseg_op_l2norm(pseg_stream *s, pseg_view out, pseg_view x, size_t rows, size_t c,
                           float eps, pseg_err *err)
{
    pseg_op_args a = {.t = {pseg_tensor_of(out), pseg_tensor_of(x)},
                      .i = {pseg_dim(rows), pseg_dim(c)},
                      .f = {eps}};

    return pseg_op_run(s, &pseg_op_row_l2norm, &a, err);
}
