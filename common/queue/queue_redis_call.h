/* A call of a function of the library, as it is built. Private to this folder. */
#ifndef PSEG_QUEUE_QUEUE_REDIS_CALL_H
#define PSEG_QUEUE_QUEUE_REDIS_CALL_H

#include "common/queue/queue_redis.h"

enum { MAX_FIXED = 26 };

/* FCALL name 1 prefix args...; numbers are written into text. */
typedef struct call {
    const char **argv;
    size_t *len;
    int n, cap;
    char (*numbers)[24];
    int n_numbers;
    const char *fixed_argv[MAX_FIXED];
    size_t fixed_len[MAX_FIXED];
    char fixed_numbers[MAX_FIXED][24];
    char terms[320]; /* of a submit: two names of 63 bytes and nine numbers */
    bool is_heap;
} call;

/* Room for `extra` arguments besides a few fixed ones; false when memory is short. */
bool call_room(call *c, size_t extra);
void item_begin(call *c);
bool call_begin(call *c, const pseg_queue *base, const char *function, size_t extra);
void call_add_bytes(call *c, pseg_bytes b);
void call_add(call *c, const char *s);
void call_add_number(call *c, int64_t x);
void call_send(call *c, pseg_queue *base, bool is_write, reply_parser parse, size_t n_asked,
               pseg_queue_done done, void *ud);
/* reply: see queue_send_item. */
void item_send(call *c, pseg_queue *base, const batch_kind *kind, reply_parser parse,
               pseg_queue_reply *reply, pseg_queue_done done, void *ud);
void call_no_memory(call *c, pseg_queue_done done, void *ud);

#endif
