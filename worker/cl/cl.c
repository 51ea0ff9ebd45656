#include "worker/cl/internal.h"

#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/conf.h"
#include "common/base/file.h"

#include <string.h>

const char *pseg_cl_code_name(cl_int code)
{
    switch (code) {
#define NAME(x) \
    case x:     \
        return #x
        NAME(CL_DEVICE_NOT_FOUND);
        NAME(CL_DEVICE_NOT_AVAILABLE);
        NAME(CL_COMPILER_NOT_AVAILABLE);
        NAME(CL_MEM_OBJECT_ALLOCATION_FAILURE);
        NAME(CL_OUT_OF_RESOURCES);
        NAME(CL_OUT_OF_HOST_MEMORY);
        NAME(CL_BUILD_PROGRAM_FAILURE);
        NAME(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST);
        NAME(CL_INVALID_VALUE);
        NAME(CL_INVALID_DEVICE);
        NAME(CL_INVALID_CONTEXT);
        NAME(CL_INVALID_COMMAND_QUEUE);
        NAME(CL_INVALID_HOST_PTR);
        NAME(CL_INVALID_MEM_OBJECT);
        NAME(CL_INVALID_BINARY);
        NAME(CL_INVALID_BUILD_OPTIONS);
        NAME(CL_INVALID_PROGRAM_EXECUTABLE);
        NAME(CL_INVALID_KERNEL_NAME);
        NAME(CL_INVALID_ARG_INDEX);
        NAME(CL_INVALID_ARG_VALUE);
        NAME(CL_INVALID_ARG_SIZE);
        NAME(CL_INVALID_KERNEL_ARGS);
        NAME(CL_INVALID_WORK_GROUP_SIZE);
        NAME(CL_INVALID_WORK_ITEM_SIZE);
        NAME(CL_INVALID_GLOBAL_WORK_SIZE);
        NAME(CL_INVALID_BUFFER_SIZE);
#undef NAME
    default:
        return "unknown";
    }
}

pseg_status pseg_cl_fail(pseg_err *err, cl_int code, const char *where, const char *call)
{
    /* CL_OUT_OF_RESOURCES of a launch may as well be a fault in a kernel; of an allocation it is
     * want of memory. */
    bool is_memory = code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_HOST_MEMORY ||
                     (code == CL_OUT_OF_RESOURCES && strcmp(call, "clCreateBuffer") == 0);

    if (is_memory)
        return pseg_err_set(err, PSEG_R_DEVICE_OUT_OF_MEMORY, code, where,
                            "the OpenCL device is out of memory: %s failed with %s (%d)", call,
                            pseg_cl_code_name(code), code);
    return pseg_err_set(err, PSEG_R_DEVICE_FAILED, code, where, "%s failed with %s (%d)", call,
                        pseg_cl_code_name(code), code);
}

/* ---- context ------------------------------------------------------------------------------ */

/* A copy of `given`, or of the environment's variable, or NULL if neither is set. */
static pseg_status choose_dir(char **out, const char *given, const char *variable, pseg_err *err)
{
    const char *dir = given ? given : pseg_conf_env(variable);
    pseg_status rc = PSEG_OK;

    *out = NULL;
    if (!dir || !*dir)
        return PSEG_OK;
    *out = pseg_strdup(dir);
    if (!*out)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
out:
    return rc;
}

static pseg_status choose_cache_dir(pseg_cl *cl, const pseg_cl_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *home = pseg_conf_env("HOME"), *xdg = pseg_conf_env("XDG_CACHE_HOME");

    if (o->no_cache)
        goto out;
    if (o->cache_dir && *o->cache_dir)
        cl->cache_dir = pseg_strdup(o->cache_dir);
    else if (xdg && *xdg == '/')
        cl->cache_dir = pseg_asprintf("%s/pseg", xdg);
    else if (home && *home == '/')
        cl->cache_dir = pseg_asprintf("%s/.cache/pseg", home);
    else
        goto out;
    if (!cl->cache_dir)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
out:
    return rc;
}

pseg_status pseg_cl_open(pseg_cl **out, const pseg_cl_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_cl *cl = NULL;
    cl_int code = CL_SUCCESS;

    *out = NULL;
    cl = pseg_calloc(1, sizeof *cl);
    if (!cl)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    pthread_mutex_init(&cl->programs_lock, NULL);
    pseg_cond_init(&cl->keeper_cv);
    cl->log = o->log;
    cl->profile = o->profile;
    cl->on_compile = o->on_compile;
    cl->on_compile_ud = o->on_compile_ud;
    PSEG_TRY(choose_dir(&cl->kernel_dir, o->kernel_dir, "PSEG_KERNEL_DIR", err));
    PSEG_TRY(choose_cache_dir(cl, o, err));
    PSEG_TRY(pseg_device_open(&cl->device, &cl->info, o->device, err));
    cl->variant = o->variant != PSEG_CL_AUTO         ? o->variant
                  : cl->info.type == PSEG_DEVICE_CPU ? PSEG_CL_CPU
                                                     : PSEG_CL_PORTABLE;
    if (cl->variant == PSEG_CL_CPU)
        cl->features = cl->info.features & ~o->without;
    cl->context = clCreateContext(NULL, 1, &cl->device, NULL, NULL, &code);
    PSEG_CL_TRY(clCreateContext, code);
    cl->none = clCreateBuffer(cl->context, CL_MEM_READ_WRITE, 64, NULL, &code);
    PSEG_CL_TRY(clCreateBuffer, code);
    PSEG_INFO(cl->log, "cl",
              "device opened id=%s type=%s name=\"%s\" driver=\"%s\" units=%u cache=%s",
              cl->info.id, pseg_device_type_name(cl->info.type), cl->info.name, cl->info.driver,
              cl->info.compute_units, cl->cache_dir ? cl->cache_dir : "off");
    *out = cl;
    cl = NULL;
out:
    pseg_cl_close(cl);
    return rc;
}

void pseg_cl_close(pseg_cl *cl)
{
    if (!cl)
        return;
    pseg_programs_end_keeping(cl);
    pseg_programs_free(cl);
    if (cl->none)
        clReleaseMemObject(cl->none);
    if (cl->context)
        clReleaseContext(cl->context);
    if (cl->device)
        clReleaseDevice(cl->device);
    pthread_cond_destroy(&cl->keeper_cv);
    pthread_mutex_destroy(&cl->programs_lock);
    pseg_free(cl->cache_dir);
    pseg_free(cl->kernel_dir);
    pseg_free(cl);
}

const pseg_device_info *pseg_cl_device(const pseg_cl *cl)
{
    return &cl->info;
}

pseg_cl_variant pseg_cl_variant_of(const pseg_cl *cl)
{
    return cl->variant;
}

uint32_t pseg_cl_features(const pseg_cl *cl)
{
    return cl->features;
}

const char *pseg_cl_cache_dir(const pseg_cl *cl)
{
    return cl->cache_dir;
}

uint64_t pseg_cl_mem_used(const pseg_cl *cl)
{
    return atomic_load(&cl->mem_used);
}

const pseg_log *pseg_cl_log(const pseg_cl *cl)
{
    return cl->log;
}

void pseg_cl_set_choice(pseg_cl *cl, size_t slot, uint8_t value)
{
    if (slot < PSEG_CL_CHOICES)
        atomic_store_explicit(&cl->choices[slot], value, memory_order_relaxed);
}

uint8_t pseg_cl_choice(const pseg_cl *cl, size_t slot)
{
    return slot < PSEG_CL_CHOICES ? atomic_load_explicit(&cl->choices[slot], memory_order_relaxed)
                                  : 0;
}

void pseg_cl_program_counts(const pseg_cl *cl, unsigned *built, unsigned *cached)
{
    *built = atomic_load(&cl->n_built);
    *cached = atomic_load(&cl->n_cached);
}

/* ---- memory ------------------------------------------------------------------------------- */

static pseg_status mem_create(pseg_mem **out, pseg_cl *cl, size_t bytes, cl_mem_flags flags,
                              void *host, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mem *m = NULL;
    cl_int code = CL_SUCCESS;

    *out = NULL;
    PSEG_REQUIRE(bytes > 0, "memory of no bytes");
    if (bytes > cl->info.max_alloc_bytes)
        PSEG_FAIL(PSEG_R_DEVICE_OUT_OF_MEMORY, CL_INVALID_BUFFER_SIZE,
                  "a buffer of %zu bytes is over the limit of %llu of device %s", bytes,
                  (unsigned long long)cl->info.max_alloc_bytes, cl->info.id);
    m = pseg_calloc(1, sizeof *m);
    if (!m)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    m->cl = cl;
    m->size = bytes;
    m->in_place = (flags & CL_MEM_USE_HOST_PTR) != 0;
    m->read_only = (flags & CL_MEM_READ_ONLY) != 0;
    m->mem = clCreateBuffer(cl->context, flags, bytes, host, &code);
    if (code != CL_SUCCESS) {
        rc = pseg_cl_fail(err, code, PSEG_HERE, "clCreateBuffer");
        pseg_err_prefix(err, "buffer of %zu bytes", bytes);
        goto out;
    }
    if (!m->in_place)
        atomic_fetch_add(&cl->mem_used, bytes);
    *out = m;
    m = NULL;
out:
    pseg_free(m);
    return rc;
}

pseg_status pseg_mem_new(pseg_mem **out, pseg_cl *cl, size_t bytes, pseg_err *err)
{
    return mem_create(out, cl, bytes, CL_MEM_READ_WRITE, NULL, err);
}

pseg_status pseg_mem_wrap(pseg_mem **out, pseg_cl *cl, const void *host, size_t bytes,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool in_place = cl->info.is_host_memory && (uintptr_t)host % cl->info.host_align == 0;

    *out = NULL;
    PSEG_REQUIRE(host != NULL, "host");
    /* OpenCL's signature lacks the const; CL_MEM_READ_ONLY keeps the promise. */
    PSEG_TRY(mem_create(out, cl, bytes,
                        CL_MEM_READ_ONLY | (in_place ? CL_MEM_USE_HOST_PTR : CL_MEM_COPY_HOST_PTR),
                        (void *)(uintptr_t)host, err));
out:
    return rc;
}

void pseg_mem_free(pseg_mem *m)
{
    if (!m)
        return;
    if (!m->in_place)
        atomic_fetch_sub(&m->cl->mem_used, m->size);
    clReleaseMemObject(m->mem);
    pseg_free(m);
}

size_t pseg_mem_size(const pseg_mem *m)
{
    return m->size;
}

bool pseg_mem_is_in_place(const pseg_mem *m)
{
    return m->in_place;
}
