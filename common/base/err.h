/* Errors of the whole project: a status code, a reason, and a caller-owned record.
 *
 * 0 is success and every failure is negative, everywhere. A function that can fail returns
 * pseg_status and takes `pseg_err *err` last; err may be NULL. The place that finds the fault fills
 * the record; callers return the status unchanged and may add a prefix with pseg_err_prefix().
 * Nothing here allocates, locks or prints, and there is no global or thread-local state.
 *
 *     pseg_status pseg_thing_open(pseg_thing **out, const char *path, pseg_err *err)
 *     {
 *         pseg_status rc = PSEG_OK;
 *         pseg_file *f = NULL;
 *
 *         *out = NULL;
 *         PSEG_TRY(pseg_file_open(&f, path, err));
 *         if (f->size > limit)
 *             PSEG_FAIL(PSEG_R_IMAGE_TOO_LARGE, 0, "image of %zu bytes is over the limit of %zu",
 * ...); out: pseg_file_close(f); return rc;
 *     }
 */
#ifndef PSEG_BASE_ERR_H
#define PSEG_BASE_ERR_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

typedef enum pseg_status {
    PSEG_OK = 0,
    PSEG_EINVAL = -1,
    PSEG_ENOMEM = -2,
    PSEG_EIO = -3,
    PSEG_ENOTFOUND = -4,
    PSEG_EEXISTS = -5,
    PSEG_EBUSY = -6,
    PSEG_ETIMEOUT = -7,
    PSEG_ECANCELLED = -8,
    PSEG_ECORRUPT = -9,
    PSEG_EDEVICE = -10,
    PSEG_EUNSUPPORTED = -11,
    PSEG_EINTERNAL = -12,
    PSEG_EDENIED = -13,
    PSEG_ESTATE = -14, /* right in itself, but not in the present state of the thing */
} pseg_status;

/* The one mapping of the project: X(reason, status, gRPC status number, retryable).
 * `retryable` says whether the same work may succeed later or elsewhere: it is what the worker asks
 * before it hands a failed job back, and what docs/api.md promises to clients. The reason's name is
 * ErrorInfo.reason on the wire and the failure stored with a job; names are never reused.
 * gRPC numbers: 1 CANCELLED 3 INVALID_ARGUMENT 4 DEADLINE_EXCEEDED 5 NOT_FOUND 6 ALREADY_EXISTS
 * 7 PERMISSION_DENIED 8 RESOURCE_EXHAUSTED 9 FAILED_PRECONDITION 10 ABORTED 12 UNIMPLEMENTED
 * 13 INTERNAL 14 UNAVAILABLE 15 DATA_LOSS 16 UNAUTHENTICATED.
 * If you add a reason: docs/api.md lists them all, and a test compares the two. */
#define PSEG_REASONS(X)                                 \
    X(INVALID_ARGUMENT, PSEG_EINVAL, 3, false)          \
    X(NAME_INVALID, PSEG_EINVAL, 3, false)              \
    X(REQUEST_MALFORMED, PSEG_EINVAL, 3, false)         \
    X(REQUEST_TOO_LARGE, PSEG_EINVAL, 3, false)         \
    X(REQUEST_ID_REUSED, PSEG_EEXISTS, 6, false)        \
    X(PAGE_TOKEN_INVALID, PSEG_EINVAL, 3, false)        \
    X(PROMPT_MISSING, PSEG_EINVAL, 3, false)            \
    X(PROMPT_EMPTY, PSEG_EINVAL, 3, false)              \
    X(PROMPT_TOO_LONG, PSEG_EINVAL, 3, false)           \
    X(PROMPT_NOT_TEXT, PSEG_EINVAL, 3, false)           \
    X(PROMPT_UNKNOWN, PSEG_EINVAL, 3, false)            \
    X(TOO_MANY_PROMPTS, PSEG_EINVAL, 3, false)          \
    X(THRESHOLD_OUT_OF_RANGE, PSEG_EINVAL, 3, false)    \
    X(MASK_ENCODING_UNSUPPORTED, PSEG_EINVAL, 3, false) \
    X(IMAGE_MISSING, PSEG_EINVAL, 3, false)             \
    X(IMAGE_TOO_LARGE, PSEG_EINVAL, 3, false)           \
    X(IMAGE_TOO_MANY_PIXELS, PSEG_EINVAL, 3, false)     \
    X(IMAGE_TOO_MANY_FRAMES, PSEG_EINVAL, 3, false)     \
    X(IMAGE_FORMAT_UNSUPPORTED, PSEG_EINVAL, 3, false)  \
    X(IMAGE_UNDECODABLE, PSEG_ECORRUPT, 3, false)       \
    X(IMAGE_DECODER_CRASHED, PSEG_ECORRUPT, 3, false)   \
    X(IMAGE_DECODER_TIMEOUT, PSEG_EINVAL, 3, false)     \
    X(IMAGE_DECODER_MEMORY, PSEG_EINVAL, 3, false)      \
    X(IMAGE_NOT_HELD, PSEG_ESTATE, 9, false)            \
    X(UPLOAD_HASH_MISMATCH, PSEG_EINVAL, 3, false)      \
    X(UPLOAD_OUT_OF_ORDER, PSEG_EINVAL, 3, false)       \
    X(UPLOAD_INCOMPLETE, PSEG_EINVAL, 3, false)         \
    X(MODEL_UNKNOWN, PSEG_ENOTFOUND, 5, false)          \
    X(MODEL_MISSING, PSEG_ENOTFOUND, 9, false)          \
    X(MODEL_CORRUPT, PSEG_ECORRUPT, 15, false)          \
    X(MODEL_MISMATCH, PSEG_EINVAL, 9, false)            \
    X(MODEL_UNSUPPORTED, PSEG_EUNSUPPORTED, 12, false)  \
    X(BATCH_NOT_FOUND, PSEG_ENOTFOUND, 5, false)        \
    X(BATCH_SEALED, PSEG_ESTATE, 9, false)              \
    X(BATCH_OUT_OF_ORDER, PSEG_EINVAL, 3, false)        \
    X(BATCH_WINDOW, PSEG_EINVAL, 3, false)              \
    X(BATCH_LIMIT, PSEG_EBUSY, 8, true)                 \
    X(JOB_NOT_FOUND, PSEG_ENOTFOUND, 5, false)          \
    X(JOB_NOT_DONE, PSEG_ESTATE, 9, false)              \
    X(JOB_FAILED, PSEG_ESTATE, 9, false)                \
    X(JOB_CANCELLED, PSEG_ECANCELLED, 1, false)         \
    X(JOB_EXPIRED, PSEG_ETIMEOUT, 4, false)             \
    X(JOB_ALREADY_TERMINAL, PSEG_ESTATE, 9, false)      \
    X(DEADLINE_INFEASIBLE, PSEG_ESTATE, 9, false)       \
    X(JOB_CORRUPT, PSEG_ECORRUPT, 15, false)            \
    X(MASK_NOT_FOUND, PSEG_ENOTFOUND, 5, false)         \
    X(RESULT_EXPIRED, PSEG_ENOTFOUND, 5, false)         \
    X(ATTEMPTS_EXHAUSTED, PSEG_EINTERNAL, 13, false)    \
    X(LEASE_LOST, PSEG_ESTATE, 10, true)                \
    X(QUEUE_FULL, PSEG_EBUSY, 8, true)                  \
    X(TENANT_LIMIT, PSEG_EBUSY, 8, true)                \
    X(BROKER_FULL, PSEG_EBUSY, 8, true)                 \
    X(BROKER_UNAVAILABLE, PSEG_EIO, 14, true)           \
    X(BROKER_PROTOCOL, PSEG_EINTERNAL, 13, false)       \
    X(SERVER_BUSY, PSEG_EBUSY, 8, true)                 \
    X(SERVER_UNAVAILABLE, PSEG_EIO, 14, true)           \
    X(DRAINING, PSEG_EBUSY, 14, true)                   \
    X(UNAUTHENTICATED, PSEG_EDENIED, 16, false)         \
    X(PERMISSION_DENIED, PSEG_EDENIED, 7, false)        \
    X(DEADLINE_EXCEEDED, PSEG_ETIMEOUT, 4, true)        \
    X(CANCELLED, PSEG_ECANCELLED, 1, false)             \
    X(DEVICE_NOT_FOUND, PSEG_EDEVICE, 9, true)          \
    X(DEVICE_FAILED, PSEG_EDEVICE, 13, true)            \
    X(DEVICE_HUNG, PSEG_EDEVICE, 13, true)              \
    X(DEVICE_OUT_OF_MEMORY, PSEG_ENOMEM, 8, true)       \
    X(KERNEL_BUILD_FAILED, PSEG_EDEVICE, 13, false)     \
    X(OUT_OF_MEMORY, PSEG_ENOMEM, 8, true)              \
    X(ADDRESS_IN_USE, PSEG_EIO, 9, false)               \
    X(NOT_FOUND, PSEG_ENOTFOUND, 5, false)              \
    X(FILE_NOT_FOUND, PSEG_ENOTFOUND, 5, false)         \
    X(FILE_IO, PSEG_EIO, 13, false)                     \
    X(DATA_CORRUPT, PSEG_ECORRUPT, 3, false)            \
    X(CONFIG_INVALID, PSEG_EINVAL, 3, false)            \
    X(UNSUPPORTED, PSEG_EUNSUPPORTED, 12, false)        \
    X(INTERNAL, PSEG_EINTERNAL, 13, false)

typedef enum pseg_reason {
    PSEG_R_NONE = 0,
#define PSEG_REASON_ENUM(name, status, grpc, retry) PSEG_R_##name,
    PSEG_REASONS(PSEG_REASON_ENUM)
#undef PSEG_REASON_ENUM
        PSEG_R_COUNT
} pseg_reason;

typedef struct pseg_err {
    pseg_status code;
    pseg_reason reason;
    int detail;        /* errno, cl_int, gRPC code or another library's number; 0: none */
    const char *where; /* "file:line" of the origin, static */
    char field[64];    /* the request's field at fault ("prompts[2].text"), or "" */
    char msg[320];     /* one line, lower case, UTF-8 */
    /* What msg says, for programs that read it, each "" or NULL where it does not apply: */
    char value[80];       /* the offending value, or the name of what was not found */
    char limit[64];       /* what the value had to keep to: "1024", "1..1000" */
    const char *resource; /* static: the type of what was not found, "pseg.v1.Job" */
} pseg_err;

#define PSEG_ERR_INIT                                       \
    {                                                       \
        PSEG_OK, PSEG_R_NONE, 0, NULL, "", "", "", "", NULL \
    }

#define PSEG_STR2(x) #x
#define PSEG_STR(x)  PSEG_STR2(x)
#define PSEG_HERE    __FILE__ ":" PSEG_STR(__LINE__)

/* Fills *err (if not NULL) and returns the status of `reason`. A message that does not fit is cut
 * at a UTF-8 boundary; control characters and bytes that are not UTF-8 become '?', so that it stays
 * one line of text. */
pseg_status pseg_err_set(pseg_err *err, pseg_reason reason, int detail, const char *where,
                         const char *fmt, ...) __attribute__((format(printf, 5, 6)));
pseg_status pseg_err_setv(pseg_err *err, pseg_reason reason, int detail, const char *where,
                          const char *fmt, va_list ap) __attribute__((format(printf, 5, 0)));

/* Puts "prefix: " before the message of an error that is set. */
void pseg_err_prefix(pseg_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Names the request's field at fault, if none is named yet. */
void pseg_err_field(pseg_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The offending value, and what it had to keep to, of an error that is set. What does not fit is
 * cut; control characters become '?'. */
void pseg_err_value(pseg_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void pseg_err_limit(pseg_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* What was not found: its type (static) and, as the value, its name. */
void pseg_err_resource(pseg_err *err, const char *type, const char *name);

void pseg_err_clear(pseg_err *err);

/* Properties of a reason; PSEG_R_NONE and unknown values answer as PSEG_R_INTERNAL. */
const char *pseg_reason_name(pseg_reason reason); /* static, UPPER_SNAKE */
pseg_status pseg_reason_status(pseg_reason reason);
int pseg_reason_grpc(pseg_reason reason);
bool pseg_reason_is_retryable(pseg_reason reason);
pseg_reason pseg_reason_from_name(const char *name); /* PSEG_R_NONE: no such reason */

/* Exit status of a command-line program for a reason: 0 good, 2 the user's input, 3 not found,
 * 4 try again later, 5 a job failed, was cancelled or expired, 1 anything else. */
int pseg_reason_exit_status(pseg_reason reason);

#define PSEG_TRY(expr)     \
    do {                   \
        rc = (expr);       \
        if (rc != PSEG_OK) \
            goto out;      \
    } while (0)

#define PSEG_FAIL(reason, d, ...)                                      \
    do {                                                               \
        rc = pseg_err_set(err, (reason), (d), PSEG_HERE, __VA_ARGS__); \
        goto out;                                                      \
    } while (0)

/* For inputs of a public function: PSEG_REQUIRE(n > 0, "n"). */
#define PSEG_REQUIRE(cond, what)                                                                \
    do {                                                                                        \
        if (!(cond))                                                                            \
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s: requirement not met: %s (%s)", __func__, \
                      #cond, (what));                                                           \
    } while (0)

/* For what has been proved: aborts in a debug build, PSEG_R_INTERNAL in a release. */
#if PSEG_DEBUG
void pseg_assert_failed(const char *expr, const char *where) __attribute__((noreturn));
#define PSEG_ASSERT(cond)                         \
    do {                                          \
        if (!(cond))                              \
            pseg_assert_failed(#cond, PSEG_HERE); \
    } while (0)
#else
#define PSEG_ASSERT(cond)                                                 \
    do {                                                                  \
        if (!(cond))                                                      \
            PSEG_FAIL(PSEG_R_INTERNAL, 0, "assertion failed: %s", #cond); \
    } while (0)
#endif

#endif
