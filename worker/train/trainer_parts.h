/* The inside of a trainer, shared by trainer_open.c (its beginning) and trainer.c (the run) only.
 */
#ifndef PSEG_TRAIN_TRAINER_PARTS_H
#define PSEG_TRAIN_TRAINER_PARTS_H

#include "worker/train/export.h"
#include "worker/train/feed.h"
#include "worker/train/loader.h"
#include "worker/train/report.h"
#include "worker/train/trainer.h"

struct pseg_trainer {
    pseg_cl *cl;
    pseg_stream *s;
    pseg_encoders *e;
    const pseg_train_source *source;
    pseg_head_config head_config;
    pseg_trainer_options o;
    pseg_specs specs;
    bool *is_frozen; /* for each of specs, or NULL */
    pseg_train_towers towers;
    pseg_params *params;
    pseg_optim *optim;
    pseg_train_head *head;
    pseg_feed *feed;
    pseg_loader *loader;
    pseg_report *report;
    char *last, *best; /* paths */
    pseg_train_setting *settings;
    pseg_checkpoint checkpoint;
    pseg_train_state state;
    bool has_folder, is_done;
    int64_t counted_us; /* until when state.seconds counts */
    double step_s, images_per_s;
    uint64_t n_skipped;
};

#define PSEG_STEP_BAD 8

/* A step's sums. */
typedef struct pseg_step {
    double sums[5]; /* loss, bce, dice, miss, iou */
    uint64_t n;     /* samples */
    char bad[PSEG_STEP_BAD][PSEG_TRAIN_ID], some[PSEG_TRAIN_ID];
    size_t n_bad;
} pseg_step;

bool pseg_trainer_is_stopped(const pseg_trainer *t);

#endif
