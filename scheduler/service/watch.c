/* WatchJobs: the events of a tenant's jobs, as a stream that can be taken up again anywhere.
 *
 * Everything is driven by step(): while a message or a request is under way it does nothing, and
 * whoever ends what was under way calls it again. */
#include "common/base/alloc.h"
#include "pseg/v1/batch.pb-c.h"
#include "scheduler/service/internal.h"
#include "scheduler/service/validate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PIECE = 64,      /* events held at once */
    IDLE_MS = 5000,  /* after which a token that has moved on is told */
    AGAIN_MS = 500,  /* after which Redis is asked again */
    NAME_BYTES = 80, /* "jobs/ID", "batches/ID" */
};

struct watch {
    watch_entry entry;
    pseg_rpc_call *call;
    op op;                   /* the request under way */
    pseg_queue_reply *piece; /* being told, from events[next] on */
    size_t next;
    bool is_states; /* piece: states, not events */
    bool is_sending, is_asking, is_waiting /* for Redis */, is_resting;
    bool has_begun;    /* Redis has answered once */
    bool wants_batch;  /* to know that it exists */
    bool wants_states; /* of the names, or with none: the place where the events end */
    bool is_reading;   /* on to `until` */
    bool has_gap;      /* to be told */
    bool is_due;       /* for a token */
    pseg_queue_place at, until, told;
    bool has_told; /* anything */
    size_t n_left; /* names that have not ended */
    pseg_rpc_timer idle, again, stall;
};

static const pseg_queue_place forever = {UINT64_MAX, UINT64_MAX, PSEG_QUEUE_WHOLE};

watch_entry *watch_entry_of(watch *w)
{
    return &w->entry;
}

static watch_table *table_of(const watch *w)
{
    return &service_of(w->call)->watches;
}

static bool is_before(pseg_queue_place a, pseg_queue_place b)
{
    return pseg_queue_place_compare(a, b) < 0;
}

static void step(watch *w);

/* ---- telling ---- */

static void stalled(pseg_rpc_timer *t, void *ud)
{
    const watch *w = ud;
    const pseg_service *s = service_of(w->call);

    (void)t;
    PSEG_INFO(s->opt.log, "service",
              "a watcher has read nothing for %lld ms; its stream waits, others do not peer=%s",
              (long long)s->opt.stall_ms, pseg_rpc_peer_address(w->call));
}

/* e: NULL tells of the token alone. */
static void send(watch *w, pseg_queue_place at, const pseg_queue_event *e)
{
    Pseg__V1__WatchJobsResponse out = PSEG__V1__WATCH_JOBS_RESPONSE__INIT;
    Pseg__V1__JobEvent event = PSEG__V1__JOB_EVENT__INIT;
    Google__Protobuf__Timestamp time = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
    char token[PSEG_QUEUE_PLACE_BYTES], name[NAME_BYTES], batch[NAME_BYTES];

    pseg_queue_place_format(token, at);
    out.resume_token = token;
    out.gap = w->has_gap;
    if (e) {
        snprintf(name, sizeof name, "jobs/%s", e->id);
        event.name = name;
        event.state = (Pseg__V1__State)e->state;
        event.worker = (char *)(uintptr_t)e->worker;
        snprintf(batch, sizeof batch, "batches/%s", e->batch);
        if (*e->batch)
            event.batch = batch;
        time.seconds = e->at_unix_us / 1000000;
        time.nanos = (int32_t)(e->at_unix_us % 1000000) * 1000;
        if (e->at_unix_us > 0)
            event.time = &time;
        out.event = &event;
    }
    w->told = at;
    w->has_told = true;
    w->has_gap = w->is_due = false;
    w->is_sending = true;
    pseg_rpc_timer_set(pseg_rpc_loop_of(w->call), &w->stall, service_of(w->call)->opt.stall_ms,
                       stalled, w);
    pseg_rpc_send(w->call, &out.base);
}

static int order_of_names(const void *a, const void *b)
{
    return strcmp(((const watch_name *)a)->id, ((const watch_name *)b)->id);
}

/* Does the client need to hear that the job is in this state? */
static bool is_news(watch *w, watch_name *n, pseg_job_state state)
{
    if (n->has_ended || (w->is_states && n->has_told && n->told == state))
        return false;
    n->has_told = true;
    n->told = state;
    /* A job that is not there does not change any more, either. */
    if (pseg_job_state_is_terminal(state) || state == PSEG_JOB_UNKNOWN) {
        n->has_ended = true;
        w->n_left--;
    }
    return true;
}

/* Sends what comes next of the piece; false: it is done. */
static bool tell_piece(watch *w)
{
    while (w->next < w->piece->n_events) {
        pseg_queue_event e = w->piece->events[w->next++];
        watch_name *n = NULL;
        if (w->is_states) {
            n = &w->entry.names[w->next - 1];
            e.id = n->id;
        } else if (w->entry.n_names) {
            watch_name key;
            snprintf(key.id, sizeof key.id, "%s", e.id);
            n = bsearch(&key, w->entry.names, w->entry.n_names, sizeof key, order_of_names);
            if (!n)
                continue;
        }
        if (n && !is_news(w, n, e.state))
            continue;
        send(w, e.place, &e);
        return true;
    }
    w->at = w->piece->place;
    pseg_queue_reply_free(w->piece);
    w->piece = NULL;
    return false;
}

/* ---- asking ---- */

static void ask_again(pseg_rpc_timer *t, void *ud)
{
    watch *w = ud;

    (void)t;
    w->is_waiting = false;
    step(w);
}

/* Redis may come and go while somebody watches; whoever begins without it is told so. */
static bool is_lost(watch *w, const pseg_queue_reply *r)
{
    w->is_asking = false;
    if (r->err.reason == PSEG_R_BROKER_UNAVAILABLE && w->has_begun) {
        w->is_waiting = true;
        pseg_rpc_timer_set(pseg_rpc_loop_of(w->call), &w->again, AGAIN_MS, ask_again, w);
        return true;
    }
    return fail_if_error(w->call, r);
}

static void take_piece(watch *w, pseg_queue_reply *r, bool is_states)
{
    state_of(w->call)->kept = r;
    w->has_begun = true;
    w->piece = r;
    w->next = 0;
    w->is_states = is_states;
    step(w);
}

static void have_states(pseg_rpc_call *c, pseg_queue_reply *r)
{
    watch *w = state_of(c)->watch;

    if (is_lost(w, r))
        return;
    w->wants_states = w->is_reading = false;
    take_piece(w, r, true);
}

static void have_events(pseg_rpc_call *c, pseg_queue_reply *r)
{
    watch *w = state_of(c)->watch;

    if (is_lost(w, r))
        return;
    w->has_gap = w->has_gap || r->has_gap;
    if (r->has_gap && is_before(r->place, w->at))
        watch_begin_anew(table_of(w)); /* the stream was lost */
    if (r->has_gap && w->entry.n_names) {
        w->wants_states = true; /* what the lost events led to */
        step(w);
        return;
    }
    w->is_reading = r->has_more && is_before(r->place, w->until);
    take_piece(w, r, false);
}

static void have_batch(pseg_rpc_call *c, pseg_queue_reply *r)
{
    watch *w = state_of(c)->watch;

    if (is_lost(w, r))
        return;
    if (r->n_batches == 0) {
        fail_batch_not_found(c, w->entry.batch);
        return;
    }
    w->wants_batch = false;
    step(w);
}

static void ask_batch(watch *w)
{
    if (!op_begin(&w->op, w->call, have_batch))
        return;
    w->is_asking = true;
    pseg_queue_get_batch(service_of(w->call)->queue, w->entry.tenant, w->entry.batch, op_done,
                         &w->op);
}

static void ask_states(watch *w)
{
    const watch_entry *e = &w->entry;
    const char *ids[PSEG_MAX_WATCH_NAMES];

    for (size_t i = 0; i < e->n_names; i++)
        ids[i] = e->names[i].id;
    if (!op_begin(&w->op, w->call, have_states))
        return;
    w->is_asking = true;
    pseg_queue_states(service_of(w->call)->queue, e->tenant, ids, e->n_names, op_done, &w->op);
}

static void ask_events(watch *w)
{
    const watch_entry *e = &w->entry;

    if (!op_begin(&w->op, w->call, have_events))
        return;
    w->is_asking = true;
    pseg_queue_events(service_of(w->call)->queue, e->tenant, e->batch, w->at, PIECE, op_done,
                      &w->op);
}

/* ---- what to do next ---- */

/* Only when there is nothing left to read: then all that lies before the news is of no concern. */
static void look(watch *w)
{
    watch_news news = watch_look(table_of(w), w);

    if (news.has_missed) {
        w->wants_states = w->entry.n_names > 0;
        w->is_reading = true;
        w->until = forever;
    } else if (news.has_news) {
        if (is_before(w->at, news.from))
            w->at = news.from;
        w->until = news.to;
        w->is_reading = is_before(w->at, w->until);
    } else if (is_before(w->at, news.seen)) {
        w->at = news.seen;
    }
}

static void idle(pseg_rpc_timer *t, void *ud)
{
    watch *w = ud;

    (void)t;
    w->is_due = true;
    step(w);
}

/* A client that has heard nothing yet hears where it stands, and one that has heard nothing for
 * long, how far it has come: a token that stays behind is trimmed away one day. */
static bool tell_token(watch *w)
{
    bool has_moved = is_before(w->told, w->at);

    if (w->has_told && !w->has_gap && !(w->is_due && has_moved))
        return false;
    send(w, w->at, NULL);
    return true;
}

static void rest(watch *w)
{
    if (tell_token(w))
        return;
    w->is_due = false;
    if (!w->idle.armed)
        pseg_rpc_timer_set(pseg_rpc_loop_of(w->call), &w->idle, IDLE_MS, idle, w);
    if (w->is_resting)
        return;
    pseg_rpc_ticket *ticket = pseg_rpc_hold(w->call);
    if (!ticket) {
        fail_no_memory(w->call);
        return;
    }
    w->is_resting = true;
    if (!watch_rest(table_of(w), w, ticket))
        pseg_rpc_post(ticket, watch_woken, w);
}

static void step(watch *w)
{
    while (!pseg_rpc_is_over(w->call) && !w->is_sending && !w->is_asking && !w->is_waiting) {
        if (w->piece) {
            tell_piece(w);
            continue;
        }
        if (w->entry.n_names && w->n_left == 0) {
            pseg_rpc_finish(w->call);
            return;
        }
        if (!w->wants_states && !w->is_reading)
            look(w);
        if (w->wants_batch) {
            ask_batch(w);
        } else if (w->wants_states) {
            ask_states(w);
        } else if (w->is_reading) {
            ask_events(w);
        } else {
            rest(w);
            return;
        }
    }
}

/* ---- the call ---- */

void watch_woken(pseg_rpc_call *c, void *arg)
{
    watch *w = arg;

    (void)c;
    w->is_resting = false;
    step(w);
}

void watch_writable(pseg_rpc_call *c)
{
    watch *w = state_of(c)->watch;

    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &w->stall);
    w->is_sending = false;
    step(w);
}

/* In the order of their ids, which is that of their submits; each once. */
static bool take_names(watch *w, const Pseg__V1__WatchJobsRequest *q)
{
    watch_entry *e = &w->entry;

    if (q->n_names == 0)
        return true;
    e->names = pseg_arena_calloc(pseg_rpc_arena(w->call), q->n_names, sizeof *e->names);
    if (!e->names)
        return false;
    for (size_t i = 0; i < q->n_names; i++)
        memcpy(e->names[i].id, q->names[i] + strlen("jobs/"), PSEG_JOB_ID_LEN);
    qsort(e->names, q->n_names, sizeof *e->names, order_of_names);
    for (size_t i = 0; i < q->n_names; i++)
        if (i == 0 || strcmp(e->names[i].id, e->names[e->n_names - 1].id) != 0) {
            e->names[e->n_names] = e->names[i];
            e->names[e->n_names++].of = w;
        }
    w->n_left = e->n_names;
    return true;
}

void watch_jobs(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__WatchJobsRequest *q = msg;
    call_state *state = state_of(c);
    watch *w = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *w);
    pseg_err e = PSEG_ERR_INIT;

    if (!state || !w) {
        fail_no_memory(c);
        return;
    }
    w->call = c;
    if (pseg_check_watch(&w->at, &w->entry.batch, q, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    w->entry.tenant = pseg_rpc_tenant(c);
    if (!take_names(w, q)) {
        fail_no_memory(c);
        return;
    }
    state->watch = w;
    /* First in the table: what happens after Redis has looked is told. */
    watch_enter(table_of(w), w);
    w->wants_batch = *w->entry.batch != '\0';
    w->is_reading = *q->resume_token && q->n_names == 0;
    w->until = forever;
    w->wants_states = !w->is_reading;
    step(w);
}

void watch_drain(pseg_rpc_call *c)
{
    pseg_err e = PSEG_ERR_INIT;

    pseg_err_set(&e, PSEG_R_DRAINING, 0, PSEG_HERE,
                 "the server is stopping; go on from the last resume_token, another may answer");
    pseg_rpc_fail(c, &e);
}

void watch_end(pseg_rpc_call *c)
{
    call_state *state = pseg_rpc_state(c);
    watch *w = state ? state->watch : NULL;

    if (!w)
        return;
    pseg_rpc_timer *timers[] = {&w->idle, &w->again, &w->stall};
    for (size_t i = 0; i < sizeof timers / sizeof *timers; i++)
        pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), timers[i]);
    pseg_rpc_ticket *ticket = watch_leave(table_of(w), w);
    if (ticket)
        pseg_rpc_post(ticket, watch_woken, w);
    pseg_queue_reply_free(w->piece);
    w->piece = NULL;
}
