/* What the files of worker/cl share. The only header of the project that includes OpenCL's. */
#ifndef PSEG_CL_INTERNAL_H
#define PSEG_CL_INTERNAL_H

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include "worker/cl/cl.h"

#include <pthread.h>
#include <stdatomic.h>

typedef struct pseg_program {
    struct pseg_program *next;
    const char *file, *options; /* of the pseg_kernel, static */
    cl_program program;
    /* Guarded by the lock of programs: */
    char *keep_at;   /* the file in which it is still to be kept; NULL: it is, or never will be */
    bool is_damaged; /* a file is there and must be replaced */
    bool is_being_kept; /* by some thread, without the lock */
} pseg_program;

struct pseg_cl {
    pseg_device_info info;
    pseg_cl_variant variant;
    uint32_t features;
    cl_device_id device;
    cl_context context;
    cl_mem none; /* stands for absent buffers: NULL arguments are not safe with every driver */
    bool profile;
    const pseg_log *log;
    char *cache_dir;                                  /* NULL: no cache */
    char *kernel_dir;                                 /* NULL: embedded sources */
    void (*on_compile)(void *ud, const char *device); /* NULL: nobody asks, or it was told */
    void *on_compile_ud;
    pthread_mutex_t programs_lock;
    pseg_program *programs;
    pthread_t keeper; /* of compiled programs, on disk */
    bool has_keeper, keeper_must_end;
    size_t n_being_kept;
    pthread_cond_t keeper_cv; /* with programs_lock: something is to be kept, or has been */
    atomic_uint n_built, n_cached;
    atomic_ullong mem_used;
    atomic_uchar choices[PSEG_CL_CHOICES];
};

struct pseg_mem {
    pseg_cl *cl;
    cl_mem mem;
    size_t size;
    bool in_place, read_only;
};

/* The error of an OpenCL call that failed with `code`. */
pseg_status pseg_cl_fail(pseg_err *err, cl_int code, const char *where, const char *call);
/* "CL_OUT_OF_RESOURCES" and so on; "unknown" for others. Static. */
const char *pseg_cl_code_name(cl_int code);

/* Within a function that has rc and out: expr is a call that returns cl_int. */
#define PSEG_CL_TRY(call, expr)                              \
    do {                                                     \
        cl_int code_ = (expr);                               \
        if (code_ != CL_SUCCESS) {                           \
            rc = pseg_cl_fail(err, code_, PSEG_HERE, #call); \
            goto out;                                        \
        }                                                    \
    } while (0)

/* Bits of pseg_cl_feature that this machine's processor and system have; asks the system for AMX.
 */
uint32_t pseg_cpu_features(void);

#define PSEG_CL_MAX_PLATFORMS 16u

/* To be called before any other OpenCL call: once, sets how many threads CPU devices have, makes
 * the drivers start them, and pins them. Any thread. */
void pseg_cl_start_drivers(void);

/* What `which` means, as pseg_device_select, or one part of that ("0:0/2.1"); given back by
 * clReleaseDevice, which does nothing to a whole one. */
pseg_status pseg_device_open(cl_device_id *out, pseg_device_info *info, const char *which,
                             pseg_err *err);
/* Every device with its handle, in the loader's order; both of PSEG_CL_MAX_DEVICES. A platform that
 * fails is passed over: one broken driver must not hide the others. */
#define PSEG_CL_MAX_DEVICES 64u
pseg_status pseg_devices_enumerate(cl_device_id *ids, pseg_device_info *infos, unsigned *n,
                                   pseg_err *err);
/* Fills *o; parts have numbers of their own besides. */
void pseg_device_describe(pseg_device_info *o, cl_platform_id p, cl_device_id d, const char *id);

/* The program of k, built or from the cache; borrowed until pseg_cl_close. Any thread. */
pseg_status pseg_program_get(cl_program *out, pseg_cl *cl, const pseg_kernel *k, pseg_err *err);
void pseg_programs_free(pseg_cl *cl);
/* Built from what is kept in path; NULL: there is nothing that can be used, *is_damaged: though
 * there is a file. Only with a cache. */
cl_program pseg_program_load_kept(bool *is_damaged, pseg_cl *cl, const char *path,
                                  const char *options);
/* Launches that a stream noted. NULL: no memory. */
typedef struct pseg_rehearsal pseg_rehearsal;
pseg_rehearsal *pseg_rehearsal_new(void);
void pseg_rehearsal_free(pseg_rehearsal *r); /* NULL: nothing happens */
/* As of pseg_launch, none of the sizes 0; buffers are retained. */
pseg_status pseg_rehearsal_note(pseg_rehearsal *r, const pseg_kernel *k, unsigned n_dims,
                                const size_t *global, const size_t *local, const pseg_arg *args,
                                size_t n_args, pseg_err *err);
/* On a stream that does not rehearse. */
pseg_status pseg_rehearsal_run(pseg_rehearsal *r, pseg_stream *s, pseg_err *err);
/* The thread that keeps programs ends; without one, all that are not kept yet are. */
void pseg_programs_end_keeping(pseg_cl *cl);

#endif
