/* Any bytes as text: valid or not by a second definition of UTF-8, repaired, decoded and written
 * again, normalised. */
#include "common/base/alloc.h"
#include "common/base/utf8.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* RFC 3629's grammar, byte by byte. */
static bool is_valid(const uint8_t *s, size_t n)
{
    for (size_t i = 0, more; i < n; i += more + 1) {
        uint8_t low = 0x80, high = 0xBF;
        more = s[i] < 0x80 ? 0 : s[i] < 0xE0 ? 1 : s[i] < 0xF0 ? 2 : 3;
        if ((s[i] >= 0x80 && s[i] < 0xC2) || s[i] > 0xF4 || more >= n - i)
            return false;
        low = s[i] == 0xE0 ? 0xA0 : s[i] == 0xF0 ? 0x90 : low;
        high = s[i] == 0xED ? 0x9F : s[i] == 0xF4 ? 0x8F : high;
        for (size_t k = 1; k <= more; k++, low = 0x80, high = 0xBF)
            if (s[i + k] < low || s[i + k] > high)
                return false;
    }
    return true;
}

static void decode_and_encode(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        char out[4];
        size_t k = pseg_utf8_decode(&cp, s + i, n - i);
        if (k == 0 || k > n - i || pseg_utf8_encode(out, cp) != k || memcmp(out, s + i, k) != 0)
            abort();
        if (pseg_utf8_is_letter(cp) && (pseg_utf8_is_number(cp) || pseg_utf8_is_space(cp)))
            abort();
        pseg_utf8_encode(out, pseg_utf8_lower(cp));
        i += k;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    bool valid = pseg_utf8_is_valid(text, size);
    char *copy = pseg_strndup(text, size), *nfc = NULL, *twice = NULL;
    size_t n, m;

    if (valid != is_valid(data, size))
        abort();
    if (copy) {
        size_t length = strlen(copy);
        pseg_utf8_repair(copy);
        if (strlen(copy) != length || !pseg_utf8_is_valid(copy, length) ||
            (pseg_utf8_is_valid(text, length) && memcmp(copy, text, length) != 0))
            abort();
    }
    if (valid)
        decode_and_encode(text, size);
    if (pseg_utf8_nfc(&nfc, &n, text, size, NULL) == PSEG_OK) {
        if (!valid || !pseg_utf8_is_valid(nfc, n))
            abort();
        if (pseg_utf8_nfc(&twice, &m, nfc, n, NULL) == PSEG_OK && (m != n || memcmp(nfc, twice, n)))
            abort();
    }
    pseg_free(copy);
    pseg_free(nfc);
    pseg_free(twice);
    return 0;
}
