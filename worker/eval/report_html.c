#include "common/base/version.h"
#include "worker/eval/page.h"
#include "worker/eval/report.h"
#include "worker/eval/report_charts.h"
#include "worker/eval/report_css.h"

#include <math.h>
#include <string.h>

enum { TEXT = 300, NAME = 120 };

static bool is_there(const pseg_eval_report *r, int which)
{
    return r->analysis->n_of[which] > 0;
}

static void head(eval_page *p, const pseg_eval_report *r)
{
    eval_put(p, "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
                "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
                "img-src data:; style-src 'unsafe-inline'\">\n"
                "<meta name=viewport content=\"width=device-width, initial-scale=1\">\n"
                "<meta name=referrer content=no-referrer>\n"
                "<link rel=icon href=\"data:,\">\n"
                "<title>");
    eval_put_text(p, r->title, NAME);
    eval_put(p, "</title>\n<style>\n");
    if (p->rc == PSEG_OK)
        p->rc = pseg_buf_puts(p->out, report_css, p->err);
    eval_put(p, "</style>\n</head>\n<body>\n<header>\n<h1>");
    eval_put_text(p, r->title, NAME);
    eval_put(p, "</h1>\n<p class=soft>%u phrases of %u images \xC2\xB7 ", r->analysis->n,
             r->analysis->n_images);
    eval_put_text(p, r->data, TEXT);
    eval_put(p, " \xC2\xB7 model <code>");
    eval_put_text(p, r->model->name, NAME);
    eval_put(p, "</code> %.12s \xC2\xB7 %s</p>\n<nav aria-label=Sections>", r->model->digest,
             r->date);
    static const char *const ids[][2] = {
        {"figures", "Figures"},      {"distribution", "Distribution"},
        {"length", "Phrase length"}, {"calibration", "Calibration"},
        {"groups", "Groups"},        {"cases", "Cases"},
        {"made", "How it was made"}};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        if (strcmp(ids[i][0], "cases") != 0 || r->cases)
            eval_put(p, "<a href=\"#%s\">%s</a>", ids[i][0], ids[i][1]);
    eval_put(p, "</nav>\n</header>\n<main>\n");
}

static void tile(eval_page *p, const char *kind, const char *name, const pseg_eval_interval *i)
{
    eval_put(p, "<li class=\"%s\"><span class=k>%s</span> ", kind, name);
    eval_put_interval(p, i, 3);
    eval_put(p, "</li>\n");
}

static void tiles(eval_page *p, const pseg_eval_report *r)
{
    const pseg_eval_analysis *a = r->analysis;

    eval_put(p, "<ul class=tiles>\n");
    tile(p, "own", "Mean IoU", &a->figures[PSEG_EVAL_OWN][PSEG_EVAL_MEAN_IOU]);
    tile(p, "own", "cIoU", &a->figures[PSEG_EVAL_OWN][PSEG_EVAL_CIOU]);
    tile(p, "own", "Precision at 0.5", &a->figures[PSEG_EVAL_OWN][PSEG_EVAL_P50]);
    if (is_there(r, PSEG_EVAL_SHUFFLED))
        tile(p, "control", "Control: mean IoU, phrase of another image",
             &a->figures[PSEG_EVAL_SHUFFLED][PSEG_EVAL_MEAN_IOU]);
    eval_put(p,
             "</ul>\n<p class=note>In small figures: %.0f %% confidence intervals, from %u "
             "bootstrap replicates that resample images with all their phrases.</p>\n",
             100 * r->level, r->replicates);
    const pseg_eval_interval *own = &a->figures[PSEG_EVAL_OWN][PSEG_EVAL_MEAN_IOU];
    const pseg_eval_interval *other = &a->figures[PSEG_EVAL_SHUFFLED][PSEG_EVAL_MEAN_IOU];
    if (is_there(r, PSEG_EVAL_SHUFFLED) && isfinite(other->high) && other->high > own->low)
        eval_put(p, "<p class=warn>The intervals of the phrase as given and of a phrase of another "
                    "image overlap: these figures do not show that the model reads its phrase."
                    "</p>\n");
}

static void figures(eval_page *p, const pseg_eval_report *r)
{
    eval_put(p,
             "<h2 id=figures>Figures</h2>\n<p>Each phrase of each image is one example, and IoU "
             "is taken at the photo's own size. Beside the model's figures stand those of the "
             "controls: what it gives when asked with another phrase, held against the mask that "
             "was meant, and what painting everything would give.</p>\n"
             "<div class=scroll><table class=figures>\n<thead><tr><th scope=col>Figure</th>");
    for (int w = 0; w < PSEG_EVAL_N_RUNS; w++)
        if (is_there(r, w) && w != PSEG_EVAL_TUNED)
            eval_put(p, "<th scope=col>%s<br>n = %u</th>",
                     pseg_eval_which_words((pseg_eval_which)w), r->analysis->n_of[w]);
    eval_put(p, "</tr></thead>\n<tbody>\n");
    for (int f = 0; f < PSEG_EVAL_N_FIGURES; f++) {
        eval_put(p, "<tr><th scope=row>%s</th>", pseg_eval_figure_words((pseg_eval_figure)f));
        for (int w = 0; w < PSEG_EVAL_N_RUNS; w++) {
            if (!is_there(r, w) || w == PSEG_EVAL_TUNED)
                continue;
            eval_put(p, "<td>");
            eval_put_interval(p, &r->analysis->figures[w][f], 3);
            eval_put(p, "</td>");
        }
        eval_put(p, "</tr>\n");
    }
    eval_put(p, "</tbody></table></div>\n");
}

static void distribution(eval_page *p, const pseg_eval_report *r)
{
    const pseg_eval_analysis *a = r->analysis;

    eval_put(p, "<h2 id=distribution>Distribution of IoU</h2>\n<figure>\n");
    eval_draw_histogram(p, a);
    eval_put(p, "<details><summary>The numbers</summary><div class=scroll><table><thead><tr>"
                "<th scope=col>IoU</th>");
    for (int w = 0; w < PSEG_EVAL_N_RUNS; w++)
        if (is_there(r, w))
            eval_put(p, "<th scope=col>%s</th>", pseg_eval_which_words((pseg_eval_which)w));
    eval_put(p, "</tr></thead><tbody>\n");
    for (int b = 0; b < PSEG_EVAL_HISTOGRAM; b++) {
        eval_put(p, "<tr><th scope=row>%.2f to %.2f</th>", (double)b / PSEG_EVAL_HISTOGRAM,
                 (double)(b + 1) / PSEG_EVAL_HISTOGRAM);
        for (int w = 0; w < PSEG_EVAL_N_RUNS; w++)
            if (is_there(r, w))
                eval_put(p, "<td>%u</td>", a->histogram[w][b]);
        eval_put(p, "</tr>\n");
    }
    eval_put(p, "</tbody></table></div></details>\n</figure>\n");
}

static void group_table(eval_page *p, const pseg_eval_group *g, size_t n)
{
    eval_put(p, "<details><summary>The numbers</summary><div class=scroll><table><thead><tr>"
                "<th scope=col>Group</th><th scope=col>phrases</th><th scope=col>mean IoU</th>"
                "<th scope=col>cIoU</th><th scope=col>precision at 0.5</th>"
                "<th scope=col>mean IoU, phrase of another image</th>"
                "<th scope=col>mean IoU, everything painted</th></tr></thead><tbody>\n");
    for (size_t i = 0; i < n; i++) {
        const pseg_eval_interval *const all[] = {&g[i].iou, &g[i].ciou, &g[i].p50, &g[i].shuffled,
                                                 &g[i].painted};
        eval_put(p, "<tr><th scope=row>");
        eval_put_text(p, g[i].label, NAME);
        eval_put(p, "</th><td>%u</td>", g[i].n);
        for (int k = 0; k < 5; k++) {
            eval_put(p, "<td>");
            eval_put_interval(p, all[k], 3);
            eval_put(p, "</td>");
        }
        eval_put(p, "</tr>\n");
    }
    eval_put(p, "</tbody></table></div></details>\n");
}

static const pseg_eval_group *groups_of(const pseg_eval_analysis *a, pseg_eval_grouping grouping,
                                        size_t *n)
{
    const pseg_eval_group *first = NULL;

    *n = 0;
    for (size_t i = 0; i < a->n_groups; i++)
        if (a->groups[i].grouping == grouping) {
            first = first ? first : &a->groups[i];
            (*n)++;
        }
    return first;
}

static void lengths(eval_page *p, const pseg_eval_report *r)
{
    size_t n;
    const pseg_eval_group *g = groups_of(r->analysis, PSEG_EVAL_BY_LENGTH, &n);

    eval_put(p, "<h2 id=length>IoU by the length of the phrase</h2>\n<figure>\n");
    eval_draw_lengths(p, g, n);
    group_table(p, g, n);
    eval_put(p, "</figure>\n");
    if (r->analysis->n_cut)
        eval_put(p,
                 "<p class=note>%u phrases have more tokens than the model reads (%u) and were "
                 "cut.</p>\n",
                 r->analysis->n_cut, r->model->max_tokens);
}

static void calibration(eval_page *p, const pseg_eval_report *r)
{
    const pseg_eval_analysis *a = r->analysis;

    eval_put(p, "<h2 id=calibration>Calibration of the predicted IoU</h2>\n<p>The model guesses "
                "the IoU of each of its masks. On the dashed line the guess is right on "
                "average.</p>\n<figure>\n");
    eval_draw_reliability(p, a);
    eval_put(p, "<details><summary>The numbers</summary><div class=scroll><table><thead><tr>"
                "<th scope=col>Predicted IoU</th><th scope=col>phrases</th>"
                "<th scope=col>mean predicted</th><th scope=col>mean IoU</th></tr></thead>"
                "<tbody>\n");
    for (int b = 0; b < PSEG_EVAL_BINS; b++) {
        eval_put(p, "<tr><th scope=row>%.1f to %.1f</th><td>%u</td><td>",
                 (double)b / PSEG_EVAL_BINS, (double)(b + 1) / PSEG_EVAL_BINS, a->bins[b].n);
        eval_put_number(p, a->bins[b].predicted.value, 3);
        eval_put(p, "</td><td>");
        eval_put_interval(p, &a->bins[b].iou, 3);
        eval_put(p, "</td></tr>\n");
    }
    eval_put(p, "</tbody></table></div></details>\n</figure>\n");
}

enum { MAX_ROWS = 40 }; /* of a chart of groups; the table has all */

static void groups(eval_page *p, const pseg_eval_report *r)
{
    static const pseg_eval_grouping order[] = {PSEG_EVAL_BY_KIND, PSEG_EVAL_BY_RELATION,
                                               PSEG_EVAL_BY_SIZE, PSEG_EVAL_BY_SHARE,
                                               PSEG_EVAL_BY_CATEGORY};

    eval_put(p, "<h2 id=groups>Groups of phrases</h2>\n<p>Mean IoU by what is asked for and of "
                "what. A phrase that names several relations counts in each.</p>\n");
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        size_t n;
        const pseg_eval_group *g = groups_of(r->analysis, order[i], &n);
        if (n == 0)
            continue;
        eval_put(p, "<h3>%s</h3>\n<figure>\n", pseg_eval_grouping_words(order[i]));
        eval_draw_groups(p, g, n < MAX_ROWS ? n : MAX_ROWS, pseg_eval_grouping_words(order[i]));
        if (n > MAX_ROWS)
            eval_put(p, "<figcaption>The %d groups with most phrases, of %zu.</figcaption>\n",
                     MAX_ROWS, n);
        group_table(p, g, n);
        eval_put(p, "</figure>\n");
    }
}

static void sweep(eval_page *p, const pseg_eval_report *r)
{
    const pseg_eval_sweep *s = r->sweep;
    const pseg_eval_analysis *a = r->analysis;

    if (!s)
        return;
    eval_put(p,
             "<h2 id=threshold>Threshold, tuned on other images</h2>\n<p>All figures above are "
             "at threshold %.3g. Apart from them, thresholds were tried on %u phrases of %u "
             "other images (",
             (double)r->threshold, s->n_phrases, s->n_images);
    eval_put_text(p, s->data, TEXT);
    eval_put(p,
             "), none of which is among those evaluated. The best there is %.3g; with it the "
             "evaluated images give a mean IoU of ",
             (double)s->thresholds[s->best]);
    eval_put_interval(p, &a->figures[PSEG_EVAL_TUNED][PSEG_EVAL_MEAN_IOU], 3);
    eval_put(p, " and a cIoU of ");
    eval_put_interval(p, &a->figures[PSEG_EVAL_TUNED][PSEG_EVAL_CIOU], 3);
    eval_put(p, ".</p>\n<figure>\n");
    eval_draw_sweep(p, s);
    eval_put(p, "<details><summary>The numbers</summary><table><thead><tr><th scope=col>Threshold"
                "</th><th scope=col>mean IoU</th></tr></thead><tbody>\n");
    for (size_t i = 0; i < s->n; i++) {
        eval_put(p, "<tr><th scope=row>%.3g</th><td>", (double)s->thresholds[i]);
        eval_put_interval(p, &s->iou[i], 3);
        eval_put(p, "</td></tr>\n");
    }
    eval_put(p, "</tbody></table></details>\n</figure>\n");
}

static void curves(eval_page *p, const pseg_eval_report *r)
{
    if (!r->curves)
        return;
    eval_put(p, "<h2 id=curves>Learning curves</h2>\n");
    for (int which = 0; which < 2; which++) {
        eval_put(p, "<figure>\n");
        eval_draw_curves(p, r->curves, which);
        eval_put(p, "</figure>\n");
    }
    eval_put(p, "<details><summary>The numbers</summary><div class=scroll><table><thead><tr>"
                "<th scope=col>Epoch</th><th scope=col>loss</th><th scope=col>loss, held out</th>"
                "<th scope=col>IoU</th><th scope=col>IoU, held out</th></tr></thead><tbody>\n");
    size_t every = (r->curves->n_epochs + 199) / 200;
    for (size_t i = 0; i < r->curves->n_epochs; i += every) {
        const pseg_eval_curve_point *e = &r->curves->epochs[i];
        const double all[] = {e->loss, e->val_loss, e->iou, e->val_iou};
        eval_put(p, "<tr><th scope=row>%.0f</th>", e->epoch);
        for (int k = 0; k < 4; k++) {
            eval_put(p, "<td>");
            eval_put_number(p, all[k], 4);
            eval_put(p, "</td>");
        }
        eval_put(p, "</tr>\n");
    }
    eval_put(p, "</tbody></table></div></details>\n");
}

static void compared(eval_page *p, const pseg_eval_report *r)
{
    const pseg_eval_compared *o = r->other;

    if (!o)
        return;
    eval_put(p, "<h2 id=compared>Compared with another run</h2>\n<p>Against <code>");
    eval_put_text(p, o->name, NAME);
    eval_put(p, "</code> %.12s on the %u phrases of %u images that both have", o->digest, o->n,
             o->n_images);
    if (o->n_only_here || o->n_only_there)
        eval_put(p, " (%u are here alone, %u there)", o->n_only_here, o->n_only_there);
    eval_put(p,
             ". IoU is higher here for %u phrases and lower for %u. Intervals of the difference "
             "are paired: both runs are resampled with the same images.</p>\n<figure>\n",
             o->n_better, o->n_worse);
    eval_draw_difference(p, o);
    eval_put(p, "<div class=scroll><table><thead><tr><th scope=col>Figure</th>"
                "<th scope=col>this run</th><th scope=col>other run</th>"
                "<th scope=col>difference</th></tr></thead><tbody>\n");
    for (int f = 0; f < PSEG_EVAL_N_FIGURES; f++) {
        const pseg_eval_interval *const all[] = {&o->here[f], &o->there[f], &o->difference[f]};
        eval_put(p, "<tr><th scope=row>%s</th>", pseg_eval_figure_words((pseg_eval_figure)f));
        for (int k = 0; k < 3; k++) {
            eval_put(p, "<td>");
            eval_put_interval(p, all[k], 4);
            eval_put(p, "</td>");
        }
        eval_put(p, "</tr>\n");
    }
    eval_put(p, "</tbody></table></div>\n</figure>\n");
}

static void picture(eval_page *p, const pseg_eval_case *c, const pseg_buf *jpeg, const char *what,
                    const char *phrase)
{
    eval_put(p, "<img width=%u height=%u alt=\"%s: ", c->width, c->height, what);
    eval_put_text(p, phrase, NAME);
    eval_put(p, "\" src=\"");
    eval_put_jpeg(p, jpeg->data, jpeg->len);
    eval_put(p, "\">");
}

static void one_case(eval_page *p, const pseg_eval_report *r, const pseg_eval_case *c)
{
    const pseg_eval_entry *e = &r->plan->entries[c->entry];
    const pseg_eval_outcome *o = &r->run->outcomes[c->entry];
    const char *phrase = r->plan->texts.text[e->phrase];

    eval_put(p, "<li><div class=three>");
    picture(p, c, &c->photo, "Photo", phrase);
    picture(p, c, &c->truth, "Mask that was meant", phrase);
    picture(p, c, &c->answer, "Mask that came", phrase);
    eval_put(p, "</div><p><bdi>");
    eval_put_text(p, phrase, 200);
    eval_put(p, "</bdi></p><p class=soft>IoU ");
    eval_put_number(p, pseg_eval_outcome_iou(o), 3);
    eval_put(p, ", predicted ");
    eval_put_number(p, (double)o->own.predicted, 3);
    if (o->shuffled.is_there) {
        pseg_eval_example s = {0, o->truth, o->shuffled.area, o->shuffled.both, 0};
        eval_put(p, ", control ");
        eval_put_number(p, pseg_eval_iou(&s), 3);
    }
    eval_put(p, "<br><bdi>");
    eval_put_text(p, r->plan->names[e->image], 60);
    eval_put(p, "</bdi></p></li>\n");
}

static void cases(eval_page *p, const pseg_eval_report *r)
{
    static const char *const names[] = {"Best", "About the median", "Worst"};

    if (!r->cases || r->cases->n == 0)
        return;
    eval_put(p,
             "<h2 id=cases>Cases</h2>\n<p class=key>Photo, the mask that was meant, and the mask "
             "that came.<br><i class=t></i>meant <i class=r></i>right <i class=w></i>wrongly "
             "painted <i class=m></i>missed</p>\n");
    for (int kind = 0; kind < PSEG_EVAL_N_CASE_KINDS; kind++) {
        eval_put(p, "<h3>%s</h3>\n<ul class=cases>\n", names[kind]);
        for (size_t i = 0; i < r->cases->n; i++)
            if ((int)r->cases->all[i].kind == kind)
                one_case(p, r, &r->cases->all[i]);
        eval_put(p, "</ul>\n");
    }
}

static void left_out(eval_page *p, const pseg_eval_report *r)
{
    uint64_t all = 0;

    for (int f = 0; f < PSEG_EVAL_N_FAULTS; f++)
        all += r->faults[f];
    eval_put(p, "<h2 id=left-out>Left out</h2>\n");
    if (all == 0) {
        eval_put(p, "<p>Nothing: all %u phrases were evaluated.</p>\n", r->plan->n);
        return;
    }
    eval_put(p,
             "<p>%u of %u phrases were evaluated. What was wrong, by reason:</p>\n<table><thead>"
             "<tr><th scope=col>Reason</th><th scope=col>times</th></tr></thead><tbody>\n",
             r->analysis->n, r->plan->n);
    for (int f = 0; f < PSEG_EVAL_N_FAULTS; f++)
        if (r->faults[f])
            eval_put(p, "<tr><th scope=row><code>%s</code></th><td>%llu</td></tr>\n",
                     pseg_eval_fault_name((pseg_eval_fault)f), (unsigned long long)r->faults[f]);
    eval_put(p, "</tbody></table>\n");
}

static void fact(eval_page *p, const char *name, const char *text)
{
    eval_put(p, "<tr><th scope=row>%s</th><td>", name);
    eval_put_text(p, text, 2000);
    eval_put(p, "</td></tr>\n");
}

static void made(eval_page *p, const pseg_eval_report *r)
{
    const pseg_model_info *m = r->model;

    eval_put(p, "<h2 id=made>How it was made</h2>\n<table class=facts><tbody>\n"
                "<tr><th scope=row>Command</th><td><code>");
    eval_put_text(p, r->command, 2000);
    eval_put(p, "</code></td></tr>\n");
    fact(p, "Model", r->model_path);
    fact(p, "Model's digest", m->digest);
    eval_put(p,
             "<tr><th scope=row>Input and masks</th><td>%u x %u px in, %u x %u logits out, "
             "enlarged to the photo's size</td></tr>\n",
             m->width, m->height, m->mask_width, m->mask_height);
    fact(p, "Device", r->device);
    fact(p, "Precision", pseg_precision_name(m->precision));
    fact(p, "Data", r->data);
    fact(p, "Data's digest", r->data_digest);
    eval_put(p,
             "<tr><th scope=row>Threshold</th><td>%.4g</td></tr>\n"
             "<tr><th scope=row>Seed</th><td>%llu</td></tr>\n"
             "<tr><th scope=row>Intervals</th><td>%.4g %%, percentile, %u replicates, resampling "
             "images</td></tr>\n"
             "<tr><th scope=row>Time</th><td>%.1f s, of which the device %.1f s</td></tr>\n"
             "<tr><th scope=row>Version</th><td>pseg %s, report pseg-eval/1</td></tr>\n"
             "</tbody></table>\n",
             (double)r->threshold, (unsigned long long)r->seed, 100 * r->level, r->replicates,
             (double)r->run->total_us / 1e6, (double)r->run->device_us / 1e6, PSEG_VERSION);
    eval_put(p,
             "<h3>What the figures mean</h3>\n<p>IoU: pixels in both masks by pixels in either; "
             "1 if both are empty. cIoU: the sum of the former by the sum of the latter over all "
             "phrases. Precision at t: the part of phrases whose IoU is above t. Mean precision "
             "and recall: of pixels, averaged over phrases. Calibration error: the mean distance "
             "of predicted and true IoU in ten bins of predicted IoU, weighted by phrases. "
             "Phrase of another image: phrases exchanged at random between images, never for one "
             "of the same category where the data name categories. Intervals: quantiles of "
             "figures over replicates that draw as many images as there are, with replacement."
             "</p>\n");
}

pseg_status pseg_eval_report_html(pseg_buf *out, const pseg_eval_report *r, pseg_err *err)
{
    eval_page p = {out, err, PSEG_OK, 0};

    head(&p, r);
    tiles(&p, r);
    figures(&p, r);
    distribution(&p, r);
    lengths(&p, r);
    calibration(&p, r);
    groups(&p, r);
    sweep(&p, r);
    compared(&p, r);
    curves(&p, r);
    cases(&p, r);
    left_out(&p, r);
    made(&p, r);
    eval_put(&p, "</main>\n</body>\n</html>\n");
    return p.rc;
}
