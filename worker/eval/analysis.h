/* From the outcomes of a run to what a report says: figures with intervals, the controls' beside
 * them, groups, calibration, histograms, the cases to look at.
 *
 *     pseg_eval_analysis *a;
 *     PSEG_TRY(pseg_eval_analysis_new(&a, plan, run, &options, err));
 *     a->figures[PSEG_EVAL_OWN][PSEG_EVAL_MEAN_IOU].low ...
 *     pseg_eval_analysis_free(a);
 */
#ifndef PSEG_EVAL_ANALYSIS_H
#define PSEG_EVAL_ANALYSIS_H

#include "worker/eval/bootstrap.h"
#include "worker/eval/evaluate.h"
#include "worker/eval/figures.h"

/* What is held against the mask that was meant: the model's answer, and the controls. X(name,
 * words)
 */
#define PSEG_EVAL_RUNS(X)                                          \
    X(OWN, "own", "phrase as given")                               \
    X(SHUFFLED, "shuffled", "phrase of another image")             \
    X(SWAPPED, "swapped", "phrase of another object in the image") \
    X(PAINTED, "painted", "everything painted")                    \
    X(TUNED, "tuned", "at the threshold tuned on other images")
typedef enum pseg_eval_which {
#define PSEG_EVAL_WHICH_ENUM(id, name, words) PSEG_EVAL_##id,
    PSEG_EVAL_RUNS(PSEG_EVAL_WHICH_ENUM)
#undef PSEG_EVAL_WHICH_ENUM
        PSEG_EVAL_N_RUNS
} pseg_eval_which;
const char *pseg_eval_which_name(pseg_eval_which w);  /* static */
const char *pseg_eval_which_words(pseg_eval_which w); /* static */

typedef enum pseg_eval_grouping {
    PSEG_EVAL_BY_LENGTH,   /* words of the phrase */
    PSEG_EVAL_BY_KIND,     /* as the data say */
    PSEG_EVAL_BY_RELATION, /* by key words; a phrase may name several */
    PSEG_EVAL_BY_SIZE,     /* COCO's: area below 32^2, 96^2 px */
    PSEG_EVAL_BY_SHARE,    /* area by the photo's */
    PSEG_EVAL_BY_CATEGORY, /* as the data say */
    PSEG_EVAL_N_GROUPINGS
} pseg_eval_grouping;
const char *pseg_eval_grouping_name(pseg_eval_grouping g);  /* "phrase_length" */
const char *pseg_eval_grouping_words(pseg_eval_grouping g); /* "Words of the phrase" */

enum { PSEG_EVAL_MAX_CATEGORIES = 200 }; /* those with fewest phrases are joined in the last */

typedef struct pseg_eval_group {
    pseg_eval_grouping grouping;
    const char *label;                                    /* static or of the plan */
    uint32_t n;                                           /* phrases */
    pseg_eval_interval iou, ciou, p50, shuffled, painted; /* mean IoU; shuffled and painted too */
} pseg_eval_group;

enum { PSEG_EVAL_HISTOGRAM = 20 }; /* of IoU, equally wide; the last holds 1 */

typedef struct pseg_eval_analysis {
    uint32_t n, n_images,
        n_cut; /* phrases evaluated, of so many images, cut to the model's length */
    uint32_t n_of[PSEG_EVAL_N_RUNS];
    pseg_eval_interval figures[PSEG_EVAL_N_RUNS][PSEG_EVAL_N_FIGURES];
    pseg_eval_group *groups; /* n_groups, grouping by grouping */
    size_t n_groups;
    uint32_t histogram[PSEG_EVAL_N_RUNS][PSEG_EVAL_HISTOGRAM];
    struct {
        uint32_t n;
        pseg_eval_interval predicted, iou;
    } bins[PSEG_EVAL_BINS];
    /* Entries of the plan in descending order of IoU; of equal ones the earlier first. */
    uint32_t *ranking; /* [n] */
} pseg_eval_analysis;

/* o->n_scratch is ignored. Caller frees with pseg_eval_analysis_free. Errors:
 * PSEG_R_OUT_OF_MEMORY, PSEG_R_INVALID_ARGUMENT. */
pseg_status pseg_eval_analysis_new(pseg_eval_analysis **out, const pseg_eval_plan *p,
                                   const pseg_eval_run *r, const pseg_eval_bootstrap_options *o,
                                   pseg_err *err);
void pseg_eval_analysis_free(pseg_eval_analysis *a);

/* The IoU of an outcome's own mask. */
double pseg_eval_outcome_iou(const pseg_eval_outcome *o);

#endif
