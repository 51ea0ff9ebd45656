/* What the metadata of a KEDA trigger ask for. Pure functions, any thread. */
#ifndef PSEG_SERVICE_SCALE_AIM_H
#define PSEG_SERVICE_SCALE_AIM_H

#include "keda/externalscaler.pb-c.h"
#include "scheduler/service/scale.h"

typedef struct scale_aim {
    const char *model; /* borrowed from the request, or the default */
    pseg_scale_target target;
} scale_aim;

/* q: NULL is like one without metadata; keys that are not ours are KEDA's own. Errors:
 * PSEG_R_INVALID_ARGUMENT, PSEG_R_NAME_INVALID, with err->field. */
pseg_status scale_aim_of(scale_aim *out, const Externalscaler__ScaledObjectRef *q,
                         const char *default_model, pseg_err *err);

#endif
