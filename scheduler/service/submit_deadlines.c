/* Items of SubmitJobs whose deadline cannot be met, where the server refuses such jobs.
 *
 * What lies before a job is asked of the queue for a kind of item (model, phrases, priority) and
 * holds for a while, to which the stream adds what it has sent since; so a stream of equal items
 * asks ten times a second and not once an item. */
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "scheduler/service/estimate.h"
#include "scheduler/service/submit_stream.h"

#include <stdio.h>
#include <string.h>

enum { HOLDS_MS = 100 };

static bool is_of(const submit_outlook *o, const item *it)
{
    const pseg_queue_submit_args *a = &it->job.args;

    return o->phrases == it->phrases && o->priority == a->priority &&
           strcmp(o->model, a->model) == 0;
}

static submit_outlook *find(submit_stream *s, const item *it)
{
    int64_t oldest = pseg_clock_mono_ms() - HOLDS_MS;

    for (size_t i = 0; i < SUBMIT_OUTLOOKS; i++)
        if (s->outlooks[i].taken_ms >= oldest && is_of(&s->outlooks[i], it))
            return &s->outlooks[i];
    return NULL;
}

static void have_outlook(pseg_rpc_call *c, pseg_queue_reply *r)
{
    submit_stream *s = state_of(c)->submit;
    submit_outlook *o = &s->outlooks[s->asked];

    s->is_asking = false;
    /* Nothing is known of a model that is not there, and the item is refused for that. */
    if (r->err.reason != PSEG_R_MODEL_UNKNOWN && fail_if_error(c, r))
        return;
    o->estimate = r->err.code == PSEG_OK ? r->estimate : (pseg_queue_estimate){0};
    o->taken_ms = pseg_clock_mono_ms();
    submit_go_on(s);
}

static void ask(submit_stream *s, const item *it)
{
    s->asked = (s->asked + 1) % SUBMIT_OUTLOOKS;
    submit_outlook *o = &s->outlooks[s->asked];
    op *request = op_begin(&s->asking, s->call, have_outlook);

    *o = (submit_outlook){.phrases = it->phrases, .priority = it->job.args.priority};
    snprintf(o->model, sizeof o->model, "%s", it->job.args.model);
    if (!request)
        return;
    s->is_asking = true;
    estimate_for(request, "", o->model, o->phrases, o->priority);
}

bool submit_is_decided(submit_stream *s, item *it)
{
    int64_t deadline = it->job.args.deadline_unix_us;
    pseg_err e = PSEG_ERR_INIT;

    if (it->refuse || !deadline || !service_of(s->call)->opt.refuse_infeasible)
        return true;
    submit_outlook *o = s->is_asking ? NULL : find(s, it);
    if (!o) {
        /* Of what is under way nobody could tell whether the queue has counted it. */
        if (!s->is_asking && s->under_way == 0)
            ask(s, it);
        return false;
    }
    pseg_queue_estimate now = o->estimate;
    now.ahead += o->sent_since;
    if (is_infeasible(&e, &now, deadline)) {
        it->refuse = pseg_memdup(&e, sizeof e);
        if (!it->refuse) {
            fail_no_memory(s->call);
            return false;
        }
    }
    return true;
}

void submit_was_sent(submit_stream *s, const item *it)
{
    const pseg_queue_submit_args *a = &it->job.args;

    for (size_t i = 0; i < SUBMIT_OUTLOOKS && !it->refuse; i++)
        s->outlooks[i].sent_since +=
            a->priority >= s->outlooks[i].priority && strcmp(a->model, s->outlooks[i].model) == 0;
}
