/* Bearer keys: a file as common/base/keyfile.h has it, read again when it changes, as the
 * certificates are. */
#ifndef PSEG_SCHEDULER_KEYS_H
#define PSEG_SCHEDULER_KEYS_H

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/rpc/rpc.h"

typedef struct pseg_keys pseg_keys;

/* log: borrowed until pseg_keys_free. Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_CONFIG_INVALID with the
 * line's number. */
pseg_status pseg_keys_open(pseg_keys **out, const char *path, const pseg_log *log, pseg_err *err);
void pseg_keys_free(pseg_keys *k);

/* Reads the file again if it has changed; to be called about once a second, from one thread. A file
 * that does not parse, holds no keys or is gone leaves the earlier keys in force, and is logged. */
void pseg_keys_refresh(pseg_keys *k);

/* Who may call and as which tenant. keys: NULL, no keys. needs_certificate: a client certificate is
 * required, and names the tenant where no key does. */
typedef struct pseg_auth {
    pseg_keys *keys;
    bool needs_certificate;
} pseg_auth;

/* A pseg_rpc_authorize_fn; ud is a pseg_auth. */
pseg_status pseg_auth_check(void *ud, char *tenant, const pseg_rpc_peer *peer, const char *method,
                            pseg_err *err);

#endif
