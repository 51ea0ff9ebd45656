/* Every operation of the table, case by case, against its CPU reference, on every OpenCL device and
 * in both variants of the kernels; then what must be refused, and values at the edge.
 *
 *     test_ops [--small] [--op NAME] [--variant cpu|portable]
 *
 * --small leaves the big shapes out, for interpreters (Oclgrind) and sanitizers. Exit 77: there is
 * no device. */
#include "tests/ops/reference.h"
#include "tests/ops/typed.h"
#include "tests/support/compare.h"
#include "worker/ops/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Elements on each side of a buffer's contents that nothing may touch. */
#define MARGIN 67u
#define CANARY 0x7fc5a5a5u /* a NaN: reading it by mistake shows as well as writing it */

static unsigned n_checks, n_failed;
static bool is_interpreted;

static void fail(const char *what, const char *why)
{
    n_failed++;
    printf("FAIL %s: %s\n", what, why);
}

typedef struct slot_data {
    uint32_t *host; /* MARGIN + n + MARGIN words */
    size_t n;
    pseg_mem *mem;
} slot_data;

typedef struct case_data {
    slot_data slot[PSEG_OP_MAX_SLOTS];
    pseg_op_args args;
    float *want; /* slot 0 after the reference */
} case_data;

static void case_free(case_data *d)
{
    for (size_t i = 0; i < PSEG_OP_MAX_SLOTS; i++) {
        free(d->slot[i].host);
        pseg_mem_free(d->slot[i].mem);
    }
    free(d->want);
    memset(d, 0, sizeof *d);
}

/* Words of a packed matrix to the device in two parts, between words as they are. */
static pseg_status put_parts(pseg_stream *s, const slot_data *t, pseg_err *err)
{
    size_t words = t->n + 2 * MARGIN;
    uint32_t *w = malloc(words * sizeof *w);

    if (!w)
        exit(1);
    memcpy(w, t->host, words * sizeof *w);
    pseg_to_bf16x2((uint16_t *)(w + MARGIN), (const float *)(t->host + MARGIN), t->n);
    pseg_status rc = pseg_mem_write(s, t->mem, 0, w, words * 4, err);
    if (rc == PSEG_OK)
        rc = pseg_stream_finish(s, err);
    free(w);
    return rc;
}

/* And back, which is exact, since the numbers of a case are. */
static void join_parts(uint32_t *words, size_t n)
{
    float group[1024];

    for (size_t k = 0; k < n; k += 1024) {
        const uint16_t *at = (const uint16_t *)(words + MARGIN + k);

        for (size_t i = 0; i < 1024; i++) {
            uint32_t hi = (uint32_t)at[i] << 16, lo = (uint32_t)at[1024 + i] << 16;
            float a, b;

            memcpy(&a, &hi, sizeof a);
            memcpy(&b, &lo, sizeof b);
            group[i] = a + b;
        }
        memcpy(words + MARGIN + k, group, sizeof group);
    }
}

/* Host words to the device and back, in the slot's type: half of a word that BF16 can hold, and of
 * the canary, is lost without loss. */
static pseg_status put(pseg_stream *s, const case_data *d, size_t i, pseg_err *err)
{
    const slot_data *t = &d->slot[i];
    size_t words = t->n + 2 * MARGIN;
    pseg_status rc;

    if (d->args.t[i].type == PSEG_BF16X2) {
        rc = put_parts(s, t, err);
        return rc;
    }
    if (d->args.t[i].type != PSEG_BF16)
        return pseg_mem_write(s, t->mem, 0, t->host, words * 4, err);
    uint16_t *half = malloc(words * sizeof *half);
    if (!half)
        exit(1);
    for (size_t k = 0; k < words; k++)
        half[k] = (uint16_t)(t->host[k] >> 16);
    rc = pseg_mem_write(s, t->mem, 0, half, words * 2, err);
    if (rc == PSEG_OK)
        rc = pseg_stream_finish(s, err);
    free(half);
    return rc;
}

static pseg_status get(uint32_t *words, pseg_stream *s, const case_data *d, size_t i, pseg_err *err)
{
    const slot_data *t = &d->slot[i];
    size_t n = t->n + 2 * MARGIN;
    bool is_half = d->args.t[i].type == PSEG_BF16;
    pseg_status rc = pseg_mem_read(words, s, t->mem, 0, n * (is_half ? 2 : 4), err);

    if (rc == PSEG_OK)
        rc = pseg_stream_finish(s, err);
    for (size_t k = n; is_half && k-- > 0;) {
        uint16_t half;

        memcpy(&half, (unsigned char *)words + 2 * k, sizeof half);
        words[k] = (uint32_t)half << 16;
    }
    if (d->args.t[i].type == PSEG_BF16X2)
        join_parts(words, t->n);
    return rc;
}

static bool must(pseg_status rc, const char *what, const pseg_err *err)
{
    if (rc != PSEG_OK)
        fail(what, err->msg);
    return rc == PSEG_OK;
}

/* Host data for every tensor of the case, surrounded by canaries, and device memory with the same.
 */
static bool case_make(case_data *d, pseg_stream *s, const pseg_op *op, const pseg_op_case *c,
                      const char *what, uint64_t seed)
{
    pseg_err err = PSEG_ERR_INIT;

    memset(d, 0, sizeof *d);
    pseg_op_case_args(&d->args, c);
    for (size_t i = 0; i < op->n_slots; i++)
        if (pseg_op_case_has(op, c, i))
            d->args.t[i].host = d;
    for (size_t i = 0; i < op->n_slots; i++) {
        slot_data *t = &d->slot[i];

        if (!d->args.t[i].host)
            continue;
        t->n = op->extent(&d->args, i);
        if (t->n > (1u << 28)) {
            fail(what, "extent of a case is absurd");
            return false;
        }
        size_t words = t->n + 2 * MARGIN;
        t->host = malloc(words * sizeof *t->host);
        if (!t->host)
            return false;
        for (size_t k = 0; k < words; k++)
            t->host[k] = CANARY;
        if (i > 0 || c->in_place)
            pseg_op_fill(t->host + MARGIN, op, &d->args, i, t->n, &seed);
        size_t size = d->args.t[i].type == PSEG_BF16 ? 2 : 4;
        if (!must(pseg_mem_new(&t->mem, pseg_stream_cl(s), words * size, &err), what, &err))
            return false;
    }
    for (size_t i = 0; i < op->n_slots; i++) {
        slot_data *t = &d->slot[i];

        if (!t->host)
            continue;
        if (c->in_place >> i & 1) {
            memcpy(t->host, d->slot[0].host, (t->n + 2 * MARGIN) * sizeof *t->host);
            d->args.t[i].mem = d->slot[0].mem;
        } else {
            d->args.t[i].mem = t->mem;
        }
        d->args.t[i].host = t->host;
        d->args.t[i].off = MARGIN;
        if (!must(put(s, d, i, &err), what, &err))
            return false;
    }
    return must(pseg_stream_finish(s, &err), what, &err);
}

/* The reference writes into a copy of slot 0. */
static bool case_reference(case_data *d, const pseg_op *op)
{
    size_t words = d->slot[0].n + 2 * MARGIN;
    pseg_op_args a = d->args;

    d->want = malloc(words * sizeof *d->want);
    if (!d->want)
        return false;
    memcpy(d->want, d->slot[0].host, words * sizeof *d->want);
    a.t[0].host = d->want;
    return reference_run(op, &a);
}

/* Compares the output with the reference where the reference wrote, bit by bit elsewhere (margins
 * and the gaps between strided rows), and inputs with what they were. */
static void case_compare(case_data *d, pseg_stream *s, const pseg_op *op, const pseg_op_case *c,
                         const char *what)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_op_tol tol = pseg_op_case_tol(op, c);
    size_t words = d->slot[0].n + 2 * MARGIN, n = 0;
    uint32_t *got = malloc(words * sizeof *got);
    float *a = malloc(words * sizeof *a), *b = malloc(words * sizeof *b);
    pseg_compare cmp;

    if (!got || !a || !b || !must(get(got, s, d, 0, &err), what, &err))
        goto out;
    for (size_t i = 0; i < words; i++) {
        uint32_t want;

        memcpy(&want, &d->want[i], sizeof want);
        if (want == CANARY) {
            if (got[i] != (d->args.t[0].type == PSEG_BF16 ? CANARY & 0xffff0000u : CANARY)) {
                fail(what, "an element outside of the output was written");
                goto out;
            }
            continue;
        }
        memcpy(&a[n], &got[i], sizeof *a);
        b[n++] = d->want[i];
    }
    if (n == 0)
        fail(what, "the reference wrote nothing");
    if (!pseg_compare_f32(&cmp, a, b, n, tol.abs, tol.rel, tol.nmse)) {
        fail(what, "differs from the reference:");
        pseg_compare_print(stdout, what, &cmp);
    }
    for (size_t i = 1; i < op->n_slots; i++) {
        slot_data *t = &d->slot[i];

        if (!t->host || d->args.t[i].mem != t->mem)
            continue;
        uint32_t *now = malloc((t->n + 2 * MARGIN) * sizeof *now);
        if (now && must(get(now, s, d, i, &err), what, &err)) {
            uint32_t mask = d->args.t[i].type == PSEG_BF16 ? 0xffff0000u : 0xffffffffu;

            for (size_t k = 0; k < t->n + 2 * MARGIN; k++)
                if (now[k] != (t->host[k] & mask)) {
                    fail(what, "an input was written");
                    break;
                }
        }
        free(now);
    }
out:
    free(got);
    free(a);
    free(b);
}

/* A buffer one element short, an output over an input, a missing tensor: each refused, by name. */
static void case_refusals(case_data *d, const pseg_op *op, const pseg_op_case *c, const char *what)
{
    pseg_err err;
    pseg_op_args a;

    for (size_t i = 0; i < op->n_slots; i++) {
        if (!d->args.t[i].host)
            continue;
        a = d->args;
        a.t[i].off += MARGIN + 1;
        pseg_err_clear(&err);
        if (pseg_op_check(op, &a, &err) != PSEG_EINVAL || !err.msg[0])
            fail(what, "a buffer that is one element short was accepted");
        a = d->args;
        a.t[i].off = SIZE_MAX - 1;
        if (pseg_op_check(op, &a, NULL) != PSEG_EINVAL)
            fail(what, "an offset far outside was accepted");
        a = d->args;
        memset(&a.t[i], 0, sizeof a.t[i]);
        if (!op->slots[i].is_optional && pseg_op_check(op, &a, NULL) != PSEG_EINVAL)
            fail(what, "a missing tensor was accepted");
        if (i > 0 && !(c->in_place >> i & 1) && d->slot[i].n > 1 && d->slot[0].n > 1) {
            a = d->args; /* one element apart is never right */
            a.t[i].mem = d->slot[0].mem;
            a.t[i].off = MARGIN + 1;
            if (d->slot[i].n + 1 <= d->slot[0].n + MARGIN &&
                pseg_op_check(op, &a, NULL) != PSEG_EINVAL)
                fail(what, "an output that overlaps an input was accepted");
        }
    }
    for (size_t i = 0; i < 2; i++) { /* the first two numbers are dimensions in every row */
        static const int64_t bad[] = {0, -1, INT64_C(1) << 31, INT64_C(1) << 62, INT64_MIN};

        for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
            if (i == 1 && strcmp(op->name, "act") == 0)
                continue; /* there, the second is the activation, where 0 is right */
            a = d->args;
            a.i[i] = bad[k];
            if (pseg_op_check(op, &a, NULL) != PSEG_EINVAL)
                fail(what, "an impossible dimension was accepted");
        }
    }
}

static void run_case(pseg_stream *s, const pseg_op *op, const pseg_op_case *c, const char *variant)
{
    case_data d;
    pseg_err err = PSEG_ERR_INIT;
    char what[160];

    snprintf(what, sizeof what, "%s, %s (%s)", op->name, c->name, variant);
    n_checks++;
    if (case_make(&d, s, op, c, what, 7 + n_checks) && case_reference(&d, op)) {
        if (must(pseg_op_run(s, op, &d.args, &err), what, &err))
            case_compare(&d, s, op, c, what);
        /* Again through the typed form, from the same start: what it writes, and in place reads. */
        if (must(put(s, &d, 0, &err), what, &err) &&
            must(typed_run(s, op->name, &d.args, &err), what, &err))
            case_compare(&d, s, op, c, what);
        case_refusals(&d, op, c, what);
    } else {
        fail(what, "the case could not be made");
    }
    case_free(&d);
}

/* ---- variants ----------------------------------------------------------------------------- */

/* A case by one variant: against the reference, and bit for bit against the one that is preferred
 * where both sum in the same order. */
static void run_forced(pseg_stream *s, const pseg_op *op, const pseg_op_case *c,
                       const pseg_op_variant *v, const char *form)
{
    pseg_cl *cl = pseg_stream_cl(s);
    case_data d;
    pseg_err err = PSEG_ERR_INIT;
    char what[160];

    snprintf(what, sizeof what, "%s, %s (%s, %s)", op->name, c->name, form, v->name);
    if (!case_make(&d, s, op, c, what, 77) || !case_reference(&d, op)) {
        fail(what, "the case could not be made");
        case_free(&d);
        return;
    }
    pseg_op_force(cl, op, NULL);
    const pseg_op_variant *preferred = pseg_op_choose(cl, op, &d.args);
    size_t words = d.slot[0].n + 2 * MARGIN;
    uint32_t *usual = calloc(words, sizeof *usual), *got = calloc(words, sizeof *got);
    if (!usual || !got)
        exit(1);
    if (must(pseg_op_run(s, op, &d.args, &err), what, &err) &&
        must(get(usual, s, &d, 0, &err), what, &err) && must(put(s, &d, 0, &err), what, &err)) {
        pseg_op_force(cl, op, v);
        if (pseg_op_choose(cl, op, &d.args) != v)
            fail(what, "another variant is chosen");
        if (must(pseg_op_run(s, op, &d.args, &err), what, &err) &&
            must(get(got, s, &d, 0, &err), what, &err)) {
            case_compare(&d, s, op, c, what);
            if (v->order == preferred->order && memcmp(got, usual, words * sizeof *got) != 0)
                fail(what, "differs in its bits from a variant of the same order");
        }
    }
    free(usual);
    free(got);
    pseg_op_force(cl, op, NULL);
    case_free(&d);
}

/* Is the case small, and one for v? */
static bool is_for(const pseg_cl *cl, const pseg_op *op, const pseg_op_case *c,
                   const pseg_op_variant *v)
{
    pseg_op_args a;

    pseg_op_case_args(&a, c);
    for (size_t i = 0; i < op->n_slots; i++)
        if (pseg_op_case_has(op, c, i))
            a.t[i].host = &a;
    return !(c->flags & PSEG_CASE_BIG) && op->flops(&a) < (is_interpreted ? 1e5 : 2e7) &&
           op->variants->can(v, cl, &a);
}

/* Every variant that this device can run, on all small cases and those of its classes. */
static void run_variants(pseg_stream *s, const pseg_op *op, const char *form)
{
    const pseg_op_variants *all = op->variants;
    const pseg_cl *cl = pseg_stream_cl(s);
    unsigned n_variants = 0;

    for (size_t v = 0; v < all->n; v++) {
        unsigned n = 0;

        for (size_t w = 0; w < v; w++)
            if (strcmp(all->list[v].name, all->list[w].name) == 0)
                fail(all->list[v].name, "two variants share this name");
        if (pseg_op_variant_find(op, all->list[v].name, strlen(all->list[v].name)) != &all->list[v])
            fail(all->list[v].name, "the variant is not found by its name");
        /* The larger of the small ones first: an interpreter does one. */
        for (size_t c = op->n_cases + all->n_classes; c-- > 0 && !(is_interpreted && n == 1);) {
            const pseg_op_case *k =
                c < op->n_cases ? &op->cases[c] : &all->classes[c - op->n_cases];
            if (is_for(cl, op, k, &all->list[v])) {
                run_forced(s, op, k, &all->list[v], form);
                n++;
            }
        }
        n_checks += n;
        n_variants += n > 0;
    }
    printf("%s (%s): %u of %zu variants were forced\n", op->name, form, n_variants, all->n);
    if (n_variants == 0)
        fail(op->name, "no variant can run");
}

/* Each class is that of the case that stands for it. */
static void check_classes(const pseg_op *op)
{
    const pseg_op_variants *all = op->variants;

    n_checks++;
    if (all->n_classes > PSEG_OP_MAX_CLASSES || all->n > 254)
        fail(op->name, "too many classes or variants");
    for (size_t i = 0; i < all->n_classes; i++) {
        pseg_op_args a;

        pseg_op_case_args(&a, &all->classes[i]);
        if (all->class_of(&a) != i)
            fail(all->classes[i].name, "the case is of another class than its own");
    }
}

/* ---- values at the edge ------------------------------------------------------------------- */

/* Runs an operation on n elements in slot 1 given by in; NULL tensors elsewhere are as the case
 * says. Returns the output's elements in out. */
static bool run_on(float *out, pseg_stream *s, const pseg_op *op, const pseg_op_case *c,
                   const float *in, const char *what)
{
    case_data d;
    pseg_err err = PSEG_ERR_INIT;
    bool good = false;

    if (case_make(&d, s, op, c, what, 3)) {
        good = must(pseg_mem_write(s, d.slot[1].mem, MARGIN * 4, in, d.slot[1].n * 4, &err), what,
                    &err) &&
               must(pseg_op_run(s, op, &d.args, &err), what, &err) &&
               must(pseg_mem_read(out, s, d.slot[0].mem, MARGIN * 4, d.slot[0].n * 4, &err), what,
                    &err) &&
               must(pseg_stream_finish(s, &err), what, &err);
    }
    case_free(&d);
    return good;
}

static void edge_of_act(pseg_stream *s)
{
    static const float x[] = {0.0f,   -0.0f, 1e-40f, -1e-40f,  1e-6f,    -1e-6f, 3.9f,
                              -3.9f,  5.5f,  -5.5f,  -9.0f,    -13.0f,   20.0f,  87.2f,
                              -87.2f, 88.6f, 89.0f,  -89.0f,   1e4f,     -1e4f,  1e30f,
                              -1e30f, 3e38f, -3e38f, INFINITY, -INFINITY};
    enum { N = sizeof x / sizeof *x };
    const pseg_op *op = pseg_op_find("act");

    for (int act = PSEG_ACT_GELU; act <= PSEG_ACT_SIGMOID; act++) {
        pseg_op_case c = {.name = "edge", .i = {N, act}};
        float got[N], want[N], nan_in[N], nan_out[N];
        pseg_op_args a = {.t = {{.host = want}, {.host = (void *)(uintptr_t)x}}, .i = {N, act}};
        pseg_compare cmp;

        n_checks++;
        reference_run(op, &a);
        if (!run_on(got, s, op, &c, x, "act at the edge"))
            return;
        if (!pseg_compare_f32(&cmp, got, want, N, 2e-6, 1e-6, -1)) {
            fail("act at the edge", "differs from the reference:");
            printf("activation %d: x %g\n", act, (double)x[cmp.worst]);
            pseg_compare_print(stdout, "act", &cmp);
        }
        for (int i = 0; i < N; i++)
            nan_in[i] = i == 5 ? NAN : 1.0f;
        if (!run_on(nan_out, s, op, &c, nan_in, "act of nan"))
            return;
        for (int i = 0; i < N; i++)
            if (isnan(nan_out[i]) != (i == 5))
                fail("act of nan", "a nan was lost or spread");
    }
}

/* Row 1 holds `bad`; rows 0 and 2 must come out as if it were not there, and finite. */
static void edge_of_rows(pseg_stream *s, const char *name, double eps, float bad, bool is_nan_row)
{
    enum { C = 40, N = 3 * C };
    const pseg_op *op = pseg_op_find(name);
    pseg_op_case c = {.name = "edge", .i = {3, C, C, C}, .f = {eps}};
    float in[N], out[N], clean[N];
    char what[64];

    if (strcmp(name, "layernorm") == 0)
        c.absent = 1u << 2 | 1u << 3;
    snprintf(what, sizeof what, "%s of rows with %g", name, (double)bad);
    n_checks++;
    for (int i = 0; i < N; i++)
        in[i] = sinf((float)i);
    if (!run_on(clean, s, op, &c, in, what))
        return;
    in[C + 3] = bad;
    if (!run_on(out, s, op, &c, in, what))
        return;
    for (int i = 0; i < N; i++) {
        bool is_bad_row = i / C == 1;

        if (!is_bad_row && (out[i] != clean[i] || !isfinite(out[i]))) {
            fail(what, "a neighbouring row changed");
            return;
        }
        if (is_bad_row && is_nan_row && !isnan(out[C + 3])) {
            fail(what, "the fault was hidden");
            return;
        }
        if (is_bad_row && !is_nan_row && !isfinite(out[i])) {
            fail(what, "a row with finite values gave a value that is not");
            return;
        }
    }
}

/* Rows with huge and with constant values. */
static void edge_of_norms(pseg_stream *s)
{
    enum { C = 40 };
    pseg_op_case c = {.name = "edge", .i = {3, C, C, C}, .f = {1e-6}, .absent = 1u << 2 | 1u << 3};
    float in[3 * C], out[3 * C], want[3 * C];
    pseg_op_args a = {.t = {{.host = want}, {.host = in}}, .i = {3, C, C, C}, .f = {1e-6}};
    const pseg_op *op = pseg_op_find("layernorm");
    pseg_compare cmp;

    edge_of_rows(s, "layernorm", 1e-6, NAN, true);
    edge_of_rows(s, "layernorm", 1e-6, INFINITY, true);
    edge_of_rows(s, "layernorm", 1e-6, 1e15f, false);
    edge_of_rows(s, "layernorm", 1e-6, 1e-40f, false);
    edge_of_rows(s, "l2norm", 1e-12, NAN, true);
    edge_of_rows(s, "l2norm", 1e-12, 1e15f, false);
    n_checks++;
    for (int i = 0; i < C; i++) {
        in[i] = 5.0f;                              /* no variance: zeros, not nan */
        in[C + i] = 1e4f + sinf((float)i) * 0.01f; /* cancels badly in one pass */
        in[2 * C + i] = 1e-30f * (float)i;         /* a variance far below eps */
    }
    reference_run(op, &a);
    if (run_on(out, s, op, &c, in, "layernorm at the edge") &&
        /* in[C..] has 1e-3 of resolution for a deviation of 7e-3: only its order is asked for */
        !(pseg_compare_f32(&cmp, out, want, C, 1e-6, 0, -1) &&
          pseg_compare_f32(&cmp, out + C, want + C, C, 2e-2, 0, -1) &&
          pseg_compare_f32(&cmp, out + 2 * C, want + 2 * C, C, 1e-6, 0, -1))) {
        fail("layernorm at the edge", "differs from the reference:");
        pseg_compare_print(stdout, "layernorm", &cmp);
    }
}

/* Scores of +-1e4 (a softmax that is not shifted overflows), of -inf, and nan in a key that a
 * length leaves out, in one query, and in one value. */
static void edge_of_attention(pseg_stream *s)
{
    enum { D = 4, NQ = 3, NK = 5 };
    const pseg_op *op = pseg_op_find("attention");
    pseg_op_case c = {.name = "edge", .i = {1, 1, D, NQ, NK, D, D, D, D}, .f = {1.0}};
    float q[NQ * D], k[NK * D], v[NK * D], out[NQ * D], want[NQ * D];
    pseg_err err = PSEG_ERR_INIT;
    int32_t len = 4;
    case_data d;
    pseg_compare cmp;

    for (int i = 0; i < NQ * D; i++)
        q[i] = i < D ? 100.0f : sinf((float)i);
    for (int i = 0; i < NK * D; i++) {
        k[i] = i / D == 1 ? 100.0f : i / D == 2 ? -100.0f : cosf((float)i);
        v[i] = (float)i;
        if (i / D == 4)
            k[i] = v[i] = NAN; /* past len */
    }
    pseg_op_args a = {.t = {{.host = want}, {.host = q}, {.host = k}, {.host = v}, {.host = &len}},
                      .f = {1.0}};
    memcpy(a.i, c.i, sizeof a.i);
    for (int round = 0; round < 2; round++) {
        n_checks++;
        if (round == 1) /* only query 1 may show it */
            q[D] = NAN;
        reference_run(op, &a);
        if (!case_make(&d, s, op, &c, "attention at the edge", 1))
            return;
        if (must(pseg_mem_write(s, d.slot[1].mem, MARGIN * 4, q, sizeof q, &err), "write", &err) &&
            must(pseg_mem_write(s, d.slot[2].mem, MARGIN * 4, k, sizeof k, &err), "write", &err) &&
            must(pseg_mem_write(s, d.slot[3].mem, MARGIN * 4, v, sizeof v, &err), "write", &err) &&
            must(pseg_mem_write(s, d.slot[4].mem, MARGIN * 4, &len, sizeof len, &err), "write",
                 &err) &&
            must(pseg_op_run(s, op, &d.args, &err), "attention at the edge", &err) &&
            must(pseg_mem_read(out, s, d.slot[0].mem, MARGIN * 4, sizeof out, &err), "read",
                 &err) &&
            must(pseg_stream_finish(s, &err), "finish", &err)) {
            for (int i = 0; i < D && round == 1; i++) {
                if (!isnan(out[D + i]))
                    fail("attention of nan", "a nan in a query was hidden");
                out[D + i] = want[D + i] = 0;
            }
            if (!pseg_compare_f32(&cmp, out, want, NQ * D, 1e-5, 1e-5, -1)) {
                fail("attention at the edge", "differs from the reference:");
                pseg_compare_print(stdout, "attention", &cmp);
            }
        }
        case_free(&d);
    }
}

/* ---- weights on the host ------------------------------------------------------------------ */

/* pack, then gemm, is the plain product: the reference above takes packed weights, so packing is
 * checked here against the definition. */
static void check_packing(void)
{
    static const size_t shapes[][2] = {{1, 1}, {32, 5}, {33, 70}, {64, 64}, {100, 131}};
    /* 1, -2, 0.5, 65504, the smallest normal and denormal halves; and as bfloat16 */
    static const uint16_t half[] = {0x3c00, 0xc000, 0x3800, 0x7bff, 0x0400, 0x0001, 0x8001, 0x7c00};
    static const float half_is[] = {1.0f,     -2.0f,    0.5f,      65504.0f,
                                    0x1p-14f, 0x1p-24f, -0x1p-24f, INFINITY};
    static const uint16_t brain[] = {0x3f80, 0xc000, 0x3f00, 0x4049};
    static const float brain_is[] = {1.0f, -2.0f, 0.5f, 3.140625f};
    float f[8];

    n_checks++;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        size_t n = shapes[s][0], k = shapes[s][1], e = pseg_gemm_packed_elems(n, k);
        float *w = malloc(n * k * sizeof *w), *p = malloc(e * sizeof *p);

        if (!w || !p)
            exit(1);
        for (size_t i = 0; i < n * k; i++)
            w[i] = (float)i + 1;
        for (size_t i = 0; i < e; i++)
            p[i] = -1;
        pseg_gemm_pack(p, w, PSEG_F32, n, k);
        for (size_t i = 0; i < e; i++) {
            size_t panel = i / (k * PSEG_PANEL), col = i / PSEG_PANEL % k;
            size_t row = panel * PSEG_PANEL + i % PSEG_PANEL;

            if (p[i] != (row < n ? w[row * k + col] : 0.0f)) {
                fail("packing", "a weight is in the wrong place");
                break;
            }
        }
        /* two halves packed one after the other are the whole */
        float *q = calloc(e, sizeof *q);
        size_t first = n / 2;
        if (!q)
            exit(1);
        pseg_gemm_pack_rows(q, 0, w, PSEG_F32, first, k);
        pseg_gemm_pack_rows(q, first, w + first * k, PSEG_F32, n - first, k);
        if (memcmp(p, q, e * sizeof *p) != 0)
            fail("packing", "stacked matrices differ from the whole");
        free(w);
        free(p);
        free(q);
    }
    if (pseg_gemm_packed_elems(SIZE_MAX, 2) != 0 || pseg_gemm_packed_elems(1u << 20, SIZE_MAX) != 0)
        fail("packing", "an overflow went unseen");
    pseg_to_f32(f, half, PSEG_F16, 8);
    if (memcmp(f, half_is, sizeof half_is) != 0)
        fail("conversion", "float16");
    pseg_to_f32(f, brain, PSEG_BF16, 4);
    if (memcmp(f, brain_is, sizeof brain_is) != 0)
        fail("conversion", "bfloat16");
}

/* A 3x3 convolution and a transposed one, by weights, layout operations and gemm, against their
 * definitions. */
static pseg_mem *upload(pseg_stream *s, const float *x, size_t n)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_mem *m = NULL;

    if (!must(pseg_mem_new(&m, pseg_stream_cl(s), n * sizeof *x, &err), "upload", &err) ||
        (x && (!must(pseg_mem_write(s, m, 0, x, n * sizeof *x, &err), "upload", &err) ||
               !must(pseg_stream_finish(s, &err), "upload", &err))))
        exit(1);
    return m;
}

static void check_convolutions(pseg_stream *s)
{
    enum { H = 4, W = 5, CI = 3, CO = 6, HW = H * W };
    float x[HW * CI], w3[CO * CI * 9], w2[CI * CO * 4], bias[CO], r3[CO * 9 * CI], r2[4 * CO * CI];
    float b4[4 * CO], packed[64 * 9 * CI], got[4 * HW * CO], want[4 * HW * CO];
    pseg_err err = PSEG_ERR_INIT;
    pseg_compare cmp;

    n_checks++;
    for (int i = 0; i < HW * CI; i++)
        x[i] = sinf((float)i);
    for (int i = 0; i < CO * CI * 9; i++)
        w3[i] = cosf((float)i);
    for (int i = 0; i < CI * CO * 4; i++)
        w2[i] = cosf((float)i * 0.7f);
    for (int i = 0; i < CO; i++)
        bias[i] = (float)i * 0.1f;
    for (int y = 0; y < H; y++)
        for (int xx = 0; xx < W; xx++)
            for (int o = 0; o < CO; o++) {
                double sum = bias[o];

                for (int c = 0; c < CI; c++)
                    for (int t = 0; t < 9; t++) {
                        int sy = y + t / 3 - 1, sx = xx + t % 3 - 1;

                        if (sy >= 0 && sy < H && sx >= 0 && sx < W)
                            sum += (double)x[(sy * W + sx) * CI + c] * w3[(o * CI + c) * 9 + t];
                    }
                want[(y * W + xx) * CO + o] = (float)sum;
            }
    pseg_conv3_weight(r3, w3, CO, CI);
    pseg_gemm_pack(packed, r3, PSEG_F32, CO, 9 * CI);
    pseg_mem *mx = upload(s, x, HW * CI), *mb = upload(s, bias, CO);
    pseg_mem *mw = upload(s, packed, pseg_gemm_packed_elems(CO, 9 * CI));
    pseg_mem *cols = upload(s, NULL, HW * 9 * CI), *out = upload(s, NULL, 4 * HW * CO);
    pseg_mem *wide = upload(s, NULL, 4 * HW * CO);
    pseg_gemm g = {.out = pseg_view_of(out, 0),
                   .a = pseg_view_of(cols, 0),
                   .w = pseg_view_of(mw, 0),
                   .bias = pseg_view_of(mb, 0),
                   .m = HW,
                   .n = CO,
                   .k = 9 * CI};
    if (must(pseg_op_im2col3(s, pseg_view_of(cols, 0), pseg_view_of(mx, 0), 1, H, W, CI, &err),
             "conv", &err) &&
        must(pseg_op_gemm(s, &g, &err), "conv", &err) &&
        must(pseg_mem_read(got, s, out, 0, HW * CO * 4, &err), "conv", &err) &&
        must(pseg_stream_finish(s, &err), "conv", &err) &&
        !pseg_compare_f32(&cmp, got, want, HW * CO, 1e-5, 1e-5, 1e-11)) {
        fail("conv3x3", "differs from its definition:");
        pseg_compare_print(stdout, "conv3x3", &cmp);
    }

    for (int y = 0; y < 2 * H; y++)
        for (int xx = 0; xx < 2 * W; xx++)
            for (int o = 0; o < CO; o++) {
                double sum = bias[o];

                for (int c = 0; c < CI; c++)
                    sum += (double)x[(y / 2 * W + xx / 2) * CI + c] *
                           w2[(c * CO + o) * 4 + y % 2 * 2 + xx % 2];
                want[(y * 2 * W + xx) * CO + o] = (float)sum;
            }
    pseg_convt2_weight(r2, w2, CI, CO);
    pseg_convt2_bias(b4, bias, CO);
    pseg_gemm_pack(packed, r2, PSEG_F32, 4 * CO, CI);
    pseg_mem *mw2 = upload(s, packed, pseg_gemm_packed_elems(4 * CO, CI));
    pseg_mem *mb4 = upload(s, b4, 4 * CO);
    pseg_gemm g2 = {.out = pseg_view_of(wide, 0),
                    .a = pseg_view_of(mx, 0),
                    .w = pseg_view_of(mw2, 0),
                    .bias = pseg_view_of(mb4, 0),
                    .m = HW,
                    .n = 4 * CO,
                    .k = CI};
    if (must(pseg_op_gemm(s, &g2, &err), "convt", &err) &&
        must(pseg_op_shuffle2(s, pseg_view_of(out, 0), pseg_view_of(wide, 0), 1, H, W, CO, &err),
             "convt", &err) &&
        must(pseg_mem_read(got, s, out, 0, 4 * HW * CO * 4, &err), "convt", &err) &&
        must(pseg_stream_finish(s, &err), "convt", &err) &&
        !pseg_compare_f32(&cmp, got, want, 4 * HW * CO, 1e-5, 1e-5, 1e-11)) {
        fail("convt2x2", "differs from its definition:");
        pseg_compare_print(stdout, "convt2x2", &cmp);
    }
    pseg_mem *all[] = {mx, mb, mw, cols, out, wide, mw2, mb4};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        pseg_mem_free(all[i]);
}

/* The device is ready after prepare: no program is left to be built. And a timing is one. */
static void check_prepare_and_bench(pseg_stream *s)
{
    unsigned built, cached, built_after, cached_after;
    pseg_op_timing t;
    pseg_err err = PSEG_ERR_INIT;

    n_checks++;
    if (!must(pseg_ops_prepare(s, &err), "prepare", &err))
        return;
    pseg_cl_program_counts(pseg_stream_cl(s), &built, &cached);
    for (size_t i = 0; i < pseg_n_ops; i++) {
        const pseg_op *op = pseg_ops[i];

        if (!must(pseg_ops_bench(&t, s, op, &op->cases[0], 0, &err), op->name, &err) ||
            t.runs < 5 || !(t.median_ms >= t.min_ms) || op->bytes == NULL)
            fail(op->name, "no timing");
    }
    pseg_cl_program_counts(pseg_stream_cl(s), &built_after, &cached_after);
    if (built + cached == 0 || built != built_after || cached != cached_after)
        fail("prepare", "a program was built later");
}

static unsigned n_built(const pseg_stream *s)
{
    unsigned built, cached;

    pseg_cl_program_counts(pseg_stream_cl(s), &built, &cached);
    return built;
}

/* Runs op's small cases in float32 that fix the same as its first one, or those that do not. */
static void run_fixed(pseg_stream *s, const pseg_op *op, bool same, size_t n)
{
    pseg_op_args first, a;
    pseg_op_timing t;
    pseg_err err = PSEG_ERR_INIT;

    pseg_op_case_args(&first, &op->cases[0]);
    for (size_t c = 0; c < n; c++) {
        const pseg_op_case *k = &op->cases[c];

        pseg_op_case_args(&a, k);
        if (!(k->flags & PSEG_CASE_BIG) && !k->bf16 && !k->bf16x2 &&
            (op->fixed(&a) == op->fixed(&first)) == same)
            must(pseg_ops_bench(&t, s, op, k, 0, &err), op->name, &err);
    }
}

/* What a model fixes, as the channels of a head, is not prepared for otherwise than the model has
 * it; for what it has, all is. */
static void check_prepare_of_what_is_fixed(const char *id)
{
    for (size_t i = 0; i < pseg_n_ops; i++) {
        const pseg_op *op = pseg_ops[i];
        pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
        pseg_err err = PSEG_ERR_INIT;
        pseg_cl *cl = NULL;
        pseg_stream *s = NULL;

        o.device = id;
        o.no_cache = true;
        if (!op->fixed || !must(pseg_cl_open(&cl, &o, &err), "open", &err) ||
            !must(pseg_stream_open(&s, cl, &err), "open", &err)) {
            pseg_cl_close(cl);
            continue;
        }
        n_checks++;
        run_fixed(s, op, true, 1);
        if (must(pseg_ops_prepare(s, &err), op->name, &err)) {
            unsigned prepared = n_built(s);

            run_fixed(s, op, true, op->n_cases);
            if (n_built(s) != prepared)
                fail(op->name, "a program was built later");
            run_fixed(s, op, false, op->n_cases);
            if (pseg_cl_variant_of(cl) == PSEG_CL_CPU && n_built(s) == prepared)
                fail(op->name, "prepared for what the model does not have");
        }
        pseg_stream_close(s);
        pseg_cl_close(cl);
    }
}

/* ---- driver ------------------------------------------------------------------------------- */

/* without: features to leave out; then only what could use them is run. Returns the features that
 * were there. */
static uint32_t run_device(const char *id, pseg_cl_variant variant, const char *variant_name,
                           const char *only, bool is_small, uint32_t without)
{
    uint32_t features = 0;
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_cl *cl = NULL;
    pseg_stream *s = NULL;

    o.device = id;
    o.variant = variant;
    o.without = without;
    o.no_cache = is_interpreted; /* an interpreter's binaries are of no use to anyone else */
    if (must(pseg_cl_open(&cl, &o, &err), "open", &err) &&
        must(pseg_stream_open(&s, cl, &err), "open", &err)) {
        features = pseg_cl_features(cl);
        for (size_t i = 0; i < pseg_n_ops; i++)
            for (size_t c = 0; c < pseg_ops[i]->n_cases; c++) {
                const pseg_op_case *k = &pseg_ops[i]->cases[c];

                if ((only && strcmp(only, pseg_ops[i]->name) != 0) ||
                    (is_small && (k->flags & PSEG_CASE_BIG)) || (k->flags & PSEG_CASE_SLOW) ||
                    (without && !k->bf16 && !k->bf16x2))
                    continue;
                run_case(s, pseg_ops[i], k, variant_name);
            }
        for (size_t i = 0; i < pseg_n_ops; i++)
            if (pseg_ops[i]->variants && (!only || strcmp(only, pseg_ops[i]->name) == 0)) {
                check_classes(pseg_ops[i]);
                run_variants(s, pseg_ops[i], variant_name);
            }
        if (!only && !without) {
            if (!is_interpreted) {
                check_prepare_and_bench(s);
                check_prepare_of_what_is_fixed(id);
            }
            edge_of_act(s);
            edge_of_norms(s);
            edge_of_attention(s);
            check_convolutions(s);
        }
    }
    pseg_stream_close(s);
    pseg_cl_close(cl);
    return features;
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
    check_packing();
    for (size_t i = 0; i < n; i++) {
        if (!variant || strcmp(variant, "portable") == 0)
            run_device(list[i].id, PSEG_CL_PORTABLE, "portable", only,
                       is_small || list[i].type == PSEG_DEVICE_CPU, 0); /* slow on a CPU */
        if (variant && strcmp(variant, "cpu") != 0)
            continue;
        uint32_t has = run_device(list[i].id, PSEG_CL_CPU, "cpu", only, is_small, 0);
        if (has & PSEG_CL_AMX_BF16)
            run_device(list[i].id, PSEG_CL_CPU, "cpu without AMX", only, is_small,
                       PSEG_CL_AMX_BF16);
        if (has)
            run_device(list[i].id, PSEG_CL_CPU, "plain cpu", only, is_small, UINT32_MAX);
        printf("device %s: features beyond OpenCL: %s%s%s\n", list[i].id,
               has & PSEG_CL_AVX512_BF16 ? "AVX512_BF16 " : "",
               has & PSEG_CL_AMX_BF16 ? "AMX_BF16" : "", has ? "" : "none");
    }
    free(list);
    printf("%u checks, %u failed\n", n_checks, n_failed);
    return n_failed ? 1 : 0;
}
