/* Checks of EstimateJob. */
#include "scheduler/service/validate.h"

static pseg_status out_of_range(const char *field, long long value, const char *limit,
                                pseg_reason reason, pseg_err *err)
{
    pseg_status rc =
        pseg_err_set(err, reason, 0, PSEG_HERE, "%s %lld is not in %s", field, value, limit);

    pseg_err_field(err, "%s", field);
    pseg_err_value(err, "%lld", value);
    pseg_err_limit(err, "%s", limit);
    return rc;
}

pseg_status pseg_check_estimate(const Pseg__V1__EstimateJobRequest *q, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const Google__Protobuf__Timestamp *d = q->deadline;

    if (*q->model)
        PSEG_TRY(pseg_check_model(q->model, "model", err));
    if (q->prompts > PSEG_MAX_PROMPTS)
        PSEG_TRY(out_of_range("prompts", q->prompts, "0..64", PSEG_R_TOO_MANY_PROMPTS, err));
    if (q->priority < -10 || q->priority > 10)
        PSEG_TRY(out_of_range("priority", q->priority, "-10..10", PSEG_R_INVALID_ARGUMENT, err));
    if (d && (d->seconds < 0 || d->seconds > 253402300799 || d->nanos < 0 || d->nanos > 999999999))
        PSEG_TRY(out_of_range("deadline", d->seconds, "0..253402300799 s, 0..999999999 ns",
                              PSEG_R_INVALID_ARGUMENT, err));
out:
    return rc;
}
_Static_assert(PSEG_MAX_PROMPTS == 64, "the limit in the message");
