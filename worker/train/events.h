/* A TensorBoard event file of numbers by step: `tensorboard --logdir FOLDER` draws them.
 *
 * Each process that writes makes a file of its own, events.out.tfevents.TIME.pseg, that sorts
 * behind those before it and begins by saying from which step on theirs no longer counts; nothing
 * is ever written again. An event is one write, so a reader sees whole ones but for the last of a
 * process that was killed, which its length and checksum tell. */
#ifndef PSEG_TRAIN_EVENTS_H
#define PSEG_TRAIN_EVENTS_H

#include "common/base/err.h"

#include <stddef.h>
#include <stdint.h>

typedef struct pseg_events pseg_events;

/* What older files of the folder have of step from_step and later is void. Errors: PSEG_R_FILE_IO,
 * PSEG_R_FILE_NOT_FOUND, PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_events_open(pseg_events **out, const char *folder, uint64_t from_step,
                             pseg_err *err);
void pseg_events_close(pseg_events *e); /* NULL: nothing happens */

typedef struct pseg_scalar {
    const char *tag; /* "train/loss": TensorBoard groups by what stands before the / */
    double value;    /* kept as a float; what is not finite is left out */
} pseg_scalar;
/* n numbers of one step. Errors: PSEG_R_FILE_IO. */
pseg_status pseg_events_add(pseg_events *e, uint64_t step, const pseg_scalar *scalars, size_t n,
                            pseg_err *err);

#endif
