#include "worker/ops/internal.h"

#define MOVE_WHY "values are moved"

enum { OUT, X };

static double no_flops(const pseg_op_args *a)
{
    (void)a;
    return 0;
}

/* ---- patches ------------------------------------------------------------------------------ */

enum { P_BATCH, P_CH, P_GH, P_GW, P_P, P_OUT_STRIDE };

static const pseg_op_slot move_slots[] = {
    {"out", PSEG_F32, true, false, false},
    {"x", PSEG_F32, false, false, false},
};
static const pseg_op_slot round_slots[] = {
    {"out", PSEG_F32, true, false, true},
    {"x", PSEG_F32, false, false, false},
};

static pseg_status patches_check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_patches, a, 0, 5, err));
    PSEG_CHECK_ROWS(i[P_BATCH], i[P_GH], i[P_GW]);
    PSEG_CHECK_ROWS(i[P_CH], i[P_P], i[P_P]);
    PSEG_REQUIRE(i[P_OUT_STRIDE] >= i[P_CH] * i[P_P] * i[P_P] && i[P_OUT_STRIDE] <= MAX_DIM,
                 "out's row stride");
out:
    return rc;
}

static size_t patches_extent(const pseg_op_args *a, size_t slot)
{
    if (slot == OUT)
        return PSEG_PRODUCT(a->i[P_BATCH], a->i[P_GH], a->i[P_GW], a->i[P_OUT_STRIDE]);
    return PSEG_PRODUCT(a->i[P_BATCH], a->i[P_CH], a->i[P_GH], a->i[P_GW], a->i[P_P], a->i[P_P]);
}

static void patches_ref(const pseg_op_args *a)
{
    int64_t ch = a->i[P_CH], gh = a->i[P_GH], gw = a->i[P_GW], p = a->i[P_P];

    for (int64_t r = 0; r < a->i[P_BATCH] * gh * gw; r++) {
        double *out = pseg_reals(a, OUT) + r * a->i[P_OUT_STRIDE];

        for (int64_t i = ch * p * p; i < a->i[P_OUT_STRIDE]; i++)
            out[i] = 0;
        for (int64_t c = 0; c < ch; c++)
            for (int64_t y = 0; y < p; y++)
                for (int64_t x = 0; x < p; x++) {
                    int64_t b = r / (gh * gw), row = r / gw % gh * p + y, col = r % gw * p + x;

                    out[(c * p + y) * p + x] =
                        pseg_reals(a, X)[((b * ch + c) * gh * p + row) * gw * p + col];
                }
    }
}

static pseg_status patches_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel kernels[2] = {{"layout.cl", "patches", NULL},
                                           {"layout.cl", "patches", "-DOUT_BF16"}};
    pseg_patches_params p = {
        .out_off = a->t[OUT].off,
        .x_off = a->t[X].off,
        .out_stride = (uint64_t)a->i[P_OUT_STRIDE],
        .batch = (uint32_t)a->i[P_BATCH],
        .channels = (uint32_t)a->i[P_CH],
        .gh = (uint32_t)a->i[P_GH],
        .gw = (uint32_t)a->i[P_GW],
        .p = (uint32_t)a->i[P_P],
    };
    pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, X), PSEG_ARG_VALUE(p)};

    return pseg_launch_rows(s, &kernels[pseg_is_bf16(a, OUT)], (uint64_t)p.batch * p.gh * p.gw,
                            (uint64_t)p.channels * p.p, args, N_OF(args), err);
}

static double patches_bytes(const pseg_op_args *a)
{
    return 8.0 * (double)patches_extent(a, OUT);
}

static const pseg_op_case patches_cases[] = {
    {"one", {1, 1, 1, 1, 1, 1}, {0}, 0, 0, 0},
    {"odd", {2, 3, 2, 5, 7, 147}, {0}, 0, 0, 0},
    {"filled up", {1, 3, 3, 2, 5, 96}, {0}, 0, 0, 0},
    {"filled up, to BF16", {2, 3, 2, 2, 14, 608}, {0}, 0, 0, 0, 1u << OUT},
    {"dinov2", {1, 3, 16, 16, 14, 588}, {0}, 0, 0, PSEG_CASE_BIG | PSEG_CASE_REAL},
};

const pseg_op pseg_op_row_patches = {
    .name = "patches",
    .slots = round_slots,
    .n_slots = N_OF(round_slots),
    .params = "batch, channels, gh, gw, p, out_stride",
    .check = patches_check,
    .extent = patches_extent,
    .ref = patches_ref,
    .launch = patches_launch,
    .flops = no_flops,
    .bytes = patches_bytes,
    .tol = {0, 0, 0},
    .tol_why = MOVE_WHY,
    .cases = patches_cases,
    .n_cases = N_OF(patches_cases),
};

pseg_status pseg_op_patches(pseg_stream *s, pseg_view out, pseg_view x, size_t batch,
                            size_t channels, size_t gh, size_t gw, size_t p, size_t out_stride,
                            pseg_err *err)
{
    pseg_op_args a = {.t = {pseg_tensor_of(out), pseg_tensor_of(x)},
                      .i = {pseg_dim(batch), pseg_dim(channels), pseg_dim(gh), pseg_dim(gw),
                            pseg_dim(p), pseg_dim(out_stride ? out_stride : channels * p * p)}};

    return pseg_op_run(s, &pseg_op_row_patches, &a, err);
}

/* ---- im2col3, shuffle2, transpose ---------------------------------------------------------- */

enum { M_BATCH, M_H, M_W, M_C };

static pseg_status map_launch(pseg_stream *s, const pseg_op_args *a, const pseg_kernel *kernel,
                              uint64_t rows, uint64_t c, pseg_err *err)
{
    pseg_map_params p = {
        .out_off = a->t[OUT].off,
        .x_off = a->t[X].off,
        .batch = (uint32_t)a->i[M_BATCH],
        .h = (uint32_t)a->i[M_H],
        .w = (uint32_t)a->i[M_W],
        .c = (uint32_t)a->i[M_C],
    };
    pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, X), PSEG_ARG_VALUE(p)};

    return pseg_launch_rows(s, kernel, rows, c, args, N_OF(args), err);
}

static pseg_status im2col3_check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_im2col3, a, 0, 4, err));
    PSEG_CHECK_ROWS(a->i[M_BATCH], a->i[M_H], a->i[M_W]);
    PSEG_CHECK_ROWS(a->i[M_C], 9);
out:
    return rc;
}

static size_t im2col3_extent(const pseg_op_args *a, size_t slot)
{
    return PSEG_PRODUCT(a->i[M_BATCH], a->i[M_H], a->i[M_W], a->i[M_C], slot == OUT ? 9 : 1);
}

static void im2col3_ref(const pseg_op_args *a)
{
    int64_t h = a->i[M_H], w = a->i[M_W], n = a->i[M_C];

    for (int64_t r = 0; r < a->i[M_BATCH] * h * w; r++)
        for (int64_t tap = 0; tap < 9; tap++)
            for (int64_t c = 0; c < n; c++) {
                int64_t y = r / w % h + tap / 3 - 1, x = r % w + tap % 3 - 1, b = r / (h * w);
                bool is_in = y >= 0 && y < h && x >= 0 && x < w;

                pseg_reals(a, OUT)[(r * 9 + tap) * n + c] =
                    is_in ? pseg_reals(a, X)[((b * h + y) * w + x) * n + c] : 0.0f;
            }
}

static pseg_status im2col3_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel kernels[2] = {{"layout.cl", "im2col3", NULL},
                                           {"layout.cl", "im2col3", "-DOUT_BF16"}};

    return map_launch(s, a, &kernels[pseg_is_bf16(a, OUT)],
                      (uint64_t)(a->i[M_BATCH] * a->i[M_H] * a->i[M_W]), (uint64_t)a->i[M_C], err);
}

static double im2col3_bytes(const pseg_op_args *a)
{
    return 4.0 * ((double)im2col3_extent(a, OUT) + (double)im2col3_extent(a, X));
}

static const pseg_op_case im2col3_cases[] = {
    {"one", {1, 1, 1, 1}, {0}, 0, 0, 0},
    {"odd", {2, 3, 5, 19}, {0}, 0, 0, 0},
    {"a row", {1, 1, 7, 16}, {0}, 0, 0, 0},
    {"to BF16", {2, 3, 5, 19}, {0}, 0, 0, 0, 1u << OUT},
    {"neck", {1, 16, 16, 256}, {0}, 0, 0, PSEG_CASE_BIG | PSEG_CASE_REAL},
};

const pseg_op pseg_op_row_im2col3 = {
    .name = "im2col3",
    .slots = round_slots,
    .n_slots = N_OF(round_slots),
    .params = "batch, h, w, c",
    .check = im2col3_check,
    .extent = im2col3_extent,
    .ref = im2col3_ref,
    .launch = im2col3_launch,
    .backward = &pseg_op_backward_im2col3,
    .flops = no_flops,
    .bytes = im2col3_bytes,
    .tol = {0, 0, 0},
    .tol_why = MOVE_WHY,
    .cases = im2col3_cases,
    .n_cases = N_OF(im2col3_cases),
};

pseg_status pseg_op_im2col3(pseg_stream *s, pseg_view out, pseg_view x, size_t batch, size_t h,
                            size_t w, size_t c, pseg_err *err)
{
    pseg_op_args a = {.t = {pseg_tensor_of(out), pseg_tensor_of(x)},
                      .i = {pseg_dim(batch), pseg_dim(h), pseg_dim(w), pseg_dim(c)}};

    return pseg_op_run(s, &pseg_op_row_im2col3, &a, err);
}

static pseg_status shuffle2_check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_shuffle2, a, 0, 4, err));
    PSEG_CHECK_ROWS(a->i[M_BATCH], a->i[M_H], a->i[M_W], 4);
out:
    return rc;
}

static size_t shuffle2_extent(const pseg_op_args *a, size_t slot)
{
    (void)slot;
    return PSEG_PRODUCT(a->i[M_BATCH], a->i[M_H], a->i[M_W], a->i[M_C], 4);
}

static void shuffle2_ref(const pseg_op_args *a)
{
    int64_t h = a->i[M_H], w = a->i[M_W], n = a->i[M_C];

    for (int64_t r = 0; r < a->i[M_BATCH] * h * w; r++)
        for (int64_t tap = 0; tap < 4; tap++)
            for (int64_t c = 0; c < n; c++) {
                int64_t b = r / (h * w), y = r / w % h * 2 + tap / 2, x = r % w * 2 + tap % 2;

                pseg_reals(a, OUT)[((b * 2 * h + y) * 2 * w + x) * n + c] =
                    pseg_reals(a, X)[(r * 4 + tap) * n + c];
            }
}

static pseg_status shuffle2_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel kernel = {"layout.cl", "pixel_shuffle2", NULL};

    return map_launch(s, a, &kernel, (uint64_t)(a->i[M_BATCH] * 4 * a->i[M_H] * a->i[M_W]),
                      (uint64_t)a->i[M_C], err);
}

static double move_bytes(const pseg_op_args *a)
{
    return 32.0 * (double)a->i[M_BATCH] * (double)a->i[M_H] * (double)a->i[M_W] * (double)a->i[M_C];
}

static const pseg_op_case shuffle2_cases[] = {
    {"one", {1, 1, 1, 1}, {0}, 0, 0, 0},
    {"odd", {2, 3, 5, 19}, {0}, 0, 0, 0},
    {"upsampler", {1, 64, 64, 32}, {0}, 0, 0, PSEG_CASE_BIG | PSEG_CASE_REAL},
};

const pseg_op pseg_op_row_shuffle2 = {
    .name = "pixel_shuffle2",
    .slots = move_slots,
    .n_slots = N_OF(move_slots),
    .params = "batch, h, w, c",
    .check = shuffle2_check,
    .extent = shuffle2_extent,
    .ref = shuffle2_ref,
    .launch = shuffle2_launch,
    .backward = &pseg_op_backward_shuffle2,
    .flops = no_flops,
    .bytes = move_bytes,
    .tol = {0, 0, 0},
    .tol_why = MOVE_WHY,
    .cases = shuffle2_cases,
    .n_cases = N_OF(shuffle2_cases),
};

pseg_status pseg_op_shuffle2(pseg_stream *s, pseg_view out, pseg_view x, size_t batch, size_t h,
                             size_t w, size_t c, pseg_err *err)
{
    pseg_op_args a = {.t = {pseg_tensor_of(out), pseg_tensor_of(x)},
                      .i = {pseg_dim(batch), pseg_dim(h), pseg_dim(w), pseg_dim(c)}};

    return pseg_op_run(s, &pseg_op_row_shuffle2, &a, err);
}

static pseg_status transpose_check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_transpose, a, 0, 3, err));
    PSEG_CHECK_ROWS(a->i[M_BATCH], a->i[M_W]);
out:
    return rc;
}

static size_t transpose_extent(const pseg_op_args *a, size_t slot)
{
    (void)slot;
    return pseg_product(3, a->i);
}

static void transpose_ref(const pseg_op_args *a)
{
    int64_t h = a->i[M_H], w = a->i[M_W];

    for (int64_t b = 0; b < a->i[M_BATCH]; b++)
        for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x++)
                pseg_reals(a, OUT)[(b * w + x) * h + y] = pseg_reals(a, X)[(b * h + y) * w + x];
}

static pseg_status transpose_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel kernel = {"layout.cl", "transpose", NULL};

    return map_launch(s, a, &kernel, (uint64_t)(a->i[M_BATCH] * a->i[M_W]), (uint64_t)a->i[M_H],
                      err);
}

static double transpose_bytes(const pseg_op_args *a)
{
    return 8.0 * (double)transpose_extent(a, OUT);
}

static const pseg_op_case transpose_cases[] = {
    {"one", {1, 1, 1}, {0}, 0, 0, 0},
    {"odd", {3, 7, 33}, {0}, 0, 0, 0},
    {"to planar", {1, 256, 768}, {0}, 0, 0, PSEG_CASE_BIG | PSEG_CASE_REAL},
};

const pseg_op pseg_op_row_transpose = {
    .name = "transpose",
    .slots = move_slots,
    .n_slots = N_OF(move_slots),
    .params = "batch, r, c",
    .check = transpose_check,
    .extent = transpose_extent,
    .ref = transpose_ref,
    .launch = transpose_launch,
    .backward = &pseg_op_backward_transpose,
    .flops = no_flops,
    .bytes = transpose_bytes,
    .tol = {0, 0, 0},
    .tol_why = MOVE_WHY,
    .cases = transpose_cases,
    .n_cases = N_OF(transpose_cases),
};

pseg_status pseg_op_transpose(pseg_stream *s, pseg_view out, pseg_view x, size_t batch, size_t r,
                              size_t c, pseg_err *err)
{
    pseg_op_args a = {.t = {pseg_tensor_of(out), pseg_tensor_of(x)},
                      .i = {pseg_dim(batch), pseg_dim(r), pseg_dim(c)}};

    return pseg_op_run(s, &pseg_op_row_transpose, &a, err);
}
