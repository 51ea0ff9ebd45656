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

void pseg_work_free(pseg_work *w)
{
    pseg_free(w->chw);
    pseg_free(w->logits);
    pseg_free(w->iou);
    pseg_free(w->truncated);
    w->chw = w->logits = w->iou = NULL;
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

const char *pseg_engine_device(const pseg_engine *e)
{
    return e->device;
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
    d.cpu_s = o->decode_s;
    d.wall_ms = o->decode_s * 4000; /* on a machine with more to do than processors */
    d.memory_bytes = o->decode_memory_bytes;
    return pseg_decoders_open(&e->decoders, &d, err);
}

/* What each stage of a start took, and how many programs were compiled or found so far. */
static void log_stage(const pseg_engine *e, const pseg_engine_options *o, const char *stage,
                      int64_t *since_us)
{
    int64_t now = pseg_clock_mono_us();
    unsigned built, cached;

    pseg_cl_program_counts(e->cl, &built, &cached);
    PSEG_INFO(o->log, "engine", "start stage=%s ms=%lld programs_compiled=%u programs_cached=%u",
              stage, (long long)((now - *since_us) / 1000), built, cached);
    *since_us = now;
}

static pseg_status open_model(pseg_engine *e, const pseg_engine_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t at = pseg_clock_mono_us();

    PSEG_TRY(pseg_cl_open(&e->cl, &o->cl, err));
    const pseg_device_info *d = pseg_cl_device(e->cl);
    snprintf(e->device, sizeof e->device, "%s", d->name);
    snprintf(e->driver, sizeof e->driver, "%.60s, driver %.60s", d->platform_version, d->driver);
    log_stage(e, o, "device", &at);
    PSEG_TRY(pseg_model_open(&e->model, e->cl, &o->source, &o->model, err));
    log_stage(e, o, "model", &at);
    e->info = pseg_model_get_info(e->model);
    snprintf(e->name, sizeof e->name, "%s", e->info->name);
    memcpy(e->digest, e->info->digest, sizeof e->digest);
    e->how = (pseg_preprocess){.fit = (pseg_image_fit)e->info->fit,
                               .width = e->info->width,
                               .height = e->info->height,
                               .resize_edge = e->info->resize_edge,
                               .may_shrink = o->shrink_on_load};
    memcpy(e->how.mean, e->info->mean, sizeof e->how.mean);
    memcpy(e->how.std, e->info->std, sizeof e->how.std);
    PSEG_TRY(pseg_cl_kernel_digest(e->kernel_digest, e->cl, err));
    PSEG_TRY(pseg_model_warm_up(e->model, err));
    log_stage(e, o, "warm_up", &at);
    if (o->n_decoders > 0) {
        PSEG_TRY(open_decoders(e, o, err));
        log_stage(e, o, "decoders", &at);
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
    if (o->source.folder || o->source.vision) {
        PSEG_TRY(open_model(e, o, err));
    } else {
        snprintf(e->name, sizeof e->name, PSEG_ENGINE_EMPTY);
        snprintf(e->device, sizeof e->device, "none");
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
    if (e->cl)
        pseg_cl_keep_in_background(e->cl);
}

void pseg_engine_close(pseg_engine *e)
{
    if (!e)
        return;
    pseg_decoders_close(e->decoders);
    pseg_model_close(e->model);
    pseg_cl_close(e->cl);
    pseg_free(e);
}

/* Decodes for the model alone. */
static pseg_status prepare_file(pseg_engine *e, pseg_work *w, pseg_bytes image, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image_prepared p;

    pseg_image_file file = {image.data, image.len};
    if (e->decoders)
        PSEG_TRY(pseg_decoders_prepare(e->decoders, &p, w->chw, file, err));
    else
        PSEG_TRY(pseg_image_prepare(&p, w->chw, file, &e->limits, &e->how, err));
    w->width = p.width;
    w->height = p.height;
    memcpy(w->rect, p.rect, sizeof w->rect);
    pseg_work_stage(w,
                    p.shrink == 8   ? "decode_image_eighth"
                    : p.shrink == 4 ? "decode_image_quarter"
                    : p.shrink == 2 ? "decode_image_half"
                                    : "decode_image",
                    p.decode_us);
    pseg_work_stage(w, "preprocess", p.resize_us);
out:
    return rc;
}

/* From a photo that the caller wants too, whose decoding began at begin_us. */
static pseg_status prepare_photo(pseg_engine *e, pseg_work *w, const pseg_image *i,
                                 int64_t begin_us, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t decoded = pseg_clock_mono_us();

    w->width = i->width;
    w->height = i->height;
    pseg_work_stage(w, "decode_image", decoded - begin_us);
    if (e->model) {
        PSEG_TRY(pseg_image_preprocess(w->chw, w->rect, i, &e->how, err));
        pseg_work_stage(w, "preprocess", pseg_clock_mono_us() - decoded);
    }
out:
    return rc;
}

pseg_status pseg_engine_prepare(pseg_engine *e, pseg_work *w, pseg_bytes image, pseg_image **photo,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image *i = NULL;
    int64_t begin = pseg_clock_mono_us();

    if (!e->model && !photo) {
        /* The empty model looks at the header alone. */
        pseg_image_info info;
        PSEG_TRY(pseg_image_probe(&info, image.data, image.len, &e->limits, err));
        w->width = info.width;
        w->height = info.height;
        goto out;
    }
    if (e->model) {
        w->chw = pseg_aligned_alloc(3 * sizeof(float) * e->how.width * e->how.height);
        if (!w->chw)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to prepare an image");
    }
    if (photo)
        PSEG_TRY(pseg_image_decode(&i, image.data, image.len, &e->limits, err));
    PSEG_TRY(e->model && (!photo || e->how.may_shrink) ? prepare_file(e, w, image, err)
                                                       : prepare_photo(e, w, i, begin, err));
    if (photo) {
        *photo = i;
        i = NULL;
    }
out:
    if (!e->model) {
        w->rect[2] = (float)w->width;
        w->rect[3] = (float)w->height;
    }
    pseg_image_free(i);
    return rc;
}
