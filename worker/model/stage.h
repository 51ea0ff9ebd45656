/* A stream with the hook that watches the stages of a model go by (pseg_stage_fn). */
#ifndef PSEG_MODEL_STAGE_H
#define PSEG_MODEL_STAGE_H

#include "worker/model/pseg.h"

typedef struct pseg_stage {
    pseg_stream *s;
    pseg_stage_fn *fn; /* or NULL */
    void *ud;
} pseg_stage;

/* fmt: the stage's name, with a %u for its number. Costs nothing without a hook. */
void pseg_stage_done(pseg_stage *st, pseg_view v, size_t batch, size_t rows, size_t c,
                     const char *fmt, ...) __attribute__((format(printf, 6, 7)));

#endif
