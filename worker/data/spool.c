/* A temporary file without a name: records of a set, however many there are. */
#include "common/base/conf.h"
#include "worker/data/builder.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pseg_status failed(const char *what, pseg_err *err)
{
    const char *dir = pseg_conf_env("TMPDIR");

    return pseg_err_set(err, PSEG_R_FILE_IO, errno, PSEG_HERE,
                        "cannot %s a temporary file in %s: %s%s", what, dir ? dir : "/tmp",
                        strerror(errno),
                        errno == ENOSPC ? "; set TMPDIR to a folder with more room" : "");
}

pseg_status spool_open(spool *s, pseg_err *err)
{
    const char *dir = pseg_conf_env("TMPDIR");
    char path[4096];
    int fd;

    snprintf(path, sizeof path, "%s/pseg-data-XXXXXX", dir && dir[0] ? dir : "/tmp");
    fd = mkstemp(path);
    if (fd < 0)
        return failed("make", err);
    unlink(path);
    s->f = fdopen(fd, "w+");
    if (!s->f) {
        pseg_status rc = failed("open", err);
        close(fd);
        return rc;
    }
    s->size = 0;
    return PSEG_OK;
}

pseg_status spool_append(uint64_t *at, spool *s, const void *data, size_t n, pseg_err *err)
{
    if (fwrite(data, 1, n, s->f) != n)
        return failed("write", err);
    *at = s->size;
    s->size += n;
    return PSEG_OK;
}

pseg_status spool_flush(spool *s, pseg_err *err)
{
    return fflush(s->f) == 0 ? PSEG_OK : failed("write", err);
}

pseg_status spool_read(void *out, const spool *s, uint64_t at, size_t n, pseg_err *err)
{
    uint8_t *to = out;

    while (n) {
        ssize_t got = pread(fileno(s->f), to, n, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            errno = got < 0 ? errno : EIO;
            return failed("read", err);
        }
        to += got;
        at += (uint64_t)got;
        n -= (size_t)got;
    }
    return PSEG_OK;
}

void spool_close(spool *s)
{
    if (s->f)
        fclose(s->f);
    s->f = NULL;
}
