/* Memory: the only place that calls malloc. A test can make the Nth allocation fail. */
#ifndef PSEG_BASE_ALLOC_H
#define PSEG_BASE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* As malloc, calloc (overflow-checked), realloc and free. n = 0 gives a valid pointer. NULL when
 * memory is short; caller frees with pseg_free. Any thread. */
void *pseg_malloc(size_t n);
void *pseg_calloc(size_t count, size_t size);
void *pseg_realloc(void *p, size_t n);
void pseg_free(void *p); /* NULL: nothing happens */

char *pseg_strdup(const char *s);
char *pseg_strndup(const char *s, size_t n);
void *pseg_memdup(const void *p, size_t n);
/* printf into fresh memory; caller frees with pseg_free; NULL when memory is short. */
char *pseg_asprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* 64-byte aligned, for buffers that a device may use in place; caller frees with pseg_free. */
void *pseg_aligned_alloc(size_t n);

/* *out = a * b; false on overflow. */
static inline bool pseg_mul_size(size_t *out, size_t a, size_t b)
{
    return !__builtin_mul_overflow(a, b, out);
}

/* Tests only: the allocation number n from now (1: the next) fails, once; 0 switches it off. */
void pseg_alloc_fail_nth(uint64_t n);

#endif
