#include "common/queue/queue_mem_impl.h"
#include "common/base/alloc.h"

#include <string.h>

#define EVENTS_MAX 100000

mem_event *mem_event_new(const pseg_queue_event *e)
{
    const char *from[] = {e->id, e->tenant, e->batch, e->worker};
    const char **to[4];
    size_t len[4], all = 0;

    for (int i = 0; i < 4; i++)
        all += len[i] = strlen(from[i]) + 1;
    mem_event *x = pseg_calloc(1, sizeof *x + all);
    if (!x)
        return NULL;
    x->e = *e;
    to[0] = &x->e.id;
    to[1] = &x->e.tenant;
    to[2] = &x->e.batch;
    to[3] = &x->e.worker;
    char *at = (char *)(x + 1);
    for (int i = 0; i < 4; at += len[i++]) {
        memcpy(at, from[i], len[i]);
        *to[i] = at;
    }
    return x;
}

void mem_trim_events(mem_store *s, size_t keep)
{
    while (s->n_events > keep) {
        mem_event *x = s->first_event;
        s->first_event = x->next;
        s->n_events--;
        s->has_lost_events = true;
        pseg_free(x);
    }
    if (!s->first_event)
        s->last_event = NULL;
}

/* Each event is an entry of its own, with the time for its number, as in Redis. */
void mem_tell(mem_store *s, const mem_job *job)
{
    uint64_t ms = (uint64_t)mem_now_us(s) / 1000;
    pseg_queue_place *last = &s->last_place_told;

    *last = ms > last->ms ? (pseg_queue_place){ms, 0, 1}
                          : (pseg_queue_place){last->ms, last->seq + 1, 1};
    const pseg_queue_event e = {.id = job->j.id,
                                .tenant = job->j.tenant,
                                .batch = job->batch ? job->batch->id : "",
                                .worker = job->j.state == PSEG_JOB_RUNNING ? job->j.worker : "",
                                .state = job->j.state,
                                .at_unix_us = (int64_t)last->ms * 1000,
                                .place = *last};
    mem_event *x = mem_event_new(&e);
    if (x && s->last_event)
        s->last_event->next = x;
    else if (x)
        s->first_event = x;
    if (x) {
        s->last_event = x;
        s->n_events++;
    } else {
        s->has_lost_events = true;
    }
    mem_trim_events(s, EVENTS_MAX);
    s->changed(s->ud, &e);
}

static void event_in(pseg_arena *a, pseg_queue_event *to, const pseg_queue_event *e)
{
    *to = *e;
    to->id = mem_text_in(a, e->id);
    to->tenant = "";
    to->batch = mem_text_in(a, e->batch);
    to->worker = mem_text_in(a, e->worker);
}

static bool is_same_entry(pseg_queue_place a, pseg_queue_place b)
{
    return a.ms == b.ms && a.seq == b.seq;
}

void mem_events(mem_store *s, const char *tenant, const char *batch, pseg_queue_place from,
                size_t limit, pseg_queue_reply *r)
{
    const mem_event *x = s->first_event;
    pseg_queue_place start = {0, 0, PSEG_QUEUE_WHOLE};

    r->events = pseg_arena_calloc(r->arena, limit, sizeof *r->events);
    if (!r->events) {
        mem_no_memory(r);
        return;
    }
    while (x && pseg_queue_place_compare(x->e.place, from) <= 0 && !is_same_entry(x->e.place, from))
        x = x->next;
    if (from.ms == 0 && from.seq == 0) {
        r->has_gap = s->has_lost_events;
    } else if (!x || !is_same_entry(x->e.place, from)) {
        r->has_gap = true;
        x = x ? x : s->first_event;
    } else {
        start = x->e.place;
        start.n = from.n;
        x = from.n >= 1 ? x->next : x;
    }
    r->place = start;
    for (; x; x = x->next) {
        if (strcmp(x->e.tenant, tenant) == 0 && (!*batch || strcmp(x->e.batch, batch) == 0)) {
            if (r->n_events == limit) {
                r->has_more = true;
                return;
            }
            event_in(r->arena, &r->events[r->n_events++], &x->e);
        }
        r->place = x->e.place;
    }
}

void mem_states(mem_store *s, const char *tenant, const char *const *ids, size_t n,
                pseg_queue_reply *r)
{
    r->place = s->last_event ? s->last_event->e.place : (pseg_queue_place){0, 0, PSEG_QUEUE_WHOLE};
    r->events = pseg_arena_calloc(r->arena, n, sizeof *r->events);
    if (!r->events) {
        mem_no_memory(r);
        return;
    }
    r->n_events = n;
    for (size_t i = 0; i < n; i++) {
        const mem_job *job = mem_job_of_tenant(s, tenant, ids[i]);
        pseg_queue_event *e = &r->events[i];
        *e = (pseg_queue_event){.tenant = "", .batch = "", .worker = "", .place = r->place};
        if (!job)
            continue;
        e->id = mem_text_in(r->arena, job->j.id);
        e->state = job->j.state;
        if (job->batch)
            e->batch = mem_text_in(r->arena, job->batch->id);
        e->at_unix_us = job->j.created_unix_us;
        if (e->state == PSEG_JOB_RUNNING) {
            e->worker = mem_text_in(r->arena, job->j.worker);
            e->at_unix_us = job->j.started_unix_us;
        } else if (pseg_job_state_is_terminal(e->state)) {
            e->at_unix_us = job->j.finished_unix_us;
        }
    }
}
