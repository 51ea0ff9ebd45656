#include "worker/serve/internal.h"
#include "common/base/clock.h"

#include <string.h>

static size_t kind_of(size_t which)
{
    return which < PSEG_WATCH_PREPARE ? which : PSEG_WATCH_PREPARE;
}

void pseg_watch_moved(pseg_worker *w, size_t which, pseg_task *t)
{
    pseg_watch *x = &w->watches[which];
    int64_t now = pseg_clock_mono_us();

    pthread_mutex_lock(&w->mu);
    int64_t *longest = &w->longest_us[kind_of(which)];
    if (x->at && now - x->since_us > *longest)
        *longest = now - x->since_us;
    x->at = t;
    x->since_us = now;
    pthread_mutex_unlock(&w->mu);
}

bool pseg_watch_check(pseg_worker *w)
{
    pseg_err e = PSEG_ERR_INIT;
    char id[PSEG_JOB_ID_LEN + 1] = "";

    if (w->opt.watchdog_ms <= 0)
        return false;
    pthread_mutex_lock(&w->mu);
    for (size_t i = 0; i < PSEG_N_WATCHES && !*id; i++) {
        const pseg_watch *x = &w->watches[i];
        size_t kind = kind_of(i);
        bool is_device = i < PSEG_WATCH_PREPARE;
        int64_t limit = w->opt.watchdog_ms * 1000, for_us = pseg_clock_mono_us() - x->since_us;
        if (10 * w->longest_us[kind] > limit)
            limit = 10 * w->longest_us[kind];
        if (!x->at || for_us < limit)
            continue;
        memcpy(id, x->at->id, sizeof id);
        pseg_err_set(&e, PSEG_R_DEVICE_HUNG, 0, PSEG_HERE,
                     "no progress on %s for %lld ms, the limit is %lld ms%s%s",
                     is_device ? "the device" : "preparing its image", (long long)(for_us / 1000),
                     (long long)(limit / 1000), is_device ? ": " : "",
                     is_device ? pseg_engine_device(w->opt.engine, i - PSEG_WATCH_DEVICE) : "");
        w->stopping = true;
    }
    pthread_mutex_unlock(&w->mu);
    if (!*id)
        return false;
    PSEG_ERROR(w->opt.log, "worker", "job=%s hangs: %s", id, e.msg);
    pseg_lease_register(w); /* with this line as evidence */
    pseg_lease_give_back(w, id, &e);
    atomic_store(&w->hung, true);
    return true;
}
