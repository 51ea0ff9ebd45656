/* The part of an engine's opening that a second process can do: compiling. */
#include "worker/serve/engine.h"

pseg_status pseg_engine_compile(const pseg_engine_options *o, const char *device, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_cl_options co = o->cl;
    pseg_cl *cl = NULL;
    pseg_model *m = NULL;

    co.device = device;
    PSEG_TRY(pseg_cl_open(&cl, &co, err));
    PSEG_TRY(o->preset ? pseg_model_random(&m, cl, o->preset, 1, &o->model, err)
                       : pseg_model_open(&m, cl, &o->source, &o->model, err));
    PSEG_TRY(pseg_stream_rehearse(pseg_model_stream(m), err));
    PSEG_TRY(pseg_model_warm_up(m, err));
    PSEG_TRY(pseg_stream_compile_rehearsed(pseg_model_stream(m), err));
out:
    if (rc != PSEG_OK) {
        pseg_model_close(m);
        pseg_cl_close(cl);
    }
    return rc;
}
