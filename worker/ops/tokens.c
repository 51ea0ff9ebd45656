/* Token sequences: assembling a ViT's, and gathering rows by index. */
#include "worker/ops/internal.h"

#define MOVE_WHY "values are moved, at most with one addition"

enum { OUT };

static double no_flops(const pseg_op_args *a)
{
    (void)a;
    return 0;
}

/* ---- tokens ------------------------------------------------------------------------------- */

enum { T_PATCH = 1, T_CLS, T_REGS, T_POS };
enum { T_BATCH, T_N, T_C, T_R };

static const pseg_op_slot tokens_slots[] = {
    {"out", PSEG_F32, true, false}, {"patch", PSEG_F32, false, false},
    {"cls", PSEG_F32, false, true}, {"regs", PSEG_F32, false, true},
    {"pos", PSEG_F32, false, true},
};

static int64_t tokens_rows(const pseg_op_args *a)
{
    return a->i[T_N] + a->i[T_R] + (pseg_has(a, T_CLS) ? 1 : 0);
}

static pseg_status tokens_check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_tokens, a, T_BATCH, 3, err));
    PSEG_REQUIRE(a->i[T_R] >= 0 && a->i[T_R] <= MAX_DIM, "number of registers");
    PSEG_REQUIRE((a->i[T_R] > 0) == pseg_has(a, T_REGS), "registers and their number");
    PSEG_CHECK_ROWS(a->i[T_BATCH], tokens_rows(a));
out:
    return rc;
}

static size_t tokens_extent(const pseg_op_args *a, size_t slot)
{
    const int64_t *i = a->i;

    switch (slot) {
    case OUT:
        return PSEG_PRODUCT(i[T_BATCH], tokens_rows(a), i[T_C]);
    case T_PATCH:
        return PSEG_PRODUCT(i[T_BATCH], i[T_N], i[T_C]);
    case T_CLS:
        return (size_t)i[T_C];
    case T_REGS:
        return PSEG_PRODUCT(i[T_R], i[T_C]);
    default:
        return PSEG_PRODUCT(i[T_N] + (pseg_has(a, T_CLS) ? 1 : 0), i[T_C]);
    }
}

static void tokens_ref(const pseg_op_args *a)
{
    int64_t n_cls = pseg_has(a, T_CLS) ? 1 : 0, c = a->i[T_C], rows = tokens_rows(a);

    for (int64_t b = 0; b < a->i[T_BATCH]; b++)
        for (int64_t t = 0; t < rows; t++) {
            int64_t patch = t - n_cls - a->i[T_R]; /* negative: cls or a register */
            const double *from = patch >= 0  ? pseg_reals(a, T_PATCH) + (b * a->i[T_N] + patch) * c
                                 : t < n_cls ? pseg_reals(a, T_CLS)
                                             : pseg_reals(a, T_REGS) + (t - n_cls) * c;
            bool has_pos = pseg_has(a, T_POS) && (patch >= 0 || t < n_cls);

            for (int64_t k = 0; k < c; k++) {
                double v = from[k];

                if (has_pos)
                    v += pseg_reals(a, T_POS)[(patch >= 0 ? patch + n_cls : 0) * c + k];
                pseg_reals(a, OUT)[(b * rows + t) * c + k] = v;
            }
        }
}

static pseg_status tokens_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel kernel = {"layout.cl", "tokens", NULL};
    pseg_tokens_params p = {
        .out_off = a->t[OUT].off,
        .patch_off = a->t[T_PATCH].off,
        .cls_off = a->t[T_CLS].off,
        .regs_off = a->t[T_REGS].off,
        .pos_off = a->t[T_POS].off,
        .batch = (uint32_t)a->i[T_BATCH],
        .n_patches = (uint32_t)a->i[T_N],
        .n_regs = (uint32_t)a->i[T_R],
        .c = (uint32_t)a->i[T_C],
        .flags = (pseg_has(a, T_CLS) ? HAS_CLS : 0) | (pseg_has(a, T_POS) ? HAS_POS : 0),
    };
    pseg_arg args[] = {pseg_arg_of(a, OUT),    pseg_arg_of(a, T_PATCH), pseg_arg_of(a, T_CLS),
                       pseg_arg_of(a, T_REGS), pseg_arg_of(a, T_POS),   PSEG_ARG_VALUE(p)};

    return pseg_launch_rows(s, &kernel, (uint64_t)(a->i[T_BATCH] * tokens_rows(a)), p.c, args,
                            N_OF(args), err);
}

static double tokens_bytes(const pseg_op_args *a)
{
    return 8.0 * (double)tokens_extent(a, OUT);
}

static const pseg_op_case tokens_cases[] = {
    {"patches alone", {2, 3, 5, 0}, {0}, 1u << T_CLS | 1u << T_REGS | 1u << T_POS, 0, 0},
    {"no cls", {1, 4, 17, 0}, {0}, 1u << T_CLS | 1u << T_REGS, 0, 0},
    {"no position", {2, 4, 16, 1}, {0}, 1u << T_POS, 0, 0},
    {"registers", {3, 5, 21, 4}, {0}, 0, 0, 0},
    {"dinov2-base", {1, 256, 768, 0}, {0}, 1u << T_REGS, 0, PSEG_CASE_BIG | PSEG_CASE_REAL},
};

const pseg_op pseg_op_row_tokens = {
    .name = "tokens",
    .slots = tokens_slots,
    .n_slots = N_OF(tokens_slots),
    .params = "batch, n_patches, c, n_regs",
    .check = tokens_check,
    .extent = tokens_extent,
    .ref = tokens_ref,
    .launch = tokens_launch,
    .backward = &pseg_op_backward_tokens,
    .flops = no_flops,
    .bytes = tokens_bytes,
    .tol = {0, 1.2e-7, 1e-14},
    .tol_why = MOVE_WHY,
    .cases = tokens_cases,
    .n_cases = N_OF(tokens_cases),
};

pseg_op_args pseg_tokens_args(const pseg_tokens *t)
{
    return (pseg_op_args){
        .t = {pseg_tensor_of(t->out), pseg_tensor_of(t->patch), pseg_tensor_of(t->cls),
              pseg_tensor_of(t->n_regs ? t->regs : PSEG_NO_VIEW), pseg_tensor_of(t->pos)},
        .i = {pseg_dim(t->batch), pseg_dim(t->n_patches), pseg_dim(t->c), pseg_dim(t->n_regs)},
    };
}

pseg_status pseg_op_tokens(pseg_stream *s, const pseg_tokens *t, pseg_err *err)
{
    pseg_op_args a = pseg_tokens_args(t);

    return pseg_op_run(s, &pseg_op_row_tokens, &a, err);
}

/* ---- gather ------------------------------------------------------------------------------- */

enum { G_X = 1, G_IDX, G_POS };
enum { G_ROWS, G_C, G_N_X, G_STRIDE, G_N_POS };

static const pseg_op_slot gather_slots[] = {
    {"out", PSEG_F32, true, false},
    {"x", PSEG_F32, false, false},
    {"idx", PSEG_I32, false, false},
    {"pos", PSEG_F32, false, true},
};

static pseg_status gather_check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_gather, a, G_ROWS, 3, err));
    PSEG_REQUIRE(a->i[G_STRIDE] >= a->i[G_C] && a->i[G_STRIDE] <= MAX_STRIDE, "x's row stride");
    PSEG_REQUIRE(a->i[G_N_POS] >= 0 && a->i[G_N_POS] <= MAX_DIM, "number of positions");
    PSEG_REQUIRE((a->i[G_N_POS] > 0) == pseg_has(a, G_POS), "positions and their number");
out:
    return rc;
}

static size_t gather_extent(const pseg_op_args *a, size_t slot)
{
    switch (slot) {
    case OUT:
        return PSEG_PRODUCT(a->i[G_ROWS], a->i[G_C]);
    case G_X:
        return pseg_extent_rows(a->i[G_N_X], a->i[G_STRIDE], a->i[G_C]);
    case G_IDX:
        return (size_t)a->i[G_ROWS];
    default:
        return PSEG_PRODUCT(a->i[G_N_POS], a->i[G_C]);
    }
}

static void gather_ref(const pseg_op_args *a)
{
    int64_t n = a->i[G_C];

    for (int64_t r = 0; r < a->i[G_ROWS]; r++) {
        int64_t at = pseg_ints(a, G_IDX)[r];
        bool is_in = at >= 0 && at < a->i[G_N_X];

        for (int64_t c = 0; c < n; c++) {
            double v = is_in ? pseg_reals(a, G_X)[at * a->i[G_STRIDE] + c] : 0.0;

            if (is_in && pseg_has(a, G_POS))
                v += pseg_reals(a, G_POS)[r % a->i[G_N_POS] * n + c];
            pseg_reals(a, OUT)[r * n + c] = v;
        }
    }
}

static pseg_status gather_launch(pseg_stream *s, const pseg_op_args *a, pseg_err *err)
{
    static const pseg_kernel kernel = {"layout.cl", "gather", NULL};
    pseg_gather_params p = {
        .out_off = a->t[OUT].off,
        .x_off = a->t[G_X].off,
        .idx_off = a->t[G_IDX].off,
        .pos_off = a->t[G_POS].off,
        .x_stride = (uint64_t)a->i[G_STRIDE],
        .rows = (uint32_t)a->i[G_ROWS],
        .c = (uint32_t)a->i[G_C],
        .n_x = (uint32_t)a->i[G_N_X],
        .n_pos = (uint32_t)a->i[G_N_POS],
    };
    pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, G_X), pseg_arg_of(a, G_IDX),
                       pseg_arg_of(a, G_POS), PSEG_ARG_VALUE(p)};

    return pseg_launch_rows(s, &kernel, p.rows, p.c, args, N_OF(args), err);
}

static double gather_bytes(const pseg_op_args *a)
{
    return 8.0 * (double)a->i[G_ROWS] * (double)a->i[G_C];
}

static void gather_int_range(const pseg_op_args *a, size_t slot, int32_t *lo, int32_t *hi)
{
    (void)slot;
    *lo = -1; /* one too low and one too high, which give zeros */
    *hi = (int32_t)a->i[G_N_X];
}

static const pseg_op_case gather_cases[] = {
    {"one", {1, 1, 1, 1, 0}, {0}, 1u << G_POS, 0, 0},
    {"rows", {9, 21, 5, 30, 0}, {0}, 1u << G_POS, 0, 0},
    {"positions", {12, 16, 40, 16, 4}, {0}, 0, 0, 0},
    {"clip", {20, 512, 49408, 512, 20}, {0}, 0, 0, PSEG_CASE_BIG | PSEG_CASE_REAL},
};

const pseg_op pseg_op_row_gather = {
    .name = "gather",
    .slots = gather_slots,
    .n_slots = N_OF(gather_slots),
    .params = "rows, c, n_x, x_stride, n_pos",
    .check = gather_check,
    .extent = gather_extent,
    .ref = gather_ref,
    .launch = gather_launch,
    .backward = &pseg_op_backward_gather,
    .flops = no_flops,
    .bytes = gather_bytes,
    .int_range = gather_int_range,
    .tol = {0, 1.2e-7, 1e-14},
    .tol_why = MOVE_WHY,
    .cases = gather_cases,
    .n_cases = N_OF(gather_cases),
};

pseg_op_args pseg_gather_args(const pseg_gather *g)
{
    return (pseg_op_args){
        .t = {pseg_tensor_of(g->out), pseg_tensor_of(g->x), pseg_tensor_of(g->idx),
              pseg_tensor_of(g->n_pos ? g->pos : PSEG_NO_VIEW)},
        .i = {pseg_dim(g->rows), pseg_dim(g->c), pseg_dim(g->n_x),
              pseg_dim(g->x_stride ? g->x_stride : g->c), pseg_dim(g->n_pos)},
    };
}

pseg_status pseg_op_gather(pseg_stream *s, const pseg_gather *g, pseg_err *err)
{
    pseg_op_args a = pseg_gather_args(g);

    return pseg_op_run(s, &pseg_op_row_gather, &a, err);
}
