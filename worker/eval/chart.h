/* Charts as SVG within a page: axes with names, marks whose colours the page's style sheet gives,
 * and a title and a description for who cannot see them. Private to worker/eval. */
#ifndef PSEG_EVAL_CHART_H
#define PSEG_EVAL_CHART_H

#include "worker/eval/page.h"

typedef struct eval_axis {
    double from, to;
    double step;      /* between ticks; 0: no ticks, marks are named one by one */
    int digits;       /* behind the point, of ticks */
    const char *name; /* static; NULL: none */
} eval_axis;

typedef struct eval_chart {
    eval_page *page;
    eval_axis x, y;
    double left, top, width, height; /* of the field, in the drawing's units */
} eval_chart;

/* title, description: static, or numbers set in it. size: width and height of the drawing, about
 * px. */
void eval_chart_begin(eval_chart *c, eval_page *p, const char *title, const char *description,
                      eval_axis x, eval_axis y, double width, double height);
void eval_chart_end(eval_chart *c);

/* Charts of rows, one below the other, each with a name on the left, and x as of axis. */
void eval_rows_begin(eval_chart *c, eval_page *p, const char *title, const char *description,
                     eval_axis x, size_t n);
/* The name of row i, of any origin, and how many phrases it has. */
void eval_rows_name(eval_chart *c, size_t i, const char *name, unsigned n);

double eval_chart_x(const eval_chart *c, double x); /* to the drawing's units */
double eval_chart_y(const eval_chart *c, double y);

/* kind: a class of the style sheet: "own", "control", "painted", "other". What is no number is not
 * drawn. */
void eval_chart_bar(eval_chart *c, double x0, double x1, double y, const char *kind);
void eval_chart_dot(eval_chart *c, double x, double y, const char *kind);
/* Between two points; across: the ends have bars of their own. */
void eval_chart_whisker(eval_chart *c, double x0, double y0, double x1, double y1,
                        const char *kind);
/* Through n points, interrupted where one is no number. */
void eval_chart_line(eval_chart *c, const double *x, const double *y, size_t n, const char *kind);
/* A short text of ours below the axis, at x. */
void eval_chart_name_x(eval_chart *c, double x, const char *name, unsigned n);

#endif
