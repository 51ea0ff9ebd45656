#include "common/rpc/auth.h"

#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/hash.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_FILE_BYTES ((size_t)4 << 20)
#define LOOK_EVERY_MS  1000
#define KEY_BYTES_MAX  4096

typedef struct entry {
    uint8_t sha256[PSEG_SHA256_BYTES];
    char tenant[PSEG_RPC_TENANT_MAX];
} entry;

typedef struct key_list {
    entry *entries;
    size_t n;
} key_list;

struct pseg_rpc_auth {
    const pseg_log *log;
    char *path;
    bool certificates;
    pthread_mutex_t mu; /* of all below */
    key_list keys;
    struct stat seen;
    int64_t looked_us, every_us;
};

static bool is_tenant(const char *s)
{
    size_t n = strlen(s);

    return n > 0 && n < PSEG_RPC_TENANT_MAX &&
           strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == n;
}

/* One line, which it cuts up; false if it is neither a key nor blank. */
static bool parse_line(entry *out, bool *is_key, char *line)
{
    const char *blanks = " \t\r";
    char *rest = line + strspn(line, blanks);

    rest[strcspn(rest, "#")] = '\0';
    *is_key = *rest != '\0';
    if (!*is_key)
        return true;
    size_t n = strcspn(rest, blanks);
    char *tenant = rest + n + strspn(rest + n, blanks);
    char *end = tenant + strcspn(tenant, blanks);
    if (end[strspn(end, blanks)] != '\0')
        return false;
    rest[n] = *end = '\0';
    if (!is_tenant(tenant) || !pseg_unhex(out->sha256, sizeof out->sha256, rest))
        return false;
    memcpy(out->tenant, tenant, strlen(tenant) + 1);
    return true;
}

static pseg_status read_keys(key_list *out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *text = NULL;
    size_t len, lines = 1, number = 0;
    key_list keys = {NULL, 0};

    PSEG_TRY(pseg_file_read((uint8_t **)&text, &len, path, MAX_FILE_BYTES, err));
    for (size_t i = 0; i < len; i++)
        lines += text[i] == '\n';
    keys.entries = pseg_calloc(lines, sizeof *keys.entries);
    if (!keys.entries)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    for (char *line = text, *next; line; line = next) {
        bool is_key;
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        number++;
        if (!parse_line(&keys.entries[keys.n], &is_key, line)) /* the line may be a secret */
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "%s line %zu is not 'SHA256-OF-KEY TENANT' (64 hexadecimal digits, then 1 to "
                      "63 of A-Z a-z 0-9 . _ -)",
                      path, number);
        keys.n += is_key;
    }
    *out = keys;
    keys.entries = NULL;
out:
    pseg_free(keys.entries);
    pseg_free(text);
    return rc;
}

pseg_status pseg_rpc_auth_new(pseg_rpc_auth **out, const pseg_rpc_auth_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_auth *a = pseg_calloc(1, sizeof *a);

    *out = NULL;
    if (!a)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    pthread_mutex_init(&a->mu, NULL);
    a->log = o->log;
    a->certificates = o->certificates;
    a->every_us = (o->look_every_ms > 0 ? o->look_every_ms : LOOK_EVERY_MS) * 1000;
    if (o->keys_file) {
        a->path = pseg_strdup(o->keys_file);
        if (!a->path)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
        (void)stat(a->path, &a->seen);
        PSEG_TRY(read_keys(&a->keys, a->path, err));
        if (a->keys.n == 0)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s holds no keys, so nobody could call", a->path);
    }
    a->looked_us = pseg_clock_mono_us();
    *out = a;
    a = NULL;
out:
    pseg_rpc_auth_free(a);
    return rc;
}

void pseg_rpc_auth_free(pseg_rpc_auth *a)
{
    if (!a)
        return;
    pthread_mutex_destroy(&a->mu);
    pseg_free(a->keys.entries);
    pseg_free(a->path);
    pseg_free(a);
}

static void read_again(pseg_rpc_auth *a) /* mu is held */
{
    int64_t now = pseg_clock_mono_us();
    pseg_err err = PSEG_ERR_INIT;
    key_list keys = {NULL, 0};
    struct stat st;

    if (now - a->looked_us < a->every_us)
        return;
    a->looked_us = now;
    if (stat(a->path, &st) != 0 || (st.st_mtim.tv_sec == a->seen.st_mtim.tv_sec &&
                                    st.st_mtim.tv_nsec == a->seen.st_mtim.tv_nsec &&
                                    st.st_ino == a->seen.st_ino && st.st_size == a->seen.st_size))
        return;
    a->seen = st;
    if (read_keys(&keys, a->path, &err) != PSEG_OK) {
        PSEG_ERROR(a->log, "auth", "keys stay as they were: %s", err.msg);
        return;
    }
    pseg_free(a->keys.entries);
    a->keys = keys;
    PSEG_INFO(a->log, "auth", "keys have changed and were read again n=%zu", keys.n);
}

static bool find_key(pseg_rpc_auth *a, char *tenant, const char *key)
{
    uint8_t sha256[PSEG_SHA256_BYTES];
    bool found = false;

    if (strlen(key) > KEY_BYTES_MAX)
        return false;
    pseg_sha256_of(sha256, key, strlen(key));
    pthread_mutex_lock(&a->mu);
    read_again(a);
    for (size_t i = 0; i < a->keys.n && !found; i++)
        if (pseg_equal_secret(a->keys.entries[i].sha256, sha256, sizeof sha256)) {
            memcpy(tenant, a->keys.entries[i].tenant, PSEG_RPC_TENANT_MAX);
            found = true;
        }
    pthread_mutex_unlock(&a->mu);
    return found;
}

pseg_status pseg_rpc_auth_check(void *auth, char *tenant, const pseg_rpc_peer *peer,
                                const char *method, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_auth *a = auth;

    (void)method; /* every tenant may call every method */
    if (a->path && peer->bearer) {
        if (!find_key(a, tenant, peer->bearer))
            PSEG_FAIL(PSEG_R_UNAUTHENTICATED, 0, "the bearer key is not known here");
    } else if (a->certificates && peer->has_certificate) {
        if (!is_tenant(peer->common_name))
            PSEG_FAIL(
                PSEG_R_PERMISSION_DENIED, 0,
                "the certificate's common name '%s' is no tenant name (1 to 63 of A-Z a-z 0-9 "
                ". _ -)",
                peer->common_name);
        memcpy(tenant, peer->common_name, strlen(peer->common_name) + 1);
    } else if (a->path) {
        PSEG_FAIL(PSEG_R_UNAUTHENTICATED, 0,
                  "this server wants a key: send the header `authorization: Bearer KEY`");
    } else if (a->certificates) {
        PSEG_FAIL(PSEG_R_UNAUTHENTICATED, 0, "this server wants a client certificate");
    }
out:
    return rc;
}
