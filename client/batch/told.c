#include "client/batch/told.h"

#include "common/base/alloc.h"
#include "common/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NUMBER_BYTES = 4, BUFFERED = 4096 };

struct batch_told {
    char *path;
    int fd;
    uint64_t n_items;
    uint8_t *bits; /* of item seq: bit seq - 1 */
    uint8_t buffer[BUFFERED * NUMBER_BYTES];
    size_t n_buffered;
};

static pseg_status fail_io(const batch_told *t, const char *what, pseg_err *err)
{
    return pseg_err_set(err, PSEG_R_FILE_IO, errno, PSEG_HERE, "cannot %s %s: %s", what, t->path,
                        strerror(errno));
}

bool batch_told_has(const batch_told *t, uint64_t seq)
{
    return t->bits[(seq - 1) / 8] >> (seq - 1) % 8 & 1;
}

static void mark(batch_told *t, uint64_t seq)
{
    t->bits[(seq - 1) / 8] |= (uint8_t)(1U << (seq - 1) % 8);
}

static pseg_status load_piece(batch_told *t, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t want = n * NUMBER_BYTES, got = 0;

    while (got < want) {
        ssize_t more = read(t->fd, t->buffer + got, want - got);
        if (more < 0 && errno == EINTR)
            continue;
        if (more <= 0) {
            rc = fail_io(t, "read", err);
            goto out;
        }
        got += (size_t)more;
    }
    for (size_t i = 0; i < n; i++) {
        const uint8_t *p = t->buffer + i * NUMBER_BYTES;
        uint32_t seq =
            (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        if (seq < 1 || seq > t->n_items || batch_told_has(t, seq))
            PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                      "%s is damaged: it names item %" PRIu32 " of %" PRIu64
                      " wrongly; begin in another folder",
                      t->path, seq, t->n_items);
        mark(t, seq);
    }
out:
    return rc;
}

pseg_status batch_told_open(batch_told **out, const char *folder, uint64_t n_items, uint64_t n,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_told *t = pseg_calloc(1, sizeof *t);
    struct stat st;

    *out = NULL;
    if (!t)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    t->fd = -1;
    t->n_items = n_items;
    t->path = pseg_path_join(folder, "told");
    t->bits = pseg_calloc((size_t)(n_items / 8 + 1), 1);
    if (!t->path || !t->bits)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    if (n_items > UINT32_MAX)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%" PRIu64 " items are too many for a batch", n_items);
    t->fd = open(t->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (t->fd < 0 || fstat(t->fd, &st)) {
        rc = fail_io(t, "write", err);
        goto out;
    }
    if ((uint64_t)st.st_size / NUMBER_BYTES < n)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                  "%s has %lld numbers, but %" PRIu64
                  " results were written when this batch was cut off; bring it back, or begin in "
                  "another folder",
                  t->path, (long long)st.st_size / NUMBER_BYTES, n);
    for (uint64_t at = 0; at < n; at += BUFFERED)
        PSEG_TRY(load_piece(t, (size_t)(n - at < BUFFERED ? n - at : BUFFERED), err));
    if (ftruncate(t->fd, (off_t)(n * NUMBER_BYTES)) || lseek(t->fd, 0, SEEK_END) < 0) {
        rc = fail_io(t, "write", err);
        goto out;
    }
    *out = t;
    t = NULL;
out:
    batch_told_close(t);
    return rc;
}

void batch_told_close(batch_told *t)
{
    if (!t)
        return;
    if (t->fd >= 0)
        close(t->fd);
    pseg_free(t->path);
    pseg_free(t->bits);
    pseg_free(t);
}

static pseg_status flush(batch_told *t, pseg_err *err)
{
    size_t bytes = t->n_buffered * NUMBER_BYTES;

    for (size_t at = 0; at < bytes;) {
        ssize_t n = write(t->fd, t->buffer + at, bytes - at);
        if (n < 0 && errno != EINTR)
            return fail_io(t, "write", err);
        at += n > 0 ? (size_t)n : 0;
    }
    t->n_buffered = 0;
    return PSEG_OK;
}

pseg_status batch_told_add(batch_told *t, uint64_t seq, pseg_err *err)
{
    uint8_t *p = t->buffer + t->n_buffered++ * NUMBER_BYTES;

    for (int i = 0; i < NUMBER_BYTES; i++)
        p[i] = (uint8_t)(seq >> 8 * i);
    mark(t, seq);
    return t->n_buffered == BUFFERED ? flush(t, err) : PSEG_OK;
}

pseg_status batch_told_sync(batch_told *t, pseg_err *err)
{
    pseg_status rc = flush(t, err);

    if (rc == PSEG_OK && fdatasync(t->fd))
        rc = fail_io(t, "write", err);
    return rc;
}

void batch_told_remove(const char *folder)
{
    char *path = pseg_path_join(folder, "told");

    if (path)
        unlink(path);
    pseg_free(path);
}
