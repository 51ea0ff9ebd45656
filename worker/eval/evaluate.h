/* A model on every phrase of a plan: masks at the photos' own size, counted against what was meant.
 *
 * Each image is decoded once for all its phrases and their controls, on threads that run ahead of
 * the device; each distinct phrase is encoded once; masks are enlarged and counted by the same
 * threads while the device has the next batch. Masks are those that the service gives: float16
 * logits, enlarged by common/mask.
 *
 *     PSEG_TRY(pseg_eval_plan_new(&plan, source, threads, NULL, NULL, err));
 *     PSEG_TRY(pseg_eval_plan_shuffle(plan, seed, err));
 *     PSEG_TRY(pseg_eval_run_new(&run, model, source, plan, &options, err));
 */
#ifndef PSEG_EVAL_EVALUATE_H
#define PSEG_EVAL_EVALUATE_H

#include "worker/eval/plan.h"
#include "worker/model/pseg.h"

enum { PSEG_EVAL_MAX_SWEEP = 64 };

typedef struct pseg_eval_options {
    float threshold;    /* in (0, 1) */
    float tuned;        /* a second threshold to count at, or 0 */
    const float *sweep; /* thresholds whose IoUs are all wanted, n_sweep of them */
    size_t n_sweep;
    unsigned threads;            /* beside the one that calls and has the device; 1 or more */
    bool may_shrink;             /* pseg_preprocess.may_shrink */
    uint32_t batch;              /* images of a pass, 1 or more */
    pseg_eval_report_fn *report; /* or NULL */
    void *report_ud;
    /* Asked and told between batches; NULL: not. */
    bool (*is_cancelled)(void *ud);
    void (*progress)(void *ud, uint32_t images, uint32_t of);
    void *ud;
} pseg_eval_options;

typedef struct pseg_eval_count {
    uint64_t area, both; /* pixels of the mask that came, and of those in the one that was meant */
    float predicted;     /* the model's guess of the IoU */
    bool is_there;
} pseg_eval_count;

typedef struct pseg_eval_outcome {
    bool is_done;           /* false: left out, and counted among the faults */
    bool is_cut;            /* the phrase has more tokens than the model reads */
    uint32_t width, height; /* of the photo, px */
    uint64_t truth;         /* pixels */
    pseg_eval_count own, shuffled, swapped, tuned;
} pseg_eval_outcome;

typedef struct pseg_eval_run {
    pseg_eval_outcome *outcomes;         /* of the plan's entries, in their order */
    float *sweep;                        /* [n entries, n_sweep] IoU; NULL: not asked */
    uint64_t faults[PSEG_EVAL_N_FAULTS]; /* of this run alone: entries, or images for IMAGE_... */
    uint32_t n_done;                     /* entries */
    int64_t total_us, device_us;         /* device_us: in which the device was at work for it */
} pseg_eval_run;

/* Images and phrases that cannot be used are left out, counted and reported; where nothing is left
 * it is PSEG_R_INVALID_ARGUMENT. Errors: those of the device, PSEG_R_OUT_OF_MEMORY,
 * PSEG_R_CANCELLED. m belongs to the calling thread. Caller frees with pseg_eval_run_free. */
pseg_status pseg_eval_run_new(pseg_eval_run **out, pseg_model *m, pseg_eval_source *s,
                              const pseg_eval_plan *p, const pseg_eval_options *o, pseg_err *err);
void pseg_eval_run_free(pseg_eval_run *r);

/* How a model of this kind wants its photos. */
void pseg_eval_preprocess_of(pseg_preprocess *out, const pseg_model_info *info);

/* The mask of one entry again, for a picture; caller frees with pseg_mask_free. */
pseg_status pseg_eval_mask_of(pseg_mask **out, pseg_mask **truth, pseg_model *m,
                              pseg_eval_source *s, const pseg_eval_plan *p, uint32_t entry,
                              float threshold, pseg_err *err);

#endif
