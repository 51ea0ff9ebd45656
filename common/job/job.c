#include "common/job/job.h"
#include "common/base/clock.h"
#include "common/base/hash.h"

#include <string.h>

static const struct {
    const char *name;
    bool terminal;
} states[] = {{"UNKNOWN", false},
#define PSEG_JOB_STATE_ROW(name, terminal) {#name, terminal},
              PSEG_JOB_STATES(PSEG_JOB_STATE_ROW)
#undef PSEG_JOB_STATE_ROW
};
enum { N_STATES = sizeof states / sizeof *states };

const char *pseg_job_state_name(pseg_job_state s)
{
    return states[(unsigned)s < N_STATES ? s : 0].name;
}

pseg_job_state pseg_job_state_parse(const char *name)
{
    for (int i = 1; i < N_STATES; i++)
        if (strcmp(states[i].name, name) == 0)
            return (pseg_job_state)i;
    return PSEG_JOB_UNKNOWN;
}

bool pseg_job_state_is_terminal(pseg_job_state s)
{
    return states[(unsigned)s < N_STATES ? s : 0].terminal;
}

pseg_status pseg_job_new_id(char out[PSEG_JOB_ID_LEN + 1], pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t id[PSEG_JOB_ID_LEN / 2];
    uint64_t us = (uint64_t)pseg_clock_unix_us();
    uint64_t time = (us / 1000) << 16 | (us % 1000) * 65536 / 1000;

    for (int i = 0; i < 8; i++)
        id[i] = (uint8_t)(time >> (8 * (7 - i)));
    if (!pseg_random_bytes(id + 8, sizeof id - 8))
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "the system gives no random bytes for a job id");
    pseg_hex(out, id, sizeof id);
out:
    return rc;
}

int64_t pseg_job_retry_delay_ms(int64_t attempt)
{
    int64_t delay = 1000;

    for (int64_t i = 1; i < attempt && delay < 300000; i++)
        delay *= 4;
    return delay < 300000 ? delay : 300000;
}
