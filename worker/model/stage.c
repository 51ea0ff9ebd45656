#include "worker/model/stage.h"

#include <stdio.h>

void pseg_stage_done(pseg_stage *st, pseg_view v, size_t batch, size_t rows, size_t c,
                     const char *fmt, ...)
{
    char name[64];
    va_list ap;

    if (!st->fn)
        return;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    st->fn(st->ud, st->s, name, v, batch, rows, c);
}
