#include "worker/eval/texts.h"
#include "common/base/alloc.h"

#include <string.h>

void pseg_eval_texts_init(pseg_eval_texts *t, pseg_arena *arena)
{
    *t = (pseg_eval_texts){.arena = arena};
}

void pseg_eval_texts_deinit(pseg_eval_texts *t)
{
    pseg_free(t->text);
    pseg_free(t->slots);
    *t = (pseg_eval_texts){0};
}

/* FNV-1a, 64 bits, folded. */
static uint32_t hash(const char *s)
{
    uint64_t h = 0xcbf29ce484222325;

    for (; *s; s++)
        h = (h ^ (uint8_t)*s) * 0x100000001b3;
    return (uint32_t)(h ^ h >> 32);
}

/* The slot that holds the text, or the empty one where it belongs. */
static uint32_t *seek(const pseg_eval_texts *t, const char *text)
{
    uint32_t at = hash(text) & (t->n_slots - 1);

    while (t->slots[at] && strcmp(t->text[t->slots[at] - 1], text) != 0)
        at = (at + 1) & (t->n_slots - 1);
    return &t->slots[at];
}

static pseg_status grow(pseg_eval_texts *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t cap = t->cap ? 2 * t->cap : 256;
    const char **text = pseg_realloc(t->text, cap * sizeof *text);

    if (text) {
        t->text = text;
        t->cap = cap;
    }
    uint32_t *slots = pseg_calloc(2 * (size_t)cap, sizeof *slots);
    if (!text || !slots) {
        pseg_free(slots);
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u phrases", cap);
    }
    pseg_free(t->slots);
    t->slots = slots;
    t->n_slots = 2 * cap;
    for (uint32_t i = 0; i < t->n; i++)
        *seek(t, t->text[i]) = i + 1;
out:
    return rc;
}

pseg_status pseg_eval_texts_put(uint32_t *out, pseg_eval_texts *t, const char *text, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (t->n == t->cap)
        PSEG_TRY(grow(t, err));
    uint32_t *slot = seek(t, text);
    if (!*slot) {
        t->text[t->n] = pseg_arena_strdup(t->arena, text);
        if (!t->text[t->n])
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a phrase");
        *slot = ++t->n;
    }
    *out = *slot - 1;
out:
    return rc;
}
