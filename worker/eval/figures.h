/* Figures of an evaluation: from pixel counts of masks to IoU, precision, calibration.
 *
 * It knows neither models nor images. One example is one phrase of one image: how many pixels the
 * mask that was meant has, how many the one that came, how many both. The same code gives a figure
 * and its bootstrap replicates: a replicate is the figure with each image counted as often as it
 * was drawn.
 *
 *     pseg_eval_set *s;
 *     PSEG_TRY(pseg_eval_set_new(&s, examples, n, n_images, err));
 *     pseg_eval_figures(out, s, NULL, scratch);                 // PSEG_EVAL_N_FIGURES of them
 *     pseg_eval_set_free(s);
 *
 * A set is read-only once made: any number of threads, each with scratch of its own. */
#ifndef PSEG_EVAL_FIGURES_H
#define PSEG_EVAL_FIGURES_H

#include "common/base/err.h"

#include <stdint.h>

typedef struct pseg_eval_example {
    uint32_t image;       /* 0 .. n_images - 1 */
    uint64_t truth, area; /* pixels of the mask that was meant, and of the one that came */
    uint64_t both;        /* in both: at most the smaller */
    double predicted;     /* the model's own guess of the IoU; NAN: none */
} pseg_eval_example;

/* X(name in JSON, words, what the figure is). All but MEDIAN_IOU, the correlations and the errors
 * are means of examples, or quotients of sums. */
#define PSEG_EVAL_FIGURES(X)                                               \
    X(MEAN_IOU, "mean_iou", "Mean IoU")                                    \
    X(MEDIAN_IOU, "median_iou", "Median IoU")                              \
    X(CIOU, "ciou", "cIoU")                                                \
    X(P50, "precision_at_0.5", "Precision at 0.5")                         \
    X(P60, "precision_at_0.6", "Precision at 0.6")                         \
    X(P70, "precision_at_0.7", "Precision at 0.7")                         \
    X(P80, "precision_at_0.8", "Precision at 0.8")                         \
    X(P90, "precision_at_0.9", "Precision at 0.9")                         \
    X(PRECISION, "mean_precision", "Mean precision")                       \
    X(RECALL, "mean_recall", "Mean recall")                                \
    X(PREDICTED, "mean_predicted_iou", "Mean predicted IoU")               \
    X(MAE, "predicted_iou_mae", "Mean error of predicted IoU")             \
    X(ECE, "predicted_iou_ece", "Calibration error (ECE)")                 \
    X(PEARSON, "predicted_iou_pearson", "Pearson, predicted and true IoU") \
    X(SPEARMAN, "predicted_iou_spearman", "Spearman, predicted and true IoU")

typedef enum pseg_eval_figure {
#define PSEG_EVAL_FIGURE_ENUM(id, name, words) PSEG_EVAL_##id,
    PSEG_EVAL_FIGURES(PSEG_EVAL_FIGURE_ENUM)
#undef PSEG_EVAL_FIGURE_ENUM
        PSEG_EVAL_N_FIGURES
} pseg_eval_figure;
/* Static. */
const char *pseg_eval_figure_name(pseg_eval_figure f);  /* "mean_iou" */
const char *pseg_eval_figure_words(pseg_eval_figure f); /* "Mean IoU" */

enum { PSEG_EVAL_BINS = 10 }; /* of predicted IoU, equally wide: [0, 0.1) ... [0.9, 1] */

/* Intersection over union. A quotient of 0 by 0 is 1 if both masks are empty, else 0: nothing was
 * asked for and nothing painted is right; to paint nothing, or where nothing is, is wrong. */
double pseg_eval_iou(const pseg_eval_example *e);
double pseg_eval_precision(const pseg_eval_example *e); /* both / area */
double pseg_eval_recall(const pseg_eval_example *e);    /* both / truth */
/* The bin of a predicted IoU; what lies outside of 0..1 counts to the outer bins. */
int pseg_eval_bin(double predicted);

typedef struct pseg_eval_set pseg_eval_set;
/* examples are copied. Errors: PSEG_R_INVALID_ARGUMENT (an image out of range, more pixels in both
 * than in one), PSEG_R_OUT_OF_MEMORY. Caller frees with pseg_eval_set_free. */
pseg_status pseg_eval_set_new(pseg_eval_set **out, const pseg_eval_example *examples, size_t n,
                              uint32_t n_images, pseg_err *err);
void pseg_eval_set_free(pseg_eval_set *s);
size_t pseg_eval_set_size(const pseg_eval_set *s);
const double *pseg_eval_set_ious(const pseg_eval_set *s); /* [n], borrowed */

/* Numbers of scratch that pseg_eval_figures needs. */
size_t pseg_eval_set_scratch(const pseg_eval_set *s);

/* weight: how often each image counts, [n_images]; NULL: once. out[f] is NAN where a figure has no
 * value: of no examples; of the predicted IoU, where fewer than all examples have one; correlations
 * of fewer than two examples or of equal numbers.
 * median: the middle, or the mean of the two in the middle. precision_at_t: the part of examples
 * whose IoU is greater than t. ciou: the sum of intersections by the sum of unions. ece: the mean
 * over examples of their bin's |mean predicted - mean IoU|. spearman: Pearson's coefficient of
 * ranks, equal numbers sharing their mean rank. */
void pseg_eval_figures(double out[PSEG_EVAL_N_FIGURES], const pseg_eval_set *s,
                       const uint32_t *weight, double *scratch);

typedef struct pseg_eval_reliability {
    double n, predicted, iou; /* examples; their mean predicted and true IoU, NAN if n is 0 */
} pseg_eval_reliability;
void pseg_eval_reliability_of(pseg_eval_reliability out[PSEG_EVAL_BINS], const pseg_eval_set *s,
                              const uint32_t *weight);

#endif
