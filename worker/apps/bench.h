/* pseg-bench: measurements that a reader can make again. Each prints lines for people, or JSON with
 * the machine they were taken on. Shared by the files bench*.c. */
#ifndef PSEG_APPS_BENCH_H
#define PSEG_APPS_BENCH_H

#include "worker/apps/program.h"

/* Median of n values; sorts them. */
double bench_median(double *v, size_t n);
/* The p-th percentile (0..100) of n sorted values. */
double bench_percentile(const double *sorted, size_t n, double p);
/* CPU, cores, memory, version: what a figure means nothing without. */
json_t *bench_machine(void);
/* Resident set of this process now and at most, MiB. */
double bench_rss_mib(void);
double bench_peak_rss_mib(void);

/* Each parses with program_begin and returns the exit status. */
int bench_engine(int argc, char **argv);
int bench_ops(int argc, char **argv);
int bench_service(int argc, char **argv);
int bench_train(int argc, char **argv);

#endif
