#include "common/queue/queue_redis_call.h"
#include "common/queue/queue_redis_parse.h"

void queue_parse_estimate(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (!queue_is_array(from, 8)) {
        queue_bad_shape(r);
        return;
    }
    r->estimate = (pseg_queue_estimate){.is_known = queue_number_at(from, 0) != 0,
                                        .now_unix_us = queue_number_at(from, 1),
                                        .workers = queue_number_at(from, 2),
                                        .busy = queue_number_at(from, 3),
                                        .ahead = queue_number_at(from, 4),
                                        .mean_us = queue_number_at(from, 5),
                                        .cost_us = queue_number_at(from, 6),
                                        .waiting = queue_number_at(from, 7)};
}

void queue_redis_estimate(pseg_queue *q, const pseg_queue_estimate_args *a, pseg_queue_done done,
                          void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_estimate", 0);
    call_add(&c, a->tenant);
    call_add(&c, a->model);
    call_add(&c, a->model_is_default ? "1" : "0");
    call_add(&c, a->request_id);
    call_add_number(&c, a->phrases);
    call_add_number(&c, a->priority);
    call_add_number(&c, a->weight);
    call_send(&c, q, false, queue_parse_estimate, 1, done, ud);
}
