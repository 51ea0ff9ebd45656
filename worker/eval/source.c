#include "worker/eval/source.h"

const char *pseg_eval_fault_name(pseg_eval_fault f)
{
    static const char *const names[] = {
#define NAME(id, name) name,
        PSEG_EVAL_FAULTS(NAME)
#undef NAME
    };
    return names[f];
}

void pseg_eval_source_close(pseg_eval_source *s)
{
    if (s)
        s->close(s);
}
