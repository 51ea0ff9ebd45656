#include "client/batch/json.h"

#include "common/base/alloc.h"
#include "common/base/utf8.h"

typedef struct sink {
    pseg_buf *out;
    pseg_status rc;
    pseg_err *err;
} sink;

static int append(const char *data, size_t n, void *ud)
{
    sink *s = ud;

    s->rc = pseg_buf_append(s->out, data, n, s->err);
    return s->rc == PSEG_OK ? 0 : -1;
}

pseg_status batch_json_put(pseg_buf *out, const json_t *j, pseg_err *err)
{
    sink s = {out, PSEG_OK, err};
    const size_t flags = JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_ENCODE_ANY |
                         JSON_REAL_PRECISION(9); /* a float comes back as it was */

    if (json_dump_callback(j, append, &s, flags) != 0 && s.rc == PSEG_OK)
        s.rc = pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory to write JSON");
    return s.rc;
}

json_t *batch_json_text(const char *s)
{
    json_t *j = json_string(s);
    char *copy = j ? NULL : pseg_strdup(s);

    if (copy) {
        pseg_utf8_repair(copy);
        j = json_string(copy);
        pseg_free(copy);
    }
    return j;
}

const char *batch_json_get(const json_t *j, const char *key)
{
    const char *s = json_string_value(json_object_get(j, key));

    return s ? s : "";
}
