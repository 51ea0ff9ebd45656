/* One OpenCL device in use: context, memory, queues, programs and launches.
 *
 * Everything that calls OpenCL is behind this header; it names no OpenCL type, so only worker/cl
 * includes <CL/...>. It knows nothing of operations or models.
 *
 *     pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
 *     pseg_cl_open(&cl, &o, &err);
 *     pseg_stream_open(&s, cl, &err);
 *     pseg_mem_new(&m, cl, bytes, &err);
 *     pseg_mem_write(s, m, 0, data, bytes, &err);      // asynchronous
 *     ... launches, pseg_mem_read(...)                 // asynchronous, in order
 *     pseg_stream_finish(s, &err);                     // everything above is done
 *
 * Threads: a pseg_cl may be shared; a pseg_stream has one owner at a time. Devices' errors carry
 * the cl_int in err.detail: PSEG_R_DEVICE_OUT_OF_MEMORY for want of memory,
 * PSEG_R_KERNEL_BUILD_FAILED for programs, else PSEG_R_DEVICE_FAILED, after which the stream is
 * unusable. */
#ifndef PSEG_CL_CL_H
#define PSEG_CL_CL_H

#include "common/base/err.h"
#include "common/base/log.h"
#include "worker/cl/device.h"

#include <stdint.h>

typedef struct pseg_cl pseg_cl;         /* device, context and programs */
typedef struct pseg_stream pseg_stream; /* an in-order queue and its kernels */
typedef struct pseg_mem pseg_mem;       /* device memory */

/* Which form of a kernel is taken where there are several. */
typedef enum pseg_cl_variant {
    PSEG_CL_AUTO,     /* by the device's type */
    PSEG_CL_CPU,      /* one work-item per register tile */
    PSEG_CL_PORTABLE, /* work-groups that share local memory */
} pseg_cl_variant;

typedef struct pseg_cl_options {
    /* As pseg_device_select, or a part as pseg_device_expand names it; NULL: automatic. */
    const char *device;
    const char *cache_dir; /* compiled programs; NULL: $XDG_CACHE_HOME/pseg or ~/.cache/pseg */
    /* Read kernels from this folder; NULL: $PSEG_KERNEL_DIR, else the embedded ones. */
    const char *kernel_dir;
    bool no_cache; /* neither read nor write compiled programs */
    bool profile;  /* sum the device time of each kernel; costs a little speed */
    pseg_cl_variant variant;
    uint32_t without;    /* bits of pseg_cl_feature to leave unused */
    const pseg_log *log; /* borrowed until pseg_cl_close; NULL: silent */
    /* Called with the device's id, once at most and before the first program is compiled, where a
     * second process would halve the time: see pseg_stream_rehearse. From the thread that needs the
     * program, holding a lock: it returns soon and calls nothing of this header. NULL: nobody. */
    void (*on_compile)(void *ud, const char *device);
    void *on_compile_ud;
} pseg_cl_options;

#define PSEG_CL_OPTIONS_DEFAULT                                            \
    {                                                                      \
        NULL, NULL, NULL, false, false, PSEG_CL_AUTO, 0, NULL, NULL, NULL, \
    }

/* Strings in o are borrowed during the call only. PoCL's threads get a CPU each where they are as
 * many as this process may use, unless the user set POCL_AFFINITY: otherwise they share one at
 * random and every figure halves. Errors: PSEG_R_DEVICE_NOT_FOUND, device errors. */
pseg_status pseg_cl_open(pseg_cl **out, const pseg_cl_options *o, pseg_err *err);
/* After all its streams and memory are freed. NULL: nothing happens. */
void pseg_cl_close(pseg_cl *cl);
const pseg_device_info *pseg_cl_device(const pseg_cl *cl); /* borrowed until pseg_cl_close */
/* Bits of pseg_cl_feature that kernels may use here. */
uint32_t pseg_cl_features(const pseg_cl *cl);
pseg_cl_variant pseg_cl_variant_of(const pseg_cl *cl); /* in force: never PSEG_CL_AUTO */
/* Bytes in all pseg_mem of this context that the device had to allocate. Any thread. */
uint64_t pseg_cl_mem_used(const pseg_cl *cl);
/* Where compiled programs are kept; NULL: nowhere. Borrowed until pseg_cl_close. Any thread. */
const char *pseg_cl_cache_dir(const pseg_cl *cl);
/* SHA-256, as hex, over names and texts of all kernel sources in use: the embedded ones, or those
 * of kernel_dir as they are now. Errors: those of reading kernel_dir. Any thread. */
pseg_status pseg_cl_kernel_digest(char out[65], const pseg_cl *cl, pseg_err *err);
const pseg_log *pseg_cl_log(const pseg_cl *cl); /* as given; may be NULL */
/* Small numbers that the layer above keeps with a device: which variant of an operation is best on
 * it. 0 at first, and for good from slot PSEG_CL_CHOICES on. Any thread. */
#define PSEG_CL_CHOICES 2048u
void pseg_cl_set_choice(pseg_cl *cl, size_t slot, uint8_t value);
uint8_t pseg_cl_choice(const pseg_cl *cl, size_t slot);
/* How many programs were compiled from source, and how many came from the cache. Any thread. */
void pseg_cl_program_counts(const pseg_cl *cl, unsigned *built, unsigned *cached);

/* Compiled programs are kept in cache_dir for the next start, which asks more of some drivers than
 * compiling does: pseg_cl_close does it, unless a thread of low priority was asked to do it from
 * now on; then pseg_cl_close waits for at most one program, and leaves out those that are not kept
 * yet. Without a cache nothing happens. Any thread. */
void pseg_cl_keep_in_background(pseg_cl *cl);
/* Returns once all that has been compiled is kept, as far as that can be. Any thread. */
void pseg_cl_keep_now(pseg_cl *cl);

/* ---- memory ------------------------------------------------------------------------------- */

/* Uninitialised read-write memory, 1 byte or more. Caller frees with pseg_mem_free, after every
 * stream that uses it has finished. */
pseg_status pseg_mem_new(pseg_mem **out, pseg_cl *cl, size_t bytes, pseg_err *err);

/* Read-only memory with the contents of host[0..bytes). On a device that shares the host's memory,
 * and if host is aligned to its host_align (pseg_aligned_alloc is), the bytes are used in place:
 * then they are borrowed until pseg_mem_free. Elsewhere they are copied before the call returns.
 * pseg_mem_is_in_place() tells which. */
pseg_status pseg_mem_wrap(pseg_mem **out, pseg_cl *cl, const void *host, size_t bytes,
                          pseg_err *err);
void pseg_mem_free(pseg_mem *m); /* NULL: nothing happens */
size_t pseg_mem_size(const pseg_mem *m);
bool pseg_mem_is_in_place(const pseg_mem *m);

/* Enqueue and return; offsets and sizes in bytes. Host memory is borrowed until
 * pseg_stream_finish. Errors: PSEG_R_INVALID_ARGUMENT (range), device errors. */
pseg_status pseg_mem_write(pseg_stream *s, pseg_mem *m, size_t off, const void *src, size_t n,
                           pseg_err *err);
pseg_status pseg_mem_read(void *dst, pseg_stream *s, const pseg_mem *m, size_t off, size_t n,
                          pseg_err *err);
pseg_status pseg_mem_copy(pseg_stream *s, pseg_mem *dst, size_t dst_off, const pseg_mem *src,
                          size_t src_off, size_t n, pseg_err *err);
pseg_status pseg_mem_zero(pseg_stream *s, pseg_mem *m, size_t off, size_t n, pseg_err *err);

/* ---- streams ------------------------------------------------------------------------------ */

pseg_status pseg_stream_open(pseg_stream **out, pseg_cl *cl, pseg_err *err);
void pseg_stream_close(pseg_stream *s); /* waits for what is enqueued; NULL: nothing happens */
pseg_cl *pseg_stream_cl(const pseg_stream *s);
/* Starts what is enqueued without waiting. */
pseg_status pseg_stream_flush(pseg_stream *s, pseg_err *err);
/* Waits until everything enqueued is done. OpenCL knows no time-out here; a device that hangs is
 * seen by the lease of the job, not by this call. */
pseg_status pseg_stream_finish(pseg_stream *s, pseg_err *err);

/* At least `bytes` of memory for what one launch hands to the next; its contents are lost at the
 * next call. The stream's. */
pseg_status pseg_stream_scratch(pseg_mem **out, pseg_stream *s, size_t bytes, pseg_err *err);

/* ---- programs and launches ---------------------------------------------------------------- */

/* A kernel of the embedded sources. Its address is its identity, so it has static lifetime. */
typedef struct pseg_kernel {
    const char *file;    /* "gemm.cl": built behind params.h and common.clh */
    const char *name;    /* the __kernel function, which is the operation's name */
    const char *options; /* "-DMR=12": besides what every program gets; NULL: none */
} pseg_kernel;

typedef struct pseg_arg {
    const pseg_mem *mem; /* a buffer, or */
    const void *value;   /* a value of `size` bytes, copied by the call, or */
    size_t size;         /* with both NULL: __local memory of so many bytes */
} pseg_arg;

#define PSEG_ARG_MEM(m)   ((pseg_arg){.mem = (m)})
#define PSEG_ARG_VALUE(v) ((pseg_arg){.value = &(v), .size = sizeof(v)})
#define PSEG_ARG_LOCAL(n) ((pseg_arg){.size = (n)})
/* An argument that the kernel does not touch this time: a NULL buffer. */
#define PSEG_ARG_NONE ((pseg_arg){0})

/* Enqueues and returns. local NULL: the driver chooses; else global is rounded up to a multiple of
 * it (kernels check their bounds). The first use of a kernel builds it or takes it from the cache.
 * Errors: PSEG_R_KERNEL_BUILD_FAILED with the first line of the log, device errors. */
pseg_status pseg_launch(pseg_stream *s, const pseg_kernel *k, unsigned n_dims, const size_t *global,
                        const size_t *local, const pseg_arg *args, size_t n_args, pseg_err *err);
/* Builds without launching, so that a first job does not wait for the compiler. */
pseg_status pseg_kernel_prepare(pseg_stream *s, const pseg_kernel *k, pseg_err *err);

/* PoCL compiles one kernel at a time in a process, whatever the number of cores, and keeps what it
 * compiled in a folder that processes share. So a second process can take half of the work:
 *
 *     pseg_stream_rehearse(s, &err);          // from now on launches are noted, and do not run
 *     ... everything that the first process does, in its order; what is read back is undefined ...
 *     pseg_stream_compile_rehearsed(s, &err); // each kernel, from the last program to the first
 *
 * Of each kernel the smallest launch runs, with the memory that it had: kernels must bear any
 * contents. Errors: those of pseg_launch; after either the stream runs launches again. */
pseg_status pseg_stream_rehearse(pseg_stream *s, pseg_err *err);
pseg_status pseg_stream_compile_rehearsed(pseg_stream *s, pseg_err *err);

/* ---- profile ------------------------------------------------------------------------------ */

typedef struct pseg_profile_entry {
    const char *name; /* of the kernel; static */
    uint64_t launches;
    double total_ms, max_ms; /* on the device */
    double flops, bytes;     /* as credited */
} pseg_profile_entry;

/* What finished since the last reset, longest total first; at most cap entries are written, and the
 * number of kernels returned. 0 unless the context was opened with profile = true. */
size_t pseg_stream_profile(pseg_profile_entry *out, size_t cap, const pseg_stream *s);
void pseg_stream_profile_reset(pseg_stream *s);
/* Says what the last launch was worth; forgotten unless the context was opened with profile = true.
 */
void pseg_stream_credit(pseg_stream *s, double flops, double bytes);
/* Calls fn for each launch, with profile = true, once its times are known (pseg_stream_finish), in
 * the order of launches. name: static; times of the device's clock. fn = NULL: no more. */
typedef void pseg_trace_fn(void *ud, const char *name, uint64_t start_ns, uint64_t end_ns);
void pseg_stream_trace(pseg_stream *s, pseg_trace_fn *fn, void *ud);

#endif
