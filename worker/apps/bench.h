/* pseg-bench: measurements that a reader can make again. Each prints lines for people, or JSON with
 * the machine they were taken on. Shared by the files bench*.c. */
#ifndef PSEG_APPS_BENCH_H
#define PSEG_APPS_BENCH_H

#include "worker/apps/latency.h"
#include "worker/apps/program.h"

/* Median of n values; sorts them. */
double bench_median(double *v, size_t n);
/* CPU, cores, memory, version: what a figure means nothing without. */
json_t *bench_machine(void);
/* Resident set of this process now and at most, MiB. */
double bench_rss_mib(void);
double bench_peak_rss_mib(void);

/* Writes an SVG. Errors: as pseg_file_write. */
pseg_status bench_plot_latency(const char *path, const pseg_latency *h, pseg_err *err);

/* One of pseg-bench's measurements. */
typedef struct bench_program {
    const pseg_conf_option *options;
    const pseg_conf_about *about;
    pseg_status (*run)(const void *args, json_t *out, pseg_err *err);
    const char *figures; /* what run puts into out when its figures stand, though it may fail after
                            that; they are told then. NULL: a run that fails has none */
} bench_program;
/* Parses, runs, and prints what run has put into out, with the machine, if *is_json; args has the
 * options' values, and is_json points into it. Returns the exit status. */
int bench_main(void *args, const bool *is_json, const bench_program *p, int argc, char **argv);

/* Each returns the exit status. */
int bench_engine(int argc, char **argv);
int bench_ops(int argc, char **argv);
int bench_service(int argc, char **argv);
int bench_train(int argc, char **argv);

#endif
