/* An arena: memory and clean-ups that end together (one per process, model or job). */
#ifndef PSEG_BASE_ARENA_H
#define PSEG_BASE_ARENA_H

#include <stddef.h>

typedef struct pseg_arena pseg_arena;

/* max_bytes bounds what the arena may hand out in all. NULL when memory is short.
 * One thread at a time. */
pseg_arena *pseg_arena_new(size_t max_bytes);

/* Runs the clean-ups in reverse order, then frees all memory. NULL: nothing happens. */
void pseg_arena_free(pseg_arena *a);

/* 16-byte aligned, borrowed until pseg_arena_free; NULL when memory or the bound is reached. */
void *pseg_arena_alloc(pseg_arena *a, size_t n);
void *pseg_arena_calloc(pseg_arena *a, size_t count, size_t size);
char *pseg_arena_strdup(pseg_arena *a, const char *s);
char *pseg_arena_strndup(pseg_arena *a, const char *s, size_t n);

/* fn(ud) runs in pseg_arena_free. Returns 0, or -1 when memory is short: fn(ud) has then run at
 * once, so that nothing leaks. */
int pseg_arena_cleanup(pseg_arena *a, void (*fn)(void *ud), void *ud);

size_t pseg_arena_used(const pseg_arena *a); /* bytes handed out */

#endif
