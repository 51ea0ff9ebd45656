/* 3x3 convolutions without their columns in memory. */
#include "worker/ops/conv.h"

enum { OUT, X, W, BIAS };
enum { BATCH, HEIGHT, WIDTH, C, N };

static const pseg_op_slot slots[] = {
    {"out", PSEG_F32, true, false},
    {"x", PSEG_F32, false, false},
    {"w", PSEG_F32, false, false},
    {"bias", PSEG_F32, false, true},
};

static pseg_status check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_conv3, a, BATCH, 5, err));
    PSEG_CHECK_ROWS(i[BATCH], i[HEIGHT], i[WIDTH]);
    PSEG_CHECK_ROWS(9, i[C]);
    PSEG_CHECK_ROWS(9, i[N]);
out:
    return rc;
}

static size_t extent(const pseg_op_args *a, size_t slot)
{
    const int64_t *i = a->i;

    switch (slot) {
    case OUT:
        return PSEG_PRODUCT(i[BATCH], i[HEIGHT], i[WIDTH], i[N]);
    case X:
        return PSEG_PRODUCT(i[BATCH], i[HEIGHT], i[WIDTH], i[C]);
    case W:
        return PSEG_PRODUCT((i[N] + PSEG_PANEL - 1) / PSEG_PANEL, 9, i[C], PSEG_PANEL);
    default:
        return (size_t)i[N];
    }
}

static void ref(const pseg_op_args *a)
{
    int64_t h = a->i[HEIGHT], w = a->i[WIDTH], c_n = a->i[C], n_n = a->i[N];

    for (int64_t r = 0; r < a->i[BATCH] * h * w; r++)
        for (int64_t n = 0; n < n_n; n++) {
            const double *panel = pseg_reals(a, W) + n / PSEG_PANEL * 9 * c_n * PSEG_PANEL;
            double sum = pseg_has(a, BIAS) ? pseg_reals(a, BIAS)[n] : 0;

            for (int64_t tap = 0; tap < 9; tap++) {
                int64_t dy = tap / 3 - 1, dx = tap % 3 - 1;
                int64_t y = r / w % h + dy, x = r % w + dx;

                if (y < 0 || y >= h || x < 0 || x >= w)
                    continue;
                const double *from = pseg_reals(a, X) + (r + dy * w + dx) * c_n;
                for (int64_t c = 0; c < c_n; c++)
                    sum += from[c] * panel[(tap * c_n + c) * PSEG_PANEL + n % PSEG_PANEL];
            }
            pseg_reals(a, OUT)[r * n_n + n] = sum;
        }
}

pseg_status pseg_conv3_enqueue(pseg_stream *s, const pseg_arg *args, pseg_conv3_params *p,
                               pseg_err *err)
{
    static const pseg_kernel wide = {"conv.cl", "conv3", "-DMR=12 -DNV=2"};
    static const pseg_kernel narrow = {"conv.cl", "conv3", "-DMR=6 -DNV=1"};
    static const pseg_kernel portable = {"conv.cl", "conv3", NULL};
    const pseg_cl *cl = pseg_stream_cl(s);
    pseg_arg all[6] = {args[0], args[1], args[2], args[3], args[4], PSEG_ARG_VALUE(*p)};

    if (pseg_cl_variant_of(cl) == PSEG_CL_PORTABLE) {
        size_t global[2] = {((size_t)p->n + 63) / 64 * 16, ((size_t)p->m + 63) / 64 * 16};
        size_t local[2] = {16, 16};

        return pseg_launch(s, &portable, 2, global, local, all, N_OF(all), err);
    }
    bool is_wide = pseg_cl_device(cl)->vector_width >= 16;
    uint64_t tiles = ((uint64_t)p->m + (is_wide ? 11 : 5)) / (is_wide ? 12 : 6);
    uint64_t columns = ((uint64_t)p->n + (is_wide ? 31 : 15)) / (is_wide ? 32 : 16);
    uint64_t per = tiles * columns / (8 * (uint64_t)pseg_cl_device(cl)->compute_units);

    p->tiles_per_item = (uint32_t)(per < 1 ? 1 : per > tiles ? tiles : per);
    size_t global[2] = {(tiles + p->tiles_per_item - 1) / p->tiles_per_item, columns};
    size_t local[2] = {1, 1};
    return pseg_launch(s, is_wide ? &wide : &narrow, 2, global, local, all, N_OF(all), err);
}

static pseg_status launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;
    pseg_mem *zeros = NULL;
    pseg_conv3_params p = {
        .out_off = a->t[OUT].off,
        .x_off = a->t[X].off,
        .w_off = a->t[W].off,
        .bias_off = a->t[BIAS].off,
        .m = (uint32_t)(i[BATCH] * i[HEIGHT] * i[WIDTH]),
        .h = (uint32_t)i[HEIGHT],
        .w = (uint32_t)i[WIDTH],
        .c = (uint32_t)i[C],
        .n = (uint32_t)i[N],
        .flags = pseg_has(a, BIAS) ? HAS_BIAS : 0,
    };

    PSEG_TRY(pseg_stream_scratch(&zeros, s, p.c * sizeof(float), err));
    PSEG_TRY(pseg_mem_zero(s, zeros, 0, p.c * sizeof(float), err));
    pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, X), pseg_arg_of(a, W),
                       pseg_arg_of(a, BIAS), PSEG_ARG_MEM(zeros)};
    PSEG_TRY(pseg_conv3_enqueue(s, args, &p, err));
out:
    return rc;
}

static double flops(const pseg_op_args *a)
{
    const int64_t *i = a->i;

    return 18.0 * (double)i[BATCH] * (double)i[HEIGHT] * (double)i[WIDTH] * (double)i[C] *
           (double)i[N];
}

static double bytes(const pseg_op_args *a)
{
    return 4.0 * ((double)extent(a, OUT) + (double)extent(a, X) + (double)extent(a, W));
}

#define NO_BIAS (1u << BIAS)

static const pseg_op_case cases[] = {
    {"one", {1, 1, 1, 1, 1}, {0}, NO_BIAS, 0, 0},
    {"a row", {1, 1, 7, 3, 33}, {0}, 0, 0, 0},
    {"odd", {2, 3, 4, 5, 40}, {0}, 0, 0, 0},
    {"columns", {1, 7, 2, 16, 35}, {0}, NO_BIAS, 0, 0},
    {"many rows", {5, 15, 14, 9, 34}, {0}, 0, 0, 0},
    {"neck", {1, 16, 16, 256, 256}, {0}, 0, 0, PSEG_CASE_BIG | PSEG_CASE_REAL},
    {"neck, batch 32",
     {32, 16, 16, 256, 256},
     {0},
     0,
     0,
     PSEG_CASE_BIG | PSEG_CASE_REAL | PSEG_CASE_SLOW},
    {"neck, batch 8",
     {8, 16, 16, 256, 256},
     {0},
     0,
     0,
     PSEG_CASE_BIG | PSEG_CASE_REAL | PSEG_CASE_SLOW},
};

const pseg_op pseg_op_row_conv3 = {
    .name = "conv3",
    .slots = slots,
    .n_slots = N_OF(slots),
    .params = "batch, h, w, c, n",
    .check = check,
    .extent = extent,
    .ref = ref,
    .launch = launch,
    .backward = &pseg_op_backward_conv3,
    .flops = flops,
    .bytes = bytes,
    .tol = {2e-4, 1e-5, 1e-11},
    .tol_why = "gemm's, with K = 9 C",
    .cases = cases,
    .n_cases = N_OF(cases),
};

pseg_op_args pseg_conv3_args(const pseg_conv3 *v)
{
    return (pseg_op_args){
        .t = {pseg_tensor_of(v->out), pseg_tensor_of(v->x), pseg_tensor_of(v->w),
              pseg_tensor_of(v->bias)},
        .i = {pseg_dim(v->batch), pseg_dim(v->h), pseg_dim(v->width), pseg_dim(v->c),
              pseg_dim(v->n)},
    };
}

pseg_status pseg_op_conv3(pseg_stream *s, const pseg_conv3 *v, pseg_err *err)
{
    pseg_op_args a = pseg_conv3_args(v);

    return pseg_op_run(s, &pseg_op_row_conv3, &a, err);
}
