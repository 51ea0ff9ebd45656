/* The best, median and worst cases as pictures for a page: the photo, the mask that was meant, and
 * the one that came, each a small JPEG. */
#ifndef PSEG_EVAL_CASES_H
#define PSEG_EVAL_CASES_H

#include "common/base/buf.h"
#include "worker/eval/analysis.h"

enum { PSEG_EVAL_CASES_OF_A_KIND = 6, PSEG_EVAL_MAX_CASES = 3 * PSEG_EVAL_CASES_OF_A_KIND };

typedef enum pseg_eval_case_kind {
    PSEG_EVAL_CASE_BEST,
    PSEG_EVAL_CASE_MEDIAN,
    PSEG_EVAL_CASE_WORST,
    PSEG_EVAL_N_CASE_KINDS
} pseg_eval_case_kind;

typedef struct pseg_eval_case {
    pseg_eval_case_kind kind;
    uint32_t entry, width, height; /* px, of the pictures */
    pseg_buf photo, truth, answer; /* JPEG */
} pseg_eval_case;

typedef struct pseg_eval_cases {
    pseg_eval_case *all; /* in the order of kinds */
    size_t n;
} pseg_eval_cases;

/* Which entries: at most one an image of each kind, as long as there are images enough. Returns
 * how many. */
size_t pseg_eval_pick_cases(uint32_t entries[PSEG_EVAL_MAX_CASES],
                            pseg_eval_case_kind kinds[PSEG_EVAL_MAX_CASES], const pseg_eval_plan *p,
                            const pseg_eval_analysis *a);

/* m belongs to the calling thread. Pictures have sides of at most max_side px. Caller frees with
 * pseg_eval_cases_free. Errors: PSEG_R_OUT_OF_MEMORY, those of the device; a photo that cannot be
 * read again is left out. */
pseg_status pseg_eval_cases_new(pseg_eval_cases **out, pseg_model *m, pseg_eval_source *s,
                                const pseg_eval_plan *p, const pseg_eval_analysis *a,
                                float threshold, uint32_t max_side, pseg_err *err);
void pseg_eval_cases_free(pseg_eval_cases *c);

#endif
