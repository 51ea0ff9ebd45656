#include "common/base/arena.h"
#include "common/base/alloc.h"

#include <stdint.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)16 << 10)

typedef struct block {
    struct block *next;
    size_t used, cap;
    _Alignas(16) unsigned char data[];
} block;

typedef struct cleanup {
    struct cleanup *next;
    void (*fn)(void *);
    void *ud;
} cleanup;

struct pseg_arena {
    block *blocks;
    cleanup *cleanups;
    size_t used, max;
};

pseg_arena *pseg_arena_new(size_t max_bytes)
{
    pseg_arena *a = pseg_calloc(1, sizeof *a);

    if (a)
        a->max = max_bytes;
    return a;
}

void pseg_arena_free(pseg_arena *a)
{
    if (!a)
        return;
    for (cleanup *c = a->cleanups; c; c = c->next)
        c->fn(c->ud);
    for (block *b = a->blocks, *next; b; b = next) {
        next = b->next;
        pseg_free(b);
    }
    pseg_free(a);
}

void *pseg_arena_alloc(pseg_arena *a, size_t n)
{
    if (n > a->max || n > SIZE_MAX - 64)
        return NULL;
    n = (n + 15) & ~(size_t)15;
    if (n > a->max - a->used)
        return NULL;
    block *b = a->blocks;
    if (!b || b->cap - b->used < n) {
        size_t cap = n > BLOCK_BYTES ? n : BLOCK_BYTES;
        b = pseg_malloc(sizeof *b + cap);
        if (!b)
            return NULL;
        b->used = 0;
        b->cap = cap;
        b->next = a->blocks;
        a->blocks = b;
    }
    void *p = b->data + b->used;
    b->used += n;
    a->used += n;
    return p;
}

void *pseg_arena_calloc(pseg_arena *a, size_t count, size_t size)
{
    size_t n;
    void *p = pseg_mul_size(&n, count, size) ? pseg_arena_alloc(a, n) : NULL;

    if (p)
        memset(p, 0, n);
    return p;
}

char *pseg_arena_strndup(pseg_arena *a, const char *s, size_t n)
{
    n = strnlen(s, n);
    char *p = pseg_arena_alloc(a, n + 1);
    if (p) {
        memcpy(p, s, n);
        p[n] = '\0';
    }
    return p;
}

char *pseg_arena_strdup(pseg_arena *a, const char *s)
{
    return pseg_arena_strndup(a, s, strlen(s));
}

int pseg_arena_cleanup(pseg_arena *a, void (*fn)(void *), void *ud)
{
    cleanup *c = pseg_arena_alloc(a, sizeof *c);

    if (!c) {
        fn(ud);
        return -1;
    }
    *c = (cleanup){a->cleanups, fn, ud};
    a->cleanups = c;
    return 0;
}

size_t pseg_arena_used(const pseg_arena *a)
{
    return a->used;
}
