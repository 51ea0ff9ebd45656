/* Gradients where tables do not reach: fused buffers, values at the edge, the same bits twice,
 * weights turned. On every device, in both variants of the kernels. Exit 77: there is no device. */
#include "tests/support/compare.h"
#include "worker/ops/backward.h"
#include "worker/ops/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned n_checks, n_failed;

static void fail(const char *what, const char *why)
{
    n_failed++;
    printf("FAIL %s: %s\n", what, why);
}

static void must(pseg_status rc, const pseg_err *err)
{
    if (rc == PSEG_OK)
        return;
    printf("FAIL: %s\n", err->msg);
    exit(1);
}

static pseg_view upload(pseg_stream *s, const float *x, size_t n)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_mem *m = NULL;

    must(pseg_mem_new(&m, pseg_stream_cl(s), n * sizeof *x, &err), &err);
    must(x ? pseg_mem_write(s, m, 0, x, n * sizeof *x, &err)
           : pseg_mem_zero(s, m, 0, n * sizeof *x, &err),
         &err);
    must(pseg_stream_finish(s, &err), &err);
    return pseg_view_of(m, 0);
}

static void download(float *out, pseg_stream *s, pseg_view v, size_t n)
{
    pseg_err err = PSEG_ERR_INIT;

    must(pseg_mem_read(out, s, v.mem, v.off * sizeof *out, n * sizeof *out, &err), &err);
    must(pseg_stream_finish(s, &err), &err);
}

static void waves(float *x, size_t n, float speed)
{
    for (size_t i = 0; i < n; i++)
        x[i] = sinf((float)i * speed + 0.3f);
}

/* ---- fused rows --------------------------------------------------------------------------- */

/* Gradients of q, k and v side by side in fused rows are those in buffers of their own; overlaps
 * are still seen. */
static void check_fused(pseg_stream *s)
{
    enum { B = 2, H = 2, D = 8, N = 5, HD = H * D, ALL = B * N * 3 * HD };
    float x[ALL], g[B * N * HD], fused[ALL], apart[ALL];
    pseg_err err = PSEG_ERR_INIT;

    n_checks++;
    waves(x, ALL, 0.7f);
    waves(g, B * N * HD, 1.3f);
    pseg_view qkv = upload(s, x, ALL), out = upload(s, NULL, B * N * HD);
    pseg_view d_out = upload(s, g, B * N * HD), d_qkv = upload(s, NULL, ALL);
    pseg_attention a = {.out = out,
                        .q = qkv,
                        .k = pseg_view_at(qkv, HD),
                        .v = pseg_view_at(qkv, 2 * HD),
                        .batch = B,
                        .heads = H,
                        .d = D,
                        .n_q = N,
                        .n_k = N,
                        .q_row = 3 * HD,
                        .k_row = 3 * HD,
                        .v_row = 3 * HD,
                        .out_row = HD,
                        .q_batch = N * 3 * HD,
                        .k_batch = N * 3 * HD,
                        .v_batch = N * 3 * HD,
                        .out_batch = N * HD,
                        .scale = 0.35f};
    pseg_attention_grads d = {d_out, pseg_grad_set(d_qkv), pseg_grad_set(pseg_view_at(d_qkv, HD)),
                              pseg_grad_set(pseg_view_at(d_qkv, 2 * HD))};
    must(pseg_op_attention(s, &a, &err), &err);
    must(pseg_op_attention_backward(s, &a, &d, &err), &err);
    download(fused, s, d_qkv, ALL);
    for (int part = 0; part < 3; part++) { /* each alone, from a buffer of zeros */
        pseg_view one = upload(s, NULL, ALL);
        pseg_grad grad = pseg_grad_add(pseg_view_at(one, (size_t)part * HD));
        pseg_attention_grads e = {d_out, part == 0 ? grad : PSEG_NO_GRAD,
                                  part == 1 ? grad : PSEG_NO_GRAD, part == 2 ? grad : PSEG_NO_GRAD};

        must(pseg_op_attention_backward(s, &a, &e, &err), &err);
        download(apart, s, one, ALL);
        for (int i = 0; i < ALL; i++)
            if (i / HD % 3 == part ? apart[i] != fused[i] : apart[i] != 0) {
                fail("fused rows", "differ from gradients apart");
                break;
            }
        pseg_mem_free(one.mem);
    }
    d.k.v.off--;
    if (pseg_op_attention_backward(s, &a, &d, NULL) != PSEG_EINVAL)
        fail("fused rows", "an overlap by one was accepted");
    pseg_mem *all[] = {qkv.mem, out.mem, d_out.mem, d_qkv.mem};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        pseg_mem_free(all[i]);
}

/* ---- values at the edge ------------------------------------------------------------------- */

static void check_act(pseg_stream *s)
{
    static const float x[] = {0.0f,  -0.0f,  1e-40f, -1e-40f, 1e-6f, 3.9f,     -3.9f,    9.0f,
                              -9.0f, 20.0f,  -20.0f, 88.6f,   89.0f, -89.0f,   1e4f,     -1e4f,
                              1e30f, -1e30f, 3e38f,  -3e38f,  NAN,   INFINITY, -INFINITY};
    enum { N = sizeof x / sizeof *x };
    double x_of[N], ones[N], want[N];
    float g[N], got[N];
    pseg_err err = PSEG_ERR_INIT;

    for (int i = 0; i < N; i++) {
        x_of[i] = x[i];
        ones[i] = g[i] = 1.0f;
    }
    pseg_view v = upload(s, x, N), d_out = upload(s, g, N), d_x = upload(s, NULL, N);
    for (int act = PSEG_ACT_NONE; act <= PSEG_ACT_SIGMOID; act++) {
        pseg_op_args a = {.t = {{0}, {.host = x_of}}, .i = {N, act}};
        pseg_op_grads d = {.t = {{.host = ones}, {.host = want}}};

        n_checks++;
        pseg_op_find("act")->backward->ref(&a, &d);
        must(pseg_op_act_backward(s, pseg_grad_set(d_x), d_out, v, N, (pseg_act)act, &err), &err);
        download(got, s, d_x, N);
        for (int i = 0; i < N; i++)
            if (isnan(want[i]) ? !isnan(got[i]) : !(fabs(got[i] - want[i]) <= 2e-6)) {
                fail("act at the edge", "differs from the reference:");
                printf("     act %d of %g: %g, not %g\n", act, (double)x[i], (double)got[i],
                       want[i]);
            }
    }
    pseg_mem_free(v.mem);
    pseg_mem_free(d_out.mem);
    pseg_mem_free(d_x.mem);
}

/* A row with `bad` in it: its neighbours keep their gradients to the bit; its own is NaN if that is
 * asked for, else finite. */
static void check_rows(pseg_stream *s, bool is_l2, float bad, bool is_nan)
{
    enum { R = 3, C = 37, N = R * C };
    float x[N], g[N], clean[N], got[N];
    pseg_err err = PSEG_ERR_INIT;

    n_checks++;
    waves(x, N, 0.9f);
    waves(g, N, 0.4f);
    for (int round = 0; round < 2; round++) {
        if (round == 1)
            x[C + 3] = bad;
        pseg_view v = upload(s, x, N), d_out = upload(s, g, N), d_x = upload(s, NULL, N);
        pseg_layernorm l = {.out = d_x, .x = v, .rows = R, .c = C, .eps = 1e-6f};
        pseg_norm_grads d = {.out = d_out, .x = pseg_grad_set(d_x)};

        must(is_l2 ? pseg_op_l2norm_backward(s, d.x, d_out, v, R, C, 1e-12f, &err)
                   : pseg_op_layernorm_backward(s, &l, &d, &err),
             &err);
        download(round == 0 ? clean : got, s, d_x, N);
        pseg_mem_free(v.mem);
        pseg_mem_free(d_out.mem);
        pseg_mem_free(d_x.mem);
    }
    for (int i = 0; i < N; i++) {
        if (i / C != 1 && got[i] != clean[i])
            fail("norm at the edge", "a neighbouring row changed");
        else if (i / C == 1 && (is_nan ? !isnan(got[i]) : !isfinite(got[i])))
            fail("norm at the edge", is_nan ? "a fault was hidden" : "a value is not finite");
        else
            continue;
        return;
    }
}

/* Scores of +-1e4 give finite gradients, and NaN in a key past the sample's length, none. */
static void check_attention(pseg_stream *s)
{
    enum { D = 4, NQ = 3, NK = 5 };
    float q[NQ * D], k[NK * D], v[NK * D], g[NQ * D], got[NK * D];
    int32_t len = 4;
    float len_bits;
    pseg_err err = PSEG_ERR_INIT;

    n_checks++;
    waves(g, NQ * D, 1.1f);
    for (int i = 0; i < NQ * D; i++)
        q[i] = i < D ? 100.0f : sinf((float)i);
    for (int i = 0; i < NK * D; i++) {
        k[i] = i / D == 1 ? 100.0f : i / D == 2 ? -100.0f : cosf((float)i);
        v[i] = i / D == 4 ? NAN : (float)i;
        k[i] = i / D == 4 ? NAN : k[i];
    }
    memcpy(&len_bits, &len, sizeof len_bits);
    pseg_view views[] = {upload(s, q, NQ * D),    upload(s, k, NK * D),    upload(s, v, NK * D),
                         upload(s, g, NQ * D),    upload(s, NULL, NQ * D), upload(s, &len_bits, 1),
                         upload(s, NULL, NQ * D), upload(s, NULL, NK * D), upload(s, NULL, NK * D)};
    pseg_attention a = {.out = views[4],
                        .q = views[0],
                        .k = views[1],
                        .v = views[2],
                        .key_len = views[5],
                        .batch = 1,
                        .heads = 1,
                        .d = D,
                        .n_q = NQ,
                        .n_k = NK,
                        .q_row = D,
                        .k_row = D,
                        .v_row = D,
                        .out_row = D,
                        .scale = 1.0f};
    pseg_attention_grads d = {views[3], pseg_grad_set(views[6]), pseg_grad_set(views[7]),
                              pseg_grad_set(views[8])};
    must(pseg_op_attention(s, &a, &err), &err);
    must(pseg_op_attention_backward(s, &a, &d, &err), &err);
    for (int part = 6; part < 9; part++) {
        size_t n = part == 6 ? NQ * D : NK * D;

        download(got, s, views[part], n);
        for (size_t i = 0; i < n; i++)
            if (!isfinite(got[i]) || (part > 6 && i / D == 4 && got[i] != 0)) {
                fail("attention at the edge", "not finite, or of a key that is not there");
                break;
            }
    }
    for (size_t i = 0; i < sizeof views / sizeof *views; i++)
        pseg_mem_free(views[i].mem);
}

/* NaN in one row of the output's gradient reaches that row of a's alone. */
static void check_product(pseg_stream *s)
{
    enum { M = 14, N = 33, K = 9, W = 64 * K };
    float g[M * N], x[M * K], w[W], got[M * K];
    pseg_err err = PSEG_ERR_INIT;

    n_checks++;
    waves(g, M * N, 0.5f);
    waves(x, M * K, 0.8f);
    waves(w, W, 0.2f);
    g[5 * N + 32] = NAN;
    pseg_view d_out = upload(s, g, M * N), a = upload(s, x, M * K), vw = upload(s, w, W);
    pseg_view d_a = upload(s, NULL, M * K);
    pseg_gemm m = {.out = d_out, .a = a, .w = vw, .m = M, .n = N, .k = K};
    pseg_gemm_grads d = {.out = d_out, .a = pseg_grad_set(d_a)};
    must(pseg_op_gemm_backward(s, &m, &d, &err), &err);
    download(got, s, d_a, M * K);
    for (int i = 0; i < M * K; i++)
        if (isnan(got[i]) != (i / K == 5)) {
            fail("gemm at the edge", "NaN in the wrong rows");
            break;
        }
    pseg_mem *all[] = {d_out.mem, a.mem, vw.mem, d_a.mem};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        pseg_mem_free(all[i]);
}

/* ---- weights turned ----------------------------------------------------------------------- */

/* Turned twice, a weight is what it was, up to the padding, which is zero. */
static void check_turn(pseg_stream *s, size_t n, size_t c, bool is_conv)
{
    size_t taps = is_conv ? 9 : 1, size = pseg_gemm_packed_elems(n, taps * c);
    size_t turned = pseg_gemm_packed_elems(c, taps * n);
    float *w = malloc(n * taps * c * sizeof *w), *p = malloc(size * sizeof *p);
    float *got = malloc(size * sizeof *got);
    pseg_err err = PSEG_ERR_INIT;

    n_checks++;
    if (!w || !p || !got)
        exit(1);
    waves(w, n * taps * c, 0.11f);
    pseg_gemm_pack(p, w, PSEG_F32, n, taps * c);
    pseg_view a = upload(s, p, size), b = upload(s, NULL, turned), back = upload(s, NULL, size);
    must(is_conv ? pseg_op_conv3_turn(s, b, a, n, c, &err) : pseg_op_turn(s, b, a, n, c, &err),
         &err);
    must(is_conv ? pseg_op_conv3_turn(s, back, b, c, n, &err)
                 : pseg_op_turn(s, back, b, c, n, &err),
         &err);
    download(got, s, back, size);
    if (memcmp(got, p, size * sizeof *p) != 0)
        fail("turn", "twice is not once");
    if (pseg_op_turn(s, a, a, n, c, NULL) != PSEG_EINVAL ||
        (!is_conv && pseg_op_turn(s, pseg_view_at(b, 1), a, n, c, NULL) != PSEG_EINVAL) ||
        pseg_op_turn(s, b, a, 0, c, NULL) != PSEG_EINVAL ||
        pseg_op_turn(s, b, a, (size_t)1 << 40, c, NULL) != PSEG_EINVAL ||
        pseg_op_turn(s, PSEG_NO_VIEW, a, n, c, NULL) != PSEG_EINVAL)
        fail("turn", "bad arguments were accepted");
    pseg_mem_free(a.mem);
    pseg_mem_free(b.mem);
    pseg_mem_free(back.mem);
    free(w);
    free(p);
    free(got);
}

/* ---- the same bits ------------------------------------------------------------------------ */

/* A case's gradients twice, with work space of other contents: equal to the bit. */
static void check_same(pseg_stream *s, const char *name, const char *case_name)
{
    const pseg_op *op = pseg_op_find(name);
    const pseg_op_case *c = NULL;
    pseg_mem *m[PSEG_OP_MAX_SLOTS] = {0}, *d[PSEG_OP_MAX_SLOTS] = {0}, *scratch = NULL;
    pseg_op_args a;
    pseg_op_grads g = {0};
    float *first[PSEG_OP_MAX_SLOTS] = {0};
    pseg_err err = PSEG_ERR_INIT;

    n_checks++;
    for (size_t i = 0; op && i < op->n_cases; i++)
        c = strcmp(op->cases[i].name, case_name) == 0 ? &op->cases[i] : c;
    if (!c) {
        fail(name, "no such case");
        return;
    }
    pseg_op_case_args(&a, c);
    for (size_t i = 0; i < op->n_slots; i++)
        if (pseg_op_case_has(op, c, i))
            a.t[i].host = &a;
    for (size_t i = 0; i < op->n_slots; i++) {
        size_t n = a.t[i].host ? op->extent(&a, i) : 0;
        uint64_t seed = 5 + i;
        float *x = malloc((n + 1) * sizeof *x);

        if (!x)
            exit(1);
        if (n > 0) {
            pseg_op_fill(x, op, &a, i, n, &seed);
            m[i] = upload(s, x, n).mem;
            d[i] = upload(s, i == 0 ? x : NULL, n).mem;
            first[i] = malloc(n * sizeof(float));
            a.t[i].mem = m[i];
            if (i == 0 || (op->backward->slots >> i & 1))
                g.t[i].mem = d[i];
        }
        free(x);
    }
    for (int round = 0; round < 2; round++) {
        must(pseg_op_run_backward(s, op, &a, &g, &err), &err);
        for (size_t i = 1; i < op->n_slots; i++) {
            size_t n = g.t[i].mem ? op->extent(&a, i) : 0;
            float *got = malloc((n + 1) * sizeof *got);

            if (!got)
                exit(1);
            if (n > 0)
                download(round == 0 ? first[i] : got, s, pseg_view_of(d[i], 0), n);
            if (round == 1 && n > 0 && memcmp(got, first[i], n * sizeof *got) != 0)
                fail(name, "other bits the second time");
            free(got);
        }
        must(pseg_stream_scratch(&scratch, s, 4096, &err), &err);
        must(pseg_mem_zero(s, scratch, 0, 4096, &err), &err);
    }
    for (size_t i = 0; i < PSEG_OP_MAX_SLOTS; i++) {
        pseg_mem_free(m[i]);
        pseg_mem_free(d[i]);
        free(first[i]);
    }
}

static void run_device(const char *id, pseg_cl_variant variant)
{
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_cl *cl = NULL;
    pseg_stream *s = NULL;

    o.device = id;
    o.variant = variant;
    must(pseg_cl_open(&cl, &o, &err), &err);
    must(pseg_stream_open(&s, cl, &err), &err);
    check_fused(s);
    check_act(s);
    for (int is_l2 = 0; is_l2 < 2; is_l2++) {
        check_rows(s, is_l2, NAN, true);
        check_rows(s, is_l2, 1e15f, false);
        check_rows(s, is_l2, 1e-40f, false);
    }
    check_attention(s);
    check_product(s);
    check_turn(s, 37, 19, false);
    check_turn(s, 64, 32, false);
    check_turn(s, 5, 33, true);
    check_turn(s, 40, 3, true);
    check_same(s, "gemm", "odd no activation");
    check_same(s, "conv3", "odd");
    check_same(s, "groupnorm", "many samples");
    check_same(s, "layernorm", "many rows");
    check_same(s, "add", "a sum of many rows");
    check_same(s, "attention", "keys shared by many");
    check_same(s, "gather", "positions");
    pseg_stream_close(s);
    pseg_cl_close(cl);
}

int main(void)
{
    pseg_device_info *list = NULL;
    size_t n = 0;
    pseg_err err = PSEG_ERR_INIT;

    setvbuf(stdout, NULL, _IOLBF, 0);
    must(pseg_device_list(&list, &n, &err), &err);
    if (n == 0) {
        printf("skipped: no OpenCL device\n");
        return 77;
    }
    for (size_t i = 0; i < n; i++) {
        run_device(list[i].id, PSEG_CL_PORTABLE);
        run_device(list[i].id, PSEG_CL_CPU);
    }
    free(list);
    printf("%u checks, %u failed\n", n_checks, n_failed);
    return n_failed ? 1 : 0;
}
