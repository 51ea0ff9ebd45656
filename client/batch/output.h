/* What a batch brings forth: results and failures, written as they come, and the positions up to
 * which they are known to be whole, so that a run that was cut off at any byte goes on from there.
 *
 *   results.jsonl   an image a line, masks as COCO's RLE, or as files below masks/
 *   results.json    COCO's results, an array of masks; results.json.part until the batch is whole
 *   failures.jsonl  each line of the manifest that gave no result, and why
 *
 *     PSEG_TRY(batch_output_open(&o, dir, BATCH_RLE, &position, err));   // position: zeros, or as
 * kept PSEG_TRY(batch_output_result(o, seq, item, job, masks, n, err));
 *     PSEG_TRY(batch_output_failure(o, item, "FAILED", "IMAGE_UNDECODABLE", "...", err));
 *     PSEG_TRY(batch_output_sync(&position, o, err));                    // on the disk up to here
 *     PSEG_TRY(batch_output_finish(o, err));
 *     batch_output_close(o);
 *
 * One thread. */
#ifndef PSEG_CLIENT_BATCH_OUTPUT_H
#define PSEG_CLIENT_BATCH_OUTPUT_H

#include "common/base/err.h"
#include "pseg/v1/pseg.pb-c.h"

#include <jansson.h>
#include <stdint.h>

typedef enum batch_format {
    BATCH_RLE, /* results.jsonl with COCO's counts */
    BATCH_COCO_RESULTS,
    BATCH_PNG, /* results.jsonl and a PNG for each mask */
} batch_format;
/* "jsonl", "coco", "png"; false: no such format. */
bool batch_format_parse(batch_format *out, const char *name);
Pseg__V1__MaskEncoding batch_format_encoding(batch_format f);

typedef struct batch_position {
    uint64_t results_bytes, failures_bytes;
} batch_position;

typedef struct batch_output batch_output;
/* Cuts the files off at *at, and goes on there. Caller frees with batch_output_close. Errors:
 * PSEG_R_FILE_IO, PSEG_R_DATA_CORRUPT (a file is shorter than it was). */
pseg_status batch_output_open(batch_output **out, const char *dir, batch_format format,
                              const batch_position *at, pseg_err *err);
void batch_output_close(batch_output *o); /* NULL is accepted; what was not synced may be lost */
/* The path that the results have in the end; caller frees with pseg_free; NULL when memory is
 * short. */
char *batch_output_path(const char *dir, batch_format format);

/* A job that succeeded: masks[i] is that of prompt i, in the format's encoding; item as the plan
 * has it, borrowed. Errors: PSEG_R_FILE_IO, PSEG_R_OUT_OF_MEMORY, PSEG_R_INTERNAL (masks and
 * results of the job do not fit each other). */
pseg_status batch_output_result(batch_output *o, uint64_t seq, const json_t *item,
                                const Pseg__V1__Job *job, Pseg__V1__Mask *const *masks,
                                size_t n_masks, pseg_err *err);
/* state, reason: by name. message may hold anything. */
pseg_status batch_output_failure(batch_output *o, const json_t *item, const char *state,
                                 const char *reason, const char *message, pseg_err *err);

/* All that was written is on the disk, and *at says how far that is. */
pseg_status batch_output_sync(batch_position *at, batch_output *o, pseg_err *err);
/* Closes COCO's array and gives the results their name. Nothing may be written afterwards. */
pseg_status batch_output_finish(batch_output *o, pseg_err *err);

#endif
