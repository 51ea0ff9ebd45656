/* Which job of a line a worker gets that keeps images: lua/near.lua in C. */
#include "common/queue/queue_mem_impl.h"
#include "common/base/alloc.h"

#include <string.h>

struct mem_holder {
    mem_holder *next;
    char *model, *image, *worker;
    int64_t expire_us;
};

static void holder_free(mem_holder *h)
{
    pseg_free(h->model);
    pseg_free(h->image);
    pseg_free(h->worker);
    pseg_free(h);
}

void mem_free_holders(mem_store *s)
{
    while (s->holders) {
        mem_holder *h = s->holders;
        s->holders = h->next;
        holder_free(h);
    }
}

/* NULL: nobody is known to have it. */
static const char *holder_of(mem_store *s, const char *model, const char *image)
{
    for (mem_holder *h = s->holders; h; h = h->next)
        if (strcmp(h->model, model) == 0 && strcmp(h->image, image) == 0)
            return h->expire_us > mem_now_us(s) ? h->worker : NULL;
    return NULL;
}

/* Without memory it is not marked: the next worker does not wait for this one. */
static void mark(mem_store *s, const mem_claimer *c, const char *image)
{
    int64_t now = mem_now_us(s);
    mem_holder *h = pseg_calloc(1, sizeof *h);

    for (mem_holder **at = &s->holders; *at;) {
        mem_holder *old = *at;
        bool is_it = strcmp(old->model, c->model) == 0 && strcmp(old->image, image) == 0;
        if (!is_it && old->expire_us > now) {
            at = &old->next;
            continue;
        }
        *at = old->next;
        holder_free(old);
    }
    if (!h)
        return;
    *h = (mem_holder){.next = s->holders,
                      .model = pseg_strdup(c->model),
                      .image = pseg_strdup(image),
                      .worker = pseg_strdup(c->worker),
                      .expire_us = now + HOLDER_KEPT_MS * 1000};
    if (h->model && h->image && h->worker)
        s->holders = h;
    else
        holder_free(h);
}

static bool is_heard(const mem_store *s, const mem_claimer *c, const char *worker)
{
    for (const mem_worker *w = s->workers; w; w = w->next)
        if (strcmp(w->w.id, worker) == 0)
            return w->seen_us + c->lease_us > mem_now_us(s);
    return false;
}

static bool is_before(const mem_job *a, const mem_job *b)
{
    return a->place < b->place || (a->place == b->place && strcmp(a->j.id, b->j.id) < 0);
}

/* The first `most` of a line into v->seen, which has room for them. */
static void first_of_line(mem_store *s, mem_view *v, const char *model, const char *tenant,
                          size_t most)
{
    v->n = 0;
    for (mem_job *job = s->jobs; job; job = job->next) {
        if (!job->in_line || strcmp(job->j.model, model) != 0 || strcmp(job->j.tenant, tenant) != 0)
            continue;
        size_t at = v->n < most ? v->n++ : most;
        for (; at > 0 && is_before(job, v->seen[at - 1].job); at--)
            if (at < most)
                v->seen[at] = v->seen[at - 1];
        if (at < most)
            v->seen[at] = (mem_seen){.job = job};
    }
}

static void look(mem_store *s, mem_claimer *c, mem_view *v, const char *tenant, size_t most)
{
    int64_t now = mem_now_us(s);

    first_of_line(s, v, c->model, tenant, most);
    for (size_t i = 0; i < v->n; i++) {
        mem_seen *e = &v->seen[i];
        const char *holder = holder_of(s, c->model, e->job->image->name);
        bool is_mine = holder && strcmp(holder, c->worker) == 0;
        e->is_first = is_mine || (e->job->left_us && e->job->left_us + c->near_us <= now);
        e->is_open = e->is_first || !holder || !is_heard(s, c, holder);
    }
    v->n_left = v->n;
    v->n_passed = 0;
    c->looks -= (int64_t)v->n;
}

static mem_seen *next_of(mem_view *v)
{
    mem_seen *open = NULL;

    for (size_t i = 0; i < v->n; i++) {
        mem_seen *e = &v->seen[i];
        if (!e->is_taken && e->is_first)
            return e;
        if (!e->is_taken && e->is_open && !open)
            open = e;
    }
    return open;
}

bool mem_claim_near(mem_store *s, mem_claimer *c, mem_view *v, mem_share *x, bool alone)
{
    if (v->n_left == 0) {
        if (c->looks <= 0) {
            v->is_passed = true;
            c->again_ms = 1;
            return true;
        }
        look(s, c, v, x->tenant, alone ? c->most - c->held + LOOK_AHEAD : LOOK_SHARED);
    }
    mem_seen *e = next_of(v);
    if (!e) {
        v->is_passed = true;
        return true;
    }
    if (!mem_claim_one(s, c, e->job, x))
        return false;
    e->is_taken = true;
    v->n_left--;
    if ((size_t)(e - v->seen) > v->n_passed)
        v->n_passed = (size_t)(e - v->seen);
    if (e->job->j.state == PSEG_JOB_RUNNING)
        mark(s, c, e->job->image->name);
    return true;
}

void mem_pass_over(mem_store *s, mem_claimer *c, mem_view *v)
{
    int64_t now = mem_now_us(s);

    for (size_t i = 0; i < v->n && (v->is_passed || i < v->n_passed); i++) {
        mem_job *job = v->seen[i].job;
        if (v->seen[i].is_taken)
            continue;
        if (!job->left_us)
            job->left_us = now;
        int64_t wait = (job->left_us + c->near_us - now + 999) / 1000;
        wait = wait < 1 ? 1 : wait;
        if (!c->again_ms || wait < c->again_ms)
            c->again_ms = wait;
    }
}
