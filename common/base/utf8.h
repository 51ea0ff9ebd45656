/* UTF-8: validation of what comes from outside, and the Unicode facts that the tokenizer needs. */
#ifndef PSEG_BASE_UTF8_H
#define PSEG_BASE_UTF8_H

#include "common/base/err.h"

#include <stdint.h>

/* Valid UTF-8 (no surrogates, no overlong forms, <= U+10FFFF). NUL bytes count as valid. */
bool pseg_utf8_is_valid(const char *s, size_t n);

/* Makes s valid in place: each byte that cannot be read becomes '?'. */
void pseg_utf8_repair(char *s);

/* Decodes one code point of valid UTF-8 at s (n >= 1 bytes left); returns the bytes it takes. */
size_t pseg_utf8_decode(uint32_t *cp, const char *s, size_t n);
/* Writes 1 to 4 bytes; returns how many. */
size_t pseg_utf8_encode(char out[4], uint32_t cp);

/* Normalisation form C of valid UTF-8. Caller frees with pseg_free. */
pseg_status pseg_utf8_nfc(char **out, size_t *out_len, const char *s, size_t n, pseg_err *err);

bool pseg_utf8_is_letter(uint32_t cp); /* general category L* */
bool pseg_utf8_is_number(uint32_t cp); /* general category N* */
bool pseg_utf8_is_space(uint32_t cp);  /* property White_Space */
uint32_t pseg_utf8_lower(uint32_t cp); /* simple lower-case mapping */

#endif
