#include "worker/eval/curves.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/eval/json.h"

#include <math.h>
#include <string.h>

static double number_of(const json_t *line, const char *name)
{
    const json_t *j = json_object_get(line, name);

    return json_is_number(j) ? json_number_value(j) : NAN;
}

/* Where the point of an epoch stands, or belongs. */
static size_t place_of(const pseg_eval_curves *c, double epoch)
{
    size_t i = c->n_epochs;

    while (i > 0 && c->epochs[i - 1].epoch >= epoch)
        i--;
    return i;
}

static pseg_status add_epoch(pseg_eval_curves *c, size_t *cap, const pseg_eval_curve_point *p,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t at = place_of(c, p->epoch);

    if (at < c->n_epochs && c->epochs[at].epoch == p->epoch) {
        c->epochs[at] = *p;
        goto out;
    }
    if (c->n_epochs == *cap) {
        size_t more = *cap ? 2 * *cap : 64;
        pseg_eval_curve_point *epochs = pseg_realloc(c->epochs, more * sizeof *epochs);
        if (!epochs)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for learning curves");
        c->epochs = epochs;
        *cap = more;
    }
    memmove(c->epochs + at + 1, c->epochs + at, (c->n_epochs - at) * sizeof *c->epochs);
    c->epochs[at] = *p;
    c->n_epochs++;
out:
    return rc;
}

static pseg_status read_line(pseg_eval_curves *c, size_t *cap, const char *text, size_t n,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    json_t *line = json_loadb(text, n, 0, NULL);
    const char *type = json_string_value(json_object_get(line, "type"));

    c->n_lines++;
    c->n_unread += !json_is_object(line);
    pseg_eval_curve_point p = {.epoch = number_of(line, "epoch"),
                               .loss = number_of(line, "loss"),
                               .val_loss = number_of(line, "val_loss"),
                               .iou = number_of(line, "iou"),
                               .val_iou = number_of(line, "val_iou")};
    bool is_epoch = type ? strcmp(type, "epoch") == 0 : !isnan(p.val_loss) || !isnan(p.val_iou);
    if (is_epoch && isfinite(p.epoch))
        PSEG_TRY(add_epoch(c, cap, &p, err));
out:
    json_decref(line);
    return rc;
}

pseg_status pseg_eval_curves_read(pseg_eval_curves **out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_eval_curves *c = pseg_calloc(1, sizeof *c);
    uint8_t *data = NULL;
    size_t n = 0, cap = 0;

    *out = NULL;
    if (!c)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for learning curves");
    PSEG_TRY(pseg_file_read(&data, &n, path, (size_t)1 << 30, err));
    for (size_t at = 0; at < n;) {
        const uint8_t *end = memchr(data + at, '\n', n - at);
        size_t len = end ? (size_t)(end - data) - at : n - at;
        if (len > 0)
            PSEG_TRY(read_line(c, &cap, (const char *)data + at, len, err));
        at += len + 1;
    }
    if (c->n_epochs == 0)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "%s tells of no epoch: it is not the log.jsonl of a training run", path);
    *out = c;
    c = NULL;
out:
    pseg_free(data);
    pseg_eval_curves_free(c);
    return rc;
}

void pseg_eval_curves_free(pseg_eval_curves *c)
{
    if (!c)
        return;
    pseg_free(c->epochs);
    pseg_free(c);
}
