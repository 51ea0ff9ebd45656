/* OpenCL devices: what is there, and which one a flag means. */
#ifndef PSEG_CL_DEVICE_H
#define PSEG_CL_DEVICE_H

#include "common/base/err.h"

#include <stdint.h>

typedef enum pseg_device_type {
    PSEG_DEVICE_CPU,
    PSEG_DEVICE_GPU,
    PSEG_DEVICE_ACCELERATOR,
    PSEG_DEVICE_OTHER,
} pseg_device_type;

/* Instructions beyond OpenCL C that kernels of a CPU device may use, as inline assembly. */
typedef enum pseg_cl_feature {
    PSEG_CL_AVX512_BF16 = 1, /* vdpbf16ps */
    PSEG_CL_AMX_BF16 = 2,    /* tdpbf16ps; comes with AVX512_BF16 */
} pseg_cl_feature;

enum { PSEG_DEVICE_ID = 48, PSEG_DEVICE_MAX_PARTS = 64 };

/* Strings are cut to their arrays; all are NUL-terminated. */
typedef struct pseg_device_info {
    /* "platform:device", counted from 0 in the loader's order, and of a part "/n.k": what a flag
     * may name */
    char id[PSEG_DEVICE_ID];
    pseg_device_type type;
    char name[128], vendor[128], driver[64], version[128];
    char platform_name[128], platform_version[192];
    char extensions[2048];
    uint32_t compute_units, clock_mhz;
    uint32_t vector_width; /* native float vector width; 1 on most GPUs */
    size_t max_group_size; /* work-items in a work-group */
    uint64_t mem_bytes, max_alloc_bytes, local_bytes;
    size_t host_align;   /* bytes: memory so aligned may be used in place */
    bool is_host_memory; /* device and host share one memory */
    uint32_t features;   /* bits of pseg_cl_feature that this machine has for it */
} pseg_device_info;

/* Static: "cpu", "gpu", "accelerator", "other". */
const char *pseg_device_type_name(pseg_device_type t);

/* How many threads the CPU devices of this process get; 0, as without this call: as many as it may
 * use CPUs, by its affinity and the quota of its control group, or what the user's
 * POCL_MAX_PTHREAD_COUNT or CL_CONFIG_CPU_TBB_NUM_WORKERS says. To be called before any other
 * function that looks for devices: that starts the threads. Any thread. Errors: PSEG_R_INTERNAL
 * (called too late). */
pseg_status pseg_device_set_threads(unsigned n, pseg_err *err);

/* All devices of all platforms; caller frees *out with pseg_free. No platform, no driver or no
 * device at all is success with *n = 0. Any thread. Errors: PSEG_R_OUT_OF_MEMORY,
 * PSEG_R_DEVICE_FAILED. */
pseg_status pseg_device_list(pseg_device_info **out, size_t *n, pseg_err *err);

/* Does the driver compile inline assembly? PoCL 6.0 (Debian 13) takes every call without a
 * function, which an asm is, for a pseudo-call of its own, and aborts the process
 * (WorkitemLoopsImpl::handleLocalMemAllocas compares with declarations that are not there). */
bool pseg_device_takes_assembly(const pseg_device_info *d);

/* Which of list[0..n) `which` means: NULL, "" or "auto": the first GPU, else the first CPU, else
 * the first; "cpu", "gpu" or "accelerator": the first of that type; "P:D": exactly that one;
 * anything else: the first whose name, vendor or platform contains it, letter case ignored. Errors:
 * PSEG_R_DEVICE_NOT_FOUND, with the remedy. */
pseg_status pseg_device_select(size_t *out, const pseg_device_info *list, size_t n,
                               const char *which, pseg_err *err);

/* The ids of all devices that which[0..n_which) mean, for whoever uses several. Each may be several
 * words between commas: "all", what pseg_device_select takes, or that and "/n": n parts of a CPU
 * device, which share its units and work at the same time ("0:0/2.0" and "0:0/2.1" are those of
 * "0:0/2"). out: of `cap` ids, n are written. Any thread. Errors: PSEG_R_DEVICE_NOT_FOUND,
 * PSEG_R_CONFIG_INVALID (twice the same, more than cap, more parts than units). */
pseg_status pseg_device_expand(char (*out)[PSEG_DEVICE_ID], size_t *n, size_t cap,
                               const char *const *which, size_t n_which, pseg_err *err);

#endif
