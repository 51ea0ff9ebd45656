/* SubmitJobs: the items of a batch, taken in order and told of when they are safe.
 *
 * An item is kept until it is stored. Where the queue is full, those that were sent to it come back
 * out of order, and all are sent again from the first one on, few at once (go-back-N); meanwhile
 * the window that the client may fill stands still, and so does the client. What a stream keeps is
 * bounded by not reading on, so that the rest waits at the client's end of the connection. */
#include "scheduler/service/submit_stream.h"
#include "scheduler/service/validate.h"

#include <string.h>

enum {
    WINDOW = 1024,            /* items that a client may be ahead of what is safe */
    MAX_UNDER_WAY = 256,      /* items that the queue has not answered */
    MAX_KEPT_BYTES = 8 << 20, /* of one stream; beyond it is not read */
    RETRY_MIN_MS = 20,        /* while the queue is full */
    RETRY_MAX_MS = 250,
    ROOM_MS = 100, /* how often a stream looks whether all streams keep less than they may */
};

/* ---- to the queue ---- */

static void drop_safe(submit_stream *s)
{
    while (s->head && s->head->seq < s->next_seq && !s->head->in_flight) {
        item *it = s->head;
        s->head = it->next;
        if (s->unsent == it)
            s->unsent = it->next;
        submit_item_free(it);
    }
    if (!s->head)
        s->tail = NULL;
}

static void fail_with(submit_stream *s, pseg_reason reason, const char *message)
{
    pseg_err e = PSEG_ERR_INIT;

    pseg_err_set(&e, reason, 0, PSEG_HERE, "%s", message);
    pseg_rpc_fail(s->call, &e);
}

static void take_answer(submit_stream *s, const pseg_queue_reply *r)
{
    switch (r->err.reason) {
    case PSEG_R_NONE:
        if (r->next_seq > s->next_seq) {
            s->next_seq = r->next_seq;
            s->owes_ack = true;
        }
        s->retry_ms = RETRY_MIN_MS;
        s->allowed = s->allowed < MAX_UNDER_WAY / 2 ? 2 * s->allowed : MAX_UNDER_WAY;
        break;
    case PSEG_R_QUEUE_FULL:
    case PSEG_R_TENANT_LIMIT:
    case PSEG_R_BROKER_FULL:
        s->is_full = true;
        break;
    case PSEG_R_BATCH_NOT_FOUND:
        fail_batch_not_found(s->call, s->batch);
        break;
    case PSEG_R_BATCH_OUT_OF_ORDER:
        if (!s->is_full) /* what was safe is no longer: Redis has forgotten */
            fail_with(s, PSEG_R_BROKER_UNAVAILABLE,
                      "redis has lost items of the batch; connect again and go on from next_seq");
        break;
    default:
        pseg_rpc_fail(s->call, &r->err);
    }
}

static void item_answered(pseg_rpc_call *c, void *arg)
{
    item *it = arg;
    submit_stream *s = it->stream;

    it->in_flight = false;
    s->under_way--;
    if (!pseg_rpc_is_over(c))
        take_answer(s, it->reply);
    pseg_queue_reply_free(it->reply);
    it->reply = NULL;
    if (s->has_ended)
        submit_item_free(it);
    else if (!pseg_rpc_is_over(c))
        submit_go_on(s);
}

static void item_done(void *ud, pseg_queue_reply *r)
{
    item *it = ud;

    it->reply = r;
    pseg_rpc_post(it->ticket, item_answered, it);
}

static void pump(submit_stream *s)
{
    while (s->unsent && !s->is_full && s->under_way < s->allowed && !pseg_rpc_is_over(s->call)) {
        item *it = s->unsent;
        if (!submit_is_decided(s, it))
            return;
        it->ticket = pseg_rpc_hold(s->call);
        if (!it->ticket) {
            fail_no_memory(s->call);
            return;
        }
        s->unsent = it->next;
        s->under_way++;
        it->in_flight = true;
        submit_was_sent(s, it);
        pseg_queue_item_args a = {.job = it->job.args,
                                  .batch = s->batch,
                                  .seq = it->seq,
                                  .custom_id = it->custom_id,
                                  .refuse = it->refuse};
        pseg_queue_submit_item(service_of(s->call)->queue, &a, item_done, it);
    }
}

static void look_at_limits(submit_stream *s)
{
    const pseg_service_options *o = &service_of(s->call)->opt;

    if (o->limits_of)
        o->limits_of(o->limits_ud, pseg_rpc_tenant(s->call), &s->limits);
}

static void try_again(pseg_rpc_timer *t, void *ud)
{
    submit_stream *s = ud;

    (void)t;
    look_at_limits(s);
    s->is_full = false;
    s->allowed = 1;
    s->unsent = s->head;
    submit_go_on(s);
}

/* ---- to the client ---- */

static void acknowledge(submit_stream *s)
{
    Pseg__V1__SubmitJobsResponse out = PSEG__V1__SUBMIT_JOBS_RESPONSE__INIT;

    if (s->is_sending || !s->owes_ack)
        return;
    s->owes_ack = false;
    s->is_sending = true;
    s->window_end = s->next_seq - 1 + (s->is_sealed ? 0 : WINDOW);
    out.next_seq = s->next_seq;
    out.window_end = s->window_end;
    out.sealed = s->is_sealed;
    pseg_rpc_send(s->call, &out.base);
    if (s->is_sealed && s->wants_seal)
        pseg_rpc_finish(s->call);
}

void submit_writable(pseg_rpc_call *c)
{
    submit_stream *s = state_of(c)->submit;

    s->is_sending = false;
    submit_go_on(s);
}

static void sealed(pseg_rpc_call *c, pseg_queue_reply *r)
{
    submit_stream *s = state_of(c)->submit;

    s->is_sealing = false;
    take_answer(s, r);
    if (pseg_rpc_is_over(c))
        return;
    if (r->err.code == PSEG_OK) {
        s->is_sealing = s->is_sealed = s->owes_ack = true;
        results_wake(&service_of(c)->results, pseg_rpc_tenant(c), s->batch);
    }
    submit_go_on(s);
}

static void seal(submit_stream *s)
{
    op *o = op_new(s->call, sealed);

    s->is_sealing = true;
    if (o)
        pseg_queue_seal_batch(service_of(s->call)->queue, pseg_rpc_tenant(s->call), s->batch,
                              op_done, o);
}

/* ---- reading ---- */

static void stalled(pseg_rpc_timer *t, void *ud)
{
    pseg_rpc_call *c = ud;
    pseg_err e = PSEG_ERR_INIT;
    int64_t ms = service_of(c)->opt.stall_ms;

    (void)t;
    pseg_err_set(&e, PSEG_R_DEADLINE_EXCEEDED, 0, PSEG_HERE,
                 "the client has sent nothing for %lld ms; connect again and go on", (long long)ms);
    pseg_err_value(&e, "%lld", (long long)ms);
    pseg_err_limit(&e, "%lld", (long long)ms);
    pseg_rpc_fail(c, &e);
}

static void look_for_room(pseg_rpc_timer *t, void *ud)
{
    (void)t;
    submit_go_on(ud);
}

/* Lets the next message come, if there is room for it. Only a client that has nothing to wait for
 * has to send something. */
static void read_next(submit_stream *s)
{
    pseg_service *service = service_of(s->call);
    pseg_rpc_loop *l = pseg_rpc_loop_of(s->call);

    if (s->wants_seal || s->is_eof || s->is_draining || s->bytes >= MAX_KEPT_BYTES)
        return;
    if (!upload_has_room(&service->uploads, pseg_rpc_tenant(s->call))) {
        pseg_rpc_timer_set(l, &s->room, ROOM_MS, look_for_room, s);
        return;
    }
    if (!s->head)
        pseg_rpc_timer_set(l, &state_of(s->call)->stall, service->opt.stall_ms, stalled, s->call);
    pseg_rpc_read(s->call);
}

void submit_go_on(submit_stream *s)
{
    drop_safe(s);
    if (s->is_full && !s->under_way && !s->retry.armed) {
        pseg_rpc_timer_set(pseg_rpc_loop_of(s->call), &s->retry, s->retry_ms, try_again, s);
        s->retry_ms = 2 * s->retry_ms < RETRY_MAX_MS ? 2 * s->retry_ms : RETRY_MAX_MS;
    }
    if (!s->is_draining)
        pump(s);
    acknowledge(s);
    if (!s->owes_ack && s->is_draining && !s->under_way)
        fail_with(s, PSEG_R_DRAINING, "the server is stopping; connect again and go on");
    else if (!s->owes_ack && !s->head && s->is_eof)
        pseg_rpc_finish(s->call);
    if (pseg_rpc_is_over(s->call))
        return;
    if (s->wants_seal && !s->head && !s->is_sealing && !s->is_full && !s->is_draining)
        seal(s);
    read_next(s);
}

/* ---- messages ---- */

static void opened(pseg_rpc_call *c, pseg_queue_reply *r)
{
    submit_stream *s = state_of(c)->submit;

    if (fail_if_error(c, r))
        return;
    if (!r->n_batches) {
        fail_batch_not_found(c, s->batch);
        return;
    }
    s->next_seq = s->due_seq = r->batches[0].next_seq;
    s->is_sealed = r->batches[0].sealed;
    s->is_open = s->owes_ack = true;
    look_at_limits(s);
    submit_go_on(s);
}

static void begin(pseg_rpc_call *c, const Pseg__V1__SubmitHeader *h)
{
    call_state *state = state_of(c);
    submit_stream *s = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *s);
    pseg_err e = PSEG_ERR_INIT;
    const char *id;

    if (pseg_check_batch_name(&id, h->batch, "header.batch", &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    char *kept = pseg_arena_strdup(pseg_rpc_arena(c), id);
    op *o = s && kept ? op_new(c, opened) : NULL;
    if (!o) {
        fail_no_memory(c);
        return;
    }
    s->call = c;
    s->batch = kept;
    s->retry_ms = RETRY_MIN_MS;
    s->allowed = MAX_UNDER_WAY;
    state->submit = s;
    pseg_queue_get_batch(service_of(c)->queue, pseg_rpc_tenant(c), s->batch, op_done, o);
}

/* False: the call has been failed. */
static bool check_seq(submit_stream *s, int64_t seq)
{
    pseg_err e = PSEG_ERR_INIT;

    if (s->is_sealed)
        pseg_err_set(&e, PSEG_R_BATCH_SEALED, 0, PSEG_HERE,
                     "batch %s takes no more items, and item %lld is new", s->batch,
                     (long long)seq);
    else if (seq > s->window_end)
        pseg_err_set(&e, PSEG_R_BATCH_WINDOW, 0, PSEG_HERE,
                     "item %lld was sent where only those up to %lld may be; wait for window_end "
                     "to move",
                     (long long)seq, (long long)s->window_end);
    else if (seq > s->due_seq)
        pseg_err_set(&e, PSEG_R_BATCH_OUT_OF_ORDER, 0, PSEG_HERE,
                     "item %lld came where item %lld was due", (long long)seq,
                     (long long)s->due_seq);
    else
        return true;
    pseg_err_field(&e, "item.seq");
    pseg_err_value(&e, "%lld", (long long)seq);
    pseg_err_limit(&e, "%lld", (long long)(s->is_sealed ? s->next_seq - 1 : s->window_end));
    pseg_rpc_fail(s->call, &e);
    return false;
}

static void take_item(submit_stream *s, const Pseg__V1__BatchItem *q)
{
    pseg_err e = PSEG_ERR_INIT;

    if (q->seq < 1)
        pseg_err_set(&e, PSEG_R_BATCH_OUT_OF_ORDER, 0, PSEG_HERE,
                     "an item has the number %lld; the first is 1", (long long)q->seq);
    if (q->seq < 1) {
        pseg_err_field(&e, "item.seq");
        pseg_rpc_fail(s->call, &e);
        return;
    }
    if (q->seq >= s->due_seq) {
        if (!check_seq(s, q->seq))
            return;
        item *it = submit_item_new(s, q);
        if (!it) {
            fail_no_memory(s->call);
            return;
        }
        s->due_seq++;
        if (s->tail)
            s->tail->next = it;
        else
            s->head = it;
        s->tail = it;
        if (!s->unsent)
            s->unsent = it;
    }
    submit_go_on(s);
}

static void is_no_turn(pseg_rpc_call *c, bool has_begun)
{
    pseg_err e = PSEG_ERR_INIT;

    pseg_err_set(&e, PSEG_R_INVALID_ARGUMENT, 0, PSEG_HERE, "%s",
                 has_begun ? "after the header only items and the seal may come"
                           : "the first message must be the header");
    pseg_err_field(&e, "part");
    pseg_rpc_fail(c, &e);
}

void submit_jobs(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__SubmitJobsRequest *q = msg;
    call_state *state = state_of(c);
    submit_stream *s = state ? state->submit : NULL;

    if (!state) {
        fail_no_memory(c);
        return;
    }
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &state->stall);
    if (!s && q && q->part_case == PSEG__V1__SUBMIT_JOBS_REQUEST__PART_HEADER) {
        begin(c, q->header);
    } else if (s && q && q->part_case == PSEG__V1__SUBMIT_JOBS_REQUEST__PART_ITEM) {
        take_item(s, q->item);
    } else if (s && (!q || q->part_case == PSEG__V1__SUBMIT_JOBS_REQUEST__PART_SEAL)) {
        s->is_eof = !q;
        s->wants_seal = q != NULL;
        submit_go_on(s);
    } else {
        is_no_turn(c, s != NULL);
    }
}

void submit_drain(pseg_rpc_call *c)
{
    call_state *state = state_of(c);
    pseg_err e = PSEG_ERR_INIT;

    if (state && state->submit && state->submit->is_open) {
        state->submit->is_draining = true;
        submit_go_on(state->submit);
        return;
    }
    pseg_err_set(&e, PSEG_R_DRAINING, 0, PSEG_HERE, "the server is stopping; connect again");
    pseg_rpc_fail(c, &e);
}

void submit_end(pseg_rpc_call *c)
{
    call_state *state = pseg_rpc_state(c);
    submit_stream *s = state ? state->submit : NULL;

    if (state)
        pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &state->stall);
    if (!s)
        return;
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &s->retry);
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &s->room);
    s->has_ended = true;
    /* Those under way are freed with their answers. */
    for (item *it = s->head, *next; it; it = next) {
        next = it->next;
        if (!it->in_flight)
            submit_item_free(it);
    }
    s->head = s->tail = s->unsent = NULL;
}
