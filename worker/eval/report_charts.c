#include "worker/eval/report_charts.h"
#include "worker/eval/chart.h"

#include <math.h>
#include <stdio.h>

static const eval_axis unit_iou = {0, 1, 0.2, 1, "IoU"};

/* The least of 1, 2, 5, 10, 20 ... by which `most` is divided in five steps or fewer. */
static double step_for(double most)
{
    double ten = 1e-9;

    while (ten * 50 < most)
        ten *= 10;
    return ten * 5 >= most    ? ten
           : ten * 10 >= most ? ten * 2
           : ten * 25 >= most ? ten * 5
                              : ten * 10;
}

static int digits_for(double step)
{
    int digits = 0;

    while (digits < 6 && fabs(step - round(step)) > 1e-9 * step) {
        step *= 10;
        digits++;
    }
    return digits;
}

static void legend_begin(eval_page *p)
{
    eval_put(p, "<ul class=legend>");
}

static void legend(eval_page *p, const char *kind, const char *what)
{
    eval_put(p, "<li class=\"%s\">%s</li>", kind, what);
}

static void legend_end(eval_page *p)
{
    eval_put(p, "</ul>\n");
}

static double share(const pseg_eval_analysis *a, pseg_eval_which w, int bin)
{
    return a->n_of[w] ? 100.0 * a->histogram[w][bin] / a->n_of[w] : NAN;
}

/* The outline of a histogram, as a line. */
static void draw_steps(eval_chart *c, const pseg_eval_analysis *a, pseg_eval_which w,
                       const char *kind)
{
    double x[2 * PSEG_EVAL_HISTOGRAM], y[2 * PSEG_EVAL_HISTOGRAM];

    for (int b = 0; b < PSEG_EVAL_HISTOGRAM; b++) {
        x[2 * b] = (double)b / PSEG_EVAL_HISTOGRAM;
        x[2 * b + 1] = (double)(b + 1) / PSEG_EVAL_HISTOGRAM;
        y[2 * b] = y[2 * b + 1] = share(a, w, b);
    }
    eval_chart_line(c, x, y, (size_t)2 * PSEG_EVAL_HISTOGRAM, kind);
}

void eval_draw_histogram(eval_page *p, const pseg_eval_analysis *a)
{
    eval_chart c;
    double most = 1;
    char text[400];
    bool has_control = a->n_of[PSEG_EVAL_SHUFFLED] > 0;

    for (int b = 0; b < PSEG_EVAL_HISTOGRAM; b++) {
        most = fmax(most, share(a, PSEG_EVAL_OWN, b));
        if (has_control)
            most = fmax(most, share(a, PSEG_EVAL_SHUFFLED, b));
    }
    double step = step_for(most);
    snprintf(text, sizeof text,
             "Percentage of phrases by IoU in %d bins. Mean %.3f, median %.3f; %.1f percent of "
             "phrases are above 0.5.",
             PSEG_EVAL_HISTOGRAM, a->figures[PSEG_EVAL_OWN][PSEG_EVAL_MEAN_IOU].value,
             a->figures[PSEG_EVAL_OWN][PSEG_EVAL_MEDIAN_IOU].value,
             100 * a->figures[PSEG_EVAL_OWN][PSEG_EVAL_P50].value);
    eval_chart_begin(
        &c, p, "Distribution of IoU", text, unit_iou,
        (eval_axis){0, step * ceil(most / step), step, digits_for(step), "per cent of phrases"},
        720, 300);
    for (int b = 0; b < PSEG_EVAL_HISTOGRAM; b++)
        eval_chart_bar(&c, (double)b / PSEG_EVAL_HISTOGRAM, (double)(b + 1) / PSEG_EVAL_HISTOGRAM,
                       share(a, PSEG_EVAL_OWN, b), "own");
    if (has_control)
        draw_steps(&c, a, PSEG_EVAL_SHUFFLED, "control");
    eval_chart_end(&c);
    legend_begin(p);
    legend(p, "own bar", "phrase as given");
    if (has_control)
        legend(p, "control", "phrase of another image (outline)");
    legend_end(p);
}

static bool has_control(const pseg_eval_group *groups, size_t n)
{
    bool any = false;

    for (size_t i = 0; i < n; i++)
        any = any || isfinite(groups[i].shuffled.value);
    return any;
}

static void controls_legend(eval_page *p, bool is_shuffled)
{
    legend_begin(p);
    legend(p, "own", "phrase as given, with its interval");
    if (is_shuffled)
        legend(p, "control", "phrase of another image");
    legend(p, "painted", "everything painted");
    legend_end(p);
}

void eval_draw_lengths(eval_page *p, const pseg_eval_group *g, size_t n)
{
    eval_chart c;

    eval_chart_begin(&c, p, "IoU by the length of the phrase",
                     "Mean IoU with its interval for each number of words; numbers of phrases "
                     "stand above. The table below has the same figures.",
                     (eval_axis){0, (double)n, 0, 0, "words of the phrase"},
                     (eval_axis){0, 1, 0.2, 1, "mean IoU"}, 720, 300);
    for (size_t i = 0; i < n; i++) {
        double x = (double)i + 0.5;
        eval_chart_whisker(&c, x - 0.14, g[i].shuffled.low, x - 0.14, g[i].shuffled.high,
                           "control");
        eval_chart_dot(&c, x - 0.14, g[i].shuffled.value, "control");
        eval_chart_dot(&c, x + 0.14, g[i].painted.value, "painted");
        eval_chart_whisker(&c, x, g[i].iou.low, x, g[i].iou.high, "own");
        eval_chart_dot(&c, x, g[i].iou.value, "own");
        eval_chart_name_x(&c, x, g[i].label, g[i].n);
    }
    eval_chart_end(&c);
    controls_legend(p, has_control(g, n));
}

void eval_draw_groups(eval_page *p, const pseg_eval_group *g, size_t n, const char *title)
{
    eval_chart c;

    eval_rows_begin(&c, p, title,
                    "Mean IoU of each group with its interval, and of the controls. The table "
                    "below has the same figures.",
                    (eval_axis){0, 1, 0.1, 1, "mean IoU"}, n);
    for (size_t i = 0; i < n; i++) {
        double y = (double)i + 0.5;
        eval_rows_name(&c, i, g[i].label, g[i].n);
        eval_chart_dot(&c, g[i].painted.value, y, "painted");
        eval_chart_whisker(&c, g[i].shuffled.low, y, g[i].shuffled.high, y, "control");
        eval_chart_dot(&c, g[i].shuffled.value, y, "control");
        eval_chart_whisker(&c, g[i].iou.low, y, g[i].iou.high, y, "own");
        eval_chart_dot(&c, g[i].iou.value, y, "own");
    }
    eval_chart_end(&c);
    controls_legend(p, has_control(g, n));
}

void eval_draw_reliability(eval_page *p, const pseg_eval_analysis *a)
{
    static const double ends[2] = {0, 1};
    eval_chart c;
    double x[PSEG_EVAL_BINS], y[PSEG_EVAL_BINS];

    eval_chart_begin(&c, p, "Reliability of the predicted IoU",
                     "For each tenth of predicted IoU, the mean IoU that came, with its interval; "
                     "on the dashed line both are equal. Numbers of phrases stand above.",
                     (eval_axis){0, 1, 0.1, 1, "predicted IoU"},
                     (eval_axis){0, 1, 0.2, 1, "mean IoU"}, 720, 320);
    eval_chart_line(&c, ends, ends, 2, "ideal");
    for (int b = 0; b < PSEG_EVAL_BINS; b++) {
        x[b] = a->bins[b].predicted.value;
        y[b] = a->bins[b].iou.value;
        eval_chart_whisker(&c, x[b], a->bins[b].iou.low, x[b], a->bins[b].iou.high, "own");
        if (a->bins[b].n)
            eval_put(p, "<text class=count x=%.1f y=%.1f text-anchor=middle>%u</text>",
                     eval_chart_x(&c, (b + 0.5) / PSEG_EVAL_BINS), c.top - 8, a->bins[b].n);
    }
    eval_chart_line(&c, x, y, PSEG_EVAL_BINS, "own");
    for (int b = 0; b < PSEG_EVAL_BINS; b++)
        eval_chart_dot(&c, x[b], y[b], "own");
    eval_chart_end(&c);
}

void eval_draw_sweep(eval_page *p, const pseg_eval_sweep *s)
{
    eval_chart c;
    double x[PSEG_EVAL_MAX_SWEEP], y[PSEG_EVAL_MAX_SWEEP];

    eval_chart_begin(&c, p, "Mean IoU by threshold",
                     "Mean IoU on the images that thresholds were tried on, with its interval.",
                     (eval_axis){0, 1, 0.1, 1, "threshold"}, (eval_axis){0, 1, 0.2, 1, "mean IoU"},
                     720, 260);
    for (size_t i = 0; i < s->n; i++) {
        x[i] = (double)s->thresholds[i];
        y[i] = s->iou[i].value;
        eval_chart_whisker(&c, x[i], s->iou[i].low, x[i], s->iou[i].high, "own");
    }
    eval_chart_line(&c, x, y, s->n, "own");
    for (size_t i = 0; i < s->n; i++)
        eval_chart_dot(&c, x[i], y[i], i == s->best ? "other" : "own");
    eval_chart_end(&c);
}

typedef struct curve {
    const double *x, *train, *held; /* [n] */
    size_t n;
} curve;

static void draw_curve(eval_page *p, const curve *k, bool is_iou)
{
    eval_chart c;
    double most = 0, last = k->x[k->n - 1] > k->x[0] ? k->x[k->n - 1] : k->x[0] + 1;

    for (size_t i = 0; i < k->n; i++)
        most = fmax(most, fmax(isfinite(k->train[i]) ? k->train[i] : 0,
                               isfinite(k->held[i]) ? k->held[i] : 0));
    double step = is_iou ? 0.2 : step_for(most > 0 ? most : 1), along = step_for(last - k->x[0]);
    along = along < 1 ? 1 : along;
    double to = k->x[0] + along * ceil((last - k->x[0]) / along);
    eval_chart_begin(&c, p, is_iou ? "IoU while training" : "Loss while training",
                     "By epoch, on what was trained on and on what was held out.",
                     (eval_axis){k->x[0], to, along, 0, "epoch"},
                     (eval_axis){0, is_iou ? 1 : step * ceil(most / step), step,
                                 is_iou ? 1 : digits_for(step), is_iou ? "IoU" : "loss"},
                     720, 280);
    eval_chart_line(&c, k->x, k->train, k->n, "control");
    eval_chart_line(&c, k->x, k->held, k->n, "own");
    for (size_t i = 0; i < k->n; i++) {
        eval_chart_dot(&c, k->x[i], k->train[i], "control");
        eval_chart_dot(&c, k->x[i], k->held[i], "own");
    }
    eval_chart_end(&c);
    legend_begin(p);
    legend(p, "own", "held out");
    legend(p, "control", "trained on");
    legend_end(p);
}

enum { MAX_CURVE = 1000 };

bool eval_draw_curves(eval_page *p, const pseg_eval_curves *c, int which)
{
    double x[MAX_CURVE], train[MAX_CURVE], held[MAX_CURVE];
    /* Of a longer run every so many epochs are drawn. */
    size_t every = (c->n_epochs + MAX_CURVE - 1) / MAX_CURVE, n = 0;
    bool any = false;

    for (size_t i = 0; i < c->n_epochs; i += every, n++) {
        const pseg_eval_curve_point *e = &c->epochs[i];
        x[n] = e->epoch;
        train[n] = which ? e->iou : e->loss;
        held[n] = which ? e->val_iou : e->val_loss;
        any = any || isfinite(train[n]) || isfinite(held[n]);
    }
    if (any)
        draw_curve(p, &(curve){x, train, held, n}, which == 1);
    return any;
}

void eval_draw_difference(eval_page *p, const pseg_eval_compared *o)
{
    eval_chart c;
    double most = 0.01;

    for (int f = 0; f < PSEG_EVAL_N_FIGURES; f++)
        if (isfinite(o->difference[f].low))
            most = fmax(most, fmax(fabs(o->difference[f].low), fabs(o->difference[f].high)));
    double step = step_for(most);
    most = step * ceil(most / step);
    eval_rows_begin(&c, p, "Difference to the other run",
                    "This run less the other, each figure with its paired interval. The table "
                    "below has the same figures.",
                    (eval_axis){-most, most, step, digits_for(step), "this run less the other"},
                    PSEG_EVAL_N_FIGURES);
    const double zero[2] = {0, 0}, down[2] = {0, PSEG_EVAL_N_FIGURES};
    eval_chart_line(&c, zero, down, 2, "ideal");
    for (int f = 0; f < PSEG_EVAL_N_FIGURES; f++) {
        const pseg_eval_interval *d = &o->difference[f];
        eval_put(p, "<text class=name x=%.1f y=%.1f text-anchor=end>%s</text>\n", c.left - 10,
                 eval_chart_y(&c, f + 0.5) + 4, pseg_eval_figure_words((pseg_eval_figure)f));
        eval_chart_whisker(&c, d->low, f + 0.5, d->high, f + 0.5, "own");
        eval_chart_dot(&c, d->value, f + 0.5, "own");
    }
    eval_chart_end(&c);
}
