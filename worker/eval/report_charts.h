/* The charts of report.html. Private to worker/eval. */
#ifndef PSEG_EVAL_REPORT_CHARTS_H
#define PSEG_EVAL_REPORT_CHARTS_H

#include "worker/eval/page.h"
#include "worker/eval/report.h"

void eval_draw_histogram(eval_page *p, const pseg_eval_analysis *a);
void eval_draw_lengths(eval_page *p, const pseg_eval_group *groups, size_t n);
void eval_draw_reliability(eval_page *p, const pseg_eval_analysis *a);
/* Mean IoU of each group, with the controls. */
void eval_draw_groups(eval_page *p, const pseg_eval_group *groups, size_t n, const char *title);
void eval_draw_sweep(eval_page *p, const pseg_eval_sweep *s);
/* which: 0 losses, 1 IoU. Draws nothing and returns false where the log has none. */
bool eval_draw_curves(eval_page *p, const pseg_eval_curves *c, int which);
void eval_draw_difference(eval_page *p, const pseg_eval_compared *c);

#endif
