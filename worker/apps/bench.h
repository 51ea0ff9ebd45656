/* pseg-bench: measurements that a reader can make again. Each prints lines for people, or JSON with
 * the machine they were taken on. Shared by the files bench*.c. */
#ifndef PSEG_APPS_BENCH_H
#define PSEG_APPS_BENCH_H

#include "worker/apps/program.h"
#include "worker/ops/tune.h"

/* Median of n values; sorts them. */
double bench_median(double *v, size_t n);
/* The p-th percentile (0..100) of n sorted values. */
double bench_percentile(const double *sorted, size_t n, double p);
/* CPU, cores, memory, version: what a figure means nothing without. */
json_t *bench_machine(void);
/* Resident set of this process now and at most, MiB. */
double bench_rss_mib(void);
double bench_peak_rss_mib(void);

/* Where an operation stands below the roof of the device (Williams, Waterman, Patterson 2009). */
typedef struct bench_roof {
    double intensity;  /* operations a byte, each tensor counted once */
    double attainable; /* GFLOP/s: the lower of the peak and what memory can feed */
    double share;      /* of it; above 1 where caches hold the data. Without arithmetic: of the
                          memory's rate */
} bench_roof;
typedef enum bench_kind { BENCH_FP32, BENCH_BF16, BENCH_PARTS } bench_kind;
/* In parts a product is three of bfloat16, where there are instructions for it. */
bench_roof bench_roof_of(const pseg_peaks *p, bench_kind kind, double flops, double bytes,
                         double ms);
/* Peaks as JSON. */
json_t *bench_peaks(const pseg_peaks *p);

/* Each parses with program_begin and returns the exit status. */
int bench_engine(int argc, char **argv);
int bench_ops(int argc, char **argv);
int bench_service(int argc, char **argv);

#endif
