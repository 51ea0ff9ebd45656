#include "worker/cl/internal.h"

#include "common/base/alloc.h"

#include <stdio.h>
#include <string.h>

/* From cl_khr_icd; cl.h does not define it. */
#define NO_PLATFORM (-1001)

bool pseg_device_takes_assembly(const pseg_device_info *d)
{
    const char *pocl = strstr(d->platform_version, "PoCL ");

    /* Tried: 3.1, which does, and 6.0, which does not. */
    return !pocl || strncmp(pocl + 5, "3.", 2) == 0;
}

const char *pseg_device_type_name(pseg_device_type t)
{
    static const char *const names[] = {"cpu", "gpu", "accelerator", "other"};

    return (unsigned)t < sizeof names / sizeof *names ? names[t] : "other";
}

/* Device and platform strings differ only in the call; both are cut to cap. */
static void trim(char *s)
{
    size_t n = strlen(s), skip = strspn(s, " \t");

    memmove(s, s + skip, n - skip + 1);
    for (n = strlen(s); n > 0 && (s[n - 1] == ' ' || s[n - 1] == '\t'); n--)
        s[n - 1] = '\0';
}

static void device_string(char *out, size_t cap, cl_device_id d, cl_device_info what)
{
    char *text = NULL;
    size_t n = 0;

    out[0] = '\0';
    if (clGetDeviceInfo(d, what, 0, NULL, &n) != CL_SUCCESS || n == 0 || n > (1u << 20))
        return;
    text = pseg_calloc(n + 1, 1);
    if (text && clGetDeviceInfo(d, what, n, text, NULL) == CL_SUCCESS)
        snprintf(out, cap, "%s", text);
    pseg_free(text);
    trim(out);
}

static void platform_string(char *out, size_t cap, cl_platform_id p, cl_platform_info what)
{
    char *text = NULL;
    size_t n = 0;

    out[0] = '\0';
    if (clGetPlatformInfo(p, what, 0, NULL, &n) != CL_SUCCESS || n == 0 || n > (1u << 20))
        return;
    text = pseg_calloc(n + 1, 1);
    if (text && clGetPlatformInfo(p, what, n, text, NULL) == CL_SUCCESS)
        snprintf(out, cap, "%s", text);
    pseg_free(text);
    trim(out);
}

static uint64_t device_number(cl_device_id d, cl_device_info what, size_t size)
{
    uint64_t wide = 0;
    uint32_t narrow = 0;

    if (size == sizeof wide)
        return clGetDeviceInfo(d, what, sizeof wide, &wide, NULL) == CL_SUCCESS ? wide : 0;
    return clGetDeviceInfo(d, what, sizeof narrow, &narrow, NULL) == CL_SUCCESS ? narrow : 0;
}

void pseg_device_describe(pseg_device_info *o, cl_platform_id p, cl_device_id d, const char *id)
{
    uint64_t type = device_number(d, CL_DEVICE_TYPE, sizeof(cl_device_type));

    memset(o, 0, sizeof *o);
    snprintf(o->id, sizeof o->id, "%s", id);
    o->type = type & CL_DEVICE_TYPE_GPU           ? PSEG_DEVICE_GPU
              : type & CL_DEVICE_TYPE_CPU         ? PSEG_DEVICE_CPU
              : type & CL_DEVICE_TYPE_ACCELERATOR ? PSEG_DEVICE_ACCELERATOR
                                                  : PSEG_DEVICE_OTHER;
    device_string(o->name, sizeof o->name, d, CL_DEVICE_NAME);
    device_string(o->vendor, sizeof o->vendor, d, CL_DEVICE_VENDOR);
    device_string(o->driver, sizeof o->driver, d, CL_DRIVER_VERSION);
    device_string(o->version, sizeof o->version, d, CL_DEVICE_VERSION);
    device_string(o->extensions, sizeof o->extensions, d, CL_DEVICE_EXTENSIONS);
    platform_string(o->platform_name, sizeof o->platform_name, p, CL_PLATFORM_NAME);
    platform_string(o->platform_version, sizeof o->platform_version, p, CL_PLATFORM_VERSION);
    o->compute_units = (uint32_t)device_number(d, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof(cl_uint));
    o->clock_mhz = (uint32_t)device_number(d, CL_DEVICE_MAX_CLOCK_FREQUENCY, sizeof(cl_uint));
    o->vector_width =
        (uint32_t)device_number(d, CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT, sizeof(cl_uint));
    o->max_group_size = (size_t)device_number(d, CL_DEVICE_MAX_WORK_GROUP_SIZE, sizeof(size_t));
    o->mem_bytes = device_number(d, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof(cl_ulong));
    o->max_alloc_bytes = device_number(d, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof(cl_ulong));
    o->local_bytes = device_number(d, CL_DEVICE_LOCAL_MEM_SIZE, sizeof(cl_ulong));
    o->is_host_memory = o->type == PSEG_DEVICE_CPU &&
                        device_number(d, CL_DEVICE_HOST_UNIFIED_MEMORY, sizeof(cl_bool)) != 0;
    o->features = o->is_host_memory && pseg_device_takes_assembly(o) ? pseg_cpu_features() : 0;
    /* Kernels read by vload alone, so the alignment of a float is enough where nothing is copied.
     */
    o->host_align = sizeof(float);
}

pseg_status pseg_devices_enumerate(cl_device_id *ids, pseg_device_info *infos, unsigned *n,
                                   pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    cl_platform_id platforms[PSEG_CL_MAX_PLATFORMS];
    cl_uint n_platforms = 0;

    *n = 0;
    pseg_cl_start_drivers();
    cl_int code = clGetPlatformIDs(PSEG_CL_MAX_PLATFORMS, platforms, &n_platforms);
    if (code == NO_PLATFORM)
        return PSEG_OK;
    PSEG_CL_TRY(clGetPlatformIDs, code);
    for (cl_uint p = 0; p < n_platforms && p < PSEG_CL_MAX_PLATFORMS; p++) {
        cl_device_id found[PSEG_CL_MAX_DEVICES];
        cl_uint n_found = 0;

        if (clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, PSEG_CL_MAX_DEVICES, found,
                           &n_found) != CL_SUCCESS)
            continue;
        for (cl_uint d = 0; d < n_found && d < PSEG_CL_MAX_DEVICES && *n < PSEG_CL_MAX_DEVICES;
             d++) {
            char id[PSEG_DEVICE_ID];
            snprintf(id, sizeof id, "%u:%u", p, d);
            pseg_device_describe(&infos[*n], platforms[p], found[d], id);
            ids[(*n)++] = found[d];
        }
    }
out:
    return rc;
}

pseg_status pseg_device_list(pseg_device_info **out, size_t *n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_device_info *infos = NULL;
    cl_device_id ids[PSEG_CL_MAX_DEVICES];
    unsigned count = 0;

    *out = NULL;
    *n = 0;
    infos = pseg_calloc(PSEG_CL_MAX_DEVICES, sizeof *infos);
    if (!infos)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory for the list of devices");
    PSEG_TRY(pseg_devices_enumerate(ids, infos, &count, err));
    *out = infos;
    *n = count;
    infos = NULL;
out:
    pseg_free(infos);
    return rc;
}

/* Some devices have a type of their own first: first of type t, or n. */
static size_t first_of_type(const pseg_device_info *list, size_t n, pseg_device_type t)
{
    size_t i = 0;

    while (i < n && list[i].type != t)
        i++;
    return i;
}

pseg_status pseg_device_select(size_t *out, const pseg_device_info *list, size_t n,
                               const char *which, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t i = n;

    *out = 0;
    if (n == 0)
        PSEG_FAIL(PSEG_R_DEVICE_NOT_FOUND, 0,
                  "no OpenCL device found; install an OpenCL driver, for example "
                  "pocl-opencl-icd");
    if (!which || !*which || strcasecmp(which, "auto") == 0) {
        i = first_of_type(list, n, PSEG_DEVICE_GPU);
        if (i == n)
            i = first_of_type(list, n, PSEG_DEVICE_CPU);
        *out = i == n ? 0 : i;
        goto out;
    }
    for (unsigned t = 0; t <= PSEG_DEVICE_ACCELERATOR; t++) {
        if (strcasecmp(which, pseg_device_type_name((pseg_device_type)t)) != 0)
            continue;
        i = first_of_type(list, n, (pseg_device_type)t);
        if (i == n)
            PSEG_FAIL(PSEG_R_DEVICE_NOT_FOUND, 0,
                      "no OpenCL device of type %s among %zu; `pseg devices` lists them",
                      pseg_device_type_name((pseg_device_type)t), n);
        *out = i;
        goto out;
    }
    for (i = 0; i < n; i++)
        if (strcmp(which, list[i].id) == 0)
            break;
    for (size_t k = 0; i == n && k < n; k++)
        if (strcasestr(list[k].name, which) || strcasestr(list[k].vendor, which) ||
            strcasestr(list[k].platform_name, which))
            i = k;
    if (i == n)
        PSEG_FAIL(PSEG_R_DEVICE_NOT_FOUND, 0,
                  "no OpenCL device \"%.60s\" among %zu; `pseg devices` lists them", which, n);
    *out = i;
out:
    return rc;
}
