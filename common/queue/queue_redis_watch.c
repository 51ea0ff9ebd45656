/* The second connection: it blocks on the streams that are watched. First it asks where each stream
 * ends and only then tells that events may have been missed: whatever comes later is read from
 * there, so that nothing falls between the two. ("$" would leave a gap at every read.) */
#include "common/queue/queue_redis.h"

#include <stdio.h>
#include <string.h>

bool watch_is_wanted(const redis_queue *q)
{
    return q->base.opt.on_event || q->base.opt.on_ready;
}

/* One XREAD over the streams that are watched; its answer asks for the next. */
static void ask(loop *lp)
{
    const pseg_queue_options *o = &lp->q->base.opt;
    char events[80], ready[256], block[16];
    const char *argv[10] = {"XREAD", "COUNT", "1000", "BLOCK", block, "STREAMS"};
    int n = 6, streams = (o->on_event != NULL) + (o->on_ready != NULL);

    /* Well within the time-out, which watches over this connection, too. */
    int64_t block_ms = o->timeout_ms / 2 < 1000 ? o->timeout_ms / 2 + 1 : 1000;
    snprintf(block, sizeof block, "%lld", (long long)block_ms);
    snprintf(events, sizeof events, "%sevents", lp->q->prefix);
    snprintf(ready, sizeof ready, "%swake:%s", lp->q->prefix, o->watch_model);
    if (o->on_event) {
        argv[n] = events;
        argv[n++ + streams] = lp->last_event;
    }
    if (o->on_ready) {
        argv[n] = ready;
        argv[n++ + streams] = lp->last_ready;
    }
    line_say(lp, &lp->events, watch_on_read, n + streams, argv);
}

static bool is_entry(const redisReply *e)
{
    return e->type == REDIS_REPLY_ARRAY && e->elements == 2 &&
           e->element[0]->type == REDIS_REPLY_STRING;
}

static void take_stream(loop *lp, const redisReply *stream)
{
    const pseg_queue_options *o = &lp->q->base.opt;
    size_t n = strlen(lp->q->prefix);

    if (!is_entry(stream) || stream->element[0]->len < n ||
        stream->element[1]->type != REDIS_REPLY_ARRAY)
        return;
    bool is_event = strcmp(stream->element[0]->str + n, "events") == 0;
    const redisReply *entries = stream->element[1];
    for (size_t i = 0; i < entries->elements; i++) {
        const redisReply *e = entries->element[i];
        if (!is_entry(e))
            continue;
        snprintf(is_event ? lp->last_event : lp->last_ready, sizeof lp->last_event, "%s",
                 e->element[0]->str);
        if (is_event && o->on_event)
            queue_tell_events(o, e->element[0]->str, e->element[1]);
    }
    if (!is_event && o->on_ready)
        o->on_ready(o->ud);
}

void watch_on_read(loop *lp, line *l, const redisReply *from)
{
    if (from->type == REDIS_REPLY_ERROR) {
        if (!line_follow(lp, l, from))
            line_fail(lp, l, from->str);
        return;
    }
    for (size_t i = 0; from->type == REDIS_REPLY_ARRAY && i < from->elements; i++)
        take_stream(lp, from->element[i]);
    ask(lp);
}

/* The end of one stream, in the order in which they were asked for. */
static void on_position(loop *lp, line *l, const redisReply *from)
{
    const pseg_queue_options *o = &lp->q->base.opt;
    bool is_event = o->on_event && !*lp->last_event;

    if (from->type == REDIS_REPLY_ERROR) {
        if (!line_follow(lp, l, from))
            line_fail(lp, l, from->str);
        return;
    }
    const char *last = "0-0";
    if (from->type == REDIS_REPLY_ARRAY && from->elements == 1 && is_entry(from->element[0]))
        last = from->element[0]->element[0]->str;
    snprintf(is_event ? lp->last_event : lp->last_ready, sizeof lp->last_event, "%s", last);
    if (--lp->n_positions)
        return;
    line_is_ready(lp, l);
    ask(lp);
    if (o->on_event)
        o->on_event(o->ud, NULL);
    if (o->on_ready)
        o->on_ready(o->ud);
}

static void ask_position(loop *lp, const char *stream)
{
    char key[256];

    snprintf(key, sizeof key, "%s%s", lp->q->prefix, stream);
    lp->n_positions++;
    line_say(lp, &lp->events, on_position, 6,
             (const char *[]){"XREVRANGE", key, "+", "-", "COUNT", "1"});
}

void watch_greet(loop *lp)
{
    const pseg_queue_options *o = &lp->q->base.opt;
    char ready[192];

    lp->n_positions = 0;
    lp->last_event[0] = lp->last_ready[0] = '\0';
    if (o->on_event)
        ask_position(lp, "events");
    snprintf(ready, sizeof ready, "wake:%s", o->watch_model);
    if (o->on_ready && lp->events.redis)
        ask_position(lp, ready);
}
