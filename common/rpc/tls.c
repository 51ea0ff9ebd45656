/* Server certificates that may be renewed in place: the core asks at every handshake, and the files
 * are read again when one of them has changed. What does not parse, or does not fit together while
 * the files are being replaced, leaves the earlier certificates in force. */
#include "common/rpc/internal.h"

#include "common/base/alloc.h"
#include "common/base/file.h"

#include <string.h>
#include <sys/stat.h>

#define PEM_BYTES ((size_t)1 << 20)

enum { CERT, KEY, CLIENT_CA, N_FILES };

typedef struct stamp {
    struct timespec modified;
    ino_t inode;
    off_t size;
} stamp;

/* One per listening address: the core expects each to answer its first question with NEW. */
typedef struct fetcher {
    struct fetcher *next;
    pseg_rpc_tls *tls;
    pthread_mutex_t mu; /* handshakes run on any of the core's threads */
    bool has_read;
    stamp stamps[N_FILES];
} fetcher;

struct pseg_rpc_tls {
    const pseg_log *log;
    char *paths[N_FILES]; /* CLIENT_CA may be NULL */
    fetcher *fetchers;
};

static pseg_status read_files(char *pem[N_FILES], const pseg_rpc_tls *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n;

    for (int i = 0; i < N_FILES; i++)
        if (t->paths[i])
            PSEG_TRY(pseg_file_read((uint8_t **)&pem[i], &n, t->paths[i], PEM_BYTES, err));
out:
    return rc;
}

static void free_files(char *pem[N_FILES])
{
    if (pem[KEY]) /* a private key must not stay in freed memory */
        explicit_bzero(pem[KEY], strlen(pem[KEY]));
    for (int i = 0; i < N_FILES; i++)
        pseg_free(pem[i]);
}

static void stamp_files(stamp out[N_FILES], const pseg_rpc_tls *t)
{
    memset(out, 0, N_FILES * sizeof *out);
    for (int i = 0; i < N_FILES; i++) {
        struct stat st;
        if (t->paths[i] && stat(t->paths[i], &st) == 0) {
            out[i].modified = st.st_mtim;
            out[i].inode = st.st_ino;
            out[i].size = st.st_size;
        }
    }
}

static grpc_ssl_certificate_config_reload_status fetch(void *ud,
                                                       grpc_ssl_server_certificate_config **out)
{
    fetcher *f = ud;
    pseg_rpc_tls *t = f->tls;
    grpc_ssl_certificate_config_reload_status answer = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    char *pem[N_FILES] = {NULL};
    pseg_err err = PSEG_ERR_INIT;
    stamp now[N_FILES];

    pthread_mutex_lock(&f->mu);
    stamp_files(now, t); /* before reading: a change in between is seen next time */
    if (f->has_read && memcmp(now, f->stamps, sizeof now) == 0)
        goto out;
    memcpy(f->stamps, now, sizeof now);
    if (read_files(pem, t, &err) != PSEG_OK) {
        PSEG_ERROR(t->log, "rpc", "cannot read the certificates again: %s", err.msg);
        if (!f->has_read)
            answer = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_FAIL;
        goto out;
    }
    grpc_ssl_pem_key_cert_pair pair = {pem[KEY], pem[CERT]};
    /* The core asserts that a fetcher names authorities; where no client certificate is asked for
     * nobody looks at them, and our own certificate will do. */
    *out = grpc_ssl_server_certificate_config_create(pem[CLIENT_CA] ? pem[CLIENT_CA] : pem[CERT],
                                                     &pair, 1);
    answer = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
    if (f->has_read)
        PSEG_INFO(t->log, "rpc", "certificates have changed and were read again file=%s",
                  t->paths[CERT]);
    f->has_read = true;
out:
    pthread_mutex_unlock(&f->mu);
    free_files(pem);
    return answer;
}

pseg_status pseg_rpc_tls_new(pseg_rpc_tls **out, const pseg_rpc_server_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *paths[N_FILES] = {o->cert_file, o->key_file, o->client_ca_file};
    char *pem[N_FILES] = {NULL};
    pseg_rpc_tls *t = NULL;

    *out = NULL;
    if (!o->cert_file && !o->key_file && !o->client_ca_file)
        return PSEG_OK;
    if (!o->cert_file || !o->key_file)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "TLS needs a certificate and its key, and only one of the files is given");
    t = pseg_calloc(1, sizeof *t);
    if (!t)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    t->log = o->log;
    for (int i = 0; i < N_FILES; i++) {
        t->paths[i] = paths[i] ? pseg_strdup(paths[i]) : NULL;
        if (paths[i] && !t->paths[i])
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    }
    PSEG_TRY(read_files(pem, t, err)); /* for a good message now instead of a bad one later */
    for (int i = 0; i < N_FILES; i++)
        if (pem[i] && !strstr(pem[i], "-----BEGIN "))
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s is no PEM file; convert it with openssl",
                      t->paths[i]);
    *out = t;
    t = NULL;
out:
    free_files(pem);
    pseg_rpc_tls_free(t);
    return rc;
}

void pseg_rpc_tls_free(pseg_rpc_tls *t)
{
    if (!t)
        return;
    for (fetcher *f = t->fetchers, *next; f; f = next) {
        next = f->next;
        pthread_mutex_destroy(&f->mu);
        pseg_free(f);
    }
    for (int i = 0; i < N_FILES; i++)
        pseg_free(t->paths[i]);
    pseg_free(t);
}

grpc_server_credentials *pseg_rpc_tls_credentials(pseg_rpc_tls *t)
{
    grpc_ssl_client_certificate_request_type request =
        t && t->paths[CLIENT_CA] ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                 : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE;

    if (!t)
        return grpc_insecure_server_credentials_create();
    fetcher *f = pseg_calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->tls = t;
    pthread_mutex_init(&f->mu, NULL);
    f->next = t->fetchers;
    t->fetchers = f;
    return grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(request, fetch, f));
}
