#include "tests/ops/backward_cases.h"

#include <stdlib.h>
#include <string.h>

static void *must_alloc(size_t n)
{
    void *p = malloc(n);

    if (!p)
        exit(1);
    return p;
}

static double *floats(const pseg_op *op, const pseg_op_args *a, size_t slot, size_t n,
                      uint64_t *seed)
{
    float *f = must_alloc(n * sizeof *f);
    double *d = must_alloc(n * sizeof *d);

    pseg_op_fill(f, op, a, slot, n, seed);
    for (size_t i = 0; i < n; i++)
        d[i] = f[i];
    free(f);
    return d;
}

pseg_op_args backward_case_host_args(const backward_case *d)
{
    pseg_op_args a = d->args;

    for (size_t i = 0; i < d->op->n_slots; i++)
        a.t[i] = (pseg_tensor){.host = d->index[i] ? (void *)d->index[i] : (void *)d->x[i],
                               .type = d->args.t[i].type};
    return a;
}

static pseg_op_grads host_grads(const backward_case *d)
{
    pseg_op_grads g = {0};

    g.t[0].host = d->grad[0];
    for (size_t i = 1; i < d->op->n_slots; i++)
        g.t[i].host = d->want[i];
    return g;
}

/* References on the host. */
static void make_host(backward_case *d, const pseg_op_case *c, uint64_t *seed)
{
    const pseg_op *op = d->op;

    for (size_t i = 0; i < op->n_slots; i++) {
        if (!d->n[i])
            continue;
        if (op->slots[i].type == PSEG_I32) {
            d->index[i] = must_alloc(d->n[i] * sizeof *d->index[i]);
            pseg_op_fill(d->index[i], op, &d->args, i, d->n[i], seed);
        } else {
            d->x[i] = floats(op, &d->args, i, d->n[i], seed);
        }
    }
    d->grad[0] = floats(op, &d->args, 0, d->n[0], seed);
    for (size_t i = 1; i < op->n_slots; i++)
        if (pseg_op_case_has(op, c, i) && (op->backward->slots >> i & 1)) {
            d->all |= 1u << i;
            d->want[i] = must_alloc(d->n[i] * sizeof(double));
            for (size_t k = 0; k < d->n[i]; k++)
                d->want[i][k] = NAN;
        }
    pseg_op_args a = backward_case_host_args(d);
    pseg_op_grads g = host_grads(d);
    op->ref(&a);
    /* Kernels read it in float32, and so does the reference. */
    for (size_t k = 0; k < d->n[0]; k++)
        d->x[0][k] = (float)d->x[0][k];
    op->backward->ref(&a, &g);
}

pseg_status backward_case_make(backward_case *d, pseg_stream *s, const pseg_op *op,
                               const pseg_op_case *c, uint64_t seed, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_op_grads g = {0};
    pseg_err unsupported = PSEG_ERR_INIT;

    memset(d, 0, sizeof *d);
    d->op = op;
    pseg_op_case_args(&d->args, c);
    for (size_t i = 0; i < op->n_slots; i++)
        if (pseg_op_case_has(op, c, i))
            d->args.t[i].host = d;
    g.t[0].host = d;
    if (pseg_op_check_backward(op, &d->args, &g, &unsupported) == PSEG_EUNSUPPORTED) {
        d->is_unsupported = true;
        return PSEG_OK;
    }
    for (size_t i = 0; i < op->n_slots; i++)
        d->n[i] = d->args.t[i].host ? op->extent(&d->args, i) : 0;
    make_host(d, c, &seed);
    for (size_t i = 0; i < op->n_slots; i++) {
        size_t bytes = (d->n[i] + 2 * MARGIN) * 4;

        if (d->n[i])
            PSEG_TRY(pseg_mem_new(&d->mem[i], pseg_stream_cl(s), bytes, err));
        if (i == 0 || d->want[i])
            PSEG_TRY(pseg_mem_new(&d->grad_mem[i], pseg_stream_cl(s), bytes, err));
    }
out:
    return rc;
}

void backward_case_free(backward_case *d)
{
    free(d->grad[0]);
    for (size_t i = 0; i < PSEG_OP_MAX_SLOTS; i++) {
        free(d->x[i]);
        free(d->index[i]);
        free(d->want[i]);
        pseg_mem_free(d->mem[i]);
        pseg_mem_free(d->grad_mem[i]);
    }
}

float backward_case_start(size_t k)
{
    return (float)(k % 13) * 0.25f - 1.5f;
}

/* n values with NaN around them, or all NaN. */
static pseg_status put(pseg_stream *s, pseg_mem *m, const double *x, const int32_t *index, size_t n,
                       pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float *f = must_alloc((n + 2 * MARGIN) * sizeof *f);

    for (size_t k = 0; k < n + 2 * MARGIN; k++)
        f[k] = x && k >= MARGIN && k < MARGIN + n ? (float)x[k - MARGIN] : CANARY;
    if (index)
        memcpy(f + MARGIN, index, n * sizeof *f);
    PSEG_TRY(pseg_mem_write(s, m, 0, f, (n + 2 * MARGIN) * sizeof *f, err));
    PSEG_TRY(pseg_stream_finish(s, err));
out:
    free(f);
    return rc;
}

static pseg_status put_start(pseg_stream *s, pseg_mem *m, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float *f = must_alloc((n + 2 * MARGIN) * sizeof *f);

    for (size_t k = 0; k < n + 2 * MARGIN; k++)
        f[k] = backward_case_start(k);
    PSEG_TRY(pseg_mem_write(s, m, 0, f, (n + 2 * MARGIN) * sizeof *f, err));
    PSEG_TRY(pseg_stream_finish(s, err));
out:
    free(f);
    return rc;
}

pseg_status backward_case_upload(backward_case *d, pseg_stream *s, uint32_t wanted, uint32_t added,
                                 pseg_op_args *a, pseg_op_grads *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *a = d->args;
    *g = (pseg_op_grads){.add = added & wanted};
    for (size_t i = 0; i < d->op->n_slots; i++) {
        if (d->n[i])
            a->t[i] = (pseg_tensor){.mem = d->mem[i], .off = MARGIN, .type = d->args.t[i].type};
        if (i == 0 || (wanted >> i & 1))
            g->t[i] = (pseg_tensor){.mem = d->grad_mem[i], .off = MARGIN, .type = PSEG_F32};
    }
    d->read = d->op->backward->reads(a, g);
    for (size_t i = 0; i < d->op->n_slots; i++) {
        bool is_read = d->read >> i & 1;

        if (d->n[i])
            PSEG_TRY(put(s, d->mem[i], is_read ? d->x[i] : NULL, is_read ? d->index[i] : NULL,
                         d->n[i], err));
        if (i > 0 && (wanted & added) >> i & 1)
            PSEG_TRY(put_start(s, d->grad_mem[i], d->n[i], err));
        else if (i == 0 || (wanted >> i & 1))
            PSEG_TRY(put(s, d->grad_mem[i], i == 0 ? d->grad[0] : NULL, NULL, d->n[i], err));
    }
out:
    return rc;
}

static pseg_status check_unchanged(const pseg_op *op, size_t slot, pseg_stream *s, pseg_mem *m,
                                   const double *x, const int32_t *index, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float *f = must_alloc((n + 2 * MARGIN) * sizeof *f);

    PSEG_TRY(pseg_mem_read(f, s, m, 0, (n + 2 * MARGIN) * sizeof *f, err));
    PSEG_TRY(pseg_stream_finish(s, err));
    for (size_t k = 0; k < n + 2 * MARGIN; k++) {
        bool is_in = k >= MARGIN && k < MARGIN + n;
        float want = is_in && x ? (float)x[k - MARGIN] : CANARY;

        if (is_in && index)
            memcpy(&want, &index[k - MARGIN], sizeof want);
        if (memcmp(&want, &f[k], sizeof want) != 0)
            PSEG_FAIL(PSEG_R_INTERNAL, 0, "input %s was written", op->slots[slot].name);
    }
out:
    free(f);
    return rc;
}

pseg_status backward_case_unchanged(const backward_case *d, pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(check_unchanged(d->op, 0, s, d->grad_mem[0], d->grad[0], NULL, d->n[0], err));
    for (size_t i = 0; i < d->op->n_slots; i++) {
        bool is_read = d->read >> i & 1;

        if (d->n[i])
            PSEG_TRY(check_unchanged(d->op, i, s, d->mem[i], is_read ? d->x[i] : NULL,
                                     is_read ? d->index[i] : NULL, d->n[i], err));
    }
out:
    return rc;
}
