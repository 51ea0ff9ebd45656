#include "worker/model/packed_cache.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "worker/model/packed.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SUM_MAGIC   "PSEGSUM1"
#define HALF_MADE_S 3600
#define OLD_SUM_S   (90 * 86400)
#define POLL_NS     10000000

typedef struct sum_file {
    char magic[8];
    uint8_t id[PSEG_SHA256_BYTES], digest[PSEG_SHA256_BYTES];
    int64_t taken_ns;
    uint64_t sum; /* of all before it */
} sum_file;

_Static_assert(sizeof(sum_file) == 88, "no padding: it is written");

static char *path_of(const char *dir, const uint8_t name[PSEG_SHA256_BYTES], const char *end)
{
    char hex[PSEG_SHA256_HEX + 1];

    pseg_hex(hex, name, PSEG_SHA256_BYTES);
    return pseg_asprintf("%s/%s%s", dir, hex, end);
}

char *pseg_packed_path(const char *dir, const uint8_t key[PSEG_SHA256_BYTES])
{
    return path_of(dir, key, ".packed");
}

/* ---- digests --------------------------------------------------------------------------------- */

bool pseg_sum_recall(uint8_t digest[PSEG_SHA256_BYTES], const char *dir,
                     const uint8_t id[PSEG_SHA256_BYTES], int64_t changed_ns)
{
    char *path = path_of(dir, id, ".sum");
    uint8_t *data = NULL;
    size_t n = 0;
    sum_file f;
    bool good = path && pseg_file_exists(path) &&
                pseg_file_read(&data, &n, path, sizeof f, NULL) == PSEG_OK && n == sizeof f;

    if (good) {
        memcpy(&f, data, sizeof f);
        good = memcmp(f.magic, SUM_MAGIC, sizeof f.magic) == 0 &&
               memcmp(f.id, id, sizeof f.id) == 0 &&
               f.sum == pseg_packed_sum(&f, offsetof(sum_file, sum)) &&
               changed_ns < f.taken_ns - PSEG_SUM_DOUBT_NS;
    }
    if (good) {
        memcpy(digest, f.digest, sizeof f.digest);
        pseg_packed_touch(path);
    }
    pseg_free(data);
    pseg_free(path);
    return good;
}

pseg_status pseg_sum_remember(const char *dir, const uint8_t id[PSEG_SHA256_BYTES],
                              const uint8_t digest[PSEG_SHA256_BYTES], int64_t taken_ns,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = path_of(dir, id, ".sum");
    sum_file f = {.magic = SUM_MAGIC, .taken_ns = taken_ns};

    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the digest of a model");
    memcpy(f.id, id, sizeof f.id);
    memcpy(f.digest, digest, sizeof f.digest);
    f.sum = pseg_packed_sum(&f, offsetof(sum_file, sum));
    PSEG_TRY(pseg_dir_make(dir, err));
    PSEG_TRY(pseg_file_write(path, &f, sizeof f, err));
out:
    pseg_free(path);
    return rc;
}

/* ---- one maker at a time --------------------------------------------------------------------- */

/* Is fd still the file of that name? Who had the lock before has removed it when he was done. */
static bool is_at(int fd, const char *name)
{
    struct stat a, b;

    return fstat(fd, &a) == 0 && stat(name, &b) == 0 && a.st_ino == b.st_ino &&
           a.st_dev == b.st_dev;
}

int pseg_packed_lock(const char *path, int64_t timeout_ms)
{
    const struct timespec nap = {0, POLL_NS}; /* flock knows no deadline */
    int64_t end = pseg_clock_mono_ms() + timeout_ms;
    char *name = pseg_asprintf("%s.lock", path);
    int fd = -1;

    while (name) {
        if (fd < 0)
            fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (fd < 0)
            break;
        bool is_locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
        if (is_locked && is_at(fd, name))
            break;
        bool is_over = pseg_clock_mono_ms() >= end || (!is_locked && errno != EWOULDBLOCK);
        if (is_locked || is_over) {
            close(fd);
            fd = -1;
        }
        if (is_over)
            break;
        if (!is_locked)
            nanosleep(&nap, NULL);
    }
    pseg_free(name);
    return fd;
}

void pseg_packed_unlock(int lock, const char *path)
{
    char *name = lock >= 0 ? pseg_asprintf("%s.lock", path) : NULL;

    if (name)
        unlink(name);
    if (lock >= 0)
        close(lock);
    pseg_free(name);
}

/* ---- size ------------------------------------------------------------------------------------ */

void pseg_packed_touch(const char *path)
{
    utimensat(AT_FDCWD, path, NULL, 0); /* refused: it counts as used when it was made */
}

typedef struct packed_file {
    char name[PSEG_SHA256_HEX + sizeof ".packed"];
    uint64_t bytes;
    struct timespec used;
} packed_file;

static int by_use(const void *a, const void *b) /* the latest first */
{
    const struct timespec x = ((const packed_file *)a)->used, y = ((const packed_file *)b)->used;

    if (x.tv_sec != y.tv_sec)
        return x.tv_sec > y.tv_sec ? -1 : 1;
    return x.tv_nsec != y.tv_nsec ? (x.tv_nsec > y.tv_nsec ? -1 : 1) : 0;
}

static bool has_end(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);

    return n >= k && strcmp(s + n - k, end) == 0;
}

/* Is it "KEY" and then end? Nothing else in the folder is touched. */
static bool is_ours(const char *name, const char *end)
{
    return strspn(name, "0123456789abcdef") == PSEG_SHA256_HEX &&
           strcmp(name + PSEG_SHA256_HEX, end) == 0;
}

static bool is_half_made(const char *name)
{
    return strspn(name, "0123456789abcdef") == PSEG_SHA256_HEX &&
           strncmp(name + PSEG_SHA256_HEX, ".packed.", 8) == 0 && has_end(name, ".tmp");
}

void pseg_packed_trim(const char *dir, const char *keep, uint64_t max_bytes)
{
    const char *kept = keep && strrchr(keep, '/') ? strrchr(keep, '/') + 1 : keep;
    packed_file *files = NULL;
    size_t n = 0, cap = 0;
    uint64_t sum = 0;
    struct stat st;
    DIR *d = opendir(dir);
    time_t now = time(NULL);

    for (struct dirent *e; d && (e = readdir(d));) {
        if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
            continue;
        if ((is_half_made(e->d_name) && now - st.st_mtime > HALF_MADE_S) ||
            (is_ours(e->d_name, ".sum") && now - st.st_mtime > OLD_SUM_S)) {
            unlinkat(dirfd(d), e->d_name, 0);
        } else if (kept && strcmp(e->d_name, kept) == 0) {
            sum += (uint64_t)st.st_size;
        } else if (is_ours(e->d_name, ".packed")) {
            if (n == cap) {
                packed_file *more = pseg_realloc(files, (cap = cap ? 2 * cap : 16) * sizeof *files);
                if (!more)
                    break; /* the next time, then */
                files = more;
            }
            files[n] = (packed_file){.bytes = (uint64_t)st.st_size, .used = st.st_mtim};
            snprintf(files[n++].name, sizeof files->name, "%s", e->d_name);
        }
    }
    if (n)
        qsort(files, n, sizeof *files, by_use);
    for (size_t i = 0; i < n; i++) {
        sum += files[i].bytes;
        if (sum > max_bytes)
            unlinkat(dirfd(d), files[i].name, 0);
    }
    if (d)
        closedir(d);
    pseg_free(files);
}
