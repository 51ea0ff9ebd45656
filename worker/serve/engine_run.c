#include "worker/serve/engine_internal.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <string.h>

static pseg_status allocate_results(pseg_engine *e, pseg_work *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    w->logits = pseg_calloc(w->n_prompts * pseg_engine_grid(e), sizeof *w->logits);
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
    size_t n = pseg_engine_grid(e);

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
