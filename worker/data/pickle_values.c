/* Texts and numbers as the protocols 0 to 5 write them. */
#include "worker/data/pickle_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

pseg_status pickle_take_line_number(int64_t *out, pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char digits[32], *end;
    const char *s = NULL;
    size_t n = 0;

    PSEG_TRY(pickle_take_line(&s, &n, p, err));
    if (n && s[n - 1] == 'L')
        n--;
    if (n == 0 || n >= sizeof digits)
        CORRUPT("%s: a number of %zu digits", p->name, n);
    memcpy(digits, s, n);
    digits[n] = 0;
    errno = 0;
    *out = strtoll(digits, &end, 10);
    if (*end || errno)
        CORRUPT("%s: \"%.32s\" is no number of 64 bits", p->name, digits);
out:
    return rc;
}

pseg_status pickle_push_text(pickle *p, uint32_t len_bytes, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *s = NULL;
    uint64_t n = 0;

    PSEG_TRY(pickle_take_number(&n, p, len_bytes, err));
    PSEG_TRY(pickle_take(&s, p, n, err));
    PSEG_TRY(pickle_push_new(
        p, &(pickle_node){.type = PICKLE_TEXT, .u.text = {(const char *)s, (size_t)n}}, err));
out:
    return rc;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* n hexadecimal digits at s; -1: there are none. */
static int64_t hex(const char *s, const char *end, int n)
{
    int64_t x = 0;

    for (int i = 0; i < n; i++) {
        int d = s + i < end ? hex_digit(s[i]) : -1;
        if (d < 0)
            return -1;
        x = x * 16 + d;
    }
    return x;
}

static size_t put_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* A line with backslashes. is_raw: Python's raw-unicode-escape (\u and \U alone; bytes are
 * Latin-1); else a string literal between quotes. out has room for 2 bytes for each of s. Returns
 * SIZE_MAX if it is none. */
static size_t unescape(char *out, const char *s, size_t len, bool is_raw)
{
    static const char names[] = "abfnrtv", means[] = "\a\b\f\n\r\t\v";
    const char *end = s + len, *known;
    size_t n = 0;
    int64_t x = 0;

    if (!is_raw) {
        if (len < 2 || (s[0] != '\'' && s[0] != '"') || end[-1] != s[0])
            return SIZE_MAX;
        s++;
        end--;
    }
    while (s < end) {
        char c = *s++;
        if (is_raw && (unsigned char)c >= 0x80) {
            n += put_utf8(out + n, (unsigned char)c);
        } else if (c != '\\' || s == end) {
            out[n++] = c;
        } else if (is_raw && *s != 'u' && *s != 'U') {
            out[n++] = c;
        } else if (is_raw) {
            int digits = *s == 'u' ? 4 : 8;
            x = hex(s + 1, end, digits);
            if (x < 0 || x > 0x10FFFF)
                return SIZE_MAX;
            n += put_utf8(out + n, (uint32_t)x);
            s += 1 + digits;
        } else if (*s == 'x') {
            x = hex(s + 1, end, 2);
            if (x < 0)
                return SIZE_MAX;
            out[n++] = (char)x;
            s += 3;
        } else {
            known = strchr(names, *s);
            out[n++] = known && *s ? means[known - names] : *s;
            s++;
        }
    }
    return n;
}

pseg_status pickle_push_line_text(pickle *p, bool is_raw, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *s = NULL;
    size_t len = 0, n;
    char *copy;

    PSEG_TRY(pickle_take_line(&s, &len, p, err));
    copy = pseg_arena_alloc(p->arena, 2 * len + 1);
    if (!copy)
        return pickle_no_memory(p, err);
    n = unescape(copy, s, len, is_raw);
    if (n == SIZE_MAX)
        CORRUPT("%s: a text in a form that Python does not write", p->name);
    PSEG_TRY(pickle_push_new(p, &(pickle_node){.type = PICKLE_TEXT, .u.text = {copy, n}}, err));
out:
    return rc;
}

pseg_status pickle_push_long(pickle *p, uint64_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t x = 0;
    const uint8_t *b = NULL;

    PSEG_TRY(pickle_take(&b, p, n, err));
    if (n > 8)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "%s holds a number of %llu bytes; 8 are the limit",
                  p->name, (unsigned long long)n);
    for (uint64_t i = 0; i < 8; i++)
        x |= (uint64_t)(i < n ? b[i] : n && b[n - 1] & 0x80 ? 0xFF : 0) << (8 * i);
    PSEG_TRY(pickle_push_int(p, (int64_t)x, PICKLE_INT, err));
out:
    return rc;
}

pseg_status pickle_push_double(pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint8_t *b = NULL;
    uint64_t x = 0;
    pickle_node v = {.type = PICKLE_FLOAT};

    PSEG_TRY(pickle_take(&b, p, 8, err));
    for (int i = 0; i < 8; i++)
        x = x << 8 | b[i];
    memcpy(&v.u.d, &x, 8);
    PSEG_TRY(pickle_push_new(p, &v, err));
out:
    return rc;
}

pseg_status pickle_push_line_float(pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pickle_node v = {.type = PICKLE_FLOAT};
    char digits[64], *end;
    const char *s = NULL;
    size_t n = 0;

    PSEG_TRY(pickle_take_line(&s, &n, p, err));
    if (n == 0 || n >= sizeof digits)
        CORRUPT("%s: a number of %zu characters", p->name, n);
    memcpy(digits, s, n);
    digits[n] = 0;
    v.u.d = strtod(digits, &end);
    if (*end)
        CORRUPT("%s: \"%.60s\" is no number", p->name, digits);
    PSEG_TRY(pickle_push_new(p, &v, err));
out:
    return rc;
}

pseg_status pickle_push_line_int(pickle *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t x = 0;
    /* I00 and I01 are Python 2's False and True. */
    bool is_bool = p->end - p->at >= 3 && p->at[0] == '0' && (p->at[1] == '0' || p->at[1] == '1') &&
                   p->at[2] == '\n';

    PSEG_TRY(pickle_take_line_number(&x, p, err));
    PSEG_TRY(pickle_push_int(p, x, is_bool ? PICKLE_BOOL : PICKLE_INT, err));
out:
    return rc;
}
