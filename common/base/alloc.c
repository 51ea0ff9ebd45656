#include "common/base/alloc.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Atomic uint64_t fail_in;

static bool must_fail(void)
{
    if (atomic_load_explicit(&fail_in, memory_order_relaxed) == 0)
        return false;
    return atomic_fetch_sub(&fail_in, 1) == 1;
}

void pseg_alloc_fail_nth(uint64_t n)
{
    atomic_store(&fail_in, n);
}

void *pseg_malloc(size_t n)
{
    return must_fail() ? NULL : malloc(n ? n : 1);
}

void *pseg_calloc(size_t count, size_t size)
{
    return must_fail() ? NULL : calloc(count ? count : 1, size ? size : 1);
}

void *pseg_realloc(void *p, size_t n)
{
    return must_fail() ? NULL : realloc(p, n ? n : 1);
}

void pseg_free(void *p)
{
    free(p);
}

void *pseg_aligned_alloc(size_t n)
{
    size_t rounded = (n + 63) & ~(size_t)63;

    if (must_fail() || rounded < n)
        return NULL;
    return aligned_alloc(64, rounded ? rounded : 64);
}

void *pseg_memdup(const void *p, size_t n)
{
    void *copy = pseg_malloc(n);

    if (copy && n)
        memcpy(copy, p, n);
    return copy;
}

char *pseg_strndup(const char *s, size_t n)
{
    n = strnlen(s, n);
    char *copy = pseg_malloc(n + 1);
    if (copy) {
        memcpy(copy, s, n);
        copy[n] = '\0';
    }
    return copy;
}

char *pseg_strdup(const char *s)
{
    return pseg_strndup(s, strlen(s));
}

char *pseg_asprintf(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0)
        return NULL;
    char *s = pseg_malloc((size_t)n + 1);
    if (s) {
        va_start(ap, fmt);
        vsnprintf(s, (size_t)n + 1, fmt, ap);
        va_end(ap);
    }
    return s;
}
