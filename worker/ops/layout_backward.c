/* Gradients of im2col3, shuffle2, transpose, tokens and gather. */
#include "worker/ops/reduce.h"

#define MOVE_WHY "values are moved, or a few of them added"

enum { OUT, X };

static uint32_t reads_nothing(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)a;
    (void)g;
    return 0;
}

static double no_flops(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)a;
    (void)g;
    return 0;
}

/* ---- maps --------------------------------------------------------------------------------- */

enum { M_BATCH, M_H, M_W, M_C };

static pseg_status map_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                              const pseg_kernel *kernel, uint64_t rows, uint64_t c, pseg_err *err)
{
    pseg_map_grad_params p = {
        .out_off = g->t[X].off,
        .g_off = g->t[OUT].off,
        .batch = (uint32_t)a->i[M_BATCH],
        .h = (uint32_t)a->i[M_H],
        .w = (uint32_t)a->i[M_W],
        .c = (uint32_t)a->i[M_C],
        .add = g->add >> X & 1,
    };
    pseg_arg args[] = {PSEG_ARG_MEM(g->t[X].mem), PSEG_ARG_MEM(g->t[OUT].mem), PSEG_ARG_VALUE(p)};

    return pseg_wants(g, X) ? pseg_launch_rows(s, kernel, rows, c, args, N_OF(args), err) : PSEG_OK;
}

static void im2col3_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    int64_t h = a->i[M_H], w = a->i[M_W], c_n = a->i[M_C];

    for (int64_t r = 0; r < a->i[M_BATCH] * h * w && pseg_wants(g, X); r++)
        for (int64_t c = 0; c < c_n; c++) {
            double sum = 0;

            for (int64_t tap = 0; tap < 9; tap++) {
                int64_t y = r / w % h + 1 - tap / 3, x = r % w + 1 - tap % 3;

                if (y >= 0 && y < h && x >= 0 && x < w)
                    sum += pseg_grad_reals(
                        g, OUT)[(((r / (h * w) * h + y) * w + x) * 9 + tap) * c_n + c];
            }
            pseg_grad_put(g, X, r * c_n + c, sum);
        }
}

static pseg_status im2col3_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                  pseg_err *err)
{
    static const pseg_kernel kernel = {"layout_backward.cl", "im2col3_backward", NULL};

    return map_launch(s, a, g, &kernel, (uint64_t)(a->i[M_BATCH] * a->i[M_H] * a->i[M_W]),
                      (uint64_t)a->i[M_C], err);
}

static double im2col3_bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return pseg_op_row_im2col3.bytes(a);
}

const pseg_op_backward pseg_op_backward_im2col3 = {
    .slots = 1u << X,
    .reads = reads_nothing,
    .ref = im2col3_ref,
    .launch = im2col3_launch,
    .flops = no_flops,
    .bytes = im2col3_bytes,
    .tol = {1e-6, 1e-6, 1e-12},
    .tol_why = MOVE_WHY,
};

static void shuffle2_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    int64_t h = a->i[M_H], w = a->i[M_W], n = a->i[M_C];

    for (int64_t r = 0; r < a->i[M_BATCH] * h * w * 4 && pseg_wants(g, X); r++)
        for (int64_t c = 0; c < n; c++) {
            int64_t tap = r % 4, b = r / 4 / (h * w);
            int64_t y = r / 4 / w % h * 2 + tap / 2, x = r / 4 % w * 2 + tap % 2;

            pseg_grad_put(g, X, r * n + c,
                          pseg_grad_reals(g, OUT)[((b * 2 * h + y) * 2 * w + x) * n + c]);
        }
}

static pseg_status shuffle2_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                   pseg_err *err)
{
    static const pseg_kernel kernel = {"layout_backward.cl", "pixel_shuffle2_backward", NULL};

    return map_launch(s, a, g, &kernel, (uint64_t)(a->i[M_BATCH] * 4 * a->i[M_H] * a->i[M_W]),
                      (uint64_t)a->i[M_C], err);
}

static double shuffle2_bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return pseg_op_row_shuffle2.bytes(a);
}

const pseg_op_backward pseg_op_backward_shuffle2 = {
    .slots = 1u << X,
    .reads = reads_nothing,
    .ref = shuffle2_ref,
    .launch = shuffle2_launch,
    .flops = no_flops,
    .bytes = shuffle2_bytes,
    .tol = {2.5e-7, 1.2e-7, 1e-14},
    .tol_why = MOVE_WHY,
};

static void transpose_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    int64_t h = a->i[M_H], w = a->i[M_W];

    for (int64_t b = 0; b < a->i[M_BATCH] && pseg_wants(g, X); b++)
        for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x++)
                pseg_grad_put(g, X, (b * h + y) * w + x,
                              pseg_grad_reals(g, OUT)[(b * w + x) * h + y]);
}

static pseg_status transpose_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                    pseg_err *err)
{
    static const pseg_kernel kernel = {"layout_backward.cl", "transpose_backward", NULL};

    return map_launch(s, a, g, &kernel, (uint64_t)(a->i[M_BATCH] * a->i[M_H]), (uint64_t)a->i[M_W],
                      err);
}

static pseg_status transpose_check(const pseg_op_args *a, const pseg_op_grads *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    (void)g;
    PSEG_CHECK_ROWS(a->i[M_BATCH], a->i[M_H]);
out:
    return rc;
}

static double transpose_bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return pseg_op_row_transpose.bytes(a);
}

const pseg_op_backward pseg_op_backward_transpose = {
    .slots = 1u << X,
    .reads = reads_nothing,
    .check = transpose_check,
    .ref = transpose_ref,
    .launch = transpose_launch,
    .flops = no_flops,
    .bytes = transpose_bytes,
    .tol = {2.5e-7, 1.2e-7, 1e-14},
    .tol_why = MOVE_WHY,
};

/* ---- tokens ------------------------------------------------------------------------------- */

enum { T_PATCH = 1, T_CLS, T_REGS, T_POS };
enum { T_BATCH, T_N, T_C, T_R };

/* Rows of the result, and where those of a slot begin; pos has those of cls and of the patches. */
typedef struct token_rows {
    size_t all, n_cls, n_regs, n_patches, batch, c;
} token_rows;

static token_rows rows_of(const pseg_op_args *a)
{
    token_rows r = {.n_cls = pseg_has(a, T_CLS) ? 1 : 0,
                    .n_regs = (size_t)a->i[T_R],
                    .n_patches = (size_t)a->i[T_N],
                    .batch = (size_t)a->i[T_BATCH],
                    .c = (size_t)a->i[T_C]};

    r.all = r.n_cls + r.n_regs + r.n_patches;
    return r;
}

/* Rows first..first+n of the result, summed over the batch, to rows `to`.. of a slot's gradient. */
static void tokens_ref_rows(const pseg_op_grads *g, const token_rows *t, size_t slot, size_t to,
                            size_t first, size_t n)
{
    for (size_t i = 0; i < n * t->c; i++) {
        double sum = 0;

        for (size_t b = 0; b < t->batch; b++)
            sum += pseg_grad_reals(g, OUT)[(b * t->all + first) * t->c + i];
        pseg_grad_put(g, slot, (int64_t)(to * t->c + i), sum);
    }
}

static void tokens_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    token_rows t = rows_of(a);
    size_t before = t.n_cls + t.n_regs, one = t.n_patches * t.c;

    for (size_t i = 0; i < t.batch * one && pseg_wants(g, T_PATCH); i++)
        pseg_grad_put(g, T_PATCH, (int64_t)i,
                      pseg_grad_reals(g, OUT)[(i / one * t.all + before) * t.c + i % one]);
    if (pseg_wants(g, T_CLS))
        tokens_ref_rows(g, &t, T_CLS, 0, 0, 1);
    if (pseg_wants(g, T_REGS))
        tokens_ref_rows(g, &t, T_REGS, 0, t.n_cls, t.n_regs);
    if (pseg_wants(g, T_POS)) {
        tokens_ref_rows(g, &t, T_POS, 0, 0, t.n_cls);
        tokens_ref_rows(g, &t, T_POS, t.n_cls, before, t.n_patches);
    }
}

static pseg_status tokens_rows(pseg_stream *s, const pseg_op_grads *g, const token_rows *t,
                               size_t slot, size_t to, size_t first, size_t n, pseg_err *err)
{
    pseg_spread b = {
        .out = g->t[slot],
        .x = g->t[OUT],
        .out_batch = slot == T_PATCH ? n * t->c : 0,
        .out_row = t->c,
        .x_batch = t->all * t->c,
        .x_row = t->c,
        .batch = t->batch,
        .n = n,
        .c = t->c,
        .alpha = 1.0f,
        .add = g->add >> slot & 1,
    };

    b.out.off += to * t->c;
    b.x.off += first * t->c;
    return n > 0 && pseg_wants(g, slot) ? pseg_sum_block(s, &b, 0, err) : PSEG_OK;
}

static pseg_status tokens_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                 pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    token_rows t = rows_of(a);
    size_t before = t.n_cls + t.n_regs;

    PSEG_TRY(tokens_rows(s, g, &t, T_PATCH, 0, before, t.n_patches, err));
    PSEG_TRY(tokens_rows(s, g, &t, T_CLS, 0, 0, 1, err));
    PSEG_TRY(tokens_rows(s, g, &t, T_REGS, 0, t.n_cls, t.n_regs, err));
    PSEG_TRY(tokens_rows(s, g, &t, T_POS, 0, 0, t.n_cls, err));
    PSEG_TRY(tokens_rows(s, g, &t, T_POS, t.n_cls, before, t.n_patches, err));
out:
    return rc;
}

static double tokens_bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return pseg_op_row_tokens.bytes(a);
}

const pseg_op_backward pseg_op_backward_tokens = {
    .slots = 1u << T_PATCH | 1u << T_CLS | 1u << T_REGS | 1u << T_POS,
    .reads = reads_nothing,
    .ref = tokens_ref,
    .launch = tokens_launch,
    .flops = no_flops,
    .bytes = tokens_bytes,
    .tol = {2e-6, 1e-6, 1e-12},
    .tol_why = MOVE_WHY,
};

/* ---- gather ------------------------------------------------------------------------------- */

enum { G_X = 1, G_IDX, G_POS };
enum { G_ROWS, G_C, G_N_X, G_STRIDE, G_N_POS };

static uint32_t gather_reads(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)a;
    return pseg_wants(g, G_X) || pseg_wants(g, G_POS) ? 1u << G_IDX : 0;
}

static void gather_ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    const int32_t *idx = pseg_ints(a, G_IDX);
    int64_t n = a->i[G_C], n_x = a->i[G_N_X];

    /* The gradient is written row by row, and rows may repeat: zeros first, then sums. */
    for (int64_t i = 0; i < n_x && pseg_wants(g, G_X) && !(g->add >> G_X & 1); i++)
        for (int64_t c = 0; c < n; c++)
            pseg_grad_put(g, G_X, i * a->i[G_STRIDE] + c, 0);
    for (int64_t i = 0; i < a->i[G_N_POS] * n && pseg_wants(g, G_POS) && !(g->add >> G_POS & 1);
         i++)
        pseg_grad_put(g, G_POS, i, 0);
    for (int64_t r = 0; r < a->i[G_ROWS]; r++)
        for (int64_t c = 0; c < n && idx[r] >= 0 && idx[r] < n_x; c++) {
            double d = pseg_grad_reals(g, OUT)[r * n + c];

            if (pseg_wants(g, G_X))
                pseg_grad_reals(g, G_X)[idx[r] * a->i[G_STRIDE] + c] += d;
            if (pseg_wants(g, G_POS))
                pseg_grad_reals(g, G_POS)[r % a->i[G_N_POS] * n + c] += d;
        }
}

static pseg_status gather_launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                 pseg_err *err)
{
    static const pseg_kernel zero = {"layout_backward.cl", "zero_rows", NULL};
    static const pseg_kernel to_x = {"layout_backward.cl", "gather_x_backward", NULL};
    static const pseg_kernel to_pos = {"layout_backward.cl", "gather_pos_backward", NULL};
    pseg_status rc = PSEG_OK;
    pseg_gather_grad_params p = {
        .out_off = g->t[G_X].off,
        .g_off = g->t[OUT].off,
        .idx_off = a->t[G_IDX].off,
        .x_stride = (uint64_t)a->i[G_STRIDE],
        .rows = (uint32_t)a->i[G_ROWS],
        .c = (uint32_t)a->i[G_C],
        .n_x = (uint32_t)a->i[G_N_X],
        .n_pos = (uint32_t)a->i[G_N_POS],
        .add = 1,
    };

    if (pseg_wants(g, G_X)) {
        pseg_arg out = PSEG_ARG_MEM(g->t[G_X].mem);
        pseg_arg z[] = {out, PSEG_ARG_VALUE(p)};
        pseg_arg args[] = {out, PSEG_ARG_MEM(g->t[OUT].mem), pseg_arg_of(a, G_IDX),
                           PSEG_ARG_VALUE(p)};

        if (!(g->add >> G_X & 1))
            PSEG_TRY(pseg_launch_rows(s, &zero, p.n_x, p.c, z, N_OF(z), err));
        PSEG_TRY(pseg_launch_rows(s, &to_x, p.rows, p.c, args, N_OF(args), err));
    }
    if (pseg_wants(g, G_POS)) {
        pseg_arg args[] = {PSEG_ARG_MEM(g->t[G_POS].mem), PSEG_ARG_MEM(g->t[OUT].mem),
                           pseg_arg_of(a, G_IDX), PSEG_ARG_VALUE(p)};

        p.out_off = g->t[G_POS].off;
        p.add = g->add >> G_POS & 1;
        PSEG_TRY(pseg_launch_rows(s, &to_pos, p.n_pos, p.c, args, N_OF(args), err));
    }
out:
    return rc;
}

static double gather_bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return pseg_op_row_gather.bytes(a);
}

const pseg_op_backward pseg_op_backward_gather = {
    .slots = 1u << G_X | 1u << G_POS,
    .reads = gather_reads,
    .ref = gather_ref,
    .launch = gather_launch,
    .flops = no_flops,
    .bytes = gather_bytes,
    .tol = {2e-6, 1e-6, 1e-12},
    .tol_why = MOVE_WHY,
};
