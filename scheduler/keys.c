#include "scheduler/keys.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/base/hash.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct key {
    uint8_t digest[PSEG_SHA256_BYTES];
    char tenant[PSEG_RPC_TENANT_MAX];
} key;

struct pseg_keys {
    key *keys;
    size_t n;
};

static bool is_tenant(const char *s)
{
    size_t n = strlen(s);

    return n > 0 && n < PSEG_RPC_TENANT_MAX &&
           strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") == n;
}

static pseg_status parse_line(pseg_keys *k, char *line, const char *path, int number, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char digest[80] = "", tenant[80] = "", rest[8] = "";
    key *one;

    line[strcspn(line, "#")] = '\0';
    int n = sscanf(line, "%79s %79s %7s", digest, tenant, rest);
    if (n <= 0)
        goto out;
    key *more = pseg_realloc(k->keys, (k->n + 1) * sizeof *more);
    if (!more)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the keys of %s", path);
    k->keys = more;
    one = &more[k->n];
    if (n != 2 || !pseg_unhex(one->digest, sizeof one->digest, digest))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s:%d: expected the SHA-256 of a key and a tenant",
                  path, number);
    if (!is_tenant(tenant))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s:%d: tenant \"%s\" must be 1 to 63 of a-z 0-9 _ -",
                  path, number, tenant);
    memcpy(one->tenant, tenant, strlen(tenant) + 1);
    k->n++;
out:
    return rc;
}

pseg_status pseg_keys_open(pseg_keys **out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_keys *k = pseg_calloc(1, sizeof *k);
    uint8_t *text = NULL;
    size_t len;
    int number = 0;

    *out = NULL;
    if (!k)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the keys of %s", path);
    PSEG_TRY(pseg_file_read(&text, &len, path, 16 << 20, err));
    for (char *line = (char *)text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        PSEG_TRY(parse_line(k, line, path, ++number, err));
    }
    if (k->n == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s holds no keys: nobody could call", path);
    *out = k;
    k = NULL;
out:
    pseg_free(text);
    pseg_keys_free(k);
    return rc;
}

void pseg_keys_free(pseg_keys *k)
{
    if (!k)
        return;
    pseg_free(k->keys);
    pseg_free(k);
}

/* All keys are compared, so that the time tells nothing. */
static const char *tenant_of(const pseg_keys *k, const char *bearer)
{
    uint8_t digest[PSEG_SHA256_BYTES];
    const char *found = NULL;

    pseg_sha256_of(digest, bearer, strlen(bearer));
    for (size_t i = 0; i < k->n; i++)
        if (pseg_equal_secret(digest, k->keys[i].digest, sizeof digest))
            found = k->keys[i].tenant;
    return found;
}

pseg_status pseg_auth_check(void *ud, char *tenant, const pseg_rpc_peer *peer, const char *method,
                            pseg_err *err)
{
    const pseg_auth *a = ud;
    pseg_status rc = PSEG_OK;

    (void)method;
    if (a->needs_certificate && !peer->has_certificate)
        PSEG_FAIL(PSEG_R_UNAUTHENTICATED, 0, "a client certificate is needed");
    if (a->keys) {
        if (!peer->bearer)
            PSEG_FAIL(PSEG_R_UNAUTHENTICATED, 0,
                      "a key is needed: send the header authorization: Bearer KEY");
        const char *t = tenant_of(a->keys, peer->bearer);
        if (!t)
            PSEG_FAIL(PSEG_R_UNAUTHENTICATED, 0, "the key is not known here");
        snprintf(tenant, PSEG_RPC_TENANT_MAX, "%s", t);
    } else if (a->needs_certificate) {
        if (!is_tenant(peer->common_name))
            PSEG_FAIL(
                PSEG_R_PERMISSION_DENIED, 0,
                "the certificate's common name is no tenant: it must be 1 to 63 of a-z 0-9 _ -");
        snprintf(tenant, PSEG_RPC_TENANT_MAX, "%s", peer->common_name);
    }
out:
    return rc;
}
