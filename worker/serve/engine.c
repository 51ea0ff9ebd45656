#include "worker/serve/engine_internal.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/hash.h"

#include <stdio.h>
#include <string.h>

_Static_assert((int)PSEG_IMAGE_SQUASH == (int)PSEG_MODEL_SQUASH &&
                   (int)PSEG_IMAGE_LETTERBOX == (int)PSEG_MODEL_LETTERBOX &&
                   (int)PSEG_IMAGE_CENTRE_CROP == (int)PSEG_MODEL_CENTRE_CROP,
               "the fits of model and image");

void pseg_work_stage(pseg_work *w, const char *name, int64_t us)
{
    if (w->n_stages < PSEG_ENGINE_MAX_STAGES) {
        w->stages[w->n_stages].name = name;
        w->stages[w->n_stages].end_mono_us = pseg_clock_mono_us();
        w->stages[w->n_stages++].us = us > 0 ? us : 0; /* clocks of two machines may differ */
    }
}

void pseg_work_free(pseg_engine *e, pseg_work *w)
{
    if (w->picture)
        pseg_pictures_drop(&e->pictures, w->picture);
    pseg_free(w->logits);
    pseg_free(w->iou);
    pseg_free(w->truncated);
    pseg_free(w->kernels);
    w->kernels = NULL;
    w->n_kernels = 0;
    w->picture = NULL;
    w->logits = w->iou = NULL;
    w->truncated = NULL;
}

const char *pseg_engine_name(const pseg_engine *e)
{
    return e->name;
}

const char *pseg_engine_digest(const pseg_engine *e)
{
    return e->digest;
}

size_t pseg_engine_n_devices(const pseg_engine *e)
{
    return e->n_devices;
}

const char *pseg_engine_device(const pseg_engine *e, size_t device)
{
    return e->devices[device].name;
}

bool pseg_engine_claim(pseg_engine *e, size_t device, pseg_work *w)
{
    return !w->picture || pseg_pictures_claim(&e->pictures, w->picture, device);
}

void pseg_engine_unclaim(pseg_engine *e, size_t device, pseg_work *w)
{
    if (w->picture)
        pseg_pictures_unclaim(&e->pictures, w->picture, device);
}

bool pseg_engine_keeps_images(const pseg_engine *e)
{
    return e->info && e->pictures.max_kept > 0;
}

bool pseg_engine_is_encoded(pseg_engine *e, const pseg_work *w)
{
    return w->picture && pseg_picture_is_encoded(&e->pictures, w->picture);
}

size_t pseg_engine_max_encode(const pseg_engine *e, size_t device)
{
    size_t n = e->devices[device].max_encode;

    return n ? n : PSEG_ENGINE_MAX_JOBS; /* the empty model does not care */
}

size_t pseg_engine_max_decode(const pseg_engine *e)
{
    return e->max_decode ? e->max_decode : PSEG_ENGINE_MAX_JOBS;
}

static void digest_text(char out[PSEG_SHA256_HEX + 1], const char *text)
{
    uint8_t d[PSEG_SHA256_BYTES];

    pseg_sha256_of(d, text, strlen(text));
    pseg_hex(out, d, sizeof d);
}

static pseg_status open_decoders(pseg_engine *e, const pseg_engine_options *o, pseg_err *err)
{
    pseg_decoders_options d = PSEG_DECODERS_OPTIONS_DEFAULT;

    d.n = o->n_decoders;
    d.limits = o->limits;
    d.how = e->how;
    d.log = o->log;
    d.images = o->decode_images;
    d.cpu_s = o->decode_s;
    d.wall_ms = o->decode_s * 4000; /* on a machine with more to do than processors */
    d.memory_bytes = o->decode_memory_bytes;
    return pseg_decoders_open(&e->decoders, &d, err);
}

static void take_info(pseg_engine *e, const pseg_engine_options *o)
{
    e->info = pseg_model_get_info(e->devices[0].model);
    snprintf(e->name, sizeof e->name, "%s", e->info->name);
    memcpy(e->digest, e->info->digest, sizeof e->digest);
    e->how = (pseg_preprocess){.fit = (pseg_image_fit)e->info->fit,
                               .width = e->info->width,
                               .height = e->info->height,
                               .resize_edge = e->info->resize_edge,
                               .may_shrink = o->shrink_on_load};
    memcpy(e->how.mean, e->info->mean, sizeof e->how.mean);
    memcpy(e->how.std, e->info->std, sizeof e->how.std);
    e->pictures.max_kept = o->kept_bytes / (sizeof(float) * pseg_engine_n_features(e));
    e->pictures.n_devices = e->n_devices;
    for (size_t i = 0; i < e->n_devices; i++)
        pseg_phrases_init(&e->devices[i].phrases, o->kept_phrases);
    e->reads_features = o->reads_features;
    e->max_decode = o->model.max_phrases;
}

static pseg_status open_model(pseg_engine *e, const pseg_engine_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t begin = pseg_clock_mono_ms();

    PSEG_TRY(pseg_engine_open_devices(e, o, err));
    take_info(e, o);
    PSEG_TRY(pseg_cl_kernel_digest(e->kernel_digest, e->devices[0].cl, err));
    if (o->n_decoders > 0) {
        begin = pseg_clock_mono_ms();
        PSEG_TRY(open_decoders(e, o, err));
        PSEG_INFO(o->log, "engine", "start stage=decoders ms=%lld",
                  (long long)(pseg_clock_mono_ms() - begin));
    }
out:
    return rc;
}

pseg_status pseg_engine_open(pseg_engine **out, const pseg_engine_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_engine *e = pseg_calloc(1, sizeof *e);

    *out = NULL;
    if (!e)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the engine");
    e->limits = o->limits;
    snprintf(e->worker, sizeof e->worker, "%s", o->worker ? o->worker : "");
    pseg_pictures_init(&e->pictures, 0);
    if (o->source.folder || o->source.vision || o->preset) {
        PSEG_TRY(open_model(e, o, err));
    } else {
        e->n_devices = 1;
        snprintf(e->name, sizeof e->name, PSEG_ENGINE_EMPTY);
        snprintf(e->devices[0].name, sizeof e->devices[0].name, "none");
        digest_text(e->digest, PSEG_ENGINE_EMPTY);
    }
    if (o->name)
        snprintf(e->name, sizeof e->name, "%s", o->name);
    *out = e;
    e = NULL;
out:
    pseg_engine_close(e);
    return rc;
}

void pseg_engine_keep_programs(pseg_engine *e)
{
    for (size_t i = 0; i < e->n_devices; i++)
        if (e->devices[i].cl)
            pseg_cl_keep_in_background(e->devices[i].cl);
}

void pseg_engine_close(pseg_engine *e)
{
    if (!e)
        return;
    pseg_decoders_close(e->decoders);
    pseg_pictures_deinit(&e->pictures);
    for (size_t i = 0; i < e->n_devices; i++) {
        pseg_phrases_deinit(&e->devices[i].phrases);
        pseg_model_close(e->devices[i].model);
        pseg_cl_close(e->devices[i].cl);
    }
    pseg_free(e);
}
