/* Every operation of the table at the shapes of real models. */
#include "worker/apps/bench.h"
#include "worker/apps/bench_roof.h"
#include "worker/apps/engine_options.h"
#include "worker/ops/table.h"

#include <stdio.h>
#include <string.h>

typedef struct args {
    const char *device, *only, *pick, *variant;
    int64_t threads;
    double seconds;
    bool all, backward, json;
} args;

static const pseg_conf_option options[] = {
    {"only", PSEG_CONF_STRING, offsetof(args, only), "", .unit = "NAME",
     .help = "this operation alone"},
    {"case", PSEG_CONF_STRING, offsetof(args, pick), "", .unit = "TEXT",
     .help = "cases whose names hold this text"},
    {"variant", PSEG_CONF_STRING, offsetof(args, variant), "", .unit = "NAME",
     .help = "this variant where it can, instead of the one chosen (kernels/README.md)"},
    {"all", PSEG_CONF_BOOL, offsetof(args, all), "false", .help = "all cases, also the odd ones"},
    {"backward", PSEG_CONF_BOOL, offsetof(args, backward), "false",
     .help = "the gradients of the operations that have them, all of a case"},
    {"seconds", PSEG_CONF_REAL, offsetof(args, seconds), "0.3", .min = 0.01, .max = 60,
     .help = "for each case"},
    {"device", PSEG_CONF_STRING, offsetof(args, device), "auto", .unit = "NAME", .letter = 'd',
     .help = "as for the worker"},
    {"threads", PSEG_CONF_INT, offsetof(args, threads), "0", .min = 0, .max = 4096,
     .help = THREADS_HELP},
    {"json", PSEG_CONF_BOOL, offsetof(args, json), "false", .help = "print JSON"},
    {0}};

static bench_kind kind_of(const pseg_op_case *c)
{
    return c->bf16 ? BENCH_BF16 : c->bf16x2 ? BENCH_PARTS : BENCH_FP32;
}

static pseg_status run_op(const args *a, pseg_stream *s, const pseg_op *op, const pseg_peaks *peaks,
                          json_t *list, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t i = 0; i < op->n_cases; i++) {
        const pseg_op_case *c = &op->cases[i];
        pseg_op_timing t;
        if ((!a->all && !(c->flags & PSEG_CASE_REAL)) || !strstr(c->name, a->pick))
            continue;
        pseg_err unsupported = PSEG_ERR_INIT;
        rc = a->backward ? pseg_ops_bench_backward(&t, s, op, c, a->seconds * 1e3, &unsupported)
                         : pseg_ops_bench(&t, s, op, c, a->seconds * 1e3, &unsupported);
        if (rc == PSEG_EUNSUPPORTED) { /* no gradient, or not with this case's types */
            rc = PSEG_OK;
            continue;
        }
        if (rc != PSEG_OK) {
            *err = unsupported;
            goto out;
        }
        double flops = t.gflops * t.median_ms * 1e6, bytes = t.gbytes * t.median_ms * 1e6;
        bench_roof r = bench_roof_of(peaks, kind_of(c), flops, bytes, t.median_ms);
        json_array_append_new(
            list,
            json_pack("{s:s, s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:i}", "op",
                      op->name, "case", c->name, "variant", t.variant ? t.variant : "", "median_ms",
                      t.median_ms, "min_ms", t.min_ms, "cpu_ms", t.cpu_ms, "gflops", t.gflops,
                      "gbytes_per_s", t.gbytes, "flops_per_byte", r.intensity, "attainable_gflops",
                      r.attainable, "share", r.share, "runs", (int)t.runs));
        if (!a->json)
            printf("%-14s %-30s %10.4f ms %8.1f GFLOP/s %6.1f GB/s %6.1f op/B %4.0f %%  %s\n",
                   op->name, c->name, t.median_ms, t.gflops, t.gbytes, r.intensity, 100 * r.share,
                   t.variant ? t.variant : "");
    }
out:
    return rc;
}

static pseg_status force_variant(pseg_cl *cl, const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool found = false;

    if (!*a->variant)
        goto out;
    for (size_t i = 0; i < pseg_n_ops; i++) {
        const pseg_op_variant *v =
            pseg_op_variant_find(pseg_ops[i], a->variant, strlen(a->variant));
        if (v && (!*a->only || strcmp(a->only, pseg_ops[i]->name) == 0)) {
            pseg_op_force(cl, pseg_ops[i], v);
            found = true;
        }
    }
    if (!found)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--variant \"%s\" is none of these operations' own",
                  a->variant);
out:
    return rc;
}

static pseg_status run(const void *given, json_t *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const args *a = given;
    pseg_cl_options co = PSEG_CL_OPTIONS_DEFAULT;
    pseg_cl *cl = NULL;
    pseg_stream *s = NULL;
    json_t *list = json_array();
    pseg_peaks peaks;

    json_object_set_new(out, "ops", list);
    co.device = a->device;
    if (*a->only && !pseg_op_find(a->only))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--only \"%s\" is no operation", a->only);
    PSEG_TRY(pseg_device_set_threads((unsigned)a->threads, err));
    PSEG_TRY(pseg_cl_open(&cl, &co, err));
    PSEG_TRY(pseg_stream_open(&s, cl, err));
    pseg_tuning_load(cl);
    PSEG_TRY(force_variant(cl, a, err));
    PSEG_TRY(pseg_peaks_get(&peaks, s, err));
    json_object_set_new(out, "device", json_string(pseg_cl_device(cl)->name));
    json_object_set_new(out, "peaks", bench_peaks(&peaks));
    if (!a->json)
        printf("peaks: %.0f GFLOP/s fp32, %.0f bf16, %.1f GB/s; shares are of what these allow\n",
               peaks.fp32_gflops, peaks.bf16_gflops, peaks.read_gbytes);
    for (size_t i = 0; i < pseg_n_ops; i++)
        if (!*a->only || strcmp(a->only, pseg_ops[i]->name) == 0)
            PSEG_TRY(run_op(a, s, pseg_ops[i], &peaks, list, err));
out:
    pseg_stream_close(s);
    pseg_cl_close(cl);
    return rc;
}

int bench_ops(int argc, char **argv)
{
    static const pseg_conf_about about = {.name = "pseg bench ops",
                                          .usage = "[--only NAME] [--backward] [--all] [--json]",
                                          .what = "Each operation of the table: median time of a "
                                                  "launch that is waited for; rates from the\n"
                                                  "operation's own counts.",
                                          .example = "pseg bench ops --only gemm --json"};
    static const bench_program p = {options, &about, run, NULL};
    args a = {0};

    return bench_main(&a, &a.json, &p, argc, argv);
}
