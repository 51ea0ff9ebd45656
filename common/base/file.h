/* Files: whole reads with a limit, read-only maps, and writes that are seen whole or not at all. */
#ifndef PSEG_BASE_FILE_H
#define PSEG_BASE_FILE_H

#include "common/base/err.h"

#include <stdint.h>
#include <stdio.h>

/* Reads all of path; more than max_bytes is PSEG_R_REQUEST_TOO_LARGE. A NUL stands behind the data.
 * Caller frees *out with pseg_free. Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_FILE_IO (a folder, no
 * permission), PSEG_R_OUT_OF_MEMORY. "-" reads standard input. */
pseg_status pseg_file_read(uint8_t **out, size_t *out_len, const char *path, size_t max_bytes,
                           pseg_err *err);

/* Writes to a temporary name in the same folder, syncs and renames. "-" writes to standard output.
 */
pseg_status pseg_file_write(const char *path, const void *data, size_t n, pseg_err *err);

/* Flushes a stream at a program's end. A reader that has gone (`| head`) is no error: it had
 * enough. Errors: PSEG_R_FILE_IO, where anything written to f since its opening was lost. */
pseg_status pseg_file_flush(FILE *f, const char *name, pseg_err *err);

/* Which file it is and when it was last changed, without reading it: whoever writes to a file or
 * puts another in its place changes one of these. No padding, so that it can be hashed. */
typedef struct pseg_file_id {
    uint64_t device, inode, size;
    int64_t written_ns,
        changed_ns; /* since 1970: its bytes; its bytes or whatever is known of it */
} pseg_file_id;
/* Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_FILE_IO. */
pseg_status pseg_file_identify(pseg_file_id *out, const char *path, pseg_err *err);

/* Maps a whole file read-only. An empty file gives data = NULL, size = 0. The bytes are borrowed
 * until pseg_map_close. A file that shrinks under the map raises SIGBUS: model files are not edited
 * in place. */
typedef struct pseg_map {
    const uint8_t *data;
    size_t size;
    pseg_file_id id;
} pseg_map;
pseg_status pseg_map_open(pseg_map *out, const char *path, pseg_err *err);
void pseg_map_close(pseg_map *m);
/* Lets go of the resident pages that lie wholly in data[0..n) of a map: they are read again when
 * touched. */
void pseg_map_drop(const void *data, size_t n);

bool pseg_file_exists(const char *path);
/* mkdir -p. */
pseg_status pseg_dir_make(const char *path, pseg_err *err);
/* dir + "/" + name into fresh memory; caller frees with pseg_free; NULL when memory is short. */
char *pseg_path_join(const char *dir, const char *name);

#endif
