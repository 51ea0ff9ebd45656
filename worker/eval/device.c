#include "worker/eval/device.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/half.h"

#include <string.h>

/* Prompts that stay on the device for the next image that needs them. */
enum { MAX_PROMPTS = 4096 };

bool eval_is_of_data(const pseg_err *e)
{
    return e->code != PSEG_ENOMEM && e->code != PSEG_EINTERNAL && e->code != PSEG_EDEVICE &&
           e->code != PSEG_ECANCELLED;
}

static void forget_prompts(eval_device *d)
{
    for (uint32_t i = 0; i < d->n_held; i++) {
        pseg_prompt_free(d->prompts[d->held[i]]);
        d->prompts[d->held[i]] = NULL;
    }
    d->n_held = 0;
}

/* The distinct phrases of an image, its controls' with them, those refused left out. */
static pseg_status gather(eval_device *d, eval_answers *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_eval_plan *plan = d->c->plan;
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

static pseg_status encode_one(eval_device *d, uint32_t phrase, pseg_err *err)
{
    pseg_err own = PSEG_ERR_INIT;
    const char *text = d->c->plan->texts.text[phrase];
    pseg_status rc = pseg_model_encode_texts(&d->prompts[phrase], d->m, &text, 1, &own);

    if (rc == PSEG_OK) {
        d->held[d->n_held++] = phrase;
    } else if (eval_is_of_data(&own)) {
        d->is_refused[phrase] = true;
        eval_fault(d->c, PSEG_EVAL_FAULT_PHRASE_REFUSED, text, own.msg);
        rc = PSEG_OK;
    } else if (err) {
        *err = own;
    }
    return rc;
}

/* Encodes those of the n phrases that have no prompt; one that the model refuses is left out. */
static pseg_status encode_phrases(eval_device *d, const uint32_t *phrases, uint32_t n,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t *fresh = pseg_calloc(n, sizeof *fresh), n_fresh = 0;
    const char **texts = pseg_calloc(n, sizeof *texts);
    pseg_prompt **made = pseg_calloc(n, sizeof(pseg_prompt *));
    pseg_err own = PSEG_ERR_INIT;

    if (!fresh || !texts || !made)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u phrases", n);
    for (uint32_t i = 0; i < n; i++)
        if (!d->prompts[phrases[i]] && !d->is_refused[phrases[i]]) {
            texts[n_fresh] = d->c->plan->texts.text[phrases[i]];
            fresh[n_fresh++] = phrases[i];
        }
    if (n_fresh == 0)
        goto out;
    rc = pseg_model_encode_texts(made, d->m, texts, n_fresh, &own);
    if (rc == PSEG_OK) {
        for (uint32_t i = 0; i < n_fresh; i++) {
            d->prompts[fresh[i]] = made[i];
            d->held[d->n_held++] = fresh[i];
        }
    } else if (eval_is_of_data(&own)) {
        rc = PSEG_OK;
        for (uint32_t i = 0; i < n_fresh; i++)
            PSEG_TRY(encode_one(d, fresh[i], err));
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
static pseg_status encode_texts(eval_device *d, eval_answers *const *answers, uint32_t n,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t total = 0, at = 0;
    uint32_t *all = NULL;
    bool *is_seen = pseg_calloc(d->c->plan->texts.n, sizeof *is_seen);

    for (uint32_t i = 0; i < n; i++)
        total += answers[i]->n;
    all = pseg_calloc(total, sizeof *all);
    if (!all || !is_seen)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u phrases", total);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < answers[i]->n; k++) {
            uint32_t phrase = answers[i]->phrases[k];
            if (!is_seen[phrase])
                all[at++] = phrase;
            is_seen[phrase] = true;
        }
    if (d->n_held + at > MAX_PROMPTS)
        forget_prompts(d);
    PSEG_TRY(encode_phrases(d, all, at, err));
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
static pseg_status pairs_make(pairs *out, eval_device *d, eval_answers *const *answers,
                              pseg_features **features, uint32_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t grid = (size_t)d->c->info->mask_width * d->c->info->mask_height, most = 0;

    for (uint32_t i = 0; i < n; i++)
        most += answers[i]->n;
    *out = (pairs){.images = pseg_calloc(most, sizeof(pseg_features *)),
                   .prompts = pseg_calloc(most, sizeof(pseg_prompt *)),
                   .logits = pseg_calloc(most, grid * sizeof(float)),
                   .iou = pseg_calloc(most, sizeof(float))};
    if (!out->images || !out->prompts || !out->logits || !out->iou)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu masks", most);
    for (uint32_t i = 0; i < n; i++) {
        eval_answers *a = answers[i];
        uint32_t kept = 0;
        for (uint32_t k = 0; k < a->n; k++) {
            const pseg_prompt *prompt = d->prompts[a->phrases[k]];
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

pseg_status eval_device_answer(eval_answers **answers, eval_device *d, const float *chw, uint32_t n,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t grid = (size_t)d->c->info->mask_width * d->c->info->mask_height, at = 0;
    pseg_features **features = pseg_calloc(n, sizeof(pseg_features *));
    pairs all = {0};
    int64_t begin = pseg_clock_mono_us();

    if (!features)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a batch of %u images", n);
    for (uint32_t i = 0; i < n; i++)
        PSEG_TRY(gather(d, answers[i], err));
    PSEG_TRY(pseg_model_encode_images(features, d->m, chw, n, err));
    PSEG_TRY(encode_texts(d, answers, n, err));
    PSEG_TRY(pairs_make(&all, d, answers, features, n, err));
    if (all.n > 0)
        PSEG_TRY(pseg_model_decode(all.logits, all.iou, d->m, all.images, all.prompts, all.n, err));
    for (uint32_t i = 0; i < n; i++) {
        eval_answers *a = answers[i];
        pseg_half_from_floats(a->logits, all.logits + at * grid, a->n * grid);
        memcpy(a->predicted, all.iou + at, a->n * sizeof *a->predicted);
        at += a->n;
    }
    d->c->run->device_us += pseg_clock_mono_us() - begin;
out:
    for (uint32_t i = 0; features && i < n; i++)
        pseg_features_free(features[i]);
    pseg_free(features);
    pairs_free(&all);
    return rc;
}

pseg_status eval_device_init(eval_device *d, eval_common *c, pseg_model *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t n = c->plan->texts.n;

    *d = (eval_device){.c = c,
                       .m = m,
                       .prompts = pseg_calloc(n, sizeof(pseg_prompt *)),
                       .is_refused = pseg_calloc(n, sizeof *d->is_refused),
                       .held = pseg_calloc(n, sizeof *d->held)};
    if (!d->prompts || !d->is_refused || !d->held)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u phrases", n);
out:
    return rc;
}

void eval_device_deinit(eval_device *d)
{
    forget_prompts(d);
    pseg_free(d->prompts);
    pseg_free(d->is_refused);
    pseg_free(d->held);
}
