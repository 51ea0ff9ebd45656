#include "worker/eval/evaluate.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/half.h"
#include "worker/eval/device.h"
#include "worker/eval/measure.h"

#include <stdio.h>
#include <string.h>

/* An image on its way. Slots are a ring: image i goes through slot i mod n_slots. */
typedef enum stage {
    FREE,
    LOADING,
    LOADED,  /* chw is there, or has_failed */
    DECODED, /* the answers are there */
    MEASURING,
} stage;

typedef struct slot {
    stage stage;
    uint32_t image;
    bool has_failed; /* the image is left out */
    float *chw;
    eval_answers answers;
} slot;

typedef struct pipeline {
    eval_common c;
    pseg_preprocess how;
    slot *slots;
    uint32_t n_slots;
    pthread_mutex_t mu;
    pthread_cond_t changed;
    uint32_t next_load, n_measured;
    bool is_over;
    pseg_status rc; /* of whichever thread failed first */
    pseg_err err;
    eval_device device; /* of the thread that runs it alone */
} pipeline;

void pseg_eval_preprocess_of(pseg_preprocess *out, const pseg_model_info *info)
{
    *out = (pseg_preprocess){.fit = (pseg_image_fit)info->fit,
                             .width = info->width,
                             .height = info->height,
                             .resize_edge = info->resize_edge};
    memcpy(out->mean, info->mean, sizeof out->mean);
    memcpy(out->std, info->std, sizeof out->std);
}

static void answers_clear(eval_answers *a)
{
    pseg_free(a->phrases);
    pseg_free(a->is_cut);
    pseg_free(a->logits);
    pseg_free(a->predicted);
    a->phrases = NULL;
    a->is_cut = NULL;
    a->logits = NULL;
    a->predicted = NULL;
    a->n = 0;
}

/* ---- threads that load and measure ---- */

static void fail(pipeline *p, pseg_status rc, const pseg_err *err)
{
    pthread_mutex_lock(&p->mu);
    if (p->rc == PSEG_OK) {
        p->rc = rc;
        p->err = *err;
    }
    p->is_over = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mu);
}

static void set_stage(pipeline *p, slot *s, stage to)
{
    pthread_mutex_lock(&p->mu);
    s->stage = to;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mu);
}

static void load(pipeline *p, slot *s)
{
    pseg_eval_source *source = p->c.source;
    pseg_err err = PSEG_ERR_INIT;
    pseg_status rc = source->load(&s->answers.photo, s->chw, source, s->image, &p->how, &err);

    s->has_failed = rc != PSEG_OK;
    if (rc != PSEG_OK && eval_is_of_data(&err))
        eval_fault(&p->c,
                   err.reason == PSEG_R_FILE_NOT_FOUND ? PSEG_EVAL_FAULT_IMAGE_MISSING
                                                       : PSEG_EVAL_FAULT_IMAGE_BROKEN,
                   p->c.plan->names[s->image], err.msg);
    else if (rc != PSEG_OK)
        fail(p, rc, &err);
    set_stage(p, s, LOADED);
}

static void measure(pipeline *p, slot *s)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_status rc = s->has_failed ? PSEG_OK : eval_measure(&p->c, &s->answers, &err);

    if (!s->has_failed)
        p->c.source->unload(p->c.source, &s->answers.photo);
    answers_clear(&s->answers);
    if (rc != PSEG_OK)
        fail(p, rc, &err);
    pthread_mutex_lock(&p->mu);
    p->n_measured++;
    s->stage = FREE;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mu);
}

/* What is decoded goes first, so that slots come free; then the next image. mu is held. */
static slot *take(pipeline *p)
{
    for (uint32_t k = 0; k < p->n_slots; k++)
        if (p->slots[k].stage == DECODED) {
            p->slots[k].stage = MEASURING;
            return &p->slots[k];
        }
    slot *s = &p->slots[p->next_load % p->n_slots];
    if (p->next_load == p->c.plan->n_images || s->stage != FREE)
        return NULL;
    s->stage = LOADING;
    s->image = s->answers.image = p->next_load++;
    return s;
}

static void *work(void *arg)
{
    pipeline *p = arg;
    slot *s = NULL;

    for (;;) {
        pthread_mutex_lock(&p->mu);
        while (!p->is_over && !(s = take(p)))
            pthread_cond_wait(&p->changed, &p->mu);
        bool is_over = p->is_over;
        bool is_load = !is_over && s->stage == LOADING;
        pthread_mutex_unlock(&p->mu);
        if (is_over)
            return NULL;
        if (is_load)
            load(p, s);
        else
            measure(p, s);
    }
}

/* ---- the device ---- */

/* Waits until the images begin .. end - 1 are loaded; *n of them are usable. */
static pseg_status await(pipeline *p, slot **slots, uint32_t *n, uint32_t begin, uint32_t end,
                         pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *n = 0;
    pthread_mutex_lock(&p->mu);
    for (uint32_t i = begin; i < end && !p->is_over; i++) {
        slot *s = &p->slots[i % p->n_slots];
        while (!p->is_over && !(s->stage == LOADED && s->image == i))
            pthread_cond_wait(&p->changed, &p->mu);
        if (p->is_over)
            break;
        if (s->has_failed)
            s->stage = DECODED;
        else
            slots[(*n)++] = s;
    }
    if (p->is_over) {
        rc = p->rc;
        if (err)
            *err = p->err;
    }
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mu);
    return rc;
}

static pseg_status run_batch(pipeline *p, slot **slots, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t pixels = 3 * (size_t)p->how.width * p->how.height;
    float *chw = pseg_aligned_alloc(n * pixels * sizeof *chw);
    eval_answers **answers = pseg_calloc(n, sizeof(eval_answers *));

    if (!chw || !answers)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a batch of %u images", n);
    for (uint32_t i = 0; i < n; i++) {
        memcpy(chw + i * pixels, slots[i]->chw, pixels * sizeof *chw);
        answers[i] = &slots[i]->answers;
    }
    PSEG_TRY(eval_device_answer(answers, &p->device, chw, n, err));
out:
    pseg_free(chw);
    pseg_free(answers);
    return rc;
}

static pseg_status run_device(pipeline *p, slot **slots, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_eval_options *o = p->c.o;
    uint32_t n_images = p->c.plan->n_images, n = 0;

    for (uint32_t begin = 0; begin < n_images; begin += o->batch) {
        uint32_t end = n_images - begin < o->batch ? n_images : begin + o->batch;
        if (o->is_cancelled && o->is_cancelled(o->ud))
            PSEG_FAIL(PSEG_R_CANCELLED, 0, "stopped after %u of %u images; nothing was written",
                      begin, n_images);
        PSEG_TRY(await(p, slots, &n, begin, end, err));
        if (n > 0)
            PSEG_TRY(run_batch(p, slots, n, err));
        for (uint32_t i = 0; i < n; i++)
            set_stage(p, slots[i], DECODED);
        if (o->progress)
            o->progress(o->ud, end, n_images);
    }
out:
    return rc;
}

/* ---- the whole ---- */

static pseg_status pipeline_init(pipeline *p, pseg_model *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t pixels = 3 * (size_t)p->how.width * p->how.height;

    p->n_slots = 2 * p->c.o->batch + p->c.o->threads;
    p->slots = pseg_calloc(p->n_slots, sizeof *p->slots);
    if (!p->slots)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u images in work", p->n_slots);
    for (uint32_t k = 0; k < p->n_slots; k++)
        if (!(p->slots[k].chw = pseg_aligned_alloc(pixels * sizeof(float))))
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u images in work", p->n_slots);
    PSEG_TRY(eval_device_init(&p->device, &p->c, m, err));
out:
    return rc;
}

static void pipeline_deinit(pipeline *p)
{
    eval_device_deinit(&p->device);
    for (uint32_t k = 0; p->slots && k < p->n_slots; k++) {
        slot *s = &p->slots[k];
        /* Where the run ended early, images may be on their way still. */
        bool is_loaded = s->stage == LOADED || s->stage == DECODED || s->stage == MEASURING;
        if (is_loaded && !s->has_failed)
            p->c.source->unload(p->c.source, &s->answers.photo);
        answers_clear(&s->answers);
        pseg_free(s->chw);
    }
    pseg_free(p->slots);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->mu);
    pthread_mutex_destroy(&p->c.report_mu);
}

/* Starts the threads, works the device, and ends them whatever happened. */
static pseg_status pipeline_run(pipeline *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    unsigned n = 0, wanted = p->c.o->threads;
    pthread_t *threads = pseg_calloc(wanted, sizeof *threads);
    slot **slots = pseg_calloc(p->c.o->batch, sizeof *slots);

    if (!threads || !slots)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u threads", wanted);
    while (n < wanted && pthread_create(&threads[n], NULL, work, p) == 0)
        n++;
    if (n == 0)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no thread could be started");
    rc = run_device(p, slots, err);
    pthread_mutex_lock(&p->mu);
    while (rc == PSEG_OK && p->rc == PSEG_OK && p->n_measured < p->c.plan->n_images)
        pthread_cond_wait(&p->changed, &p->mu);
    if (rc == PSEG_OK && p->rc != PSEG_OK) {
        rc = p->rc;
        if (err)
            *err = p->err;
    }
    p->is_over = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mu);
out:
    for (unsigned t = 0; t < n; t++)
        pthread_join(threads[t], NULL);
    pseg_free(threads);
    pseg_free(slots);
    return rc;
}

static pseg_status run_alloc(pseg_eval_run **out, const pseg_eval_plan *p,
                             const pseg_eval_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_eval_run *r = pseg_calloc(1, sizeof *r);

    *out = r;
    if (r)
        r->outcomes = pseg_calloc(p->n, sizeof *r->outcomes);
    if (r && o->n_sweep)
        r->sweep = pseg_calloc(p->n, o->n_sweep * sizeof *r->sweep);
    if (!r || !r->outcomes || (o->n_sweep && !r->sweep))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the outcomes of %u phrases", p->n);
out:
    return rc;
}

pseg_status pseg_eval_run_new(pseg_eval_run **out, pseg_model *m, pseg_eval_source *s,
                              const pseg_eval_plan *p, const pseg_eval_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_eval_run *r = NULL;
    pipeline line = {.c = {.source = s,
                           .plan = p,
                           .o = o,
                           .info = pseg_model_get_info(m),
                           .report_mu = PTHREAD_MUTEX_INITIALIZER},
                     .mu = PTHREAD_MUTEX_INITIALIZER,
                     .changed = PTHREAD_COND_INITIALIZER,
                     .err = PSEG_ERR_INIT};
    int64_t begin = pseg_clock_mono_us();

    *out = NULL;
    PSEG_REQUIRE(o->threads > 0 && o->batch > 0, "threads and batch");
    PSEG_REQUIRE(o->threshold > 0 && o->threshold < 1, "threshold");
    PSEG_REQUIRE(o->n_sweep <= PSEG_EVAL_MAX_SWEEP, "sweep");
    PSEG_TRY(run_alloc(&r, p, o, err));
    line.c.run = r;
    pseg_eval_preprocess_of(&line.how, line.c.info);
    line.how.may_shrink = o->may_shrink;
    PSEG_TRY(pipeline_init(&line, m, err));
    PSEG_TRY(pipeline_run(&line, err));
    for (uint32_t i = 0; i < p->n; i++)
        r->n_done += r->outcomes[i].is_done;
    if (r->n_done == 0)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "none of %u phrases could be evaluated (what was wrong stands above)", p->n);
    r->total_us = pseg_clock_mono_us() - begin;
    *out = r;
    r = NULL;
out:
    pipeline_deinit(&line);
    pseg_eval_run_free(r);
    return rc;
}

void pseg_eval_run_free(pseg_eval_run *r)
{
    if (!r)
        return;
    pseg_free(r->outcomes);
    pseg_free(r->sweep);
    pseg_free(r);
}

pseg_status pseg_eval_mask_of(pseg_mask **out, pseg_mask **truth, pseg_model *m,
                              pseg_eval_source *s, const pseg_eval_plan *p, uint32_t entry,
                              float threshold, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_model_info *info = pseg_model_get_info(m);
    const pseg_eval_entry *e = &p->entries[entry];
    const char *text = p->texts.text[e->phrase];
    size_t grid = (size_t)info->mask_width * info->mask_height;
    eval_answers a = {.image = e->image, .n = 1};
    bool is_loaded = false;
    pseg_features *features = NULL;
    pseg_prompt *prompt = NULL;
    float iou, *logits = pseg_calloc(grid, sizeof *logits);
    float *chw = pseg_aligned_alloc(3 * sizeof *chw * info->width * info->height);
    pseg_preprocess how;

    *out = *truth = NULL;
    a.logits = pseg_calloc(grid, sizeof *a.logits);
    if (!logits || !chw || !a.logits)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a mask");
    pseg_eval_preprocess_of(&how, info);
    PSEG_TRY(s->load(&a.photo, chw, s, e->image, &how, err));
    is_loaded = true;
    PSEG_TRY(pseg_model_encode_images(&features, m, chw, 1, err));
    PSEG_TRY(pseg_model_encode_texts(&prompt, m, &text, 1, err));
    PSEG_TRY(pseg_model_decode(logits, &iou, m, (const pseg_features *const[]){features},
                               (const pseg_prompt *const[]){prompt}, 1, err));
    pseg_half_from_floats(a.logits, logits, grid);
    PSEG_TRY(s->truth(truth, s, &a.photo, e->target, err));
    PSEG_TRY(eval_make_mask(out, &a, info, 0, threshold, err));
out:
    if (rc != PSEG_OK) {
        pseg_mask_free(*truth);
        *truth = NULL;
    }
    if (is_loaded)
        s->unload(s, &a.photo);
    pseg_features_free(features);
    pseg_prompt_free(prompt);
    pseg_free(logits);
    pseg_free(chw);
    pseg_free(a.logits);
    return rc;
}
