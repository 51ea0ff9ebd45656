/* StreamBatchResults: the ends of a batch's items in their order, and their masks if they are
 * wanted.
 *
 * Everything is driven by step(): while a message, a request or masks are under way it does
 * nothing, and whoever ends what was under way calls it again. */
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/rpc/status.h"
#include "scheduler/service/internal.h"
#include "scheduler/service/result_made.h"
#include "scheduler/service/result_place.h"
#include "scheduler/service/validate.h"

#include <stdio.h>
#include <string.h>

enum {
    PIECE = 64,         /* ends held at once, the last one that was told among them */
    LOOK_MS = 1000,     /* after which the queue is asked again, events or none */
    PROGRESS_MS = 2000, /* after which the counts are told */
    PAUSE_MS = 10,      /* between two looks, where the first found few */
};
#define PROGRESS_BYTES ((size_t)1 << 20)

struct result_stream {
    result_entry entry;
    pseg_rpc_call *call;
    op op;              /* the request under way */
    result_made made;   /* being told */
    result_trail trail; /* ends that were told */
    bool is_rewound;    /* the next message says that some are told again */
    bool is_asking, is_sending, is_waiting /* to look again */;
    bool is_stale;                 /* there may be more than the piece has */
    bool has_told_all;             /* the counts at the end are under way */
    int64_t progress_us, asked_us; /* when they were told, and the queue was asked, last */
    pseg_rpc_timer look, stall;
};

static void step(result_stream *s);

result_entry *result_entry_of(result_stream *s)
{
    return &s->entry;
}

static void more_made(void *stream)
{
    step(stream);
}

void results_woken(pseg_rpc_call *c, void *stream)
{
    if (!pseg_rpc_is_over(c))
        step(stream);
}

static result_table *table_of(const result_stream *s)
{
    return &service_of(s->call)->results;
}

/* ---- telling ---- */

static void stalled(pseg_rpc_timer *t, void *ud)
{
    result_stream *s = ud;
    const pseg_service *service = service_of(s->call);

    (void)t;
    PSEG_WARN(service->opt.log, "service",
              "the client stands still: it has read no result for %lld ms batch=%s peer=%s",
              (long long)service->opt.stall_ms, s->entry.batch, pseg_rpc_peer_address(s->call));
    pseg_rpc_abort(s->call);
}

static void send(result_stream *s, Pseg__V1__StreamBatchResultsResponse *out)
{
    char token[RESULT_TOKEN_BYTES];

    result_trail_write(token, &s->trail);
    out->resume_token = token;
    out->rewound = s->is_rewound;
    s->is_rewound = false;
    s->is_sending = true;
    pseg_rpc_timer_set(pseg_rpc_loop_of(s->call), &s->stall, service_of(s->call)->opt.stall_ms,
                       stalled, s);
    pseg_rpc_send(s->call, &out->base);
}

void results_writable(pseg_rpc_call *c)
{
    result_stream *s = state_of(c)->results;

    s->is_sending = false;
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &s->stall);
    step(s);
}

static void tell_progress(result_stream *s)
{
    Pseg__V1__StreamBatchResultsResponse out = PSEG__V1__STREAM_BATCH_RESULTS_RESPONSE__INIT;
    pseg_arena *a = pseg_arena_new(PROGRESS_BYTES);
    pseg_err e = PSEG_ERR_INIT;

    out.progress = a ? batch_view(a, &s->made.piece->batches[0], &e) : NULL;
    out.what_case = PSEG__V1__STREAM_BATCH_RESULTS_RESPONSE__WHAT_PROGRESS;
    s->progress_us = pseg_clock_mono_us();
    if (out.progress)
        send(s, &out);
    else
        fail_no_memory(s->call);
    pseg_arena_free(a);
}

static void tell_result(result_stream *s, Pseg__V1__BatchResult *result)
{
    Pseg__V1__StreamBatchResultsResponse out = PSEG__V1__STREAM_BATCH_RESULTS_RESPONSE__INIT;

    out.what_case = PSEG__V1__STREAM_BATCH_RESULTS_RESPONSE__WHAT_RESULT;
    out.result = result;
    result_trail_step(&s->trail, &s->made.piece->items[s->made.at]);
    send(s, &out);
    result_made_told(&s->made);
}

/* ---- reading ---- */

static void look_again(pseg_rpc_timer *t, void *ud)
{
    result_stream *s = ud;

    (void)t;
    s->is_waiting = false;
    s->is_stale = true;
    step(s);
}

static void ask(result_stream *s);

/* Redis has lost the end of the list, and others stand there or will. */
static void rewind_trail(result_stream *s)
{
    int64_t from = s->trail.now.n;

    result_trail_go_back(&s->trail);
    s->is_rewound = true;
    s->has_told_all = false;
    PSEG_WARN(service_of(s->call)->opt.log, "service",
              "the ends of a batch are not those that a reader was told: it goes back from %lld to "
              "%lld batch=%s",
              (long long)from, (long long)s->trail.now.n, s->entry.batch);
    ask(s);
}

static void asked(pseg_rpc_call *c, pseg_queue_reply *r)
{
    result_stream *s = state_of(c)->results;

    s->is_asking = false;
    if (fail_if_error(c, r))
        return;
    if (!r->n_batches) {
        fail_batch_not_found(c, s->entry.batch);
        return;
    }
    if (!result_trail_holds(&s->trail, r->items, r->n_items)) {
        rewind_trail(s);
        return;
    }
    state_of(c)->kept = r;
    result_made_take(&s->made, r, s->trail.now.n > 0);
    s->is_stale = result_made_has_more(&s->made);
    step(s);
}

static void ask(result_stream *s)
{
    s->is_stale = false;
    s->asked_us = pseg_clock_mono_us();
    if (!op_begin(&s->op, s->call, asked))
        return;
    s->is_asking = true;
    pseg_queue_batch_ends(service_of(s->call)->queue, s->entry.tenant, s->entry.batch,
                          result_trail_first(&s->trail), PIECE, true,
                          s->made.format ? s->trail.now.n : PSEG_NO_MASKS, op_done, &s->op);
}

/* A thousand results a second need not be a thousand questions. */
static bool is_too_soon(const result_stream *s)
{
    return s->made.piece && s->made.piece->n_items < PIECE &&
           pseg_clock_mono_us() - s->asked_us < PAUSE_MS * 1000;
}

static bool is_complete(const result_stream *s)
{
    const pseg_queue_batch *b = s->made.piece ? &s->made.piece->batches[0] : NULL;

    return b && b->sealed && s->trail.now.n >= b->next_seq - 1;
}

static void rest(result_stream *s)
{
    if (!s->look.armed)
        pseg_rpc_timer_set(pseg_rpc_loop_of(s->call), &s->look, LOOK_MS, look_again, s);
    if (result_rests(table_of(s), s))
        return;
    pseg_rpc_ticket *ticket = pseg_rpc_hold(s->call);
    if (!ticket)
        fail_no_memory(s->call);
    else if (!result_rest(table_of(s), s, ticket))
        pseg_rpc_post(ticket, results_woken, s);
}

static void step(result_stream *s)
{
    if (pseg_rpc_is_over(s->call) || s->is_asking || s->is_waiting)
        return;
    result_made_ahead(&s->made);
    if (pseg_rpc_is_over(s->call) || s->is_sending)
        return;
    Pseg__V1__BatchResult *result = result_made_first(&s->made);
    bool is_due = s->made.piece && pseg_clock_mono_us() - s->progress_us >= PROGRESS_MS * 1000;
    if (is_complete(s) && s->has_told_all) {
        pseg_rpc_finish(s->call);
    } else if (is_due || is_complete(s)) {
        s->has_told_all = is_complete(s);
        tell_progress(s);
    } else if (result) {
        tell_result(s, result);
    } else if (s->made.n > 0 || s->made.is_busy) {
        return; /* it is under way */
    } else if (result_made_has_more(&s->made)) {
        ask(s); /* the piece was cut here */
    } else if (is_too_soon(s)) {
        s->is_waiting = true;
        pseg_rpc_timer_set(pseg_rpc_loop_of(s->call), &s->look, PAUSE_MS, look_again, s);
    } else if (result_take_news(table_of(s), s) || s->is_stale) {
        ask(s);
    } else {
        rest(s);
    }
}

/* ---- the call ---- */

void stream_results(pseg_rpc_call *c, const void *msg)
{
    const Pseg__V1__StreamBatchResultsRequest *q = msg;
    call_state *state = state_of(c);
    result_stream *s = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *s);
    pseg_err e = PSEG_ERR_INIT;

    if (!state || !s) {
        fail_no_memory(c);
        return;
    }
    if (pseg_check_batch_name(&s->entry.batch, q->name, "name", &e) != PSEG_OK ||
        pseg_check_format(q->format, &e) != PSEG_OK ||
        result_trail_parse(&s->trail, q->resume_token, &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    s->call = c;
    s->made.call = c;
    s->made.format = q->format;
    s->made.changed = more_made;
    s->made.ud = s;
    s->entry.tenant = pseg_rpc_tenant(c);
    s->is_stale = true;
    s->progress_us = pseg_clock_mono_us();
    state->results = s;
    result_enter(table_of(s), s);
    step(s);
}

void results_drain(pseg_rpc_call *c)
{
    pseg_err e = PSEG_ERR_INIT;

    pseg_err_set(&e, PSEG_R_DRAINING, 0, PSEG_HERE,
                 "the server is stopping; go on from the last resume_token, another may answer");
    pseg_rpc_fail(c, &e);
}

void results_end(pseg_rpc_call *c)
{
    call_state *state = pseg_rpc_state(c);
    result_stream *s = state ? state->results : NULL;

    if (!s)
        return;
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &s->look);
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &s->stall);
    result_leave(table_of(s), s);
    result_made_end(&s->made);
}
