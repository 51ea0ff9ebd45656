#include "common/base/buf.h"
#include "common/base/alloc.h"

#include <stdio.h>
#include <string.h>

void pseg_buf_init(pseg_buf *b, size_t max)
{
    *b = (pseg_buf){.max = max};
}

void pseg_buf_deinit(pseg_buf *b)
{
    pseg_free(b->data);
    *b = (pseg_buf){.max = b->max};
}

void pseg_buf_clear(pseg_buf *b)
{
    b->len = 0;
    if (b->data)
        b->data[0] = 0;
}

pseg_status pseg_buf_extend(uint8_t **at, pseg_buf *b, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (n > b->max - b->len)
        PSEG_FAIL(PSEG_R_REQUEST_TOO_LARGE, 0, "buffer would grow past its limit of %zu bytes",
                  b->max);
    if (b->len + n + 1 > b->cap) {
        size_t cap = b->cap ? b->cap : 256;
        while (cap < b->len + n + 1)
            cap = cap > SIZE_MAX / 2 ? b->len + n + 1 : cap * 2;
        uint8_t *data = pseg_realloc(b->data, cap);
        if (!data)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a buffer of %zu bytes", cap);
        b->data = data;
        b->cap = cap;
    }
    *at = b->data + b->len;
    b->len += n;
    b->data[b->len] = 0;
out:
    return rc;
}

pseg_status pseg_buf_append(pseg_buf *b, const void *data, size_t n, pseg_err *err)
{
    uint8_t *at;
    pseg_status rc = pseg_buf_extend(&at, b, n, err);

    if (rc == PSEG_OK && n)
        memcpy(at, data, n);
    return rc;
}

pseg_status pseg_buf_puts(pseg_buf *b, const char *s, pseg_err *err)
{
    return pseg_buf_append(b, s, strlen(s), err);
}

pseg_status pseg_buf_printf(pseg_buf *b, pseg_err *err, const char *fmt, ...)
{
    pseg_status rc = PSEG_OK;
    uint8_t *at;
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "bad format string");
    PSEG_TRY(pseg_buf_extend(&at, b, (size_t)n, err));
    va_start(ap, fmt);
    vsnprintf((char *)at, (size_t)n + 1, fmt, ap); /* the NUL falls on the byte kept behind len */
    va_end(ap);
out:
    return rc;
}

uint8_t *pseg_buf_take(pseg_buf *b, size_t *len)
{
    uint8_t *data = b->data;

    if (len)
        *len = b->len;
    b->data = NULL;
    b->len = b->cap = 0;
    return data;
}
