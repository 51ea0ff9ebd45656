#include "common/base/utf8.h"
#include "common/base/alloc.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

bool pseg_utf8_is_valid(const char *s, size_t n)
{
    while (n) {
        utf8proc_int32_t cp;
        /* ASCII is by far the usual case and needs no call. */
        if (!((unsigned char)*s & 0x80)) {
            s++;
            n--;
            continue;
        }
        utf8proc_ssize_t k =
            utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &cp);
        if (k <= 0)
            return false;
        s += k;
        n -= (size_t)k;
    }
    return true;
}

void pseg_utf8_repair(char *s)
{
    size_t n = strlen(s);

    while (n) {
        utf8proc_int32_t cp;
        utf8proc_ssize_t k =
            utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &cp);
        if (k <= 0) {
            *s = '?';
            k = 1;
        }
        s += k;
        n -= (size_t)k;
    }
}

size_t pseg_utf8_decode(uint32_t *cp, const char *s, size_t n)
{
    utf8proc_int32_t c;
    utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &c);

    if (k <= 0) {
        *cp = 0xFFFD;
        return 1;
    }
    *cp = (uint32_t)c;
    return (size_t)k;
}

size_t pseg_utf8_encode(char out[4], uint32_t cp)
{
    return (size_t)utf8proc_encode_char((utf8proc_int32_t)cp, (utf8proc_uint8_t *)out);
}

pseg_status pseg_utf8_nfc(char **out, size_t *out_len, const char *s, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    utf8proc_uint8_t *text = NULL;

    *out = NULL;
    utf8proc_ssize_t k = utf8proc_map((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &text,
                                      UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (k == UTF8PROC_ERROR_NOMEM)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to normalise %zu bytes of text", n);
    if (k < 0)
        PSEG_FAIL(PSEG_R_PROMPT_NOT_TEXT, (int)k, "text of %zu bytes is not valid UTF-8", n);
    *out = pseg_malloc((size_t)k + 1);
    if (!*out)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to normalise %zu bytes of text", n);
    memcpy(*out, text, (size_t)k);
    (*out)[k] = '\0';
    *out_len = (size_t)k;
out:
    free(text); /* utf8proc allocates with malloc itself */
    return rc;
}

bool pseg_utf8_is_letter(uint32_t cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return true;
    default:
        return false;
    }
}

bool pseg_utf8_is_number(uint32_t cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return true;
    default:
        return false;
    }
}

bool pseg_utf8_is_space(uint32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0D) || cp == 0x20 || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F ||
           cp == 0x205F || cp == 0x3000;
}

uint32_t pseg_utf8_lower(uint32_t cp)
{
    return (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp);
}
