#include "common/base/keyfile.h"
#include "common/base/alloc.h"
#include "common/base/buf.h"
#include "common/base/file.h"

#include <stdio.h>
#include <string.h>

bool pseg_is_tenant(const char *s)
{
    size_t n = strlen(s);

    return n > 0 && n < PSEG_TENANT_BYTES &&
           strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") == n;
}

static pseg_status parse_line(pseg_keyfile *k, char *line, const char *path, int number,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char digest[80] = "", tenant[80] = "", rest[8] = "";
    pseg_key *one;

    line[strcspn(line, "#")] = '\0';
    int n = sscanf(line, "%79s %79s %7s", digest, tenant, rest);
    if (n <= 0)
        goto out;
    pseg_key *more = pseg_realloc(k->keys, (k->n + 1) * sizeof *more);
    if (!more)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the keys of %s", path);
    k->keys = more;
    one = &more[k->n];
    *one = (pseg_key){0};
    if (n != 2 || !pseg_unhex(one->digest, sizeof one->digest, digest))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s:%d: expected the SHA-256 of a key and a tenant",
                  path, number);
    if (!pseg_is_tenant(tenant))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s:%d: tenant \"%s\" must be 1 to 63 of a-z 0-9 _ -",
                  path, number, tenant);
    memcpy(one->tenant, tenant, strlen(tenant) + 1);
    k->n++;
out:
    return rc;
}

pseg_status pseg_keyfile_read(pseg_keyfile *out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_keyfile k = {0};
    uint8_t *text = NULL;
    size_t len;
    int number = 0;

    PSEG_TRY(pseg_file_read(&text, &len, path, PSEG_KEYFILE_MAX, err));
    for (char *line = (char *)text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        PSEG_TRY(parse_line(&k, line, path, ++number, err));
    }
    if (k.n == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s holds no keys: nobody could call", path);
    pseg_free(out->keys);
    *out = k;
    k = (pseg_keyfile){0};
out:
    pseg_free(text);
    pseg_keyfile_free(&k);
    return rc;
}

void pseg_keyfile_free(pseg_keyfile *k)
{
    pseg_free(k->keys);
    *k = (pseg_keyfile){0};
}

const char *pseg_keyfile_tenant(const pseg_keyfile *k, const char *key)
{
    uint8_t digest[PSEG_SHA256_BYTES];
    const char *found = NULL;

    pseg_sha256_of(digest, key, strlen(key));
    for (size_t i = 0; i < k->n; i++)
        if (pseg_equal_secret(digest, k->keys[i].digest, sizeof digest))
            found = k->keys[i].tenant;
    return found;
}

pseg_status pseg_key_new(char out[PSEG_KEY_BYTES], pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t bits[32];

    if (!pseg_random_bytes(bits, sizeof bits))
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "the system gives no random bytes");
    memcpy(out, "pseg_", 5);
    pseg_hex(out + 5, bits, sizeof bits);
out:
    return rc;
}

pseg_status pseg_keyfile_add(const char *path, const char *key, const char *tenant, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char line[PSEG_SHA256_HEX + PSEG_TENANT_BYTES + 4];
    uint8_t digest[PSEG_SHA256_BYTES];
    pseg_keyfile before = {0};
    uint8_t *text = NULL;
    pseg_buf all;
    size_t len = 0;

    pseg_buf_init(&all, PSEG_KEYFILE_MAX);
    if (pseg_file_exists(path))
        PSEG_TRY(pseg_file_read(&text, &len, path, PSEG_KEYFILE_MAX, err));
    if (text && text[strspn((char *)text, " \t\r\n")])
        PSEG_TRY(pseg_keyfile_read(&before, path, err)); /* never adds to a file that is none */
    pseg_sha256_of(digest, key, strlen(key));
    pseg_hex(line, digest, sizeof digest);
    snprintf(line + PSEG_SHA256_HEX, sizeof line - PSEG_SHA256_HEX, " %s\n", tenant);
    PSEG_TRY(pseg_buf_append(&all, text, len, err));
    if (len && text[len - 1] != '\n')
        PSEG_TRY(pseg_buf_puts(&all, "\n", err));
    PSEG_TRY(pseg_buf_puts(&all, line, err));
    PSEG_TRY(pseg_file_write(path, all.data, all.len, err));
out:
    pseg_buf_deinit(&all);
    pseg_free(text);
    pseg_keyfile_free(&before);
    return rc;
}
