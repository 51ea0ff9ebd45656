#include "worker/ops/internal.h"

#include <math.h>

enum { OUT, Q, K, V, KEY_LEN };
enum {
    BATCH,
    HEADS,
    D,
    N_Q,
    N_K,
    Q_ROW,
    K_ROW,
    V_ROW,
    OUT_ROW,
    Q_BATCH,
    K_BATCH,
    V_BATCH,
    OUT_BATCH,
    CAUSAL
};

#define MAX_D 128

static const pseg_op_slot slots[] = {
    {"out", PSEG_F32, true, false, true},      {"q", PSEG_F32, false, false, true},
    {"k", PSEG_F32, false, false, true},       {"v", PSEG_F32, false, false, true},
    {"key_len", PSEG_I32, false, true, false},
};

static pseg_status check(const pseg_op_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;

    PSEG_TRY(pseg_check_dims(&pseg_op_row_attention, a, BATCH, 5, err));
    PSEG_REQUIRE(i[D] <= MAX_D, "channels of a head <= 128");
    PSEG_CHECK_ROWS(i[HEADS], i[D]);
    for (int r = Q_ROW; r <= OUT_ROW; r++)
        PSEG_REQUIRE(i[r] >= i[HEADS] * i[D] && i[r] <= MAX_STRIDE, "row stride");
    for (int b = Q_BATCH; b <= OUT_BATCH; b++)
        PSEG_REQUIRE(i[b] >= 0 && i[b] <= MAX_STRIDE, "batch stride");
    PSEG_REQUIRE(i[BATCH] == 1 ||
                     i[OUT_BATCH] >= i[N_Q] * i[OUT_ROW] - i[OUT_ROW] + i[HEADS] * i[D],
                 "out's batch stride: samples would overlap");
    PSEG_REQUIRE(!i[CAUSAL] || i[N_Q] == i[N_K], "causal with as many queries as keys");
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
        return pseg_extent_block(i[BATCH], i[OUT_BATCH], i[N_Q], i[OUT_ROW], i[HEADS] * i[D]);
    case Q:
        return pseg_extent_block(i[BATCH], i[Q_BATCH], i[N_Q], i[Q_ROW], i[HEADS] * i[D]);
    case K:
        return pseg_extent_block(i[BATCH], i[K_BATCH], i[N_K], i[K_ROW], i[HEADS] * i[D]);
    case V:
        return pseg_extent_block(i[BATCH], i[V_BATCH], i[N_K], i[V_ROW], i[HEADS] * i[D]);
    default:
        return (size_t)i[BATCH];
    }
}

/* One query: two passes over the keys, then the sum. */
static void ref_query(const pseg_op_args *a, int64_t b, int64_t h, int64_t n)
{
    const int64_t *i = a->i;
    int64_t d = i[D], keys = i[N_K];
    const double *q = pseg_reals(a, Q) + b * i[Q_BATCH] + n * i[Q_ROW] + h * d;
    const double *k = pseg_reals(a, K) + b * i[K_BATCH] + h * d;
    const double *v = pseg_reals(a, V) + b * i[V_BATCH] + h * d;
    double *out = pseg_reals(a, OUT) + b * i[OUT_BATCH] + n * i[OUT_ROW] + h * d;
    double top = -INFINITY, sum = 0, acc[MAX_D] = {0};

    if (pseg_has(a, KEY_LEN)) {
        int32_t len = pseg_ints(a, KEY_LEN)[b];

        keys = len < 0 ? 0 : len < keys ? len : keys;
    }
    if (i[CAUSAL] && keys > n + 1)
        keys = n + 1;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t j = 0; j < keys; j++) {
            double s = 0;

            for (int64_t c = 0; c < d; c++)
                s += (double)q[c] * k[j * i[K_ROW] + c];
            s *= (float)a->f[0];
            if (pass == 0) {
                top = s > top ? s : top;
                continue;
            }
            double e = exp(s - top);

            sum += e;
            for (int64_t c = 0; c < d; c++)
                acc[c] += e * v[j * i[V_ROW] + c];
        }
    for (int64_t c = 0; c < d; c++)
        out[c] = keys > 0 ? acc[c] / sum : 0.0;
}

static void ref(const pseg_op_args *a)
{
    for (int64_t b = 0; b < a->i[BATCH]; b++)
        for (int64_t h = 0; h < a->i[HEADS]; h++)
            for (int64_t n = 0; n < a->i[N_Q]; n++)
                ref_query(a, b, h, n);
}

/* ---- variants ----------------------------------------------------------------------------- */

typedef struct way {
    pseg_kernel kernel[2]; /* by the room for channels: 64 or 128 */
    bool is_bf16;
    pseg_cl_variant form;
    uint32_t needs;   /* bits of pseg_cl_feature */
    uint32_t queries; /* that an item takes */
    bool is_narrow;   /* tiles for 16 registers of 8 floats */
} way;

enum { BY_VECTORS, BY_AMX, BY_DOT, BY_GROUPS };

#define KERNEL(file, options)      \
    {                              \
        file, "attention", options \
    }
#define BY_ROOM(file, options)                                                \
    {                                                                         \
        KERNEL(file, options "-DDMAX=64"), KERNEL(file, options "-DDMAX=128") \
    }

/* 6 keys or 4 channels by a vector of queries: with a query or a key's weights 14 and 10 of AVX2's
 * registers, where the tiles of 12 x 2 and 8 x 2 that AVX-512 has room for live in memory. */
#define NARROW "-DKR=6 -DDR=4 "

static const pseg_op_variant variants[] = {
    {"f32-16", BY_VECTORS,
     &(const way){BY_ROOM("attention.cl", "-DQV=1 "), false, PSEG_CL_CPU, 0, 16, false}},
    {"f32-32", BY_VECTORS,
     &(const way){BY_ROOM("attention.cl", "-DQV=2 "), false, PSEG_CL_CPU, 0, 32, false}},
    {"f32-16-narrow", BY_VECTORS,
     &(const way){BY_ROOM("attention.cl", "-DQV=1 " NARROW), false, PSEG_CL_CPU, 0, 16, true}},
    {"amx", BY_AMX,
     &(const way){BY_ROOM("attention_amx.cl", "-DAMX -DIN_BF16 -DOUT_BF16 "), true, PSEG_CL_CPU,
                  PSEG_CL_AMX_BF16, 288, false}}, /* attention_amx.cl's QUERIES */
    {"dot", BY_DOT,
     &(const way){BY_ROOM("attention.cl", "-DIN_BF16 -DOUT_BF16 -DDOT -DQV=2 "), true, PSEG_CL_CPU,
                  PSEG_CL_AVX512_BF16, 32, false}},
    {"bf16-16", BY_VECTORS,
     &(const way){BY_ROOM("attention.cl", "-DIN_BF16 -DOUT_BF16 -DQV=1 "), true, PSEG_CL_CPU, 0, 16,
                  false}},
    {"bf16-32", BY_VECTORS,
     &(const way){BY_ROOM("attention.cl", "-DIN_BF16 -DOUT_BF16 -DQV=2 "), true, PSEG_CL_CPU, 0, 32,
                  false}},
    {"bf16-16-narrow", BY_VECTORS,
     &(const way){BY_ROOM("attention.cl", "-DIN_BF16 -DOUT_BF16 -DQV=1 " NARROW), true, PSEG_CL_CPU,
                  0, 16, true}},
    {"portable", BY_GROUPS,
     &(const way){{KERNEL("attention.cl", NULL), KERNEL("attention.cl", NULL)},
                  false,
                  PSEG_CL_PORTABLE,
                  0,
                  1,
                  false}},
    {"portable-bf16", BY_GROUPS,
     &(const way){{KERNEL("attention.cl", "-DIN_BF16 -DOUT_BF16"),
                   KERNEL("attention.cl", "-DIN_BF16 -DOUT_BF16")},
                  true,
                  PSEG_CL_PORTABLE,
                  0,
                  1,
                  false}},
};

static bool can(const pseg_op_variant *v, const pseg_cl *cl, const pseg_op_args *a)
{
    const way *w = v->way;

    return w->is_bf16 == pseg_is_bf16(a, OUT) && w->form == pseg_cl_variant_of(cl) &&
           (pseg_cl_features(cl) & w->needs) == w->needs &&
           (v->order != BY_DOT || a->i[D] % 2 == 0) &&
           (v->order != BY_AMX || (a->i[D] % 32 == 0 && !a->i[CAUSAL] && !pseg_has(a, KEY_LEN)));
}

/* Fewer queries do not pay for turning keys and values into pairs. */
#define AMX_LEAST 24

static size_t prefer(const pseg_cl *cl, const pseg_op_args *a)
{
    /* With 17 queries two vectors would be half empty, but one would go over the keys twice. */
    bool is_narrow = pseg_cl_device(cl)->vector_width < 16;
    uint32_t queries = is_narrow || a->i[N_Q] <= 16 ? 16 : 32;
    size_t best = N_OF(variants);

    for (size_t i = 0; i < N_OF(variants) && best == N_OF(variants); i++) {
        const way *w = variants[i].way;
        bool fits = variants[i].order == BY_VECTORS
                        ? w->queries == queries && w->is_narrow == is_narrow
                    : variants[i].order == BY_AMX ? a->i[N_Q] >= AMX_LEAST
                    : variants[i].order == BY_DOT ? a->i[N_Q] > 16
                                                  : true;

        if (fits && can(&variants[i], cl, a))
            best = i;
    }
    return best;
}

/* By type and the number of queries. */
static const int64_t class_queries[] = {8, 16, 24, 96, INT64_MAX};

#define CLASS(name, n_q, bf16)                                                                     \
    {                                                                                              \
        name, {1, 12, 64, n_q, 257, 2304, 2304, 2304, 768, 0, 0, 0, 0, 0}, {0.125}, 1u << KEY_LEN, \
            0, 0, bf16                                                                             \
    }
#define CLASSES(name, bf16)                                                              \
    CLASS(name "/8", 3, bf16), CLASS(name "/16", 12, bf16), CLASS(name "/24", 20, bf16), \
        CLASS(name "/96", 50, bf16), CLASS(name "/more", 257, bf16)
static const pseg_op_case classes[] = {
    CLASSES("f32", 0),
    CLASSES("bf16", 1u << OUT | 1u << Q | 1u << K | 1u << V),
};
_Static_assert(N_OF(classes) == 2 * N_OF(class_queries), "a class of queries for each type");

static size_t class_of(const pseg_op_args *a)
{
    size_t i = 0;

    while (a->i[N_Q] > class_queries[i])
        i++;
    return (pseg_is_bf16(a, OUT) ? N_OF(class_queries) : 0) + i;
}

static unsigned room_of(const pseg_op_args *a)
{
    return a->i[D] > 64;
}

static pseg_status launch(pseg_stream *s, const pseg_op_variant *v, const pseg_op_args *a,
                          pseg_err *err)
{
    const int64_t *i = a->i;
    const way *w = v->way;
    pseg_attention_params p = {
        .out_off = a->t[OUT].off,
        .q_off = a->t[Q].off,
        .k_off = a->t[K].off,
        .v_off = a->t[V].off,
        .key_len_off = a->t[KEY_LEN].off,
        .out_row = (uint64_t)i[OUT_ROW],
        .q_row = (uint64_t)i[Q_ROW],
        .k_row = (uint64_t)i[K_ROW],
        .v_row = (uint64_t)i[V_ROW],
        .out_batch = (uint64_t)i[OUT_BATCH],
        .q_batch = (uint64_t)i[Q_BATCH],
        .k_batch = (uint64_t)i[K_BATCH],
        .v_batch = (uint64_t)i[V_BATCH],
        .batch = (uint32_t)i[BATCH],
        .heads = (uint32_t)i[HEADS],
        .d = (uint32_t)i[D],
        .n_q = (uint32_t)i[N_Q],
        .n_k = (uint32_t)i[N_K],
        .flags = (i[CAUSAL] ? IS_CAUSAL : 0) | (pseg_has(a, KEY_LEN) ? HAS_KEY_LEN : 0),
        .scale = (float)a->f[0],
    };
    pseg_arg args[] = {pseg_arg_of(a, OUT), pseg_arg_of(a, Q),       pseg_arg_of(a, K),
                       pseg_arg_of(a, V),   pseg_arg_of(a, KEY_LEN), PSEG_ARG_VALUE(p)};
    size_t items = ((size_t)i[N_Q] + w->queries - 1) / w->queries;
    size_t global[3] = {items, (size_t)i[HEADS], (size_t)i[BATCH]}, local[3] = {1, 1, 1};

    if (w->form == PSEG_CL_PORTABLE) {
        local[0] = 64;
        global[0] *= local[0];
    }
    return pseg_launch(s, &w->kernel[room_of(a)], 3, global, local, args, N_OF(args), err);
}

static double flops(const pseg_op_args *a)
{
    double pairs = (double)a->i[N_Q] * (double)a->i[N_K] * (a->i[CAUSAL] ? 0.5 : 1.0);

    return 4.0 * (double)a->i[BATCH] * (double)a->i[HEADS] * (double)a->i[D] * pairs;
}

static double bytes(const pseg_op_args *a)
{
    return 8.0 * (double)a->i[BATCH] * (double)a->i[HEADS] * (double)a->i[D] *
           ((double)a->i[N_Q] + (double)a->i[N_K]);
}

static void int_range(const pseg_op_args *a, size_t slot, int32_t *lo, int32_t *hi)
{
    (void)slot;
    *lo = 0; /* no keys at all, and more than there are */
    *hi = (int32_t)a->i[N_K] + 2;
}

#define ALL_KEYS (1u << KEY_LEN)
#define ALL_BF16 (1u << OUT | 1u << Q | 1u << K | 1u << V)
#define REAL     (PSEG_CASE_BIG | PSEG_CASE_REAL)

static const pseg_op_case cases[] = {
    {"one", {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0}, {1.0}, ALL_KEYS, 0, 0},
    {"sharp", {1, 2, 16, 5, 9, 32, 32, 32, 32, 0, 0, 0, 0, 0}, {40.0}, ALL_KEYS, 0, 0},
    {"odd", {2, 3, 7, 5, 13, 21, 25, 30, 22, 105, 325, 390, 110, 0}, {0.3}, ALL_KEYS, 0, 0},
    {"lengths", {6, 2, 16, 3, 20, 32, 32, 32, 32, 96, 640, 640, 96, 0}, {0.25}, 0, 0, 0},
    {"keys shared by many", {130, 1, 2, 1, 3, 2, 2, 2, 2, 2, 0, 0, 2, 0}, {0.7}, ALL_KEYS, 0, 0},
    {"a shared query",
     {3, 2, 8, 4, 11, 16, 16, 16, 16, 0, 176, 176, 64, 0},
     {0.35},
     ALL_KEYS,
     0,
     0},
    {"fused rows", {2, 2, 8, 5, 5, 48, 48, 48, 16, 240, 240, 240, 80, 0}, {0.35}, ALL_KEYS, 0, 0},
    {"shared keys", {3, 2, 8, 4, 11, 16, 16, 16, 16, 64, 0, 0, 64, 0}, {0.35}, ALL_KEYS, 0, 0},
    {"causal",
     {2, 2, 16, 21, 21, 96, 96, 96, 32, 2016, 2016, 2016, 672, 1},
     {0.25},
     ALL_KEYS,
     0,
     0},
    {"causal with lengths",
     {3, 1, 16, 18, 18, 48, 48, 48, 16, 864, 864, 864, 288, 1},
     {0.25},
     0,
     0,
     0},
    {"several blocks", {1, 2, 24, 35, 270, 48, 48, 48, 48, 0, 0, 0, 0, 0}, {0.2}, ALL_KEYS, 0, 0},
    {"causal, several blocks",
     {1, 1, 32, 205, 205, 96, 96, 96, 32, 0, 0, 0, 0, 1},
     {0.18},
     ALL_KEYS,
     0,
     PSEG_CASE_BIG},
    {"widest head", {1, 1, 128, 33, 40, 128, 128, 128, 128, 0, 0, 0, 0, 0}, {0.09}, ALL_KEYS, 0, 0},
    {"dinov2-base",
     {1, 12, 64, 257, 257, 2304, 2304, 2304, 768, 0, 0, 0, 0, 0},
     {0.125},
     ALL_KEYS,
     0,
     REAL},
    {"dinov2-base at 448",
     {1, 12, 64, 1025, 1025, 2304, 2304, 2304, 768, 0, 0, 0, 0, 0},
     {0.125},
     ALL_KEYS,
     0,
     REAL | PSEG_CASE_SLOW},
    {"BF16",
     {2, 3, 7, 5, 13, 21, 25, 30, 22, 105, 325, 390, 110, 0},
     {0.3},
     ALL_KEYS,
     0,
     0,
     ALL_BF16},
    {"BF16, causal with lengths",
     {3, 1, 32, 18, 18, 96, 96, 96, 32, 1728, 1728, 1728, 576, 1},
     {0.25},
     0,
     0,
     0,
     ALL_BF16},
    {"BF16, tiles",
     {2, 2, 32, 35, 33, 192, 192, 192, 64, 6720, 6336, 6336, 2240, 0},
     {0.4},
     ALL_KEYS,
     0,
     0,
     ALL_BF16},
    {"BF16, a key",
     {1, 1, 64, 1, 1, 64, 64, 64, 64, 0, 0, 0, 0, 0},
     {0.4},
     ALL_KEYS,
     0,
     0,
     ALL_BF16},
    {"BF16, several blocks",
     {1, 1, 96, 300, 700, 96, 96, 96, 96, 0, 0, 0, 0, 0},
     {0.3},
     ALL_KEYS,
     0,
     PSEG_CASE_BIG,
     ALL_BF16},
    {"BF16, dinov2-base",
     {1, 12, 64, 257, 257, 2304, 2304, 2304, 768, 0, 0, 0, 0, 0},
     {0.125},
     ALL_KEYS,
     0,
     REAL,
     ALL_BF16},
    {"BF16, dinov2-base at 448",
     {1, 12, 64, 1025, 1025, 2304, 2304, 2304, 768, 0, 0, 0, 0, 0},
     {0.125},
     ALL_KEYS,
     0,
     REAL | PSEG_CASE_SLOW,
     ALL_BF16},
    {"clip text",
     {1, 8, 64, 20, 20, 1536, 1536, 1536, 512, 0, 0, 0, 0, 1},
     {0.125},
     ALL_KEYS,
     0,
     REAL},
    {"many keys",
     {1, 2, 16, 20, 300, 32, 32, 32, 32, 0, 0, 0, 0, 0},
     {0.25},
     ALL_KEYS,
     0,
     PSEG_CASE_BIG},
    {"causal, many keys",
     {1, 1, 8, 310, 310, 8, 8, 8, 8, 0, 0, 0, 0, 1},
     {0.35},
     ALL_KEYS,
     0,
     PSEG_CASE_BIG},
    {"tokens to a large image",
     {2, 8, 16, 30, 1024, 128, 128, 128, 128, 3840, 131072, 131072, 3840, 0},
     {0.25},
     ALL_KEYS,
     0,
     REAL},
    {"tokens to image, batch 32",
     {32, 8, 16, 3, 256, 128, 128, 128, 128, 384, 32768, 32768, 384, 0},
     {0.25},
     ALL_KEYS,
     0,
     REAL | PSEG_CASE_SLOW},
    {"image to tokens, batch 32",
     {32, 8, 16, 256, 3, 128, 128, 128, 128, 32768, 384, 384, 32768, 0},
     {0.25},
     ALL_KEYS,
     0,
     REAL | PSEG_CASE_SLOW},
    {"tokens to image",
     {4, 8, 16, 3, 256, 128, 128, 128, 128, 384, 32768, 32768, 384, 0},
     {0.25},
     ALL_KEYS,
     0,
     REAL},
    {"image to tokens",
     {4, 8, 16, 256, 3, 128, 128, 128, 128, 32768, 384, 384, 32768, 0},
     {0.25},
     ALL_KEYS,
     0,
     REAL},
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

const pseg_op pseg_op_row_attention = {
    .name = "attention",
    .slots = slots,
    .n_slots = N_OF(slots),
    .params = "batch, heads, d, n_q, n_k, q_row, k_row, v_row, out_row, q_batch, k_batch, v_batch, "
              "out_batch, causal; scale",
    .check = check,
    .extent = extent,
    .ref = ref,
    .variants = &all,
    .fixed = room_of,
    .backward = &pseg_op_backward_attention,
    .flops = flops,
    .bytes = bytes,
    .int_range = int_range,
    .tol = {2e-5, 1e-5, 1e-11},
    .tol_why = "an error of 1e-6 in a score (a sum of D products, scaled by up to 40 in the case "
               "\"sharp\") is the same relative error in its weight",
    .cases = cases,
    .n_cases = N_OF(cases),
};

pseg_op_args pseg_attention_args(const pseg_attention *t)
{
    return (pseg_op_args){
        .t = {pseg_tensor_of(t->out), pseg_tensor_of(t->q), pseg_tensor_of(t->k),
              pseg_tensor_of(t->v), pseg_tensor_of(t->key_len)},
        .i = {pseg_dim(t->batch), pseg_dim(t->heads), pseg_dim(t->d), pseg_dim(t->n_q),
              pseg_dim(t->n_k), pseg_dim(t->q_row), pseg_dim(t->k_row), pseg_dim(t->v_row),
              pseg_dim(t->out_row), pseg_dim(t->q_batch), pseg_dim(t->k_batch),
              pseg_dim(t->v_batch), pseg_dim(t->out_batch), t->causal},
        .f = {t->scale},
    };
}

pseg_status pseg_op_attention(pseg_stream *s, const pseg_attention *t, pseg_err *err)
{
    pseg_op_args a = pseg_attention_args(t);

    return pseg_op_run(s, &pseg_op_row_attention, &a, err);
}
