/* Errors on the wire: pseg_err to google.rpc.Status and back. */
#ifndef PSEG_RPC_STATUS_H
#define PSEG_RPC_STATUS_H

#include "common/base/arena.h"
#include "common/base/err.h"
#include "google/rpc/status.pb-c.h"

#include <stdint.h>

#define PSEG_RPC_ERROR_DOMAIN "pseg"

/* The status of err (which is set) with its details; see pseg_rpc_fail. retry_after_ms < 0: the
 * usual second, and only for retryable reasons. For replies that hold a status, too (Job.error).
 * Borrowed until the arena is freed; NULL when memory is short. */
Google__Rpc__Status *pseg_rpc_status_of(pseg_arena *a, const pseg_err *err, int64_t retry_after_ms);

/* Fills err from a status of whatever server: the reason from ErrorInfo of our domain, else one
 * that fits the gRPC code; the field from BadRequest; err->detail is the gRPC code. *retry_after_ms
 * (may be NULL): from RetryInfo, or -1. Returns err's code; PSEG_OK, with err cleared, for code 0.
 */
pseg_status pseg_rpc_status_read(pseg_err *err, int64_t *retry_after_ms,
                                 const Google__Rpc__Status *status);

/* "OK", "NOT_FOUND": the name of a gRPC code; static, "UNKNOWN" for numbers that are none. */
const char *pseg_rpc_code_name(int code);

#endif
