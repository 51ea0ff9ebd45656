#include "worker/apps/worker_trace.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <string.h>

typedef struct timeline {
    pseg_span *spans; /* room for all that is added */
    size_t n;
    int64_t to_unix_us; /* what makes a monotonic time one of the calendar */
} timeline;

static pseg_span *add(timeline *l, const char *name, const pseg_trace_context *above,
                      int64_t begin_mono_us, int64_t end_mono_us)
{
    pseg_span *s = &l->spans[l->n];

    *s = (pseg_span){.name = name,
                     .parent = above->span_id,
                     .kind = PSEG_SPAN_INTERNAL,
                     .begin_unix_us = begin_mono_us + l->to_unix_us,
                     .end_unix_us = end_mono_us + l->to_unix_us};
    if (pseg_trace_context_begin(&s->context, above, 0))
        l->n++;
    return s;
}

/* A job's stages follow each other, and some are told together when the last of them is over: each
 * ended at the latest when the next one began. Returns when the first one on this worker began. */
static int64_t add_stages(timeline *l, const pseg_work *w, const pseg_trace_context *job,
                          const pseg_trace_context *caller, int64_t now_mono_us)
{
    int64_t next = now_mono_us;
    size_t last = w->n_stages;

    if (last)
        add(l, "publish", job, w->stages[last - 1].end_mono_us, now_mono_us);
    for (size_t i = last; i-- > 0;) {
        int64_t end = w->stages[i].end_mono_us < next ? w->stages[i].end_mono_us : next;
        bool is_wait = strcmp(w->stages[i].name, "queue") == 0;
        add(l, w->stages[i].name, is_wait ? caller : job, end - w->stages[i].us, end);
        next = is_wait ? end : end - w->stages[i].us;
    }
    return next;
}

/* Each launch below the stage within which it ran. In company a stage is the job's share of what
 * all took, the launches are those of all. */
static void add_kernels(timeline *l, const pseg_work *w, size_t first_stage, size_t end_stage)
{
    for (size_t i = 0; i < w->n_kernels; i++) {
        const pseg_kernel_time *k = &w->kernels[i];
        for (size_t s = first_stage; s < end_stage; s++)
            if (strcmp(l->spans[s].name, k->stage) == 0) {
                add(l, k->name, &l->spans[s].context, k->begin_mono_ns / 1000,
                    k->end_mono_ns / 1000);
                break;
            }
    }
}

void pseg_worker_trace_on_ended(pseg_trace *t, const pseg_engine *engine,
                                const pseg_worker_ended *e)
{
    pseg_trace_context caller, job;
    int64_t now = pseg_clock_mono_us();
    timeline l = {.to_unix_us = pseg_clock_unix_us() - now};

    if (!t || !pseg_trace_context_parse(&caller, e->traceparent) || !caller.is_sampled ||
        !pseg_trace_context_begin(&job, &caller, 0))
        return;
    l.spans = pseg_calloc(PSEG_ENGINE_MAX_STAGES + 2 + e->work->n_kernels, sizeof *l.spans);
    if (!l.spans)
        return;
    int64_t begin = add_stages(&l, e->work, &job, &caller, now);
    add_kernels(&l, e->work, 0, l.n);
    l.spans[l.n++] =
        (pseg_span){.name = "process job",
                    .context = job,
                    .parent = caller.span_id,
                    .kind = PSEG_SPAN_CONSUMER,
                    .begin_unix_us = begin + l.to_unix_us,
                    .end_unix_us = now + l.to_unix_us,
                    .fault = *e->reason ? e->reason : NULL,
                    .notes = {{"pseg.job.id", e->job, 0},
                              {"pseg.job.outcome", e->outcome, 0},
                              {"pseg.job.attempt", NULL, e->attempt},
                              {"pseg.job.prompts", NULL, (int64_t)e->work->n_prompts},
                              {"pseg.model", pseg_engine_name(engine), 0},
                              {"pseg.device", pseg_engine_device(engine, e->work->device), 0}}};
    if (e->work->n_kernels_left_out)
        l.spans[l.n - 1].notes[6] =
            (pseg_span_note){"pseg.kernels.left_out", NULL, (int64_t)e->work->n_kernels_left_out};
    pseg_trace_tell(t, l.spans, l.n);
    pseg_free(l.spans);
}
