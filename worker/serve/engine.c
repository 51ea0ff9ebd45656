#include "worker/serve/engine.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/half.h"
#include "common/base/hash.h"
#include "common/base/version.h"
#include "pseg/internal/v1/record.pb-c.h"
#include "worker/decode/decoders.h"

#include <stdio.h>
#include <string.h>

struct pseg_engine {
    pseg_cl *cl;
    pseg_model *model;       /* NULL: the empty model */
    pseg_decoders *decoders; /* NULL: images are decoded in this process */
    const pseg_model_info *info;
    pseg_preprocess how;
    pseg_image_limits limits;
    char name[64], digest[PSEG_SHA256_HEX + 1], kernel_digest[PSEG_SHA256_HEX + 1];
    char device[192], driver[224], worker[96];
};

_Static_assert((int)PSEG_IMAGE_SQUASH == (int)PSEG_MODEL_SQUASH &&
                   (int)PSEG_IMAGE_LETTERBOX == (int)PSEG_MODEL_LETTERBOX &&
                   (int)PSEG_IMAGE_CENTRE_CROP == (int)PSEG_MODEL_CENTRE_CROP,
               "the fits of model and image");

void pseg_work_stage(pseg_work *w, const char *name, int64_t us)
{
    if (w->n_stages < PSEG_ENGINE_MAX_STAGES) {
        w->stages[w->n_stages].name = name;
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

static size_t grid_elems(const pseg_engine *e)
{
    return e->model ? (size_t)e->info->mask_width * e->info->mask_height : 1;
}

static pseg_status allocate_results(pseg_engine *e, pseg_work *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    w->logits = pseg_calloc(w->n_prompts * grid_elems(e), sizeof *w->logits);
    w->iou = pseg_calloc(w->n_prompts, sizeof *w->iou);
    w->truncated = pseg_calloc(w->n_prompts, sizeof *w->truncated);
    if (!w->logits || !w->iou || !w->truncated)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu masks", w->n_prompts);
out:
    return rc;
}

/* Equal phrases are encoded and decoded once: slot[i] is the place of phrase i among the distinct.
 */
static size_t distinct(const pseg_work *w, const char **phrases, size_t *slot)
{
    size_t n = 0;

    for (size_t i = 0; i < w->n_prompts; i++) {
        size_t k = 0;
        while (k < n && strcmp(phrases[k], w->prompts[i]) != 0)
            k++;
        if (k == n)
            phrases[n++] = w->prompts[i];
        slot[i] = k;
    }
    return n;
}

/* Results of the distinct phrases to all that are equal, from the back: slot[i] <= i. */
static void spread(pseg_engine *e, pseg_work *w, const size_t *slot, pseg_prompt *const *prompts)
{
    size_t n = grid_elems(e);

    for (size_t i = w->n_prompts; i-- > 0;) {
        w->truncated[i] = pseg_prompt_is_cut(prompts[slot[i]]);
        if (slot[i] == i)
            continue;
        memmove(w->logits + i * n, w->logits + slot[i] * n, n * sizeof *w->logits);
        w->iou[i] = w->iou[slot[i]];
    }
}

pseg_status pseg_engine_run(pseg_engine *e, pseg_work *w, bool (*is_cancelled)(void *), void *ud,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_features *image = NULL;
    pseg_prompt **prompts = NULL;
    const pseg_features **images = NULL;
    size_t n = 0;

    PSEG_TRY(allocate_results(e, w, err));
    if (!e->model) {
        for (size_t i = 0; i < w->n_prompts; i++)
            w->logits[i] = -10;
        goto out;
    }
    const char **phrases = pseg_arena_calloc(w->arena, w->n_prompts, sizeof *phrases);
    size_t *slot = pseg_arena_calloc(w->arena, w->n_prompts, sizeof *slot);
    prompts = pseg_arena_calloc(w->arena, w->n_prompts, sizeof(pseg_prompt *));
    images = pseg_arena_calloc(w->arena, w->n_prompts, sizeof(pseg_features *));
    if (!phrases || !slot || !prompts || !images)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu phrases", w->n_prompts);
    n = distinct(w, phrases, slot);
    int64_t at[4];
    for (int stage = 0; stage < 3; stage++) {
        at[stage] = pseg_clock_mono_us();
        if (is_cancelled && is_cancelled(ud))
            PSEG_FAIL(PSEG_R_CANCELLED, 0, "the job was cancelled");
        if (stage == 0) {
            PSEG_TRY(pseg_model_encode_images(&image, e->model, w->chw, 1, err));
        } else if (stage == 1) {
            PSEG_TRY(pseg_model_encode_texts(prompts, e->model, phrases, n, err));
        } else {
            for (size_t i = 0; i < n; i++)
                images[i] = image;
            PSEG_TRY(pseg_model_decode(w->logits, w->iou, e->model, images,
                                       (const pseg_prompt *const *)prompts, n, err));
        }
    }
    at[3] = pseg_clock_mono_us();
    pseg_work_stage(w, "encode_image", at[1] - at[0]);
    pseg_work_stage(w, "encode_text", at[2] - at[1]);
    pseg_work_stage(w, "decode_mask", at[3] - at[2]);
    spread(e, w, slot, prompts);
out:
    pseg_features_free(image);
    for (size_t i = 0; i < n; i++)
        pseg_prompt_free(prompts[i]);
    return rc;
}

static pseg_status finish_one(pseg_engine *e, pseg_work *w, size_t i,
                              Pseg__Internal__V1__PromptResult *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = grid_elems(e);
    pseg_mask m;
    uint16_t *half = pseg_arena_alloc(w->arena, n * sizeof *half);

    if (!half)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu masks", w->n_prompts);
    pseg_half_from_floats(half, w->logits + i * n, n);
    w->masks[i] = (pseg_bytes){(const uint8_t *)half, n * sizeof *half};
    w->grids[i] = (pseg_mask_grid){.logits = half,
                                   .grid_width = e->model ? e->info->mask_width : 1,
                                   .grid_height = e->model ? e->info->mask_height : 1,
                                   .width = w->width,
                                   .height = w->height,
                                   .x0 = w->rect[0],
                                   .y0 = w->rect[1],
                                   .x1 = w->rect[2],
                                   .y1 = w->rect[3]};
    pseg__internal__v1__prompt_result__init(r);
    if (e->model) {
        PSEG_TRY(pseg_mask_measure(&m, &w->grids[i], w->threshold, err));
        r->area_px = m.area;
        r->box_x = m.box_x;
        r->box_y = m.box_y;
        r->box_width = m.box_width;
        r->box_height = m.box_height;
    }
    r->predicted_iou = w->iou[i];
    r->truncated = w->truncated[i];
    r->grid_width = w->grids[i].grid_width;
    r->grid_height = w->grids[i].grid_height;
    r->x0 = w->rect[0];
    r->y0 = w->rect[1];
    r->x1 = w->rect[2];
    r->y1 = w->rect[3];
out:
    return rc;
}

pseg_status pseg_engine_finish(pseg_engine *e, pseg_work *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_arena *a = w->arena;
    Pseg__Internal__V1__JobResult all = PSEG__INTERNAL__V1__JOB_RESULT__INIT;
    Pseg__Internal__V1__PromptResult *results = pseg_arena_calloc(a, w->n_prompts, sizeof *results);
    Pseg__Internal__V1__Stage *stages = pseg_arena_calloc(a, w->n_stages, sizeof *stages);

    all.results = pseg_arena_calloc(a, w->n_prompts, sizeof *all.results);
    all.stages = pseg_arena_calloc(a, w->n_stages, sizeof *all.stages);
    w->masks = pseg_arena_calloc(a, w->n_prompts, sizeof *w->masks);
    w->grids = pseg_arena_calloc(a, w->n_prompts, sizeof *w->grids);
    if (!results || !stages || !all.results || !all.stages || !w->masks || !w->grids)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the result of %zu prompts", w->n_prompts);
    for (size_t i = 0; i < w->n_prompts; i++) {
        PSEG_TRY(finish_one(e, w, i, &results[i], err));
        all.results[all.n_results++] = &results[i];
    }
    for (size_t i = 0; i < w->n_stages; i++) {
        pseg__internal__v1__stage__init(&stages[i]);
        stages[i].name = (char *)(uintptr_t)w->stages[i].name;
        stages[i].duration_us = (uint64_t)w->stages[i].us;
        all.stages[all.n_stages++] = &stages[i];
    }
    all.image_width = w->width;
    all.image_height = w->height;
    all.model = e->name;
    all.model_digest = e->digest;
    all.kernel_digest = e->kernel_digest;
    all.device = e->device;
    all.driver = e->driver;
    all.precision =
        (char *)(uintptr_t)pseg_precision_name(e->info ? e->info->precision : PSEG_PRECISION_FP32);
    all.worker = e->worker;
    all.worker_version = (char *)(uintptr_t)PSEG_VERSION;
    uint8_t *data = pseg_arena_alloc(a, pseg__internal__v1__job_result__get_packed_size(&all));
    if (!data)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the result of %zu prompts", w->n_prompts);
    w->result = (pseg_bytes){data, pseg__internal__v1__job_result__pack(&all, data)};
out:
    return rc;
}
