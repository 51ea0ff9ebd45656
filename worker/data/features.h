/* Features of frozen image encoders on disk, so that an epoch costs neck and decoder alone.
 *
 *     PSEG_TRY(pseg_feature_cache_open(&c, "cache", pseg_vision_get_info(v), &how, err));
 *     PSEG_TRY(pseg_feature_fill(entries, c, v, &job, err));        // what is missing
 *     PSEG_TRY(pseg_feature_cache_get(&f, c, entries[i], err));     // f.taps, mapped
 *     pseg_feature_cache_close(c);
 *
 * An entry belongs to the bytes of an image file (their SHA-256), to the photo as it is or
 * mirrored, and to everything that decides the numbers: image encoder, taps, precision, size and
 * fit of the input. What decides but the image names a folder of its own in the cache's, so that
 * one cache serves any number of models and data sets:
 *
 *     CACHE/3f2a90.../spec.txt       what the folder is for
 *     CACHE/3f2a90.../index          64 bytes an entry, checksummed, only ever appended to
 *     CACHE/3f2a90.../sources        which file held which bytes, so that none is read again
 *     CACHE/3f2a90.../taps-000000    numbers of many entries, each with a checksum in the index
 *
 * An entry is written whole before its line in the index: a process that dies leaves all entries
 * that it finished, and a torn one is never seen. A full disk is an error that says how far it
 * came; what is there stays good. Any number of processes may read while one writes; a second one
 * that would fill waits for the first. Entries whose numbers do not fit their checksum are treated
 * as if they were not there.
 *
 * Threads: get and find may be called by any number at a time, beside no other call. */
#ifndef PSEG_DATA_FEATURES_H
#define PSEG_DATA_FEATURES_H

#include "common/image/image.h"
#include "worker/data/dataset.h"
#include "worker/data/split.h"
#include "worker/model/towers.h"

typedef struct pseg_feature_cache pseg_feature_cache;

/* Makes dir and its folders where they are missing. vision and how are used during the call only.
 * Errors: PSEG_R_FILE_IO, PSEG_R_DATA_CORRUPT (the folder is for something else),
 * PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_feature_cache_open(pseg_feature_cache **out, const char *dir,
                                    const pseg_vision_info *vision, const pseg_preprocess *how,
                                    pseg_err *err);
void pseg_feature_cache_close(pseg_feature_cache *c); /* NULL: nothing happens */

size_t pseg_feature_cache_count(const pseg_feature_cache *c);
const char *pseg_feature_cache_folder(const pseg_feature_cache *c); /* borrowed until close */
size_t pseg_feature_cache_n_damaged(const pseg_feature_cache *c);   /* entries found bad so far */

/* Of an image file. */
typedef struct pseg_feature_key {
    uint8_t of_bytes[24]; /* the beginning of their SHA-256 */
    bool is_mirrored;
} pseg_feature_key;
pseg_feature_key pseg_feature_key_of(const pseg_data_bytes *file, bool is_mirrored);

/* false: there is none. */
bool pseg_feature_cache_find(uint32_t *entry, const pseg_feature_cache *c,
                             const pseg_feature_key *key);

typedef struct pseg_feature {
    const uint16_t *taps;   /* float16 [n_taps, gh*gw, hidden]; borrowed until close */
    uint32_t width, height; /* of the photo, upright, px */
} pseg_feature;
/* The numbers are checked when an entry is first asked for. Errors: PSEG_R_DATA_CORRUPT (they do
 * not fit: fill makes the entry again), PSEG_R_FILE_IO. */
pseg_status pseg_feature_cache_get(pseg_feature *out, pseg_feature_cache *c, uint32_t entry,
                                   pseg_err *err);
/* ---- writing --------------------------------------------------------------------------------- */

/* Waits for any other process that writes, and learns what it has added. */
pseg_status pseg_feature_cache_lock(pseg_feature_cache *c, pseg_err *err);
void pseg_feature_cache_unlock(pseg_feature_cache *c);
/* While locked. Replaces an entry of the same key. *entry may be NULL. Errors: PSEG_R_FILE_IO,
 * which says so if the disk is full. */
pseg_status pseg_feature_cache_put(uint32_t *entry, pseg_feature_cache *c,
                                   const pseg_feature_key *key, const pseg_feature *f,
                                   pseg_err *err);

#define PSEG_NO_FEATURE UINT32_MAX

/* false: stop. done and n_skipped of total images. */
typedef bool pseg_feature_progress_fn(void *ud, size_t done, size_t n_skipped, size_t total);

typedef struct pseg_feature_job {
    pseg_dataset *d;
    const pseg_data_selection *images;
    bool has_mirrored;           /* each image also mirrored */
    pseg_data_report_fn *report; /* told of images that are left out; or NULL */
    void *report_ud;
    pseg_feature_progress_fn *progress; /* after each batch; or NULL */
    void *progress_ud;
} pseg_feature_job;

/* entries: [images->n] or, with has_mirrored, [images->n, 2], the second mirrored: the entry of
 * each image, or PSEG_NO_FEATURE where the image is missing, broken or of another size than its
 * masks. *n_skipped: how many are. Only what is missing is computed; images are read ahead on a
 * thread of its own. v must be what the cache was opened for. Errors: PSEG_R_FILE_IO, also before
 * it begins if the disk has too little room; PSEG_R_CANCELLED (progress said so);
 * PSEG_R_DATA_CORRUPT (nothing is left); those of pseg_vision_run. All that was finished is kept.
 */
pseg_status pseg_feature_fill(uint32_t *entries, size_t *n_skipped, pseg_feature_cache *c,
                              pseg_vision *v, const pseg_feature_job *job, pseg_err *err);

#endif
