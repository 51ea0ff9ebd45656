#include "common/base/alloc.h"
#include "common/base/utf8.h"
#include "common/base/version.h"
#include "worker/eval/json.h"
#include "worker/eval/report.h"

#include <math.h>

json_t *eval_json_text(const char *s)
{
    json_t *j = json_string(s);
    char *copy = j || !s ? NULL : pseg_strdup(s);

    if (copy) {
        pseg_utf8_repair(copy);
        j = json_string(copy);
        pseg_free(copy);
    }
    return j ? j : json_null();
}

/* A threshold as it was given: a float has more digits than that. */
static double as_given(float x)
{
    return round((double)x * 1e6) / 1e6;
}

json_t *eval_json_number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

json_t *eval_json_interval(const pseg_eval_interval *i)
{
    return json_pack("{s:o, s:o, s:o}", "value", eval_json_number(i->value), "low",
                     eval_json_number(i->low), "high", eval_json_number(i->high));
}

static json_t *figures_json(const pseg_eval_interval *figures)
{
    json_t *j = json_object();

    for (int f = 0; f < PSEG_EVAL_N_FIGURES; f++)
        json_object_set_new(j, pseg_eval_figure_name((pseg_eval_figure)f),
                            eval_json_interval(&figures[f]));
    return j;
}

static json_t *runs_json(const pseg_eval_analysis *a)
{
    json_t *j = json_object();

    for (int w = 0; w < PSEG_EVAL_N_RUNS; w++) {
        if (a->n_of[w] == 0)
            continue;
        json_t *h = json_array();
        for (int b = 0; b < PSEG_EVAL_HISTOGRAM; b++)
            json_array_append_new(h, json_integer(a->histogram[w][b]));
        json_object_set_new(j, pseg_eval_which_name((pseg_eval_which)w),
                            json_pack("{s:s, s:i, s:o, s:o}", "meaning",
                                      pseg_eval_which_words((pseg_eval_which)w), "phrases",
                                      (int)a->n_of[w], "figures", figures_json(a->figures[w]),
                                      "iou_histogram", h));
    }
    return j;
}

static json_t *groups_json(const pseg_eval_analysis *a)
{
    json_t *j = json_object();

    for (size_t i = 0; i < a->n_groups; i++) {
        const pseg_eval_group *g = &a->groups[i];
        const char *name = pseg_eval_grouping_name(g->grouping);
        json_t *list = json_object_get(j, name);
        if (!list) {
            list = json_array();
            json_object_set_new(j, name, list);
        }
        json_array_append_new(list, json_pack("{s:o, s:i, s:o, s:o, s:o, s:o, s:o}", "label",
                                              eval_json_text(g->label), "phrases", (int)g->n,
                                              "mean_iou", eval_json_interval(&g->iou), "ciou",
                                              eval_json_interval(&g->ciou), "precision_at_0.5",
                                              eval_json_interval(&g->p50), "shuffled_mean_iou",
                                              eval_json_interval(&g->shuffled), "painted_mean_iou",
                                              eval_json_interval(&g->painted)));
    }
    return j;
}

static json_t *bins_json(const pseg_eval_analysis *a)
{
    json_t *j = json_array();

    for (int b = 0; b < PSEG_EVAL_BINS; b++)
        json_array_append_new(
            j, json_pack("{s:f, s:f, s:i, s:o, s:o}", "from", (double)b / PSEG_EVAL_BINS, "to",
                         (double)(b + 1) / PSEG_EVAL_BINS, "phrases", (int)a->bins[b].n,
                         "mean_predicted_iou", eval_json_interval(&a->bins[b].predicted),
                         "mean_iou", eval_json_interval(&a->bins[b].iou)));
    return j;
}

static json_t *sweep_json(const pseg_eval_sweep *s)
{
    json_t *list = json_array();

    for (size_t i = 0; i < s->n; i++)
        json_array_append_new(list, json_pack("{s:f, s:o}", "threshold", as_given(s->thresholds[i]),
                                              "mean_iou", eval_json_interval(&s->iou[i])));
    return json_pack("{s:s, s:o, s:i, s:i, s:f, s:o}", "meaning",
                     "thresholds tried on other images than those of the figures; the best of them "
                     "gives the figures of `tuned`",
                     "data", eval_json_text(s->data), "phrases", (int)s->n_phrases, "images",
                     (int)s->n_images, "best_threshold", as_given(s->thresholds[s->best]),
                     "thresholds", list);
}

static json_t *compared_json(const pseg_eval_compared *c)
{
    return json_pack("{s:o, s:o, s:i, s:i, s:i, s:i, s:i, s:i, s:o, s:o, s:o}", "model",
                     eval_json_text(c->name), "model_digest", eval_json_text(c->digest), "phrases",
                     (int)c->n, "images", (int)c->n_images, "only_here", (int)c->n_only_here,
                     "only_there", (int)c->n_only_there, "better", (int)c->n_better, "worse",
                     (int)c->n_worse, "here", figures_json(c->here), "there",
                     figures_json(c->there), "difference", figures_json(c->difference));
}

static json_t *faults_json(const uint64_t *faults)
{
    json_t *j = json_object();

    for (int f = 0; f < PSEG_EVAL_N_FAULTS; f++)
        json_object_set_new(j, pseg_eval_fault_name((pseg_eval_fault)f),
                            json_integer((json_int_t)faults[f]));
    return j;
}

static json_t *cases_json(const pseg_eval_report *r)
{
    static const char *const kinds[] = {"best", "median", "worst"};
    json_t *j = json_array();

    for (size_t i = 0; r->cases && i < r->cases->n; i++) {
        const pseg_eval_case *c = &r->cases->all[i];
        const pseg_eval_entry *e = &r->plan->entries[c->entry];
        json_array_append_new(
            j, json_pack("{s:s, s:o, s:o, s:o}", "kind", kinds[c->kind], "image",
                         eval_json_text(r->plan->names[e->image]), "phrase",
                         eval_json_text(r->plan->texts.text[e->phrase]), "iou",
                         eval_json_number(pseg_eval_outcome_iou(&r->run->outcomes[c->entry]))));
    }
    return j;
}

static json_t *report_json(const pseg_eval_report *r)
{
    const pseg_eval_analysis *a = r->analysis;
    json_t *j = json_pack("{s:s, s:s, s:s, s:o, s:o}", "schema", "pseg-eval/1", "version",
                          PSEG_VERSION, "date", r->date, "title", eval_json_text(r->title),
                          "command", eval_json_text(r->command));

    json_object_set_new(
        j, "model",
        json_pack("{s:o, s:s, s:o, s:i, s:i, s:i, s:i, s:s, s:o}", "name",
                  eval_json_text(r->model->name), "digest", r->model->digest, "path",
                  eval_json_text(r->model_path), "height", (int)r->model->height, "width",
                  (int)r->model->width, "mask_height", (int)r->model->mask_height, "mask_width",
                  (int)r->model->mask_width, "precision", pseg_precision_name(r->model->precision),
                  "device", eval_json_text(r->device)));
    json_object_set_new(j, "data",
                        json_pack("{s:o, s:s, s:i, s:i, s:i, s:i, s:o}", "description",
                                  eval_json_text(r->data), "digest", r->data_digest, "images",
                                  (int)a->n_images, "phrases", (int)a->n, "phrases_cut",
                                  (int)a->n_cut, "phrases_planned", (int)r->plan->n, "left_out",
                                  faults_json(r->faults)));
    json_object_set_new(j, "settings",
                        json_pack("{s:f, s:I, s:I, s:f, s:s}", "threshold", as_given(r->threshold),
                                  "seed", (json_int_t)r->seed, "bootstrap_replicates",
                                  (json_int_t)r->replicates, "confidence", r->level, "interval",
                                  "percentile, resampling images"));
    json_object_set_new(j, "speed",
                        json_pack("{s:f, s:f}", "seconds", (double)r->run->total_us / 1e6,
                                  "device_seconds", (double)r->run->device_us / 1e6));
    json_object_set_new(j, "runs", runs_json(a));
    json_object_set_new(j, "reliability", bins_json(a));
    json_object_set_new(j, "groups", groups_json(a));
    json_object_set_new(j, "cases", cases_json(r));
    if (r->sweep)
        json_object_set_new(j, "threshold_sweep", sweep_json(r->sweep));
    if (r->other)
        json_object_set_new(j, "compared_with", compared_json(r->other));
    if (r->has_records)
        json_object_set_new(j, "records", json_string("records.jsonl"));
    return j;
}

typedef struct sink {
    pseg_buf *out;
    pseg_err *err;
    pseg_status rc;
} sink;

static int to_sink(const char *data, size_t n, void *ud)
{
    sink *s = ud;

    if (s->rc == PSEG_OK)
        s->rc = pseg_buf_append(s->out, data, n, s->err);
    return s->rc == PSEG_OK ? 0 : -1;
}

/* Appends j and frees it. */
static pseg_status dump(pseg_buf *out, json_t *j, size_t flags, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    sink s = {out, err, PSEG_OK};

    int bad = j ? json_dump_callback(j, to_sink, &s, flags | JSON_REAL_PRECISION(9)) : -1;
    PSEG_TRY(s.rc);
    if (bad)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for JSON");
    PSEG_TRY(pseg_buf_puts(out, "\n", err));
out:
    json_decref(j);
    return rc;
}

pseg_status pseg_eval_report_json(pseg_buf *out, const pseg_eval_report *r, pseg_err *err)
{
    return dump(out, report_json(r), JSON_INDENT(2), err);
}

static void add_count(json_t *j, const char *name, const pseg_eval_count *c, json_t *phrase)
{
    if (c->is_there)
        json_object_set_new(j, name,
                            json_pack("{s:o, s:I, s:I, s:o}", "phrase", phrase, "area_px",
                                      (json_int_t)c->area, "both_px", (json_int_t)c->both,
                                      "predicted_iou", eval_json_number((double)c->predicted)));
    else
        json_decref(phrase);
}

static json_t *record_json(const pseg_eval_report *r, uint32_t i)
{
    const pseg_eval_plan *p = r->plan;
    const pseg_eval_entry *e = &p->entries[i];
    const pseg_eval_outcome *o = &r->run->outcomes[i];
    const char *const *text = p->texts.text;
    const char *shuffled = e->shuffled == PSEG_EVAL_NONE ? "" : text[e->shuffled];
    const char *swapped = e->swap == PSEG_EVAL_NONE ? "" : text[p->entries[e->swap].phrase];
    json_t *j =
        json_pack("{s:o, s:I, s:I, s:o, s:o, s:o}", "image", eval_json_text(p->names[e->image]),
                  "target", (json_int_t)e->target, "sentence", (json_int_t)e->sentence, "phrase",
                  eval_json_text(text[e->phrase]), "kind", eval_json_text(text[e->kind]),
                  "category", eval_json_text(text[e->category]));

    json_object_update_new(
        j, json_pack("{s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:b}", "width_px", (json_int_t)o->width,
                     "height_px", (json_int_t)o->height, "truth_px", (json_int_t)o->truth,
                     "area_px", (json_int_t)o->own.area, "both_px", (json_int_t)o->own.both, "iou",
                     eval_json_number(pseg_eval_outcome_iou(o)), "predicted_iou",
                     eval_json_number((double)o->own.predicted), "is_cut", (int)o->is_cut));
    add_count(j, "shuffled", &o->shuffled, eval_json_text(shuffled));
    add_count(j, "swapped", &o->swapped, eval_json_text(swapped));
    return j;
}

pseg_status pseg_eval_report_records(pseg_buf *out, const pseg_eval_report *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (uint32_t i = 0; i < r->plan->n; i++)
        if (r->run->outcomes[i].is_done)
            PSEG_TRY(dump(out, record_json(r, i), JSON_COMPACT, err));
out:
    return rc;
}
