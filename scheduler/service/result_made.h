/* Results of a batch made before their turn, so that the threads that encode masks have work while
 * the client reads. Private to this folder; all on the call's loop.
 *
 *     result_made_take(&m, piece, at);
 *     result_made_ahead(&m); ... result = result_made_first(&m) ... send ... result_made_told(&m);
 *     result_made_end(&m); */
#ifndef PSEG_SERVICE_RESULT_MADE_H
#define PSEG_SERVICE_RESULT_MADE_H

#include "scheduler/service/internal.h"

enum { RESULTS_AHEAD = 8 };

typedef enum made_state { MADE_BLOCKED, MADE_ENCODING, MADE_READY } made_state;

typedef struct made_one {
    made_state state; /* BLOCKED: to be encoded, when there is room */
    pseg_arena *arena;
    Pseg__V1__BatchResult *out;
    encode_task *task; /* NULL: it has no masks, or not yet */
    size_t bytes;      /* of its masks */
} made_one;

/* Zeroed, with the first four set, before first use; lies in the call's memory. */
typedef struct result_made {
    pseg_rpc_call *call;
    const Pseg__V1__MaskFormat *format; /* NULL: without masks */
    void (*changed)(void *ud);          /* there may be more to tell; not within a call of this */
    void *ud;
    pseg_queue_reply *piece; /* what they are made of; NULL: none */
    size_t at, n;            /* items[at] is the next to be told, and so many are made */
    size_t n_encoding, ready_bytes;
    made_one ring[RESULTS_AHEAD]; /* of items[i]: ring[i % RESULTS_AHEAD] */
    bool is_busy;                 /* nobody had time to encode: tried again after a while */
    bool is_ended;                /* the last task frees the piece */
    pseg_rpc_timer retry;
} result_made;

/* From items[at] of a new piece on; the last one must have been told as far as it is made. */
void result_made_take(result_made *m, pseg_queue_reply *piece, size_t at);
/* Makes what there is room for; may fail the call. */
void result_made_ahead(result_made *m);
/* The one whose turn it is; NULL: it is not ready. */
Pseg__V1__BatchResult *result_made_first(const result_made *m);
void result_made_told(result_made *m);
/* Are there items that are to be told? If there are and none is made, their masks must be asked
 * for: a piece brings only so many bytes of them. */
static inline bool result_made_has_more(const result_made *m)
{
    return m->piece && m->at < m->piece->n_items;
}
/* Part of the call's on_end. */
void result_made_end(result_made *m);

#endif
