#include "worker/serve/phrases.h"
#include "common/base/alloc.h"

#include <string.h>

typedef struct pseg_phrase {
    struct pseg_phrase *next;
    pseg_prompt *prompt;
    const char *owner, *phrase; /* in `text` */
    char text[];
} pseg_phrase;

void pseg_phrases_init(pseg_phrases *s, size_t max)
{
    *s = (pseg_phrases){.max = max};
}

static void drop(pseg_phrases *s, pseg_phrase **at)
{
    pseg_phrase *p = *at;

    *at = p->next;
    s->n--;
    pseg_prompt_free(p->prompt);
    pseg_free(p);
}

void pseg_phrases_deinit(pseg_phrases *s)
{
    while (s->list)
        drop(s, &s->list);
}

/* Where it hangs; of a phrase that is not there, the end. */
static pseg_phrase **place_of(pseg_phrases *s, const char *owner, const char *phrase)
{
    pseg_phrase **at = &s->list;

    while (*at && (strcmp((*at)->phrase, phrase) != 0 || strcmp((*at)->owner, owner) != 0))
        at = &(*at)->next;
    return at;
}

static void put_first(pseg_phrases *s, pseg_phrase *p)
{
    p->next = s->list;
    s->list = p;
}

pseg_prompt *pseg_phrases_find(pseg_phrases *s, const char *owner, const char *phrase)
{
    pseg_phrase **at = place_of(s, owner, phrase), *p = *at;

    if (!p)
        return NULL;
    *at = p->next;
    put_first(s, p);
    return p->prompt;
}

void pseg_phrases_keep(pseg_phrases *s, const char *owner, const char *phrase, pseg_prompt *prompt)
{
    size_t n_owner = strlen(owner) + 1, n_phrase = strlen(phrase) + 1;
    pseg_phrase *p = s->max > 0 && !*place_of(s, owner, phrase)
                         ? pseg_malloc(sizeof *p + n_owner + n_phrase)
                         : NULL;

    if (!p) { /* as good as not kept */
        pseg_prompt_free(prompt);
        return;
    }
    p->prompt = prompt;
    p->owner = memcpy(p->text, owner, n_owner);
    p->phrase = memcpy(p->text + n_owner, phrase, n_phrase);
    put_first(s, p);
    s->n++;
    if (s->n > s->max) {
        pseg_phrase **last = &s->list;
        while ((*last)->next)
            last = &(*last)->next;
        drop(s, last);
    }
}
