#include "worker/ops/internal.h"

#include <math.h>

enum { OUT, X, Y };

#define EXACT_WHY "moves or adds single values: at most one rounding"

static bool x_is_out(const pseg_op_args *a, size_t slot)
{
    (void)a;
    return slot == X;
}

/* ---- act ---------------------------------------------------------------------------------- */

static const pseg_op_slot unary_slots[] = {
    {"out", PSEG_F32, true, false},
    {"x", PSEG_F32, false, false},
};

static pseg_status act_check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(a->i[0] >= 1 && a->i[0] <= MAX_STRIDE, "number of elements");
    PSEG_TRY(pseg_check_act(a->i[1], err));
out:
    return rc;
}

static size_t act_extent(const pseg_op_args *a, size_t slot)
{
    (void)slot;
    return (size_t)a->i[0];
}

static void act_ref(const pseg_op_args *a)
{
    for (int64_t n = 0; n < a->i[0]; n++)
        pseg_reals(a, OUT)[n] = pseg_act_ref(pseg_reals(a, X)[n], a->i[1]);
}

static pseg_status act_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel kernel = {"pointwise.cl", "act", NULL};
    pseg_rows_params p = {.out_off = a->t[OUT].off,
                          .x_off = a->t[X].off,
                          .c = (uint64_t)a->i[0],
                          .rows = 1,
                          .act = (uint32_t)a->i[1]};
    pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, X), PSEG_ARG_VALUE(p)};

    return pseg_launch_rows(s, &kernel, 1, p.c, args, N_OF(args), err);
}

static double act_flops(const pseg_op_args *a)
{
    return 20.0 * (double)a->i[0];
}

static double act_bytes(const pseg_op_args *a)
{
    return 8.0 * (double)a->i[0];
}

static const pseg_op_case act_cases[] = {
    {"copy", {7, PSEG_ACT_NONE}, {0}, 0, 0, 0},
    {"gelu", {33, PSEG_ACT_GELU}, {0}, 0, 0, 0},
    {"quick gelu", {100, PSEG_ACT_QUICK_GELU}, {0}, 0, 0, 0},
    {"relu", {17, PSEG_ACT_RELU}, {0}, 0, 1u << X, 0},
    {"silu", {1, PSEG_ACT_SILU}, {0}, 0, 0, 0},
    {"sigmoid", {1000, PSEG_ACT_SIGMOID}, {0}, 0, 0, 0},
    {"gelu of a map", {257 * 3072, PSEG_ACT_GELU}, {0}, 0, 1u << X, PSEG_CASE_BIG | PSEG_CASE_REAL},
};

const pseg_op pseg_op_row_act = {
    .name = "act",
    .slots = unary_slots,
    .n_slots = N_OF(unary_slots),
    .params = "n, act",
    .check = act_check,
    .extent = act_extent,
    .may_alias = x_is_out,
    .ref = act_ref,
    .launch = act_launch,
    .backward = &pseg_op_backward_act,
    .flops = act_flops,
    .bytes = act_bytes,
    .tol = {5e-7, 5e-7, 1e-13},
    .tol_why = "erf is good to 3.3e-7 and exp to 1.5 units in the last place",
    .cases = act_cases,
    .n_cases = N_OF(act_cases),
};

pseg_status pseg_op_act(pseg_stream *s, pseg_view out, pseg_view x, size_t n, pseg_act act,
                        pseg_err *err)
{
    pseg_op_args a = {.t = {pseg_tensor_of(out), pseg_tensor_of(x)}, .i = {pseg_dim(n), act}};

    return pseg_op_run(s, &pseg_op_row_act, &a, err);
}

/* ---- swiglu ------------------------------------------------------------------------------- */

static const pseg_op_slot swiglu_slots[] = {
    {"out", PSEG_F32, true, false, true},
    {"x", PSEG_F32, false, false, true},
};

static pseg_status swiglu_check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_swiglu, a, 0, 2, err));
    PSEG_REQUIRE(pseg_is_bf16(a, X) == pseg_is_bf16(a, OUT), "x and out of one type");
out:
    return rc;
}

static size_t swiglu_extent(const pseg_op_args *a, size_t slot)
{
    return PSEG_PRODUCT(a->i[0], a->i[1], slot == OUT ? 1 : 2);
}

static void swiglu_ref(const pseg_op_args *a)
{
    int64_t n = a->i[1];

    for (int64_t r = 0; r < a->i[0]; r++) {
        const double *x = pseg_reals(a, X) + r * 2 * n;

        for (int64_t c = 0; c < n; c++)
            pseg_reals(a, OUT)[r * n + c] = pseg_act_ref(x[c], PSEG_ACT_SILU) * x[n + c];
    }
}

static pseg_status swiglu_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel kernels[2] = {{"pointwise.cl", "swiglu", NULL},
                                           {"pointwise.cl", "swiglu", "-DIN_BF16 -DOUT_BF16"}};
    pseg_rows_params p = {.out_off = a->t[OUT].off,
                          .x_off = a->t[X].off,
                          .c = (uint64_t)a->i[1],
                          .rows = (uint32_t)a->i[0]};
    pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, X), PSEG_ARG_VALUE(p)};

    return pseg_launch_rows(s, &kernels[pseg_is_bf16(a, OUT)], p.rows, p.c, args, N_OF(args), err);
}

static double swiglu_flops(const pseg_op_args *a)
{
    return 12.0 * (double)a->i[0] * (double)a->i[1];
}

static double swiglu_bytes(const pseg_op_args *a)
{
    return 12.0 * (double)a->i[0] * (double)a->i[1];
}

static const pseg_op_case swiglu_cases[] = {
    {"one", {1, 1}, {0}, 0, 0, 0},
    {"odd", {5, 45}, {0}, 0, 0, 0},
    {"dinov2-giant", {257, 4096}, {0}, 0, 0, PSEG_CASE_BIG | PSEG_CASE_REAL},
    {"BF16", {5, 45}, {0}, 0, 0, 0, 1u << OUT | 1u << X},
};

const pseg_op pseg_op_row_swiglu = {
    .name = "swiglu",
    .slots = swiglu_slots,
    .n_slots = N_OF(swiglu_slots),
    .params = "rows, c",
    .check = swiglu_check,
    .extent = swiglu_extent,
    .ref = swiglu_ref,
    .launch = swiglu_launch,
    .backward = &pseg_op_backward_swiglu,
    .flops = swiglu_flops,
    .bytes = swiglu_bytes,
    .tol = {5e-7, 5e-7, 1e-13},
    .tol_why = "exp is good to 1.5 units in the last place",
    .cases = swiglu_cases,
    .n_cases = N_OF(swiglu_cases),
};

pseg_status pseg_op_swiglu(pseg_stream *s, pseg_view out, pseg_view x, size_t rows, size_t c,
                           pseg_err *err)
{
    pseg_op_args a = {.t = {pseg_tensor_of(out), pseg_tensor_of(x)},
                      .i = {pseg_dim(rows), pseg_dim(c)}};

    return pseg_op_run(s, &pseg_op_row_swiglu, &a, err);
}

/* ---- copy and add ------------------------------------------------------------------------- */

/* Both take the parameters of add; copy has no y. */
enum { BATCH, N, C, OUT_BATCH, OUT_ROW, X_BATCH, X_ROW, Y_BATCH, Y_ROW };

static const pseg_op_slot add_slots[] = {
    {"out", PSEG_F32, true, false, true},
    {"x", PSEG_F32, false, false},
    {"y", PSEG_F32, false, false},
};

static const pseg_op_slot copy_slots[] = {
    {"out", PSEG_F32, true, false, true},
    {"x", PSEG_F32, false, false, false},
};

static pseg_status block_check(const pseg_op *op, const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;

    PSEG_TRY(pseg_check_dims(op, a, BATCH, 3, err));
    PSEG_CHECK_ROWS(i[BATCH], i[N]);
    for (int s = OUT_BATCH; s <= Y_ROW; s++)
        PSEG_REQUIRE(i[s] >= 0 && i[s] <= MAX_STRIDE, "stride");
    PSEG_REQUIRE(i[N] == 1 || i[OUT_ROW] >= i[C], "out's row stride: rows would overlap");
    PSEG_REQUIRE(i[BATCH] == 1 || (size_t)i[OUT_BATCH] >= pseg_extent_rows(i[N], i[OUT_ROW], i[C]),
                 "out's batch stride: samples would overlap");
out:
    return rc;
}

static pseg_status copy_check(const pseg_op_args *a, pseg_err *err)
{
    return block_check(&pseg_op_row_copy, a, err);
}

static pseg_status add_check(const pseg_op_args *a, pseg_err *err)
{
    return block_check(&pseg_op_row_add, a, err);
}

static size_t add_extent(const pseg_op_args *a, size_t slot)
{
    const int64_t *i = a->i, *stride = i + OUT_BATCH + 2 * slot;

    return pseg_extent_block(i[BATCH], stride[0], i[N], stride[1], i[C]);
}

static bool add_may_alias(const pseg_op_args *a, size_t slot)
{
    const int64_t *i = a->i, *stride = i + OUT_BATCH + 2 * slot;

    return (i[BATCH] == 1 || stride[0] == i[OUT_BATCH]) && (i[N] == 1 || stride[1] == i[OUT_ROW]);
}

static void add_ref(const pseg_op_args *a)
{
    const int64_t *i = a->i;
    float alpha = (float)a->f[0];

    for (int64_t b = 0; b < i[BATCH]; b++)
        for (int64_t n = 0; n < i[N]; n++)
            for (int64_t c = 0; c < i[C]; c++) {
                double v = pseg_reals(a, X)[b * i[X_BATCH] + n * i[X_ROW] + c];

                if (pseg_has(a, Y))
                    v += (double)alpha * pseg_reals(a, Y)[b * i[Y_BATCH] + n * i[Y_ROW] + c];
                else
                    v *= alpha;
                pseg_reals(a, OUT)[b * i[OUT_BATCH] + n * i[OUT_ROW] + c] = v;
            }
}

static pseg_status add_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel copy[2] = {{"pointwise.cl", "copy", NULL},
                                        {"pointwise.cl", "copy", "-DOUT_BF16"}};
    static const pseg_kernel add[2] = {{"pointwise.cl", "add", NULL},
                                       {"pointwise.cl", "add", "-DOUT_BF16"}};
    const int64_t *i = a->i;
    pseg_add_params p = {
        .out_off = a->t[OUT].off,
        .x_off = a->t[X].off,
        .y_off = a->t[Y].off,
        .out_batch = (uint64_t)i[OUT_BATCH],
        .out_row = (uint64_t)i[OUT_ROW],
        .x_batch = (uint64_t)i[X_BATCH],
        .x_row = (uint64_t)i[X_ROW],
        .y_batch = (uint64_t)i[Y_BATCH],
        .y_row = (uint64_t)i[Y_ROW],
        .batch = (uint32_t)i[BATCH],
        .n = (uint32_t)i[N],
        .c = (uint32_t)i[C],
        .alpha = (float)a->f[0],
    };
    uint64_t rows = (uint64_t)p.batch * p.n;

    if (pseg_has(a, Y)) {
        pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, X), pseg_arg_of(a, Y),
                           PSEG_ARG_VALUE(p)};

        return pseg_launch_rows(s, &add[pseg_is_bf16(a, OUT)], rows, p.c, args, N_OF(args), err);
    }
    pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, X), PSEG_ARG_VALUE(p)};

    return pseg_launch_rows(s, &copy[pseg_is_bf16(a, OUT)], rows, p.c, args, N_OF(args), err);
}

static double add_flops(const pseg_op_args *a)
{
    return (pseg_has(a, Y) ? 2.0 : 1.0) * (double)a->i[BATCH] * (double)a->i[N] * (double)a->i[C];
}

static double add_bytes(const pseg_op_args *a)
{
    return (pseg_has(a, Y) ? 12.0 : 8.0) * (double)a->i[BATCH] * (double)a->i[N] * (double)a->i[C];
}

static const pseg_op_case copy_cases[] = {
    {"one", {1, 1, 1, 1, 1, 1, 1}, {1.0}, 0, 0, 0},
    {"scaled", {1, 1, 37, 0, 0, 0, 0}, {-2.5}, 0, 0, 0},
    {"to BF16", {2, 4, 20, 80, 20, 120, 24}, {1.0}, 0, 0, 0, 1u << OUT},
    {"in place", {2, 3, 17, 51, 17, 51, 17}, {0.5}, 0, 1u << X, 0},
    {"slice", {2, 4, 20, 80, 20, 120, 24}, {1.0}, 0, 0, 0},
    {"broadcast", {3, 5, 33, 200, 36, 0, 33}, {1.0}, 0, 0, 0},
    {"drop cls",
     {8, 256, 768, 196608, 768, 197376, 768},
     {1.0},
     0,
     0,
     PSEG_CASE_BIG | PSEG_CASE_REAL},
};

const pseg_op pseg_op_row_copy = {
    .name = "copy",
    .slots = copy_slots,
    .n_slots = N_OF(copy_slots),
    .params = "batch, n, c, out_batch, out_row, x_batch, x_row; alpha",
    .check = copy_check,
    .extent = add_extent,
    .may_alias = add_may_alias,
    .ref = add_ref,
    .launch = add_launch,
    .backward = &pseg_op_backward_copy,
    .flops = add_flops,
    .bytes = add_bytes,
    .tol = {0, 1.2e-7, 1e-14},
    .tol_why = EXACT_WHY,
    .cases = copy_cases,
    .n_cases = N_OF(copy_cases),
};

static const pseg_op_case add_cases[] = {
    {"one", {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1.0}, 0, 0, 0},
    {"odd", {2, 3, 19, 60, 20, 57, 19, 63, 21}, {-0.5}, 0, 0, 0},
    {"bias", {2, 5, 40, 200, 40, 200, 40, 0, 0}, {1.0}, 0, 1u << X, 0},
    {"to BF16", {2, 3, 19, 60, 20, 57, 19, 63, 21}, {-0.5}, 0, 0, 0, 1u << OUT},
    {"a sum of many rows", {3, 50, 5, 250, 5, 250, 5, 0, 0}, {1.0}, 0, 0, 0},
    {"a sum over samples", {140, 2, 5, 10, 5, 10, 5, 0, 5}, {-2.0}, 0, 0, 0},
    {"a sum of very many rows", {1, 20000, 3, 0, 3, 0, 3, 0, 0}, {1.0}, 0, 0, PSEG_CASE_BIG},
    {"into y", {2, 5, 23, 115, 23, 0, 23, 115, 23}, {2.0}, 0, 1u << Y, 0},
    {"position",
     {4, 256, 256, 65536, 256, 65536, 256, 0, 256},
     {1.0},
     0,
     0,
     PSEG_CASE_BIG | PSEG_CASE_REAL},
};

const pseg_op pseg_op_row_add = {
    .name = "add",
    .slots = add_slots,
    .n_slots = 3,
    .params = "batch, n, c, out_batch, out_row, x_batch, x_row, y_batch, y_row; alpha",
    .check = add_check,
    .extent = add_extent,
    .may_alias = add_may_alias,
    .ref = add_ref,
    .launch = add_launch,
    .backward = &pseg_op_backward_add,
    .flops = add_flops,
    .bytes = add_bytes,
    .tol = {3e-7, 1.2e-7, 1e-13},
    .tol_why = EXACT_WHY " of the product and one of the sum, of values below 3",
    .cases = add_cases,
    .n_cases = N_OF(add_cases),
};

pseg_status pseg_op_copy(pseg_stream *s, pseg_block out, pseg_block x, size_t batch, size_t n,
                         size_t c, float alpha, pseg_err *err)
{
    pseg_op_args a = {
        .t = {pseg_tensor_of(out.v), pseg_tensor_of(x.v)},
        .i = {pseg_dim(batch), pseg_dim(n), pseg_dim(c), pseg_dim(out.batch), pseg_dim(out.row),
              pseg_dim(x.batch), pseg_dim(x.row)},
        .f = {alpha},
    };

    return pseg_op_run(s, &pseg_op_row_copy, &a, err);
}

pseg_op_args pseg_add_args(const pseg_add *d)
{
    return (pseg_op_args){
        .t = {pseg_tensor_of(d->out.v), pseg_tensor_of(d->x.v), pseg_tensor_of(d->y.v)},
        .i = {pseg_dim(d->batch), pseg_dim(d->n), pseg_dim(d->c), pseg_dim(d->out.batch),
              pseg_dim(d->out.row), pseg_dim(d->x.batch), pseg_dim(d->x.row), pseg_dim(d->y.batch),
              pseg_dim(d->y.row)},
        .f = {d->alpha},
    };
}

pseg_status pseg_op_add(pseg_stream *s, const pseg_add *d, pseg_err *err)
{
    pseg_op_args a = pseg_add_args(d);

    return pseg_op_run(s, &pseg_op_row_add, &a, err);
}

/* ---- maskdot ------------------------------------------------------------------------------ */

enum { MD_BATCH, MD_Q, MD_N, MD_C };

static const pseg_op_slot maskdot_slots[] = {
    {"out", PSEG_F32, true, false, false},
    {"q", PSEG_F32, false, false, false},
    {"x", PSEG_F32, false, false, true},
};

static pseg_status maskdot_check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_maskdot, a, 0, 4, err));
    PSEG_CHECK_ROWS(a->i[MD_BATCH], a->i[MD_N]);
out:
    return rc;
}

static size_t maskdot_extent(const pseg_op_args *a, size_t slot)
{
    const int64_t *i = a->i;

    return slot == OUT ? PSEG_PRODUCT(i[MD_BATCH], i[MD_Q], i[MD_N])
           : slot == X ? PSEG_PRODUCT(i[MD_BATCH], i[MD_Q], i[MD_C])
                       : PSEG_PRODUCT(i[MD_BATCH], i[MD_N], i[MD_C]);
}

static void maskdot_ref(const pseg_op_args *a)
{
    const int64_t *i = a->i;

    for (int64_t m = 0; m < i[MD_BATCH] * i[MD_Q]; m++)
        for (int64_t n = 0; n < i[MD_N]; n++) {
            const double *q = pseg_reals(a, 1) + m * i[MD_C];
            const double *x = pseg_reals(a, 2) + (m / i[MD_Q] * i[MD_N] + n) * i[MD_C];
            double sum = 0;

            for (int64_t c = 0; c < i[MD_C]; c++)
                sum += (double)q[c] * x[c];
            pseg_reals(a, OUT)[m * i[MD_N] + n] = sum;
        }
}

static pseg_status maskdot_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel kernels[2] = {{"pointwise.cl", "maskdot", NULL},
                                           {"pointwise.cl", "maskdot", "-DIN_BF16"}};
    pseg_maskdot_params p = {
        .out_off = a->t[0].off,
        .q_off = a->t[1].off,
        .x_off = a->t[2].off,
        .batch = (uint32_t)a->i[MD_BATCH],
        .n_q = (uint32_t)a->i[MD_Q],
        .n = (uint32_t)a->i[MD_N],
        .c = (uint32_t)a->i[MD_C],
    };
    pseg_arg args[] = {pseg_arg_of(a, 0), pseg_arg_of(a, 1), pseg_arg_of(a, 2), PSEG_ARG_VALUE(p)};

    return pseg_launch_rows(s, &kernels[pseg_is_bf16(a, 2)], (uint64_t)p.batch * p.n, p.n_q, args,
                            N_OF(args), err);
}

static double maskdot_flops(const pseg_op_args *a)
{
    return 2.0 * (double)a->i[0] * (double)a->i[1] * (double)a->i[2] * (double)a->i[3];
}

static double maskdot_bytes(const pseg_op_args *a)
{
    return 4.0 * (double)a->i[MD_BATCH] * (double)a->i[MD_N] *
           ((double)a->i[MD_C] + (double)a->i[MD_Q]);
}

static const pseg_op_case maskdot_cases[] = {
    {"one", {1, 1, 1, 1}, {0}, 0, 0, 0},
    {"odd", {3, 2, 13, 19}, {0}, 0, 0, 0},
    {"very many tokens", {1, 1, 70000, 2}, {0}, 0, 0, PSEG_CASE_BIG},
    {"many masks", {1, 70, 5, 32}, {0}, 0, 0, 0},
    {"BF16", {3, 2, 13, 19}, {0}, 0, 0, 0, 1u << 2},
    {"pseg", {4, 1, 16384, 32}, {0}, 0, 0, PSEG_CASE_BIG | PSEG_CASE_REAL},
};

const pseg_op pseg_op_row_maskdot = {
    .name = "maskdot",
    .slots = maskdot_slots,
    .n_slots = N_OF(maskdot_slots),
    .params = "batch, n_q, n, c",
    .check = maskdot_check,
    .extent = maskdot_extent,
    .ref = maskdot_ref,
    .launch = maskdot_launch,
    .backward = &pseg_op_backward_maskdot,
    .flops = maskdot_flops,
    .bytes = maskdot_bytes,
    .tol = {1e-5, 1e-6, 1e-12},
    .tol_why = "a sum of C products below 1 in single precision",
    .cases = maskdot_cases,
    .n_cases = N_OF(maskdot_cases),
};

pseg_status pseg_op_maskdot(pseg_stream *s, pseg_view out, pseg_view q, pseg_view x, size_t batch,
                            size_t n_q, size_t n, size_t c, pseg_err *err)
{
    pseg_op_args a = {.t = {pseg_tensor_of(out), pseg_tensor_of(q), pseg_tensor_of(x)},
                      .i = {pseg_dim(batch), pseg_dim(n_q), pseg_dim(n), pseg_dim(c)}};

    return pseg_op_run(s, &pseg_op_row_maskdot, &a, err);
}
