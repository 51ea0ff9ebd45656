/* Confidence intervals by the bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap,
 * 1993, chapters 6 and 13), resampling images.
 *
 * Phrases of one image share its light, its clutter and often its target: they are not independent,
 * and resampling phrases would give intervals that are too narrow. A replicate draws as many images
 * as there are, with replacement, and takes each with all its phrases (the cluster bootstrap). The
 * interval is the percentile one: the quantiles of the replicates, with linear interpolation.
 *
 * Statistics are computed together from the same draws, so that a difference of two is paired if
 * the statistic function forms it. Replicate r depends on the seed and r alone: any number of
 * threads gives the same numbers. */
#ifndef PSEG_EVAL_BOOTSTRAP_H
#define PSEG_EVAL_BOOTSTRAP_H

#include "common/base/err.h"

#include <stdint.h>

typedef struct pseg_eval_interval {
    double value, low,
        high; /* NAN: no value; low and high NAN: not asked, or no replicate had one */
} pseg_eval_interval;

/* out: [n_statistics]. weight: [n_images], how often each image was drawn, or NULL: each once.
 * scratch: as many numbers as the options say, of the calling thread. Called from several threads
 * at a time. */
typedef void pseg_eval_statistic_fn(void *ud, double *out, const uint32_t *weight, double *scratch);

typedef struct pseg_eval_bootstrap_options {
    uint32_t replicates; /* 0: values without intervals */
    double level;        /* 0.95 */
    uint64_t seed;
    unsigned threads; /* 1 or more */
    size_t n_scratch;
} pseg_eval_bootstrap_options;
#define PSEG_EVAL_BOOTSTRAP_OPTIONS_DEFAULT                         \
    {                                                               \
        .replicates = 2000, .level = 0.95, .seed = 0, .threads = 1, \
    }

/* out: [n_statistics]. A replicate in which a statistic is NAN is left out of its quantiles.
 * Errors: PSEG_R_OUT_OF_MEMORY, PSEG_R_INVALID_ARGUMENT (a level not within 0..1). */
pseg_status pseg_eval_bootstrap(pseg_eval_interval *out, size_t n_statistics, uint32_t n_images,
                                pseg_eval_statistic_fn *fn, void *ud,
                                const pseg_eval_bootstrap_options *o, pseg_err *err);

/* Random numbers that are the same everywhere: xoshiro256** (Blackman and Vigna, 2018), seeded by
 * splitmix64 with two numbers. */
typedef struct pseg_eval_random {
    uint64_t s[4];
} pseg_eval_random;
void pseg_eval_random_seed(pseg_eval_random *r, uint64_t seed, uint64_t stream);
/* 0 .. n - 1, each as likely; n > 0. */
uint32_t pseg_eval_random_below(pseg_eval_random *r, uint32_t n);

#endif
