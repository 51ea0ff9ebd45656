#include "worker/eval/sweep.h"
#include "common/base/alloc.h"

#include <math.h>
#include <string.h>

typedef struct sums {
    double *iou; /* [n_images, n] */
    double *n_phrases;
    uint32_t n_images;
    size_t n;
} sums;

static void statistics(void *ud, double *out, const uint32_t *weight, double *scratch)
{
    const sums *s = ud;
    double phrases = 0;

    (void)scratch;
    memset(out, 0, s->n * sizeof *out);
    for (uint32_t i = 0; i < s->n_images; i++) {
        double w = weight ? weight[i] : 1;
        phrases += w * s->n_phrases[i];
        for (size_t t = 0; t < s->n; t++)
            out[t] += w * s->iou[i * s->n + t];
    }
    for (size_t t = 0; t < s->n; t++)
        out[t] /= phrases;
}

pseg_status pseg_eval_sweep_intervals(pseg_eval_interval *iou, size_t *best,
                                      const pseg_eval_plan *p, const pseg_eval_run *r,
                                      const pseg_eval_options *o,
                                      const pseg_eval_bootstrap_options *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    sums s = {.iou = pseg_calloc(p->n_images, o->n_sweep * sizeof(double)),
              .n_phrases = pseg_calloc(p->n_images, sizeof(double)),
              .n = o->n_sweep};
    uint32_t image = PSEG_EVAL_NONE;

    *best = 0;
    if (!s.iou || !s.n_phrases)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu thresholds", o->n_sweep);
    for (uint32_t i = 0; i < p->n; i++) {
        if (!r->outcomes[i].is_done)
            continue;
        s.n_images += p->entries[i].image != image;
        image = p->entries[i].image;
        s.n_phrases[s.n_images - 1]++;
        for (size_t t = 0; t < s.n; t++)
            s.iou[(s.n_images - 1) * s.n + t] += (double)r->sweep[i * s.n + t];
    }
    PSEG_TRY(pseg_eval_bootstrap(iou, s.n, s.n_images, statistics, &s, b, err));
    for (size_t t = 1; t < s.n; t++) {
        double d = iou[t].value - iou[*best].value;
        if (d > 0 || (d == 0 && fabsf(o->sweep[t] - 0.5F) < fabsf(o->sweep[*best] - 0.5F)))
            *best = t;
    }
out:
    pseg_free(s.iou);
    pseg_free(s.n_phrases);
    return rc;
}

pseg_status pseg_eval_check_apart(const pseg_eval_plan *tuned, const pseg_eval_plan *scored,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_arena *arena = pseg_arena_new((size_t)1 << 36);
    pseg_eval_texts names;
    uint32_t number, n = 0, first = PSEG_EVAL_NONE;

    pseg_eval_texts_init(&names, arena);
    if (!arena)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the names of images");
    for (uint32_t i = 0; i < scored->n_images; i++)
        PSEG_TRY(pseg_eval_texts_put(&number, &names, scored->names[i], err));
    uint32_t known = names.n;
    for (uint32_t i = 0; i < tuned->n_images; i++) {
        PSEG_TRY(pseg_eval_texts_put(&number, &names, tuned->names[i], err));
        if (number < known && n++ == 0)
            first = i;
    }
    if (n > 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%u images to tune the threshold on are among those to be scored (%s is one): "
                  "give --tune others",
                  n, tuned->names[first]);
out:
    pseg_eval_texts_deinit(&names);
    pseg_arena_free(arena);
    return rc;
}
