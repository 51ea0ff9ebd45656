/* auth: who is which tenant, by client certificate or bearer key. An authorize hook for
 * pseg_rpc_server_options:
 *
 *     o.authorize = pseg_rpc_auth_check;
 *     o.authorize_ud = auth;
 *
 * The file of keys holds a line per key: the SHA-256 of the key in hexadecimal, blanks, the tenant;
 * '#' begins a comment. So the file gives nobody a key:
 *
 *     printf %s "$KEY" | sha256sum
 *
 * It is read again when it changes (looked at once a second); a file that does not parse leaves the
 * earlier keys in force and is logged. */
#ifndef PSEG_RPC_AUTH_H
#define PSEG_RPC_AUTH_H

#include "common/rpc/rpc.h"

typedef struct pseg_rpc_auth pseg_rpc_auth;

typedef struct pseg_rpc_auth_options {
    const pseg_log *log;   /* borrowed; NULL is silent */
    const char *keys_file; /* NULL: no bearer keys */
    bool certificates;     /* a verified client certificate's common name is a tenant */
    int64_t look_every_ms; /* at the file; 0: 1,000 */
} pseg_rpc_auth_options;

/* With neither keys nor certificates everyone is "default". Caller frees with pseg_rpc_auth_free,
 * after the server. Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_CONFIG_INVALID. */
pseg_status pseg_rpc_auth_new(pseg_rpc_auth **out, const pseg_rpc_auth_options *o, pseg_err *err);
void pseg_rpc_auth_free(pseg_rpc_auth *a); /* NULL is accepted */

/* A bearer key that is there must be right, and goes before the certificate. Any thread.
 * Errors: PSEG_R_UNAUTHENTICATED, PSEG_R_PERMISSION_DENIED (a certificate whose name is no tenant
 * name: 1 to 63 of [A-Za-z0-9._-]). */
pseg_status pseg_rpc_auth_check(void *auth, char *tenant, const pseg_rpc_peer *peer,
                                const char *method, pseg_err *err);

#endif
