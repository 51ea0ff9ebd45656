/* A job as the queue holds it. */
#ifndef PSEG_JOB_JOB_H
#define PSEG_JOB_JOB_H

#include "common/base/err.h"

#include <stdint.h>

#define PSEG_JOB_ID_LEN 32

/* If you add a state: X(name, is terminal), proto/pseg/v1 State, common/queue/lua, docs/job-lifecycle.md.
 */
#define PSEG_JOB_STATES(X) \
    X(QUEUED, false)       \
    X(RUNNING, false)      \
    X(SUCCEEDED, true)     \
    X(FAILED, true)        \
    X(CANCELLED, true)     \
    X(EXPIRED, true)

typedef enum pseg_job_state {
    PSEG_JOB_UNKNOWN = 0,
#define PSEG_JOB_STATE_ENUM(name, terminal) PSEG_JOB_##name,
    PSEG_JOB_STATES(PSEG_JOB_STATE_ENUM)
#undef PSEG_JOB_STATE_ENUM
} pseg_job_state;

typedef struct pseg_bytes {
    const uint8_t *data;
    size_t len;
} pseg_bytes;

/* Strings are "" and numbers 0 where the job has none. */
typedef struct pseg_job {
    const char *id, *tenant, *request_id, *model;
    const char *worker; /* that holds or held it */
    pseg_job_state state;
    pseg_bytes spec;    /* packed pseg.internal.v1.JobSpec */
    pseg_bytes result;  /* packed pseg.internal.v1.JobResult */
    pseg_reason reason; /* of the last failure; PSEG_R_NONE: none */
    const char *message;
    int64_t attempts;
    bool cancel_requested;
    int64_t created_unix_us, started_unix_us, finished_unix_us, deadline_unix_us, expire_unix_us;
} pseg_job;

const char *pseg_job_state_name(pseg_job_state s); /* "QUEUED"; "UNKNOWN" for anything else */
pseg_job_state pseg_job_state_parse(const char *name);
bool pseg_job_state_is_terminal(pseg_job_state s);

/* 32 hexadecimal digits: 48 bits of milliseconds since 1970, 16 bits of a millisecond's fraction,
 * then 64 random bits, so that ids sort by time to the microsecond and cannot be guessed. Errors:
 * PSEG_R_INTERNAL (no random bytes). */
pseg_status pseg_job_new_id(char out[PSEG_JOB_ID_LEN + 1], pseg_err *err);

/* How long to wait before attempt `attempt + 1`: 1 s, 4 s, 16 s ... at most 5 min. */
int64_t pseg_job_retry_delay_ms(int64_t attempt);

#endif
