/* Opening an engine's devices, all at once: what one waits for, the file system or its compiler,
 * need not keep the others. */
#include "worker/serve/engine_internal.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <string.h>

typedef struct opening {
    pseg_engine_unit *device;
    const pseg_engine_options *o;
    bool is_one_of_many;
    pthread_t thread;
    pseg_status rc;
    pseg_err err;
} opening;

/* What each stage of a start took, and how many programs were compiled or found so far. */
static void log_stage(const opening *x, const char *stage, int64_t *since_us)
{
    int64_t now = pseg_clock_mono_us();
    unsigned built, cached;

    pseg_cl_program_counts(x->device->cl, &built, &cached);
    PSEG_INFO(x->o->log, "engine",
              "start stage=%s ms=%lld programs_compiled=%u programs_cached=%u%s%s", stage,
              (long long)((now - *since_us) / 1000), built, cached,
              x->is_one_of_many ? " device=" : "", x->is_one_of_many ? x->device->id : "");
    *since_us = now;
}

static pseg_status open_device(opening *x, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_engine_unit *d = x->device;
    pseg_cl_options co = x->o->cl;
    int64_t at = pseg_clock_mono_us();

    co.device = *d->id ? d->id : co.device;
    PSEG_TRY(pseg_cl_open(&d->cl, &co, err));
    const pseg_device_info *info = pseg_cl_device(d->cl);
    if (x->is_one_of_many)
        snprintf(d->name, sizeof d->name, "%s (%s)", info->name, info->id);
    else
        snprintf(d->name, sizeof d->name, "%s", info->name);
    snprintf(d->driver, sizeof d->driver, "%.60s, driver %.60s", info->platform_version,
             info->driver);
    log_stage(x, "device", &at);
    PSEG_TRY(x->o->preset ? pseg_model_random(&d->model, d->cl, x->o->preset, 1, &x->o->model, err)
                          : pseg_model_open(&d->model, d->cl, &x->o->source, &x->o->model, err));
    log_stage(x, "model", &at);
    d->max_encode = x->o->max_encode                ? x->o->max_encode
                    : info->type == PSEG_DEVICE_CPU ? 1
                                                    : x->o->model.max_images;
    PSEG_TRY(pseg_model_warm_up(d->model, err));
    log_stage(x, "warm_up", &at);
out:
    if (rc != PSEG_OK && x->is_one_of_many)
        pseg_err_prefix(err, "device %s", d->id);
    return rc;
}

static void *open_main(void *arg)
{
    opening *x = arg;

    x->rc = open_device(x, &x->err);
    return NULL;
}

static pseg_status list_devices(pseg_engine *e, const pseg_engine_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char ids[PSEG_MAX_DEVICES][PSEG_DEVICE_ID];

    e->n_devices = 1;
    if (o->n_devices == 0)
        goto out;
    PSEG_TRY(
        pseg_device_expand(ids, &e->n_devices, PSEG_MAX_DEVICES, o->devices, o->n_devices, err));
    for (size_t i = 0; i < e->n_devices; i++)
        memcpy(e->devices[i].id, ids[i], sizeof ids[i]);
out:
    return rc;
}

pseg_status pseg_engine_open_devices(pseg_engine *e, const pseg_engine_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    opening all[PSEG_MAX_DEVICES];
    size_t n_begun = 0;

    PSEG_TRY(list_devices(e, o, err));
    for (size_t i = 0; i < e->n_devices; i++)
        all[i] = (opening){.device = &e->devices[i],
                           .o = o,
                           .is_one_of_many = e->n_devices > 1,
                           .err = PSEG_ERR_INIT};
    while (n_begun + 1 < e->n_devices &&
           pthread_create(&all[n_begun].thread, NULL, open_main, &all[n_begun]) == 0)
        n_begun++;
    for (size_t i = n_begun; i < e->n_devices; i++) /* the last, and those without a thread */
        open_main(&all[i]);
    for (size_t i = 0; i < n_begun; i++)
        pthread_join(all[i].thread, NULL);
    for (size_t i = 0; i < e->n_devices && rc == PSEG_OK; i++) {
        rc = all[i].rc;
        if (rc != PSEG_OK && err)
            *err = all[i].err;
    }
out:
    return rc;
}
