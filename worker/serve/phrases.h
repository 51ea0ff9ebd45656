/* The phrases that a worker was asked for last, encoded: the same phrase on the next image then
 * costs no text encoder. Each is found by its owner alone, a tenant, so that nobody learns by the
 * clock what others ask for.
 *
 *     prompt = pseg_phrases_find(s, tenant, phrase);      // borrowed
 *     pseg_phrases_keep(s, tenant, phrase, new_prompt);   // once the borrowed ones are not used
 * any more
 *
 * Threads: the one that owns the model. */
#ifndef PSEG_SERVE_PHRASES_H
#define PSEG_SERVE_PHRASES_H

#include "worker/model/pseg.h"

#include <stddef.h>

typedef struct pseg_phrases {
    struct pseg_phrase *list; /* used last first */
    size_t n, max;
} pseg_phrases;

/* max: how many are kept; 0: none. */
void pseg_phrases_init(pseg_phrases *s, size_t max);
/* Before the model is closed. Fine after zeroing, and twice. */
void pseg_phrases_deinit(pseg_phrases *s);

/* NULL: not at hand. Borrowed until the next keep or deinit. */
pseg_prompt *pseg_phrases_find(pseg_phrases *s, const char *owner, const char *phrase);
/* Takes ownership of p, also where it is not kept: then it is freed at once. */
void pseg_phrases_keep(pseg_phrases *s, const char *owner, const char *phrase, pseg_prompt *p);

#endif
