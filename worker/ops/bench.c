/* Cases with memory of their own: timing one, and running all the small ones to prepare a device.
 */
#include "worker/ops/internal.h"

#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_RUNS 200u
#define MIN_RUNS 5u

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

pseg_status pseg_op_case_memory(pseg_mem *m[PSEG_OP_MAX_SLOTS], pseg_op_args *a, pseg_stream *s,
                                const pseg_op *op, const pseg_op_case *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    void *host = NULL;
    uint64_t seed = 1;

    pseg_op_case_args(a, c);
    /* Presence decides extents, so it is known before any of them is asked for. */
    for (size_t i = 0; i < op->n_slots; i++)
        if (pseg_op_case_has(op, c, i))
            a->t[i].host = a;
    for (size_t i = 0; i < op->n_slots; i++) {
        size_t n = pseg_has(a, i) ? op->extent(a, i) : 0;

        if (n == 0)
            continue;
        if (c->in_place >> i & 1) {
            a->t[i].mem = m[0];
            continue;
        }
        size_t bytes = n * pseg_type_size(a->t[i].type);
        PSEG_TRY(pseg_mem_new(&m[i], pseg_stream_cl(s), bytes, err));
        a->t[i].mem = m[i];
        host = pseg_malloc(n * sizeof(float));
        if (!host)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
        pseg_op_fill(host, op, a, i, n, &seed);
        if (pseg_is_bf16(a, i)) /* in place: an element is read before it is written over */
            pseg_to_bf16(host, host, n);
        else if (a->t[i].type == PSEG_BF16X2)
            for (size_t k = 0; k < n; k += 1024) {
                float group[1024];

                memcpy(group, (float *)host + k, sizeof group);
                pseg_to_bf16x2((uint16_t *)host + 2 * k, group, 1024);
            }
        PSEG_TRY(pseg_mem_write(s, m[i], 0, host, bytes, err));
        PSEG_TRY(pseg_stream_finish(s, err));
        pseg_free(host);
        host = NULL;
    }
out:
    pseg_free(host);
    return rc;
}

/* One call that is timed: the operation, or with g its gradient. */
static pseg_status call(pseg_stream *s, const pseg_op *op, const pseg_op_args *a,
                        const pseg_op_grads *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(g ? pseg_op_run_backward(s, op, a, g, err) : pseg_op_run(s, op, a, err));
    PSEG_TRY(pseg_stream_finish(s, err));
out:
    return rc;
}

static pseg_status time_calls(pseg_op_timing *out, pseg_stream *s, const pseg_op *op,
                              const pseg_op_args *a, const pseg_op_grads *g, double budget_ms,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    double ms[MAX_RUNS], cpu[MAX_RUNS];
    unsigned n = 0;

    for (int i = 0; i < 2; i++) /* builds, then warms the caches */
        PSEG_TRY(call(s, op, a, g, err));
    int64_t start = pseg_clock_mono_us();
    while (n < MAX_RUNS &&
           (n < MIN_RUNS || (double)(pseg_clock_mono_us() - start) * 1e-3 < budget_ms)) {
        int64_t t0 = pseg_clock_mono_us();
        clock_t c0 = clock();

        PSEG_TRY(call(s, op, a, g, err));
        cpu[n] = (double)(clock() - c0) * 1e3 / CLOCKS_PER_SEC;
        ms[n++] = (double)(pseg_clock_mono_us() - t0) * 1e-3;
    }
    qsort(ms, n, sizeof *ms, by_value);
    qsort(cpu, n, sizeof *cpu, by_value);
    out->cpu_ms = cpu[n / 2];
    const pseg_op_variant *v = g ? NULL : pseg_op_choose(pseg_stream_cl(s), op, a);
    out->variant = v ? v->name : NULL;
    out->runs = n;
    out->min_ms = ms[0];
    out->median_ms = ms[n / 2];
    if (ms[n / 2] > 0) {
        out->gflops = (g ? op->backward->flops(a, g) : op->flops(a)) / ms[n / 2] * 1e-6;
        out->gbytes = (g ? op->backward->bytes(a, g) : op->bytes(a)) / ms[n / 2] * 1e-6;
    }
out:
    return rc;
}

pseg_status pseg_ops_bench(pseg_op_timing *out, pseg_stream *s, const pseg_op *op,
                           const pseg_op_case *c, double budget_ms, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mem *m[PSEG_OP_MAX_SLOTS] = {0};
    pseg_op_args a;

    *out = (pseg_op_timing){0};
    PSEG_TRY(pseg_op_case_memory(m, &a, s, op, c, err));
    PSEG_TRY(time_calls(out, s, op, &a, NULL, budget_ms, err));
out:
    for (size_t i = 0; i < PSEG_OP_MAX_SLOTS; i++)
        pseg_mem_free(m[i]);
    return rc;
}

pseg_status pseg_ops_bench_backward(pseg_op_timing *out, pseg_stream *s, const pseg_op *op,
                                    const pseg_op_case *c, double budget_ms, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mem *m[PSEG_OP_MAX_SLOTS] = {0}, *d[PSEG_OP_MAX_SLOTS] = {0};
    pseg_op_args a;
    pseg_op_grads g = {0};
    pseg_op_case apart = *c;

    *out = (pseg_op_timing){0};
    if (!op->backward || c->bf16 || c->bf16x2)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "%s, %s: no gradient", op->name, c->name);
    apart.in_place = 0; /* what went in must still be there */
    PSEG_TRY(pseg_op_case_memory(m, &a, s, op, &apart, err));
    for (size_t i = 0; i < op->n_slots; i++)
        if (a.t[i].mem && (i == 0 || (op->backward->slots >> i & 1))) {
            size_t bytes = op->extent(&a, i) * sizeof(float);

            PSEG_TRY(pseg_mem_new(&d[i], pseg_stream_cl(s), bytes, err));
            PSEG_TRY(i == 0 ? pseg_mem_copy(s, d[i], 0, m[0], 0, bytes, err)
                            : pseg_mem_zero(s, d[i], 0, bytes, err));
            g.t[i].mem = d[i];
        }
    PSEG_TRY(time_calls(out, s, op, &a, &g, budget_ms, err));
out:
    for (size_t i = 0; i < PSEG_OP_MAX_SLOTS; i++) {
        pseg_mem_free(m[i]);
        pseg_mem_free(d[i]);
    }
    return rc;
}

pseg_status pseg_ops_prepare(pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mem *m[PSEG_OP_MAX_SLOTS] = {0};
    pseg_op_args a;

    for (size_t o = 0; o < pseg_n_ops; o++)
        for (size_t c = 0; c < pseg_ops[o]->n_cases; c++) {
            pseg_op_case_args(&a, &pseg_ops[o]->cases[c]);
            if ((pseg_ops[o]->cases[c].flags & PSEG_CASE_BIG) ||
                !pseg_op_was_used(pseg_stream_cl(s), o, &a))
                continue;
            PSEG_TRY(pseg_op_case_memory(m, &a, s, pseg_ops[o], &pseg_ops[o]->cases[c], err));
            PSEG_TRY(pseg_op_run(s, pseg_ops[o], &a, err));
            PSEG_TRY(pseg_stream_finish(s, err));
            for (size_t i = 0; i < PSEG_OP_MAX_SLOTS; i++) {
                pseg_mem_free(m[i]);
                m[i] = NULL;
            }
        }
out:
    for (size_t i = 0; i < PSEG_OP_MAX_SLOTS; i++)
        pseg_mem_free(m[i]);
    return rc;
}
