/* A file of packed weights: what a model gives to the device, ready to be used where it lies.
 *
 * It knows nothing of models or devices: a file is a row of named pieces, made once, read in the
 * same order. Every byte of a piece is checked before the piece is given out, so a file that was
 * cut, damaged or made by another version is never used by mistake.
 *
 *     header (128 bytes) | pieces, each aligned | table of pieces
 *
 * Numbers are as this machine writes them: a file is for one machine. It is trusted as far as the
 * compiled kernels beside it: whoever may write to the cache decides what the worker computes.
 *
 *     pseg_packer_new(&p, path, key, &err);                 // a temporary name beside path
 *     pseg_packer_add(p, "x.weight", type, data, bytes, &err);
 *     pseg_packer_commit(p, &err);                          // now it is at path, whole
 *     pseg_packed_open(&f, path, key, &err);
 *     pseg_packed_next(&at, f, "x.weight", type, bytes, &err);
 *
 * Threads: one owner at a time. */
#ifndef PSEG_MODEL_PACKED_H
#define PSEG_MODEL_PACKED_H

#include "common/base/err.h"
#include "common/base/hash.h"

#include <stdint.h>

#define PSEG_PACKED_FORMAT 1 /* raise it with every change of the file's layout */
#define PSEG_PACKED_NAME   112
#define PSEG_PACKED_ALIGN  256  /* bytes: where a piece begins */
#define PSEG_PACKED_PAGE   4096 /* where one begins that is this long or longer */

typedef struct pseg_packed pseg_packed; /* a file that is read */
typedef struct pseg_packer pseg_packer; /* a file that is written */

/* Maps the file, shared with whoever else maps it. key: what it was made for. Errors:
 * PSEG_R_FILE_NOT_FOUND, PSEG_R_MODEL_CORRUPT (what is wrong), PSEG_R_FILE_IO. */
pseg_status pseg_packed_open(pseg_packed **out, const char *path,
                             const uint8_t key[PSEG_SHA256_BYTES], pseg_err *err);
/* The next piece; it must have this name, type and length. *out is aligned to PSEG_PACKED_ALIGN,
 * borrowed until pseg_packed_close. Errors: PSEG_R_MODEL_CORRUPT, from then on for every piece. */
pseg_status pseg_packed_next(const void **out, pseg_packed *f, const char *name, uint32_t type,
                             size_t bytes, pseg_err *err);
/* Have all pieces been given out, and none refused? */
bool pseg_packed_is_used_up(const pseg_packed *f);
void pseg_packed_close(pseg_packed *f); /* NULL: nothing happens */

/* Errors: PSEG_R_FILE_IO, PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_packer_new(pseg_packer **out, const char *path,
                            const uint8_t key[PSEG_SHA256_BYTES], pseg_err *err);
/* Writes at once: nothing of data is kept. name: shorter than PSEG_PACKED_NAME. After a failure the
 * file cannot be committed. */
pseg_status pseg_packer_add(pseg_packer *p, const char *name, uint32_t type, const void *data,
                            size_t bytes, pseg_err *err);
bool pseg_packer_has_failed(const pseg_packer *p);
/* Writes table and header, syncs and renames. */
pseg_status pseg_packer_commit(pseg_packer *p, pseg_err *err);
/* Removes what was not committed. NULL: nothing happens. */
void pseg_packer_free(pseg_packer *p);

/* The checksum of pieces and table, fast rather than strong: any change within one 8-byte word
 * changes it, others go unseen once in 2^64. */
uint64_t pseg_packed_sum(const void *data, size_t n);

#endif
