#include "worker/apps/bench.h"
#include "common/base/version.h"
#include "worker/apps/bench_roof.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

double bench_median(double *v, size_t n)
{
    qsort(v, n, sizeof *v, by_value);
    return n == 0 ? 0 : n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* The first line of a file of /proc that begins with `key`, behind its colon. */
static void proc_line(char *out, size_t size, const char *path, const char *key)
{
    char line[256];
    FILE *f = fopen(path, "r");

    out[0] = '\0';
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) != 0 || !colon)
            continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(out, size, "%s", colon);
        break;
    }
    if (f)
        fclose(f);
}

json_t *bench_machine(void)
{
    char cpu[128], memory[64];

    proc_line(cpu, sizeof cpu, "/proc/cpuinfo", "model name");
    proc_line(memory, sizeof memory, "/proc/meminfo", "MemTotal");
    return json_pack("{s:s, s:i, s:s, s:s}", "cpu", cpu, "cores",
                     (int)sysconf(_SC_NPROCESSORS_ONLN), "memory", memory, "pseg", PSEG_VERSION);
}

double bench_rss_mib(void)
{
    char text[64];

    proc_line(text, sizeof text, "/proc/self/status", "VmRSS");
    return strtod(text, NULL) / 1024;
}

double bench_peak_rss_mib(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_maxrss / 1024;
}

int bench_main(void *args, const bool *is_json, const bench_program *p, int argc, char **argv)
{
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    if (!program_begin(&conf, args, p->options, p->about, argc, argv, &status))
        return status;
    json_t *out = json_pack("{s:o}", "machine", bench_machine());
    pseg_status rc = p->run(args, out, &err);
    bool has_figures = rc == PSEG_OK || (p->figures && json_object_get(out, p->figures));
    if (*is_json && has_figures)
        program_print(json_incref(out));
    status = program_end(rc, &err, *is_json && !has_figures);
    json_decref(out);
    pseg_conf_free(conf);
    return status;
}

bench_roof bench_roof_of(const pseg_peaks *p, bench_kind kind, double flops, double bytes,
                         double ms)
{
    double peak = kind == BENCH_FP32   ? p->fp32_gflops
                  : kind == BENCH_BF16 ? p->bf16_gflops
                                       : fmax(p->fp32_gflops, p->bf16_gflops / 3);
    bench_roof r = {.attainable = pseg_attainable(peak, p->read_gbytes, flops, bytes)};

    if (bytes > 0)
        r.intensity = flops / bytes;
    if (ms > 0 && flops > 0 && r.attainable > 0)
        r.share = flops / ms * 1e-6 / r.attainable;
    else if (ms > 0 && p->read_gbytes > 0)
        r.share = bytes / ms * 1e-6 / p->read_gbytes;
    return r;
}

json_t *bench_peaks(const pseg_peaks *p)
{
    return json_pack("{s:f, s:f, s:f}", "fp32_gflops", p->fp32_gflops, "bf16_gflops",
                     p->bf16_gflops, "read_gbytes_per_s", p->read_gbytes);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name, *help;
        int (*run)(int, char **);
    } benches[] = {
        {"engine", "images per second of an encoder, time per stage, cost of a phrase",
         bench_engine},
        {"ops", "each operation of the table: time, GFLOP/s, GB/s", bench_ops},
        {"service", "jobs per second and latency through a running scheduler", bench_service},
        {"train", "a training step of neck and decoder on cached features", bench_train}};
    const char *name = argc > 1 ? argv[1] : "--help";

    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++)
        if (strcmp(benches[i].name, name) == 0)
            return benches[i].run(argc - 1, argv + 1);
    bool help = strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0;
    if (strcmp(name, "--version") == 0) {
        puts("pseg bench " PSEG_VERSION);
        return 0;
    }
    if (!help) {
        fprintf(stderr,
                "error: unknown measurement \"%s\"; `pseg bench --help` lists all "
                "(CONFIG_INVALID)\n",
                name);
        return 2;
    }
    FILE *f = argc > 1 ? stdout : stderr;
    fprintf(f, "usage: pseg bench WHAT [options] [--json]\n\nMeasures, and with --json tells the "
               "machine too. What:\n\n");
    for (size_t i = 0; i < sizeof benches / sizeof *benches; i++)
        fprintf(f, "  %-9s %s\n", benches[i].name, benches[i].help);
    fputs("\n`pseg bench WHAT --help` tells more. A first try:\n"
          "  pseg bench engine --preset dinov2-small --batch 1 --seconds 2\n",
          f);
    return argc > 1 ? program_end(PSEG_OK, NULL, false) : 2;
}
