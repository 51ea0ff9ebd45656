/* Gradients of act, swiglu, copy, add and maskdot. */
#include "worker/ops/reduce.h"

enum { OUT, X, Y };

static uint32_t reads_x(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)a;
    return pseg_wants(g, X) ? 1u << X : 0;
}

static uint32_t reads_nothing(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)a;
    (void)g;
    return 0;
}

static bool any_alias(const pseg_op_args *a, size_t slot)
{
    (void)a;
    (void)slot;
    return true;
}

/* A kernel of (out, g, x) by rows. */
static pseg_status launch_rows(pseg_stream *s, const pseg_kernel *kernel, const pseg_op_args *a,
                               const pseg_op_grads *g, uint32_t rows, uint64_t c, int64_t act,
                               pseg_err *err)
{
    pseg_rows_grad_params p = {
        .out_off = g->t[X].off,
        .g_off = g->t[OUT].off,
        .x_off = a->t[X].off,
        .c = c,
        .rows = rows,
        .act = (uint32_t)act,
        .add = g->add >> X & 1,
    };
    pseg_arg args[] = {PSEG_ARG_MEM(g->t[X].mem), PSEG_ARG_MEM(g->t[OUT].mem), pseg_arg_of(a, X),
                       PSEG_ARG_VALUE(p)};

    if (!pseg_wants(g, X))
        return PSEG_OK;
    return pseg_launch_rows(s, kernel, rows, c, args, N_OF(args), err);
}

/* ---- act ---------------------------------------------------------------------------------- */

static void act_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    for (int64_t n = 0; n < a->i[0] && pseg_wants(g, X); n++)
        pseg_grad_put(g, X, n,
                      pseg_grad_reals(g, OUT)[n] * pseg_act_grad_ref(pseg_reals(a, X)[n], a->i[1]));
}

static pseg_status act_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                              pseg_err *err)
{
    static const pseg_kernel kernel = {"pointwise_backward.cl", "act_backward", NULL};

    return launch_rows(s, &kernel, a, g, 1, (uint64_t)a->i[0], a->i[1], err);
}

static double act_flops(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return 30.0 * (double)a->i[0];
}

static double act_bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return 12.0 * (double)a->i[0];
}

const pseg_op_backward pseg_op_backward_act = {
    .slots = 1u << X,
    .reads = reads_x,
    .may_alias = any_alias,
    .ref = act_ref,
    .launch = act_launch,
    .flops = act_flops,
    .bytes = act_bytes,
    .tol = {1e-6, 1e-6, 1e-12},
    .tol_why = "erf is good to 3.3e-7, exp to 1.5 units in the last place, and 1 - s rounds",
};

/* ---- swiglu ------------------------------------------------------------------------------- */

static void swiglu_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    int64_t n = a->i[1];

    for (int64_t i = 0; i < a->i[0] * n && pseg_wants(g, X); i++) {
        int64_t at = i / n * 2 * n + i % n;
        const double *x = pseg_reals(a, X) + at;
        double d = pseg_grad_reals(g, OUT)[i];

        pseg_grad_put(g, X, at, d * x[n] * pseg_act_grad_ref(x[0], PSEG_ACT_SILU));
        pseg_grad_put(g, X, at + n, d * pseg_act_ref(x[0], PSEG_ACT_SILU));
    }
}

static pseg_status swiglu_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                 pseg_err *err)
{
    static const pseg_kernel kernel = {"pointwise_backward.cl", "swiglu_backward", NULL};

    return launch_rows(s, &kernel, a, g, (uint32_t)a->i[0], (uint64_t)a->i[1], 0, err);
}

static double swiglu_cost(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return 20.0 * (double)a->i[0] * (double)a->i[1];
}

const pseg_op_backward pseg_op_backward_swiglu = {
    .slots = 1u << X,
    .reads = reads_x,
    .ref = swiglu_ref,
    .launch = swiglu_launch,
    .flops = swiglu_cost,
    .bytes = swiglu_cost,
    .tol = {1e-6, 1e-6, 1e-12},
    .tol_why = "exp is good to 1.5 units in the last place, and 1 - s rounds",
};

/* ---- copy and add ------------------------------------------------------------------------- */

enum { BATCH, N, C, OUT_BATCH, OUT_ROW };

static pseg_status block_check(const pseg_op_args *a, const pseg_op_grads *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;

    for (size_t s = X; s <= Y; s++) {
        const int64_t *stride = i + OUT_BATCH + 2 * s;

        if (!pseg_wants(g, s))
            continue;
        PSEG_REQUIRE(i[N] == 1 || stride[1] == 0 || stride[1] >= i[C],
                     "a gradient's row stride: 0, or rows would overlap");
        PSEG_REQUIRE(i[BATCH] == 1 || stride[0] == 0 ||
                         (size_t)stride[0] >= pseg_extent_rows(i[N], stride[1], i[C]),
                     "a gradient's batch stride: 0, or samples would overlap");
    }
out:
    return rc;
}

static bool block_may_alias(const pseg_op_args *a, size_t slot)
{
    const int64_t *i = a->i, *stride = i + OUT_BATCH + 2 * slot;

    return (i[BATCH] == 1 || stride[0] == i[OUT_BATCH]) && (i[N] == 1 || stride[1] == i[OUT_ROW]);
}

/* Each element once with everything that came of it. */
static void block_ref(const pseg_op_args *a, const pseg_op_grads *g, size_t slot, double alpha)
{
    const int64_t *i = a->i, *stride = i + OUT_BATCH + 2 * slot;
    bool over_b = stride[0] == 0, over_n = stride[1] == 0;

    for (int64_t b = 0; b < (over_b ? 1 : i[BATCH]) && pseg_wants(g, slot); b++)
        for (int64_t n = 0; n < (over_n ? 1 : i[N]); n++)
            for (int64_t c = 0; c < i[C]; c++) {
                double sum = 0;

                for (int64_t d = b; d < (over_b ? i[BATCH] : b + 1); d++)
                    for (int64_t m = n; m < (over_n ? i[N] : n + 1); m++)
                        sum += pseg_grad_reals(g, OUT)[d * i[OUT_BATCH] + m * i[OUT_ROW] + c];
                pseg_grad_put(g, slot, b * stride[0] + n * stride[1] + c, alpha * sum);
            }
}

static void copy_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    block_ref(a, g, X, (float)a->f[0]);
}

static void add_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    block_ref(a, g, X, 1.0);
    block_ref(a, g, Y, (float)a->f[0]);
}

static pseg_status block_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                size_t slot, float alpha, pseg_err *err)
{
    const int64_t *i = a->i, *stride = i + OUT_BATCH + 2 * slot;
    pseg_spread b = {
        .out = g->t[slot],
        .x = g->t[OUT],
        .out_batch = (size_t)stride[0],
        .out_row = (size_t)stride[1],
        .x_batch = (size_t)i[OUT_BATCH],
        .x_row = (size_t)i[OUT_ROW],
        .batch = (size_t)i[BATCH],
        .n = (size_t)i[N],
        .c = (size_t)i[C],
        .alpha = alpha,
        .add = g->add >> slot & 1,
    };

    return pseg_wants(g, slot) ? pseg_sum_block(s, &b, 0, err) : PSEG_OK;
}

static pseg_status copy_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                               pseg_err *err)
{
    return block_launch(s, a, g, X, (float)a->f[0], err);
}

/* In place of the output's gradient there may be that of x or that of y, which then comes last. */
static pseg_status add_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t last = pseg_wants(g, Y) && g->t[Y].mem == g->t[OUT].mem ? Y : X;
    float alpha[] = {0, 1.0f, (float)a->f[0]};

    PSEG_TRY(block_launch(s, a, g, X + Y - last, alpha[X + Y - last], err));
    PSEG_TRY(block_launch(s, a, g, last, alpha[last], err));
out:
    return rc;
}

static double block_flops(const pseg_op_args *a, const pseg_op_grads *g)
{
    return (double)a->i[BATCH] * (double)a->i[N] * (double)a->i[C] *
           (pseg_wants(g, X) + pseg_wants(g, Y));
}

static double block_bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    return 8.0 * block_flops(a, g);
}

#define SUM_WHY                                                                                    \
    "a sum in single precision over what repeats, up to 20000 terms that reach 80, in pieces; or " \
    "one rounding, which NMSE holds"

const pseg_op_backward pseg_op_backward_copy = {
    .slots = 1u << X,
    .reads = reads_nothing,
    .check = block_check,
    .may_alias = block_may_alias,
    .ref = copy_ref,
    .launch = copy_launch,
    .flops = block_flops,
    .bytes = block_bytes,
    .tol = {5e-5, 1e-6, 1e-12},
    .tol_why = SUM_WHY,
};

const pseg_op_backward pseg_op_backward_add = {
    .slots = 1u << X | 1u << Y,
    .reads = reads_nothing,
    .check = block_check,
    .may_alias = block_may_alias,
    .ref = add_ref,
    .launch = add_launch,
    .flops = block_flops,
    .bytes = block_bytes,
    .tol = {5e-5, 1e-6, 1e-12},
    .tol_why = SUM_WHY,
};

/* ---- maskdot ------------------------------------------------------------------------------ */

enum { MD_Q = 1, MD_X };
enum { MD_BATCH, MD_N_Q, MD_N, MD_C };

static uint32_t maskdot_reads(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)a;
    return (pseg_wants(g, MD_Q) ? 1u << MD_X : 0) | (pseg_wants(g, MD_X) ? 1u << MD_Q : 0);
}

static void maskdot_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    int64_t batch = a->i[MD_BATCH], n_q = a->i[MD_N_Q], n_n = a->i[MD_N], c_n = a->i[MD_C];
    const double *d = pseg_grad_reals(g, OUT);

    for (int64_t m = 0; m < batch * n_q && pseg_wants(g, MD_Q); m++)
        for (int64_t c = 0; c < c_n; c++) {
            double sum = 0;

            for (int64_t n = 0; n < n_n; n++)
                sum += d[m * n_n + n] * pseg_reals(a, MD_X)[(m / n_q * n_n + n) * c_n + c];
            pseg_grad_put(g, MD_Q, m * c_n + c, sum);
        }
    for (int64_t r = 0; r < batch * n_n && pseg_wants(g, MD_X); r++)
        for (int64_t c = 0; c < c_n; c++) {
            double sum = 0;

            for (int64_t q = 0; q < n_q; q++) {
                int64_t m = r / n_n * n_q + q;

                sum += d[m * n_n + r % n_n] * pseg_reals(a, MD_Q)[m * c_n + c];
            }
            pseg_grad_put(g, MD_X, r * c_n + c, sum);
        }
}

/* Pieces of the sum over n go through scratch memory. */
static pseg_status maskdot_launch_q(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                    pseg_maskdot_grad_params p, pseg_err *err)
{
    static const pseg_kernel kernel = {"pointwise_backward.cl", "maskdot_q_backward", NULL};
    enum { PIECE = 512 };
    pseg_status rc = PSEG_OK;
    size_t pieces = (p.n + PIECE - 1) / PIECE, masks = (size_t)p.batch * p.n_q;
    size_t bytes = masks * pieces * p.c * sizeof(float);
    pseg_mem *mem = NULL;

    p.piece = PIECE;
    p.x_off = a->t[MD_X].off;
    PSEG_TRY(pseg_stream_scratch(&mem, s, 2 * bytes, err)); /* and room to sum them */
    pseg_arg args[] = {PSEG_ARG_MEM(mem), PSEG_ARG_MEM(g->t[OUT].mem), pseg_arg_of(a, MD_X),
                       PSEG_ARG_VALUE(p)};
    pseg_sum sum = {.out = g->t[MD_Q],
                    .x = {.mem = mem},
                    .out_row = p.c,
                    .groups = masks,
                    .count = pieces,
                    .c = p.c,
                    .group = pieces * p.c,
                    .inner_stride = p.c,
                    .alpha = 1.0f,
                    .add = g->add >> MD_Q & 1};
    PSEG_TRY(pseg_launch_rows(s, &kernel, masks * pieces, p.c, args, N_OF(args), err));
    PSEG_TRY(pseg_sum_rows(s, &sum, bytes, err));
out:
    return rc;
}

static pseg_status maskdot_check(const pseg_op_args *a, const pseg_op_grads *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    (void)g;
    PSEG_CHECK_ROWS(a->i[MD_BATCH], a->i[MD_N_Q], a->i[MD_N]);
out:
    return rc;
}

static pseg_status maskdot_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                  pseg_err *err)
{
    static const pseg_kernel kernel = {"pointwise_backward.cl", "maskdot_x_backward", NULL};
    pseg_status rc = PSEG_OK;
    pseg_maskdot_grad_params p = {
        .g_off = g->t[OUT].off,
        .batch = (uint32_t)a->i[MD_BATCH],
        .n_q = (uint32_t)a->i[MD_N_Q],
        .n = (uint32_t)a->i[MD_N],
        .c = (uint32_t)a->i[MD_C],
    };

    if (pseg_wants(g, MD_Q))
        PSEG_TRY(maskdot_launch_q(s, a, g, p, err));
    if (pseg_wants(g, MD_X)) {
        pseg_arg args[] = {PSEG_ARG_MEM(g->t[MD_X].mem), PSEG_ARG_MEM(g->t[OUT].mem),
                           pseg_arg_of(a, MD_Q), PSEG_ARG_VALUE(p)};

        p.out_off = g->t[MD_X].off;
        p.x_off = a->t[MD_Q].off;
        p.add = g->add >> MD_X & 1;
        PSEG_TRY(pseg_launch_rows(s, &kernel, (uint64_t)p.batch * p.n, p.c, args, N_OF(args), err));
    }
out:
    return rc;
}

static double maskdot_flops(const pseg_op_args *a, const pseg_op_grads *g)
{
    return pseg_op_row_maskdot.flops(a) * (pseg_wants(g, MD_Q) + pseg_wants(g, MD_X));
}

static double maskdot_bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    return pseg_op_row_maskdot.bytes(a) * (pseg_wants(g, MD_Q) + pseg_wants(g, MD_X));
}

const pseg_op_backward pseg_op_backward_maskdot = {
    .slots = 1u << MD_Q | 1u << MD_X,
    .reads = maskdot_reads,
    .check = maskdot_check,
    .ref = maskdot_ref,
    .launch = maskdot_launch,
    .flops = maskdot_flops,
    .bytes = maskdot_bytes,
    .tol = {1e-4, 1e-5, 1e-11},
    .tol_why = "a sum of N products below 1 in single precision, N up to 16384, in pieces of 512",
};
