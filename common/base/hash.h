/* SHA-256 and hexadecimal. */
#ifndef PSEG_BASE_HASH_H
#define PSEG_BASE_HASH_H

#include "common/base/err.h"

#include <stdint.h>

#define PSEG_SHA256_BYTES 32
#define PSEG_SHA256_HEX   64

typedef struct pseg_sha256 pseg_sha256;

/* Streaming form. NULL when memory is short; finish may be called once; caller frees. */
pseg_sha256 *pseg_sha256_new(void);
void pseg_sha256_update(pseg_sha256 *h, const void *data, size_t n);
void pseg_sha256_finish(pseg_sha256 *h, uint8_t out[PSEG_SHA256_BYTES]);
void pseg_sha256_free(pseg_sha256 *h);

void pseg_sha256_of(uint8_t out[PSEG_SHA256_BYTES], const void *data, size_t n);

/* 2n lower-case digits and a NUL. */
void pseg_hex(char *out, const uint8_t *data, size_t n);
/* Exactly n bytes from 2n digits (either case) that end the string; false otherwise. */
bool pseg_unhex(uint8_t *out, size_t n, const char *hex);

/* Cryptographically random bytes. false if the system gives none. */
bool pseg_random_bytes(void *out, size_t n);

/* Compares in a time that depends on n alone. */
bool pseg_equal_secret(const void *a, const void *b, size_t n);

#endif
