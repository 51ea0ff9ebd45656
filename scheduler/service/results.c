/* StreamBatchResults: the ends of a batch's items in their order, and their masks if they are
 * wanted.
 *
 * Everything is driven by step(): while a message, a request or masks are under way it does
 * nothing, and whoever ends what was under way calls it again. */
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/rpc/status.h"
#include "scheduler/service/internal.h"
#include "scheduler/service/result_place.h"
#include "scheduler/service/validate.h"

#include <stdio.h>
#include <string.h>

enum {
    PIECE = 64,         /* ends held at once, the last one that was told among them */
    LOOK_MS = 1000,     /* after which the queue is asked again, events or none */
    PROGRESS_MS = 2000, /* after which the counts are told */
    PAUSE_MS = 10,      /* between two looks, where the first found few */
    BUSY_MS = 100,      /* until masks are tried again that nobody had time to encode */
};
/* Clients take messages of 4 MiB unless told otherwise; the job comes beside them. */
#define MAX_INLINE_MASK_BYTES ((size_t)3 << 20)
#define RESULT_BYTES          ((size_t)64 << 20)

struct result_stream {
    result_entry entry;
    pseg_rpc_call *call;
    op op; /* the request under way */
    const Pseg__V1__MaskFormat *format;
    pseg_queue_reply *piece; /* being told, from items[at] on; NULL: none */
    size_t at;
    result_trail trail; /* ends that were told */
    bool is_rewound;    /* the next message says that some are told again */
    bool is_asking, is_sending, is_encoding, is_waiting /* to try again */;
    bool is_stale;                 /* there may be more than the piece has */
    bool has_told_all;             /* the counts at the end are under way */
    int64_t progress_us, asked_us; /* when they were told, and the queue was asked, last */
    Pseg__V1__BatchResult *out;    /* that masks are made for, in `arena` */
    pseg_arena *arena;
    pseg_rpc_timer look, stall;
};

static void step(result_stream *s);

result_entry *result_entry_of(result_stream *s)
{
    return &s->entry;
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
    pseg_arena *a = pseg_arena_new(RESULT_BYTES);
    pseg_err e = PSEG_ERR_INIT;

    out.progress = a ? batch_view(a, &s->piece->batches[0], &e) : NULL;
    out.what_case = PSEG__V1__STREAM_BATCH_RESULTS_RESPONSE__WHAT_PROGRESS;
    s->progress_us = pseg_clock_mono_us();
    if (out.progress)
        send(s, &out);
    else
        fail_no_memory(s->call);
    pseg_arena_free(a);
}

static void tell_result(result_stream *s)
{
    Pseg__V1__StreamBatchResultsResponse out = PSEG__V1__STREAM_BATCH_RESULTS_RESPONSE__INIT;

    out.what_case = PSEG__V1__STREAM_BATCH_RESULTS_RESPONSE__WHAT_RESULT;
    out.result = s->out;
    result_trail_step(&s->trail, &s->piece->items[s->at++]);
    send(s, &out);
    pseg_arena_free(s->arena);
    s->arena = NULL;
    s->out = NULL;
}

/* The message for items[at], in a new arena, but for its masks. False: memory is short. */
static bool make_result(result_stream *s)
{
    const pseg_queue_item *it = &s->piece->items[s->at];
    const pseg_job *j = &s->piece->jobs[s->at];
    pseg_err e = PSEG_ERR_INIT;

    pseg_arena_free(s->arena);
    s->arena = pseg_arena_new(RESULT_BYTES);
    s->out = s->arena ? pseg_arena_calloc(s->arena, 1, sizeof *s->out) : NULL;
    if (!s->out)
        return false;
    pseg__v1__batch_result__init(s->out);
    s->out->seq = it->seq;
    s->out->custom_id = (char *)(uintptr_t)it->custom_id;
    s->out->state = (Pseg__V1__State)it->state;
    if (it->refusal != PSEG_R_NONE)
        pseg_err_set(&e, it->refusal, 0, PSEG_HERE, "%s", it->message);
    else if (j->id)
        s->out->job = job_view(s->arena, j, &e);
    if (s->out->job)
        s->out->job->durability = (Pseg__V1__Durability)(service_of(s->call)->opt.durability + 1);
    else if (e.code != PSEG_OK)
        s->out->error = pseg_rpc_status_of(s->arena, &e, -1);
    return s->out->job || e.code == PSEG_OK || s->out->error;
}

/* ---- masks ---- */

static void look_again(pseg_rpc_timer *t, void *ud)
{
    result_stream *s = ud;

    (void)t;
    s->is_waiting = false;
    s->is_stale = true;
    step(s);
}

/* There are none for this result, or not now. */
static void do_without(result_stream *s, const pseg_err *why)
{
    if (why->reason == PSEG_R_OUT_OF_MEMORY) {
        fail_no_memory(s->call);
    } else if (why->reason == PSEG_R_SERVER_BUSY) {
        s->is_waiting = true;
        pseg_rpc_timer_set(pseg_rpc_loop_of(s->call), &s->look, BUSY_MS, look_again, s);
    } else {
        s->out->masks_omitted = true;
        tell_result(s);
    }
}

static void masks_made(pseg_rpc_call *c, encode_task *t)
{
    result_stream *s = state_of(c)->results;

    s->is_encoding = false;
    if (t->err.code != PSEG_OK) {
        do_without(s, &t->err);
        return;
    }
    s->out->masks_omitted = t->is_cut;
    s->out->masks = pseg_arena_calloc(t->arena, t->n, sizeof *s->out->masks);
    if (!s->out->masks) {
        fail_no_memory(c);
        return;
    }
    for (size_t i = 0; i < t->n && !t->is_cut; i++)
        s->out->masks[s->out->n_masks++] = &t->masks[i];
    tell_result(s);
}

static void masks_fetched(pseg_rpc_call *c, pseg_queue_reply *r)
{
    result_stream *s = state_of(c)->results;
    uint32_t *indexes = pseg_arena_calloc(s->arena, r->n_blobs, sizeof *indexes);
    pseg_err e = PSEG_ERR_INIT;

    s->is_asking = false;
    if (fail_if_error(c, r))
        return;
    if (r->n_jobs == 0 || !r->jobs[0].id || !indexes) {
        pseg_err_set(&e, indexes ? PSEG_R_RESULT_EXPIRED : PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE,
                     "the masks are gone");
        do_without(s, &e);
        return;
    }
    for (uint32_t i = 0; i < r->n_blobs; i++)
        indexes[i] = i;
    const encode_order order = {.reply = r,
                                .indexes = indexes,
                                .n = r->n_blobs,
                                .max_bytes = MAX_INLINE_MASK_BYTES,
                                .format = s->format,
                                .takes_arena = true};
    if (encode_begin(c, s->arena, &order, masks_made, &e) != PSEG_OK) {
        do_without(s, &e);
        return;
    }
    s->arena = NULL; /* the task's, with what lies in it */
    s->is_encoding = true;
}

static void ask_for_masks(result_stream *s)
{
    uint32_t indexes[PSEG_MAX_PROMPTS];
    size_t n =
        s->out->job->n_prompts < PSEG_MAX_PROMPTS ? s->out->job->n_prompts : PSEG_MAX_PROMPTS;

    for (uint32_t i = 0; i < n; i++)
        indexes[i] = i;
    if (!op_begin(&s->op, s->call, masks_fetched))
        return;
    s->is_asking = true;
    pseg_queue_masks(service_of(s->call)->queue, s->entry.tenant, s->piece->items[s->at].job_id,
                     indexes, n, op_done, &s->op);
}

/* ---- reading ---- */

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
    pseg_queue_reply_free(s->piece);
    s->piece = state_of(c)->kept = r;
    s->at = s->trail.now.n > 0;
    s->is_stale = r->n_items > s->at;
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
                          result_trail_first(&s->trail), PIECE, true, op_done, &s->op);
}

/* A thousand results a second need not be a thousand questions. */
static bool is_too_soon(const result_stream *s)
{
    return s->piece && s->piece->n_items < PIECE &&
           pseg_clock_mono_us() - s->asked_us < PAUSE_MS * 1000;
}

static bool is_complete(const result_stream *s)
{
    const pseg_queue_batch *b = s->piece ? &s->piece->batches[0] : NULL;

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

static void tell_next(result_stream *s)
{
    if (!make_result(s))
        fail_no_memory(s->call);
    else if (s->format && s->out->state == PSEG__V1__STATE__STATE_SUCCEEDED && s->out->job)
        ask_for_masks(s);
    else
        tell_result(s);
}

static void step(result_stream *s)
{
    if (pseg_rpc_is_over(s->call) || s->is_asking || s->is_sending || s->is_encoding ||
        s->is_waiting)
        return;
    bool is_due = s->piece && pseg_clock_mono_us() - s->progress_us >= PROGRESS_MS * 1000;
    if (is_complete(s) && s->has_told_all) {
        pseg_rpc_finish(s->call);
    } else if (is_due || is_complete(s)) {
        s->has_told_all = is_complete(s);
        tell_progress(s);
    } else if (s->piece && s->at < s->piece->n_items) {
        tell_next(s);
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
    s->format = q->format;
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

    encode_end(c);
    if (!s)
        return;
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &s->look);
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &s->stall);
    result_leave(table_of(s), s);
    pseg_queue_reply_free(s->piece);
    s->piece = NULL;
    pseg_arena_free(s->arena);
    s->arena = NULL;
}
