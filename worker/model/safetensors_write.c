#include "worker/model/safetensors_write.h"
#include "common/base/alloc.h"
#include "common/base/buf.h"
#include "common/base/half.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_HEADER ((size_t)64 << 20)
#define N_COUNTS   4096
#define HALF_MAX   65504.0f

struct pseg_tensors_writer {
    char *path, *temporary;
    pseg_buf meta, tensors; /* halves of the header's JSON */
    struct declared {
        uint64_t n;
        bool is_half;
    } * counts; /* of each tensor */
    bool is_half;
    size_t n, cap, n_written;
    uint64_t at; /* bytes of data declared */
    int fd;      /* -1: nothing is on the disk */
};

pseg_status pseg_tensors_writer_new(pseg_tensors_writer **out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_tensors_writer *w = pseg_calloc(1, sizeof *w);

    *out = NULL;
    if (!w)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to write %s", path);
    w->fd = -1;
    pseg_buf_init(&w->meta, MAX_HEADER);
    pseg_buf_init(&w->tensors, MAX_HEADER);
    w->path = pseg_strdup(path);
    w->temporary = pseg_asprintf("%s.new", path);
    if (!w->path || !w->temporary)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to write %s", path);
    *out = w;
    w = NULL;
out:
    pseg_tensors_writer_free(w);
    return rc;
}

void pseg_tensors_writer_free(pseg_tensors_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0) {
        close(w->fd);
        unlink(w->temporary);
    }
    pseg_buf_deinit(&w->meta);
    pseg_buf_deinit(&w->tensors);
    pseg_free(w->counts);
    pseg_free(w->path);
    pseg_free(w->temporary);
    pseg_free(w);
}

/* "text" as JSON has it. */
static pseg_status append_string(pseg_buf *b, const char *text, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char code[8];

    PSEG_TRY(pseg_buf_puts(b, "\"", err));
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '"' || *p == '\\')
            snprintf(code, sizeof code, "\\%c", *p);
        else if (*p < 0x20)
            snprintf(code, sizeof code, "\\u%04x", *p);
        else
            snprintf(code, sizeof code, "%c", *p);
        PSEG_TRY(pseg_buf_puts(b, code, err));
    }
    PSEG_TRY(pseg_buf_puts(b, "\"", err));
out:
    return rc;
}

pseg_status pseg_tensors_writer_meta(pseg_tensors_writer *w, const char *key, const char *value,
                                     pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(w->fd < 0, "metadata before data");
    PSEG_TRY(pseg_buf_puts(&w->meta, w->meta.len ? "," : "", err));
    PSEG_TRY(append_string(&w->meta, key, err));
    PSEG_TRY(pseg_buf_puts(&w->meta, ":", err));
    PSEG_TRY(append_string(&w->meta, value, err));
out:
    return rc;
}

void pseg_tensors_writer_set_type(pseg_tensors_writer *w, pseg_dtype type)
{
    w->is_half = type == PSEG_F16;
}

pseg_status pseg_tensors_writer_declare(pseg_tensors_writer *w, const char *name, uint32_t rank,
                                        const uint64_t *dims, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t n = 1, size = w->is_half ? 2 : 4;
    char text[96];

    PSEG_REQUIRE(w->fd < 0, "names before data");
    if (w->n == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : N_COUNTS;
        struct declared *counts = pseg_realloc(w->counts, cap * sizeof *counts);
        if (!counts)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to write %s", w->path);
        w->counts = counts;
        w->cap = cap;
    }
    PSEG_TRY(pseg_buf_puts(&w->tensors, ",", err));
    PSEG_TRY(append_string(&w->tensors, name, err));
    PSEG_TRY(pseg_buf_puts(
        &w->tensors,
        w->is_half ? ":{\"dtype\":\"F16\",\"shape\":[" : ":{\"dtype\":\"F32\",\"shape\":[", err));
    for (uint32_t i = 0; i < rank; i++) {
        snprintf(text, sizeof text, "%s%" PRIu64, i ? "," : "", dims[i]);
        PSEG_TRY(pseg_buf_puts(&w->tensors, text, err));
        n *= dims[i];
    }
    snprintf(text, sizeof text, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", w->at,
             w->at + size * n);
    PSEG_TRY(pseg_buf_puts(&w->tensors, text, err));
    w->at += size * n;
    w->counts[w->n++] = (struct declared){n, w->is_half};
out:
    return rc;
}

static pseg_status write_all(pseg_tensors_writer *w, const void *data, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *p = data;

    while (n) {
        ssize_t k = write(w->fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", w->path, strerror(errno));
        p += k;
        n -= (size_t)k;
    }
out:
    return rc;
}

/* The length, and the header, filled with spaces so that the data begin at a multiple of 64. */
static pseg_status write_header(pseg_tensors_writer *w, pseg_err *err)
{
    static const char spaces[64] =
        "                                                               ";
    static const char opening[] = "{\"__metadata__\":{";
    pseg_status rc = PSEG_OK;
    uint64_t n = sizeof opening - 1 + w->meta.len + 1 + w->tensors.len + 1;
    uint64_t gap = (64 - (8 + n) % 64) % 64, len = n + gap;
    uint8_t length[8];

    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)(len >> 8 * i);
    w->fd = open(w->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd < 0)
        PSEG_FAIL(errno == ENOENT ? PSEG_R_FILE_NOT_FOUND : PSEG_R_FILE_IO, errno,
                  "cannot create %s: %s", w->temporary, strerror(errno));
    PSEG_TRY(write_all(w, length, sizeof length, err));
    PSEG_TRY(write_all(w, opening, sizeof opening - 1, err));
    PSEG_TRY(write_all(w, w->meta.data, w->meta.len, err));
    PSEG_TRY(write_all(w, "}", 1, err));
    PSEG_TRY(write_all(w, w->tensors.data, w->tensors.len, err));
    PSEG_TRY(write_all(w, "}", 1, err));
    PSEG_TRY(write_all(w, spaces, gap, err));
out:
    return rc;
}

static pseg_status write_halves(pseg_tensors_writer *w, const float *values, size_t n,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint16_t halves[1024];

    for (size_t at = 0; at < n; at += 1024) {
        size_t k = n - at < 1024 ? n - at : 1024;

        for (size_t i = at; i < at + k; i++)
            if (!(values[i] >= -HALF_MAX && values[i] <= HALF_MAX))
                PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                          "%s: a weight of %g, and float16 goes to 65504; write float32 (without "
                          "--half)",
                          w->path, (double)values[i]);
        pseg_half_from_floats(halves, values + at, k);
        PSEG_TRY(write_all(w, halves, k * sizeof *halves, err));
    }
out:
    return rc;
}

pseg_status pseg_tensors_writer_data(pseg_tensors_writer *w, const float *values, size_t n,
                                     pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(w->n_written < w->n && n == w->counts[w->n_written].n,
                 "numbers of the next tensor");
    if (w->fd < 0)
        PSEG_TRY(write_header(w, err));
    if (w->counts[w->n_written].is_half)
        PSEG_TRY(write_halves(w, values, n, err));
    else
        PSEG_TRY(write_all(w, values, n * sizeof *values, err));
    w->n_written++;
out:
    return rc;
}

/* The folder's entry is on the disk too; file systems that cannot say so are believed. */
static void sync_folder(const char *path)
{
    char *folder = pseg_strdup(path), *slash;
    int fd;

    if (!folder)
        return;
    slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = '\0';
    fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)!fsync(fd);
        close(fd);
    }
    pseg_free(folder);
}

pseg_status pseg_tensors_writer_finish(pseg_tensors_writer *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(w->n > 0 && w->n_written == w->n && w->fd >= 0, "every tensor");
    if (fsync(w->fd) || rename(w->temporary, w->path))
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", w->path, strerror(errno));
    close(w->fd);
    w->fd = -1;
    sync_folder(w->path);
out:
    return rc;
}
