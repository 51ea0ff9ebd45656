/* A thread that prepares the next batch while the device works on this one. */
#ifndef PSEG_TRAIN_LOADER_H
#define PSEG_TRAIN_LOADER_H

#include "worker/train/source.h"

typedef struct pseg_loader pseg_loader;

/* Which batch: after an epoch's training batches come those of its validation. */
typedef struct pseg_loader_place {
    uint64_t epoch, batch;
    bool is_train;
} pseg_loader_place;

/* Starts at `from` and ends after the last validation batch of epoch n_epochs - 1. source is
 * borrowed until close. */
pseg_status pseg_loader_open(pseg_loader **out, const pseg_train_source *source,
                             const pseg_head_config *head, const pseg_train_sizes *sizes,
                             pseg_loader_place from, uint64_t n_epochs, pseg_err *err);
void pseg_loader_close(pseg_loader *l); /* NULL: nothing happens */

/* Waits for the next batch; *batch is NULL after the last one. It and place are valid until the
 * next call. Errors: those of the source. */
pseg_status pseg_loader_next(const pseg_train_batch **batch, pseg_loader_place *place,
                             pseg_loader *l, pseg_err *err);

#endif
