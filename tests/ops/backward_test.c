/* The gradient of every operation that has one, case by case:
 *  - the CPU reference against central differences of the forward reference, in double;
 *  - the kernels against the CPU reference, on every OpenCL device, in both variants: all gradients
 *    overwritten, all added to, each alone, and through the typed forms of backward.h;
 *  - what must be refused.
 *
 *     test_ops_backward [--small] [--interpreted] [--op NAME] [--variant cpu|portable]
 *
 * Options and exit codes are those of test_ops. */
#include "tests/ops/backward_cases.h"
#include "tests/ops/typed.h"
#include "tests/support/compare.h"
#include "worker/ops/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned n_checks, n_failed;
static bool is_interpreted;

static void fail(const char *what, const char *why)
{
    n_failed++;
    printf("FAIL %s: %s\n", what, why);
}

static bool must(pseg_status rc, const char *what, const pseg_err *err)
{
    if (rc != PSEG_OK)
        fail(what, err->msg);
    return rc == PSEG_OK;
}

/* ---- the reference against differences ---------------------------------------------------- */

/* sum of d_out * out over what the forward reference writes. */
static double loss(const backward_case *d, pseg_op_args *a)
{
    double sum = 0;
    double *out = a->t[0].host;

    for (size_t i = 0; i < d->n[0]; i++)
        out[i] = NAN;
    d->op->ref(a);
    for (size_t i = 0; i < d->n[0]; i++)
        if (!isnan(out[i])) /* gaps between rows */
            sum += d->grad[0][i] * out[i];
    return sum;
}

/* At most this many elements of a tensor. */
#define MOST 60u

static void check_differences(const backward_case *d, const char *what)
{
    pseg_op_args a = backward_case_host_args(d);
    const double h = 1e-5;
    double *out = malloc(d->n[0] * sizeof *out);

    if (!out)
        exit(1);
    a.t[0].host = out;
    for (size_t s = 1; s < d->op->n_slots; s++) {
        double *x = a.t[s].host;
        size_t step = d->n[s] / MOST + 1, first = d->n[s] > MOST ? d->n[s] % step : 0;

        for (size_t i = first; d->want[s] && i < d->n[s]; i += step) {
            double keep = x[i], got = d->want[s][i], up, down;

            x[i] = keep + h;
            up = loss(d, &a);
            x[i] = keep - h;
            down = loss(d, &a);
            x[i] = keep;
            double want = (up - down) / (2 * h);
            if (isnan(got) ? want != 0 : !(fabs(got - want) <= 1e-6 * (1 + fabs(want)))) {
                fail(what, "the reference is not the derivative:");
                printf("     %s[%zu]: %.9g, by differences %.9g\n", d->op->slots[s].name, i, got,
                       want);
                break;
            }
        }
    }
    free(out);
}

/* ---- kernels against the reference -------------------------------------------------------- */

/* Compares the gradients in `wanted`, of which those in `added` started from d->start, and that
 * nothing else was written. */
static void compare(const backward_case *d, pseg_stream *s, uint32_t wanted, uint32_t added,
                    const char *what)
{
    pseg_op_tol tol = d->op->backward->tol;
    pseg_err err = PSEG_ERR_INIT;

    for (size_t i = 1; i < d->op->n_slots; i++) {
        size_t words = d->n[i] + 2 * MARGIN, n = 0;
        float *got, *a, *b;
        pseg_compare cmp;

        if (!(wanted >> i & 1))
            continue;
        got = malloc(3 * words * sizeof *got);
        if (!got)
            exit(1);
        a = got + words;
        b = a + words;
        if (!must(pseg_mem_read(got, s, d->grad_mem[i], 0, words * sizeof *got, &err), what,
                  &err) ||
            !must(pseg_stream_finish(s, &err), what, &err)) {
            free(got);
            continue;
        }
        for (size_t k = 0; k < words; k++) {
            bool is_in = k >= MARGIN && k < MARGIN + d->n[i];
            double want = is_in ? d->want[i][k - MARGIN] : NAN;
            float start = added >> i & 1 ? backward_case_start(k) : CANARY;

            if (isnan(want)) {
                if (memcmp(&got[k], added >> i & 1 ? &start : &(float){CANARY}, sizeof start) !=
                    0) {
                    fail(what, "an element outside of a gradient was written");
                    break;
                }
                continue;
            }
            a[n] = got[k];
            b[n++] = (float)(want + (added >> i & 1 ? (double)start : 0));
        }
        if (n == 0)
            fail(what, "the reference wrote nothing");
        /* A gradient that is all but zero everywhere (a softmax with one probability near 1) is
         * what rounding left: nothing to take a ratio of. */
        double squares = 0;
        for (size_t k = 0; k < n; k++)
            squares += (double)b[k] * b[k];
        bool is_small = squares < 1e-4 * (double)n;
        if (!pseg_compare_f32(&cmp, a, b, n, tol.abs, tol.rel, is_small ? -1 : tol.nmse)) {
            fail(what, "differs from the reference:");
            pseg_compare_print(stdout, d->op->slots[i].name, &cmp);
        }
        free(got);
    }
}

/* One call: gradients in `wanted`, of which those in `added` are added to. */
static void run(backward_case *d, pseg_stream *s, uint32_t wanted, uint32_t added, bool is_typed,
                const char *what)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_op_args a;
    pseg_op_grads g;

    n_checks++;
    if (!must(backward_case_upload(d, s, wanted, added, &a, &g, &err), what, &err))
        return;
    if (must(is_typed ? typed_run_backward(s, d->op->name, &a, &g, &err)
                      : pseg_op_run_backward(s, d->op, &a, &g, &err),
             what, &err))
        compare(d, s, wanted, added, what);
    if (!must(backward_case_unchanged(d, s, &err), what, &err))
        n_failed++;
}

/* The gradient written over that of the output, where that is allowed. */
static void run_in_place(backward_case *d, pseg_stream *s, uint32_t all, size_t slot,
                         const char *what)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_op_args a;
    pseg_op_grads g;
    pseg_mem *own = d->grad_mem[slot];

    n_checks++;
    if (d->n[slot] != d->n[0] ||
        !must(backward_case_upload(d, s, all, 0, &a, &g, &err), what, &err))
        return;
    g.t[slot].mem = d->grad_mem[0];
    if (must(pseg_op_run_backward(s, d->op, &a, &g, &err), what, &err)) {
        uint32_t rest = all & ~(1u << slot);
        size_t words = d->n[0] + 2 * MARGIN;
        float *got = malloc(words * sizeof *got);
        pseg_op_tol tol = d->op->backward->tol;

        if (!got)
            exit(1);
        compare(d, s, rest, 0, what);
        if (must(pseg_mem_read(got, s, d->grad_mem[0], 0, words * sizeof *got, &err), what, &err) &&
            must(pseg_stream_finish(s, &err), what, &err))
            for (size_t k = 0; k < d->n[slot]; k++)
                if (!isnan(d->want[slot][k]) && !(fabs(got[MARGIN + k] - d->want[slot][k]) <=
                                                  tol.abs + tol.rel * fabs(d->want[slot][k]))) {
                    fail(what, "in place, differs from the reference");
                    break;
                }
        free(got);
    }
    d->grad_mem[slot] = own;
}

/* ---- what must be refused ----------------------------------------------------------------- */

static void refuse(const backward_case *d, const pseg_op_args *a, const pseg_op_grads *g,
                   pseg_status want, const char *what, const char *why)
{
    pseg_err err = PSEG_ERR_INIT;

    if (pseg_op_check_backward(d->op, a, g, &err) != want || !err.msg[0])
        fail(what, why);
}

static void refusals(backward_case *d, pseg_stream *s, uint32_t all, const char *what)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_op_args a, b;
    pseg_op_grads g, h;

    n_checks++;
    if (!must(backward_case_upload(d, s, all, 0, &a, &g, &err), what, &err) ||
        !must(pseg_op_check_backward(d->op, &a, &g, &err), what, &err))
        return;
    uint32_t reads = d->op->backward->reads(&a, &g);
    h = g;
    memset(&h.t[0], 0, sizeof h.t[0]);
    refuse(d, &a, &h, PSEG_EINVAL, what, "no gradient of the output was accepted");
    for (size_t i = 0; i < d->op->n_slots; i++) {
        h = g;
        if (g.t[i].mem) {
            h.t[i].off += MARGIN + 1;
            refuse(d, &a, &h, PSEG_EINVAL, what, "a short buffer was accepted");
            h.t[i].off = SIZE_MAX - 1;
            refuse(d, &a, &h, PSEG_EINVAL, what, "an offset far outside was accepted");
            h = g;
            h.t[i].type = PSEG_BF16;
            refuse(d, &a, &h, PSEG_EUNSUPPORTED, what, "a gradient in BF16 was accepted");
        } else if (i > 0 && !(d->op->backward->slots >> i & 1)) {
            h.t[i] = g.t[0];
            refuse(d, &a, &h, PSEG_EINVAL, what, "a gradient that there is not was accepted");
        }
        if (reads >> i & 1 && a.t[i].mem) {
            b = a;
            b.t[i].off += MARGIN + 1;
            refuse(d, &b, &g, PSEG_EINVAL, what, "a short input was accepted");
            for (size_t k = 1; k < d->op->n_slots; k++) {
                b = a;
                b.t[i].mem = g.t[k].mem;
                b.t[i].off = g.t[k].off;
                if (g.t[k].mem && d->n[i] <= d->n[k])
                    refuse(d, &b, &g, PSEG_EINVAL, what,
                           "a gradient over what is read was accepted");
            }
        }
        for (size_t k = 1; k < i; k++) {
            h = g;
            h.t[i].mem = g.t[k].mem;
            if (g.t[i].mem && g.t[k].mem && d->n[i] <= d->n[k])
                refuse(d, &a, &h, PSEG_EINVAL, what, "two gradients in one place were accepted");
        }
        if (i > 0 && g.t[i].mem && d->n[i] <= d->n[0] && d->n[i] > 1) {
            h = g; /* one element apart, and added to, are never right */
            h.t[i].mem = g.t[0].mem;
            h.t[i].off--;
            refuse(d, &a, &h, PSEG_EINVAL, what, "a gradient beside the output's was accepted");
            h.t[i].off++;
            h.add = 1u << i;
            refuse(d, &a, &h, PSEG_EINVAL, what, "a sum over the output's was accepted");
        }
    }
}

/* ---- driver ------------------------------------------------------------------------------- */

static void run_case(pseg_stream *s, const pseg_op *op, const pseg_op_case *c, const char *variant,
                     bool with_differences)
{
    backward_case d;
    pseg_err err = PSEG_ERR_INIT;
    char what[160];

    snprintf(what, sizeof what, "%s backward, %s (%s)", op->name, c->name, variant);
    if (!must(backward_case_make(&d, s, op, c, 11 + (uint64_t)(c - op->cases), &err), what, &err)) {
        backward_case_free(&d);
        return;
    }
    if (d.is_unsupported) { /* said so by the check, for a reason */
        n_checks++;
        backward_case_free(&d);
        return;
    }
    if (with_differences)
        check_differences(&d, what);
    run(&d, s, d.all, d.all & 0x55555555u, true, what);
    if (is_interpreted) { /* slowly: every kernel has run */
        backward_case_free(&d);
        return;
    }
    run(&d, s, d.all, d.all, false, what);
    run(&d, s, d.all, 0, false, what);
    for (size_t i = 1; i < op->n_slots; i++)
        if (d.all >> i & 1) {
            uint32_t one = 1u << i;

            if (d.all != one && !(c->flags & PSEG_CASE_BIG))
                run(&d, s, one, i % 2 ? one : 0, i % 2 == 0, what);
            pseg_op_args a = backward_case_host_args(&d);
            if (op->backward->may_alias && op->backward->may_alias(&a, i))
                run_in_place(&d, s, d.all, i, what);
        }
    refusals(&d, s, d.all, what);
    backward_case_free(&d);
}

static void run_device(const char *id, pseg_cl_variant variant, const char *name, const char *only,
                       bool is_small, bool with_differences)
{
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_cl *cl = NULL;
    pseg_stream *s = NULL;

    o.device = id;
    o.variant = variant;
    o.no_cache = is_interpreted;
    if (must(pseg_cl_open(&cl, &o, &err), "open", &err) &&
        must(pseg_stream_open(&s, cl, &err), "open", &err))
        for (size_t i = 0; i < pseg_n_ops; i++)
            for (size_t c = 0; c < pseg_ops[i]->n_cases; c++) {
                const pseg_op_case *k = &pseg_ops[i]->cases[c];

                if (!pseg_ops[i]->backward || (only && strcmp(only, pseg_ops[i]->name) != 0) ||
                    (is_small && (k->flags & PSEG_CASE_BIG)) || (k->flags & PSEG_CASE_SLOW))
                    continue;
                run_case(s, pseg_ops[i], k, name, with_differences && !(k->flags & PSEG_CASE_BIG));
            }
    pseg_stream_close(s);
    pseg_cl_close(cl);
}

int main(int argc, char **argv)
{
    pseg_device_info *list = NULL;
    const char *only = NULL, *variant = NULL;
    size_t n = 0;
    bool is_small = false;
    pseg_err err = PSEG_ERR_INIT;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--small") == 0)
            is_small = true;
        else if (strcmp(argv[i], "--interpreted") == 0)
            is_interpreted = is_small = true;
        else if (strcmp(argv[i], "--op") == 0 && i + 1 < argc)
            only = argv[++i];
        else if (strcmp(argv[i], "--variant") == 0 && i + 1 < argc)
            variant = argv[++i];
        else
            return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!must(pseg_device_list(&list, &n, &err), "devices", &err))
        return 1;
    if (n == 0) {
        printf("skipped: no OpenCL device\n");
        return 77;
    }
    for (size_t i = 0; i < n; i++) {
        if (!variant || strcmp(variant, "portable") == 0)
            run_device(list[i].id, PSEG_CL_PORTABLE, "portable", only,
                       is_small || list[i].type == PSEG_DEVICE_CPU, false);
        if (!variant || strcmp(variant, "cpu") == 0)
            run_device(list[i].id, PSEG_CL_CPU, "cpu", only, is_small, i == 0 && !is_interpreted);
    }
    free(list);
    printf("%u checks, %u failed\n", n_checks, n_failed);
    return n_failed || n_checks == 0 ? 1 : 0;
}
