#include "common/queue/queue_mem_impl.h"
#include "common/base/alloc.h"

#include <stdio.h>
#include <string.h>

/* ---- for workers ---- */

void mem_worker_free(mem_worker *w)
{
    pseg_free((void *)(uintptr_t)w->w.id);
    pseg_free((void *)(uintptr_t)w->w.model);
    pseg_free((void *)(uintptr_t)w->w.digest);
    pseg_free((void *)(uintptr_t)w->w.device);
    pseg_free((void *)(uintptr_t)w->w.version);
    pseg_free((void *)(uintptr_t)w->w.log);
    pseg_free(w);
}

int64_t mem_worker_kept_us(const pseg_queue_options *o)
{
    return (3 * o->lease_ms > 30000 ? 3 * o->lease_ms : 30000) * 1000;
}

void mem_unregister(mem_store *s, const char *worker)
{
    for (mem_worker **p = &s->workers; *p; p = &(*p)->next)
        if (strcmp((*p)->w.id, worker) == 0) {
            mem_worker *w = *p;
            *p = w->next;
            mem_worker_free(w);
            return;
        }
}

void mem_register(mem_store *s, const pseg_queue_options *o, const pseg_queue_worker *from,
                  pseg_queue_reply *r)
{
    mem_worker *w = pseg_calloc(1, sizeof *w);
    mem_model *m = mem_model_of(s, from->model, true);

    mem_unregister(s, from->id);
    if (w)
        w->w = (pseg_queue_worker){
            pseg_strdup(from->id),      pseg_strdup(from->model),
            pseg_strdup(from->digest),  pseg_strdup(from->device),
            pseg_strdup(from->version), pseg_strdup(from->log ? from->log : "")};
    if (!w || !m || !w->w.id || !w->w.model || !w->w.digest || !w->w.device || !w->w.version ||
        !w->w.log) {
        if (w)
            mem_worker_free(w);
        mem_no_memory(r);
        return;
    }
    w->expire_us = mem_now_us(s) + mem_worker_kept_us(o);
    w->seen_us = mem_now_us(s);
    m->seen_us = mem_now_us(s);
    w->next = s->workers;
    s->workers = w;
}

static mem_job *first_in_line(mem_store *s, const char *model, const char *tenant)
{
    mem_job *first = NULL;

    for (mem_job *job = s->jobs; job; job = job->next)
        if (job->in_line && strcmp(job->j.model, model) == 0 &&
            strcmp(job->j.tenant, tenant) == 0 && (!first || job->place < first->place))
            first = job;
    return first;
}

bool mem_claim_one(mem_store *s, mem_claimer *c, mem_job *job, mem_share *x)
{
    pseg_queue_reply *r = c->r;

    if (job->j.deadline_unix_us <= mem_now_us(s)) {
        mem_finish(s, job, PSEG_JOB_EXPIRED);
        return true;
    }
    if (job->group > 0 && c->held >= (size_t)job->group) {
        c->again_ms = WITHHELD_MS;
        return false;
    }
    if (job->group > 0 && (size_t)job->group < c->most)
        c->most = (size_t)job->group;
    if (x->time > c->clock)
        c->clock = x->time;
    x->time += c->cost_us / (double)job->weight;
    job->in_line = false;
    job->charge_us = (int64_t)c->cost_us;
    job->fence++;
    job->lease_us = mem_now_us(s) + c->lease_us;
    job->j.attempts++;
    job->j.state = PSEG_JOB_RUNNING;
    job->j.started_unix_us = mem_now_us(s);
    job->j.worker = mem_text_in(job->arena, c->worker);
    mem_tell(s, job);
    c->held++;
    r->claims[r->n_claims++] = (pseg_queue_claim){.id = mem_text_in(r->arena, job->j.id),
                                                  .tenant = mem_text_in(r->arena, job->j.tenant),
                                                  .image = mem_text_in(r->arena, job->image->name),
                                                  .fence = job->fence,
                                                  .attempt = job->j.attempts,
                                                  .group = job->group,
                                                  .deadline_unix_us = job->j.deadline_unix_us,
                                                  .created_unix_us = job->j.created_unix_us,
                                                  .spec = mem_bytes_in(r->arena, job->j.spec)};
    mem_left_line(s, job->j.model, job->j.tenant);
    return true;
}

/* Whose turn it is, and how many wait. Ties go by name, as they lie when the claim begins: `order`
 * keeps that. */
static mem_share *next_share(size_t *which, size_t *n_waiting, mem_share **order,
                             const mem_view *views, size_t n)
{
    mem_share *first = NULL;

    *n_waiting = 0;
    for (size_t i = 0; i < n; i++) {
        if (!order[i]->waits || views[i].is_passed)
            continue;
        ++*n_waiting;
        if (!first || order[i]->time < first->time) {
            first = order[i];
            *which = i;
        }
    }
    return first;
}

static size_t shares_in_order(mem_store *s, const char *model, mem_share **order, size_t most)
{
    size_t n = 0;

    for (mem_share *x = s->shares; x; x = x->next) {
        if (!x->waits || strcmp(x->model, model) != 0)
            continue;
        size_t at = n < most ? n++ : n;
        for (; at > 0 &&
               (x->time < order[at - 1]->time ||
                (x->time == order[at - 1]->time && strcmp(x->tenant, order[at - 1]->tenant) < 0));
             at--)
            if (at < most)
                order[at] = order[at - 1];
        if (at < most)
            order[at] = x;
    }
    return n;
}

/* NULL: no memory. */
static mem_view *views_new(pseg_arena *a, size_t n, size_t max)
{
    mem_view *v = pseg_arena_calloc(a, n, sizeof *v);

    for (size_t i = 0; v && i < n; i++) {
        v[i].seen = pseg_arena_calloc(a, max + LOOK_AHEAD, sizeof *v[i].seen);
        if (!v[i].seen)
            return NULL;
    }
    return v;
}

/* One job after another, until the worker has all that it wants. */
static void claim_in_turn(mem_store *s, mem_claimer *c, mem_share **order, mem_view *views,
                          size_t n)
{
    bool goes_on = true;

    while (goes_on && c->held < c->most) {
        size_t which = 0, n_waiting;
        mem_share *x = next_share(&which, &n_waiting, order, views, n);
        if (!x)
            break;
        if (c->near_us > 0) {
            goes_on = mem_claim_near(s, c, &views[which], x, n_waiting == 1);
        } else {
            mem_job *job = first_in_line(s, c->model, x->tenant);
            goes_on = job && mem_claim_one(s, c, job, x);
        }
    }
    for (size_t i = 0; i < n; i++)
        mem_pass_over(s, c, &views[i]);
    c->r->again_ms = c->held < c->most ? c->again_ms : 0;
}

void mem_claim(mem_store *s, const pseg_queue_options *o, const char *worker, const char *model,
               size_t max, size_t held, int64_t near_ms, pseg_queue_reply *r)
{
    mem_model *m = mem_model_of(s, model, false);
    mem_share **order = pseg_arena_calloc(r->arena, max + 1, sizeof(mem_share *));
    mem_view *views = views_new(r->arena, max + 1, near_ms > 0 ? max : 0);
    mem_claimer c = {.worker = worker,
                     .model = model,
                     .cost_us = m && m->cost_us > 0 ? m->cost_us : FIRST_COST_US,
                     .held = held,
                     .most = held + max,
                     .lease_us = o->lease_ms * 1000,
                     .near_us = near_ms * 1000,
                     .looks = (int64_t)max + LOOKS,
                     .r = r};

    r->claims = pseg_arena_calloc(r->arena, max, sizeof *r->claims);
    if (!r->claims || !order || !views) {
        mem_no_memory(r);
        return;
    }
    size_t n = shares_in_order(s, model, order, max + 1);
    claim_in_turn(s, &c, order, views, n);
    if (m && n > 1 && c.clock > 0 && mem_waits_any(s, model, NULL))
        m->clock = c.clock;
}

/* The job if the worker holds it; else NULL, and *ended is the job if the worker itself ended this
 * very lease, so that a request whose answer was lost can be repeated. */
static mem_job *held_by(mem_store *s, const char *worker, pseg_queue_lease l, mem_job **ended)
{
    mem_job *job = mem_job_of(s, l.id);

    *ended = NULL;
    if (!job)
        return NULL;
    if (job->j.state == PSEG_JOB_RUNNING && strcmp(job->j.worker, worker) == 0 &&
        job->fence == l.fence)
        return job;
    if (job->by_worker && strcmp(job->by_worker, worker) == 0 && job->by_fence == l.fence)
        *ended = job;
    return NULL;
}

/* As held_by, for what ends a lease: signs the job, or sets r. */
static mem_job *end_lease(mem_store *s, const char *worker, pseg_queue_lease l, bool is_publish,
                          pseg_queue_reply *r)
{
    mem_job *ended, *job = held_by(s, worker, l, &ended);

    if (ended && (!is_publish || pseg_job_state_is_terminal(ended->j.state))) {
        r->state = ended->j.state;
    } else if (!job) {
        pseg_err_set(&r->err, PSEG_R_LEASE_LOST, 0, PSEG_HERE,
                     "worker %s no longer holds job %s; its result is dropped", worker, l.id);
    } else {
        job->by_worker = mem_text_in(job->arena, worker);
        job->by_fence = l.fence;
    }
    return job;
}

bool mem_is_over(mem_store *s, mem_job *job)
{
    bool is_late = job->j.deadline_unix_us <= mem_now_us(s);

    if (job->j.cancel_requested || is_late)
        mem_finish(s, job, job->j.cancel_requested ? PSEG_JOB_CANCELLED : PSEG_JOB_EXPIRED);
    return pseg_job_state_is_terminal(job->j.state);
}

void mem_renew(mem_store *s, const pseg_queue_options *o, const char *worker,
               const pseg_queue_lease *l, size_t n, pseg_queue_reply *r)
{
    int64_t now = mem_now_us(s);

    r->leases = pseg_arena_calloc(r->arena, n, sizeof *r->leases);
    if (!r->leases) {
        mem_no_memory(r);
        return;
    }
    r->n_leases = n;
    for (size_t i = 0; i < n; i++) {
        mem_job *ended, *job = held_by(s, worker, l[i], &ended), *any = mem_job_of(s, l[i].id);
        r->leases[i] = PSEG_LEASE_LOST;
        if (any && any->j.state == PSEG_JOB_EXPIRED)
            r->leases[i] = PSEG_LEASE_EXPIRED;
        if (job && job->j.deadline_unix_us <= now) {
            mem_finish(s, job, PSEG_JOB_EXPIRED);
            r->leases[i] = PSEG_LEASE_EXPIRED;
        } else if (job) {
            job->lease_us = now + o->lease_ms * 1000;
            r->leases[i] = job->j.cancel_requested ? PSEG_LEASE_CANCEL : PSEG_LEASE_OK;
        }
    }
}

/* The mean of the model, and what the job took more than it was charged. */
static void pay(mem_store *s, const mem_job *job, double cost_us)
{
    mem_model *m = mem_model_of(s, job->j.model, true);
    mem_share *x = mem_share_of(s, job->j.model, job->j.tenant, false);

    if (m)
        mem_learn_cost(m, cost_us, (double)job->n_masks);
    if (x && (x->waits || x->time > 0))
        x->time += (cost_us - (double)job->charge_us) / (double)job->weight;
}

void mem_publish(mem_store *s, const char *worker, pseg_queue_lease l, pseg_bytes result,
                 const pseg_bytes *masks, size_t n, int64_t cost_us, pseg_queue_reply *r)
{
    mem_job *job = end_lease(s, worker, l, true, r);

    if (!job)
        return;
    if (!mem_is_over(s, job)) {
        job->masks = pseg_arena_calloc(job->arena, n, sizeof *job->masks);
        for (size_t i = 0; job->masks && i < n; i++)
            job->masks[job->n_masks++] = mem_bytes_in(job->arena, masks[i]);
        if (cost_us > 0)
            pay(s, job, (double)cost_us);
        job->j.result = mem_bytes_in(job->arena, result);
        mem_say(job, PSEG_R_NONE, "");
        mem_finish(s, job, PSEG_JOB_SUCCEEDED);
    }
    r->state = job->j.state;
}

void mem_fail(mem_store *s, const pseg_queue_options *o, const char *worker, pseg_queue_lease l,
              const pseg_err *why, int64_t delay_ms, pseg_queue_reply *r)
{
    mem_job *job = end_lease(s, worker, l, false, r);
    char text[HISTORY_LENGTH + 512];

    if (!job)
        return;
    if (why->reason == PSEG_R_CANCELLED) {
        mem_finish(s, job, PSEG_JOB_CANCELLED);
    } else if (!mem_is_over(s, job)) {
        bool again = pseg_reason_is_retryable(why->reason) && job->j.attempts < o->max_attempts;
        snprintf(text, sizeof text, "%s", why->msg);
        if (!again && *job->history)
            snprintf(text, sizeof text, "%s (attempt %lld; before: %s)", why->msg,
                     (long long)job->j.attempts, job->history);
        if (pseg_reason_is_retryable(why->reason))
            mem_note(s, job, pseg_reason_name(why->reason), why->msg);
        mem_say(job, why->reason, text);
        if (again) {
            mem_requeue(s, job, delay_ms);
        } else {
            mem_finish(s, job, PSEG_JOB_FAILED);
            if (pseg_reason_is_retryable(why->reason))
                mem_quarantine(s, job);
        }
    } else if (job->j.state == PSEG_JOB_EXPIRED) {
        mem_say(job, why->reason, why->msg);
    }
    r->state = job->j.state;
}

void mem_release(mem_store *s, const char *worker, pseg_queue_lease l, pseg_queue_reply *r)
{
    mem_job *job = end_lease(s, worker, l, false, r);

    if (!job)
        return;
    if (!mem_is_over(s, job)) {
        job->j.attempts--;
        mem_requeue(s, job, 0);
    }
    r->state = job->j.state;
}
