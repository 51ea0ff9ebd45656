/* What a cache folder holds besides compiled kernels: files of packed weights (packed.h), and the
 * digests of the files that they were made of.
 *
 *     KEY.packed       packed weights; KEY names contents, form and version
 *     KEY.packed.lock  held by the process that makes KEY.packed
 *     ID.sum           the digest of a model whose files are ID: their names, inodes, sizes, times
 *
 * A digest is what a model's packed form is found by, so that other weights are never taken for
 * these; the .sum spares reading gigabytes for it at each start. Nothing here fails a start: a
 * folder that cannot be used costs time only. Any thread, any number of processes. */
#ifndef PSEG_MODEL_PACKED_CACHE_H
#define PSEG_MODEL_PACKED_CACHE_H

#include "common/base/err.h"
#include "common/base/hash.h"

#include <stdint.h>

/* Room for packed files; what was not used for longest goes first. */
#define PSEG_PACKED_MAX_BYTES ((uint64_t)8 << 30)

/* The digest that was remembered for id. changed_ns: when the latest of the files changed. False if
 * there is none, or if it may be older than a change that left no trace: one within
 * PSEG_SUM_DOUBT_NS before it was taken, since file systems count time in steps. */
#define PSEG_SUM_DOUBT_NS 2000000000
bool pseg_sum_recall(uint8_t digest[PSEG_SHA256_BYTES], const char *dir,
                     const uint8_t id[PSEG_SHA256_BYTES], int64_t changed_ns);
/* taken_ns: by the wall clock, before the first byte was read. */
pseg_status pseg_sum_remember(const char *dir, const uint8_t id[PSEG_SHA256_BYTES],
                              const uint8_t digest[PSEG_SHA256_BYTES], int64_t taken_ns,
                              pseg_err *err);

/* "DIR/KEY.packed", KEY in hex. Caller frees with pseg_free; NULL when memory is short. */
char *pseg_packed_path(const char *dir, const uint8_t key[PSEG_SHA256_BYTES]);

/* Waits until no other process makes the file at path, timeout_ms at most. Returns what
 * pseg_packed_unlock takes: -1 if it was not locked (time is up, no permission, a file system
 * without locks), which only means that others may be making the same file. */
int pseg_packed_lock(const char *path, int64_t timeout_ms);
void pseg_packed_unlock(int lock, const char *path);

/* Marks the file as used now. */
void pseg_packed_touch(const char *path);
/* Removes packed files, those that were not used for longest first, until the rest takes at most
 * max_bytes; never the one at `keep`. What a process has mapped stays with it until it lets go.
 * Also what a process that died has left half made for more than an hour, and digests that were not
 * asked for in 90 days. */
void pseg_packed_trim(const char *dir, const char *keep, uint64_t max_bytes);

#endif
