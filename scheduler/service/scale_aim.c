#include "scheduler/service/scale_aim.h"
#include "scheduler/service/validate.h"

#include <stdlib.h>
#include <string.h>

static pseg_status take_number(double *out, const char *key, const char *text, double min,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *end;
    double x = strtod(text, &end);
    enum { MAX_S = 86400 };

    /* !(>=) is true of NaN, too. */
    if (end == text || *end || !(x >= min) || x > MAX_S) {
        pseg_err_set(err, PSEG_R_INVALID_ARGUMENT, 0, PSEG_HERE,
                     "%s is \"%.40s\"; it must be a number of seconds, %g to %d", key, text, min,
                     MAX_S);
        pseg_err_field(err, "scalerMetadata.%s", key);
        pseg_err_value(err, "%.40s", text);
        pseg_err_limit(err, "%g..%d", min, MAX_S);
        PSEG_TRY(PSEG_EINVAL);
    }
    *out = x;
out:
    return rc;
}

pseg_status scale_aim_of(scale_aim *out, const Externalscaler__ScaledObjectRef *q,
                         const char *default_model, pseg_err *err)
{
    static const pseg_scale_target usual = PSEG_SCALE_TARGET_DEFAULT;
    pseg_status rc = PSEG_OK;

    *out = (scale_aim){default_model, usual};
    for (size_t i = 0; q && i < q->n_scalermetadata; i++) {
        const char *key = q->scalermetadata[i]->key, *value = q->scalermetadata[i]->value;
        if (strcmp(key, "model") == 0) {
            out->model = *value ? value : default_model;
            PSEG_TRY(pseg_check_model(out->model, "scalerMetadata.model", err));
        } else if (strcmp(key, "targetSeconds") == 0) {
            PSEG_TRY(take_number(&out->target.target_s, key, value, 0.1, err));
        } else if (strcmp(key, "startupSeconds") == 0) {
            PSEG_TRY(take_number(&out->target.startup_s, key, value, 0, err));
        } else if (strcmp(key, "assumedSeconds") == 0) {
            PSEG_TRY(take_number(&out->target.assumed_s, key, value, 0.001, err));
        }
    }
out:
    return rc;
}
