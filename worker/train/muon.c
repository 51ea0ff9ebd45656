#include "worker/train/muon.h"
#include "common/base/alloc.h"
#include "kernels/params.h"
#include "worker/train/kernels.h"

#include <math.h>
#include <string.h>

#define ROUNDS 5
#define LINE   1024 /* the kernels' own */

static const pseg_kernel momentum_kernel = {"muon.cl", "muon_momentum", NULL};
static const pseg_kernel unpack_kernel = {"muon.cl", "muon_unpack", NULL};
static const pseg_kernel pack_kernel = {"muon.cl", "muon_pack", NULL};
static const pseg_kernel mix_kernel = {"muon.cl", "muon_mix", NULL};
static const pseg_kernel apply_kernel = {"muon.cl", "muon_apply", NULL};

/* Room for the largest of the matrices; SQUARE: of its smaller side squared. */
enum { X, Y, PACKED, TURNED_X, SQUARE, SQUARE2, PACKED_SQUARE, WORK, NORM, N_ROOMS };

struct pseg_muon {
    pseg_params *params;
    pseg_muon_options options;
    pseg_mem *room[N_ROOMS];
    uint64_t bytes;
};

bool pseg_muon_takes(const pseg_param *p)
{
    size_t side = p->n < p->k ? p->n : p->k;

    return (p->kind == PSEG_PARAM_LINEAR || p->kind == PSEG_PARAM_CONV3) && !p->is_frozen &&
           p->group != PSEG_PARAM_PROBE && side > 16 && !strstr(p->spec.name, "embed");
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

pseg_status pseg_muon_new(pseg_muon **out, pseg_cl *cl, pseg_params *params,
                          const pseg_muon_options *options, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_muon *m = pseg_calloc(1, sizeof *m);
    size_t elems[N_ROOMS] = {[NORM] = PSEG_NORM_OUT};

    *out = NULL;
    if (!m)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an optimiser");
    m->params = params;
    m->options = *options;
    for (size_t i = 0; i < pseg_params_count(params); i++) {
        const pseg_param *p = pseg_params_at(params, i);
        size_t r = p->n < p->k ? p->n : p->k, c = p->n < p->k ? p->k : p->n;

        if (!pseg_muon_takes(p))
            continue;
        elems[X] = larger(elems[X], r * c);
        elems[PACKED] = larger(elems[PACKED], pseg_gemm_packed_elems(r, c));
        elems[PACKED] = larger(elems[PACKED], p->elems);
        elems[TURNED_X] = larger(elems[TURNED_X], pseg_gemm_packed_elems(c, r));
        elems[SQUARE] = larger(elems[SQUARE], r * r);
        elems[PACKED_SQUARE] = larger(elems[PACKED_SQUARE], pseg_gemm_packed_elems(r, r));
        elems[WORK] = larger(elems[WORK], pseg_train_norm_work(p->elems));
    }
    elems[Y] = elems[X];
    elems[SQUARE2] = elems[SQUARE];
    for (int i = 0; i < N_ROOMS; i++) {
        size_t bytes = larger(elems[i], 1) * sizeof(float);

        PSEG_TRY(pseg_mem_new(&m->room[i], cl, bytes, err));
        m->bytes += bytes;
    }
    *out = m;
    m = NULL;
out:
    pseg_muon_free(m);
    return rc;
}

void pseg_muon_free(pseg_muon *m)
{
    if (!m)
        return;
    for (int i = 0; i < N_ROOMS; i++)
        pseg_mem_free(m->room[i]);
    pseg_free(m);
}

uint64_t pseg_muon_bytes(const pseg_muon *m)
{
    return m->bytes;
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* What one step works on: x [r, c], r <= c. */
typedef struct work {
    pseg_muon *m;
    pseg_stream *s;
    size_t r, c;
} work;

static pseg_view at(const work *w, int room)
{
    return pseg_view_of(w->m->room[room], 0);
}

static size_t lines_of(size_t n, size_t k)
{
    return (n + PSEG_PANEL - 1) / PSEG_PANEL * k;
}

static pseg_status pack(const work *w, int to, int from, size_t n, size_t k, bool is_turned,
                        pseg_err *err)
{
    pseg_muon_params p = {.n = (pseg_u32)n, .k = (pseg_u32)k, .flags = is_turned ? TURNED : 0};
    pseg_arg args[] = {PSEG_ARG_MEM(w->m->room[to]), PSEG_ARG_MEM(w->m->room[from]),
                       PSEG_ARG_VALUE(p)};

    return pseg_train_launch_lines(w->s, &pack_kernel, lines_of(n, k), PSEG_PANEL, args, 3, err);
}

static pseg_status mix(const work *w, int to, int x, int y, size_t n, float alpha, float beta,
                       pseg_err *err)
{
    pseg_muon_params p = {.n = (pseg_u32)n, .alpha = alpha, .beta = beta};
    pseg_arg args[] = {PSEG_ARG_MEM(w->m->room[to]), PSEG_ARG_MEM(w->m->room[x]),
                       PSEG_ARG_MEM(w->m->room[y]), PSEG_ARG_VALUE(p)};

    return pseg_train_launch_lines(w->s, &mix_kernel, (n + LINE - 1) / LINE, LINE, args, 4, err);
}

/* to [m, n] = a [m, k] b^T, b packed [n, k]. */
static pseg_status multiply(const work *w, int to, int a, int b, size_t m, size_t n, size_t k,
                            pseg_err *err)
{
    pseg_gemm g = {.out = at(w, to), .a = at(w, a), .w = at(w, b), .m = m, .n = n, .k = k};

    return pseg_op_gemm(w->s, &g, err);
}

/* One round of Newton and Schulz on x. */
static pseg_status orthogonalise(const work *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t r = w->r, c = w->c;

    PSEG_TRY(pack(w, PACKED, X, r, c, false, err));
    PSEG_TRY(multiply(w, SQUARE, X, PACKED, r, r, c, err));
    PSEG_TRY(pack(w, PACKED_SQUARE, SQUARE, r, r, false, err));
    PSEG_TRY(multiply(w, SQUARE2, SQUARE, PACKED_SQUARE, r, r, r, err));
    PSEG_TRY(mix(w, SQUARE, SQUARE, SQUARE2, r * r, -4.7750f, 2.0315f, err));
    PSEG_TRY(pack(w, TURNED_X, X, c, r, true, err));
    PSEG_TRY(multiply(w, Y, SQUARE, TURNED_X, r, c, r, err));
    PSEG_TRY(mix(w, X, X, Y, r * c, 3.4445f, 1, err));
out:
    return rc;
}

/* ---- a step ---------------------------------------------------------------------------------- */

static pseg_status begin(const work *w, size_t i, pseg_view norm, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_param *t = pseg_params_at(w->m->params, i);
    pseg_muon_params p = {.grad_off = t->off,
                          .mean_off = t->off,
                          .norm_off = norm.off,
                          .n = (pseg_u32)t->elems,
                          .beta = w->m->options.beta};
    pseg_muon_params q = {
        .n = (pseg_u32)t->n, .k = (pseg_u32)t->k, .flags = t->n > t->k ? TURNED : 0};
    pseg_arg sums[] = {PSEG_ARG_MEM(w->m->room[PACKED]),
                       PSEG_ARG_MEM(pseg_params_mem(w->m->params, PSEG_PARAMS_MEAN)),
                       PSEG_ARG_MEM(pseg_params_mem(w->m->params, PSEG_PARAMS_GRAD)),
                       PSEG_ARG_MEM(norm.mem), PSEG_ARG_VALUE(p)};
    pseg_arg spread[] = {PSEG_ARG_MEM(w->m->room[X]), PSEG_ARG_MEM(w->m->room[PACKED]),
                         PSEG_ARG_MEM(w->m->room[NORM]), PSEG_ARG_VALUE(q)};

    PSEG_TRY(pseg_train_launch_lines(w->s, &momentum_kernel, (t->elems + LINE - 1) / LINE, LINE,
                                     sums, 5, err));
    PSEG_TRY(pseg_train_norm(w->s, at(w, NORM), at(w, PACKED), t->elems, 0, at(w, WORK), err));
    PSEG_TRY(pseg_train_launch_lines(w->s, &unpack_kernel, lines_of(t->n, t->k), PSEG_PANEL, spread,
                                     4, err));
out:
    return rc;
}

static pseg_status apply(const work *w, size_t i, pseg_view norm, float lr, float ema_keep,
                         pseg_err *err)
{
    const pseg_param *t = pseg_params_at(w->m->params, i);
    pseg_mem *ema = pseg_params_mem(w->m->params, PSEG_PARAMS_EMA);
    float ratio = (float)t->n / (float)t->k;
    pseg_muon_params p = {.value_off = t->off,
                          .ema_off = t->off,
                          .norm_off = norm.off,
                          .n = (pseg_u32)t->n,
                          .k = (pseg_u32)t->k,
                          .flags = (t->n > t->k ? TURNED : 0) | (ema ? HAS_EMA : 0),
                          .alpha = 1 - lr * w->m->options.decay,
                          .beta = lr * (ratio > 1 ? sqrtf(ratio) : 1),
                          .ema_keep = ema_keep};
    pseg_arg args[] = {PSEG_ARG_MEM(pseg_params_mem(w->m->params, PSEG_PARAMS_VALUE)),
                       ema ? PSEG_ARG_MEM(ema) : PSEG_ARG_NONE, PSEG_ARG_MEM(w->m->room[X]),
                       PSEG_ARG_MEM(norm.mem), PSEG_ARG_VALUE(p)};

    return pseg_train_launch_lines(w->s, &apply_kernel, lines_of(t->n, t->k), PSEG_PANEL, args, 5,
                                   err);
}

pseg_status pseg_muon_step(pseg_muon *m, pseg_stream *s, pseg_view norm, float scale,
                           float ema_keep, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t i = 0; i < pseg_params_count(m->params); i++) {
        const pseg_param *t = pseg_params_at(m->params, i);
        work w = {m, s, t->n < t->k ? t->n : t->k, t->n < t->k ? t->k : t->n};

        if (!pseg_muon_takes(t))
            continue;
        PSEG_TRY(begin(&w, i, norm, err));
        for (int k = 0; k < ROUNDS; k++)
            PSEG_TRY(orthogonalise(&w, err));
        PSEG_TRY(apply(&w, i, norm, m->options.lr * scale, ema_keep, err));
    }
out:
    return rc;
}
