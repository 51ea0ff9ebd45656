/* Reading the elements of an answer, for the parsers. Private to this folder. What does not have
 * the shape expected reads as empty or 0; `queue_bad_shape` says so. */
#ifndef PSEG_QUEUE_QUEUE_REDIS_PARSE_H
#define PSEG_QUEUE_QUEUE_REDIS_PARSE_H

#include "common/queue/queue_redis.h"

void queue_bad_shape(pseg_queue_reply *r); /* sets r->err */
void queue_no_room(pseg_queue_reply *r);   /* the same: out of memory */
bool queue_is_array(const redisReply *r, size_t at_least);
/* Of element i of an array. Copies lie in r's arena. */
pseg_bytes queue_bytes_at(pseg_queue_reply *r, const redisReply *from, size_t i);
const char *queue_text_at(pseg_queue_reply *r, const redisReply *from, size_t i);
int64_t queue_number_at(const redisReply *from, size_t i);

/* Items of a pack that follow one another, as lua/pack.lua tells of them: "PREFIXff+nn". */
typedef struct queue_token {
    char prefix[PSEG_JOB_ID_LEN - 2];
    unsigned from, n;
} queue_token;

/* False: it is none. */
bool queue_token_parse(queue_token *t, const char *text);
void queue_token_id(char out[PSEG_JOB_ID_LEN + 1], const queue_token *t, unsigned i);

#endif
