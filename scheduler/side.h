/* Servers beside the public one: a service for those who run the scheduler, on an address of its
 * own with its own rules of who may call it. */
#ifndef PSEG_SCHEDULER_SIDE_H
#define PSEG_SCHEDULER_SIDE_H

#include "common/rpc/rpc.h"
#include "scheduler/keys.h"

/* Strings are borrowed until the server is freed. */
typedef struct pseg_side_options {
    const char *name;               /* in the log */
    const char *listen;             /* host:port or unix:/path */
    const char *ready_file;         /* gets the address once it is served; NULL: none */
    const char *service;            /* of the methods, for health */
    const pseg_rpc_method *methods; /* static */
    void *ud;                       /* of the methods */
    /* TLS as for everyone, but not on a unix socket, which only its folder guards. */
    const char *cert_file, *key_file, *client_ca_file;
    pseg_auth *auth; /* NULL, or without keys: no bearer key is asked for */
    int64_t first_message_ms, idle_ms;
} pseg_side_options;

/* The scheduler's address as others reach it: with the port that a 0 became. */
void pseg_side_address(char out[256], const char *listen, int port);

/* Serves at once. Caller stops it and frees it with pseg_rpc_server_free, also on failure.
 * Errors: those of pseg_rpc_server_listen and pseg_file_write. */
pseg_status pseg_side_open(pseg_rpc_server **out, const pseg_side_options *o, const pseg_log *log,
                           pseg_err *err);

#endif
