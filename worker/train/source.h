/* Where batches come from: an interface, so that the trainer knows no data set.
 *
 * A source gives batch `batch` of epoch `epoch`, and what it gives depends on these numbers and its
 * own seed alone: so a run that goes on after a fall sees what it would have seen. It may be called
 * from a thread of its own, one call at a time. */
#ifndef PSEG_TRAIN_SOURCE_H
#define PSEG_TRAIN_SOURCE_H

#include "common/base/arena.h"
#include "worker/model/config.h"

#define PSEG_TRAIN_ID 96

/* A batch on the host. The arrays are the receiver's and have room for max_images and max_samples;
 * the source fills n_images and n_samples of them, 1 or more. */
typedef struct pseg_train_batch {
    uint32_t max_images, max_samples, n_images, n_samples;
    float *pixels;              /* [images, 3, height, width], normalised; or, */
    float *taps[PSEG_MAX_TAPS]; /* if the source has taps, [images, gh*gw, vision_dim] each */
    uint32_t *image_of;   /* [samples]: which of the images; with max_images = max_samples, i */
    const char **phrases; /* [samples]: in arena */
    float *target;        /* [samples, h*w of pseg_train_mask_size], 0..1, row by row */
    char (*id)[PSEG_TRAIN_ID]; /* [samples]: for messages, "scene 1000012, phrase 3" */
    pseg_arena *arena;         /* emptied before each batch */
} pseg_train_batch;

/* What is skipped, and why, of one run. */
typedef struct pseg_train_source {
    void *ud;
    pseg_status (*load)(void *ud, pseg_train_batch *out, bool is_train, uint64_t epoch,
                        uint64_t batch, pseg_err *err);
    void (*close)(void *ud);
    uint64_t n_train, n_val; /* batches of an epoch, and of a validation (0: there is none) */
    uint64_t n_phrases;      /* of an epoch; 0: not known */
    bool has_taps;
    char description[200]; /* of the data, for the checkpoint: another one is another run */
} pseg_train_source;
void pseg_train_source_close(pseg_train_source *s); /* NULL, or all zero: nothing happens */

typedef struct pseg_train_sizes {
    uint32_t batch, images; /* of one batch; images divides batch */
    uint64_t seed;
    bool at_input; /* masks have the size of the model's input, not that of the logits */
} pseg_train_sizes;
/* Of a mask of pseg_train_batch.target. */
void pseg_train_mask_size(uint32_t *h, uint32_t *w, const pseg_head_config *head,
                          const pseg_train_sizes *sizes);

/* Phrases of scenes, by what is to be understood. NEAR: "next to", "nearest to", "closest to". */
typedef enum pseg_train_phrase {
    PSEG_TRAIN_ATTRIBUTE,
    PSEG_TRAIN_DIRECTION,
    PSEG_TRAIN_NEAR,
    PSEG_TRAIN_SUPERLATIVE,
    PSEG_TRAIN_N_PHRASES
} pseg_train_phrase;

/* Scenes drawn by seed (worker/scenes): train of them an epoch and val for validation. */
typedef struct pseg_train_scene_set {
    uint64_t train, val;
    bool is_fixed; /* the same in every epoch; else new ones each time, none of them seen twice */
    /* How much likelier a phrase of a kind is to be drawn in training, where not all can be; all
     * equal, or all 0: no kind is preferred. Otherwise twice as many scenes are drawn as are taken,
     * unless they are fixed, so that those that have what is wanted can be. */
    float weights[PSEG_TRAIN_N_PHRASES];
} pseg_train_scene_set;
/* The images of a batch come with `batch` of all their phrases, or with all of them if they have
 * fewer; with one image a sample, each with one. Validation is always on the same. head: its image
 * must be square, 64 to 1024 px. */
pseg_status pseg_train_scenes(pseg_train_source *out, const pseg_head_config *head,
                              const pseg_train_sizes *sizes, const pseg_train_scene_set *set,
                              pseg_err *err);
/* text: as a phrase of scenes. */
pseg_train_phrase pseg_train_phrase_of(const char *text, bool is_relational, bool is_superlative);

/* A map of h x w numbers averaged over oh x ow equal parts, as below. */
pseg_status pseg_train_coarsen(float *out, uint32_t oh, uint32_t ow, const float *map, uint32_t h,
                               uint32_t w, pseg_err *err);
/* A mask of h x w bytes, those that are `value` counting, averaged over oh x ow equal parts, pixels
 * at a border by their share: soft where a border runs through a part. */
pseg_status pseg_train_area(float *out, uint32_t oh, uint32_t ow, const uint8_t *mask,
                            uint8_t value, uint32_t h, uint32_t w, pseg_err *err);

#endif
