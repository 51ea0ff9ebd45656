/* Events: as they are pushed to on_event, and as they are read. */
#include "common/queue/queue_redis_call.h"
#include "common/queue/queue_redis_parse.h"

#include <string.h>

/* One event, or of items of a pack one for each. -> how many */
static uint32_t tell(const pseg_queue_options *o, pseg_queue_event e)
{
    char id[PSEG_JOB_ID_LEN + 1];
    uint32_t before = e.place.n;
    queue_token t;

    if (!e.id || !queue_token_parse(&t, e.id)) {
        e.place.n++;
        if (e.id)
            o->on_event(o->ud, &e);
        return 1;
    }
    e.id = id;
    for (unsigned i = 0; i < t.n; i++) {
        queue_token_id(id, &t, i);
        e.place.n++;
        o->on_event(o->ud, &e);
    }
    return e.place.n - before;
}

/* An entry of the stream tells of one job or of many. Tenant and batch hold for all that follow;
 * `state` ends what is told of a job. */
void queue_tell_events(const pseg_queue_options *o, const char *entry, const redisReply *fields)
{
    pseg_queue_event e = {.tenant = "", .batch = ""};

    if (!pseg_queue_place_parse(&e.place, entry))
        return;
    e.place.n = 0;
    e.at_unix_us = (int64_t)(e.place.ms % (INT64_MAX / 1000)) * 1000;
    for (size_t i = 0; fields->type == REDIS_REPLY_ARRAY && i + 1 < fields->elements; i += 2) {
        const char *name = fields->element[i]->str, *value = fields->element[i + 1]->str;
        if (!name || !value)
            continue;
        if (strcmp(name, "tenant") == 0) {
            e.tenant = value;
        } else if (strcmp(name, "batch") == 0) {
            e.batch = value;
        } else if (strcmp(name, "id") == 0) {
            e.id = value;
            e.worker = "";
        } else if (strcmp(name, "worker") == 0) {
            e.worker = value;
        } else if (strcmp(name, "state") == 0) {
            e.state = pseg_job_state_parse(value);
            e.place.n += tell(o, e);
            e.id = NULL;
        }
    }
}

void redis_events(pseg_queue *q, const char *tenant, const char *batch, pseg_queue_place from,
                  size_t limit, pseg_queue_done done, void *ud)
{
    char text[PSEG_QUEUE_PLACE_BYTES];
    call c;

    pseg_queue_place_format(text, from);
    call_begin(&c, q, "pseg1_events", 0);
    call_add(&c, tenant);
    call_add(&c, batch);
    call_add(&c, text);
    call_add_number(&c, (int64_t)limit);
    call_send(&c, q, false, queue_parse_events, limit, done, ud);
}

void redis_states(pseg_queue *q, const char *tenant, const char *const *ids, size_t n,
                  pseg_queue_done done, void *ud)
{
    call c;

    if (!call_begin(&c, q, "pseg1_states", n)) {
        call_no_memory(&c, done, ud);
        return;
    }
    call_add(&c, tenant);
    for (size_t i = 0; i < n; i++)
        call_add(&c, ids[i]);
    call_send(&c, q, false, queue_parse_states, n, done, ud);
}

static bool room(pseg_queue_reply *r, size_t n)
{
    r->events = pseg_arena_calloc(r->arena, n, sizeof *r->events);
    if (!r->events)
        queue_no_room(r);
    return r->events != NULL;
}

void queue_parse_events(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    enum { HEAD = 3, PARTS = 5 };

    (void)c;
    if (!queue_is_array(from, HEAD) ||
        !pseg_queue_place_parse(&r->place, queue_text_at(r, from, 0))) {
        queue_bad_shape(r);
        return;
    }
    r->has_gap = queue_number_at(from, 1) != 0;
    r->has_more = queue_number_at(from, 2) != 0;
    size_t n = (from->elements - HEAD) / PARTS;
    if (!room(r, n))
        return;
    for (size_t i = 0; i < n; i++) {
        size_t at = HEAD + PARTS * i;
        pseg_queue_event *e = &r->events[i];
        if (!pseg_queue_place_parse(&e->place, queue_text_at(r, from, at))) {
            queue_bad_shape(r);
            return;
        }
        e->at_unix_us = (int64_t)(e->place.ms % (INT64_MAX / 1000)) * 1000;
        e->tenant = "";
        e->id = queue_text_at(r, from, at + 1);
        e->state = pseg_job_state_parse(queue_text_at(r, from, at + 2));
        e->worker = queue_text_at(r, from, at + 3);
        e->batch = queue_text_at(r, from, at + 4);
        r->n_events++;
    }
}

void queue_parse_states(pseg_queue_reply *r, const redisReply *from, const command *c)
{
    if (!queue_is_array(from, 1 + c->n_asked) ||
        !pseg_queue_place_parse(&r->place, queue_text_at(r, from, 0))) {
        queue_bad_shape(r);
        return;
    }
    if (!room(r, c->n_asked))
        return;
    r->n_events = c->n_asked;
    for (size_t i = 0; i < c->n_asked; i++) {
        const redisReply *v = from->element[1 + i];
        pseg_queue_event *e = &r->events[i];
        e->place = r->place;
        e->tenant = e->worker = e->batch = "";
        if (!queue_is_array(v, 5))
            continue;
        e->id = queue_text_at(r, v, 0);
        e->state = pseg_job_state_parse(queue_text_at(r, v, 1));
        e->worker = queue_text_at(r, v, 2);
        e->batch = queue_text_at(r, v, 3);
        e->at_unix_us = queue_number_at(v, 4);
    }
}
