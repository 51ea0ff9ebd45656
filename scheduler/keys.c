#include "scheduler/keys.h"
#include "common/base/alloc.h"
#include "common/base/keyfile.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

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
    pseg_keyfile file;
};

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
    pseg_keyfile now = {0};

    out->seen = stamp_of(out->path); /* before reading: a change in between is seen next time */
    PSEG_TRY(pseg_keyfile_read(&now, out->path, err));
    pthread_mutex_lock(&out->mu);
    pseg_keyfile old = out->file;
    out->file = now;
    pthread_mutex_unlock(&out->mu);
    now = old;
out:
    pseg_keyfile_free(&now);
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
                  k->path, k->file.n);
    else
        PSEG_ERROR(k->log, "scheduler", "the earlier keys stay in force: %s", e.msg);
}

void pseg_keys_free(pseg_keys *k)
{
    if (!k)
        return;
    pthread_mutex_destroy(&k->mu);
    pseg_keyfile_free(&k->file);
    pseg_free(k->path);
    pseg_free(k);
}

static bool tenant_of(char tenant[PSEG_RPC_TENANT_MAX], pseg_keys *k, const char *bearer)
{
    pthread_mutex_lock(&k->mu);
    const char *found = pseg_keyfile_tenant(&k->file, bearer);
    if (found)
        snprintf(tenant, PSEG_RPC_TENANT_MAX, "%s", found);
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
        if (!pseg_is_tenant(peer->common_name))
            PSEG_FAIL(
                PSEG_R_PERMISSION_DENIED, 0,
                "the certificate's common name is no tenant: it must be 1 to 63 of a-z 0-9 _ -");
        snprintf(tenant, PSEG_RPC_TENANT_MAX, "%s", peer->common_name);
    }
out:
    return rc;
}
