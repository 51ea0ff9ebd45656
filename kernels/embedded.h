/* The kernels' sources, embedded when the project is built (embed.cmake). */
#ifndef PSEG_KERNELS_EMBEDDED_H
#define PSEG_KERNELS_EMBEDDED_H

#include <stddef.h>

typedef struct pseg_kernel_source {
    const char *name; /* "gemm.cl" */
    const unsigned char *data;
    size_t size;
} pseg_kernel_source;

extern const pseg_kernel_source pseg_kernel_sources[];
extern const size_t pseg_n_kernel_sources;

/* The files of kernels/tuned (worker/ops/tune.h). */
extern const pseg_kernel_source pseg_tuned_files[];
extern const size_t pseg_n_tuned_files;

#endif
