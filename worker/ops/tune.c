/* Measuring variants against each other. */
#include "worker/ops/tune.h"
#include "worker/ops/internal.h"

#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <math.h>
#include <string.h>

#define MAX_VARIANTS 64u
#define MIN_ROUNDS   3u
#define MAX_ROUNDS   40u
/* A variant this much slower than the best is not measured again. */
#define HOPELESS 1.5
/* To take another one than is preferred, it must win by this: what noise alone does not. */
#define WORTH 0.97

typedef struct rival {
    const pseg_op_variant *v;
    double least_ms;
    bool is_out;
} rival;

/* One class under way. */
typedef struct match {
    const pseg_op *op;
    size_t class_index;
    pseg_op_args args;
    pseg_mem *mem[PSEG_OP_MAX_SLOTS];
    const pseg_op_variant *usual;
    rival rivals[MAX_VARIANTS];
    size_t n;
} match;

static pseg_status run_once(match *m, pseg_stream *s, const pseg_op_variant *v, double *ms,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t begin = pseg_clock_mono_us();

    PSEG_TRY(m->op->variants->launch(s, v, &m->args, err));
    PSEG_TRY(pseg_stream_finish(s, err));
    *ms = (double)(pseg_clock_mono_us() - begin) * 1e-3;
out:
    return rc;
}

/* Elements of the output are float32 or bfloat16. */
static double element(const void *data, size_t i, bool is_half)
{
    uint32_t bits =
        is_half ? (uint32_t)((const uint16_t *)data)[i] << 16 : ((const uint32_t *)data)[i];
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Sum of squares of the difference, over that of `want`; NaN where either holds one. */
static double distance(const void *got, const void *want, size_t n, bool is_half)
{
    double off = 0, all = 0;

    for (size_t i = 0; i < n; i++) {
        double a = element(got, i, is_half), b = element(want, i, is_half);
        off += (a - b) * (a - b);
        all += b * b;
    }
    return all > 0 ? off / all : off;
}

/* Builds every rival, and leaves out those that fail or whose result is another than the usual
 * one's. */
static pseg_status probe(match *m, pseg_stream *s, const pseg_log *log, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_op_case *c = &m->op->variants->classes[m->class_index];
    size_t n = m->op->extent(&m->args, 0);
    size_t bytes = n * pseg_type_size(m->args.t[0].type);
    bool is_half = pseg_is_bf16(&m->args, 0);
    void *want = pseg_malloc(bytes), *got = pseg_malloc(bytes);
    double ms;

    if (!want || !got)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to compare variants");
    PSEG_TRY(run_once(m, s, m->usual, &ms, err));
    PSEG_TRY(pseg_mem_read(want, s, m->mem[0], 0, bytes, err));
    PSEG_TRY(pseg_stream_finish(s, err));
    for (size_t i = 0; i < m->n; i++) {
        rival *r = &m->rivals[i];
        pseg_err e = PSEG_ERR_INIT;

        PSEG_TRY(pseg_mem_zero(s, m->mem[0], 0, bytes, err));
        PSEG_TRY(pseg_stream_finish(s, err));
        if (run_once(m, s, r->v, &ms, &e) != PSEG_OK) {
            PSEG_WARN(log, "tune", "%s %s is left out: %s", m->op->name, r->v->name, e.msg);
            r->is_out = true;
            continue;
        }
        PSEG_TRY(pseg_mem_read(got, s, m->mem[0], 0, bytes, err));
        PSEG_TRY(pseg_stream_finish(s, err));
        double off = distance(got, want, n, is_half);
        bool is_same = r->v->order == m->usual->order ? memcmp(got, want, bytes) == 0
                                                      : off <= pseg_op_case_tol(m->op, c).nmse * 4;
        if (!is_same) {
            PSEG_WARN(log, "tune", "%s %s is left out: its result for %s is off by %g", m->op->name,
                      r->v->name, c->name, off);
            r->is_out = true;
        }
    }
out:
    pseg_free(want);
    pseg_free(got);
    return rc;
}

/* All in turn, so that what else the machine does meets all alike; the shortest time of each. */
static pseg_status race(match *m, pseg_stream *s, double budget_ms, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    double spent = 0, budget = budget_ms * (double)m->n;

    for (unsigned round = 0; round < MAX_ROUNDS && (round < MIN_ROUNDS || spent < budget);
         round++) {
        double best = INFINITY;

        for (size_t i = 0; i < m->n; i++) {
            rival *r = &m->rivals[i];
            double ms = 0;

            if (r->is_out)
                continue;
            PSEG_TRY(run_once(m, s, r->v, &ms, err));
            spent += ms;
            r->least_ms = fmin(r->least_ms, ms);
            best = fmin(best, r->least_ms);
        }
        for (size_t i = 0; i < m->n && round > 0; i++)
            if (m->rivals[i].v != m->usual && m->rivals[i].least_ms > HOPELESS * best)
                m->rivals[i].is_out = true;
    }
out:
    return rc;
}

static void decide(pseg_tune_choice *out, const match *m)
{
    const rival *best = NULL, *usual = NULL;

    for (size_t i = 0; i < m->n; i++) {
        const rival *r = &m->rivals[i];
        if (r->v == m->usual)
            usual = r;
        if (!r->is_out && (!best || r->least_ms < best->least_ms))
            best = r;
    }
    if (!best || !usual || best->least_ms > WORTH * usual->least_ms)
        best = usual;
    *out = (pseg_tune_choice){m->op,    m->class_index, best->v,
                              m->usual, best->least_ms, usual->least_ms};
}

static pseg_status tune_class(pseg_tuning *t, pseg_stream *s, const pseg_op *op, size_t k,
                              const pseg_tune_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_cl *cl = pseg_stream_cl(s);
    const pseg_op_variants *all = op->variants;
    match *m = pseg_calloc(1, sizeof *m);

    if (!m)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to tune");
    m->op = op;
    m->class_index = k;
    PSEG_TRY(pseg_op_case_memory(m->mem, &m->args, s, op, &all->classes[k], err));
    size_t preferred = all->prefer(cl, &m->args);
    if (preferred >= all->n)
        goto out;
    m->usual = &all->list[preferred];
    for (size_t i = 0; i < all->n && m->n < MAX_VARIANTS; i++)
        if (all->can(&all->list[i], cl, &m->args))
            m->rivals[m->n++] = (rival){&all->list[i], INFINITY, false};
    if (m->n < 2 || t->n == PSEG_TUNE_MAX ||
        (o->max_flops > 0 && op->flops(&m->args) > o->max_flops))
        goto out;
    if (o->progress)
        o->progress(o->ud, op->name, all->classes[k].name);
    PSEG_TRY(probe(m, s, o->log, err));
    PSEG_TRY(race(m, s, o->budget_ms, err));
    decide(&t->choices[t->n++], m);
out:
    for (size_t i = 0; m && i < PSEG_OP_MAX_SLOTS; i++)
        pseg_mem_free(m->mem[i]);
    pseg_free(m);
    return rc;
}

pseg_status pseg_tune(pseg_tuning *out, pseg_stream *s, const pseg_tune_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    memset(out, 0, sizeof *out);
    if (o->progress)
        o->progress(o->ud, "peaks", "of the device");
    PSEG_TRY(pseg_peaks_measure(&out->peaks, s, err));
    for (size_t i = 0; i < pseg_n_ops; i++)
        for (size_t k = 0; pseg_ops[i]->variants && (!o->only || o->only == pseg_ops[i]) &&
                           k < pseg_ops[i]->variants->n_classes;
             k++)
            PSEG_TRY(tune_class(out, s, pseg_ops[i], k, o, err));
out:
    return rc;
}

void pseg_tuning_apply(const pseg_tuning *t, pseg_cl *cl)
{
    for (size_t i = 0; i < t->n; i++)
        pseg_op_set_choice(cl, t->choices[i].op, t->choices[i].class_index, t->choices[i].best);
}
