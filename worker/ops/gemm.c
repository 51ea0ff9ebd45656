#include "worker/ops/internal.h"

#include <string.h>

enum { OUT, A, W, BIAS, RES, SCALE };
enum { M, N, K, A_STRIDE, OUT_STRIDE, RES_STRIDE, ACT };

static const pseg_op_slot slots[] = {
    {"out", PSEG_F32, true, false, true},      {"a", PSEG_F32, false, false, true},
    {"w", PSEG_F32, false, false, true, true}, {"bias", PSEG_F32, false, true, false},
    {"res", PSEG_F32, false, true, false},     {"scale", PSEG_F32, false, true, false},
};

static bool is_parts(const pseg_op_args *a)
{
    return a->t[W].type == PSEG_BF16X2;
}

/* K as the kernel sees it. */
static int64_t steps_of(const pseg_op_args *a)
{
    return is_parts(a) ? (a->i[K] + PSEG_BF16_STEP - 1) / PSEG_BF16_STEP * PSEG_BF16_STEP : a->i[K];
}

static pseg_status check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_gemm, a, M, 3, err));
    PSEG_TRY(pseg_check_act(i[ACT], err));
    PSEG_REQUIRE(i[A_STRIDE] >= i[K] && i[A_STRIDE] <= MAX_STRIDE, "a's row stride");
    PSEG_REQUIRE(i[OUT_STRIDE] >= i[N] && i[OUT_STRIDE] <= MAX_STRIDE, "out's row stride");
    PSEG_REQUIRE(!pseg_has(a, RES) || (i[RES_STRIDE] >= i[N] && i[RES_STRIDE] <= MAX_STRIDE),
                 "res's row stride");
    if (is_parts(a))
        PSEG_REQUIRE(a->t[A].type == PSEG_F32, "a in float32 beside weights in parts");
    else
        PSEG_REQUIRE(pseg_is_bf16(a, A) == pseg_is_bf16(a, W), "a and w of one type");
    if (pseg_is_bf16(a, A)) {
        PSEG_REQUIRE(i[K] % PSEG_BF16_STEP == 0, "k, in BF16, a multiple of 32");
    } else {
        PSEG_REQUIRE(!pseg_is_bf16(a, OUT), "a BF16 output of float32");
    }
    PSEG_REQUIRE(!pseg_is_bf16(a, OUT) || !pseg_has(a, RES), "a BF16 output without res");
out:
    return rc;
}

static size_t extent(const pseg_op_args *a, size_t slot)
{
    const int64_t *i = a->i;

    switch (slot) {
    case OUT:
        return pseg_extent_rows(i[M], i[OUT_STRIDE], i[N]);
    case A:
        return pseg_extent_rows(i[M], i[A_STRIDE], i[K]);
    case W:
        return PSEG_PRODUCT((i[N] + PSEG_PANEL - 1) / PSEG_PANEL, steps_of(a), PSEG_PANEL);
    case RES:
        return pseg_extent_rows(i[M], i[RES_STRIDE], i[N]);
    default:
        return (size_t)i[N];
    }
}

static bool may_alias(const pseg_op_args *a, size_t slot)
{
    return slot == RES && a->i[RES_STRIDE] == a->i[OUT_STRIDE];
}

static void ref(const pseg_op_args *a)
{
    const int64_t *i = a->i;
    const double *x = pseg_reals(a, A), *w = pseg_reals(a, W);

    for (int64_t m = 0; m < i[M]; m++)
        for (int64_t n0 = 0; n0 < i[N]; n0 += PSEG_PANEL) {
            const double *panel = w + n0 * steps_of(a);
            double sum[PSEG_PANEL] = {0};

            for (int64_t k = 0; k < i[K]; k++)
                for (int j = 0; j < PSEG_PANEL; j++)
                    sum[j] +=
                        (double)x[m * i[A_STRIDE] + k] *
                        (a->t[W].type != PSEG_F32 ? panel[k / 2 * 2 * PSEG_PANEL + 2 * j + k % 2]
                                                  : panel[k * PSEG_PANEL + j]);
            for (int64_t n = n0; n < i[N] && n < n0 + PSEG_PANEL; n++) {
                double v = sum[n - n0];

                if (pseg_has(a, BIAS))
                    v += pseg_reals(a, BIAS)[n];
                v = pseg_act_ref(v, i[ACT]);
                if (pseg_has(a, SCALE))
                    v *= pseg_reals(a, SCALE)[n];
                if (pseg_has(a, RES))
                    v += pseg_reals(a, RES)[m * i[RES_STRIDE] + n];
                pseg_reals(a, OUT)[m * i[OUT_STRIDE] + n] = v;
            }
        }
}

/* ---- variants ----------------------------------------------------------------------------- */

typedef enum kind { F32, BF16, BF16_OUT, PARTS } kind; /* of the arguments */

static kind kind_of(const pseg_op_args *a)
{
    return is_parts(a) ? PARTS : !pseg_is_bf16(a, A) ? F32 : pseg_is_bf16(a, OUT) ? BF16_OUT : BF16;
}

typedef struct way {
    pseg_kernel kernel;
    kind kind;
    pseg_cl_variant form;
    uint32_t needs; /* bits of pseg_cl_feature */
    /* Tiles of mr rows x nv vectors of 16; 0: it is not of tiles in registers. */
    uint32_t mr, nv;
} way;

enum { IN_ORDER, IN_PAIRS, BY_DOT, BY_AMX, BY_AMX_PARTS, PARTS_IN_PAIRS, BY_GROUPS };

#define GEMM(options)              \
    {                              \
        "gemm.cl", "gemm", options \
    }
#define TILE(name, order, kind, needs, options, mr, nv)                              \
    {                                                                                \
        name #mr "x" #nv, order, &(const way)                                        \
        {                                                                            \
            GEMM(options "-DMR=" #mr " -DNV=" #nv), kind, PSEG_CL_CPU, needs, mr, nv \
        }                                                                            \
    }
#define WHOLE(name, order, kind, form, needs, options) \
    {                                                  \
        name, order, &(const way)                      \
        {                                              \
            GEMM(options), kind, form, needs, 0, 0     \
        }                                              \
    }

/* 24 sums of 12 x 2 vectors fill the 32 registers of AVX-512; 6 x 1 vectors of 16 are 12 of AVX2's
 * 16 registers. Small tiles serve the few tokens of a decoder. Where two can do the same, the
 * earlier is preferred. */
static const pseg_op_variant variants[] = {
    TILE("f32-", IN_ORDER, F32, 0, "", 12, 2),
    TILE("f32-", IN_ORDER, F32, 0, "", 8, 2),
    TILE("f32-", IN_ORDER, F32, 0, "", 6, 2),
    TILE("f32-", IN_ORDER, F32, 0, "", 4, 2),
    TILE("f32-", IN_ORDER, F32, 0, "", 3, 2),
    TILE("f32-", IN_ORDER, F32, 0, "", 2, 2),
    TILE("f32-", IN_ORDER, F32, 0, "", 1, 2),
    TILE("f32-", IN_ORDER, F32, 0, "", 6, 1),
    TILE("f32-", IN_ORDER, F32, 0, "", 5, 1),
    TILE("f32-", IN_ORDER, F32, 0, "", 4, 1),
    TILE("f32-", IN_ORDER, F32, 0, "", 3, 1),
    TILE("f32-", IN_ORDER, F32, 0, "", 2, 1),
    TILE("f32-", IN_ORDER, F32, 0, "", 1, 1),
    WHOLE("amx", BY_AMX, BF16, PSEG_CL_CPU, PSEG_CL_AMX_BF16, "-DBF16 -DAMX"),
    WHOLE("amx-out", BY_AMX, BF16_OUT, PSEG_CL_CPU, PSEG_CL_AMX_BF16, "-DBF16 -DAMX -DOUT_BF16"),
    WHOLE("amx-parts", BY_AMX_PARTS, PARTS, PSEG_CL_CPU, PSEG_CL_AMX_BF16, "-DPARTS -DAMX"),
    TILE("dot-", BY_DOT, BF16, PSEG_CL_AVX512_BF16, "-DBF16 -DDOT ", 12, 2),
    TILE("dot-", BY_DOT, BF16, PSEG_CL_AVX512_BF16, "-DBF16 -DDOT ", 4, 2),
    TILE("dot-", BY_DOT, BF16, PSEG_CL_AVX512_BF16, "-DBF16 -DDOT ", 1, 2),
    TILE("dot-out-", BY_DOT, BF16_OUT, PSEG_CL_AVX512_BF16, "-DBF16 -DDOT -DOUT_BF16 ", 12, 2),
    TILE("dot-out-", BY_DOT, BF16_OUT, PSEG_CL_AVX512_BF16, "-DBF16 -DDOT -DOUT_BF16 ", 4, 2),
    TILE("dot-out-", BY_DOT, BF16_OUT, PSEG_CL_AVX512_BF16, "-DBF16 -DDOT -DOUT_BF16 ", 1, 2),
    TILE("bf16-", IN_PAIRS, BF16, 0, "-DBF16 ", 12, 2),
    TILE("bf16-", IN_PAIRS, BF16, 0, "-DBF16 ", 4, 2),
    TILE("bf16-", IN_PAIRS, BF16, 0, "-DBF16 ", 1, 2),
    TILE("bf16-", IN_PAIRS, BF16, 0, "-DBF16 ", 6, 1),
    TILE("bf16-", IN_PAIRS, BF16, 0, "-DBF16 ", 3, 1),
    TILE("bf16-out-", IN_PAIRS, BF16_OUT, 0, "-DBF16 -DOUT_BF16 ", 12, 2),
    TILE("bf16-out-", IN_PAIRS, BF16_OUT, 0, "-DBF16 -DOUT_BF16 ", 4, 2),
    TILE("bf16-out-", IN_PAIRS, BF16_OUT, 0, "-DBF16 -DOUT_BF16 ", 1, 2),
    TILE("bf16-out-", IN_PAIRS, BF16_OUT, 0, "-DBF16 -DOUT_BF16 ", 6, 1),
    TILE("bf16-out-", IN_PAIRS, BF16_OUT, 0, "-DBF16 -DOUT_BF16 ", 3, 1),
    TILE("parts-", PARTS_IN_PAIRS, PARTS, 0, "-DPARTS ", 6, 1),
    TILE("parts-", PARTS_IN_PAIRS, PARTS, 0, "-DPARTS ", 3, 1),
    TILE("parts-", PARTS_IN_PAIRS, PARTS, 0, "-DPARTS ", 1, 1),
    WHOLE("portable", BY_GROUPS, F32, PSEG_CL_PORTABLE, 0, NULL),
    WHOLE("portable-bf16", BY_GROUPS, BF16, PSEG_CL_PORTABLE, 0, "-DBF16"),
    WHOLE("portable-bf16-out", BY_GROUPS, BF16_OUT, PSEG_CL_PORTABLE, 0, "-DBF16 -DOUT_BF16"),
    WHOLE("portable-parts", BY_GROUPS, PARTS, PSEG_CL_PORTABLE, 0, "-DPARTS"),
};

static bool can(const pseg_op_variant *v, const pseg_cl *cl, const pseg_op_args *a)
{
    const way *w = v->way;

    return w->kind == kind_of(a) && w->form == pseg_cl_variant_of(cl) &&
           (pseg_cl_features(cl) & w->needs) == w->needs;
}

/* The tallest of three tiles that wastes less than half of itself. */
static size_t prefer(const pseg_cl *cl, const pseg_op_args *a)
{
    static const uint32_t wide[3] = {12, 4, 1}, narrow[3] = {6, 3, 1};
    kind k = kind_of(a);
    bool is_wide = k == F32 ? pseg_cl_device(cl)->vector_width >= 16 : k != PARTS;
    const uint32_t *mr = is_wide ? wide : narrow;
    int64_t m = a->i[M];
    size_t best = N_OF(variants);

    while (mr < (is_wide ? wide : narrow) + 2 && m <= (int64_t)mr[0] * 2 / 3 &&
           m <= 2 * (int64_t)mr[1])
        mr++;
    for (size_t i = 0; i < N_OF(variants) && best == N_OF(variants); i++) {
        const way *w = variants[i].way;
        if (can(&variants[i], cl, a) &&
            (w->mr == 0 || (w->mr == *mr && w->nv == (is_wide ? 2u : 1u))))
            best = i;
    }
    return best;
}

/* By the types and the number of rows: what a tile is too tall for differs with it alone. */
static const int64_t class_rows[] = {1, 3, 8, 24, 96, 1023, INT64_MAX};

#define CLASS(name, m, bf16, parts)                                                            \
    {                                                                                          \
        name, {m, 768, 768, 768, 768, 768, PSEG_ACT_NONE}, {0}, 1u << RES | 1u << SCALE, 0, 0, \
            bf16, parts                                                                        \
    }
#define CLASSES(name, bf16, parts)                                                 \
    CLASS(name "/1", 1, bf16, parts), CLASS(name "/3", 3, bf16, parts),            \
        CLASS(name "/8", 7, bf16, parts), CLASS(name "/24", 16, bf16, parts),      \
        CLASS(name "/96", 50, bf16, parts), CLASS(name "/1023", 257, bf16, parts), \
        CLASS(name "/more", 1285, bf16, parts)
static const pseg_op_case classes[] = {
    CLASSES("f32", 0, 0),
    CLASSES("bf16", 1u << A | 1u << W, 0),
    CLASSES("bf16-out", 1u << A | 1u << W | 1u << OUT, 0),
    CLASSES("parts", 0, 1u << W),
};
_Static_assert(N_OF(classes) == 4 * N_OF(class_rows), "a class of rows for each kind");

static size_t class_of(const pseg_op_args *a)
{
    size_t i = 0;

    while (a->i[M] > class_rows[i])
        i++;
    return (size_t)kind_of(a) * N_OF(class_rows) + i;
}

static const pseg_kernel split = {"gemm.cl", "split", "-DSPLIT"};
static const pseg_kernel split_amx = {"gemm.cl", "split", "-DSPLIT -DAMX"};

/* Panels of 16 outputs that share a tile of a: 300 kB at K = 768. */
#define NARROW_GROUP 6
/* Numbers of the panels of 32 outputs that do: 256 kB. */
#define WIDE_GROUP 65536
/* Up to so many tiles of a few tokens, weights cost more than a: each panel is read by one item. */
#define FEW_TILES 8

/* ---- launches ----------------------------------------------------------------------------- */

/* A run of rows of a stays in the second-level cache beside a panel of w; the panels are split
 * until every core has something to do. */
static pseg_status launch_amx(pseg_stream *s, const way *w, pseg_gemm_params *p, pseg_arg *args,
                              size_t n_args, pseg_err *err)
{
    uint64_t units = pseg_cl_device(pseg_stream_cl(s))->compute_units;
    uint64_t rows = ((uint64_t)768 << 10) / ((w->kind == PARTS ? 4 : 2) * (uint64_t)p->k) / 32 * 32;
    uint64_t panels = ((uint64_t)p->n + PSEG_PANEL - 1) / PSEG_PANEL;

    rows = rows < 64 ? 64 : rows;
    uint64_t runs = (p->m + rows - 1) / rows;
    /* Runs of one length, so that none is left with a row or two. */
    rows = ((p->m + runs - 1) / runs + 31) / 32 * 32;
    runs = (p->m + rows - 1) / rows;
    uint64_t splits = (4 * units + runs - 1) / runs;
    splits = splits > panels ? panels : splits;
    p->tiles_per_item = (uint32_t)rows;
    p->panels_per_item = (uint32_t)((panels + splits - 1) / splits);
    size_t global[2] = {runs, (panels + p->panels_per_item - 1) / p->panels_per_item};
    size_t local[2] = {1, 1};
    return pseg_launch(s, &w->kernel, 2, global, local, args, n_args, err);
}

/* a in parts, in the stream's scratch memory, which stands in for it from now on. */
static pseg_status split_a(pseg_stream *s, const pseg_op_args *a, pseg_gemm_params *p,
                           pseg_arg *arg, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_split_params sp = {
        .x_off = p->a_off, .x_stride = p->a_stride, .m = p->m, .k = (uint32_t)a->i[K]};
    pseg_mem *mem = NULL;

    PSEG_TRY(pseg_stream_scratch(&mem, s, (size_t)p->m * p->k * 2 * sizeof(uint16_t), err));
    pseg_arg args[] = {PSEG_ARG_MEM(mem), *arg, PSEG_ARG_VALUE(sp)};
    PSEG_TRY(pseg_launch_rows(
        s, pseg_cl_features(pseg_stream_cl(s)) & PSEG_CL_AMX_BF16 ? &split_amx : &split, p->m, p->k,
        args, N_OF(args), err));
    pseg_stream_credit(s, 0, 8.0 * p->m * p->k);
    *arg = PSEG_ARG_MEM(mem);
    p->a_off = 0;
    p->a_stride = p->k;
out:
    return rc;
}

static pseg_status launch(pseg_stream *s, const pseg_op_variant *v, const pseg_op_args *a,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;
    const way *w = v->way;
    pseg_gemm_params p = {
        .out_off = a->t[OUT].off,
        .a_off = a->t[A].off,
        .w_off = a->t[W].off,
        .bias_off = a->t[BIAS].off,
        .res_off = a->t[RES].off,
        .scale_off = a->t[SCALE].off,
        .out_stride = (uint64_t)i[OUT_STRIDE],
        .a_stride = (uint64_t)i[A_STRIDE],
        .res_stride = (uint64_t)i[RES_STRIDE],
        .m = (uint32_t)i[M],
        .n = (uint32_t)i[N],
        .k = (uint32_t)steps_of(a),
        .act = (uint32_t)i[ACT],
        .flags = (pseg_has(a, BIAS) ? HAS_BIAS : 0) | (pseg_has(a, RES) ? HAS_RES : 0) |
                 (pseg_has(a, SCALE) ? HAS_SCALE : 0),
        .tiles_per_item = 1,
    };
    pseg_arg args[] = {pseg_arg_of(a, OUT),  pseg_arg_of(a, A),   pseg_arg_of(a, W),
                       pseg_arg_of(a, BIAS), pseg_arg_of(a, RES), pseg_arg_of(a, SCALE),
                       PSEG_ARG_VALUE(p)}; /* p's address: what is set in it below is seen */

    if (is_parts(a))
        PSEG_TRY(split_a(s, a, &p, &args[A], err));
    if (w->form == PSEG_CL_PORTABLE) {
        size_t global[2] = {((size_t)i[N] + 63) / 64 * 16, ((size_t)i[M] + 63) / 64 * 16};
        size_t local[2] = {16, 16};

        return pseg_launch(s, &w->kernel, 2, global, local, args, N_OF(args), err);
    }
    if (w->needs & PSEG_CL_AMX_BF16)
        return launch_amx(s, w, &p, args, N_OF(args), err);
    uint64_t tiles = ((uint64_t)i[M] + w->mr - 1) / w->mr;
    uint64_t columns = ((uint64_t)i[N] + 16 * w->nv - 1) / (16 * w->nv);
    uint64_t units = pseg_cl_device(pseg_stream_cl(s))->compute_units;
    /* A tile of a is multiplied with a group of panels while it is near; but there should be 32
     * items for each core, so that none waits long for the other at the end. With AVX-512, panels
     * of 32 outputs and 1 MB or more of second-level cache, eight items are enough, and in BF16 one
     * panel. */
    bool is_grouped = tiles > FEW_TILES && (w->nv == 1 || w->kind == F32);
    uint64_t items = (is_grouped && w->nv == 1 ? 32 : 8) * units;
    uint64_t most = w->nv == 1 ? NARROW_GROUP : WIDE_GROUP / ((uint64_t)p.k * 16 * w->nv);
    uint64_t group = is_grouped ? tiles * columns / items : 1;

    group = group > most ? most : group;
    group = group < 1 ? 1 : group;
    uint64_t groups = (columns + group - 1) / group;
    uint64_t per = tiles * groups / items;

    p.tiles_per_item = (uint32_t)(per < 1 ? 1 : per > tiles ? tiles : per);
    p.panels_per_item = (uint32_t)group;
    size_t global[2] = {(tiles + p.tiles_per_item - 1) / p.tiles_per_item, groups};
    size_t local[2] = {1, 1};
    PSEG_TRY(pseg_launch(s, &w->kernel, 2, global, local, args, N_OF(args), err));
out:
    return rc;
}

static double flops(const pseg_op_args *a)
{
    return 2.0 * (double)a->i[M] * (double)a->i[N] * (double)a->i[K];
}

static double bytes(const pseg_op_args *a)
{
    double m = (double)a->i[M], n = (double)a->i[N], k = (double)a->i[K];

    return (double)pseg_type_size(a->t[A].type) * (m * k + n * k) +
           (double)pseg_type_size(a->t[OUT].type) * m * n + (pseg_has(a, RES) ? 4.0 * m * n : 0);
}

/* Absent optional slots, by bit. */
#define BARE      (1u << BIAS | 1u << RES | 1u << SCALE)
#define ONLY_BIAS (1u << RES | 1u << SCALE)
#define REAL      (PSEG_CASE_BIG | PSEG_CASE_REAL)
#define IN_BF16   (1u << A | 1u << W)
#define ALL_BF16  (IN_BF16 | 1u << OUT)

static const pseg_op_case cases[] = {
    {"one", {1, 1, 1, 1, 1, 1, PSEG_ACT_NONE}, {0}, BARE, 0, 0},
    {"row", {1, 33, 7, 7, 33, 33, PSEG_ACT_NONE}, {0}, ONLY_BIAS, 0, 0},
    {"two rows", {2, 64, 17, 17, 64, 64, PSEG_ACT_RELU}, {0}, ONLY_BIAS, 0, 0},
    {"three rows", {3, 31, 16, 20, 40, 31, PSEG_ACT_GELU}, {0}, 0, 0, 0},
    {"five rows, strides", {5, 47, 13, 30, 50, 60, PSEG_ACT_SILU}, {0}, 0, 0, 0},
    {"a tile", {12, 32, 32, 32, 32, 32, PSEG_ACT_NONE}, {0}, BARE, 0, 0},
    {"a tile and a row", {13, 65, 40, 40, 65, 65, PSEG_ACT_QUICK_GELU}, {0}, 0, 0, 0},
    {"in place", {25, 48, 24, 24, 48, 48, PSEG_ACT_NONE}, {0}, 0, 1u << RES, 0},
    {"in place, wide rows", {14, 33, 9, 9, 70, 70, PSEG_ACT_NONE}, {0}, 0, 1u << RES, 0},
    {"odd no activation", {67, 49, 51, 51, 49, 49, PSEG_ACT_NONE}, {0}, ONLY_BIAS, 0, 0},
    {"odd", {67, 129, 71, 71, 129, 129, PSEG_ACT_SIGMOID}, {0}, 1u << RES, 0, 0},
    {"qkv", {257, 2304, 768, 768, 2304, 2304, PSEG_ACT_NONE}, {0}, ONLY_BIAS, 0, REAL},
    {"attention out", {257, 768, 768, 768, 768, 768, PSEG_ACT_NONE}, {0}, 0, 1u << RES, REAL},
    {"fc1", {257, 3072, 768, 768, 3072, 3072, PSEG_ACT_GELU}, {0}, ONLY_BIAS, 0, REAL},
    {"fc2", {257, 768, 3072, 3072, 768, 768, PSEG_ACT_NONE}, {0}, 0, 1u << RES, REAL},
    {"fc1 without gelu", {257, 3072, 768, 768, 3072, 3072, PSEG_ACT_NONE}, {0}, ONLY_BIAS, 0, REAL},
    {"batch 8 fc1",
     {2056, 3072, 768, 768, 3072, 3072, PSEG_ACT_GELU},
     {0},
     ONLY_BIAS,
     0,
     REAL | PSEG_CASE_SLOW},
    {"batch 8 fc2",
     {2056, 768, 3072, 3072, 768, 768, PSEG_ACT_NONE},
     {0},
     0,
     1u << RES,
     REAL | PSEG_CASE_SLOW},
    {"patches", {256, 768, 588, 588, 768, 768, PSEG_ACT_NONE}, {0}, ONLY_BIAS, 0, REAL},
    {"clip fc1", {12, 2048, 512, 512, 2048, 2048, PSEG_ACT_QUICK_GELU}, {0}, ONLY_BIAS, 0, REAL},
    {"BF16, one", {1, 1, 32, 32, 1, 1, PSEG_ACT_NONE}, {0}, BARE, 0, 0, IN_BF16},
    {"BF16, rows and panels",
     {35, 65, 64, 64, 65, 65, PSEG_ACT_GELU},
     {0},
     ONLY_BIAS,
     0,
     0,
     ALL_BF16},
    {"BF16, a half", {16, 48, 96, 100, 50, 48, PSEG_ACT_NONE}, {0}, 0, 0, 0, IN_BF16},
    {"BF16, strides", {19, 33, 160, 168, 40, 33, PSEG_ACT_RELU}, {0}, ONLY_BIAS, 0, 0, ALL_BF16},
    {"BF16, in place", {49, 70, 32, 32, 70, 70, PSEG_ACT_NONE}, {0}, 0, 1u << RES, 0, IN_BF16},
    {"BF16, qkv",
     {257, 2304, 768, 768, 2304, 2304, PSEG_ACT_NONE},
     {0},
     ONLY_BIAS,
     0,
     REAL,
     ALL_BF16},
    {"BF16, attention out",
     {257, 768, 768, 768, 768, 768, PSEG_ACT_NONE},
     {0},
     0,
     1u << RES,
     REAL,
     IN_BF16},
    {"BF16, fc1",
     {257, 3072, 768, 768, 3072, 3072, PSEG_ACT_GELU},
     {0},
     ONLY_BIAS,
     0,
     REAL,
     ALL_BF16},
    {"BF16, fc2",
     {257, 768, 3072, 3072, 768, 768, PSEG_ACT_NONE},
     {0},
     0,
     1u << RES,
     REAL,
     IN_BF16},
    {"BF16, batch 8 fc1",
     {2056, 3072, 768, 768, 3072, 3072, PSEG_ACT_GELU},
     {0},
     ONLY_BIAS,
     0,
     REAL | PSEG_CASE_SLOW,
     ALL_BF16},
    {"BF16, batch 8 fc2",
     {2056, 768, 3072, 3072, 768, 768, PSEG_ACT_NONE},
     {0},
     0,
     1u << RES,
     REAL | PSEG_CASE_SLOW,
     IN_BF16},
    {"parts, one", {1, 1, 1, 1, 1, 1, PSEG_ACT_NONE}, {0}, BARE, 0, 0, 0, 1u << W},
    {"parts, rows and panels",
     {35, 65, 64, 64, 65, 65, PSEG_ACT_GELU},
     {0},
     ONLY_BIAS,
     0,
     0,
     0,
     1u << W},
    {"parts, strides", {18, 48, 75, 80, 50, 48, PSEG_ACT_NONE}, {0}, 0, 0, 0, 0, 1u << W},
    {"parts, in place", {49, 70, 33, 33, 70, 70, PSEG_ACT_NONE}, {0}, 0, 1u << RES, 0, 0, 1u << W},
    {"parts, qkv",
     {257, 2304, 768, 768, 2304, 2304, PSEG_ACT_NONE},
     {0},
     ONLY_BIAS,
     0,
     REAL,
     0,
     1u << W},
    {"parts, fc2",
     {257, 768, 3072, 3072, 768, 768, PSEG_ACT_NONE},
     {0},
     0,
     1u << RES,
     REAL,
     0,
     1u << W},
    {"parts, batch 8 fc1",
     {2056, 3072, 768, 768, 3072, 3072, PSEG_ACT_GELU},
     {0},
     ONLY_BIAS,
     0,
     REAL | PSEG_CASE_SLOW,
     0,
     1u << W},
    {"conv 3x3", {256, 256, 2304, 2304, 256, 256, PSEG_ACT_NONE}, {0}, ONLY_BIAS, 0, REAL},
    {"many rows", {1100, 33, 50, 52, 40, 33, PSEG_ACT_NONE}, {0}, ONLY_BIAS, 0, 0},
    {"neck, batch 32",
     {8192, 256, 768, 768, 256, 256, PSEG_ACT_NONE},
     {0},
     ONLY_BIAS,
     0,
     REAL | PSEG_CASE_SLOW},
    {"upsampler, batch 32",
     {8192, 512, 256, 256, 512, 512, PSEG_ACT_NONE},
     {0},
     ONLY_BIAS,
     0,
     REAL | PSEG_CASE_SLOW},
    {"last upsampler, batch 32",
     {131072, 128, 64, 64, 128, 128, PSEG_ACT_NONE},
     {0},
     ONLY_BIAS,
     0,
     REAL | PSEG_CASE_SLOW},
    {"keys, batch 32",
     {8192, 128, 256, 256, 128, 128, PSEG_ACT_NONE},
     {0},
     ONLY_BIAS,
     0,
     REAL | PSEG_CASE_SLOW},
    {"tokens, batch 32", {96, 256, 256, 256, 256, 256, PSEG_ACT_NONE}, {0}, ONLY_BIAS, 0, REAL},
    {"decoder mlp", {3, 2048, 256, 256, 2048, 2048, PSEG_ACT_RELU}, {0}, ONLY_BIAS, 0, REAL},
};

static const pseg_op_variants all = {
    .list = variants,
    .n = N_OF(variants),
    .can = can,
    .prefer = prefer,
    .class_of = class_of,
    .classes = classes,
    .n_classes = N_OF(classes),
    .launch = launch,
};

const pseg_op pseg_op_row_gemm = {
    .name = "gemm",
    .slots = slots,
    .n_slots = N_OF(slots),
    .params = "m, n, k, a_stride, out_stride, res_stride, act",
    .check = check,
    .extent = extent,
    .may_alias = may_alias,
    .ref = ref,
    .variants = &all,
    .flops = flops,
    .bytes = bytes,
    .tol = {2e-4, 1e-5, 1e-11},
    .backward = &pseg_op_backward_gemm,
    .tol_why =
        "a sum of K products in single precision: rounding grows as sqrt(K) * 6e-8 * |term|, "
        "with |term| < 1 and K up to 3072; a wrong or missing term is 1e3 times that",
    .cases = cases,
    .n_cases = N_OF(cases),
};

pseg_op_args pseg_gemm_args(const pseg_gemm *g)
{
    return (pseg_op_args){
        .t = {pseg_tensor_of(g->out), pseg_tensor_of(g->a), pseg_tensor_of(g->w),
              pseg_tensor_of(g->bias), pseg_tensor_of(g->res), pseg_tensor_of(g->scale)},
        .i = {pseg_dim(g->m), pseg_dim(g->n), pseg_dim(g->k),
              pseg_dim(g->a_stride ? g->a_stride : g->k),
              pseg_dim(g->out_stride ? g->out_stride : g->n),
              pseg_dim(g->res_stride ? g->res_stride : g->n), g->act},
    };
}

pseg_status pseg_op_gemm(pseg_stream *s, const pseg_gemm *g, pseg_err *err)
{
    pseg_op_args a = pseg_gemm_args(g);

    return pseg_op_run(s, &pseg_op_row_gemm, &a, err);
}
