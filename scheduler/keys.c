#include "scheduler/keys.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/base/hash.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

typedef struct key {
    uint8_t digest[PSEG_SHA256_BYTES];
    char tenant[PSEG_RPC_TENANT_MAX];
} key;

typedef struct stamp {
    struct timespec modified;
    ino_t inode;
    off_t size;
} stamp;

struct pseg_keys {
    char *path;
    const pseg_log *log;
    stamp seen;         /* of the file when it was last read, or tried */
    pthread_mutex_t mu; /* of the list, which loops read */
    key *keys;
    size_t n;
};

typedef struct key_list {
    key *keys;
    size_t n;
} key_list;

static bool is_tenant(const char *s)
{
    size_t n = strlen(s);

    return n > 0 && n < PSEG_RPC_TENANT_MAX &&
           strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_-") == n;
}

static pseg_status parse_line(key_list *k, char *line, const char *path, int number, pseg_err *err)
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
    *one = (key){0};
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

static stamp stamp_of(const char *path)
{
    stamp out;
    struct stat st;

    memset(&out, 0, sizeof out); /* compared with memcmp */
    if (stat(path, &st) == 0) {
        out.modified = st.st_mtim;
        out.inode = st.st_ino;
        out.size = st.st_size;
    }
    return out;
}

/* Replaces the list by what the file holds. */
static pseg_status read_keys(pseg_keys *out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    key_list list = {NULL, 0}, *k = &list;
    const char *path = out->path;
    uint8_t *text = NULL;
    size_t len;
    int number = 0;

    out->seen = stamp_of(path); /* before reading: a change in between is seen next time */
    PSEG_TRY(pseg_file_read(&text, &len, path, 16 << 20, err));
    for (char *line = (char *)text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        PSEG_TRY(parse_line(k, line, path, ++number, err));
    }
    if (k->n == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s holds no keys: nobody could call", path);
    pthread_mutex_lock(&out->mu);
    key *old = out->keys;
    out->keys = k->keys;
    out->n = k->n;
    pthread_mutex_unlock(&out->mu);
    k->keys = old;
out:
    pseg_free(text);
    pseg_free(list.keys);
    return rc;
}

pseg_status pseg_keys_open(pseg_keys **out, const char *path, const pseg_log *log, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_keys *k = pseg_calloc(1, sizeof *k);

    *out = NULL;
    if (k)
        k->path = pseg_strdup(path);
    if (!k || !k->path) {
        pseg_free(k);
        return pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory for the keys of %s",
                            path);
    }
    k->log = log;
    pthread_mutex_init(&k->mu, NULL);
    PSEG_TRY(read_keys(k, err));
    *out = k;
    k = NULL;
out:
    pseg_keys_free(k);
    return rc;
}

void pseg_keys_refresh(pseg_keys *k)
{
    pseg_err e = PSEG_ERR_INIT;
    stamp now = stamp_of(k->path);

    if (memcmp(&now, &k->seen, sizeof now) == 0)
        return;
    if (read_keys(k, &e) == PSEG_OK)
        PSEG_INFO(k->log, "scheduler", "keys have changed and were read again file=%s keys=%zu",
                  k->path, k->n);
    else
        PSEG_ERROR(k->log, "scheduler", "the earlier keys stay in force: %s", e.msg);
}

void pseg_keys_free(pseg_keys *k)
{
    if (!k)
        return;
    pthread_mutex_destroy(&k->mu);
    pseg_free(k->keys);
    pseg_free(k->path);
    pseg_free(k);
}

/* All keys are compared, so that the time tells nothing. */
static bool tenant_of(char tenant[PSEG_RPC_TENANT_MAX], pseg_keys *k, const char *bearer)
{
    uint8_t digest[PSEG_SHA256_BYTES];
    const key *found = NULL;

    pseg_sha256_of(digest, bearer, strlen(bearer));
    pthread_mutex_lock(&k->mu);
    for (size_t i = 0; i < k->n; i++)
        if (pseg_equal_secret(digest, k->keys[i].digest, sizeof digest))
            found = &k->keys[i];
    if (found)
        memcpy(tenant, found->tenant, PSEG_RPC_TENANT_MAX);
    pthread_mutex_unlock(&k->mu);
    return found != NULL;
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
        if (!tenant_of(tenant, a->keys, peer->bearer))
            PSEG_FAIL(PSEG_R_UNAUTHENTICATED, 0, "the key is not known here");
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
