#include "worker/eval/measure.h"
#include "common/base/alloc.h"
#include "common/base/half.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Masks of an image are kept for the phrases that stand in for each other, up to so many bytes. */
#define KEPT_BYTES ((uint64_t)128 << 20)

void eval_fault(eval_common *c, pseg_eval_fault fault, const char *where, const char *what)
{
    pthread_mutex_lock(&c->report_mu);
    c->run->faults[fault]++;
    if (c->o->report)
        c->o->report(c->o->report_ud, fault, where, what);
    pthread_mutex_unlock(&c->report_mu);
}

uint32_t eval_answer_of(const eval_answers *a, uint32_t phrase)
{
    for (uint32_t k = 0; k < a->n; k++)
        if (a->phrases[k] == phrase)
            return k;
    return PSEG_EVAL_NONE;
}

pseg_status eval_make_mask(pseg_mask **out, const eval_answers *a, const pseg_model_info *info,
                           uint32_t k, float threshold, pseg_err *err)
{
    pseg_mask_grid g = {.logits = a->logits + (size_t)k * info->mask_width * info->mask_height,
                        .grid_width = info->mask_width,
                        .grid_height = info->mask_height,
                        .width = a->photo.width,
                        .height = a->photo.height,
                        .x0 = a->photo.rect[0],
                        .y0 = a->photo.rect[1],
                        .x1 = a->photo.rect[2],
                        .y1 = a->photo.rect[3]};

    return pseg_mask_make(out, &g, threshold, err);
}

typedef struct measurer {
    eval_common *c;
    const eval_answers *a;
    pseg_mask **masks; /* [a->n], made when asked for */
    uint32_t n_kept, max_kept;
} measurer;

static void drop_masks(measurer *m)
{
    for (uint32_t k = 0; k < m->a->n; k++) {
        pseg_mask_free(m->masks[k]);
        m->masks[k] = NULL;
    }
    m->n_kept = 0;
}

/* At the run's threshold; borrowed until the next call. */
static pseg_status mask_of(const pseg_mask **out, measurer *m, uint32_t k, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!m->masks[k]) {
        if (m->n_kept == m->max_kept)
            drop_masks(m);
        PSEG_TRY(eval_make_mask(&m->masks[k], m->a, m->c->info, k, m->c->o->threshold, err));
        m->n_kept++;
    }
    *out = m->masks[k];
out:
    return rc;
}

static bool is_finite(const eval_answers *a, const pseg_model_info *info, uint32_t k)
{
    size_t n = (size_t)info->mask_width * info->mask_height;
    const uint16_t *h = a->logits + k * n;
    bool good = isfinite(a->predicted[k]);

    /* All bits of the exponent and one of the fraction: no number. Infinity is a logit that float16
     * cannot hold, and inside or outside for sure. */
    for (size_t i = 0; good && i < n; i++)
        good = (h[i] & 0x7FFF) <= 0x7C00;
    return good;
}

static void count(pseg_eval_count *out, const pseg_mask *m, const pseg_mask *truth, float predicted)
{
    *out = (pseg_eval_count){.area = m->area,
                             .both = pseg_mask_overlap(m, truth),
                             .predicted = isfinite(predicted) ? predicted : 0,
                             .is_there = true};
}

static pseg_status measure_sweep(measurer *m, uint32_t entry, uint32_t k, const pseg_mask *truth,
                                 pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_eval_options *o = m->c->o;
    pseg_mask *mask = NULL;

    for (size_t t = 0; t < o->n_sweep; t++) {
        PSEG_TRY(eval_make_mask(&mask, m->a, m->c->info, k, o->sweep[t], err));
        m->c->run->sweep[entry * o->n_sweep + t] = (float)pseg_mask_iou(mask, truth);
        pseg_mask_free(mask);
        mask = NULL;
    }
out:
    return rc;
}

static pseg_status measure_entry(measurer *m, uint32_t i, const pseg_mask *truth, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_eval_plan *p = m->c->plan;
    const pseg_eval_entry *e = &p->entries[i];
    pseg_eval_outcome *to = &m->c->run->outcomes[i];
    const eval_answers *a = m->a;
    uint32_t k = eval_answer_of(a, e->phrase), other = PSEG_EVAL_NONE;
    const pseg_mask *mask;
    pseg_mask *tuned = NULL;

    if (k == PSEG_EVAL_NONE)
        goto out; /* refused, which was told when it was */
    if (!is_finite(a, m->c->info, k))
        eval_fault(m->c, PSEG_EVAL_FAULT_NOT_FINITE, p->names[e->image], p->texts.text[e->phrase]);
    PSEG_TRY(mask_of(&mask, m, k, err));
    count(&to->own, mask, truth, a->predicted[k]);
    if (e->swap != PSEG_EVAL_NONE)
        other = eval_answer_of(a, p->entries[e->swap].phrase);
    if (other != PSEG_EVAL_NONE && other != k) {
        PSEG_TRY(mask_of(&mask, m, other, err));
        count(&to->swapped, mask, truth, a->predicted[other]);
    }
    other = e->shuffled == PSEG_EVAL_NONE ? PSEG_EVAL_NONE : eval_answer_of(a, e->shuffled);
    if (other != PSEG_EVAL_NONE) {
        PSEG_TRY(mask_of(&mask, m, other, err));
        count(&to->shuffled, mask, truth, a->predicted[other]);
    }
    if (m->c->o->tuned > 0) {
        PSEG_TRY(eval_make_mask(&tuned, a, m->c->info, k, m->c->o->tuned, err));
        count(&to->tuned, tuned, truth, a->predicted[k]);
    }
    PSEG_TRY(measure_sweep(m, i, k, truth, err));
    to->width = a->photo.width;
    to->height = a->photo.height;
    to->truth = truth->area;
    to->is_cut = a->is_cut[k];
    to->is_done = true;
out:
    pseg_mask_free(tuned);
    return rc;
}

/* *out is NULL, and rc 0, for a mask that cannot be used. */
static pseg_status truth_of(pseg_mask **out, eval_common *c, const eval_answers *a, uint32_t target,
                            pseg_err *err)
{
    pseg_err own = PSEG_ERR_INIT;
    pseg_mask *m = NULL;
    const char *where = c->plan->names[a->image];
    char what[160];
    pseg_status rc = c->source->truth(&m, c->source, &a->photo, target, &own);

    *out = NULL;
    if (rc == PSEG_ENOMEM || rc == PSEG_EINTERNAL) {
        if (err)
            *err = own;
        return rc;
    }
    if (rc != PSEG_OK) {
        eval_fault(c, PSEG_EVAL_FAULT_MASK_BROKEN, where, own.msg);
        return PSEG_OK;
    }
    snprintf(what, sizeof what, "mask %u is %u x %u px, its image %u x %u", target, m->width,
             m->height, a->photo.width, a->photo.height);
    if (m->width != a->photo.width || m->height != a->photo.height) {
        eval_fault(c, PSEG_EVAL_FAULT_MASK_SIZE, where, what);
    } else if (m->area == 0) {
        snprintf(what, sizeof what, "mask %u has no pixel", target);
        eval_fault(c, PSEG_EVAL_FAULT_MASK_EMPTY, where, what);
    } else {
        *out = m;
        m = NULL;
    }
    pseg_mask_free(m);
    return PSEG_OK;
}

pseg_status eval_measure(eval_common *c, const eval_answers *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_eval_plan *p = c->plan;
    uint32_t first = p->first[a->image], end = p->first[a->image + 1];
    uint64_t pixels = (uint64_t)a->photo.width * a->photo.height;
    measurer m = {.c = c, .a = a, .max_kept = (uint32_t)(KEPT_BYTES / (pixels + 1)) + 1};
    bool *is_measured = pseg_calloc(end - first, sizeof *is_measured);
    pseg_mask *truth = NULL;

    m.masks = pseg_calloc(a->n, sizeof *m.masks);
    if (!m.masks || !is_measured)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the masks of an image");
    for (uint32_t i = first; i < end; i++) {
        if (is_measured[i - first])
            continue;
        uint32_t target = p->entries[i].target;
        PSEG_TRY(truth_of(&truth, c, a, target, err));
        for (uint32_t k = i; k < end; k++) {
            if (p->entries[k].target != target)
                continue;
            is_measured[k - first] = true;
            if (truth)
                PSEG_TRY(measure_entry(&m, k, truth, err));
        }
        pseg_mask_free(truth);
        truth = NULL;
    }
out:
    pseg_mask_free(truth);
    if (m.masks)
        drop_masks(&m);
    pseg_free(m.masks);
    pseg_free(is_measured);
    return rc;
}
