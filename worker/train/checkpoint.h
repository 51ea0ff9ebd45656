/* Checkpoints of a run, in the form of the weights that inference opens.
 *
 *   last.safetensors   the weights under their own names, "adam.mean.NAME", "adam.square.NAME",
 *                      "ema.NAME" if there is a slow average; metadata: the head's configuration,
 *                      "run.KEY" for each setting of the run, "state.KEY" for where it stands
 *   best.safetensors   the weights alone (the slow average's, if there is one) and the same
 *                      metadata, without what only training reads (PSEG_PARAM_PROBE)
 *
 * Both appear whole or not at all (safetensors_write.h). */
#ifndef PSEG_TRAIN_CHECKPOINT_H
#define PSEG_TRAIN_CHECKPOINT_H

#include "worker/model/config.h"
#include "worker/train/params.h"

/* Where a run stands. Every number is kept exactly. */
typedef struct pseg_train_state {
    uint64_t epoch, batch;     /* what comes next: batch of epoch, both from 0 */
    uint64_t step;             /* steps of the optimiser that were tried */
    uint64_t steps_taken;      /* and that changed the weights */
    uint64_t skipped_in_a_row; /* tried in vain, at the end */
    uint64_t epochs_without;   /* a better validation */
    double best_iou;           /* of a validation, -1: none yet */
    uint64_t best_epoch;       /* whose it was */
    double seconds;            /* of training, all runs together */
    double sum_loss, sum_iou;  /* of this epoch so far, and of how many samples */
    uint64_t n_sum;
    double val_loss, val_iou; /* of the last validation, for the curves */
} pseg_train_state;

/* A setting that a run must keep to when it goes on. */
typedef struct pseg_train_setting {
    char key[40], value[200];
} pseg_train_setting;

typedef struct pseg_checkpoint {
    const pseg_params *params;
    const pseg_head_config *head;
    const pseg_train_setting *settings;
    size_t n_settings;
} pseg_checkpoint;

/* is_whole: with the optimiser, as "last" has it. Waits. Errors: PSEG_R_FILE_IO,
 * PSEG_R_OUT_OF_MEMORY, device errors; an older file of this name is then as it was. */
pseg_status pseg_checkpoint_write(const char *path, const pseg_checkpoint *c,
                                  const pseg_train_state *state, bool is_whole, pseg_stream *s,
                                  pseg_err *err);

/* Takes up a run: params and *state. Errors: PSEG_R_MODEL_MISMATCH if the head or a setting is
 * another (which, there and here); PSEG_R_MODEL_CORRUPT; PSEG_R_MODEL_MISSING. */
pseg_status pseg_checkpoint_read(pseg_train_state *state, const char *path,
                                 const pseg_checkpoint *c, pseg_params *params, pseg_stream *s,
                                 pseg_err *err);

#endif
