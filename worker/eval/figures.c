#include "worker/eval/figures.h"
#include "common/base/alloc.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct pseg_eval_set {
    pseg_eval_example *e; /* [n] */
    double *iou;          /* [n] */
    uint32_t *by_iou;     /* [n]: examples in ascending order of IoU */
    uint32_t *by_guess;   /* of predicted IoU; NULL if some have none */
    size_t n;
    uint32_t n_images;
};

const char *pseg_eval_figure_name(pseg_eval_figure f)
{
    static const char *const names[] = {
#define NAME(id, name, words) name,
        PSEG_EVAL_FIGURES(NAME)
#undef NAME
    };
    return names[f];
}

const char *pseg_eval_figure_words(pseg_eval_figure f)
{
    static const char *const all[] = {
#define WORDS(id, name, words) words,
        PSEG_EVAL_FIGURES(WORDS)
#undef WORDS
    };
    return all[f];
}

static double quotient(uint64_t a, uint64_t b, const pseg_eval_example *e)
{
    return b ? (double)a / (double)b : e->truth == 0 && e->area == 0;
}

double pseg_eval_iou(const pseg_eval_example *e)
{
    return quotient(e->both, e->truth + e->area - e->both, e);
}

double pseg_eval_precision(const pseg_eval_example *e)
{
    return quotient(e->both, e->area, e);
}

double pseg_eval_recall(const pseg_eval_example *e)
{
    return quotient(e->both, e->truth, e);
}

int pseg_eval_bin(double predicted)
{
    int b = (int)floor(predicted * PSEG_EVAL_BINS);

    return b < 0 ? 0 : b >= PSEG_EVAL_BINS ? PSEG_EVAL_BINS - 1 : b;
}

typedef struct keyed {
    double key;
    uint32_t at;
} keyed;

static int compare_keyed(const void *a, const void *b)
{
    const keyed *x = a, *y = b;

    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

static void sort_by(uint32_t *order, keyed *room, size_t n)
{
    qsort(room, n, sizeof *room, compare_keyed);
    for (size_t i = 0; i < n; i++)
        order[i] = room[i].at;
}

static pseg_status check(const pseg_eval_example *e, size_t i, uint32_t n_images, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (e->image >= n_images)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "example %zu is of image %u, of %u", i, e->image,
                  n_images);
    if (e->both > e->truth || e->both > e->area)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "example %zu has %llu pixels in both masks, of %llu and %llu", i,
                  (unsigned long long)e->both, (unsigned long long)e->truth,
                  (unsigned long long)e->area);
out:
    return rc;
}

pseg_status pseg_eval_set_new(pseg_eval_set **out, const pseg_eval_example *examples, size_t n,
                              uint32_t n_images, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_eval_set *s = pseg_calloc(1, sizeof *s);
    keyed *room = pseg_calloc(n, sizeof *room);
    bool all_guess = n > 0;

    *out = NULL;
    if (!s || !room)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu examples", n);
    s->n = n;
    s->n_images = n_images;
    s->e = pseg_calloc(n, sizeof *s->e);
    s->iou = pseg_calloc(n, sizeof *s->iou);
    s->by_iou = pseg_calloc(n, sizeof *s->by_iou);
    s->by_guess = pseg_calloc(n, sizeof *s->by_guess);
    if (!s->e || !s->iou || !s->by_iou || !s->by_guess)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu examples", n);
    for (size_t i = 0; i < n; i++) {
        PSEG_TRY(check(&examples[i], i, n_images, err));
        s->e[i] = examples[i];
        s->iou[i] = pseg_eval_iou(&examples[i]);
        room[i] = (keyed){s->iou[i], (uint32_t)i};
        all_guess = all_guess && isfinite(examples[i].predicted);
    }
    sort_by(s->by_iou, room, n);
    for (size_t i = 0; i < n; i++)
        room[i] = (keyed){examples[i].predicted, (uint32_t)i};
    if (all_guess) {
        sort_by(s->by_guess, room, n);
    } else {
        pseg_free(s->by_guess);
        s->by_guess = NULL;
    }
    *out = s;
    s = NULL;
out:
    pseg_free(room);
    pseg_eval_set_free(s);
    return rc;
}

void pseg_eval_set_free(pseg_eval_set *s)
{
    if (!s)
        return;
    pseg_free(s->e);
    pseg_free(s->iou);
    pseg_free(s->by_iou);
    pseg_free(s->by_guess);
    pseg_free(s);
}

size_t pseg_eval_set_size(const pseg_eval_set *s)
{
    return s->n;
}

const double *pseg_eval_set_ious(const pseg_eval_set *s)
{
    return s->iou;
}

size_t pseg_eval_set_scratch(const pseg_eval_set *s)
{
    return 2 * s->n;
}

static uint32_t weight_of(const pseg_eval_set *s, const uint32_t *weight, size_t i)
{
    return weight ? weight[s->e[i].image] : 1;
}

/* Of `total` examples, each counted by its weight: the one with place `place`. */
static double at_place(const pseg_eval_set *s, const uint32_t *weight, uint64_t place)
{
    uint64_t passed = 0;

    for (size_t i = 0; i < s->n; i++) {
        passed += weight_of(s, weight, s->by_iou[i]);
        if (passed > place)
            return s->iou[s->by_iou[i]];
    }
    return NAN;
}

/* Mean ranks from 1, with equal keys sharing theirs. */
static void rank(double *out, const pseg_eval_set *s, const uint32_t *order, const uint32_t *weight,
                 bool is_guess)
{
    uint64_t passed = 0;

    for (size_t i = 0, end; i < s->n; i = end) {
        double key = is_guess ? s->e[order[i]].predicted : s->iou[order[i]];
        uint64_t same = 0;
        for (end = i; end < s->n; end++) {
            double other = is_guess ? s->e[order[end]].predicted : s->iou[order[end]];
            if (other != key)
                break;
            same += weight_of(s, weight, order[end]);
        }
        for (size_t k = i; k < end; k++)
            out[order[k]] = (double)passed + ((double)same + 1) / 2;
        passed += same;
    }
}

/* In two passes, so that numbers close to each other lose nothing. */
static double pearson(const pseg_eval_set *s, const double *x, const double *y,
                      const uint32_t *weight)
{
    double n = 0, mx = 0, my = 0, xx = 0, yy = 0, xy = 0;

    for (size_t i = 0; i < s->n; i++) {
        double w = weight_of(s, weight, i);
        n += w;
        mx += w * x[i];
        my += w * y[i];
    }
    mx /= n;
    my /= n;
    for (size_t i = 0; i < s->n; i++) {
        double w = weight_of(s, weight, i), a = x[i] - mx, b = y[i] - my;
        xx += w * a * a;
        yy += w * b * b;
        xy += w * a * b;
    }
    /* Equal numbers whose mean was rounded differ from it by that rounding. */
    double least = 1e-26 * n;
    return xx > least * (1 + mx * mx) && yy > least * (1 + my * my) ? xy / sqrt(xx * yy) : NAN;
}

void pseg_eval_reliability_of(pseg_eval_reliability out[PSEG_EVAL_BINS], const pseg_eval_set *s,
                              const uint32_t *weight)
{
    memset(out, 0, PSEG_EVAL_BINS * sizeof *out);
    for (size_t i = 0; i < s->n && s->by_guess; i++) {
        double w = weight_of(s, weight, i);
        pseg_eval_reliability *r = &out[pseg_eval_bin(s->e[i].predicted)];
        r->n += w;
        r->predicted += w * s->e[i].predicted;
        r->iou += w * s->iou[i];
    }
    for (int b = 0; b < PSEG_EVAL_BINS; b++) {
        out[b].predicted /= out[b].n;
        out[b].iou /= out[b].n;
    }
}

static void calibration(double out[PSEG_EVAL_N_FIGURES], const pseg_eval_set *s,
                        const uint32_t *weight, double n, double *scratch)
{
    pseg_eval_reliability bins[PSEG_EVAL_BINS];
    double sum = 0, off = 0, ece = 0, *a = scratch, *b = scratch + s->n;

    for (size_t i = 0; i < s->n; i++) {
        double w = weight_of(s, weight, i);
        sum += w * s->e[i].predicted;
        off += w * fabs(s->e[i].predicted - s->iou[i]);
        a[i] = s->e[i].predicted;
    }
    pseg_eval_reliability_of(bins, s, weight);
    for (int k = 0; k < PSEG_EVAL_BINS; k++)
        if (bins[k].n > 0)
            ece += bins[k].n * fabs(bins[k].predicted - bins[k].iou);
    out[PSEG_EVAL_PREDICTED] = sum / n;
    out[PSEG_EVAL_MAE] = off / n;
    out[PSEG_EVAL_ECE] = ece / n;
    out[PSEG_EVAL_PEARSON] = pearson(s, a, s->iou, weight);
    rank(a, s, s->by_guess, weight, true);
    rank(b, s, s->by_iou, weight, false);
    out[PSEG_EVAL_SPEARMAN] = pearson(s, a, b, weight);
}

void pseg_eval_figures(double out[PSEG_EVAL_N_FIGURES], const pseg_eval_set *s,
                       const uint32_t *weight, double *scratch)
{
    double iou = 0, precision = 0, recall = 0, both = 0, either = 0;
    uint64_t n = 0, above[5] = {0};

    for (int f = 0; f < PSEG_EVAL_N_FIGURES; f++)
        out[f] = NAN;
    for (size_t i = 0; i < s->n; i++) {
        const pseg_eval_example *e = &s->e[i];
        uint32_t w = weight_of(s, weight, i);
        if (w == 0)
            continue;
        n += w;
        iou += w * s->iou[i];
        precision += w * pseg_eval_precision(e);
        recall += w * pseg_eval_recall(e);
        both += (double)w * (double)e->both;
        either += (double)w * (double)(e->truth + e->area - e->both);
        for (int t = 0; t < 5; t++)
            above[t] += s->iou[i] > (5 + t) / 10.0 ? w : 0;
    }
    if (n == 0)
        return;
    out[PSEG_EVAL_MEAN_IOU] = iou / (double)n;
    out[PSEG_EVAL_MEDIAN_IOU] = (at_place(s, weight, (n - 1) / 2) + at_place(s, weight, n / 2)) / 2;
    out[PSEG_EVAL_CIOU] = either > 0 ? both / either : 1;
    for (int t = 0; t < 5; t++)
        out[PSEG_EVAL_P50 + t] = (double)above[t] / (double)n;
    out[PSEG_EVAL_PRECISION] = precision / (double)n;
    out[PSEG_EVAL_RECALL] = recall / (double)n;
    if (s->by_guess)
        calibration(out, s, weight, (double)n, scratch);
}
