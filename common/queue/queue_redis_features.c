/* The cache of features: what each request says to Redis, and what the answer means. */
#include "common/queue/queue_redis_call.h"
#include "common/queue/queue_redis_parse.h"

static void parse_stored(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    (void)c;
    if (from->type != REDIS_REPLY_INTEGER)
        queue_bad_shape(r);
    else
        r->created = from->integer == 1;
}

void redis_get_features(pseg_queue *q, const char *key, int64_t ttl_ms, pseg_queue_done done,
                        void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_get_features", 0);
    call_add_number(&c, ttl_ms);
    call_add(&c, key);
    call_send(&c, q, false, queue_parse_image, 1, done, ud);
}

void redis_put_features(pseg_queue *q, const char *key, pseg_bytes data, int64_t budget,
                        int64_t ttl_ms, pseg_queue_done done, void *ud)
{
    call c;

    call_begin(&c, q, "pseg1_put_features", 0);
    call_add_number(&c, budget);
    call_add_number(&c, ttl_ms);
    call_add(&c, key);
    call_add_bytes(&c, data);
    call_send(&c, q, true, parse_stored, 1, done, ud);
}
