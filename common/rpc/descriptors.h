/* An index of a serialised google.protobuf.FileDescriptorSet: files by name, symbols by full name.
 * What reflection answers from, and what method tables are checked against. */
#ifndef PSEG_RPC_DESCRIPTORS_H
#define PSEG_RPC_DESCRIPTORS_H

#include "common/base/arena.h"
#include "common/base/err.h"
#include "common/rpc/rpc.h"

#include <stdint.h>

typedef struct pseg_rpc_span {
    const uint8_t *p, *end;
} pseg_rpc_span;

typedef struct pseg_rpc_file {
    pseg_rpc_span raw; /* FileDescriptorProto */
    const char *name;
    const char **deps; /* names of the n_deps files it imports */
    size_t n_deps;
} pseg_rpc_file;

typedef struct pseg_rpc_symbol {
    const char *name; /* full, without a leading dot */
    size_t file;      /* index into files */
    enum { PSEG_RPC_SYMBOL_OTHER, PSEG_RPC_SYMBOL_MESSAGE, PSEG_RPC_SYMBOL_METHOD } kind;
    const char *input; /* of a method: ".package.Type" */
    unsigned streams;  /* of a method: PSEG_RPC_CLIENT_STREAM, PSEG_RPC_SERVER_STREAM */
} pseg_rpc_symbol;

typedef struct pseg_rpc_descriptors {
    pseg_arena *arena;
    pseg_rpc_file *files;
    pseg_rpc_symbol *symbols; /* sorted by name */
    const char **services;    /* those with methods that are served */
    size_t n_files, n_symbols, n_services, max_symbols;
} pseg_rpc_descriptors;

/* `set` is borrowed until pseg_rpc_descriptors_free, which accepts NULL. */
pseg_status pseg_rpc_descriptors_new(pseg_rpc_descriptors **out, const uint8_t *set, size_t len,
                                     pseg_err *err);
void pseg_rpc_descriptors_free(pseg_rpc_descriptors *d);

/* NULL: no such thing. A leading dot of a symbol's name is skipped. */
const pseg_rpc_symbol *pseg_rpc_descriptors_symbol(const pseg_rpc_descriptors *d, const char *name);
pseg_rpc_file *pseg_rpc_descriptors_file(const pseg_rpc_descriptors *d, const char *name);

/* Is the method what the descriptors say (request type, streams)? Lists its service as served.
 * Errors: PSEG_R_INTERNAL (the table is wrong), PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_rpc_descriptors_serve(pseg_rpc_descriptors *d, const pseg_rpc_method *m,
                                       pseg_err *err);

#endif
