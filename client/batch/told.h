/* Which items' results are written, in DIR/.pseg-batch/told: a server whose Redis fails over may
 * tell an item again, also to a program that was begun anew in between.
 *
 * The file is their numbers in the order in which they came, 4 bytes each, little-endian; how many
 * of them count says the state, so that what was written after it is forgotten with the results.
 *
 *     PSEG_TRY(batch_told_open(&t, folder, n_items, s->succeeded + s->failed, err));
 *     if (!batch_told_has(t, seq)) { ...; PSEG_TRY(batch_told_add(t, seq, err)); }
 *     PSEG_TRY(batch_told_sync(t, err));          // before the state that counts them is saved
 *     batch_told_close(t);
 *
 * One thread. */
#ifndef PSEG_CLIENT_BATCH_TOLD_H
#define PSEG_CLIENT_BATCH_TOLD_H

#include "common/base/err.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct batch_told batch_told;
/* folder: as batch_state_folder has it. n: how many numbers of the file count. Caller frees with
 * batch_told_close. Errors: PSEG_R_FILE_IO, PSEG_R_OUT_OF_MEMORY, PSEG_R_DATA_CORRUPT (it has
 * fewer, or numbers of no item). */
pseg_status batch_told_open(batch_told **out, const char *folder, uint64_t n_items, uint64_t n,
                            pseg_err *err);
void batch_told_close(batch_told *t); /* NULL is accepted; what was not synced may be lost */
/* seq: 1 to n_items; so in add, once each. */
bool batch_told_has(const batch_told *t, uint64_t seq);
pseg_status batch_told_add(batch_told *t, uint64_t seq, pseg_err *err);
/* What was added is on the disk. */
pseg_status batch_told_sync(batch_told *t, pseg_err *err);
/* The batch is finished: nothing is told any more. */
void batch_told_remove(const char *folder);

#endif
