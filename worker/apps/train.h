/* Parts of pseg-train, shared by train*.c only: the program is run by train.c. */
#ifndef PSEG_APPS_TRAIN_H
#define PSEG_APPS_TRAIN_H

#include "worker/apps/program.h"
#include "worker/data/dataset.h"
#include "worker/model/sam.h"
#include "worker/train/init.h"
#include "worker/train/trainer.h"

typedef struct train_args {
    pseg_conf_list data;
    const char *val, *val_images, *kind, *kind_weight, *loss_at, *optimizer, *features, *vision,
        *text, *out, *init, *sam, *device, *cache, *train, *train_layers, *text_mode, *taps,
        *tap_norm, *preprocess, *upsample, *name;
    int64_t lora_rank, image_size, dim, heads, depth, mlp, batch, images, accumulate, epochs,
        patience, seed, max_tokens, max_skips, save_every, threads;
    double lr_neck, lr_decoder, lr_vision, lr_text, decay, warm_epochs, clip, ema, bce, dice, iou,
        deep, lr_probe, lr_muon;
    bool resume, mirror, half, profile, json, verbose;
} train_args;

/* ---- train_options.c: what was asked for ---- */

extern const pseg_conf_option train_options[];

/* Which encoders, and all else that the trainer wants to know. stop, log: borrowed by *o. Errors:
 * PSEG_R_CONFIG_INVALID, PSEG_R_FILE_NOT_FOUND. */
pseg_status train_options_of(pseg_trainer_options *o, const train_args *a, const pseg_log *log,
                             const volatile sig_atomic_t *stop, pseg_err *err);

/* ---- train_begin.c: the head's shape, and where its weights begin ---- */

typedef struct train_begin {
    pseg_tensors *file; /* --init */
    pseg_sam *sam;
    pseg_specs specs;
    pseg_init init;
    pseg_weights *weights;
} train_begin;
/* Errors: PSEG_R_CONFIG_INVALID, those of the files. */
pseg_status train_begin_open(train_begin *s, pseg_head_config *c, const train_args *a,
                             const pseg_encoders *e, pseg_err *err);
void train_begin_deinit(train_begin *s); /* all zero: nothing happens */

/* ---- train_data.c: scenes, or data sets ---- */

/* What is left out of data sets, by its fault; of pixels, also while the run goes on. */
typedef struct train_left_out {
    uint64_t n[PSEG_DATA_N_FAULTS], told[PSEG_DATA_N_FAULTS];
} train_left_out;
/* Those of which not all were named, if there are more since the last call. */
void train_left_out_tell(train_left_out *l);

/* left: until *out is closed. Errors: PSEG_R_CONFIG_INVALID, those of the data. */
pseg_status train_source_open(pseg_train_source *out, pseg_cl *cl, const train_args *a,
                              const pseg_head_config *c, const pseg_trainer_options *t,
                              train_left_out *left, pseg_err *err);

/* ---- train_print.c: what is told of the run ---- */

/* One line that is written over on a terminal; a line an epoch stays. ud: a bool, whether standard
 * error is one. */
void train_print_event(void *ud, const pseg_train_event *e);
void train_print_summary(const train_args *a, const pseg_trainer *t);
void train_print_profile(const pseg_trainer *t);

#endif
