#include "scheduler/service/result_made.h"
#include "common/base/alloc.h"
#include "common/rpc/status.h"

#include <stdatomic.h>

enum { BUSY_MS = 100 };
/* Clients take messages of 4 MiB unless told otherwise; the job comes beside them. */
#define MAX_INLINE_MASK_BYTES ((size_t)3 << 20)
#define RESULT_BYTES          ((size_t)64 << 20)
/* Of masks that wait to be told, above which no more are made: a reader may stand still. */
#define AHEAD_BYTES ((size_t)256 << 10)

static made_one *one_of(const result_made *m, size_t item)
{
    return (made_one *)(uintptr_t)&m->ring[item % RESULTS_AHEAD];
}

static void one_free(result_made *m, made_one *o)
{
    if (o->task)
        encode_free(service_of(m->call), o->task);
    pseg_arena_free(o->arena); /* the task lies in it */
    *o = (made_one){0};
}

static void piece_free(result_made *m)
{
    pseg_queue_reply_free(m->piece);
    m->piece = NULL;
}

/* The message for an item, in a new arena, but for its masks. False: memory is short. */
static bool make_message(result_made *m, made_one *o, size_t item)
{
    const pseg_queue_item *it = &m->piece->items[item];
    const pseg_job *j = &m->piece->jobs[item];
    pseg_err e = PSEG_ERR_INIT;
    pseg_arena *a = pseg_arena_new(RESULT_BYTES);
    Pseg__V1__BatchResult *out = a ? pseg_arena_calloc(a, 1, sizeof *out) : NULL;

    *o = (made_one){.arena = a, .out = out, .state = MADE_READY};
    if (!out)
        return false;
    pseg__v1__batch_result__init(out);
    out->seq = it->seq;
    out->custom_id = (char *)(uintptr_t)it->custom_id;
    out->state = (Pseg__V1__State)it->state;
    if (it->refusal != PSEG_R_NONE)
        pseg_err_set(&e, it->refusal, 0, PSEG_HERE, "%s", it->message);
    else if (j->id)
        out->job = job_view(a, j, &e);
    if (out->job)
        out->job->durability = (Pseg__V1__Durability)(service_of(m->call)->opt.durability + 1);
    else if (e.code != PSEG_OK)
        out->error = pseg_rpc_status_of(a, &e, -1);
    return out->job || e.code == PSEG_OK || out->error;
}

/* ---- masks ---- */

static void try_again(pseg_rpc_timer *t, void *ud)
{
    result_made *m = ud;

    (void)t;
    m->is_busy = false;
    m->changed(m->ud);
}

/* There are none for this result, or not now. */
static void do_without(result_made *m, made_one *o, const pseg_err *why)
{
    if (why->reason == PSEG_R_OUT_OF_MEMORY) {
        fail_no_memory(m->call);
    } else if (why->reason == PSEG_R_SERVER_BUSY) {
        o->state = MADE_BLOCKED;
        m->is_busy = true;
        pseg_rpc_timer_set(pseg_rpc_loop_of(m->call), &m->retry, BUSY_MS, try_again, m);
    } else {
        o->out->masks_omitted = true;
    }
}

static void take_masks(result_made *m, made_one *o)
{
    encode_task *t = o->task;

    o->out->masks_omitted = t->is_cut;
    o->out->masks = pseg_arena_calloc(o->arena, t->n, sizeof *o->out->masks);
    if (!o->out->masks) {
        fail_no_memory(m->call);
        return;
    }
    for (size_t i = 0; i < t->n && !t->is_cut; i++) {
        o->out->masks[o->out->n_masks++] = &t->masks[i];
        o->bytes += t->masks[i].data.len;
    }
    m->ready_bytes += o->bytes;
}

static void encoded(pseg_rpc_call *c, encode_task *t)
{
    result_made *m = t->ud;
    made_one *o = m->ring;

    while (o->task != t)
        o++;
    o->state = MADE_READY;
    m->n_encoding--;
    if (m->is_ended) {
        one_free(m, o);
        if (m->n_encoding == 0)
            piece_free(m);
        return;
    }
    if (t->err.code != PSEG_OK) {
        encode_free(service_of(c), t);
        o->task = NULL;
        do_without(m, o, &t->err);
    } else {
        take_masks(m, o);
    }
    m->changed(m->ud);
}

static void begin_masks(result_made *m, made_one *o, size_t item)
{
    const pseg_queue_item *it = &m->piece->items[item];
    uint32_t *indexes = pseg_arena_calloc(o->arena, it->n_masks + 1, sizeof *indexes);
    pseg_err e = PSEG_ERR_INIT;

    o->state = MADE_READY;
    if (!indexes || !it->n_masks) {
        pseg_err_set(&e, indexes ? PSEG_R_RESULT_EXPIRED : PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE,
                     "the masks are gone");
        do_without(m, o, &e);
        return;
    }
    for (uint32_t i = 0; i < it->n_masks; i++)
        indexes[i] = i;
    const encode_order order = {.job = &m->piece->jobs[item],
                                .blobs = it->masks,
                                .indexes = indexes,
                                .n = it->n_masks,
                                .max_bytes = MAX_INLINE_MASK_BYTES,
                                .format = m->format,
                                .then = encoded,
                                .ud = m};
    if (encode_begin(&o->task, m->call, o->arena, &order, &e) == PSEG_OK) {
        o->state = MADE_ENCODING;
        m->n_encoding++;
    } else {
        do_without(m, o, &e);
    }
}

static bool wants_masks(const result_made *m, size_t item)
{
    return m->format && m->piece->items[item].state == PSEG_JOB_SUCCEEDED &&
           m->piece->jobs[item].id;
}

/* ---- in their order ---- */

static bool may_make(const result_made *m)
{
    size_t item = m->at + m->n;

    return m->piece && !m->is_busy && !pseg_rpc_is_over(m->call) && m->n < RESULTS_AHEAD &&
           item < m->piece->n_items && (m->n == 0 || m->ready_bytes <= AHEAD_BYTES) &&
           (!wants_masks(m, item) || m->piece->items[item].has_masks);
}

void result_made_ahead(result_made *m)
{
    for (size_t i = m->at; i < m->at + m->n && !m->is_busy; i++)
        if (one_of(m, i)->state == MADE_BLOCKED)
            begin_masks(m, one_of(m, i), i);
    while (may_make(m)) {
        size_t item = m->at + m->n++;
        made_one *o = one_of(m, item);
        if (!make_message(m, o, item))
            fail_no_memory(m->call);
        else if (wants_masks(m, item))
            begin_masks(m, o, item);
    }
}

Pseg__V1__BatchResult *result_made_first(const result_made *m)
{
    const made_one *o = one_of(m, m->at);

    return m->n > 0 && o->state == MADE_READY ? o->out : NULL;
}

void result_made_told(result_made *m)
{
    made_one *o = one_of(m, m->at);

    m->at++;
    m->n--;
    m->ready_bytes -= o->bytes;
    one_free(m, o);
}

void result_made_take(result_made *m, pseg_queue_reply *piece, size_t at)
{
    piece_free(m);
    m->piece = piece;
    m->at = at;
}

void result_made_end(result_made *m)
{
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(m->call), &m->retry);
    m->is_ended = true;
    for (size_t i = 0; i < RESULTS_AHEAD; i++)
        if (m->ring[i].state == MADE_ENCODING)
            atomic_store(&m->ring[i].task->is_unwanted, true);
        else
            one_free(m, &m->ring[i]);
    if (m->n_encoding == 0)
        piece_free(m);
}
