/* What pseg-eval tells on its two streams. */
#ifndef PSEG_APPS_EVAL_H
#define PSEG_APPS_EVAL_H

#include "worker/data/dataset.h"
#include "worker/eval/report.h"

/* Faults, named one by one on standard error up to a few of each reason, and counted. */
typedef struct eval_faults {
    unsigned shown[PSEG_EVAL_N_FAULTS + PSEG_DATA_N_FAULTS];
} eval_faults;
void eval_show_fault(void *ud, pseg_eval_fault fault, const char *where, const char *what);
void eval_show_data_fault(void *ud, pseg_data_fault fault, const char *where, const char *what);

/* A line that is written over, where standard error is a terminal; else one every ten seconds. */
typedef struct eval_progress {
    bool is_quiet, is_shown;
    int64_t start_ms, shown_ms;
    const char *what;
} eval_progress;
void eval_progress_begin(eval_progress *p, const char *what);
void eval_progress_show(void *ud, uint32_t images, uint32_t of);
void eval_progress_end(eval_progress *p);

/* The headline as a table for people. */
void eval_print_summary(const pseg_eval_report *r, const char *folder);

#endif
