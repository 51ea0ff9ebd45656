/* When each kernel of a batch ran, for works that are traced. */
#include "worker/serve/engine_internal.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <string.h>

struct pseg_kernel_times {
    pseg_kernel_time all[PSEG_ENGINE_MAX_KERNELS];
    size_t n, n_placed, n_left_out;
    const char *stage;
    /* What makes a time of the device one of this machine's: a launch is over when its times can be
     * read, the last one just so. The smallest difference seen in a step is the truest. */
    int64_t offset_ns;
};

static void take(void *ud, const char *name, uint64_t start_ns, uint64_t end_ns)
{
    pseg_kernel_times *t = ud;
    int64_t offset = pseg_clock_mono_us() * 1000 - (int64_t)end_ns;

    if (t->n_placed == t->n || offset < t->offset_ns)
        t->offset_ns = offset;
    if (t->n == PSEG_ENGINE_MAX_KERNELS)
        t->n_left_out++;
    else
        t->all[t->n++] = (pseg_kernel_time){name, t->stage, (int64_t)start_ns, (int64_t)end_ns};
}

pseg_kernel_times *pseg_kernel_times_begin(pseg_model *m, const pseg_engine_job *jobs, size_t n)
{
    bool is_wanted = false;

    for (size_t i = 0; i < n; i++)
        is_wanted = is_wanted || jobs[i].work->times_kernels;
    /* Without memory there are no times: they are told where there are some. */
    pseg_kernel_times *t = is_wanted ? pseg_calloc(1, sizeof *t) : NULL;
    if (t)
        pseg_stream_trace(pseg_model_stream(m), take, t);
    return t;
}

void pseg_kernel_times_step(pseg_kernel_times *t, const char *stage)
{
    if (!t)
        return;
    for (; t->n_placed < t->n; t->n_placed++) {
        t->all[t->n_placed].begin_mono_ns += t->offset_ns;
        t->all[t->n_placed].end_mono_ns += t->offset_ns;
    }
    t->stage = stage;
}

void pseg_kernel_times_end(pseg_kernel_times *t, pseg_model *m, const pseg_engine_job *jobs,
                           size_t n)
{
    if (!t)
        return;
    pseg_stream_trace(pseg_model_stream(m), NULL, NULL);
    pseg_kernel_times_step(t, NULL);
    for (size_t i = 0; i < n; i++) {
        pseg_work *w = jobs[i].work;
        if (!w->times_kernels)
            continue;
        pseg_free(w->kernels); /* of an attempt in company that failed */
        w->n_kernels = 0;
        w->kernels = pseg_calloc(t->n ? t->n : 1, sizeof *w->kernels);
        if (!w->kernels)
            continue;
        memcpy(w->kernels, t->all, t->n * sizeof *w->kernels);
        w->n_kernels = t->n;
        w->n_kernels_left_out = t->n_left_out;
    }
    pseg_free(t);
}
