/* A claim from a queue in parts: one part after another, those that have told of jobs first, until
 * the worker has what it asks for. */
#include "common/queue/queue_parts.h"
#include "common/base/alloc.h"

#include <string.h>

typedef struct claiming {
    pseg_queue *q;
    char *worker, *model;
    size_t max, held;
    int64_t near_ms;
    size_t order[PSEG_QUEUE_MAX_PARTS], n_sure, at;
    size_t n_wanted;     /* of the part that is asked */
    bool has_answered;   /* one of them, without an error */
    pseg_queue_reply *r; /* borrows from their answers */
    pseg_queue_done done;
    void *ud;
} claiming;

static void claiming_free(claiming *c)
{
    if (c) {
        pseg_free(c->worker);
        pseg_free(c->model);
    }
    pseg_free(c);
}

static void finish(claiming *c)
{
    for (size_t i = c->at; i < c->n_sure; i++)
        queue_parts_may_wait(c->q, c->order[i]); /* they were not asked after all */
    c->done(c->ud, c->r);
    claiming_free(c);
}

/* Takes the answer of a part; true: no other need be asked. */
static bool take(claiming *c, pseg_queue_reply *from)
{
    size_t part = c->order[c->at++];
    bool has_group = false;

    if (from->err.code == PSEG_OK) {
        c->has_answered = true;
        c->r->err = from->err;
    } else if (!c->has_answered) {
        c->r->err = from->err;
    }
    for (size_t i = 0; i < from->n_claims && c->r->n_claims < c->max; i++) {
        pseg_queue_claim *claim = &c->r->claims[c->r->n_claims++];
        *claim = from->claims[i];
        claim->fence = queue_fence_in_part(claim->fence, part);
        has_group = has_group || claim->group;
    }
    if (from->again_ms && (!c->r->again_ms || from->again_ms < c->r->again_ms))
        c->r->again_ms = from->again_ms;
    if (from->n_claims == c->n_wanted || from->again_ms)
        queue_parts_may_wait(c->q, part); /* perhaps it has more */
    queue_reply_lend(c->r, from);
    return has_group || c->r->n_claims == c->max || c->at == c->q->n_parts ||
           (c->r->n_claims && c->at >= c->n_sure);
}

static void ask(claiming *c);

static void answered(void *ud, pseg_queue_reply *from)
{
    claiming *c = ud;
    pseg_queue *q = c->q;

    if (take(c, from) || !queue_parts_enter(q)) {
        finish(c);
    } else {
        ask(c);
        queue_parts_leave(q);
    }
}

static void ask(claiming *c)
{
    c->n_wanted = c->max - c->r->n_claims;
    pseg_queue_claim_jobs(c->q->parts[c->order[c->at]], c->worker, c->model, c->n_wanted,
                          c->held + c->r->n_claims, c->near_ms, answered, c);
}

void queue_parts_claim(pseg_queue *q, const char *worker, const char *model, size_t max,
                       size_t held, int64_t near_ms, pseg_queue_done done, void *ud)
{
    claiming *c = pseg_calloc(1, sizeof *c);

    if (c) {
        *c = (claiming){
            .q = q, .max = max, .held = held, .near_ms = near_ms, .done = done, .ud = ud};
        c->worker = pseg_strdup(worker);
        c->model = pseg_strdup(model);
        c->r = queue_reply_new(NULL);
        if (c->r->arena)
            c->r->claims = pseg_arena_calloc(c->r->arena, max, sizeof *c->r->claims);
    }
    if (!c || !c->worker || !c->model || !c->r->claims) {
        if (c)
            pseg_queue_reply_free(c->r);
        claiming_free(c);
        queue_answer_no_memory(done, ud);
        return;
    }
    c->n_sure = queue_parts_in_turn(q, c->order);
    ask(c);
}
