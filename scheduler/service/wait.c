/* Waiting for the end of a job: a table from job ids to calls, whose jobs are asked for when the
 * queue tells that they have ended. */
#include "scheduler/service/internal.h"
#include "scheduler/service/validate.h"

#include <string.h>

/* How long a WaitJob without a deadline waits, and how long before a deadline the answer is sent.
 */
enum { LONGEST_WAIT_MS = 60000 };

static waiter **slot_of(waiter_table *t, const char *id)
{
    unsigned h = 2166136261u;

    for (; *id; id++)
        h = (h ^ (unsigned char)*id) * 16777619u;
    return &t->slots[h % N_WAITER_SLOTS];
}

/* With the mutex held. */
static void unlink_waiter(waiter *w)
{
    for (waiter **p = w->slot; *p; p = &(*p)->next)
        if (*p == w) {
            *p = w->next;
            break;
        }
    w->slot = NULL;
}

static void look(pseg_rpc_call *c);

static void woken(pseg_rpc_call *c, void *arg)
{
    waiter *w = arg;

    w->ticket = NULL;
    if (!pseg_rpc_is_over(c))
        look(c);
}

/* Takes the waiter out of the table and sends its call to look at the job; false: it is not there.
 */
static bool wake(waiter_table *t, waiter *w)
{
    pthread_mutex_lock(&t->mu);
    bool was_in = w->slot != NULL;
    if (was_in)
        unlink_waiter(w);
    pthread_mutex_unlock(&t->mu);
    if (was_in)
        pseg_rpc_post(w->ticket, woken, w);
    return was_in;
}

static void settle(pseg_rpc_call *c, waiter *w, pseg_queue_reply *r);

/* The answer to what an event made ask. What is no end, or says that Redis is away, is looked at
 * again. */
static void have_end(pseg_rpc_call *c, void *arg)
{
    waiter *w = arg;
    pseg_queue_reply *r = w->reply;
    call_state *state = state_of(c);

    w->ticket = NULL;
    w->reply = NULL;
    if (!pseg_rpc_is_over(c) && state->waiter == w) {
        if (!w->is_before_submit && r->err.code == PSEG_OK && r->n_jobs && r->jobs[0].id &&
            pseg_job_state_is_terminal(r->jobs[0].state))
            settle(c, w, r);
        else
            look(c);
    }
    if (state->kept == r)
        state->kept = NULL;
    else
        pseg_queue_reply_free(r);
}

/* ---- on the queue's thread ---- */

static void answered(void *ud, pseg_queue_reply *r)
{
    waiter *w = ud;

    w->reply = r;
    pseg_rpc_post(w->ticket, have_end, w);
}

static void ask(pseg_service *s, const waiter *w, bool has_masks, pseg_queue_done done, void *ud)
{
    uint32_t indexes[PSEG_MAX_PROMPTS];

    for (uint32_t i = 0; i < w->n_masks; i++)
        indexes[i] = i;
    if (has_masks && w->n_masks)
        pseg_queue_masks(s->queue, w->tenant, w->id, indexes, w->n_masks, done, ud);
    else
        pseg_queue_get(s->queue, w->tenant, (const char *const[]){w->id}, 1, done, ud);
}

void wait_on_event(pseg_service *s, const pseg_queue_event *e)
{
    waiter_table *t = &s->waiters;
    waiter *due = NULL;
    const char *id = e ? e->id : NULL;

    if (e && !pseg_job_state_is_terminal(e->state))
        return;
    pthread_mutex_lock(&t->mu);
    /* Without an event some may have been missed: every waiter looks again. */
    waiter **first = id ? slot_of(t, id) : t->slots,
           **last = id ? first : t->slots + N_WAITER_SLOTS - 1;
    for (waiter **slot = first; slot <= last; slot++)
        for (waiter **p = slot; *p;) {
            waiter *w = *p;
            if (id && strcmp(w->id, id) != 0) {
                p = &w->next;
                continue;
            }
            *p = w->next;
            w->slot = NULL;
            w->next = due;
            due = w;
        }
    pthread_mutex_unlock(&t->mu);
    for (waiter *next; due; due = next) {
        next = due->next;
        if (e) /* at once: the loop need not know before the answer */
            ask(s, due, true, answered, due);
        else
            pseg_rpc_post(due->ticket, woken, due);
    }
}

/* ---- on the loop ---- */

/* Nothing wakes this call any more. */
static void settle(pseg_rpc_call *c, waiter *w, pseg_queue_reply *r)
{
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &w->timer);
    state_of(c)->waiter = NULL;
    wake(&service_of(c)->waiters, w);
    w->then(c, r);
}

static void looked(pseg_rpc_call *c, pseg_queue_reply *r)
{
    waiter *w = state_of(c)->waiter;

    /* An event may have sent the call to look again before the first answer came: the first answer
     * with the job's end settles it. */
    if (!w)
        return;
    /* Redis is away: the waiter is in the table, and is woken when Redis is back. */
    if (r->err.reason == PSEG_R_BROKER_UNAVAILABLE && w->has_seen && !w->is_last_look)
        return;
    w->has_seen = true;
    if (r->err.code != PSEG_OK || !r->n_jobs || r->jobs[0].id == NULL || w->is_last_look ||
        pseg_job_state_is_terminal(r->jobs[0].state))
        settle(c, w, r);
}

/* False: no memory, and the call has failed. */
static bool enter(pseg_rpc_call *c, waiter *w)
{
    waiter_table *t = &service_of(c)->waiters;

    w->ticket = pseg_rpc_hold(c);
    if (!w->ticket) {
        fail_no_memory(c);
        return false;
    }
    pthread_mutex_lock(&t->mu);
    w->slot = slot_of(t, w->id);
    w->next = *w->slot;
    *w->slot = w;
    pthread_mutex_unlock(&t->mu);
    return true;
}

/* Enters the table first and asks second, so that no end of the job falls between the two. */
static void look(pseg_rpc_call *c)
{
    waiter *w = state_of(c)->waiter;

    if (!w)
        return;
    if (w->is_before_submit) {
        w->is_due = true;
        return;
    }
    w->is_due = false;
    if (!w->is_last_look && !w->ticket && !enter(c, w))
        return;
    op *o = op_new(c, looked);
    if (o)
        ask(service_of(c), w, w->has_seen && !w->is_last_look, op_done, o);
}

static void time_is_up(pseg_rpc_timer *t, void *ud)
{
    waiter *w = ud;

    (void)t;
    w->is_last_look = true;
    if (!wake(&service_of(w->call)->waiters, w))
        look(w->call);
}

static waiter *waiter_new(pseg_rpc_call *c, const char *id, size_t n_masks,
                          void (*then)(pseg_rpc_call *, pseg_queue_reply *))
{
    call_state *state = state_of(c);
    waiter *w = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *w);

    if (!state || !w) {
        fail_no_memory(c);
        return NULL;
    }
    w->call = c;
    w->tenant = pseg_rpc_tenant(c);
    w->n_masks = n_masks <= PSEG_MAX_PROMPTS ? n_masks : 0;
    w->then = then;
    memcpy(w->id, id, PSEG_JOB_ID_LEN);
    state->waiter = w;
    int64_t left = pseg_rpc_ms_left(c), wait = LONGEST_WAIT_MS;
    /* A tenth of the time, and never less than 50 ms or more than 500, for the last look and the
     * way back. */
    if (left != INT64_MAX) {
        int64_t margin = left / 10 < 50 ? 50 : left / 10 > 500 ? 500 : left / 10;
        wait = left < 2 * margin ? left / 2 : left - margin;
        wait = wait < 0 ? 0 : wait;
    }
    pseg_rpc_timer_set(pseg_rpc_loop_of(c), &w->timer, wait, time_is_up, w);
    return w;
}

void wait_for_job(pseg_rpc_call *c, const char *id, size_t n_masks,
                  void (*then)(pseg_rpc_call *, pseg_queue_reply *))
{
    if (waiter_new(c, id, n_masks, then))
        look(c);
}

bool wait_for_new_job(pseg_rpc_call *c, const char *id, size_t n_masks,
                      void (*then)(pseg_rpc_call *, pseg_queue_reply *))
{
    waiter *w = waiter_new(c, id, n_masks, then);

    if (w)
        w->is_before_submit = true;
    return w && enter(c, w);
}

void wait_submitted(pseg_rpc_call *c, const pseg_job *j)
{
    waiter *w = state_of(c)->waiter;

    w->is_before_submit = false;
    if (strcmp(j->id, w->id) != 0) {
        /* The request came before, and the job is that one's. */
        bool will_look = wake(&service_of(c)->waiters, w);
        memcpy(w->id, j->id, PSEG_JOB_ID_LEN);
        w->is_due = !will_look;
    } else {
        w->has_seen = true;
    }
    if (w->is_due)
        look(c);
}

void wait_drain(pseg_rpc_call *c)
{
    call_state *state = pseg_rpc_state(c);

    if (state && state->waiter)
        time_is_up(NULL, state->waiter);
}

void wait_end(pseg_rpc_call *c)
{
    call_state *state = pseg_rpc_state(c);
    waiter *w = state ? state->waiter : NULL;

    if (!w)
        return;
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &w->timer);
    wake(&service_of(c)->waiters, w);
}
