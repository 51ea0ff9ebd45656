#include "common/queue/queue_parts.h"
#include "common/base/alloc.h"

bool parts_is_good(const pseg_queue_reply *r)
{
    return r->err.code == PSEG_OK;
}

void parts_out_of_memory(pseg_queue_reply *r)
{
    pseg_err_set(&r->err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE,
                 "no memory for an answer of the queue");
}

/* The error that the answer is, or NULL. */
static const pseg_err *error_of(const parts_asked *g)
{
    const pseg_err *first = NULL;
    size_t n = 0;

    for (size_t i = 0; i < g->n; i++) {
        if (parts_is_good(g->from[i]))
            continue;
        first = first ? first : &g->from[i]->err;
        n++;
    }
    return n == g->n || (n && !g->is_lenient) ? first : NULL;
}

static void finish(parts_asked *g)
{
    const pseg_err *err = error_of(g);
    pseg_queue_reply *r = queue_reply_new(err);

    if (r->arena && !err && g->merge)
        g->merge(r, g);
    for (size_t i = 0; i < g->n; i++) {
        if (r->arena)
            queue_reply_lend(r, g->from[i]);
        else
            pseg_queue_reply_free(g->from[i]);
    }
    g->done(g->ud, r);
    pseg_free(g->part_of);
    pseg_free(g);
}

void parts_answered(void *ud, pseg_queue_reply *r)
{
    const parts_slot *s = ud;
    parts_asked *g = s->of;

    g->from[s->part] = r;
    if (atomic_fetch_sub(&g->n_left, 1) == 1)
        finish(g);
}

parts_asked *parts_ask(const pseg_queue *q, parts_merge merge, bool is_lenient, size_t limit,
                       pseg_queue_done done, void *ud)
{
    parts_asked *g = pseg_calloc(1, sizeof *g);

    if (!g) {
        queue_answer_no_memory(done, ud);
        return NULL;
    }
    g->merge = merge;
    g->is_lenient = is_lenient;
    g->limit = limit;
    g->done = done;
    g->ud = ud;
    g->n = q->n_parts;
    atomic_init(&g->n_left, q->n_parts);
    for (size_t i = 0; i < g->n; i++)
        g->slots[i] = (parts_slot){g, i};
    return g;
}
