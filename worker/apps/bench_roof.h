/* What operations reach, beside what the device allows. */
#ifndef PSEG_APPS_BENCH_ROOF_H
#define PSEG_APPS_BENCH_ROOF_H

#include "worker/ops/tune.h"

#include <jansson.h>

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

#endif
