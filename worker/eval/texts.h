/* Texts by number: equal texts have one number, so that a phrase is encoded once. */
#ifndef PSEG_EVAL_TEXTS_H
#define PSEG_EVAL_TEXTS_H

#include "common/base/arena.h"
#include "common/base/err.h"

#include <stdint.h>

typedef struct pseg_eval_texts {
    const char **text; /* [n], in the arena */
    uint32_t n, cap;
    uint32_t *slots; /* n_slots, a power of two; number + 1, or 0 */
    uint32_t n_slots;
    pseg_arena *arena; /* borrowed */
} pseg_eval_texts;

void pseg_eval_texts_init(pseg_eval_texts *t, pseg_arena *arena);
void pseg_eval_texts_deinit(pseg_eval_texts *t);
/* The number of a text, which is copied if it is new. Errors: PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_eval_texts_put(uint32_t *out, pseg_eval_texts *t, const char *text, pseg_err *err);

#endif
