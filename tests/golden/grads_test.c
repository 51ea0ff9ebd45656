/* Gradients of operations against PyTorch's autograd (golden_grads.py), in both variants of the
 * kernels. What a case holds is in the generator's first lines. */
#include "tests/golden/grads_file.h"
#include "tests/support/compare.h"
#include "worker/ops/table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name, *op;
} cases[] = {
    {"linear", "gemm"},
    {"residual", "gemm"},
    {"conv", "conv3"},
    {"maskdot", "maskdot"},
    {"act1", "act"},
    {"act2", "act"},
    {"act3", "act"},
    {"act4", "act"},
    {"act5", "act"},
    {"swiglu", "swiglu"},
    {"position", "add"},
    {"bias", "add"},
    {"repeat", "copy"},
    {"layernorm", "layernorm"},
    {"layernorm_gelu", "layernorm"},
    {"groupnorm", "groupnorm"},
    {"groupnorm_gelu", "groupnorm"},
    {"normalize", "l2norm"},
    {"tokens_to_image", "attention"},
    {"image_to_tokens", "attention"},
    {"shared_image", "attention"},
    {"causal", "attention"},
    {"lengths", "attention"},
    {"shuffle", "pixel_shuffle2"},
    {"im2col", "im2col3"},
    {"transpose", "transpose"},
    {"tokens", "tokens"},
    {"embedding", "gather"},
};

static unsigned n_failed, n_compared;

static void must(bool ok, const char *what, const char *why)
{
    if (ok)
        return;
    printf("FAIL %s: %s\n", what, why);
    exit(1);
}

static pseg_mem *upload(pseg_stream *s, const void *words, size_t n)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_mem *m = NULL;

    must(pseg_mem_new(&m, pseg_stream_cl(s), n * 4, &err) == PSEG_OK &&
             pseg_mem_write(s, m, 0, words, n * 4, &err) == PSEG_OK &&
             pseg_stream_finish(s, &err) == PSEG_OK,
         "upload", err.msg);
    return m;
}

/* The case's tensor NAME, or none. */
static pseg_mem *load(pseg_stream *s, const char *test_case, const char *name, bool is_int)
{
    size_t n = 0;
    void *x = is_int ? (void *)grads_ints(&n, test_case, name)
                     : (void *)grads_floats(&n, test_case, name);
    pseg_mem *m = NULL;

    if (!x)
        return NULL;
    for (size_t i = 0; is_int && i < n; i++) { /* in place: read before it is written over */
        int32_t v = (int32_t)((int64_t *)x)[i];

        memcpy((char *)x + 4 * i, &v, sizeof v);
    }
    m = upload(s, x, n);
    free(x);
    return m;
}

static void numbers(pseg_op_args *a, const char *test_case)
{
    size_t n_i = 0, n_f = 0;
    int64_t *i = grads_ints(&n_i, test_case, "i");
    float *f = grads_floats(&n_f, test_case, "f");

    must(i && f && n_i <= PSEG_OP_MAX_INTS && n_f <= PSEG_OP_MAX_REALS, test_case, "no numbers");
    memcpy(a->i, i, n_i * sizeof *i);
    for (size_t k = 0; k < n_f; k++)
        a->f[k] = f[k];
    free(i);
    free(f);
}

static void compare(pseg_stream *s, const char *test_case, const char *name, const pseg_mem *m,
                    const float *want, size_t n)
{
    pseg_err err = PSEG_ERR_INIT;
    float *got = malloc(n * sizeof *got);
    char what[96];
    pseg_compare cmp;

    must(got && pseg_mem_read(got, s, m, 0, n * 4, &err) == PSEG_OK &&
             pseg_stream_finish(s, &err) == PSEG_OK,
         test_case, err.msg);
    snprintf(what, sizeof what, "%s.%s", test_case, name);
    n_compared++;
    if (!pseg_compare_f32(&cmp, got, want, n, 1e-5, 1e-5, 1e-11)) {
        n_failed++;
        printf("FAIL ");
        pseg_compare_print(stdout, what, &cmp);
    }
    free(got);
}

static void run(pseg_stream *s, const char *name, const pseg_op *op)
{
    pseg_op_args a = {0};
    pseg_op_grads g = {0};
    float *want[PSEG_OP_MAX_SLOTS] = {0};
    size_t n[PSEG_OP_MAX_SLOTS] = {0};
    pseg_err err = PSEG_ERR_INIT;
    char key[64];

    numbers(&a, name);
    g.t[0].mem = load(s, name, "grad", false);
    for (size_t i = 0; i < op->n_slots; i++) {
        a.t[i].mem = load(s, name, op->slots[i].name, op->slots[i].type == PSEG_I32);
        snprintf(key, sizeof key, "d_%s", op->slots[i].name);
        want[i] = grads_floats(&n[i], name, key);
        if (want[i])
            must(pseg_mem_new(&g.t[i].mem, pseg_stream_cl(s), n[i] * 4, &err) == PSEG_OK, name,
                 err.msg);
    }
    must(pseg_op_run_backward(s, op, &a, &g, &err) == PSEG_OK, name, err.msg);
    for (size_t i = 0; i < op->n_slots; i++) {
        if (want[i])
            compare(s, name, op->slots[i].name, g.t[i].mem, want[i], n[i]);
        free(want[i]);
        pseg_mem_free(a.t[i].mem);
        pseg_mem_free(g.t[i].mem);
    }
}

int main(void)
{
    pseg_device_info *list = NULL;
    size_t n_devices = 0, all, seen, n_cases = sizeof cases / sizeof *cases;
    pseg_err err = PSEG_ERR_INIT;

    must(pseg_device_list(&list, &n_devices, &err) == PSEG_OK, "devices", err.msg);
    if (n_devices == 0) {
        printf("skipped: no OpenCL device\n");
        return 77;
    }
    grads_open();
    for (int variant = PSEG_CL_CPU; variant <= PSEG_CL_PORTABLE; variant++) {
        pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
        pseg_cl *cl = NULL;
        pseg_stream *s = NULL;

        o.variant = (pseg_cl_variant)variant;
        must(pseg_cl_open(&cl, &o, &err) == PSEG_OK && pseg_stream_open(&s, cl, &err) == PSEG_OK,
             "open", err.msg);
        for (size_t i = 0; i < n_cases; i++) {
            const pseg_op *op = pseg_op_find(cases[i].op);

            must(op != NULL, cases[i].op, "no such operation");
            run(s, cases[i].name, op);
        }
        pseg_stream_close(s);
        pseg_cl_close(cl);
    }
    grads_counts(&all, &seen);
    if (seen != 2 * all) {
        n_failed++;
        printf("FAIL the file has %zu tensors, %zu were read in two rounds\n", all, seen);
    }
    grads_close();
    free(list);
    printf("%u compared, %u failed\n", n_compared, n_failed);
    return n_failed ? 1 : 0;
}
