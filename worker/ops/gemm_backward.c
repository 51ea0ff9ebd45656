/* Gradients of gemm and conv3, and weights the other way round. */
#include "worker/ops/conv.h"
#include "worker/ops/reduce.h"
#include "worker/ops/weight_grad.h"

enum { OUT, A, W, BIAS, RES, SCALE };
enum { M, N, K, A_STRIDE, OUT_STRIDE, RES_STRIDE, ACT };
enum { V_BATCH, V_HEIGHT, V_WIDTH, V_C, V_N };

#define WHY                                                                                  \
    "sums of N, K or M products of numbers below 1 in single precision; M is up to 2056 in " \
    "tests, "                                                                                \
    "and sums are taken in blocks"

/* ---- the weight turned -------------------------------------------------------------------- */

static pseg_status turn(pseg_stream *s, pseg_tensor out, pseg_tensor w, size_t n, size_t c,
                        size_t taps, pseg_err *err)
{
    static const pseg_kernel kernel = {"gemm_backward.cl", "turn", NULL};
    pseg_turn_params p = {.out_off = out.off,
                          .w_off = w.off,
                          .n = (uint32_t)n,
                          .c = (uint32_t)c,
                          .taps = (uint32_t)taps};
    pseg_arg args[] = {PSEG_ARG_MEM(out.mem), PSEG_ARG_MEM(w.mem), PSEG_ARG_VALUE(p)};

    return pseg_launch_rows(s, &kernel, (c + PSEG_PANEL - 1) / PSEG_PANEL * taps * n, PSEG_PANEL,
                            args, N_OF(args), err);
}

static size_t packed(size_t n, size_t k)
{
    return pseg_gemm_packed_elems(n, k);
}

static pseg_status checked_turn(pseg_stream *s, pseg_view out, pseg_view w, size_t n, size_t c,
                                size_t taps, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t limit = (size_t)MAX_DIM / 9;

    PSEG_REQUIRE(n >= 1 && n <= limit && c >= 1 && c <= limit, "sizes of the weight");
    PSEG_REQUIRE(out.mem && w.mem && out.type == PSEG_F32 && w.type == PSEG_F32,
                 "weights in float32");
    PSEG_REQUIRE(PSEG_PRODUCT((int64_t)c, (int64_t)n, (int64_t)taps) <= (size_t)MAX_DIM,
                 "size of the weight");
    size_t to = packed(c, taps * n), from = packed(n, taps * c);
    size_t to_has = pseg_mem_size(out.mem) / 4, from_has = pseg_mem_size(w.mem) / 4;
    PSEG_REQUIRE(out.off <= to_has && to <= to_has - out.off, "room for the turned weight");
    PSEG_REQUIRE(w.off <= from_has && from <= from_has - w.off, "size of the weight's buffer");
    PSEG_REQUIRE(out.mem != w.mem || out.off >= w.off + from || w.off >= out.off + to,
                 "a turned weight apart from the weight");
    PSEG_TRY(turn(s, pseg_tensor_of(out), pseg_tensor_of(w), n, c, taps, err));
out:
    return rc;
}

pseg_status pseg_op_turn(pseg_stream *s, pseg_view out, pseg_view w, size_t n, size_t k,
                         pseg_err *err)
{
    return checked_turn(s, out, w, n, k, 1, err);
}

pseg_status pseg_op_conv3_turn(pseg_stream *s, pseg_view out, pseg_view w, size_t n, size_t c,
                               pseg_err *err)
{
    return checked_turn(s, out, w, n, c, 9, err);
}

/* What was given, or the weight turned into scratch memory with room for `more` bytes behind. */
static pseg_status turned_weight(pseg_tensor *out, size_t *used, pseg_stream *s,
                                 const pseg_op_args *a, const pseg_op_grads *g, size_t n, size_t c,
                                 size_t taps, size_t more, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mem *mem = NULL;

    *used = g->turned.mem ? 0 : packed(c, taps * n) * sizeof(float);
    *out = g->turned;
    if (*used + more > 0)
        PSEG_TRY(pseg_stream_scratch(&mem, s, *used + more, err));
    if (!g->turned.mem) {
        *out = (pseg_tensor){.mem = mem};
        PSEG_TRY(turn(s, *out, a->t[W], n, c, taps, err));
    }
out:
    return rc;
}

/* What is wanted of the weight's and the bias' gradient: one pass over the output's gives both. */
static pseg_status weight_and_bias(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                   pseg_weight_grad_params *p, pseg_err *err)
{
    pseg_weight_grads out = {.w = g->t[W], .adds_w = g->add >> W & 1};

    if (pseg_wants(g, BIAS)) {
        out.bias = g->t[BIAS];
        out.adds_bias = g->add >> BIAS & 1;
    }
    if (pseg_wants(g, W))
        return pseg_weight_grad(s, &out, pseg_arg_of(a, A), &g->t[OUT], p, err);
    return out.bias.mem ? pseg_bias_grad(s, &out.bias, out.adds_bias, &g->t[OUT], p->m, p->n,
                                         p->g_stride, err)
                        : PSEG_OK;
}

/* ---- gemm --------------------------------------------------------------------------------- */

static uint32_t reads(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)a;
    return (pseg_wants(g, W) ? 1u << A : 0) | (pseg_wants(g, A) && !g->turned.mem ? 1u << W : 0);
}

static pseg_status check(const pseg_op_args *a, const pseg_op_grads *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (a->i[ACT] != PSEG_ACT_NONE || pseg_has(a, SCALE))
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0,
                  "gemm: no gradient through an activation or a scale; make them operations of "
                  "their own");
    PSEG_REQUIRE(!pseg_wants(g, RES) || a->i[RES_STRIDE] >= a->i[N], "res's row stride");
    PSEG_REQUIRE(PSEG_PRODUCT(a->i[K], a->i[N]) <= (size_t)MAX_DIM, "size of the weight");
out:
    return rc;
}

static size_t turned_elems(const pseg_op_args *a)
{
    return packed((size_t)a->i[K], (size_t)a->i[N]);
}

static void ref_a(const pseg_op_args *a, const pseg_op_grads *g)
{
    const int64_t *i = a->i;
    const double *d = pseg_grad_reals(g, OUT);

    for (int64_t m = 0; m < i[M]; m++)
        for (int64_t k = 0; k < i[K]; k++) {
            double sum = 0;

            for (int64_t n = 0; n < i[N]; n++)
                sum += d[m * i[OUT_STRIDE] + n] *
                       pseg_reals(a, W)[(n / PSEG_PANEL * i[K] + k) * PSEG_PANEL + n % PSEG_PANEL];
            pseg_grad_put(g, A, m * i[A_STRIDE] + k, sum);
        }
}

/* What the rows of dout and x contribute to a packed gradient at k, 32 columns from n0 on. */
static void ref_w(const pseg_op_args *a, const pseg_op_grads *g)
{
    const int64_t *i = a->i;
    const double *d = pseg_grad_reals(g, OUT), *x = pseg_reals(a, A);

    for (int64_t n0 = 0; n0 < i[N]; n0 += PSEG_PANEL)
        for (int64_t k = 0; k < i[K]; k++) {
            double sum[PSEG_PANEL] = {0};
            int64_t width = i[N] - n0 < PSEG_PANEL ? i[N] - n0 : PSEG_PANEL;

            for (int64_t m = 0; m < i[M]; m++)
                for (int64_t j = 0; j < width; j++)
                    sum[j] += x[m * i[A_STRIDE] + k] * d[m * i[OUT_STRIDE] + n0 + j];
            for (int64_t j = 0; j < PSEG_PANEL; j++)
                pseg_grad_put(g, W, n0 * i[K] + k * PSEG_PANEL + j, sum[j]);
        }
}

static void ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    const int64_t *i = a->i;
    const double *d = pseg_grad_reals(g, OUT);

    if (pseg_wants(g, A))
        ref_a(a, g);
    if (pseg_wants(g, W))
        ref_w(a, g);
    for (int64_t n = 0; n < i[N] && pseg_wants(g, BIAS); n++) {
        double sum = 0;

        for (int64_t m = 0; m < i[M]; m++)
            sum += d[m * i[OUT_STRIDE] + n];
        pseg_grad_put(g, BIAS, n, sum);
    }
    for (int64_t m = 0; m < i[M] && pseg_wants(g, RES); m++)
        for (int64_t n = 0; n < i[N]; n++)
            pseg_grad_put(g, RES, m * i[RES_STRIDE] + n, d[m * i[OUT_STRIDE] + n]);
}

static pseg_status launch_a(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;
    size_t used;
    pseg_op_args b = {
        .t = {[OUT] = g->t[A], [A] = g->t[OUT]},
        .i = {i[M], i[K], i[N], i[OUT_STRIDE], i[A_STRIDE], i[A_STRIDE], PSEG_ACT_NONE},
    };

    PSEG_TRY(turned_weight(&b.t[W], &used, s, a, g, (size_t)i[N], (size_t)i[K], 1, 0, err));
    if (g->add >> A & 1)
        b.t[RES] = g->t[A];
    PSEG_TRY(pseg_op_launch(s, &pseg_op_row_gemm, &b, err));
    pseg_stream_credit(s, pseg_op_row_gemm.flops(&b), pseg_op_row_gemm.bytes(&b));
out:
    return rc;
}

static pseg_status launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;
    pseg_weight_grad_params p = {
        .x_off = a->t[A].off,
        .x_stride = (uint64_t)i[A_STRIDE],
        .g_stride = (uint64_t)i[OUT_STRIDE],
        .m = (uint32_t)i[M],
        .n = (uint32_t)i[N],
        .c = (uint32_t)i[K],
        .taps = 1,
        .h = 1,
        .w = 1,
    };

    if (pseg_wants(g, A))
        PSEG_TRY(launch_a(s, a, g, err));
    PSEG_TRY(weight_and_bias(s, a, g, &p, err));
    if (pseg_wants(g, RES)) {
        pseg_spread b = {.out = g->t[RES],
                         .x = g->t[OUT],
                         .out_row = (size_t)i[RES_STRIDE],
                         .x_row = (size_t)i[OUT_STRIDE],
                         .batch = 1,
                         .n = (size_t)i[M],
                         .c = (size_t)i[N],
                         .alpha = 1.0f,
                         .add = g->add >> RES & 1};

        PSEG_TRY(pseg_sum_block(s, &b, 0, err));
    }
out:
    return rc;
}

static double flops(const pseg_op_args *a, const pseg_op_grads *g)
{
    return pseg_op_row_gemm.flops(a) * (pseg_wants(g, A) + pseg_wants(g, W));
}

static double bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    return pseg_op_row_gemm.bytes(a) * (pseg_wants(g, A) + pseg_wants(g, W));
}

static bool may_alias(const pseg_op_args *a, size_t slot)
{
    /* Last to be written, and then over itself: nothing happens. */
    return slot == RES && a->i[RES_STRIDE] == a->i[OUT_STRIDE];
}

const pseg_op_backward pseg_op_backward_gemm = {
    .slots = 1u << A | 1u << W | 1u << BIAS | 1u << RES,
    .reads = reads,
    .check = check,
    .may_alias = may_alias,
    .turned_elems = turned_elems,
    .ref = ref,
    .launch = launch,
    .flops = flops,
    .bytes = bytes,
    .tol = {1e-4, 1e-5, 1e-11},
    .tol_why = WHY,
};

/* ---- conv3 -------------------------------------------------------------------------------- */

static pseg_status v_check(const pseg_op_args *a, const pseg_op_grads *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    (void)g;
    PSEG_REQUIRE(PSEG_PRODUCT(9, a->i[V_C], a->i[V_N]) <= (size_t)MAX_DIM, "size of the weight");
out:
    return rc;
}

static size_t v_turned_elems(const pseg_op_args *a)
{
    return packed((size_t)a->i[V_C], 9 * (size_t)a->i[V_N]);
}

/* The row of x that tap meets at row r of the result; -1: outside of the map. */
static int64_t neighbour(const pseg_op_args *a, int64_t r, int64_t tap)
{
    int64_t h = a->i[V_HEIGHT], w = a->i[V_WIDTH], dy = tap / 3 - 1, dx = tap % 3 - 1;
    int64_t y = r / w % h + dy, x = r % w + dx;

    return y < 0 || y >= h || x < 0 || x >= w ? -1 : r + dy * w + dx;
}

static void v_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    int64_t c_n = a->i[V_C], n_n = a->i[V_N];
    int64_t rows = a->i[V_BATCH] * a->i[V_HEIGHT] * a->i[V_WIDTH];
    const double *d = pseg_grad_reals(g, OUT);

    /* The taps that meet a row of x are those of its neighbours, mirrored. */
    for (int64_t r = 0; r < rows && pseg_wants(g, A); r++)
        for (int64_t c = 0; c < c_n; c++) {
            double sum = 0;

            for (int64_t tap = 0; tap < 9; tap++) {
                int64_t at = neighbour(a, r, 8 - tap);

                for (int64_t n = 0; n < n_n && at >= 0; n++)
                    sum += d[at * n_n + n] *
                           pseg_reals(a, W)[((n / PSEG_PANEL * 9 + tap) * c_n + c) * PSEG_PANEL +
                                            n % PSEG_PANEL];
            }
            pseg_grad_put(g, A, r * c_n + c, sum);
        }
    for (int64_t n = 0; n < (n_n + PSEG_PANEL - 1) / PSEG_PANEL * PSEG_PANEL && pseg_wants(g, W);
         n++)
        for (int64_t k = 0; k < 9 * c_n; k++) {
            double sum = 0;

            for (int64_t r = 0; r < rows && n < n_n; r++) {
                int64_t at = neighbour(a, r, k / c_n);

                if (at >= 0)
                    sum += d[r * n_n + n] * pseg_reals(a, A)[at * c_n + k % c_n];
            }
            pseg_grad_put(g, W, (n / PSEG_PANEL * 9 * c_n + k) * PSEG_PANEL + n % PSEG_PANEL, sum);
        }
    for (int64_t n = 0; n < n_n && pseg_wants(g, BIAS); n++) {
        double sum = 0;

        for (int64_t r = 0; r < rows; r++)
            sum += d[r * n_n + n];
        pseg_grad_put(g, BIAS, n, sum);
    }
}

/* A convolution of the gradient with the turned weight. */
static pseg_status v_launch_x(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                              uint32_t rows, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;
    size_t used, zeros = (size_t)i[V_N] * sizeof(float);
    pseg_tensor turned;
    pseg_mem *mem = NULL;

    PSEG_TRY(turned_weight(&turned, &used, s, a, g, (size_t)i[V_N], (size_t)i[V_C], 9, zeros, err));
    PSEG_TRY(pseg_stream_scratch(&mem, s, used + zeros, err)); /* the same memory as above */
    PSEG_TRY(pseg_mem_zero(s, mem, used, zeros, err));
    pseg_conv3_params p = {
        .out_off = g->t[A].off,
        .x_off = g->t[OUT].off,
        .w_off = turned.off,
        .zeros_off = used / sizeof(float),
        .m = rows,
        .h = (uint32_t)i[V_HEIGHT],
        .w = (uint32_t)i[V_WIDTH],
        .c = (uint32_t)i[V_N],
        .n = (uint32_t)i[V_C],
        .flags = g->add >> A & 1 ? HAS_RES : 0,
    };
    pseg_arg args[] = {PSEG_ARG_MEM(g->t[A].mem), PSEG_ARG_MEM(g->t[OUT].mem),
                       PSEG_ARG_MEM(turned.mem), PSEG_ARG_NONE, PSEG_ARG_MEM(mem)};
    PSEG_TRY(pseg_conv3_enqueue(s, args, &p, err));
    pseg_stream_credit(s, pseg_op_row_conv3.flops(a), pseg_op_row_conv3.bytes(a));
out:
    return rc;
}

static pseg_status v_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;
    uint32_t rows = (uint32_t)(i[V_BATCH] * i[V_HEIGHT] * i[V_WIDTH]);
    pseg_weight_grad_params p = {
        .x_off = a->t[A].off,
        .x_stride = (uint64_t)i[V_C],
        .g_stride = (uint64_t)i[V_N],
        .m = rows,
        .n = (uint32_t)i[V_N],
        .c = (uint32_t)i[V_C],
        .taps = 9,
        .h = (uint32_t)i[V_HEIGHT],
        .w = (uint32_t)i[V_WIDTH],
    };

    if (pseg_wants(g, A))
        PSEG_TRY(v_launch_x(s, a, g, rows, err));
    PSEG_TRY(weight_and_bias(s, a, g, &p, err));
out:
    return rc;
}

static double v_flops(const pseg_op_args *a, const pseg_op_grads *g)
{
    return pseg_op_row_conv3.flops(a) * (pseg_wants(g, A) + pseg_wants(g, W));
}

static double v_bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    return pseg_op_row_conv3.bytes(a) * (pseg_wants(g, A) + pseg_wants(g, W));
}

const pseg_op_backward pseg_op_backward_conv3 = {
    .slots = 1u << A | 1u << W | 1u << BIAS,
    .reads = reads,
    .check = v_check,
    .turned_elems = v_turned_elems,
    .ref = v_ref,
    .launch = v_launch,
    .flops = v_flops,
    .bytes = v_bytes,
    .tol = {1e-4, 1e-5, 1e-11},
    .tol_why = WHY,
};
