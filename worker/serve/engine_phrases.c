/* Phrases: those that are at hand, and those that are encoded now. */
#include "worker/serve/engine_internal.h"

#include <stdio.h>

/* The error names a phrase by its number among those that were encoded. */
static void renumber(pseg_err *err, const size_t *places, size_t n)
{
    size_t i;

    if (err && sscanf(err->field, "prompts[%zu].text", &i) == 1 && i < n)
        snprintf(err->field, sizeof err->field, "prompts[%zu].text", places[i]);
}

pseg_status pseg_engine_take_prompts(pseg_prompt **out, size_t *n_made, pseg_engine_unit *d,
                                     pseg_arena *a, const pseg_phrase_list *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t *places = pseg_arena_calloc(a, l->n, sizeof *places);
    const char **missing = pseg_arena_calloc(a, l->n, sizeof *missing);
    pseg_prompt **made = pseg_arena_calloc(a, l->n, sizeof(pseg_prompt *));
    size_t n = 0;

    if (!places || !missing || !made)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu phrases", l->n);
    for (size_t i = 0; i < l->n; i++) {
        out[i] = pseg_phrases_find(&d->phrases, l->owners[i], l->phrases[i]);
        if (!out[i]) {
            missing[n] = l->phrases[i];
            places[n++] = i;
        }
    }
    if (n > 0)
        rc = pseg_model_encode_texts(made, d->model, missing, n, err);
    if (rc != PSEG_OK) {
        renumber(err, places, n);
        goto out;
    }
    for (size_t i = 0; i < n; i++)
        out[places[i]] = made[i];
    *n_made = n;
out:
    return rc;
}

void pseg_engine_give_prompts(pseg_engine_unit *d, pseg_prompt **prompts, const pseg_phrase_list *l)
{
    /* Those that were found first: keeping others may free them. */
    for (size_t i = 0; i < l->n; i++)
        if (prompts[i] && pseg_phrases_find(&d->phrases, l->owners[i], l->phrases[i]) == prompts[i])
            prompts[i] = NULL;
    for (size_t i = 0; i < l->n; i++)
        if (prompts[i])
            pseg_phrases_keep(&d->phrases, l->owners[i], l->phrases[i], prompts[i]);
}
