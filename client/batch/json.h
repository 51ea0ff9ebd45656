/* JSON as text in our buffers. */
#ifndef PSEG_CLIENT_BATCH_JSON_H
#define PSEG_CLIENT_BATCH_JSON_H

#include "common/base/buf.h"

#include <jansson.h>

/* Appends j as one line without its end. Errors: PSEG_R_OUT_OF_MEMORY, PSEG_R_REQUEST_TOO_LARGE;
 * what was appended then is half a document. */
pseg_status batch_json_put(pseg_buf *out, const json_t *j, pseg_err *err);
/* s as a JSON string; bytes that are not UTF-8 become '?'. */
json_t *batch_json_text(const char *s);
/* "" where the member is missing or no string. Borrowed from j. */
const char *batch_json_get(const json_t *j, const char *key);

#endif
