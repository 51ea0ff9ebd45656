/* The cache of compiled programs on disk.
 *
 * A cache file is "<sha256 of key>.clbin": MAGIC, sha256 of the binary, the binary. The key covers
 * everything that the binary depends on. A file that does not hold what it should is rebuilt and
 * replaced; nothing about the cache ever fails a build.
 *
 * Asking a driver for a binary can cost more than the build did: PoCL then compiles every kernel
 * once more, for work-groups of any size. So programs are kept when nobody waits: in a thread of
 * low priority once a worker is ready, or before a program that does its work and ends is closed.
 */
#include "worker/cl/internal.h"

#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/hash.h"

#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define MAGIC        "PSEGCL1\n"
#define MAGIC_BYTES  8u
#define MAX_BINARY   (64u << 20)
#define HEADER_BYTES (MAGIC_BYTES + PSEG_SHA256_BYTES)
/* Not the lowest: the driver's compiler has one lock, and whoever holds it must get on even where
 * others take all processors. */
#define NICE 10

/* The whole file, if it is what was written. NULL: not there or damaged (*is_there). */
static uint8_t *read_kept(size_t *n, bool *is_there, const char *path)
{
    uint8_t *data = NULL, digest[PSEG_SHA256_BYTES];

    *is_there = pseg_file_exists(path);
    if (!*is_there || pseg_file_read(&data, n, path, MAX_BINARY + HEADER_BYTES, NULL) != PSEG_OK)
        return NULL;
    if (*n > HEADER_BYTES && memcmp(data, MAGIC, MAGIC_BYTES) == 0) {
        pseg_sha256_of(digest, data + HEADER_BYTES, *n - HEADER_BYTES);
        if (memcmp(digest, data + MAGIC_BYTES, sizeof digest) == 0)
            return data;
    }
    pseg_free(data);
    return NULL;
}

cl_program pseg_program_load_kept(bool *is_damaged, pseg_cl *cl, const char *path,
                                  const char *options)
{
    size_t n = 0;
    bool is_there;
    uint8_t *data = read_kept(&n, &is_there, path);
    cl_program p = NULL;

    if (data) {
        const uint8_t *binary = data + HEADER_BYTES;
        size_t size = n - HEADER_BYTES;
        cl_int code = CL_SUCCESS, status = CL_SUCCESS;

        p = clCreateProgramWithBinary(cl->context, 1, &cl->device, &size, &binary, &status, &code);
        if (p && (code != CL_SUCCESS || status != CL_SUCCESS ||
                  clBuildProgram(p, 1, &cl->device, options, NULL, NULL) != CL_SUCCESS)) {
            clReleaseProgram(p);
            p = NULL;
        }
        pseg_free(data);
    }
    *is_damaged = is_there && !p;
    if (*is_damaged)
        PSEG_WARN(cl->log, "cl", "cached program is unusable and is built again path=%s", path);
    return p;
}

/* A driver that gives no binary, or a full disk, only costs the next start its time. */
static void store(pseg_cl *cl, const char *path, cl_program p)
{
    uint8_t *data = NULL;
    size_t size = 0;
    pseg_err e = PSEG_ERR_INIT;

    if (clGetProgramInfo(p, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, NULL) == CL_SUCCESS &&
        size > 0 && size <= MAX_BINARY && (data = pseg_malloc(HEADER_BYTES + size)) != NULL) {
        unsigned char *binary = data + HEADER_BYTES;

        if (clGetProgramInfo(p, CL_PROGRAM_BINARIES, sizeof binary, &binary, NULL) == CL_SUCCESS) {
            memcpy(data, MAGIC, MAGIC_BYTES);
            pseg_sha256_of(data + MAGIC_BYTES, binary, size);
            if (pseg_dir_make(cl->cache_dir, &e) != PSEG_OK ||
                pseg_file_write(path, data, HEADER_BYTES + size, &e) != PSEG_OK)
                PSEG_WARN(cl->log, "cl", "compiled program is not kept: %s", e.msg);
        }
    }
    pseg_free(data);
}

/* Unless another process has kept the same program by now. */
static void keep(pseg_cl *cl, const char *path, cl_program p, bool is_damaged)
{
    size_t n = 0;
    bool is_there;
    uint8_t *data = is_damaged ? NULL : read_kept(&n, &is_there, path);

    if (!data)
        store(cl, path, p);
    pseg_free(data);
}

/* The first that is not kept yet, taken out of the list of those; NULL: none. With the lock held.
 */
static pseg_program *next_unkept(pseg_cl *cl)
{
    for (pseg_program *p = cl->programs; p; p = p->next)
        if (p->keep_at && !p->is_being_kept)
            return p;
    return NULL;
}

/* Keeps one; with the lock held, which is let go meanwhile. Programs live until their cl ends. */
static void keep_one(pseg_cl *cl, pseg_program *p)
{
    int64_t begin = pseg_clock_mono_us();

    p->is_being_kept = true;
    cl->n_being_kept++;
    pthread_mutex_unlock(&cl->programs_lock);
    keep(cl, p->keep_at, p->program, p->is_damaged);
    PSEG_DBG(cl->log, "cl", "program kept file=%s ms=%.1f", p->file,
             (double)(pseg_clock_mono_us() - begin) * 1e-3);
    pthread_mutex_lock(&cl->programs_lock);
    pseg_free(p->keep_at);
    p->keep_at = NULL;
    p->is_being_kept = false;
    cl->n_being_kept--;
    pthread_cond_broadcast(&cl->keeper_cv);
}

static void *keeper_main(void *arg)
{
    pseg_cl *cl = arg;

    setpriority(PRIO_PROCESS, (id_t)gettid(), NICE);
    pthread_mutex_lock(&cl->programs_lock);
    while (!cl->keeper_must_end) {
        pseg_program *p = next_unkept(cl);
        if (p)
            keep_one(cl, p);
        else
            pthread_cond_wait(&cl->keeper_cv, &cl->programs_lock);
    }
    pthread_mutex_unlock(&cl->programs_lock);
    return NULL;
}

void pseg_cl_keep_in_background(pseg_cl *cl)
{
    pthread_mutex_lock(&cl->programs_lock);
    if (cl->cache_dir && !cl->has_keeper)
        cl->has_keeper = pthread_create(&cl->keeper, NULL, keeper_main, cl) == 0;
    pthread_mutex_unlock(&cl->programs_lock);
}

void pseg_cl_keep_now(pseg_cl *cl)
{
    pseg_program *p;

    pthread_mutex_lock(&cl->programs_lock);
    while ((p = next_unkept(cl)) || cl->n_being_kept > 0) {
        if (p)
            keep_one(cl, p);
        else
            pthread_cond_wait(&cl->keeper_cv, &cl->programs_lock);
    }
    pthread_mutex_unlock(&cl->programs_lock);
}

void pseg_programs_end_keeping(pseg_cl *cl)
{
    pthread_mutex_lock(&cl->programs_lock);
    bool has_keeper = cl->has_keeper;
    cl->keeper_must_end = true;
    pthread_cond_broadcast(&cl->keeper_cv);
    pthread_mutex_unlock(&cl->programs_lock);
    if (has_keeper)
        pthread_join(cl->keeper, NULL);
    else
        pseg_cl_keep_now(cl);
}
