/* pseg-devices: what OpenCL offers here, and which kernels are best on it. */
#include "common/base/alloc.h"
#include "worker/apps/program.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "worker/ops/tune.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct args {
    const char *device, *cache, *write;
    double seconds;
    bool tune, json;
} args;

static const pseg_conf_option options[] = {
    {"device", PSEG_CONF_STRING, offsetof(args, device), "auto", .unit = "NAME", .letter = 'd',
     .help = "mark the device that this would choose"},
    {"tune", PSEG_CONF_BOOL, offsetof(args, tune), "false",
     .help = "measure which kernels are best on that device, and keep the result"},
    {"seconds", PSEG_CONF_REAL, offsetof(args, seconds), "0.04", .min = 0.001, .max = 10,
     .help = "for each kernel and shape when tuning"},
    {"cache", PSEG_CONF_STRING, offsetof(args, cache), NULL, .unit = "DIR",
     .help = "where the result is kept; default ~/.cache/pseg"},
    {"write", PSEG_CONF_STRING, offsetof(args, write), NULL, .unit = "FILE",
     .help = "write the result also in the form of kernels/tuned"},
    {"json", PSEG_CONF_BOOL, offsetof(args, json), "false", .help = "print JSON"},
    {0}};

static const struct {
    pseg_cl_feature bit;
    const char *name;
} features[] = {{PSEG_CL_AVX512_BF16, "avx512_bf16"}, {PSEG_CL_AMX_BF16, "amx_bf16"}};
enum { N_FEATURES = sizeof features / sizeof *features };

static json_t *json_of(const pseg_device_info *d, bool chosen)
{
    json_t *names = json_array();

    for (size_t i = 0; i < N_FEATURES; i++)
        if (d->features & features[i].bit)
            json_array_append_new(names, json_string(features[i].name));
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:I, s:I, s:I, s:b, s:o}", "id",
                     d->id, "type", pseg_device_type_name(d->type), "name", d->name, "vendor",
                     d->vendor, "driver", d->driver, "version", d->version, "platform",
                     d->platform_version, "compute_units", (int)d->compute_units, "clock_mhz",
                     (int)d->clock_mhz, "memory_bytes", (json_int_t)d->mem_bytes, "max_alloc_bytes",
                     (json_int_t)d->max_alloc_bytes, "local_bytes", (json_int_t)d->local_bytes,
                     "chosen", (int)chosen, "instructions", names);
}

/* ---- tuning ------------------------------------------------------------------------------- */

static void show_progress(void *ud, const char *op, const char *shape)
{
    const args *a = ud;

    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K%s %s ", op, shape);
    else if (!a->json && strcmp(op, "peaks") == 0)
        fprintf(stderr, "measuring; this takes seconds, minutes where kernels must be built\n");
}

static void show_choice(const pseg_tune_choice *c, json_t *list, bool json)
{
    double gain = c->best_ms > 0 ? c->usual_ms / c->best_ms : 1;
    const char *shape = c->op->variants->classes[c->class_index].name;

    json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:f, s:f, s:f}", "op", c->op->name,
                                          "shape", shape, "chosen", c->best->name, "usual",
                                          c->usual->name, "chosen_ms", c->best_ms, "usual_ms",
                                          c->usual_ms, "gain", gain));
    if (!json && c->best != c->usual)
        printf("%-10s %-14s %-18s %9.4f ms, %.2f times as fast as %s\n", c->op->name, shape,
               c->best->name, c->best_ms, gain, c->usual->name);
}

static pseg_status tune(const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_cl_options co = PSEG_CL_OPTIONS_DEFAULT;
    pseg_tuning *t = pseg_calloc(1, sizeof *t);
    pseg_tune_options o = {
        .budget_ms = a->seconds * 1e3, .progress = show_progress, .ud = (void *)(uintptr_t)a};
    pseg_cl *cl = NULL;
    pseg_stream *s = NULL;
    json_t *list = json_array();
    char *text = NULL;
    size_t n = 0;
    int64_t begin = pseg_clock_mono_ms();

    if (!t)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to tune");
    co.device = a->device;
    co.cache_dir = a->cache;
    PSEG_TRY(pseg_cl_open(&cl, &co, err));
    PSEG_TRY(pseg_stream_open(&s, cl, err));
    rc = pseg_tune(t, s, &o, err);
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
    PSEG_TRY(rc);
    PSEG_TRY(pseg_tuning_save(t, cl, err));
    if (a->write) {
        PSEG_TRY(pseg_tuning_format(&text, t, cl, false, err));
        PSEG_TRY(pseg_file_write(a->write, text, strlen(text), err));
    }
    for (size_t i = 0; i < t->n; i++) {
        show_choice(&t->choices[i], list, a->json);
        n += t->choices[i].best != t->choices[i].usual;
    }
    double seconds = (double)(pseg_clock_mono_ms() - begin) * 1e-3;
    if (a->json)
        program_print(json_pack("{s:s, s:f, s:f, s:f, s:f, s:O}", "device",
                                pseg_cl_device(cl)->name, "seconds", seconds, "fp32_gflops",
                                t->peaks.fp32_gflops, "bf16_gflops", t->peaks.bf16_gflops,
                                "read_gbytes_per_s", t->peaks.read_gbytes, "choices", list));
    else
        printf("%s: %zu of %zu shapes get another kernel than by rule; %.0f s\n"
               "peaks: %.0f GFLOP/s fp32, %.0f bf16; %.1f GB/s from memory\nkept in %s\n",
               pseg_cl_device(cl)->name, n, t->n, seconds, t->peaks.fp32_gflops,
               t->peaks.bf16_gflops, t->peaks.read_gbytes,
               pseg_cl_cache_dir(cl) ? pseg_cl_cache_dir(cl) : "nothing: there is no cache folder");
out:
    pseg_free(text);
    pseg_free(t);
    json_decref(list);
    pseg_stream_close(s);
    pseg_cl_close(cl);
    return rc;
}

static pseg_status run(const args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_device_info *list = NULL;
    json_t *all = json_array();
    size_t n = 0, chosen = 0;

    PSEG_TRY(pseg_device_list(&list, &n, err));
    PSEG_TRY(pseg_device_select(&chosen, list, n, a->device, err));
    for (size_t i = 0; i < n; i++) {
        const pseg_device_info *d = &list[i];
        json_array_append_new(all, json_of(d, i == chosen));
        if (a->json)
            continue;
        printf("%s %s  %-4s %s\n       %s, driver %s, %u units, %.1f GiB", i == chosen ? "*" : " ",
               d->id, pseg_device_type_name(d->type), d->name, d->platform_version, d->driver,
               d->compute_units, (double)d->mem_bytes / (1 << 30));
        for (size_t k = 0; k < N_FEATURES; k++)
            if (d->features & features[k].bit)
                printf(", %s", features[k].name);
        puts("");
    }
    if (a->json)
        program_print(json_pack("{s:O}", "devices", all));
    else
        puts("* is taken by default; choose with --device ID, type or part of a name");
out:
    json_decref(all);
    pseg_free(list);
    return rc;
}

int main(int argc, char **argv)
{
    static const pseg_conf_about about = {
        .name = "pseg devices",
        .usage = "[--device NAME] [--tune] [--json]",
        .what =
            "Lists the OpenCL devices of this machine; with --tune measures the kernels on one.",
        .example = "pseg devices\n"
                   "pseg devices --device gpu    # which one `--device gpu` would take\n"
                   "pseg devices --tune          # once, then workers start with what was found"};
    args a = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    if (program_begin(&conf, &a, options, &about, argc, argv, &status))
        status = program_end(a.tune ? tune(&a, &err) : run(&a, &err), &err, a.json);
    pseg_conf_free(conf);
    return status;
}
