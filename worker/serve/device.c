#include "worker/serve/internal.h"

static bool is_cancelled(void *ud)
{
    pseg_task *t = ud;

    pseg_watch_moved(t->worker, PSEG_WATCH_DEVICE, t); /* asked before each stage */
    return atomic_load(&t->cancelled) || atomic_load(&t->lost);
}

void *pseg_device_main(void *arg)
{
    pseg_worker *w = arg;
    pseg_task *t;

    while ((t = pseg_line_pop(w, &w->ready, &w->ready_is_over))) {
        pseg_err e = PSEG_ERR_INIT;
        if (pseg_worker_is_stopping(w)) {
            pseg_task_end(w, t, PSEG_END_RELEASE, NULL);
            continue;
        }
        pseg_watch_moved(w, PSEG_WATCH_DEVICE, t);
        pseg_status rc = pseg_engine_run(w->opt.engine, &t->work, is_cancelled, t, &e);
        pseg_watch_moved(w, PSEG_WATCH_DEVICE, NULL);
        if (rc == PSEG_OK) {
            pseg_line_push(w, &w->done, t);
            continue;
        }
        if (rc == PSEG_EDEVICE) {
            PSEG_ERROR(w->opt.log, "worker", "the device failed: %s", e.msg);
            atomic_store(&w->failed, true);
            pseg_worker_tell(w, &w->stopping);
        }
        pseg_task_end(w, t, PSEG_END_FAIL, &e);
    }
    return NULL;
}
