/* What will be evaluated: every phrase of every image, and for each the phrases that stand in for
 * it as controls. Made before the model sees anything, so that the controls are drawn from all. */
#ifndef PSEG_EVAL_PLAN_H
#define PSEG_EVAL_PLAN_H

#include "worker/eval/source.h"
#include "worker/eval/texts.h"

#define PSEG_EVAL_NONE UINT32_MAX

typedef struct pseg_eval_entry {
    uint32_t image, target, sentence;
    uint32_t phrase, kind, category; /* numbers of texts */
    uint32_t swap;                   /* an entry of the same image, or PSEG_EVAL_NONE */
    uint32_t shuffled;               /* number of the text put in its place, or PSEG_EVAL_NONE */
} pseg_eval_entry;

typedef struct pseg_eval_plan {
    pseg_arena *arena;
    pseg_eval_texts texts;
    const char **names; /* [n_images] */
    uint32_t *first;    /* [n_images + 1]: entries of image i are first[i] .. first[i + 1] - 1 */
    uint32_t n_images;
    pseg_eval_entry *entries; /* [n], in the order of images */
    uint32_t n;
    uint64_t bad_records; /* images whose records could not be read */
} pseg_eval_plan;

/* threads: how many ask the source at a time. is_cancelled(ud), asked by any of them, may stop it:
 * PSEG_R_CANCELLED; NULL: never. Caller frees with pseg_eval_plan_free. */
pseg_status pseg_eval_plan_new(pseg_eval_plan **out, pseg_eval_source *s, unsigned threads,
                               bool (*is_cancelled)(void *ud), void *ud, pseg_err *err);
void pseg_eval_plan_free(pseg_eval_plan *p);

/* Gives each entry the phrase of another: a permutation drawn by seed, in which none keeps a phrase
 * of its own image, a text that means its own target, or a text of its own category. Where the data
 * leave no such exchange, one is drawn that another entry has too; where there is none at all,
 * shuffled is PSEG_EVAL_NONE. */
pseg_status pseg_eval_plan_shuffle(pseg_eval_plan *p, uint64_t seed, pseg_err *err);

#endif
