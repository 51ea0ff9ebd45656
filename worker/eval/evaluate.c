#include "worker/eval/evaluate.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/half.h"
#include "worker/eval/measure.h"

#include <stdio.h>
#include <string.h>

/* Prompts that stay on the device for the next image that needs them. */
enum { MAX_PROMPTS = 4096 };

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
    pseg_model *m;
    pseg_preprocess how;
    slot *slots;
    uint32_t n_slots;
    pthread_mutex_t mu;
    pthread_cond_t changed;
    uint32_t next_load, n_measured;
    bool is_over;
    pseg_status rc; /* of whichever thread failed first */
    pseg_err err;
    /* of the device's thread alone */
    pseg_prompt **prompts; /* [plan's texts] */
    bool *is_refused;
    uint32_t *held; /* those with a prompt, n_held of them */
    uint32_t n_held;
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

/* Is this an error of one image, and not of the run? */
static bool is_of_data(const pseg_err *e)
{
    return e->code != PSEG_ENOMEM && e->code != PSEG_EINTERNAL && e->code != PSEG_EDEVICE &&
           e->code != PSEG_ECANCELLED;
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
    if (rc != PSEG_OK && is_of_data(&err))
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

static void forget_prompts(pipeline *p)
{
    for (uint32_t i = 0; i < p->n_held; i++) {
        pseg_prompt_free(p->prompts[p->held[i]]);
        p->prompts[p->held[i]] = NULL;
    }
    p->n_held = 0;
}

/* The distinct phrases of an image, its controls' with them, those refused left out. */
static pseg_status gather(pipeline *p, eval_answers *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_eval_plan *plan = p->c.plan;
    uint32_t first = plan->first[a->image], end = plan->first[a->image + 1];
    size_t most = 2 * (size_t)(end - first);

    a->phrases = pseg_calloc(most, sizeof *a->phrases);
    a->is_cut = pseg_calloc(most, sizeof *a->is_cut);
    a->predicted = pseg_calloc(most, sizeof *a->predicted);
    if (!a->phrases || !a->is_cut || !a->predicted)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the phrases of an image");
    for (uint32_t i = first; i < end; i++) {
        const uint32_t both[2] = {plan->entries[i].phrase, plan->entries[i].shuffled};
        for (int k = 0; k < 2; k++)
            if (both[k] != PSEG_EVAL_NONE && eval_answer_of(a, both[k]) == PSEG_EVAL_NONE)
                a->phrases[a->n++] = both[k];
    }
out:
    return rc;
}

static pseg_status encode_one(pipeline *p, uint32_t phrase, pseg_err *err)
{
    pseg_err own = PSEG_ERR_INIT;
    const char *text = p->c.plan->texts.text[phrase];
    pseg_status rc = pseg_model_encode_texts(&p->prompts[phrase], p->m, &text, 1, &own);

    if (rc == PSEG_OK) {
        p->held[p->n_held++] = phrase;
    } else if (is_of_data(&own)) {
        p->is_refused[phrase] = true;
        eval_fault(&p->c, PSEG_EVAL_FAULT_PHRASE_REFUSED, text, own.msg);
        rc = PSEG_OK;
    } else if (err) {
        *err = own;
    }
    return rc;
}

/* Encodes those of the n phrases that have no prompt; one that the model refuses is left out. */
static pseg_status encode_phrases(pipeline *p, const uint32_t *phrases, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t *fresh = pseg_calloc(n, sizeof *fresh), n_fresh = 0;
    const char **texts = pseg_calloc(n, sizeof *texts);
    pseg_prompt **made = pseg_calloc(n, sizeof(pseg_prompt *));
    pseg_err own = PSEG_ERR_INIT;

    if (!fresh || !texts || !made)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u phrases", n);
    for (uint32_t i = 0; i < n; i++)
        if (!p->prompts[phrases[i]] && !p->is_refused[phrases[i]]) {
            texts[n_fresh] = p->c.plan->texts.text[phrases[i]];
            fresh[n_fresh++] = phrases[i];
        }
    if (n_fresh == 0)
        goto out;
    rc = pseg_model_encode_texts(made, p->m, texts, n_fresh, &own);
    if (rc == PSEG_OK) {
        for (uint32_t i = 0; i < n_fresh; i++) {
            p->prompts[fresh[i]] = made[i];
            p->held[p->n_held++] = fresh[i];
        }
    } else if (is_of_data(&own)) {
        rc = PSEG_OK;
        for (uint32_t i = 0; i < n_fresh; i++)
            PSEG_TRY(encode_one(p, fresh[i], err));
    } else if (err) {
        *err = own;
    }
out:
    pseg_free(fresh);
    pseg_free(texts);
    pseg_free(made);
    return rc;
}

/* The distinct phrases of all images of the batch that have no prompt yet, in one call. */
static pseg_status encode_texts(pipeline *p, slot **slots, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t total = 0, at = 0;
    uint32_t *all = NULL;
    bool *is_seen = pseg_calloc(p->c.plan->texts.n, sizeof *is_seen);

    for (uint32_t i = 0; i < n; i++)
        total += slots[i]->answers.n;
    all = pseg_calloc(total, sizeof *all);
    if (!all || !is_seen)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u phrases", total);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < slots[i]->answers.n; k++) {
            uint32_t phrase = slots[i]->answers.phrases[k];
            if (!is_seen[phrase])
                all[at++] = phrase;
            is_seen[phrase] = true;
        }
    if (p->n_held + at > MAX_PROMPTS)
        forget_prompts(p);
    PSEG_TRY(encode_phrases(p, all, at, err));
out:
    pseg_free(all);
    pseg_free(is_seen);
    return rc;
}

typedef struct pairs {
    const pseg_features **images;
    const pseg_prompt **prompts;
    float *logits, *iou;
    uint32_t n;
} pairs;

static void pairs_free(pairs *p)
{
    pseg_free(p->images);
    pseg_free(p->prompts);
    pseg_free(p->logits);
    pseg_free(p->iou);
}

/* All pairs of the batch; phrases that were refused leave the answers. */
static pseg_status pairs_make(pairs *out, pipeline *p, slot **slots, pseg_features **features,
                              uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t grid = (size_t)p->c.info->mask_width * p->c.info->mask_height, most = 0;

    for (uint32_t i = 0; i < n; i++)
        most += slots[i]->answers.n;
    *out = (pairs){.images = pseg_calloc(most, sizeof(pseg_features *)),
                   .prompts = pseg_calloc(most, sizeof(pseg_prompt *)),
                   .logits = pseg_calloc(most, grid * sizeof(float)),
                   .iou = pseg_calloc(most, sizeof(float))};
    if (!out->images || !out->prompts || !out->logits || !out->iou)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu masks", most);
    for (uint32_t i = 0; i < n; i++) {
        eval_answers *a = &slots[i]->answers;
        uint32_t kept = 0;
        for (uint32_t k = 0; k < a->n; k++) {
            const pseg_prompt *prompt = p->prompts[a->phrases[k]];
            if (!prompt)
                continue;
            a->is_cut[kept] = pseg_prompt_is_cut(prompt);
            a->phrases[kept++] = a->phrases[k];
            out->images[out->n] = features[i];
            out->prompts[out->n++] = prompt;
        }
        a->n = kept;
        a->logits = pseg_calloc(kept, grid * sizeof *a->logits);
        if (!a->logits)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u masks", kept);
    }
out:
    return rc;
}

static pseg_status run_batch(pipeline *p, slot **slots, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t pixels = 3 * (size_t)p->how.width * p->how.height, at = 0;
    size_t grid = (size_t)p->c.info->mask_width * p->c.info->mask_height;
    pseg_features **features = pseg_calloc(n, sizeof(pseg_features *));
    float *chw = pseg_aligned_alloc(n * pixels * sizeof *chw);
    pairs all = {0};
    int64_t begin = pseg_clock_mono_us();

    if (!features || !chw)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a batch of %u images", n);
    for (uint32_t i = 0; i < n; i++) {
        memcpy(chw + i * pixels, slots[i]->chw, pixels * sizeof *chw);
        PSEG_TRY(gather(p, &slots[i]->answers, err));
    }
    PSEG_TRY(pseg_model_encode_images(features, p->m, chw, n, err));
    PSEG_TRY(encode_texts(p, slots, n, err));
    PSEG_TRY(pairs_make(&all, p, slots, features, n, err));
    if (all.n > 0)
        PSEG_TRY(pseg_model_decode(all.logits, all.iou, p->m, all.images, all.prompts, all.n, err));
    for (uint32_t i = 0; i < n; i++) {
        eval_answers *a = &slots[i]->answers;
        pseg_half_from_floats(a->logits, all.logits + at * grid, a->n * grid);
        memcpy(a->predicted, all.iou + at, a->n * sizeof *a->predicted);
        at += a->n;
    }
    p->c.run->device_us += pseg_clock_mono_us() - begin;
out:
    for (uint32_t i = 0; features && i < n; i++)
        pseg_features_free(features[i]);
    pseg_free(features);
    pseg_free(chw);
    pairs_free(&all);
    return rc;
}

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

static pseg_status pipeline_init(pipeline *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t pixels = 3 * (size_t)p->how.width * p->how.height;
    uint32_t n_texts = p->c.plan->texts.n;

    p->n_slots = 2 * p->c.o->batch + p->c.o->threads;
    p->slots = pseg_calloc(p->n_slots, sizeof *p->slots);
    p->prompts = pseg_calloc(n_texts, sizeof(pseg_prompt *));
    p->is_refused = pseg_calloc(n_texts, sizeof *p->is_refused);
    p->held = pseg_calloc(n_texts, sizeof *p->held);
    if (!p->slots || !p->prompts || !p->is_refused || !p->held)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u images in work", p->n_slots);
    for (uint32_t k = 0; k < p->n_slots; k++)
        if (!(p->slots[k].chw = pseg_aligned_alloc(pixels * sizeof(float))))
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u images in work", p->n_slots);
out:
    return rc;
}

static void pipeline_deinit(pipeline *p)
{
    forget_prompts(p);
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
    pseg_free(p->prompts);
    pseg_free(p->is_refused);
    pseg_free(p->held);
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
                     .m = m,
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
    PSEG_TRY(pipeline_init(&line, err));
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
