#include "worker/serve/internal.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <string.h>

#define TASK_ARENA_BYTES ((size_t)256 << 20)

pseg_task *pseg_task_new(pseg_worker *w, const pseg_queue_claim *c)
{
    pseg_task *t = pseg_calloc(1, sizeof *t);

    if (!t)
        return NULL;
    t->arena = pseg_arena_new(TASK_ARENA_BYTES);
    t->image = t->arena ? pseg_arena_strdup(t->arena, c->image) : NULL;
    uint8_t *spec = t->image ? pseg_arena_alloc(t->arena, c->spec.len + 1) : NULL;
    if (!spec) {
        pseg_arena_free(t->arena);
        pseg_free(t);
        return NULL;
    }
    if (c->spec.len > 0)
        memcpy(spec, c->spec.data, c->spec.len);
    t->spec = (pseg_bytes){spec, c->spec.len};
    t->created_unix_us = c->created_unix_us;
    t->claimed_mono_us = pseg_clock_mono_us();
    snprintf(t->id, sizeof t->id, "%s", c->id);
    t->fence = c->fence;
    t->attempt = c->attempt;
    t->group = (size_t)c->group;
    t->worker = w;
    t->work.arena = t->arena;
    t->is_coming = true;
    pthread_mutex_lock(&w->mu);
    t->turn = ++w->turn;
    t->next_held = w->held;
    w->held = t;
    w->n_held++;
    pthread_mutex_unlock(&w->mu);
    return t;
}

void pseg_task_features_key(const pseg_worker *w, const pseg_task *t,
                            char out[PSEG_ENGINE_MAX_KEY + 1])
{
    const char *content = strchr(t->image, ':'); /* TENANT:SHA256 */

    pseg_engine_features_key(w->opt.engine, out,
                             w->opt.share_features && content ? content + 1 : t->image);
}

static void push_one(pseg_task_line *l, pseg_task *t)
{
    pseg_task **at = l->tail && l->tail->turn < t->turn ? &l->tail->next : &l->head;
    while (*at && (*at)->turn < t->turn)
        at = &(*at)->next;
    t->next = *at;
    *at = t;
    if (!t->next)
        l->tail = t;
    l->n++;
}

void pseg_line_push(pseg_worker *w, pseg_task_line *l, pseg_task *first)
{
    if (!first)
        return;
    pthread_mutex_lock(&w->mu);
    while (first) {
        pseg_task *t = first;
        first = t->next;
        push_one(l, t);
        t->is_coming = l == &w->claimed;
    }
    pthread_cond_broadcast(&l->more);
    pthread_mutex_unlock(&w->mu);
}

pseg_task *pseg_line_first(pseg_task_line *l)
{
    pseg_task *t = l->head;

    if (!t)
        return NULL;
    l->head = t->next;
    if (!l->head)
        l->tail = NULL;
    l->n--;
    t->next = NULL;
    return t;
}

pseg_task *pseg_line_pop(pseg_worker *w, pseg_task_line *l, const bool *is_over)
{
    pthread_mutex_lock(&w->mu);
    while (!l->head && !*is_over)
        pthread_cond_wait(&l->more, &w->mu);
    pseg_task *t = pseg_line_first(l);
    bool is_empty = !l->head;
    pthread_mutex_unlock(&w->mu);
    if (is_empty)
        pseg_claim_if_due(w);
    return t;
}

void pseg_line_take(pseg_task_line *l, pseg_task *t)
{
    pseg_task *before = NULL;

    for (pseg_task *at = l->head; at != t; at = at->next)
        before = at;
    if (before)
        before->next = t->next;
    else
        l->head = t->next;
    if (l->tail == t)
        l->tail = before;
    l->n--;
    t->next = NULL;
}

void pseg_worker_tell(pseg_worker *w, bool *flag)
{
    pthread_mutex_lock(&w->mu);
    *flag = true;
    pthread_cond_broadcast(&w->over);
    pthread_cond_broadcast(&w->timer);
    pthread_cond_broadcast(&w->claimed.more);
    pthread_cond_broadcast(&w->ready.more);
    pthread_cond_broadcast(&w->done.more);
    pthread_mutex_unlock(&w->mu);
}

bool pseg_worker_is_stopping(pseg_worker *w)
{
    pthread_mutex_lock(&w->mu);
    bool s = w->stopping;
    pthread_mutex_unlock(&w->mu);
    return s;
}

void pseg_task_free(pseg_worker *w, pseg_task *t)
{
    pthread_mutex_lock(&w->mu);
    for (size_t i = 0; i < PSEG_N_WATCHES; i++)
        if (w->watches[i].at == t)
            w->watches[i].at = NULL;
    for (pseg_task **p = &w->held; *p; p = &(*p)->next_held)
        if (*p == t) {
            *p = t->next_held;
            break;
        }
    w->n_held--;
    if ((w->n_held == 0 && w->is_withheld) || t->group)
        w->may_claim = true; /* what was not given while others were held */
    w->n_freed++;
    if (t->is_coming)
        pthread_cond_broadcast(&w->ready.more); /* nobody need wait for it any more */
    if (!w->held)
        pthread_cond_broadcast(&w->over);
    pthread_mutex_unlock(&w->mu);
    pseg_claim_if_due(w);
    pseg_work_free(w->opt.engine, &t->work);
    pseg_arena_free(t->arena);
    pseg_free(t);
}
