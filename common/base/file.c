#include "common/base/file.h"
#include "common/base/alloc.h"
#include "common/base/buf.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static pseg_reason reason_of(int e)
{
    return e == ENOENT || e == ENOTDIR ? PSEG_R_FILE_NOT_FOUND
           : e == ENOMEM               ? PSEG_R_OUT_OF_MEMORY
                                       : PSEG_R_FILE_IO;
}

pseg_status pseg_file_read(uint8_t **out, size_t *out_len, const char *path, size_t max_bytes,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool is_stdin = strcmp(path, "-") == 0;
    int fd = -1;
    pseg_buf b;

    *out = NULL;
    *out_len = 0;
    /* One byte over the limit is enough to know that the file is too large. */
    pseg_buf_init(&b, max_bytes < SIZE_MAX ? max_bytes + 1 : max_bytes);
    fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        PSEG_FAIL(reason_of(errno), errno, "cannot open %s: %s", path, strerror(errno));
    for (;;) {
        uint8_t *at;
        size_t room = b.max - b.len < 65536 ? b.max - b.len : 65536;
        if (room == 0)
            PSEG_FAIL(PSEG_R_REQUEST_TOO_LARGE, 0, "%s is larger than the limit of %zu bytes", path,
                      max_bytes);
        PSEG_TRY(pseg_buf_extend(&at, &b, room, err));
        ssize_t n = read(fd, at, room);
        b.len -= room - (n > 0 ? (size_t)n : 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            PSEG_FAIL(reason_of(errno), errno, "cannot read %s: %s", path, strerror(errno));
        if (n == 0)
            break;
    }
    if (b.len > max_bytes)
        PSEG_FAIL(PSEG_R_REQUEST_TOO_LARGE, 0, "%s is larger than the limit of %zu bytes", path,
                  max_bytes);
    if (!b.data) {
        uint8_t *at;
        PSEG_TRY(pseg_buf_extend(&at, &b, 0, err));
    }
    b.data[b.len] = 0;
    *out = pseg_buf_take(&b, out_len);
out:
    if (fd >= 0 && !is_stdin)
        close(fd);
    pseg_buf_deinit(&b);
    return rc;
}

static pseg_status write_all(int fd, const char *path, const void *data, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *p = data;

    while (n) {
        ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", path, strerror(errno));
        p += w;
        n -= (size_t)w;
    }
out:
    return rc;
}

pseg_status pseg_file_write(const char *path, const void *data, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *tmp = NULL;
    int fd = -1;
    bool made = false;

    if (strcmp(path, "-") == 0) {
        PSEG_TRY(write_all(STDOUT_FILENO, "standard output", data, n, err));
        goto out;
    }
    tmp = pseg_asprintf("%s.XXXXXX", path);
    if (!tmp)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to write %s", path);
    fd = mkostemp(tmp, O_CLOEXEC);
    if (fd < 0)
        PSEG_FAIL(reason_of(errno), errno, "cannot create %s: %s", path, strerror(errno));
    made = true;
    PSEG_TRY(write_all(fd, path, data, n, err));
    mode_t mask = umask(0);
    umask(mask);
    if (fchmod(fd, 0666 & ~mask) || fsync(fd) || rename(tmp, path))
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", path, strerror(errno));
    made = false;
out:
    if (fd >= 0)
        close(fd);
    if (made)
        unlink(tmp);
    pseg_free(tmp);
    return rc;
}

pseg_status pseg_file_flush(FILE *f, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    struct pollfd p = {fileno(f), POLLOUT, 0};

    errno = 0;
    if (fflush(f) == 0 && !ferror(f))
        goto out;
    /* An earlier write may have failed, whose errno is gone: the pipe itself tells. */
    bool reader_gone = errno == EPIPE || (poll(&p, 1, 0) == 1 && (p.revents & POLLERR));
    if (!reader_gone)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write to %s: %s", name,
                  errno ? strerror(errno) : "an earlier write failed");
out:
    return rc;
}

static int64_t ns_of(struct timespec t)
{
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static pseg_file_id id_of(const struct stat *st)
{
    return (pseg_file_id){.device = st->st_dev,
                          .inode = st->st_ino,
                          .size = (uint64_t)st->st_size,
                          .written_ns = ns_of(st->st_mtim),
                          .changed_ns = ns_of(st->st_ctim)};
}

pseg_status pseg_file_identify(pseg_file_id *out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    struct stat st;

    *out = (pseg_file_id){0};
    if (stat(path, &st))
        PSEG_FAIL(reason_of(errno), errno, "cannot look at %s: %s", path, strerror(errno));
    *out = id_of(&st);
out:
    return rc;
}

pseg_status pseg_map_open(pseg_map *out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    *out = (pseg_map){0};
    if (fd < 0 || fstat(fd, &st))
        PSEG_FAIL(reason_of(errno), errno, "cannot open %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        PSEG_FAIL(PSEG_R_FILE_IO, 0, "%s is not a regular file", path);
    if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
            PSEG_FAIL(reason_of(errno), errno, "cannot map %s: %s", path, strerror(errno));
        *out = (pseg_map){.data = p, .size = (size_t)st.st_size};
    }
    out->id = id_of(&st);
out:
    if (fd >= 0)
        close(fd);
    return rc;
}

void pseg_map_close(pseg_map *m)
{
    if (m->data)
        munmap((void *)(uintptr_t)m->data, m->size);
    *m = (pseg_map){0};
}

void pseg_map_drop(const void *data, size_t n)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)data;
    const uintptr_t from = (at + page - 1) / page * page, to = (at + n) / page * page;

    if (to > from)
        madvise((void *)from, to - from, MADV_DONTNEED);
}

bool pseg_file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

pseg_status pseg_dir_make(const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    struct stat st;
    char *p = pseg_strdup(path);

    if (!p)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to create %s", path);
    for (char *s = p + 1; *p; s++) {
        bool end = *s == '\0';
        if (*s != '/' && !end)
            continue;
        *s = '\0';
        if (mkdir(p, 0777) && errno != EEXIST)
            PSEG_FAIL(reason_of(errno), errno, "cannot create folder %s: %s", p, strerror(errno));
        if (end)
            break;
        *s = '/';
    }
    if (*p && (stat(path, &st) || !S_ISDIR(st.st_mode)))
        PSEG_FAIL(PSEG_R_FILE_IO, ENOTDIR, "cannot create folder %s: a file has this name", path);
out:
    pseg_free(p);
    return rc;
}

char *pseg_path_join(const char *dir, const char *name)
{
    size_t n = strlen(dir);

    return pseg_asprintf("%s%s%s", dir, n && dir[n - 1] != '/' ? "/" : "", name);
}
