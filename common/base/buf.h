/* A growing byte buffer with a maximum from birth. */
#ifndef PSEG_BASE_BUF_H
#define PSEG_BASE_BUF_H

#include "common/base/err.h"

#include <stdint.h>

typedef struct pseg_buf {
    uint8_t *data; /* len bytes, and a NUL behind them that does not count */
    size_t len, cap, max;
} pseg_buf;

/* An empty buffer that may grow to max bytes; allocates nothing. */
void pseg_buf_init(pseg_buf *b, size_t max);
void pseg_buf_deinit(pseg_buf *b);
void pseg_buf_clear(pseg_buf *b); /* empty, memory kept */

/* Append. Errors: PSEG_R_REQUEST_TOO_LARGE past the maximum, PSEG_R_OUT_OF_MEMORY; the buffer is
 * then as before. */
pseg_status pseg_buf_append(pseg_buf *b, const void *data, size_t n, pseg_err *err);
pseg_status pseg_buf_puts(pseg_buf *b, const char *s, pseg_err *err);
pseg_status pseg_buf_printf(pseg_buf *b, pseg_err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Room for n more bytes at the end; *at points there and len has grown by n. */
pseg_status pseg_buf_extend(uint8_t **at, pseg_buf *b, size_t n, pseg_err *err);

/* Hands the bytes over: caller frees with pseg_free; the buffer is empty afterwards. */
uint8_t *pseg_buf_take(pseg_buf *b, size_t *len);

#endif
