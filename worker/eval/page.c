#include "worker/eval/page.h"
#include "common/base/utf8.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void append(eval_page *p, const char *s, size_t n)
{
    if (p->rc == PSEG_OK)
        p->rc = pseg_buf_append(p->out, s, n, p->err);
}

void eval_put(eval_page *p, const char *fmt, ...)
{
    char text[4096];
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (p->rc == PSEG_OK && (n < 0 || (size_t)n >= sizeof text))
        p->rc = pseg_err_set(p->err, PSEG_R_INTERNAL, 0, PSEG_HERE, "markup of %d bytes", n);
    if (p->rc == PSEG_OK)
        append(p, text, (size_t)n);
}

/* Marks that turn the direction of text, hide in it, or are no characters at all. */
static bool is_unseen(uint32_t c)
{
    return c < 0x20 || (c >= 0x7F && c < 0xA0) || (c >= 0x200B && c <= 0x200F) ||
           (c >= 0x2028 && c <= 0x202E) || (c >= 0x2060 && c <= 0x206F) || c == 0xFEFF ||
           (c & 0xFFFE) == 0xFFFE || (c >= 0xFDD0 && c <= 0xFDEF);
}

static void put_character(eval_page *p, uint32_t c, const char *bytes, size_t n)
{
    switch (c) {
    case '&':
        append(p, "&amp;", 5);
        break;
    case '<':
        append(p, "&lt;", 4);
        break;
    case '>':
        append(p, "&gt;", 4);
        break;
    case '"':
        append(p, "&quot;", 6);
        break;
    case '\'':
        append(p, "&#39;", 5);
        break;
    case '\n':
    case '\t':
        append(p, " ", 1);
        break;
    default:
        if (is_unseen(c))
            append(p, "\xEF\xBF\xBD", 3);
        else
            append(p, bytes, n);
    }
}

void eval_put_text(eval_page *p, const char *s, size_t max_chars)
{
    size_t len = s ? strlen(s) : 0, chars = 0;

    for (size_t at = 0; at < len && p->rc == PSEG_OK; chars++) {
        size_t left = len - at, n = 1;
        uint32_t c = 0xFFFE;
        if (chars == max_chars) {
            append(p, "\xE2\x80\xA6", 3);
            break;
        }
        /* The length of the character that begins here; what does not begin one stands alone. */
        uint8_t first = (uint8_t)s[at];
        size_t want = first < 0x80 ? 1 : first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
        if (want <= left && pseg_utf8_is_valid(s + at, want))
            n = pseg_utf8_decode(&c, s + at, left);
        put_character(p, c, s + at, n);
        at += n;
    }
}

void eval_put_number(eval_page *p, double x, int digits)
{
    if (isfinite(x))
        eval_put(p, "%s%.*f", x < 0 ? "\xE2\x88\x92" : "", digits, fabs(x));
    else
        eval_put(p, "\xE2\x80\x93");
}

void eval_put_interval(eval_page *p, const pseg_eval_interval *i, int digits)
{
    eval_put(p, "<span class=v>");
    eval_put_number(p, i->value, digits);
    eval_put(p, "</span>");
    if (!isfinite(i->low) || !isfinite(i->high))
        return;
    eval_put(p, " <span class=ci>");
    eval_put_number(p, i->low, digits);
    eval_put(p, " to ");
    eval_put_number(p, i->high, digits);
    eval_put(p, "</span>");
}

void eval_put_jpeg(eval_page *p, const uint8_t *d, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    append(p, "data:image/jpeg;base64,", 23);
    for (size_t i = 0; i < n && p->rc == PSEG_OK; i += 3) {
        uint32_t v = (uint32_t)d[i] << 16 | (i + 1 < n ? (uint32_t)d[i + 1] << 8 : 0) |
                     (i + 2 < n ? d[i + 2] : 0);
        char four[4] = {digits[v >> 18], digits[v >> 12 & 63],
                        i + 1 < n ? digits[v >> 6 & 63] : '=', i + 2 < n ? digits[v & 63] : '='};
        append(p, four, 4);
    }
}
