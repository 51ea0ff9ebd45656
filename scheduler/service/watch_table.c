#include "scheduler/service/watch.h"

#include <string.h>

void watch_table_init(watch_table *t)
{
    pthread_mutex_init(&t->mu, NULL);
}

void watch_table_deinit(watch_table *t)
{
    pthread_mutex_destroy(&t->mu);
}

static watch_name **slot_of(watch_table *t, const char *id)
{
    unsigned h = 2166136261u;

    for (; *id; id++)
        h = (h ^ (unsigned char)*id) * 16777619u;
    return &t->slots[h % N_WATCH_SLOTS];
}

/* ---- the queue's thread, with the mutex held ---- */

static void wake(watch *w)
{
    watch_entry *e = watch_entry_of(w);

    if (e->ticket)
        pseg_rpc_post(e->ticket, watch_woken, w);
    e->ticket = NULL;
}

static void tell(watch *w, const pseg_queue_event *event)
{
    watch_entry *e = watch_entry_of(w);

    if (!e->has_news) {
        e->from = event->place;
        e->from.n--;
        e->has_news = true;
    }
    e->to = event->place;
    wake(w);
}

static void tell_all(watch_table *t, const pseg_queue_event *event)
{
    for (watch_name *n = *slot_of(t, event->id); n; n = n->next)
        if (strcmp(n->id, event->id) == 0 &&
            strcmp(watch_entry_of(n->of)->tenant, event->tenant) == 0)
            tell(n->of, event);
    for (watch *w = t->first; w; w = watch_entry_of(w)->next) {
        const watch_entry *e = watch_entry_of(w);
        if (e->n_names == 0 && strcmp(e->tenant, event->tenant) == 0 &&
            (!*e->batch || strcmp(e->batch, event->batch) == 0))
            tell(w, event);
    }
}

void watch_on_event(watch_table *t, const pseg_queue_event *event)
{
    pthread_mutex_lock(&t->mu);
    if (event) {
        tell_all(t, event);
        t->seen[event->part] = event->place;
    } else {
        /* Perhaps the stream is another one, too. */
        memset(t->seen, 0, sizeof t->seen);
        for (watch *w = t->first; w; w = watch_entry_of(w)->next) {
            watch_entry_of(w)->has_missed = true;
            wake(w);
        }
    }
    pthread_mutex_unlock(&t->mu);
}

/* ---- the loop of a watcher ---- */

void watch_enter(watch_table *t, watch *w)
{
    watch_entry *e = watch_entry_of(w);

    pthread_mutex_lock(&t->mu);
    e->next = t->first;
    e->link = &t->first;
    if (e->next)
        watch_entry_of(e->next)->link = &e->next;
    t->first = w;
    for (size_t i = 0; i < e->n_names; i++) {
        watch_name **slot = slot_of(t, e->names[i].id);
        e->names[i].next = *slot;
        *slot = &e->names[i];
    }
    pthread_mutex_unlock(&t->mu);
}

pseg_rpc_ticket *watch_leave(watch_table *t, watch *w)
{
    watch_entry *e = watch_entry_of(w);

    if (!e->link)
        return NULL;
    pthread_mutex_lock(&t->mu);
    *e->link = e->next;
    if (e->next)
        watch_entry_of(e->next)->link = e->link;
    e->link = NULL;
    for (size_t i = 0; i < e->n_names; i++)
        for (watch_name **p = slot_of(t, e->names[i].id); *p; p = &(*p)->next)
            if (*p == &e->names[i]) {
                *p = e->names[i].next;
                break;
            }
    pseg_rpc_ticket *ticket = e->ticket;
    e->ticket = NULL;
    pthread_mutex_unlock(&t->mu);
    return ticket;
}

void watch_begin_anew(watch_table *t)
{
    pthread_mutex_lock(&t->mu);
    memset(t->seen, 0, sizeof t->seen);
    pthread_mutex_unlock(&t->mu);
}

watch_news watch_look(watch_table *t, watch *w)
{
    watch_entry *e = watch_entry_of(w);

    pthread_mutex_lock(&t->mu);
    watch_news news = {e->has_missed, e->has_news, e->from, e->to, t->seen[e->part]};
    e->has_missed = e->has_news = false;
    pthread_mutex_unlock(&t->mu);
    return news;
}

bool watch_rest(watch_table *t, watch *w, pseg_rpc_ticket *ticket)
{
    watch_entry *e = watch_entry_of(w);

    pthread_mutex_lock(&t->mu);
    bool rests = !e->has_missed && !e->has_news;
    if (rests)
        e->ticket = ticket;
    pthread_mutex_unlock(&t->mu);
    return rests;
}
