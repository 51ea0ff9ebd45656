/* One device or several, whole or in parts, as a flag names them. */
#include "worker/cl/internal.h"

#include "common/base/alloc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALL_PARTS = 1000000, TOO_MANY };

/* What a word names: a device, or n parts of it, or part k of n. */
typedef struct wanted {
    char device[192];
    bool is_divided;
    unsigned n, k; /* k = ALL_PARTS: all n */
} wanted;

static unsigned limited(unsigned long n)
{
    return n < ALL_PARTS ? (unsigned)n : TOO_MANY;
}

/* "NAME/N" and "NAME/N.K"; any other stroke belongs to the name. */
static void split_parts(wanted *w, const char *word, size_t len)
{
    char *end = NULL, *stroke;

    *w = (wanted){.k = ALL_PARTS};
    snprintf(w->device, sizeof w->device, "%.*s", (int)(len < 191 ? len : 191), word);
    stroke = strrchr(w->device, '/');
    if (!stroke || stroke[1] < '0' || stroke[1] > '9')
        return;
    unsigned n = limited(strtoul(stroke + 1, &end, 10)), k = ALL_PARTS;
    if (*end == '.' && end[1] >= '0' && end[1] <= '9')
        k = limited(strtoul(end + 1, &end, 10));
    if (*end)
        return;
    *stroke = '\0';
    w->is_divided = true;
    w->n = n;
    w->k = k;
}

static pseg_status check_parts(const wanted *w, const pseg_device_info *d, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (w->n < 1 || w->n > d->compute_units || w->n > PSEG_DEVICE_MAX_PARTS)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "device %s in %u parts: it has %u units, the limits are 1..%u", d->id, w->n,
                  d->compute_units,
                  d->compute_units < PSEG_DEVICE_MAX_PARTS ? d->compute_units
                                                           : PSEG_DEVICE_MAX_PARTS);
    if (w->k != ALL_PARTS && w->k >= w->n)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "device %s: part %u of %u; parts count from 0", d->id,
                  w->k, w->n);
out:
    return rc;
}

/* Part k of n of *device, which share its units as evenly as can be. */
static pseg_status open_part(cl_device_id *device, pseg_device_info *info, const wanted *w,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    cl_device_partition_property how[PSEG_DEVICE_MAX_PARTS + 3] = {CL_DEVICE_PARTITION_BY_COUNTS};
    cl_device_id parts[PSEG_DEVICE_MAX_PARTS];
    cl_platform_id platform = NULL;
    char id[PSEG_DEVICE_ID];

    for (unsigned i = 0; i < w->n; i++)
        how[1 + i] = info->compute_units / w->n + (i < info->compute_units % w->n);
    _Static_assert(CL_DEVICE_PARTITION_BY_COUNTS_LIST_END == 0, "what the list is filled with");
    cl_int code = clCreateSubDevices(*device, how, w->n, parts, NULL);
    if (code != CL_SUCCESS)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, code,
                  "device %s cannot be divided: its driver says %s (%d); name it whole", info->id,
                  pseg_cl_code_name(code), code);
    for (unsigned i = 0; i < w->n; i++)
        if (i == w->k)
            *device = parts[i];
        else
            clReleaseDevice(parts[i]);
    snprintf(id, sizeof id, "%s/%u.%u", info->id, w->n, w->k);
    clGetDeviceInfo(*device, CL_DEVICE_PLATFORM, sizeof(cl_platform_id), &platform, NULL);
    pseg_device_describe(info, platform, *device, id);
out:
    return rc;
}

pseg_status pseg_device_open(cl_device_id *out, pseg_device_info *info, const char *which,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_device_info *infos = NULL;
    cl_device_id ids[PSEG_CL_MAX_DEVICES];
    unsigned count = 0;
    size_t i = 0;
    wanted w;

    infos = pseg_calloc(PSEG_CL_MAX_DEVICES, sizeof *infos);
    if (!infos)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory for the list of devices");
    PSEG_TRY(pseg_devices_enumerate(ids, infos, &count, err));
    split_parts(&w, which ? which : "", which ? strlen(which) : 0);
    PSEG_TRY(pseg_device_select(&i, infos, count, w.device, err));
    *out = ids[i];
    *info = infos[i];
    if (w.is_divided) {
        PSEG_TRY(check_parts(&w, info, err));
        if (w.k == ALL_PARTS)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "\"%.60s\" are %u devices, one is wanted: %s/%u.0 is the first", which, w.n,
                      info->id, w.n);
        PSEG_TRY(open_part(out, info, &w, err));
    }
out:
    pseg_free(infos);
    return rc;
}

/* ---- several ---- */

typedef struct list {
    char (*ids)[PSEG_DEVICE_ID];
    size_t n, cap;
} list;

static pseg_status add(list *l, const char *id, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t i = 0; i < l->n; i++)
        if (strcmp(l->ids[i], id) == 0)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "device %s is named twice", id);
    if (l->n == l->cap)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "more than %zu devices", l->cap);
    snprintf(l->ids[l->n++], PSEG_DEVICE_ID, "%s", id);
out:
    return rc;
}

static pseg_status add_word(list *l, const char *word, size_t len, const pseg_device_info *infos,
                            size_t n_infos, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char id[PSEG_DEVICE_ID];
    size_t at = 0;
    wanted w;

    split_parts(&w, word, len);
    bool is_all = strcasecmp(w.device, "all") == 0 && !w.is_divided;
    PSEG_TRY(pseg_device_select(&at, infos, n_infos, is_all ? "auto" : w.device, err));
    if (w.is_divided)
        PSEG_TRY(check_parts(&w, &infos[at], err));
    for (size_t i = 0; is_all && i < n_infos; i++)
        PSEG_TRY(add(l, infos[i].id, err));
    if (!is_all && !w.is_divided)
        PSEG_TRY(add(l, infos[at].id, err));
    for (unsigned k = 0; w.is_divided && k < w.n; k++)
        if (w.k == ALL_PARTS || w.k == k) {
            snprintf(id, sizeof id, "%.24s/%u.%u", infos[at].id, w.n, k);
            PSEG_TRY(add(l, id, err));
        }
out:
    return rc;
}

pseg_status pseg_device_expand(char (*out)[PSEG_DEVICE_ID], size_t *n, size_t cap,
                               const char *const *which, size_t n_which, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_device_info *infos = NULL;
    size_t n_infos = 0;
    list l = {out, 0, cap};

    *n = 0;
    PSEG_TRY(pseg_device_list(&infos, &n_infos, err));
    for (size_t i = 0; i < n_which; i++)
        for (const char *at = which[i]; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
            PSEG_TRY(add_word(&l, at, strcspn(at, ","), infos, n_infos, err));
    *n = l.n;
out:
    pseg_free(infos);
    return rc;
}
