#include "worker/ops/internal.h"

#include <math.h>

enum { OUT, Q, K, V, FROM, BACK };
enum { HEADS, D, N_Q, N_K, Q_ROW, K_ROW, V_ROW, OUT_ROW };

#define MAX_D 128

static const pseg_op_slot slots[] = {
    {"out", PSEG_F32, true, false, true},   {"q", PSEG_F32, false, false, true},
    {"k", PSEG_F32, false, false, true},    {"v", PSEG_F32, false, false, true},
    {"from", PSEG_I32, false, true, false}, {"back", PSEG_I32, false, false, false},
};

static pseg_status check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_tree_attention, a, HEADS, 4, err));
    PSEG_REQUIRE(i[D] <= MAX_D, "channels of a head <= 128");
    PSEG_CHECK_ROWS(i[HEADS], i[D]);
    for (int r = Q_ROW; r <= OUT_ROW; r++)
        PSEG_REQUIRE(i[r] >= i[HEADS] * i[D] && i[r] <= MAX_STRIDE, "row stride");
    PSEG_REQUIRE(pseg_has(a, FROM) || i[N_Q] <= i[N_K], "a node for each query");
    PSEG_REQUIRE(isfinite(a->f[0]), "scale");
    for (size_t t = Q; t <= V; t++)
        PSEG_REQUIRE(pseg_is_bf16(a, t) == pseg_is_bf16(a, OUT), "q, k, v and out of one type");
out:
    return rc;
}

static size_t extent(const pseg_op_args *a, size_t slot)
{
    const int64_t *i = a->i;

    switch (slot) {
    case OUT:
        return pseg_extent_rows(i[N_Q], i[OUT_ROW], i[HEADS] * i[D]);
    case Q:
        return pseg_extent_rows(i[N_Q], i[Q_ROW], i[HEADS] * i[D]);
    case K:
        return pseg_extent_rows(i[N_K], i[K_ROW], i[HEADS] * i[D]);
    case V:
        return pseg_extent_rows(i[N_K], i[V_ROW], i[HEADS] * i[D]);
    case FROM:
        return (size_t)i[N_Q];
    default:
        return (size_t)i[N_K];
    }
}

/* The row before `at` on its path, or -1. */
static int64_t before(const pseg_op_args *a, int64_t at)
{
    int32_t back = pseg_ints(a, BACK)[at];

    return back > 0 && back <= at ? at - back : -1;
}

/* One query: two passes up its path, then the sum. */
static void ref_query(const pseg_op_args *a, int64_t r, int64_t h)
{
    const int64_t *i = a->i;
    int64_t d = i[D], first = pseg_has(a, FROM) ? pseg_ints(a, FROM)[r] : r;
    const double *q = pseg_reals(a, Q) + r * i[Q_ROW] + h * d;
    double *out = pseg_reals(a, OUT) + r * i[OUT_ROW] + h * d;
    double top = -INFINITY, sum = 0, acc[MAX_D] = {0};

    if (first >= i[N_K])
        first = -1;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t at = first; at >= 0; at = before(a, at)) {
            const double *k = pseg_reals(a, K) + at * i[K_ROW] + h * d;
            const double *v = pseg_reals(a, V) + at * i[V_ROW] + h * d;
            double s = 0;

            for (int64_t c = 0; c < d; c++)
                s += (double)q[c] * k[c];
            s *= (float)a->f[0];
            if (pass == 0) {
                top = s > top ? s : top;
                continue;
            }
            double e = exp(s - top);

            sum += e;
            for (int64_t c = 0; c < d; c++)
                acc[c] += e * v[c];
        }
    for (int64_t c = 0; c < d; c++)
        out[c] = first >= 0 ? acc[c] / sum : 0.0;
}

static void ref(const pseg_op_args *a)
{
    for (int64_t r = 0; r < a->i[N_Q]; r++)
        for (int64_t h = 0; h < a->i[HEADS]; h++)
            ref_query(a, r, h);
}

/* By type and the room for channels. */
static const pseg_kernel kernels[2][2] = {
    {{"tree.cl", "tree_attention", "-DDMAX=64"}, {"tree.cl", "tree_attention", "-DDMAX=128"}},
    {{"tree.cl", "tree_attention", "-DIN_BF16 -DOUT_BF16 -DDMAX=64"},
     {"tree.cl", "tree_attention", "-DIN_BF16 -DOUT_BF16 -DDMAX=128"}},
};

static unsigned room_of(const pseg_op_args *a)
{
    return a->i[D] > 64;
}

static pseg_status launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    const int64_t *i = a->i;
    pseg_tree_params p = {
        .out_off = a->t[OUT].off,
        .q_off = a->t[Q].off,
        .k_off = a->t[K].off,
        .v_off = a->t[V].off,
        .from_off = a->t[FROM].off,
        .back_off = a->t[BACK].off,
        .out_row = (uint64_t)i[OUT_ROW],
        .q_row = (uint64_t)i[Q_ROW],
        .k_row = (uint64_t)i[K_ROW],
        .v_row = (uint64_t)i[V_ROW],
        .heads = (uint32_t)i[HEADS],
        .d = (uint32_t)i[D],
        .n_q = (uint32_t)i[N_Q],
        .n_k = (uint32_t)i[N_K],
        .flags = pseg_has(a, FROM) ? HAS_FROM : 0,
        .scale = (float)a->f[0],
    };
    pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, Q),    pseg_arg_of(a, K),
                       pseg_arg_of(a, V),   pseg_arg_of(a, FROM), pseg_arg_of(a, BACK),
                       PSEG_ARG_VALUE(p)};

    return pseg_launch_rows(s, &kernels[pseg_is_bf16(a, OUT)][room_of(a)],
                            (uint64_t)i[N_Q] * (uint64_t)i[HEADS], 1, args, N_OF(args), err);
}

/* As if every path were half of a plain phrase. */
static double flops(const pseg_op_args *a)
{
    return 2.0 * (double)a->i[HEADS] * (double)a->i[D] * (double)a->i[N_Q] * 16;
}

static double bytes(const pseg_op_args *a)
{
    return (double)pseg_type_size(a->t[OUT].type) * (double)a->i[HEADS] * (double)a->i[D] * 2.0 *
           ((double)a->i[N_Q] + (double)a->i[N_K]);
}

/* Paths with ends anywhere; where there are many rows, such as go all the way to the first. */
static void int_range(const pseg_op_args *a, size_t slot, int32_t *lo, int32_t *hi)
{
    bool is_long = a->i[N_K] > 20;

    *lo = slot == FROM ? -1 : is_long ? 1 : -1;
    *hi = slot == FROM ? (int32_t)a->i[N_K] : is_long ? 2 : 4;
}

#define NO_FROM  (1u << FROM)
#define ALL_BF16 (1u << OUT | 1u << Q | 1u << K | 1u << V)

static const pseg_op_case cases[] = {
    {"one", {1, 1, 1, 1, 1, 1, 1, 1}, {1.0}, NO_FROM, 0, 0},
    {"odd", {3, 7, 13, 13, 21, 25, 30, 22}, {0.3}, NO_FROM, 0, 0},
    {"sharp", {2, 16, 9, 9, 32, 32, 32, 32}, {40.0}, NO_FROM, 0, 0},
    {"chosen queries", {2, 16, 5, 11, 40, 96, 96, 32}, {0.25}, 0, 0, 0},
    {"several blocks", {1, 20, 70, 70, 60, 60, 60, 20}, {0.2}, NO_FROM, 0, 0},
    {"chosen, several blocks", {2, 64, 7, 90, 130, 384, 384, 128}, {0.125}, 0, 0, 0},
    {"widest head", {1, 128, 24, 24, 128, 128, 128, 128}, {0.09}, NO_FROM, 0, 0},
    {"BF16", {3, 7, 13, 13, 21, 25, 30, 22}, {0.3}, NO_FROM, 0, 0, ALL_BF16},
    {"BF16, chosen", {2, 64, 7, 90, 130, 384, 384, 128}, {0.125}, 0, 0, 0, ALL_BF16},
    {"clip text", {8, 64, 20, 20, 1536, 1536, 1536, 512}, {0.125}, NO_FROM, 0, PSEG_CASE_REAL},
    {"BF16, 32 phrases",
     {8, 64, 400, 400, 1536, 1536, 1536, 512},
     {0.125},
     NO_FROM,
     0,
     PSEG_CASE_BIG | PSEG_CASE_REAL,
     ALL_BF16},
};

const pseg_op pseg_op_row_tree_attention = {
    .name = "tree_attention",
    .slots = slots,
    .n_slots = N_OF(slots),
    .params = "heads, d, n_q, n_k, q_row, k_row, v_row, out_row; scale",
    .check = check,
    .extent = extent,
    .ref = ref,
    .launch = launch,
    .fixed = room_of,
    .flops = flops,
    .bytes = bytes,
    .int_range = int_range,
    .tol = {2e-5, 1e-5, 1e-11},
    .tol_why = "as attention: an error of 1e-6 in a score is the same relative error in its weight",
    .cases = cases,
    .n_cases = N_OF(cases),
};

pseg_status pseg_op_tree_attention(pseg_stream *s, const pseg_tree_attention *t, pseg_err *err)
{
    pseg_op_args a = {
        .t = {pseg_tensor_of(t->out), pseg_tensor_of(t->q), pseg_tensor_of(t->k),
              pseg_tensor_of(t->v), pseg_tensor_of(t->from), pseg_tensor_of(t->back)},
        .i = {pseg_dim(t->heads), pseg_dim(t->d), pseg_dim(t->n_q), pseg_dim(t->n_k),
              pseg_dim(t->q_row), pseg_dim(t->k_row), pseg_dim(t->v_row), pseg_dim(t->out_row)},
        .f = {t->scale},
    };

    return pseg_op_run(s, &pseg_op_row_tree_attention, &a, err);
}
