/* Waiting for the end of a job: a table from job ids to calls, woken by the queue's events. */
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

    if (!pseg_rpc_is_over(c)) {
        w->ticket = NULL;
        look(c);
    }
}

/* Takes the waiter out of the table, if it is there, and sends its call to look at the job. */
static void wake(waiter_table *t, waiter *w)
{
    pthread_mutex_lock(&t->mu);
    bool was_in = w->slot != NULL;
    if (was_in)
        unlink_waiter(w);
    pthread_mutex_unlock(&t->mu);
    if (was_in)
        pseg_rpc_post(w->ticket, woken, w);
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
        pseg_rpc_post(due->ticket, woken, due);
    }
}

static void looked(pseg_rpc_call *c, pseg_queue_reply *r)
{
    pseg_service *s = service_of(c);
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
        pseg_job_state_is_terminal(r->jobs[0].state)) {
        /* Nothing may wake this call any more. */
        pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &w->timer);
        state_of(c)->waiter = NULL;
        pthread_mutex_lock(&s->waiters.mu);
        bool was_in = w->slot != NULL;
        if (was_in)
            unlink_waiter(w);
        pthread_mutex_unlock(&s->waiters.mu);
        pseg_rpc_ticket *ticket = was_in ? w->ticket : NULL;
        w->then(c, r);
        if (ticket)
            pseg_rpc_post(ticket, woken, w);
    }
}

/* Enters the table first and asks second, so that no end of the job falls between the two. */
static void look(pseg_rpc_call *c)
{
    pseg_service *s = service_of(c);
    call_state *state = state_of(c);
    waiter *w = state->waiter;

    if (!w)
        return;
    if (!w->is_last_look) {
        w->ticket = pseg_rpc_hold(c);
        if (!w->ticket) {
            fail_no_memory(c);
            return;
        }
        pthread_mutex_lock(&s->waiters.mu);
        w->slot = slot_of(&s->waiters, w->id);
        w->next = *w->slot;
        *w->slot = w;
        pthread_mutex_unlock(&s->waiters.mu);
    }
    uint32_t indexes[PSEG_MAX_PROMPTS];
    for (uint32_t i = 0; i < PSEG_MAX_PROMPTS; i++)
        indexes[i] = i;
    op *o = op_new(c, looked);
    if (o && w->n_masks && w->has_seen && !w->is_last_look)
        pseg_queue_masks(s->queue, pseg_rpc_tenant(c), w->id, indexes, w->n_masks, op_done, o);
    else if (o)
        pseg_queue_get(s->queue, pseg_rpc_tenant(c), (const char *const[]){w->id}, 1, op_done, o);
}

static void time_is_up(pseg_rpc_timer *t, void *ud)
{
    waiter *w = ud;
    pseg_service *s = service_of(w->call);

    (void)t;
    w->is_last_look = true;
    wake(&s->waiters, w);
}

void wait_for_job(pseg_rpc_call *c, const char *id, size_t n_masks,
                  void (*then)(pseg_rpc_call *, pseg_queue_reply *))
{
    call_state *state = state_of(c);
    waiter *w = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *w);

    if (!state || !w) {
        fail_no_memory(c);
        return;
    }
    w->call = c;
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
