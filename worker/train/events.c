#include "worker/train/events.h"
#include "common/base/alloc.h"
#include "common/base/buf.h"
#include "common/base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The file is a TFRecord (tensorflow/core/lib/io/record_writer.h): for each record its length, 64
 * bits, a masked CRC-32C of these 8 bytes, the data, and a masked CRC-32C of them; all
 * little-endian. The data are an Event (tensorflow/core/util/event.proto): wall_time = 1 double,
 * step = 2 int64, and one of file_version = 3 string, summary = 5, session_log = 7. A Summary has
 * values = 1, each with tag = 1 string and simple_value = 2 float; a SessionLog has status = 1, in
 * which 1 is START. */

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };
enum { WALL_TIME = 1, STEP = 2, FILE_VERSION = 3, SUMMARY = 5, SESSION_LOG = 7 };

#define MAX_EVENT ((size_t)4096)
#define MAX_TRIES 1000

struct pseg_events {
    char *path;
    int fd;
    pseg_buf event, part, value; /* an Event; its summary; a value of that */
    uint32_t table[256];         /* CRC-32C of each byte */
};

/* ---- records --------------------------------------------------------------------------------- */

static void make_table(uint32_t table[256])
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;

        for (int k = 0; k < 8; k++)
            c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1; /* Castagnoli's polynomial, reversed */
        table[i] = c;
    }
}

static uint32_t masked_crc(const pseg_events *e, const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t c = UINT32_MAX;

    for (size_t i = 0; i < n; i++)
        c = e->table[(c ^ p[i]) & 255] ^ c >> 8;
    c = ~c;
    return (c >> 15 | c << 17) + 0xa282ead8u;
}

static void put_le(uint8_t *out, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        out[i] = (uint8_t)(v >> 8 * i);
}

/* e->event as a record, in one write: it has room before and behind the data. */
static pseg_status write_record(pseg_events *e, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t record[12 + MAX_EVENT + 4];
    size_t n = e->event.len, all = 12 + n + 4;

    PSEG_REQUIRE(n <= MAX_EVENT, "an event");
    put_le(record, n, 8);
    put_le(record + 8, masked_crc(e, record, 8), 4);
    memcpy(record + 12, e->event.data, n);
    put_le(record + 12 + n, masked_crc(e, record + 12, n), 4);
    for (size_t at = 0; at < all;) {
        ssize_t k = write(e->fd, record + at, all - at);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", e->path, strerror(errno));
        at += (size_t)k;
    }
out:
    return rc;
}

/* ---- messages -------------------------------------------------------------------------------- */

static pseg_status put_varint(pseg_buf *b, uint64_t v, pseg_err *err)
{
    uint8_t bytes[10];
    size_t n = 0;

    for (; v >= 128; v >>= 7)
        bytes[n++] = (uint8_t)(v | 128);
    bytes[n++] = (uint8_t)v;
    return pseg_buf_append(b, bytes, n, err);
}

static pseg_status put_key(pseg_buf *b, int field, int type, pseg_err *err)
{
    return put_varint(b, (uint64_t)(field << 3 | type), err);
}

static pseg_status put_number(pseg_buf *b, int field, uint64_t v, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(put_key(b, field, VARINT, err));
    PSEG_TRY(put_varint(b, v, err));
out:
    return rc;
}

static pseg_status put_bytes(pseg_buf *b, int field, const void *data, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(put_key(b, field, BYTES, err));
    PSEG_TRY(put_varint(b, n, err));
    PSEG_TRY(pseg_buf_append(b, data, n, err));
out:
    return rc;
}

/* A double or a float. */
static pseg_status put_fixed(pseg_buf *b, int field, int type, uint64_t bits, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t bytes[8];
    int n = type == FIXED64 ? 8 : 4;

    put_le(bytes, bits, n);
    PSEG_TRY(put_key(b, field, type, err));
    PSEG_TRY(pseg_buf_append(b, bytes, (size_t)n, err));
out:
    return rc;
}

/* What every event begins with. */
static pseg_status begin(pseg_events *e, pseg_err *err)
{
    double seconds = (double)pseg_clock_unix_us() / 1e6;
    uint64_t bits;

    memcpy(&bits, &seconds, sizeof bits);
    pseg_buf_clear(&e->event);
    return put_fixed(&e->event, WALL_TIME, FIXED64, bits, err);
}

/* ---- the file -------------------------------------------------------------------------------- */

/* A name behind all that other processes have made in earlier seconds, or in this one. */
static pseg_status create(pseg_events *e, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t second = pseg_clock_unix_us() / 1000000;

    for (int i = 0; i < MAX_TRIES && e->fd < 0; i++) {
        pseg_free(e->path);
        e->path = pseg_asprintf("%s/events.out.tfevents.%010" PRId64 ".pseg", folder, second + i);
        if (!e->path)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an event file");
        e->fd = open(e->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        if (e->fd < 0 && errno != EEXIST)
            break;
    }
    if (e->fd < 0)
        PSEG_FAIL(errno == ENOENT ? PSEG_R_FILE_NOT_FOUND : PSEG_R_FILE_IO, errno,
                  "cannot create %s: %s", e->path, strerror(errno));
out:
    return rc;
}

pseg_status pseg_events_open(pseg_events **out, const char *folder, uint64_t from_step,
                             pseg_err *err)
{
    static const char version[] = "brain.Event:2";
    static const uint8_t start[] = {1 << 3 | VARINT, 1};
    pseg_status rc = PSEG_OK;
    pseg_events *e = pseg_calloc(1, sizeof *e);

    *out = NULL;
    if (!e)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an event file");
    e->fd = -1;
    pseg_buf_init(&e->event, MAX_EVENT);
    pseg_buf_init(&e->part, MAX_EVENT);
    pseg_buf_init(&e->value, MAX_EVENT);
    make_table(e->table);
    PSEG_TRY(create(e, folder, err));
    PSEG_TRY(begin(e, err));
    PSEG_TRY(put_bytes(&e->event, FILE_VERSION, version, sizeof version - 1, err));
    PSEG_TRY(write_record(e, err));
    PSEG_TRY(begin(e, err));
    PSEG_TRY(put_number(&e->event, STEP, from_step, err));
    PSEG_TRY(put_bytes(&e->event, SESSION_LOG, start, sizeof start, err));
    PSEG_TRY(write_record(e, err));
    *out = e;
    e = NULL;
out:
    pseg_events_close(e);
    return rc;
}

void pseg_events_close(pseg_events *e)
{
    if (!e)
        return;
    if (e->fd >= 0)
        close(e->fd);
    pseg_buf_deinit(&e->event);
    pseg_buf_deinit(&e->part);
    pseg_buf_deinit(&e->value);
    pseg_free(e->path);
    pseg_free(e);
}

/* Appends a value to the summary in e->part. */
static pseg_status put_scalar(pseg_events *e, const pseg_scalar *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float value = (float)s->value;
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    pseg_buf_clear(&e->value);
    PSEG_TRY(put_bytes(&e->value, 1, s->tag, strlen(s->tag), err));
    PSEG_TRY(put_fixed(&e->value, 2, FIXED32, bits, err));
    PSEG_TRY(put_bytes(&e->part, 1, e->value.data, e->value.len, err));
out:
    return rc;
}

pseg_status pseg_events_add(pseg_events *e, uint64_t step, const pseg_scalar *scalars, size_t n,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    pseg_buf_clear(&e->part);
    for (size_t i = 0; i < n; i++)
        if (isfinite(scalars[i].value))
            PSEG_TRY(put_scalar(e, &scalars[i], err));
    if (e->part.len == 0)
        goto out;
    PSEG_TRY(begin(e, err));
    PSEG_TRY(put_number(&e->event, STEP, step, err));
    PSEG_TRY(put_bytes(&e->event, SUMMARY, e->part.data, e->part.len, err));
    PSEG_TRY(write_record(e, err));
out:
    return rc;
}
