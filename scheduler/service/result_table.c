#include "scheduler/service/results.h"

#include <string.h>

void result_table_init(result_table *t)
{
    pthread_mutex_init(&t->mu, NULL);
}

void result_table_deinit(result_table *t)
{
    pthread_mutex_destroy(&t->mu);
}

static void wake_where(result_table *t, const char *tenant, const char *batch)
{
    pthread_mutex_lock(&t->mu);
    for (result_stream *s = t->first; s; s = result_entry_of(s)->next) {
        result_entry *e = result_entry_of(s);
        if (tenant && (strcmp(e->batch, batch) != 0 || strcmp(e->tenant, tenant) != 0))
            continue;
        e->has_news = true;
        if (e->ticket)
            pseg_rpc_post(e->ticket, results_woken, s);
        e->ticket = NULL;
    }
    pthread_mutex_unlock(&t->mu);
}

void results_on_event(result_table *t, const pseg_queue_event *e)
{
    if (!e)
        wake_where(t, NULL, NULL);
    else if (*e->batch && pseg_job_state_is_terminal(e->state))
        wake_where(t, e->tenant, e->batch);
}

void results_wake(result_table *t, const char *tenant, const char *batch)
{
    wake_where(t, tenant, batch);
}

void result_enter(result_table *t, result_stream *s)
{
    result_entry *e = result_entry_of(s);

    pthread_mutex_lock(&t->mu);
    e->next = t->first;
    e->link = &t->first;
    if (t->first)
        result_entry_of(t->first)->link = &e->next;
    t->first = s;
    pthread_mutex_unlock(&t->mu);
}

void result_leave(result_table *t, result_stream *s)
{
    result_entry *e = result_entry_of(s);
    pseg_rpc_ticket *ticket = NULL;

    pthread_mutex_lock(&t->mu);
    if (e->link) {
        *e->link = e->next;
        if (e->next)
            result_entry_of(e->next)->link = e->link;
        e->link = NULL;
        ticket = e->ticket;
        e->ticket = NULL;
    }
    pthread_mutex_unlock(&t->mu);
    if (ticket)
        pseg_rpc_post(ticket, results_woken, s);
}

bool result_rest(result_table *t, result_stream *s, pseg_rpc_ticket *ticket)
{
    result_entry *e = result_entry_of(s);

    pthread_mutex_lock(&t->mu);
    bool rests = !e->has_news && !e->ticket;
    if (rests)
        e->ticket = ticket;
    pthread_mutex_unlock(&t->mu);
    return rests;
}

bool result_take_news(result_table *t, result_stream *s)
{
    result_entry *e = result_entry_of(s);

    pthread_mutex_lock(&t->mu);
    bool has_news = e->has_news;
    e->has_news = false;
    pthread_mutex_unlock(&t->mu);
    return has_news;
}

bool result_rests(result_table *t, result_stream *s)
{
    pthread_mutex_lock(&t->mu);
    bool rests = result_entry_of(s)->ticket != NULL;
    pthread_mutex_unlock(&t->mu);
    return rests;
}
