#include "worker/scenes/raw.h"
#include "common/base/buf.h"

#include <stdio.h>
#include <string.h>

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static pseg_status append_text(pseg_buf *out, int target, int other, int kind, const char *text,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t len = strlen(text);
    uint8_t phrase[6] = {(uint8_t)target, (uint8_t)other, (uint8_t)kind, 0};

    put16(phrase + 4, (unsigned)len);
    PSEG_TRY(pseg_buf_append(out, phrase, sizeof phrase, err));
    PSEG_TRY(pseg_buf_append(out, text, len, err));
out:
    return rc;
}

pseg_status pseg_scene_write_raw(pseg_buf *out, const pseg_scene *s, bool describe, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = (size_t)s->width * (size_t)s->height;
    uint8_t head[24] = "PSCN\1\0\0\0";

    for (int i = 0; i < 8; i++)
        head[8 + i] = (uint8_t)(s->seed >> (8 * i));
    put16(head + 16, (unsigned)s->width);
    put16(head + 18, (unsigned)s->height);
    put16(head + 20, (unsigned)s->n_objects);
    put16(head + 22, (unsigned)(s->n_phrases + (describe ? s->n_objects : 0)));
    PSEG_TRY(pseg_buf_append(out, head, sizeof head, err));
    PSEG_TRY(pseg_buf_append(out, s->rgb, 3 * n, err));
    PSEG_TRY(pseg_buf_append(out, s->id, n, err));
    for (int i = 0; i < s->n_phrases; i++) {
        const pseg_scene_phrase *p = &s->phrases[i];
        PSEG_TRY(append_text(out, p->target + 1, p->other + 1, (int)p->kind, p->text, err));
    }
    for (int k = 0; describe && k < s->n_objects; k++) {
        const pseg_scene_object *o = &s->objects[k];
        char text[PSEG_SCENE_MAX_TEXT];
        snprintf(text, sizeof text, "%s %s %s %s", pseg_scene_size_name(o->size),
                 pseg_scene_texture_name(o->texture), pseg_scene_colour_name(o->colour),
                 pseg_scene_kind_name(o->kind));
        PSEG_TRY(append_text(out, k + 1, 0, PSEG_SCENE_RAW_LOOKS, text, err));
    }
out:
    return rc;
}
