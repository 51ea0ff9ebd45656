/* Batches for a trainer, of any number of data sets: which examples, in which order, mirrored or
 * not, as arrays.
 *
 * What a batch holds depends on seed, epoch and its number alone. A batch is made of groups: an
 * image with up to batch / images of its phrases. In an epoch every example comes as often as its
 * set's weight says; a set with a weight that is no whole number takes other examples each time,
 * and the last batch may then lack a few or repeat the first ones.
 *
 *     pseg_batches_options o = {.train = parts, .n_train = 1, .val = &held_out, .n_val = 1, ...};
 *     PSEG_TRY(pseg_batches_open(&b, &o, err));
 *     PSEG_TRY(pseg_batches_use_cache(b, cache, vision, progress, ud, err));   // or pixels
 *     PSEG_TRY(pseg_batches_load(&out, b, true, epoch, k, err));
 *     pseg_batches_close(b);
 *
 * One thread at a time. */
#ifndef PSEG_DATA_BATCHES_H
#define PSEG_DATA_BATCHES_H

#include "common/base/arena.h"
#include "worker/data/features.h"
#include "worker/data/split.h"

#define PSEG_DATA_ID 96

typedef struct pseg_batches pseg_batches;

typedef struct pseg_batches_options {
    const pseg_mix_part *train, *val; /* images of val are left out of train; weights of val: 1 */
    size_t n_train, n_val;            /* n_val may be 0 */
    pseg_preprocess how;              /* of the model's input */
    uint32_t mask_width, mask_height; /* of the target */
    uint32_t batch, images;           /* phrases and images of a batch; images divides batch */
    uint64_t seed;
    double mirror;               /* how likely a training group is mirrored, 0 to 1 */
    pseg_data_report_fn *report; /* told of what is left out later; or NULL; any thread */
    void *report_ud;
} pseg_batches_options;

/* Data sets are borrowed until close, all else for the call. Errors: those of pseg_mix_new,
 * PSEG_R_CONFIG_INVALID. */
pseg_status pseg_batches_open(pseg_batches **out, const pseg_batches_options *o, pseg_err *err);
void pseg_batches_close(pseg_batches *b); /* NULL: nothing happens */

/* Fills the cache with what it lacks, mirrored too if anything may be; batches then hold taps in
 * place of pixels, and images that cannot be used are left out from the beginning. c is borrowed
 * until close, v for the call. Errors: those of pseg_feature_fill. */
pseg_status pseg_batches_use_cache(pseg_batches *b, pseg_feature_cache *c, pseg_vision *v,
                                   pseg_feature_progress_fn *progress, void *ud, pseg_err *err);

/* Batches of an epoch, of a validation; after pseg_batches_use_cache. */
uint64_t pseg_batches_n_train(const pseg_batches *b);
uint64_t pseg_batches_n_val(const pseg_batches *b);
/* Examples of an epoch, of a validation; images that were left out so far, and why they were: for
 * being held out, for being broken. */
uint64_t pseg_batches_n_examples(const pseg_batches *b, bool is_train);
uint64_t pseg_batches_n_held_out(const pseg_batches *b);
uint64_t pseg_batches_n_broken(const pseg_batches *b);
/* One line: sets, splits' sizes, seed, mirroring: another one is another run. Borrowed until
 * close. */
const char *pseg_batches_description(const pseg_batches *b);

/* Calls fn with every distinct phrase of training and validation, mirrored ones too: for who wants
 * to know before it begins whether a table holds them all. Stops when fn fails. */
typedef pseg_status pseg_batches_phrase_fn(void *ud, const char *phrase, const char *where,
                                           pseg_err *err);
pseg_status pseg_batches_each_phrase(const pseg_batches *b, pseg_batches_phrase_fn *fn, void *ud,
                                     pseg_err *err);

/* Arrays are the receiver's, with room for `images` and `batch`. */
typedef struct pseg_data_batch {
    uint32_t n_images, n_samples; /* filled: 1 or more each */
    float *pixels;                /* [images, 3, height, width]; not touched with a cache */
    float **taps;                 /* with a cache: n_taps of [images, gh*gw, hidden] */
    uint32_t *image_of;           /* [samples] */
    const char **phrases;         /* [samples], in arena */
    float *target;                /* [samples, mask_height, mask_width] */
    char (*id)[PSEG_DATA_ID];     /* [samples]: "annotations.jsonl:12 \"the cup\"" */
    pseg_arena *arena;
} pseg_data_batch;

/* An image that turns out to be broken is left out, told of and counted; a batch of nothing else is
 * an error. Errors: PSEG_R_DATA_CORRUPT, PSEG_R_FILE_IO, PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_batches_load(pseg_data_batch *out, pseg_batches *b, bool is_train, uint64_t epoch,
                              uint64_t batch, pseg_err *err);

#endif
