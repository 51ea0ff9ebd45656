/* A model's weights through the cache of packed files: found, or made by one process while the
 * others that want the same wait for it. */
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/version.h"
#include "worker/model/packed_cache.h"
#include "worker/model/pseg_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define LOCK_TIMEOUT_MS 120000 /* for the largest model on a slow disk; then each makes its own */

/* Everything that decides what the file holds. If you load something by another rule, raise
 * PSEG_PACK_VERSION (ops.h). */
static void key_of(uint8_t key[PSEG_SHA256_BYTES], const pseg_model *m)
{
    const pseg_model_info *i = &m->info;
    char text[256];
    int n = snprintf(text, sizeof text, "packed %d.%d of pseg %s: %s, precision %d, %ux%u px",
                     PSEG_PACKED_FORMAT, PSEG_PACK_VERSION, PSEG_VERSION, i->digest,
                     (int)i->precision, i->height, i->width);

    pseg_sha256_of(key, text, (size_t)n);
}

static bool are_current(const pseg_model *m)
{
    return pseg_tensors_are_current(m->vision_file) && pseg_tensors_are_current(m->text_file) &&
           pseg_tensors_are_current(m->head_file) &&
           (!m->sam || pseg_tensors_are_current(pseg_sam_tensors(m->sam)));
}

/* Writes the file, piece by piece: one of them is in memory at a time. *is_files_fault: the model
 * is good, but the file could not be written. */
static pseg_status pack(pseg_model *m, const char *path, const uint8_t *key, pseg_parts_fn *make,
                        void *ud, bool *is_files_fault, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_store *const real = m->store;
    pseg_store *dry = NULL;
    pseg_packer *packer = NULL;

    *is_files_fault = true;
    PSEG_TRY(pseg_packer_new(&packer, path, key, err));
    PSEG_TRY(pseg_store_new(&dry, m->cl, err));
    pseg_store_pack_to(dry, packer);
    m->store = dry;
    rc = make(m, ud, err);
    *is_files_fault = pseg_packer_has_failed(packer);
    PSEG_TRY(rc);
    *is_files_fault = true;
    if (!are_current(m))
        PSEG_FAIL(PSEG_R_FILE_IO, 0, "the model's files changed while they were read");
    PSEG_TRY(pseg_packer_commit(packer, err));
out:
    pseg_parts_free(m);
    m->store = real;
    pseg_store_free(dry);
    pseg_packer_free(packer);
    return rc;
}

/* *out = NULL, and a line in the log, where there can be no file. */
static pseg_status find_or_make(pseg_packed **out, pseg_model *m, const char *dir, const char *path,
                                const uint8_t *key, pseg_parts_fn *make, void *ud, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_err e = PSEG_ERR_INIT;
    int lock = -1;
    int64_t start = pseg_clock_mono_us();
    bool is_files_fault = true;

    *out = NULL;
    pseg_status found = pseg_packed_open(out, path, key, &e);
    if (found == PSEG_OK)
        goto out;
    if (found == PSEG_ECORRUPT)
        PSEG_WARN(m->options.log, "model", "packed weights are made again: %s", e.msg);
    if (found == PSEG_ENOTFOUND || found == PSEG_ECORRUPT)
        found = pseg_dir_make(dir, &e);
    if (found == PSEG_OK) {
        lock = pseg_packed_lock(path, LOCK_TIMEOUT_MS);
        found = pseg_packed_open(out, path, key, NULL); /* another may just have made it */
        if (found != PSEG_OK)
            found = pack(m, path, key, make, ud, &is_files_fault, &e);
        if (found == PSEG_OK && !*out) {
            PSEG_INFO(m->options.log, "model", "packed weights kept path=%s ms=%" PRId64, path,
                      (pseg_clock_mono_us() - start) / 1000);
            pseg_packed_trim(dir, path, PSEG_PACKED_MAX_BYTES);
            found = pseg_packed_open(out, path, key, &e);
        }
    }
    if (found == PSEG_ENOMEM || !is_files_fault) {
        if (err)
            *err = e;
        rc = found;
    } else if (found != PSEG_OK) {
        PSEG_WARN(m->options.log, "model", "packed weights are not kept, nor shared: %s", e.msg);
    }
out:
    pseg_packed_unlock(lock, path);
    return rc;
}

pseg_status pseg_packed_load(pseg_model *m, const char *dir, pseg_parts_fn *make, void *ud,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t key[PSEG_SHA256_BYTES];
    pseg_packed *file = NULL;
    char *path = NULL;
    bool is_done = false;

    key_of(key, m);
    path = pseg_packed_path(dir, key);
    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a model");
    for (int attempt = 0; !is_done; attempt++) {
        pseg_err why = PSEG_ERR_INIT;

        if (attempt < 2)
            PSEG_TRY(find_or_make(&file, m, dir, path, key, make, ud, err));
        bool has_file = file != NULL;
        pseg_store_take_from(m->store, file);
        file = NULL;
        PSEG_TRY(make(m, ud, err));
        is_done = pseg_store_loaded(m->store, &why);
        if (is_done && has_file)
            pseg_packed_touch(path);
        if (is_done)
            break;
        /* What was loaded is right, but this process's own from the bad piece on. */
        PSEG_WARN(m->options.log, "model", "packed weights are made again: %s", why.msg);
        unlink(path);
        pseg_parts_free(m);
        pseg_store_free(m->store);
        m->store = NULL;
        PSEG_TRY(pseg_store_new(&m->store, m->cl, err));
    }
out:
    pseg_free(path);
    return rc;
}
