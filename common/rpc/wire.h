/* A look at a serialised message before protobuf-c parses it, for the three things it does not
 * check: nesting without end, strings that are not UTF-8, and strings that a NUL would cut. */
#ifndef PSEG_RPC_WIRE_H
#define PSEG_RPC_WIRE_H

#include "common/base/err.h"

#include <protobuf-c/protobuf-c.h>
#include <stdint.h>

#define PSEG_RPC_MAX_DEPTH 32 /* messages within messages */

typedef pseg_reason (*pseg_rpc_text_reason_fn)(const ProtobufCMessageDescriptor *message,
                                               const ProtobufCFieldDescriptor *field);

/* Walks all fields that `type` knows. err->field names the place ("job.prompts[2].text").
 * text_reason: see pseg_rpc_server_options. Errors: PSEG_R_REQUEST_MALFORMED, or what text_reason
 * says. Allocates nothing. */
pseg_status pseg_rpc_check_strings(const ProtobufCMessageDescriptor *type, const uint8_t *data,
                                   size_t len, pseg_rpc_text_reason_fn text_reason, pseg_err *err);

#endif
