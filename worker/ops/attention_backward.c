/* The gradient of attention. */
#include "worker/ops/reduce.h"

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

static uint32_t reads(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)a;
    return pseg_wants(g, Q) || pseg_wants(g, K) || pseg_wants(g, V)
               ? 1u << OUT | 1u << Q | 1u << K | 1u << V | 1u << KEY_LEN
               : 0;
}

/* Rows of two of q, k and v that lie side by side in fused rows. */
static bool is_apart(const pseg_op_args *a, size_t x, size_t y, size_t dist)
{
    const int64_t *i = a->i;
    size_t width = (size_t)(i[HEADS] * i[D]), row = (size_t)i[Q_ROW + x - Q];

    return row == (size_t)i[Q_ROW + y - Q] && i[Q_BATCH + x - Q] == i[Q_BATCH + y - Q] &&
           (i[BATCH] == 1 || i[Q_BATCH + x - Q] % (int64_t)row == 0) && dist % row >= width &&
           dist % row + width <= row;
}

static pseg_status check(const pseg_op_args *a, const pseg_op_grads *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;

    for (size_t s = Q; s <= V; s++) {
        int64_t n = s == Q ? i[N_Q] : i[N_K], batch = i[Q_BATCH + s - Q], row = i[Q_ROW + s - Q];

        PSEG_REQUIRE(!pseg_wants(g, s) || i[BATCH] == 1 || batch == 0 ||
                         batch >= (n - 1) * row + i[HEADS] * i[D],
                     "a gradient's batch stride: 0, or samples would overlap");
    }
    PSEG_CHECK_ROWS(i[N_Q], i[D]);
    PSEG_CHECK_ROWS(i[N_K], i[D]);
out:
    return rc;
}

/* ---- reference ---------------------------------------------------------------------------- */

typedef struct ref_query {
    const double *q, *k, *v, *d;
    int64_t keys;
    double top, sum, along;
} ref_query;

static double score(const pseg_op_args *a, const ref_query *r, int64_t j)
{
    double s = 0;

    for (int64_t c = 0; c < a->i[D]; c++)
        s += r->q[c] * r->k[j * a->i[K_ROW] + c];
    return s * (float)a->f[0];
}

static double value(const pseg_op_args *a, const ref_query *r, int64_t j)
{
    double s = 0;

    for (int64_t c = 0; c < a->i[D]; c++)
        s += r->d[c] * r->v[j * a->i[V_ROW] + c];
    return s;
}

/* Maximum and sum of a query's softmax, and its output times its gradient. */
static ref_query ref_query_of(const pseg_op_args *a, const pseg_op_grads *g, int64_t b, int64_t h,
                              int64_t n)
{
    const int64_t *i = a->i;
    ref_query r = {
        .q = pseg_reals(a, Q) + b * i[Q_BATCH] + n * i[Q_ROW] + h * i[D],
        .k = pseg_reals(a, K) + b * i[K_BATCH] + h * i[D],
        .v = pseg_reals(a, V) + b * i[V_BATCH] + h * i[D],
        .d = pseg_grad_reals(g, OUT) + b * i[OUT_BATCH] + n * i[OUT_ROW] + h * i[D],
        .keys = i[N_K],
        .top = -INFINITY,
    };

    if (pseg_has(a, KEY_LEN)) {
        int32_t len = pseg_ints(a, KEY_LEN)[b];

        r.keys = len < 0 ? 0 : len < r.keys ? len : r.keys;
    }
    if (i[CAUSAL] && r.keys > n + 1)
        r.keys = n + 1;
    for (int64_t j = 0; j < r.keys; j++) {
        double s = score(a, &r, j);

        r.top = s > r.top ? s : r.top;
    }
    for (int64_t j = 0; j < r.keys; j++) {
        double e = exp(score(a, &r, j) - r.top);

        r.sum += e;
        r.along += e * value(a, &r, j);
    }
    r.along /= r.sum;
    return r;
}

/* A slot's gradient to zeros, where it is to be overwritten: references sum into it. */
static void clear(const pseg_op_args *a, const pseg_op_grads *g, size_t slot)
{
    const int64_t *i = a->i;
    int64_t rows = slot == Q ? i[N_Q] : i[N_K];

    for (int64_t b = 0; b < i[BATCH] && pseg_wants(g, slot) && !(g->add >> slot & 1); b++)
        for (int64_t n = 0; n < rows; n++)
            for (int64_t c = 0; c < i[HEADS] * i[D]; c++)
                pseg_grad_put(g, slot, b * i[Q_BATCH + slot - Q] + n * i[Q_ROW + slot - Q] + c, 0);
}

static double *grad_row(const pseg_op_args *a, const pseg_op_grads *g, size_t slot, int64_t b,
                        int64_t h, int64_t n)
{
    const int64_t *i = a->i;

    return pseg_grad_reals(g, slot) + b * i[Q_BATCH + slot - Q] + n * i[Q_ROW + slot - Q] +
           h * i[D];
}

static void ref_one(const pseg_op_args *a, const pseg_op_grads *g, int64_t b, int64_t h, int64_t n)
{
    ref_query r = ref_query_of(a, g, b, h, n);
    double scale = (float)a->f[0];

    for (int64_t j = 0; j < r.keys; j++) {
        double p = exp(score(a, &r, j) - r.top) / r.sum;
        double ds = p * (value(a, &r, j) - r.along) * scale;

        for (int64_t c = 0; c < a->i[D]; c++) {
            if (pseg_wants(g, Q))
                grad_row(a, g, Q, b, h, n)[c] += ds * r.k[j * a->i[K_ROW] + c];
            if (pseg_wants(g, K))
                grad_row(a, g, K, b, h, j)[c] += ds * r.q[c];
            if (pseg_wants(g, V))
                grad_row(a, g, V, b, h, j)[c] += p * r.d[c];
        }
    }
}

static void ref(const pseg_op_args *a, const pseg_op_grads *g)
{
    for (size_t s = Q; s <= V; s++)
        clear(a, g, s);
    for (int64_t b = 0; b < a->i[BATCH]; b++)
        for (int64_t h = 0; h < a->i[HEADS]; h++)
            for (int64_t n = 0; n < a->i[N_Q]; n++)
                ref_one(a, g, b, h, n);
}

/* ---- launch ------------------------------------------------------------------------------- */

/* Where the kernels write the gradient of a slot: where it belongs, or, if samples share it, into
 * scratch memory, sample by sample. */
typedef struct target {
    pseg_mem *mem;
    size_t off, row, batch; /* elements */
    bool is_shared, adds;
} target;

static size_t shared_elems(const pseg_op_args *a, const pseg_op_grads *g, size_t slot)
{
    const int64_t *i = a->i;

    if (!pseg_wants(g, slot) || i[BATCH] == 1 || i[Q_BATCH + slot - Q] != 0)
        return 0;
    return PSEG_PRODUCT(i[BATCH], slot == Q ? i[N_Q] : i[N_K], i[HEADS], i[D]);
}

static target target_of(const pseg_op_args *a, const pseg_op_grads *g, size_t slot,
                        pseg_mem *scratch, size_t *used)
{
    const int64_t *i = a->i;
    size_t elems = shared_elems(a, g, slot), width = (size_t)(i[HEADS] * i[D]);
    target t = {g->t[slot].mem,
                g->t[slot].off,
                (size_t)i[Q_ROW + slot - Q],
                (size_t)i[Q_BATCH + slot - Q],
                false,
                g->add >> slot & 1};

    if (elems > 0) {
        t = (target){scratch, *used, width, elems / (size_t)i[BATCH], true, false};
        *used += elems;
    }
    return t;
}

static pseg_status sum_samples(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                               size_t slot, const target *t, size_t used, pseg_err *err)
{
    const int64_t *i = a->i;
    pseg_spread b = {
        .out = g->t[slot],
        .x = {.mem = t->mem, .off = t->off},
        .out_row = (size_t)i[Q_ROW + slot - Q],
        .x_batch = t->batch,
        .x_row = t->row,
        .batch = (size_t)i[BATCH],
        .n = (size_t)(slot == Q ? i[N_Q] : i[N_K]),
        .c = (size_t)(i[HEADS] * i[D]),
        .alpha = 1.0f,
        .add = g->add >> slot & 1,
    };

    return t->is_shared ? pseg_sum_block(s, &b, used * sizeof(float), err) : PSEG_OK;
}

static pseg_attention_grad_params params(const pseg_op_args *a, const pseg_op_grads *g,
                                         const target t[3])
{
    const int64_t *i = a->i;

    return (pseg_attention_grad_params){
        .g_off = g->t[OUT].off,
        .o_off = a->t[OUT].off,
        .q_off = a->t[Q].off,
        .k_off = a->t[K].off,
        .v_off = a->t[V].off,
        .key_len_off = a->t[KEY_LEN].off,
        .dq_off = t[0].off,
        .dk_off = t[1].off,
        .dv_off = t[2].off,
        .g_row = (uint64_t)i[OUT_ROW],
        .q_row = (uint64_t)i[Q_ROW],
        .k_row = (uint64_t)i[K_ROW],
        .v_row = (uint64_t)i[V_ROW],
        .dq_row = t[0].row,
        .dk_row = t[1].row,
        .dv_row = t[2].row,
        .g_batch = (uint64_t)i[OUT_BATCH],
        .q_batch = (uint64_t)i[Q_BATCH],
        .k_batch = (uint64_t)i[K_BATCH],
        .v_batch = (uint64_t)i[V_BATCH],
        .dq_batch = t[0].batch,
        .dk_batch = t[1].batch,
        .dv_batch = t[2].batch,
        .batch = (uint32_t)i[BATCH],
        .heads = (uint32_t)i[HEADS],
        .d = (uint32_t)i[D],
        .n_q = (uint32_t)i[N_Q],
        .n_k = (uint32_t)i[N_K],
        .flags = (i[CAUSAL] ? IS_CAUSAL : 0) | (pseg_has(a, KEY_LEN) ? HAS_KEY_LEN : 0) |
                 (pseg_wants(g, Q) ? WANTS_Q : 0) | (pseg_wants(g, K) ? WANTS_K : 0) |
                 (pseg_wants(g, V) ? WANTS_V : 0) | (t[0].adds ? ADDS_Q : 0) |
                 (t[1].adds ? ADDS_K : 0) | (t[2].adds ? ADDS_V : 0),
        .scale = (float)a->f[0],
    };
}

static pseg_arg arg_of(pseg_mem *mem)
{
    return mem ? PSEG_ARG_MEM(mem) : PSEG_ARG_NONE;
}

static pseg_status launch_cpu(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                              const target t[3], const pseg_attention_grad_params *p, pseg_err *err)
{
    static const pseg_kernel kernels[2][2] = {
        {{"attention_backward.cl", "attention_backward", "-DQV=1 -DDMAX=64"},
         {"attention_backward.cl", "attention_backward", "-DQV=1 -DDMAX=128"}},
        {{"attention_backward.cl", "attention_backward", "-DQV=2 -DDMAX=64"},
         {"attention_backward.cl", "attention_backward", "-DQV=2 -DDMAX=128"}}};
    bool is_wide = p->n_q > 16 && pseg_cl_device(pseg_stream_cl(s))->vector_width >= 16;
    pseg_arg args[] = {arg_of(t[0].mem),      arg_of(t[1].mem),    arg_of(t[2].mem),
                       arg_of(g->t[OUT].mem), pseg_arg_of(a, Q),   pseg_arg_of(a, K),
                       pseg_arg_of(a, V),     pseg_arg_of(a, OUT), pseg_arg_of(a, KEY_LEN),
                       PSEG_ARG_VALUE(*p)};
    size_t global[2] = {p->heads, p->batch}, local[2] = {1, 1};

    return pseg_launch(s, &kernels[is_wide][p->d > 64], 2, global, local, args, N_OF(args), err);
}

/* The matrices of as many samples at a time as take 256 MB, in scratch memory. */
static size_t samples_at_once(const pseg_op_args *a)
{
    const int64_t *i = a->i;
    double one = 8.0 * (double)i[HEADS] * (double)i[N_Q] * (double)i[N_K];
    double n = 268435456.0 / one;

    return n < 1.0 ? 1 : n > (double)i[BATCH] ? (size_t)i[BATCH] : (size_t)n;
}

static pseg_status launch_portable(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                                   const target t[3], pseg_attention_grad_params *p,
                                   pseg_mem *scratch, pseg_err *err)
{
    static const pseg_kernel matrices = {"attention_backward.cl", "attention_matrices", NULL};
    static const pseg_kernel queries = {"attention_backward.cl", "attention_queries", NULL};
    static const pseg_kernel keys = {"attention_backward.cl", "attention_keys", NULL};
    pseg_status rc = PSEG_OK;
    size_t n = samples_at_once(a), local[3] = {64, 1, 1};
    pseg_arg work = PSEG_ARG_MEM(scratch), of_out = arg_of(g->t[OUT].mem);
    pseg_arg q = pseg_arg_of(a, Q), k = pseg_arg_of(a, K), v = pseg_arg_of(a, V);
    pseg_arg len = pseg_arg_of(a, KEY_LEN), all = PSEG_ARG_VALUE(*p);
    pseg_arg m_args[] = {work, of_out, q, k, v, pseg_arg_of(a, OUT), len, all};
    pseg_arg q_args[] = {arg_of(t[0].mem), work, k, len, all};
    pseg_arg k_args[] = {arg_of(t[1].mem), arg_of(t[2].mem), work, of_out, q, all};

    for (p->first = 0; p->first < p->batch; p->first += (uint32_t)n) {
        size_t global[3] = {p->n_q, p->heads, n};

        PSEG_TRY(pseg_launch(s, &matrices, 3, global, local, m_args, N_OF(m_args), err));
        global[0] = (size_t)p->n_q * p->d;
        if (pseg_wants(g, Q))
            PSEG_TRY(pseg_launch(s, &queries, 3, global, local, q_args, N_OF(q_args), err));
        global[0] = (size_t)p->n_k * p->d;
        if (pseg_wants(g, K) || pseg_wants(g, V))
            PSEG_TRY(pseg_launch(s, &keys, 3, global, local, k_args, N_OF(k_args), err));
    }
out:
    return rc;
}

static pseg_status launch(pseg_stream *s, const pseg_op_args *a, const pseg_op_grads *g,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const int64_t *i = a->i;
    bool is_cpu = pseg_cl_variant_of(pseg_stream_cl(s)) == PSEG_CL_CPU;
    size_t used =
        is_cpu ? 0 : PSEG_PRODUCT((int64_t)samples_at_once(a), i[HEADS], 2, i[N_Q], i[N_K]);
    size_t total = used;
    pseg_mem *scratch = NULL;
    target t[3];

    if (!pseg_wants(g, Q) && !pseg_wants(g, K) && !pseg_wants(g, V))
        goto out;
    for (size_t slot = Q; slot <= V; slot++)
        total += shared_elems(a, g, slot);
    PSEG_REQUIRE(used < (size_t)1 << 60 && total < (size_t)1 << 60, "size of the work space");
    if (total > 0) /* the sums of pieces over samples come behind */
        PSEG_TRY(pseg_stream_scratch(&scratch, s, 2 * total * sizeof(float), err));
    for (size_t slot = Q; slot <= V; slot++)
        t[slot - Q] = target_of(a, g, slot, scratch, &used);
    pseg_attention_grad_params p = params(a, g, t);
    PSEG_TRY(is_cpu ? launch_cpu(s, a, g, t, &p, err)
                    : launch_portable(s, a, g, t, &p, scratch, err));
    for (size_t slot = Q; slot <= V; slot++)
        PSEG_TRY(sum_samples(s, a, g, slot, &t[slot - Q], used, err));
out:
    return rc;
}

/* Scores and dp, and a product for each gradient. */
static double flops(const pseg_op_args *a, const pseg_op_grads *g)
{
    return pseg_op_row_attention.flops(a) / 2.0 *
           (2 + pseg_wants(g, Q) + pseg_wants(g, K) + pseg_wants(g, V));
}

static double bytes(const pseg_op_args *a, const pseg_op_grads *g)
{
    (void)g;
    return 2.0 * pseg_op_row_attention.bytes(a);
}

const pseg_op_backward pseg_op_backward_attention = {
    .slots = 1u << Q | 1u << K | 1u << V,
    .reads = reads,
    .check = check,
    .is_apart = is_apart,
    .ref = ref,
    .launch = launch,
    .flops = flops,
    .bytes = bytes,
    .tol = {5e-5, 2e-5, 1e-7},
    .tol_why =
        "forward's, through two products more; in the sharp case scores of up to 200 round by "
        "1e-5, a probability by as much of itself, and ds is the small difference that is left "
        "when dp's mean is taken off: NMSE up to 2e-8 was seen",
};
