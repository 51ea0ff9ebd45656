/* Gradients of layernorm, groupnorm and l2norm. */
#include "worker/ops/reduce.h"

#include <math.h>

enum { OUT, X, W, B };

#define NORM_WHY                                                                                   \
    "the gradient of x is a difference of terms as large as a row's gradient over its deviation, " \
    "which is above 0.1 in the cases; sums over rows are taken in pieces"

static uint32_t norm_reads(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)a;
    return pseg_wants(g, X) || pseg_wants(g, W) || pseg_wants(g, B) ? 1u << X | 1u << W | 1u << B
                                                                    : 0;
}

/* One of w and b, out of sums[count][2][c]. */
static pseg_status param_grad(pseg_stream *s, const pseg_op_grads *g, size_t slot, pseg_mem *work,
                              size_t sums_off, size_t count, size_t c, size_t used, pseg_err *err)
{
    pseg_sum sum = {
        .out = g->t[slot],
        .x = {.mem = work, .off = sums_off + (slot == B ? c : 0)},
        .groups = 1,
        .count = count,
        .c = c,
        .inner_stride = 2 * c,
        .alpha = 1.0f,
        .add = g->add >> slot & 1,
    };

    return pseg_wants(g, slot) ? pseg_sum_rows(s, &sum, used, err) : PSEG_OK;
}

/* What the elements that are normalised together share; of_d and of_dx are the means of d w and of
 * d w xh. */
typedef struct norm_row {
    double mean, inv, of_d, of_dx;
} norm_row;

/* ---- layernorm ---------------------------------------------------------------------------- */

enum { L_ROWS, L_C, L_X_STRIDE, L_OUT_STRIDE, L_ACT };

static double xh_of(double x, const norm_row *r)
{
    return (x - r->mean) * r->inv;
}

/* The gradient that reaches z = xh w + b. */
static double through_act(const pseg_op_args *a, double g, double xh, int64_t c, int64_t act)
{
    double z = pseg_has(a, W) ? xh * pseg_reals(a, W)[c] + pseg_reals(a, B)[c] : xh;

    return g * pseg_act_grad_ref(z, act);
}

static void layernorm_ref_row(const pseg_op_args *a, const pseg_op_grads *g, int64_t r,
                              norm_row *row)
{
    int64_t n = a->i[L_C];
    const double *x = pseg_reals(a, X) + r * a->i[L_X_STRIDE];
    const double *d = pseg_grad_reals(g, OUT) + r * a->i[L_OUT_STRIDE];
    double sum = 0, squares = 0;

    *row = (norm_row){0};
    for (int64_t c = 0; c < n; c++)
        sum += x[c];
    row->mean = sum / (double)n;
    for (int64_t c = 0; c < n; c++)
        squares += (x[c] - row->mean) * (x[c] - row->mean);
    row->inv = 1.0 / sqrt(squares / (double)n + a->f[0]);
    for (int64_t c = 0; c < n; c++) {
        double xh = xh_of(x[c], row), t = through_act(a, d[c], xh, c, a->i[L_ACT]);

        t *= pseg_has(a, W) ? pseg_reals(a, W)[c] : 1.0;
        row->of_d += t / (double)n;
        row->of_dx += t * xh / (double)n;
    }
}

static void layernorm_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    int64_t n = a->i[L_C];

    /* Those of w and b are zero or what is there, and each row adds to them. */
    for (size_t slot = W; slot <= B; slot++)
        for (int64_t c = 0; c < n && pseg_wants(g, slot) && !(g->add >> slot & 1); c++)
            pseg_grad_put(g, slot, c, 0);
    for (int64_t r = 0; r < a->i[L_ROWS]; r++) {
        norm_row row;

        layernorm_ref_row(a, g, r, &row);
        for (int64_t c = 0; c < n; c++) {
            double xh = xh_of(pseg_reals(a, X)[r * a->i[L_X_STRIDE] + c], &row);
            double d = through_act(a, pseg_grad_reals(g, OUT)[r * a->i[L_OUT_STRIDE] + c], xh, c,
                                   a->i[L_ACT]);

            if (pseg_wants(g, W))
                pseg_grad_reals(g, W)[c] += d * xh;
            if (pseg_wants(g, B))
                pseg_grad_reals(g, B)[c] += d;
            d *= pseg_has(a, W) ? pseg_reals(a, W)[c] : 1.0;
            if (pseg_wants(g, X))
                pseg_grad_put(g, X, r * a->i[L_X_STRIDE] + c,
                              (d - row.of_d - xh * row.of_dx) * row.inv);
        }
    }
}

static pseg_status layernorm_check(const pseg_op_args *a, const pseg_op_grads *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(pseg_has(a, W) || (!pseg_wants(g, W) && !pseg_wants(g, B)),
                 "gradients of w and b of a layernorm without them");
out:
    return rc;
}

static bool layernorm_may_alias(const pseg_op_args *a, size_t slot)
{
    return slot == X && a->i[L_X_STRIDE] == a->i[L_OUT_STRIDE];
}

static pseg_status layernorm_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                    pseg_err *err)
{
    static const pseg_kernel stats = {"norm_backward.cl", "layernorm_stats", NULL};
    static const pseg_kernel params = {"norm_backward.cl", "layernorm_params", NULL};
    static const pseg_kernel input = {"norm_backward.cl", "layernorm_backward", NULL};
    enum { PIECE = 32, PIECES = 256 };
    pseg_status rc = PSEG_OK;
    size_t rows = (size_t)a->i[L_ROWS], c = (size_t)a->i[L_C];
    size_t piece = (rows + PIECES - 1) / PIECES < PIECE ? PIECE : (rows + PIECES - 1) / PIECES;
    size_t pieces = (rows + piece - 1) / piece;
    size_t used = (2 * rows + 2 * pieces * c) * sizeof(float);
    bool of_params = pseg_wants(g, W) || pseg_wants(g, B);
    pseg_mem *work = NULL;
    pseg_norm_grad_params p = {
        .out_off = g->t[X].off,
        .g_off = g->t[OUT].off,
        .x_off = a->t[X].off,
        .w_off = a->t[W].off,
        .b_off = a->t[B].off,
        .sums_off = 2 * rows,
        .x_stride = (uint64_t)a->i[L_X_STRIDE],
        .g_stride = (uint64_t)a->i[L_OUT_STRIDE],
        .rows = (uint32_t)rows,
        .c = (uint32_t)c,
        .act = (uint32_t)a->i[L_ACT],
        .flags = pseg_has(a, W) ? HAS_AFFINE : 0,
        .add = g->add >> X & 1,
        .piece = (uint32_t)piece,
        .eps = (float)a->f[0],
    };

    if (!of_params && !pseg_wants(g, X))
        goto out;
    PSEG_TRY(pseg_stream_scratch(&work, s, 2 * used, err)); /* and partial sums behind, if any */
    pseg_arg all[] = {PSEG_ARG_MEM(work), PSEG_ARG_MEM(g->t[OUT].mem), pseg_arg_of(a, X),
                      pseg_arg_of(a, W),  pseg_arg_of(a, B),           PSEG_ARG_VALUE(p)};
    pseg_arg of_stats[] = {all[0], all[2], all[5], PSEG_ARG_NONE};
    PSEG_TRY(pseg_launch_groups(s, &stats, rows, of_stats, N_OF(of_stats), err));
    if (of_params) {
        PSEG_TRY(pseg_launch_rows(s, &params, pieces, c, all, N_OF(all), err));
        PSEG_TRY(param_grad(s, g, W, work, p.sums_off, pieces, c, used, err));
        PSEG_TRY(param_grad(s, g, B, work, p.sums_off, pieces, c, used, err));
    }
    if (pseg_wants(g, X)) {
        pseg_arg args[] = {PSEG_ARG_MEM(g->t[X].mem),
                           all[1],
                           all[2],
                           all[3],
                           all[4],
                           all[0],
                           all[5],
                           PSEG_ARG_NONE};

        PSEG_TRY(pseg_launch_groups(s, &input, rows, args, N_OF(args), err));
    }
out:
    return rc;
}

static double layernorm_flops(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return 2.5 * pseg_op_row_layernorm.flops(a);
}

static double layernorm_bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return 12.0 * (double)a->i[L_ROWS] * (double)a->i[L_C];
}

const pseg_op_backward pseg_op_backward_layernorm = {
    .slots = 1u << X | 1u << W | 1u << B,
    .reads = norm_reads,
    .check = layernorm_check,
    .may_alias = layernorm_may_alias,
    .ref = layernorm_ref,
    .launch = layernorm_launch,
    .flops = layernorm_flops,
    .bytes = layernorm_bytes,
    .tol = {3e-5, 1e-5, 1e-11},
    .tol_why = NORM_WHY,
};

/* ---- groupnorm ---------------------------------------------------------------------------- */

enum { G_BATCH, G_HW, G_C, G_GROUPS, G_ACT };

static void groupnorm_ref_group(const pseg_op_args *a, const pseg_op_grads *g, int64_t base,
                                int64_t c0, norm_row *row)
{
    int64_t cg = a->i[G_C] / a->i[G_GROUPS], hw = a->i[G_HW], n = cg * hw;
    double sum = 0, squares = 0;

    *row = (norm_row){0};
    for (int64_t i = 0; i < n; i++)
        sum += pseg_reals(a, X)[base + i / cg * a->i[G_C] + c0 + i % cg];
    row->mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++) {
        double d = pseg_reals(a, X)[base + i / cg * a->i[G_C] + c0 + i % cg] - row->mean;

        squares += d * d;
    }
    row->inv = 1.0 / sqrt(squares / (double)n + a->f[0]);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = base + i / cg * a->i[G_C] + c0 + i % cg, c = c0 + i % cg;
        double xh = xh_of(pseg_reals(a, X)[at], row);
        double d = through_act(a, pseg_grad_reals(g, OUT)[at], xh, c, a->i[G_ACT]);

        row->of_d += d * pseg_reals(a, W)[c] / (double)n;
        row->of_dx += d * pseg_reals(a, W)[c] * xh / (double)n;
    }
}

static void groupnorm_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    int64_t c_n = a->i[G_C], cg = c_n / a->i[G_GROUPS], hw = a->i[G_HW];

    for (int64_t c0 = 0; c0 < c_n; c0 += cg)
        for (int64_t b = 0; b < a->i[G_BATCH]; b++) {
            norm_row row;

            groupnorm_ref_group(a, g, b * hw * c_n, c0, &row);
            for (int64_t c = c0; c < c0 + cg; c++) {
                double of_w = 0, of_b = 0;

                for (int64_t t = 0; t < hw; t++) {
                    int64_t at = (b * hw + t) * c_n + c;
                    double xh = xh_of(pseg_reals(a, X)[at], &row);
                    double d = through_act(a, pseg_grad_reals(g, OUT)[at], xh, c, a->i[G_ACT]);

                    of_w += d * xh;
                    of_b += d;
                    if (pseg_wants(g, X))
                        pseg_grad_put(g, X, at,
                                      (d * pseg_reals(a, W)[c] - row.of_d - xh * row.of_dx) *
                                          row.inv);
                }
                /* The first sample sets, if that is wanted; the others add. */
                if (pseg_wants(g, W))
                    pseg_grad_reals(g, W)[c] =
                        (b > 0 || g->add >> W & 1 ? pseg_grad_reals(g, W)[c] : 0) + of_w;
                if (pseg_wants(g, B))
                    pseg_grad_reals(g, B)[c] =
                        (b > 0 || g->add >> B & 1 ? pseg_grad_reals(g, B)[c] : 0) + of_b;
            }
        }
}

static bool x_may_alias(const pseg_op_args *a, size_t slot)
{
    (void)a;
    return slot == X;
}

static pseg_status groupnorm_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                    pseg_err *err)
{
    static const pseg_kernel sums = {"norm_backward.cl", "groupnorm_sums", NULL};
    static const pseg_kernel stats = {"norm_backward.cl", "groupnorm_stats", NULL};
    static const pseg_kernel params = {"norm_backward.cl", "groupnorm_params", NULL};
    static const pseg_kernel means = {"norm_backward.cl", "groupnorm_means", NULL};
    static const pseg_kernel input = {"norm_backward.cl", "groupnorm_backward", NULL};
    pseg_status rc = PSEG_OK;
    size_t batch = (size_t)a->i[G_BATCH], hw = (size_t)a->i[G_HW], c = (size_t)a->i[G_C];
    size_t used = 6 * batch * c * sizeof(float);
    pseg_mem *work = NULL;
    pseg_norm_grad_params p = {
        .out_off = g->t[X].off,
        .g_off = g->t[OUT].off,
        .x_off = a->t[X].off,
        .w_off = a->t[W].off,
        .b_off = a->t[B].off,
        .sums_off = 4 * batch * c,
        .c = (uint32_t)c,
        .batch = (uint32_t)batch,
        .hw = (uint32_t)hw,
        .groups = (uint32_t)a->i[G_GROUPS],
        .act = (uint32_t)a->i[G_ACT],
        .flags = HAS_AFFINE,
        .add = g->add >> X & 1,
        .eps = (float)a->f[0],
    };

    if (!pseg_wants(g, X) && !pseg_wants(g, W) && !pseg_wants(g, B))
        goto out;
    PSEG_TRY(pseg_stream_scratch(&work, s, 2 * used, err));
    pseg_arg all[] = {PSEG_ARG_MEM(work), PSEG_ARG_MEM(g->t[OUT].mem), pseg_arg_of(a, X),
                      pseg_arg_of(a, W),  pseg_arg_of(a, B),           PSEG_ARG_VALUE(p)};
    pseg_arg of_x[] = {all[0], all[2], all[5]}, of_stats[] = {all[0], all[5]};
    pseg_arg of_means[] = {all[0], all[3], all[5]};
    for (p.piece = 0; p.piece < 2; p.piece++) { /* the mean, then the deviation from it */
        PSEG_TRY(pseg_launch_rows(s, &sums, batch, c, of_x, N_OF(of_x), err));
        PSEG_TRY(pseg_launch_rows(s, &stats, batch, c, of_stats, N_OF(of_stats), err));
    }
    PSEG_TRY(pseg_launch_rows(s, &params, batch, c, all, N_OF(all), err));
    PSEG_TRY(param_grad(s, g, W, work, p.sums_off, batch, c, used, err));
    PSEG_TRY(param_grad(s, g, B, work, p.sums_off, batch, c, used, err));
    if (pseg_wants(g, X)) {
        pseg_arg args[] = {
            PSEG_ARG_MEM(g->t[X].mem), all[1], all[2], all[3], all[4], all[0], all[5]};

        PSEG_TRY(pseg_launch_rows(s, &means, batch, c, of_means, N_OF(of_means), err));
        PSEG_TRY(pseg_launch_rows(s, &input, batch * hw, c, args, N_OF(args), err));
    }
out:
    return rc;
}

static pseg_status groupnorm_check(const pseg_op_args *a, const pseg_op_grads *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    (void)g;
    PSEG_CHECK_ROWS(a->i[G_BATCH], a->i[G_HW]);
out:
    return rc;
}

static double groupnorm_flops(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return 2.5 * pseg_op_row_groupnorm.flops(a);
}

static double groupnorm_bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return 1.5 * pseg_op_row_groupnorm.bytes(a);
}

const pseg_op_backward pseg_op_backward_groupnorm = {
    .slots = 1u << X | 1u << W | 1u << B,
    .reads = norm_reads,
    .check = groupnorm_check,
    .may_alias = x_may_alias,
    .ref = groupnorm_ref,
    .launch = groupnorm_launch,
    .flops = groupnorm_flops,
    .bytes = groupnorm_bytes,
    .tol = {3e-5, 1e-5, 1e-11},
    .tol_why = NORM_WHY,
};

/* ---- l2norm ------------------------------------------------------------------------------- */

static uint32_t l2norm_reads(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)a;
    return pseg_wants(g, X) ? 1u << X : 0;
}

static void l2norm_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    int64_t n = a->i[1];

    for (int64_t r = 0; r < a->i[0] && pseg_wants(g, X); r++) {
        const double *x = pseg_reals(a, X) + r * n, *d = pseg_grad_reals(g, OUT) + r * n;
        double norm = 0, along = 0;

        for (int64_t c = 0; c < n; c++)
            norm += x[c] * x[c];
        norm = sqrt(norm);
        for (int64_t c = 0; c < n && !(norm < a->f[0]); c++)
            along += x[c] / norm * d[c];
        norm = norm < a->f[0] ? a->f[0] : norm;
        for (int64_t c = 0; c < n; c++)
            pseg_grad_put(g, X, r * n + c, (d[c] - x[c] / norm * along) / norm);
    }
}

static pseg_status l2norm_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                 pseg_err *err)
{
    static const pseg_kernel kernel = {"norm_backward.cl", "l2norm_backward", NULL};
    pseg_rows_grad_params p = {
        .out_off = g->t[X].off,
        .g_off = g->t[OUT].off,
        .x_off = a->t[X].off,
        .c = (uint64_t)a->i[1],
        .rows = (uint32_t)a->i[0],
        .add = g->add >> X & 1,
        .eps = (float)a->f[0],
    };
    pseg_arg args[] = {PSEG_ARG_MEM(g->t[X].mem), PSEG_ARG_MEM(g->t[OUT].mem), pseg_arg_of(a, X),
                       PSEG_ARG_VALUE(p), PSEG_ARG_NONE};

    return pseg_wants(g, X) ? pseg_launch_groups(s, &kernel, p.rows, args, N_OF(args), err)
                            : PSEG_OK;
}

static double l2norm_flops(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return 3.0 * pseg_op_row_l2norm.flops(a);
}

static double l2norm_bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return 1.5 * pseg_op_row_l2norm.bytes(a);
}

const pseg_op_backward pseg_op_backward_l2norm = {
    .slots = 1u << X,
    .reads = l2norm_reads,
    .may_alias = x_may_alias,
    .ref = l2norm_ref,
    .launch = l2norm_launch,
    .flops = l2norm_flops,
    .bytes = l2norm_bytes,
    .tol = {2e-6, 2e-6, 1e-12},
    .tol_why = "sums of C terms; a row's norm is above 0.3 in the cases",
};
