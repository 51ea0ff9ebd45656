#include "common/queue/queue_redis_call.h"

void queue_parse_backlog(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    enum { N_HEAD = 4 };
    bool is_right = from->type == REDIS_REPLY_ARRAY && from->elements >= N_HEAD &&
                    (from->elements - N_HEAD) % 2 == 0;

    (void)c;
    for (size_t i = 0; is_right && i < from->elements; i++)
        is_right = from->element[i]->type == REDIS_REPLY_INTEGER;
    if (!is_right) {
        pseg_err_set(&r->err, PSEG_R_BROKER_PROTOCOL, 0, PSEG_HERE,
                     "redis' answer has an unexpected shape");
        return;
    }
    size_t n = (from->elements - N_HEAD) / 2;
    pseg_queue_due *due = pseg_arena_calloc(r->arena, n, sizeof *due);
    if (!due) {
        pseg_err_set(&r->err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE,
                     "no memory for an answer of the queue");
        return;
    }
    for (size_t i = 0; i < n; i++)
        due[i] = (pseg_queue_due){from->element[N_HEAD + 2 * i]->integer,
                                  from->element[N_HEAD + 2 * i + 1]->integer};
    r->backlog = (pseg_queue_backlog){.live = from->element[0]->integer,
                                      .workers = from->element[1]->integer,
                                      .cost_us = from->element[2]->integer,
                                      .now_unix_us = from->element[3]->integer,
                                      .due = due,
                                      .n_due = n};
}

void queue_redis_backlog(pseg_queue *q, const char *model, size_t limit, pseg_queue_done done,
                         void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_backlog", 0);
    call_add(&c, model);
    call_add_number(&c, (int64_t)limit);
    call_send(&c, q, false, queue_parse_backlog, 0, done, ud);
}

/* ---- what tenants use ---- */

void queue_parse_uses(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!queue_is_array(from, 0)) {
        queue_bad_shape(r);
        return;
    }
    r->uses = pseg_arena_calloc(r->arena, from->elements, sizeof *r->uses);
    if (from->elements && !r->uses) {
        queue_no_room(r);
        return;
    }
    for (size_t i = 0; i < from->elements; i++) {
        const redisReply *v = from->element[i];
        if (!queue_is_array(v, 4)) {
            queue_bad_shape(r);
            return;
        }
        r->uses[r->n_uses++] = (pseg_queue_use){queue_text_at(r, v, 0), queue_number_at(v, 1),
                                                queue_number_at(v, 2), queue_number_at(v, 3)};
    }
}
