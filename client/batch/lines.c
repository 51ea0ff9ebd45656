#include "client/batch/lines.h"

#include "common/base/alloc.h"

#include <errno.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)64 << 10)

pseg_status batch_lines_open(batch_lines *l, const char *path, size_t max_bytes, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *l = (batch_lines){.path = path, .block = pseg_malloc(BLOCK_BYTES)};
    pseg_buf_init(&l->line, max_bytes);
    if (!l->block)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    l->f = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    if (!l->f)
        PSEG_FAIL(errno == ENOENT ? PSEG_R_FILE_NOT_FOUND : PSEG_R_FILE_IO, errno,
                  "cannot open %s: %s", path, strerror(errno));
out:
    return rc;
}

void batch_lines_close(batch_lines *l)
{
    if (l->f && l->f != stdin)
        fclose(l->f);
    pseg_buf_deinit(&l->line);
    pseg_free(l->block);
}

/* What the block holds of the present line; *at_end: its last part. */
static pseg_status take(bool *at_end, batch_lines *l, pseg_err *err)
{
    const char *from = l->block + l->at, *newline = memchr(from, '\n', l->len - l->at);
    size_t n = newline ? (size_t)(newline - from) : l->len - l->at;
    size_t room = l->line.max - l->line.len;

    *at_end = newline;
    l->at += n + (newline ? 1 : 0);
    l->too_long = l->too_long || n > room;
    return pseg_buf_append(&l->line, from, n < room ? n : room, err);
}

static void trim(batch_lines *l)
{
    if (l->number == 1 && l->line.len >= 3 && memcmp(l->line.data, "\xef\xbb\xbf", 3) == 0) {
        memmove(l->line.data, l->line.data + 3, l->line.len - 3);
        l->line.len -= 3;
    }
    if (l->line.len && l->line.data[l->line.len - 1] == '\r')
        l->line.len--;
    if (l->line.data)
        l->line.data[l->line.len] = '\0';
}

pseg_status batch_lines_next(bool *more, batch_lines *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool at_end = false;

    *more = false;
    pseg_buf_clear(&l->line);
    l->too_long = false;
    while (!at_end) {
        if (l->at == l->len) {
            l->at = 0;
            l->len = fread(l->block, 1, BLOCK_BYTES, l->f);
            if (ferror(l->f))
                PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot read %s: %s", l->path, strerror(errno));
            if (l->len == 0)
                break;
        }
        *more = true;
        PSEG_TRY(take(&at_end, l, err));
    }
    if (*more) {
        l->number++;
        trim(l);
    }
out:
    return rc;
}
