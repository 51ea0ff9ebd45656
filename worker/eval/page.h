/* Writing a page of HTML: text from anywhere is escaped, and the first error is kept until the end.
 * Private to worker/eval. */
#ifndef PSEG_EVAL_PAGE_H
#define PSEG_EVAL_PAGE_H

#include "common/base/buf.h"
#include "worker/eval/bootstrap.h"

typedef struct eval_page {
    pseg_buf *out;
    pseg_err *err;
    pseg_status rc;
    int n_charts; /* for ids */
} eval_page;

/* Markup of our own: nothing that comes from data may be among the arguments but numbers. */
void eval_put(eval_page *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Text of any origin: escaped, what is not UTF-8, controls no text and marks of direction become
 * visible, and what is past max_chars characters is cut. NULL: nothing. */
void eval_put_text(eval_page *p, const char *s, size_t max_chars);
/* A figure, or a dash where there is none. digits: behind the point. */
void eval_put_number(eval_page *p, double x, int digits);
/* "0.838 (0.829 to 0.846)" in two spans. */
void eval_put_interval(eval_page *p, const pseg_eval_interval *i, int digits);
/* "data:image/jpeg;base64,..." */
void eval_put_jpeg(eval_page *p, const uint8_t *data, size_t n);

#endif
