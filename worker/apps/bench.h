/* pseg-bench: measurements that a reader can make again. Each prints lines for people, or JSON with
 * the machine they were taken on. Shared by the files bench*.c. */
#ifndef PSEG_APPS_BENCH_H
#define PSEG_APPS_BENCH_H

#include "common/base/conf.h"
#include "common/base/err.h"

#include <jansson.h>

/* Median of n values; sorts them. */
double bench_median(double *v, size_t n);
/* The p-th percentile (0..100) of n sorted values. */
double bench_percentile(const double *sorted, size_t n, double p);
/* CPU, cores, memory, version: what a figure means nothing without. */
json_t *bench_machine(void);
/* Resident set of this process now and at most, MiB. */
double bench_rss_mib(void);
double bench_peak_rss_mib(void);
void bench_print(json_t *j); /* and frees it */

int bench_engine(int argc, char **argv);
int bench_ops(int argc, char **argv);
int bench_service(int argc, char **argv);

/* Parses for a bench, or prints help or the error: false, and *status is the exit status. */
bool bench_begin(pseg_conf **conf, void *target, const pseg_conf_option *table, const char *usage,
                 int argc, char **argv, int *status);
int bench_fail(const pseg_err *err);

#endif
