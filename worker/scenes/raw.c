#include "worker/scenes/raw.h"
#include "common/base/buf.h"

#include <string.h>

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

pseg_status pseg_scene_write_raw(pseg_buf *out, const pseg_scene *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = (size_t)s->width * (size_t)s->height;
    uint8_t head[24] = "PSCN\1\0\0\0";

    for (int i = 0; i < 8; i++)
        head[8 + i] = (uint8_t)(s->seed >> (8 * i));
    put16(head + 16, (unsigned)s->width);
    put16(head + 18, (unsigned)s->height);
    put16(head + 20, (unsigned)s->n_objects);
    put16(head + 22, (unsigned)s->n_phrases);
    PSEG_TRY(pseg_buf_append(out, head, sizeof head, err));
    PSEG_TRY(pseg_buf_append(out, s->rgb, 3 * n, err));
    PSEG_TRY(pseg_buf_append(out, s->id, n, err));
    for (int i = 0; i < s->n_phrases; i++) {
        const pseg_scene_phrase *p = &s->phrases[i];
        size_t len = strlen(p->text);
        uint8_t phrase[6] = {(uint8_t)(p->target + 1), (uint8_t)(p->other + 1), (uint8_t)p->kind,
                             0};
        put16(phrase + 4, (unsigned)len);
        PSEG_TRY(pseg_buf_append(out, phrase, sizeof phrase, err));
        PSEG_TRY(pseg_buf_append(out, p->text, len, err));
    }
out:
    return rc;
}
