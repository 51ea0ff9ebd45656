#include "common/base/hash.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <string.h>

/* The context is OpenSSL's; the type of our own name is never completed. */
pseg_sha256 *pseg_sha256_new(void)
{
    EVP_MD_CTX *c = EVP_MD_CTX_new();

    if (c && EVP_DigestInit_ex(c, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(c);
        c = NULL;
    }
    return (pseg_sha256 *)c;
}

void pseg_sha256_update(pseg_sha256 *h, const void *data, size_t n)
{
    EVP_DigestUpdate((EVP_MD_CTX *)h, data, n);
}

void pseg_sha256_finish(pseg_sha256 *h, uint8_t out[PSEG_SHA256_BYTES])
{
    EVP_DigestFinal_ex((EVP_MD_CTX *)h, out, NULL);
}

void pseg_sha256_free(pseg_sha256 *h)
{
    EVP_MD_CTX_free((EVP_MD_CTX *)h);
}

void pseg_sha256_of(uint8_t out[PSEG_SHA256_BYTES], const void *data, size_t n)
{
    unsigned int len = 0;

    if (EVP_Digest(data, n, out, &len, EVP_sha256(), NULL) != 1)
        memset(out, 0, PSEG_SHA256_BYTES);
}

void pseg_hex(char *out, const uint8_t *data, size_t n)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[data[i] >> 4];
        out[2 * i + 1] = digits[data[i] & 15];
    }
    out[2 * n] = '\0';
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool pseg_unhex(uint8_t *out, size_t n, const char *hex)
{
    if (strlen(hex) != 2 * n)
        return false;
    for (size_t i = 0; i < n; i++) {
        int hi = digit(hex[2 * i]), lo = digit(hex[2 * i + 1]);
        if (hi < 0 || lo < 0)
            return false;
        out[i] = (uint8_t)(hi << 4 | lo);
    }
    return true;
}

bool pseg_random_bytes(void *out, size_t n)
{
    return RAND_bytes(out, (int)n) == 1;
}

bool pseg_equal_secret(const void *a, const void *b, size_t n)
{
    return CRYPTO_memcmp(a, b, n) == 0;
}
