/* What an evaluation writes: report.json, report.html, and one JSON object a phrase in
 * records.jsonl. docs/evaluation.md describes all three.
 *
 * The page stands alone: no script, no network, no file beside it, and a policy that forbids all
 * of them. Whatever comes from data (phrases, names, messages) is written as text: HTML's special
 * characters are escaped, control characters and those that turn the direction of text become
 * visible, and long texts are cut. */
#ifndef PSEG_EVAL_REPORT_H
#define PSEG_EVAL_REPORT_H

#include "common/base/buf.h"
#include "worker/eval/analysis.h"
#include "worker/eval/cases.h"
#include "worker/eval/compare.h"
#include "worker/eval/curves.h"

typedef struct pseg_eval_sweep {
    const float *thresholds;
    const pseg_eval_interval *iou; /* mean IoU at each, on the images it was tuned on */
    size_t n, best;
    const char *data; /* which images those were */
    uint32_t n_phrases, n_images;
} pseg_eval_sweep;

typedef struct pseg_eval_report {
    const pseg_eval_plan *plan;
    const pseg_eval_run *run;
    const pseg_eval_analysis *analysis;
    const pseg_model_info *model;
    const char *title, *model_path, *device, *data, *data_digest, *command, *date;
    float threshold;
    uint64_t seed;
    uint32_t replicates;
    double level;
    const uint64_t *faults;          /* [PSEG_EVAL_N_FAULTS], of opening and of the run */
    const pseg_eval_sweep *sweep;    /* or NULL */
    const pseg_eval_cases *cases;    /* or NULL */
    const pseg_eval_curves *curves;  /* or NULL */
    const pseg_eval_compared *other; /* or NULL */
    bool has_records;                /* records.jsonl is written too */
} pseg_eval_report;

/* Each appends to out. Errors: PSEG_R_OUT_OF_MEMORY, PSEG_R_REQUEST_TOO_LARGE (past out's maximum).
 */
pseg_status pseg_eval_report_json(pseg_buf *out, const pseg_eval_report *r, pseg_err *err);
pseg_status pseg_eval_report_html(pseg_buf *out, const pseg_eval_report *r, pseg_err *err);
pseg_status pseg_eval_report_records(pseg_buf *out, const pseg_eval_report *r, pseg_err *err);

#endif
