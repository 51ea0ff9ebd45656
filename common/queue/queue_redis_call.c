#include "common/queue/queue_redis_call.h"
#include "common/base/alloc.h"

#include <stdio.h>
#include <string.h>

bool call_room(call *c, size_t extra)
{
    c->cap = (int)extra + MAX_FIXED;
    c->is_heap = extra > 0;
    c->n = c->n_numbers = 0;
    c->argv = c->fixed_argv;
    c->len = c->fixed_len;
    c->numbers = c->fixed_numbers;
    if (c->is_heap) {
        c->argv = pseg_calloc((size_t)c->cap, sizeof *c->argv);
        c->len = pseg_calloc((size_t)c->cap, sizeof *c->len);
        c->numbers = pseg_calloc((size_t)c->cap, sizeof *c->numbers);
        if (!c->argv || !c->len || !c->numbers)
            return false;
    }
    return true;
}

void item_begin(call *c)
{
    call_room(c, 0);
}

bool call_begin(call *c, const pseg_queue *base, const char *function, size_t extra)
{
    const redis_queue *q = (const redis_queue *)base;

    if (!call_room(c, extra))
        return false;
    const char *head[] = {"FCALL", function, "1", q->prefix};
    for (int i = 0; i < 4; i++, c->n++) {
        c->argv[c->n] = head[i];
        c->len[c->n] = strlen(head[i]);
    }
    return true;
}

void call_add_bytes(call *c, pseg_bytes b)
{
    c->argv[c->n] = b.data ? (const char *)b.data : "";
    c->len[c->n++] = b.len;
}

void call_add(call *c, const char *s)
{
    call_add_bytes(c, (pseg_bytes){(const uint8_t *)s, strlen(s)});
}

void call_add_number(call *c, int64_t x)
{
    char *text = c->numbers[c->n_numbers++];

    snprintf(text, sizeof *c->numbers, "%lld", (long long)x);
    call_add(c, text);
}

static void call_free(call *c)
{
    if (!c->is_heap)
        return;
    pseg_free(c->argv);
    pseg_free(c->len);
    pseg_free(c->numbers);
}

void call_send(call *c, pseg_queue *base, bool is_write, reply_parser parse, size_t n_asked,
               pseg_queue_done done, void *ud)
{
    queue_send((redis_queue *)base, is_write, parse, n_asked, c->n, c->argv, c->len, done, ud);
    call_free(c);
}

void item_send(call *c, pseg_queue *base, const batch_kind *kind, reply_parser parse,
               pseg_queue_reply *reply, pseg_queue_done done, void *ud)
{
    queue_send_item((redis_queue *)base, kind, parse, reply, c->n, c->argv, c->len, done, ud);
    call_free(c);
}

void call_no_memory(call *c, pseg_queue_done done, void *ud)
{
    call_free(c);
    queue_answer_no_memory(done, ud);
}
