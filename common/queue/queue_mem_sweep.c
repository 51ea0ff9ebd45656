#include "common/queue/queue_mem_impl.h"
#include "common/base/alloc.h"

#include <stdio.h>
#include <string.h>

#define MODEL_KEPT_US (86400 * (int64_t)1000000)

/* ---- sweep ---- */

static mem_worker *worker_of(mem_store *s, const char *id)
{
    mem_worker *w = s->workers;

    while (w && strcmp(w->w.id, id) != 0)
        w = w->next;
    return w;
}

/* Seen far ahead: before the clock was set back. */
static bool is_alive(const mem_store *s, const pseg_queue_options *o, const mem_worker *w)
{
    int64_t ago = mem_now_us(s) - w->seen_us, half = o->lease_ms * 500;

    return -half < ago && ago < half;
}

/* When the clock has been set back, what was to be over within longest_us seems to be far away: it
 * is put that far. */
static void set_back(int64_t *at, int64_t now, int64_t longest_us)
{
    if (*at > now + longest_us)
        *at = now + longest_us;
}

/* What becomes of a job whose worker went silent while it held n; see lua/sweep.lua. */
static void lease_ends(mem_store *s, const pseg_queue_options *o, mem_job *job, int64_t n)
{
    const mem_worker *w = worker_of(s, job->j.worker);
    char why[256], text[HISTORY_LENGTH + 512];

    if (mem_is_over(s, job))
        return;
    snprintf(why, sizeof why, "worker %s went away during attempt %lld", job->j.worker,
             (long long)job->j.attempts);
    if (w && is_alive(s, o, w)) {
        job->j.attempts--;
        mem_requeue(s, job, 0);
        return;
    }
    if (n > 1 && job->group != 1) {
        int64_t group = (n + 1) / 2;
        if (job->group > 0 && job->group - 1 < group)
            group = job->group > 2 ? job->group - 1 : 1;
        snprintf(text, sizeof text, "%s, with %lld others", why, (long long)n - 1);
        job->group = group;
        job->j.attempts--;
        mem_say(job, PSEG_R_LEASE_LOST, text);
        mem_requeue(s, job, 0);
        return;
    }
    snprintf(text, sizeof text, "%s, the last of %lld%s%s%s", why, (long long)o->max_attempts,
             *job->history ? " (before: " : "", job->history, *job->history ? ")" : "");
    mem_note(s, job, "LEASE_LOST", why);
    if (job->j.attempts < o->max_attempts) {
        mem_say(job, PSEG_R_LEASE_LOST, why);
        mem_requeue(s, job, 0);
        return;
    }
    mem_say(job, PSEG_R_ATTEMPTS_EXHAUSTED, text);
    mem_finish(s, job, PSEG_JOB_FAILED);
    mem_quarantine(s, job);
}

/* Leases that have ended, and with them those that a dead worker has not renewed for half a lease.
 */
static void sweep_leases(mem_store *s, const pseg_queue_options *o)
{
    int64_t now = mem_now_us(s);

    for (mem_job *stale = s->jobs; stale; stale = stale->next) {
        if (stale->j.state != PSEG_JOB_RUNNING || stale->lease_us > now)
            continue;
        char worker[128];
        int64_t n = 0, soon = now + o->lease_ms * 500;
        snprintf(worker, sizeof worker, "%s", stale->j.worker);
        const mem_worker *w = worker_of(s, worker);
        if (w && is_alive(s, o, w))
            soon = now; /* it lives, and does not know of these */
        for (const mem_job *job = s->jobs; job; job = job->next)
            n += job->j.state == PSEG_JOB_RUNNING && job->lease_us <= soon &&
                 strcmp(job->j.worker, worker) == 0;
        for (mem_job *job = s->jobs; job; job = job->next)
            if (job->j.state == PSEG_JOB_RUNNING && job->lease_us <= soon &&
                strcmp(job->j.worker, worker) == 0)
                lease_ends(s, o, job, n);
    }
}

/* ---- quarantine ---- */

static mem_case **case_at(mem_store *s, const char *id)
{
    mem_case **at = &s->cases;

    while (*at && strcmp((*at)->c.id, id) != 0)
        at = &(*at)->next;
    return at;
}

static void case_drop(mem_case **at)
{
    mem_case *x = *at;

    *at = x->next;
    x->image->uses--;
    pseg_arena_free(x->arena);
    pseg_free(x);
}

static void reply_case(pseg_queue_reply *r, const mem_case *x)
{
    pseg_arena *a = r->arena;

    r->cases[r->n_cases] = x->c;
    pseg_queue_case *c = &r->cases[r->n_cases++];
    c->id = mem_text_in(a, c->id);
    c->tenant = mem_text_in(a, c->tenant);
    c->model = mem_text_in(a, c->model);
    c->message = mem_text_in(a, c->message);
    c->request_id = mem_text_in(a, c->request_id);
    c->evidence = mem_text_in(a, c->evidence);
}

void mem_list_cases(mem_store *s, const char *after_id, size_t limit, pseg_queue_reply *r)
{
    r->cases = pseg_arena_calloc(r->arena, limit, sizeof *r->cases);
    if (!r->cases) {
        mem_no_memory(r);
        return;
    }
    for (const mem_case *x = s->cases; x && r->n_cases < limit; x = x->next)
        if (!*after_id || strcmp(x->c.id, after_id) < 0)
            reply_case(r, x);
}

void mem_get_case(mem_store *s, const char *id, pseg_queue_reply *r)
{
    const mem_case *x = *case_at(s, id);

    r->cases = pseg_arena_calloc(r->arena, 1, sizeof *r->cases);
    if (!r->cases)
        mem_no_memory(r);
    else if (x)
        reply_case(r, x);
}

void mem_drop_case(mem_store *s, const char *id, pseg_queue_reply *r)
{
    mem_get_case(s, id, r);
    if (r->n_cases)
        case_drop(case_at(s, id));
}

void mem_requeue_case(mem_store *s, const pseg_queue_options *o, const char *id, const char *new_id,
                      pseg_queue_reply *r)
{
    const mem_case *x = *case_at(s, id);

    if (!x) {
        for (const mem_job *job = s->jobs; job; job = job->next)
            if (strcmp(job->requeue_of, id) == 0) {
                mem_reply_job(r, job);
                return;
            }
        return;
    }
    const char *sha = strchr(x->image->name, ':');
    pseg_queue_submit_args a = {.tenant = x->c.tenant,
                                .id = new_id,
                                .request_id = "",
                                .fingerprint = "",
                                .model = x->c.model,
                                .model_is_default = true,
                                .image_sha256 = sha ? sha + 1 : "",
                                .spec = x->spec,
                                .ttl_ms = x->ttl_ms};
    mem_submit(s, o, &a, r);
    if (r->err.code == PSEG_OK) {
        memcpy(mem_job_of(s, new_id)->requeue_of, x->c.id, PSEG_JOB_ID_LEN);
        case_drop(case_at(s, id));
    }
}

void mem_sweep(mem_store *s, const pseg_queue_options *o)
{
    int64_t now = mem_now_us(s);

    for (mem_job *job = s->jobs; job; job = job->next) {
        set_back(&job->lease_us, now, o->lease_ms * 1000);
        set_back(&job->due_us, now, DELAY_MAX_MS * 1000);
    }
    for (mem_worker *w = s->workers; w; w = w->next)
        set_back(&w->expire_us, now, mem_worker_kept_us(o));
    sweep_leases(s, o);
    mem_sweep_batches(s);
    for (mem_job **p = &s->jobs; *p;) {
        mem_job *job = *p;
        if (job->due_us && job->due_us <= now)
            mem_enqueue(s, job);
        if (!pseg_job_state_is_terminal(job->j.state) && job->j.deadline_unix_us <= now)
            mem_finish(s, job, PSEG_JOB_EXPIRED);
        if (pseg_job_state_is_terminal(job->j.state) && job->j.expire_unix_us <= now) {
            *p = job->next;
            mem_job_free(job);
        } else {
            p = &job->next;
        }
    }
    for (mem_case **at = &s->cases; *at;)
        if ((*at)->expire_us <= now)
            case_drop(at);
        else
            at = &(*at)->next;
    mem_purge_images(s);
    for (mem_worker **p = &s->workers; *p;) {
        mem_worker *w = *p;
        if (w->expire_us >= now) {
            p = &w->next;
            continue;
        }
        *p = w->next;
        mem_worker_free(w);
    }
    for (mem_model *m = s->models; m; m = m->next)
        if (m->seen_us && m->seen_us < now - MODEL_KEPT_US)
            m->seen_us = 0;
}

void mem_free(mem_store *s)
{
    mem_trim_events(s, 0);
    while (s->cases)
        case_drop(&s->cases);
    mem_free_batches(s);
    mem_free_features(s);
    mem_free_holders(s);
    for (mem_share *x = s->shares, *next; x; x = next) {
        next = x->next;
        pseg_free(x->model);
        pseg_free(x->tenant);
        pseg_free(x);
    }
    for (mem_rate *x = s->rates, *next; x; x = next) {
        next = x->next;
        pseg_free(x->tenant);
        pseg_free(x);
    }
    for (mem_job *job = s->jobs, *next; job; job = next) {
        next = job->next;
        mem_job_free(job);
    }
    for (mem_image *i = s->images, *next; i; i = next) {
        next = i->next;
        mem_image_free(s, i);
    }
    for (mem_worker *w = s->workers, *next; w; w = next) {
        next = w->next;
        mem_worker_free(w);
    }
    for (mem_model *m = s->models, *next; m; m = next) {
        next = m->next;
        pseg_free(m->name);
        pseg_free(m);
    }
}
