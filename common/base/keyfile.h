/* Files of bearer keys: lines "SHA-256-OF-KEY TENANT", '#' begins a comment. Keys themselves are
 * never stored: they are long and random (pseg_key_new), so their plain hash tells nothing. */
#ifndef PSEG_BASE_KEYFILE_H
#define PSEG_BASE_KEYFILE_H

#include "common/base/err.h"
#include "common/base/hash.h"

#define PSEG_TENANT_BYTES 64 /* of a tenant's name, with the NUL */
#define PSEG_KEY_BYTES    70 /* of a key by pseg_key_new, with the NUL */
#define PSEG_KEYFILE_MAX  ((size_t)16 << 20)

typedef struct pseg_key {
    uint8_t digest[PSEG_SHA256_BYTES];
    char tenant[PSEG_TENANT_BYTES];
} pseg_key;

typedef struct pseg_keyfile {
    pseg_key *keys;
    size_t n;
} pseg_keyfile;

/* 1 to 63 of a-z 0-9 _ -. */
bool pseg_is_tenant(const char *s);

/* Replaces *out, which may be {0}, only if all of the file is good. Free with pseg_keyfile_free.
 * Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_FILE_IO, PSEG_R_CONFIG_INVALID with the line's number, also
 * for a file without keys, PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_keyfile_read(pseg_keyfile *out, const char *path, pseg_err *err);
void pseg_keyfile_free(pseg_keyfile *k); /* {0} is accepted */

/* Whose key it is, or NULL. Borrowed. All keys are compared, so that the time tells nothing. */
const char *pseg_keyfile_tenant(const pseg_keyfile *k, const char *key);

/* "pseg_" and 64 hexadecimal digits: 256 random bits. Errors: PSEG_R_INTERNAL. */
pseg_status pseg_key_new(char out[PSEG_KEY_BYTES], pseg_err *err);

/* Adds the line of a key to a file, which is seen whole or as it was; makes the file if there is
 * none. Errors: those of reading, PSEG_R_FILE_IO. */
pseg_status pseg_keyfile_add(const char *path, const char *key, const char *tenant, pseg_err *err);

#endif
