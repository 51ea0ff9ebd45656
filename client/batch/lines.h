/* A text file line by line, in memory that does not grow with the file nor with a line. */
#ifndef PSEG_CLIENT_BATCH_LINES_H
#define PSEG_CLIENT_BATCH_LINES_H

#include "common/base/buf.h"

#include <stdint.h>
#include <stdio.h>

typedef struct batch_lines {
    FILE *f;
    const char *path; /* borrowed */
    pseg_buf line;
    char *block; /* what was read of the file, and how much of it is still to be given out */
    size_t at, len;
    uint64_t number; /* of the present line, from 1 */
    bool too_long;   /* the present line: its end was dropped */
} batch_lines;

/* path "-": standard input. A byte order mark is skipped. Caller closes with batch_lines_close,
 * also on failure. Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_FILE_IO. */
pseg_status batch_lines_open(batch_lines *l, const char *path, size_t max_bytes, pseg_err *err);
void batch_lines_close(batch_lines *l);
/* The next line without its end, in l->line (data may be NULL if it is empty); *more is false at
 * the end of the file. Errors: PSEG_R_FILE_IO, PSEG_R_OUT_OF_MEMORY. */
pseg_status batch_lines_next(bool *more, batch_lines *l, pseg_err *err);

#endif
