/* How far a batch has come, in DIR/.pseg-batch/state.json, which is always whole: of one moment, or
 * of an earlier one. While a program works in DIR it holds a lock there, which ends with the
 * program however it ends.
 *
 *     PSEG_TRY(batch_state_open(&s, dir, err));           // makes the folder, takes the lock
 *     if (!s->exists) { ... s->of = facts; ... }
 *     PSEG_TRY(batch_state_check(s, facts, err));         // is it the same command?
 *     s->token = ...; s->at = ...;
 *     PSEG_TRY(batch_state_save(s, err));
 *     batch_state_close(s);
 *
 * One thread. */
#ifndef PSEG_CLIENT_BATCH_STATE_H
#define PSEG_CLIENT_BATCH_STATE_H

#include "client/batch/output.h"

typedef struct batch_state {
    bool exists;      /* an earlier run has begun it */
    bool is_made;     /* the server knows the batch */
    bool is_finished; /* all is written */
    json_t *of;       /* the facts of the command that began it: an object of texts and numbers */
    char *batch;      /* "batches/ID" */
    char *token;      /* of the last message of results that is written; "" at first */
    batch_position at;
    uint64_t items, succeeded, failed;
    json_t *reasons;       /* of the failures: how many of each */
    int64_t begun_unix_us; /* the first run */
    /* The rest is private. */
    char *folder, *path;
    int lock;
} batch_state;

/* Caller frees with batch_state_close. Errors: PSEG_R_FILE_IO, PSEG_R_ADDRESS_IN_USE (another
 * program is at work in dir), PSEG_R_DATA_CORRUPT. */
pseg_status batch_state_open(batch_state **out, const char *dir, pseg_err *err);
void batch_state_close(batch_state *s);               /* NULL is accepted */
const char *batch_state_folder(const batch_state *s); /* DIR/.pseg-batch */
/* PSEG_R_CONFIG_INVALID where the facts are not those that the batch was begun with; names the
 * first. */
pseg_status batch_state_check(const batch_state *s, const json_t *facts, pseg_err *err);
pseg_status batch_state_save(batch_state *s, pseg_err *err);
/* Takes a copy. */
pseg_status batch_state_set_token(batch_state *s, const char *token, pseg_err *err);
void batch_state_count_failure(batch_state *s, const char *reason);

#endif
