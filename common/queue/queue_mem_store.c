/* pseg.lua in C, with lists in the place of keys. If you change one, change the other: the cases of
 * tests/support/queue_cases.c hold both to the same answers. */
#include "common/queue/queue_mem_store.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <string.h>

#define MAX_JOB_BYTES  ((size_t)1 << 30)
#define MODEL_KEPT_US  (86400 * (int64_t)1000000)
#define HISTORY_LENGTH 1024
#define HEAD_START_US  (60 * (int64_t)1000000)
#define FIRST_COST_US  10000
#define CASE_KEPT_US   (7 * 86400 * (int64_t)1000000)

struct mem_job {
    mem_job *next;
    pseg_arena *arena;
    pseg_job j; /* strings in the arena */
    const char *fingerprint;
    mem_image *image;
    int64_t ttl_ms, fence;
    int64_t place; /* in line, if in_line */
    bool in_line;
    int64_t weight, charge_us, group;
    char *evidence;        /* pseg_free */
    int64_t due_us;        /* back into line then; 0: not delayed */
    int64_t lease_us;      /* RUNNING: until then */
    const char *by_worker; /* who ended its own lease last, and which */
    int64_t by_fence;
    char history[HISTORY_LENGTH];
    pseg_bytes *masks;
    size_t n_masks;
};

struct mem_image {
    mem_image *next;
    char *name; /* "TENANT:SHA256" */
    uint8_t *data;
    size_t len;
    int64_t expire_us, uses;
};

struct mem_worker {
    mem_worker *next;
    pseg_queue_worker w;
    int64_t expire_us, seen_us;
};

struct mem_model {
    mem_model *next;
    char *name;
    int64_t seen_us; /* 0: asked for, but never served */
    double cost_us;  /* of a job; 0: not known */
    double clock;
};

/* A tenant's virtual time in the line of a model. */
struct mem_share {
    mem_share *next;
    char *model, *tenant;
    double time;
    bool waits;
};

struct mem_case {
    mem_case *next;
    pseg_arena *arena;
    pseg_queue_case c;
    mem_image *image;
    pseg_bytes spec;
    int64_t ttl_ms, expire_us;
};

/* Per tenant, for the limit of its rate. */
struct mem_rate {
    mem_rate *next;
    char *tenant;
    double due_us;
};

static int64_t now_us(const mem_store *s)
{
    return pseg_clock_unix_us() + s->skew_us;
}

static void no_memory(pseg_queue_reply *r)
{
    pseg_err_set(&r->err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory for the queue");
}

/* ---- copies ---- */

static pseg_bytes bytes_in(pseg_arena *a, pseg_bytes b)
{
    uint8_t *copy = pseg_arena_alloc(a, b.len + 1);

    if (!copy)
        return (pseg_bytes){NULL, 0};
    if (b.len)
        memcpy(copy, b.data, b.len);
    copy[b.len] = '\0';
    return (pseg_bytes){copy, b.len};
}

static const char *text_in(pseg_arena *a, const char *s)
{
    const char *copy = pseg_arena_strdup(a, s ? s : "");

    return copy ? copy : "";
}

static void job_in(pseg_arena *a, pseg_job *to, const pseg_job *j)
{
    *to = *j;
    to->id = text_in(a, j->id);
    to->tenant = text_in(a, j->tenant);
    to->request_id = text_in(a, j->request_id);
    to->model = text_in(a, j->model);
    to->worker = text_in(a, j->worker);
    to->message = text_in(a, j->message);
    to->spec = bytes_in(a, j->spec);
    to->result = bytes_in(a, j->result);
}

static bool reply_jobs(pseg_queue_reply *r, size_t n)
{
    r->jobs = pseg_arena_calloc(r->arena, n, sizeof *r->jobs);
    r->n_jobs = r->jobs ? n : 0;
    if (!r->jobs)
        no_memory(r);
    return r->jobs != NULL;
}

static void reply_job(pseg_queue_reply *r, const mem_job *job)
{
    if (reply_jobs(r, 1))
        job_in(r->arena, &r->jobs[0], &job->j);
}

/* ---- finding ---- */

static mem_job *job_of(mem_store *s, const char *id)
{
    int64_t now = now_us(s);

    for (mem_job *job = s->jobs; job; job = job->next)
        if (strcmp(job->j.id, id) == 0)
            return job->j.expire_unix_us && job->j.expire_unix_us <= now ? NULL : job;
    return NULL;
}

static mem_job *job_of_tenant(mem_store *s, const char *tenant, const char *id)
{
    mem_job *job = job_of(s, id);

    return job && strcmp(job->j.tenant, tenant) == 0 ? job : NULL;
}

static mem_image *image_of(mem_store *s, const char *name)
{
    mem_image *i = s->images;

    while (i && strcmp(i->name, name) != 0)
        i = i->next;
    return i;
}

static mem_model *model_of(mem_store *s, const char *name, bool make)
{
    mem_model *m = s->models;

    while (m && strcmp(m->name, name) != 0)
        m = m->next;
    if (m || !make)
        return m;
    m = pseg_calloc(1, sizeof *m);
    if (m && !(m->name = pseg_strdup(name))) {
        pseg_free(m);
        m = NULL;
    }
    if (m) {
        m->next = s->models;
        s->models = m;
    }
    return m;
}

/* ---- transitions ---- */

static mem_share *share_of(mem_store *s, const char *model, const char *tenant, bool make)
{
    mem_share *x = s->shares;

    while (x && (strcmp(x->model, model) != 0 || strcmp(x->tenant, tenant) != 0))
        x = x->next;
    if (x || !make)
        return x;
    x = pseg_calloc(1, sizeof *x);
    if (x) {
        x->model = pseg_strdup(model);
        x->tenant = pseg_strdup(tenant);
    }
    if (!x || !x->model || !x->tenant) {
        if (x) {
            pseg_free(x->model);
            pseg_free(x->tenant);
        }
        pseg_free(x);
        return NULL;
    }
    x->next = s->shares;
    s->shares = x;
    return x;
}

static void activate(mem_store *s, const char *model, const char *tenant)
{
    mem_share *x = share_of(s, model, tenant, true);
    const mem_model *m = model_of(s, model, true);

    if (!x || !m || x->waits)
        return;
    x->waits = true;
    if (x->time < m->clock)
        x->time = m->clock;
}

static bool waits_any(const mem_store *s, const char *model, const char *tenant)
{
    for (const mem_job *job = s->jobs; job; job = job->next)
        if (job->in_line && strcmp(job->j.model, model) == 0 &&
            (!tenant || strcmp(job->j.tenant, tenant) == 0))
            return true;
    return false;
}

/* After a job has left a line: if it was the tenant's last, and if it was the model's last. */
static void left_line(mem_store *s, const char *model, const char *tenant)
{
    mem_share *x = share_of(s, model, tenant, false);

    if (waits_any(s, model, tenant))
        return;
    if (x)
        x->waits = false;
    if (waits_any(s, model, NULL))
        return;
    for (x = s->shares; x; x = x->next)
        if (strcmp(x->model, model) == 0)
            x->time = 0;
    mem_model *m = model_of(s, model, false);
    if (m)
        m->clock = 0;
}

static void enqueue(mem_store *s, mem_job *job)
{
    job->in_line = true;
    job->due_us = 0;
    activate(s, job->j.model, job->j.tenant);
    s->ready(s->ud, job->j.model);
}

/* What came to nothing, for the message of the job's end and for whoever looks at it in quarantine.
 */
static void note(const mem_store *s, mem_job *job, const char *reason, const char *message)
{
    size_t n = strlen(job->history), old = job->evidence ? strlen(job->evidence) : 0;
    const mem_worker *w = s->workers;
    char *more = pseg_calloc(1, old + 4096);

    snprintf(job->history + n, sizeof job->history - n, "%s%lld: %s, %.120s", n ? "; " : "",
             (long long)job->j.attempts, reason, message);
    while (w && strcmp(w->w.id, job->j.worker) != 0)
        w = w->next;
    if (!more)
        return;
    snprintf(more, old + 4096, "%sattempt %lld at %lld on %s, device %s: %s, %.400s\n%.2500s\n",
             job->evidence ? job->evidence : "", (long long)job->j.attempts,
             (long long)(now_us(s) / 1000), job->j.worker, w ? w->w.device : "unknown", reason,
             message, w && w->w.log ? w->w.log : "");
    pseg_free(job->evidence);
    job->evidence = more;
}

static void say(mem_job *job, pseg_reason reason, const char *message)
{
    job->j.reason = reason;
    job->j.message = text_in(job->arena, message);
}

static void finish(mem_store *s, mem_job *job, pseg_job_state state)
{
    int64_t now = now_us(s);

    job->j.state = state;
    job->j.finished_unix_us = now;
    job->j.expire_unix_us = now + job->ttl_ms * 1000;
    job->j.cancel_requested = false;
    job->due_us = 0;
    if (job->in_line) {
        job->in_line = false;
        left_line(s, job->j.model, job->j.tenant);
    }
    job->image->uses--;
    s->ended[state]++;
    s->changed(s->ud, job->j.id, state);
}

static void quarantine(mem_store *s, mem_job *job)
{
    mem_case *x = pseg_calloc(1, sizeof *x);
    pseg_arena *a = pseg_arena_new(MAX_JOB_BYTES);

    if (!x || !a) {
        pseg_free(x);
        pseg_arena_free(a);
        return;
    }
    x->arena = a;
    x->c = (pseg_queue_case){.id = text_in(a, job->j.id),
                             .tenant = text_in(a, job->j.tenant),
                             .model = text_in(a, job->j.model),
                             .message = text_in(a, job->j.message),
                             .request_id = text_in(a, job->j.request_id),
                             .evidence = text_in(a, job->evidence),
                             .reason = job->j.reason,
                             .attempts = job->j.attempts,
                             .at_unix_us = now_us(s)};
    x->spec = bytes_in(a, job->j.spec);
    x->ttl_ms = job->ttl_ms;
    x->expire_us = now_us(s) + CASE_KEPT_US;
    x->image = job->image;
    x->image->uses++;
    mem_case **at = &s->cases;
    while (*at && strcmp((*at)->c.id, x->c.id) > 0)
        at = &(*at)->next;
    x->next = *at;
    *at = x;
}

static void requeue(mem_store *s, mem_job *job, int64_t delay_ms)
{
    job->j.state = PSEG_JOB_QUEUED;
    job->j.worker = "";
    if (delay_ms > 0)
        job->due_us = now_us(s) + delay_ms * 1000;
    else
        enqueue(s, job);
    s->changed(s->ud, job->j.id, PSEG_JOB_QUEUED);
}

/* ---- images ---- */

static int64_t bytes_of_tenant(const mem_store *s, const char *tenant)
{
    size_t n = strlen(tenant);
    int64_t sum = 0;

    for (const mem_image *i = s->images; i; i = i->next)
        if (strncmp(i->name, tenant, n) == 0 && i->name[n] == ':')
            sum += (int64_t)i->len;
    return sum;
}

static void image_free(mem_store *s, mem_image *i)
{
    s->image_bytes -= (int64_t)i->len;
    pseg_free(i->name);
    pseg_free(i->data);
    pseg_free(i);
}

static void purge_images(mem_store *s)
{
    int64_t now = now_us(s);

    for (mem_image **p = &s->images; *p;) {
        mem_image *i = *p;
        if (i->uses > 0 || i->expire_us > now) {
            p = &i->next;
            continue;
        }
        *p = i->next;
        image_free(s, i);
    }
}

/* NULL: r->err is set. */
static mem_image *store_image(mem_store *s, const pseg_queue_options *o, const char *name,
                              pseg_bytes data, int64_t tenant_bytes, pseg_queue_reply *r)
{
    char tenant[192];

    snprintf(tenant, sizeof tenant, "%.*s", (int)strcspn(name, ":"), name);

    mem_image *i = NULL;

    if (s->image_bytes + (int64_t)data.len > o->max_bytes)
        purge_images(s);
    if (s->image_bytes + (int64_t)data.len > o->max_bytes) {
        pseg_err_set(&r->err, PSEG_R_QUEUE_FULL, 0, PSEG_HERE,
                     "an image of %zu bytes does not fit: %lld of %lld bytes are held; try again "
                     "later",
                     data.len, (long long)s->image_bytes, (long long)o->max_bytes);
        return NULL;
    }
    int64_t own = bytes_of_tenant(s, tenant);
    if (tenant_bytes > 0 && own + (int64_t)data.len > tenant_bytes) {
        pseg_err_set(
            &r->err, PSEG_R_TENANT_LIMIT, 0, PSEG_HERE,
            "an image of %zu bytes does not fit: %lld of %lld bytes of tenant %s are held; "
            "try again later",
            data.len, (long long)own, (long long)tenant_bytes, tenant);
        return NULL;
    }
    i = pseg_calloc(1, sizeof *i);
    if (i) {
        i->name = pseg_strdup(name);
        i->data = pseg_memdup(data.data ? data.data : (const uint8_t *)"", data.len);
    }
    if (!i || !i->name || !i->data) {
        if (i) {
            pseg_free(i->name);
            pseg_free(i->data);
        }
        pseg_free(i);
        no_memory(r);
        return NULL;
    }
    i->len = data.len;
    i->next = s->images;
    s->images = i;
    s->image_bytes += (int64_t)i->len;
    return i;
}

static void extend(const mem_store *s, const pseg_queue_options *o, mem_image *i)
{
    int64_t until = now_us(s) + o->image_ttl_ms * 1000;

    if (until > i->expire_us)
        i->expire_us = until;
}

static void image_name(char out[192], const char *tenant, const char *sha256)
{
    snprintf(out, 192, "%s:%s", tenant, sha256);
}

void mem_put_image(mem_store *s, const pseg_queue_options *o, const char *tenant,
                   const char *sha256, pseg_bytes data, int64_t tenant_bytes, pseg_queue_reply *r)
{
    char name[192];

    image_name(name, tenant, sha256);
    mem_image *i = image_of(s, name);
    r->images = pseg_arena_calloc(r->arena, 1, sizeof *r->images);
    if (!r->images) {
        no_memory(r);
        return;
    }
    r->images[0].existed = i != NULL;
    if (!i)
        i = store_image(s, o, name, data, tenant_bytes, r);
    if (!i)
        return;
    extend(s, o, i);
    r->n_images = 1;
    r->images[0].size_bytes = i->len;
    r->images[0].expire_unix_us = i->expire_us;
}

void mem_has_images(mem_store *s, const pseg_queue_options *o, const char *tenant,
                    const char *const *sha256, size_t n, pseg_queue_reply *r)
{
    r->images = pseg_arena_calloc(r->arena, n, sizeof *r->images);
    if (!r->images) {
        no_memory(r);
        return;
    }
    r->n_images = n;
    for (size_t k = 0; k < n; k++) {
        char name[192];
        image_name(name, tenant, sha256[k]);
        mem_image *i = image_of(s, name);
        if (!i)
            continue;
        extend(s, o, i);
        r->images[k].size_bytes = i->len;
        r->images[k].expire_unix_us = i->expire_us;
    }
}

static void reply_blobs(pseg_queue_reply *r, size_t n)
{
    r->blobs = pseg_arena_calloc(r->arena, n, sizeof *r->blobs);
    r->n_blobs = r->blobs ? n : 0;
    if (!r->blobs)
        no_memory(r);
}

void mem_fetch_image(mem_store *s, const char *image, pseg_queue_reply *r)
{
    const mem_image *i = image_of(s, image);

    reply_blobs(r, 1);
    if (i && r->n_blobs)
        r->blobs[0] = bytes_in(r->arena, (pseg_bytes){i->data, i->len});
}

/* ---- submit ---- */

static void job_free(mem_job *job)
{
    pseg_arena_free(job->arena);
    pseg_free(job->evidence);
    pseg_free(job);
}

/* The generic cell rate algorithm, as in pseg.lua. */
static bool is_too_fast(mem_store *s, const char *tenant, const pseg_queue_tenant *t,
                        pseg_queue_reply *r)
{
    mem_rate *x = s->rates;
    double now = (double)now_us(s), interval = 1e6 / (double)t->rate;

    while (x && strcmp(x->tenant, tenant) != 0)
        x = x->next;
    if (!x && (x = pseg_calloc(1, sizeof *x))) {
        x->tenant = pseg_strdup(tenant);
        x->next = s->rates;
        s->rates = x;
    }
    if (!x || !x->tenant) {
        no_memory(r);
        return true;
    }
    double due = x->due_us > now ? x->due_us : now;
    double early = due - now - (double)((t->burst > 0 ? t->burst : 1) - 1) * interval;
    if (early > 0) {
        pseg_err_set(&r->err, PSEG_R_TENANT_LIMIT, 0, PSEG_HERE,
                     "tenant %s submits more than %lld jobs a second; try again in %.0f ms", tenant,
                     (long long)t->rate, early / 1000);
        return true;
    }
    x->due_us = due + interval;
    return false;
}

static bool is_refused(mem_store *s, const pseg_queue_options *o, const pseg_queue_submit_args *a,
                       pseg_queue_reply *r)
{
    const mem_model *m = model_of(s, a->model, false);
    int64_t live = 0;

    if (!a->model_is_default && !(m && m->seen_us)) {
        pseg_err_set(&r->err, PSEG_R_MODEL_UNKNOWN, 0, PSEG_HERE,
                     "model \"%s\" is served by no worker", a->model);
        return true;
    }
    int64_t own = 0;
    for (const mem_job *job = s->jobs; job; job = job->next) {
        bool lives = !pseg_job_state_is_terminal(job->j.state);
        live += lives;
        own += lives && strcmp(job->j.tenant, a->tenant) == 0;
    }
    if (live >= o->max_jobs) {
        pseg_err_set(&r->err, PSEG_R_QUEUE_FULL, 0, PSEG_HERE,
                     "%lld jobs are alive, the limit is %lld; try again later", (long long)live,
                     (long long)o->max_jobs);
        return true;
    }
    if (a->limits && a->limits->max_jobs > 0 && own >= a->limits->max_jobs) {
        pseg_err_set(&r->err, PSEG_R_TENANT_LIMIT, 0, PSEG_HERE,
                     "%lld jobs of tenant %s are alive, its limit is %lld; try again later",
                     (long long)own, a->tenant, (long long)a->limits->max_jobs);
        return true;
    }
    return false;
}

static mem_job *job_new(const mem_store *s, const pseg_queue_options *o,
                        const pseg_queue_submit_args *a, mem_image *image)
{
    mem_job *job = pseg_calloc(1, sizeof *job);
    pseg_arena *arena = pseg_arena_new(MAX_JOB_BYTES);
    int64_t now = now_us(s), latest = now + o->max_age_ms * 1000;

    if (!job || !arena) {
        pseg_free(job);
        pseg_arena_free(arena);
        return NULL;
    }
    job->arena = arena;
    job->image = image;
    job->ttl_ms = a->ttl_ms;
    job->weight = a->limits && a->limits->weight > 0 ? a->limits->weight : 1;
    job->fingerprint = text_in(arena, a->fingerprint);
    job->j = (pseg_job){.id = text_in(arena, a->id),
                        .tenant = text_in(arena, a->tenant),
                        .request_id = text_in(arena, a->request_id),
                        .model = text_in(arena, a->model),
                        .worker = "",
                        .message = "",
                        .state = PSEG_JOB_QUEUED,
                        .spec = bytes_in(arena, a->spec),
                        .created_unix_us = now,
                        .deadline_unix_us = a->deadline_unix_us};
    if (a->deadline_unix_us <= 0 || a->deadline_unix_us > latest)
        job->j.deadline_unix_us = latest;
    if (strcmp(job->j.id, a->id) != 0 || strcmp(job->j.model, a->model) != 0 ||
        strcmp(job->j.tenant, a->tenant) != 0 || !job->j.spec.data) {
        job_free(job);
        return NULL;
    }
    return job;
}

/* True: the request was made before, and r says what came of it. */
static bool is_repeat(mem_store *s, const pseg_queue_submit_args *a, pseg_queue_reply *r)
{
    mem_job *old = job_of(s, a->id);

    if (old) {
        if (strcmp(old->j.tenant, a->tenant) != 0)
            pseg_err_set(&r->err, PSEG_R_INTERNAL, 0, PSEG_HERE, "job id %s is taken", a->id);
        else
            reply_job(r, old);
        return true;
    }
    for (mem_job *job = s->jobs; job && *a->request_id; job = job->next) {
        if (strcmp(job->j.tenant, a->tenant) != 0 ||
            strcmp(job->j.request_id, a->request_id) != 0 || !job_of(s, job->j.id))
            continue;
        if (strcmp(job->fingerprint, a->fingerprint) != 0)
            pseg_err_set(&r->err, PSEG_R_REQUEST_ID_REUSED, 0, PSEG_HERE,
                         "request_id \"%s\" was used for a job with other content; take a new one",
                         a->request_id);
        else
            reply_job(r, job);
        return true;
    }
    return false;
}

void mem_submit(mem_store *s, const pseg_queue_options *o, const pseg_queue_submit_args *a,
                pseg_queue_reply *r)
{
    char name[192];

    if (is_repeat(s, a, r) || is_refused(s, o, a, r))
        return;
    image_name(name, a->tenant, a->image_sha256);
    mem_image *i = image_of(s, name);
    if (!i && a->content.len == 0) {
        pseg_err_set(&r->err, PSEG_R_IMAGE_NOT_HELD, 0, PSEG_HERE,
                     "image %s is not held; upload it and repeat", a->image_sha256);
        return;
    }
    if (a->limits && a->limits->rate > 0 && is_too_fast(s, a->tenant, a->limits, r))
        return;
    if (!i && !(i = store_image(s, o, name, a->content, a->limits ? a->limits->max_bytes : 0, r)))
        return;
    extend(s, o, i);
    mem_job *job = job_new(s, o, a, i);
    if (!job || !model_of(s, a->model, true)) {
        if (job)
            job_free(job);
        no_memory(r);
        return;
    }
    i->uses++;
    mem_job **at = &s->jobs;
    while (*at && strcmp((*at)->j.id, job->j.id) > 0)
        at = &(*at)->next;
    job->next = *at;
    *at = job;
    s->submitted++;
    s->last_place = s->last_place + 1 > now_us(s) ? s->last_place + 1 : now_us(s);
    job->place = s->last_place - a->priority * HEAD_START_US;
    enqueue(s, job);
    reply_job(r, job);
    r->created = true;
}

/* ---- reading ---- */

void mem_get(mem_store *s, const char *tenant, const char *const *ids, size_t n,
             pseg_queue_reply *r)
{
    if (!reply_jobs(r, n))
        return;
    for (size_t i = 0; i < n; i++) {
        const mem_job *job = job_of_tenant(s, tenant, ids[i]);
        if (job)
            job_in(r->arena, &r->jobs[i], &job->j);
    }
}

void mem_list(mem_store *s, const char *tenant, const char *after_id, size_t limit,
              pseg_queue_reply *r)
{
    size_t n = 0;
    const char *last = "";

    if (!reply_jobs(r, limit))
        return;
    for (mem_job *job = s->jobs; job && n < limit; job = job->next) {
        if ((*after_id && strcmp(job->j.id, after_id) >= 0) || !job_of_tenant(s, tenant, job->j.id))
            continue;
        job_in(r->arena, &r->jobs[n++], &job->j);
        last = job->j.id;
    }
    r->n_jobs = n;
    r->next_id = text_in(r->arena, n == limit ? last : "");
}

void mem_masks(mem_store *s, const char *tenant, const char *id, const uint32_t *indexes, size_t n,
               pseg_queue_reply *r)
{
    const mem_job *job = job_of_tenant(s, tenant, id);

    if (!job)
        return;
    reply_job(r, job);
    reply_blobs(r, n);
    for (size_t i = 0; i < r->n_blobs; i++)
        if (indexes[i] < job->n_masks)
            r->blobs[i] = bytes_in(r->arena, job->masks[indexes[i]]);
}

void mem_workers(mem_store *s, pseg_queue_reply *r)
{
    int64_t now = now_us(s);
    size_t n = 0;

    for (const mem_worker *w = s->workers; w; w = w->next)
        n++;
    r->workers = pseg_arena_calloc(r->arena, n, sizeof *r->workers);
    if (!r->workers) {
        no_memory(r);
        return;
    }
    for (const mem_worker *w = s->workers; w; w = w->next)
        if (w->expire_us >= now)
            r->workers[r->n_workers++] =
                (pseg_queue_worker){text_in(r->arena, w->w.id),      text_in(r->arena, w->w.model),
                                    text_in(r->arena, w->w.digest),  text_in(r->arena, w->w.device),
                                    text_in(r->arena, w->w.version), ""};
}

void mem_stats(mem_store *s, pseg_queue_reply *r)
{
    r->stats = (pseg_queue_stats){.image_bytes = s->image_bytes,
                                  .submitted = s->submitted,
                                  .succeeded = s->ended[PSEG_JOB_SUCCEEDED],
                                  .failed = s->ended[PSEG_JOB_FAILED],
                                  .cancelled = s->ended[PSEG_JOB_CANCELLED],
                                  .expired = s->ended[PSEG_JOB_EXPIRED]};
    for (const mem_job *job = s->jobs; job; job = job->next) {
        r->stats.live += !pseg_job_state_is_terminal(job->j.state);
        r->stats.leased += job->j.state == PSEG_JOB_RUNNING;
        r->stats.delayed += job->due_us != 0;
    }
    for (const mem_case *x = s->cases; x; x = x->next)
        r->stats.quarantined++;
}

/* ---- for clients ---- */

void mem_cancel(mem_store *s, const char *tenant, const char *id, pseg_queue_reply *r)
{
    mem_job *job = job_of_tenant(s, tenant, id);

    if (!job)
        return;
    if (job->j.state == PSEG_JOB_QUEUED)
        finish(s, job, PSEG_JOB_CANCELLED);
    else if (job->j.state == PSEG_JOB_RUNNING)
        job->j.cancel_requested = true;
    reply_job(r, job);
}

/* ---- for workers ---- */

static void worker_free(mem_worker *w)
{
    pseg_free((void *)(uintptr_t)w->w.id);
    pseg_free((void *)(uintptr_t)w->w.model);
    pseg_free((void *)(uintptr_t)w->w.digest);
    pseg_free((void *)(uintptr_t)w->w.device);
    pseg_free((void *)(uintptr_t)w->w.version);
    pseg_free((void *)(uintptr_t)w->w.log);
    pseg_free(w);
}

void mem_unregister(mem_store *s, const char *worker)
{
    for (mem_worker **p = &s->workers; *p; p = &(*p)->next)
        if (strcmp((*p)->w.id, worker) == 0) {
            mem_worker *w = *p;
            *p = w->next;
            worker_free(w);
            return;
        }
}

void mem_register(mem_store *s, const pseg_queue_options *o, const pseg_queue_worker *from,
                  pseg_queue_reply *r)
{
    mem_worker *w = pseg_calloc(1, sizeof *w);
    mem_model *m = model_of(s, from->model, true);

    mem_unregister(s, from->id);
    if (w)
        w->w = (pseg_queue_worker){
            pseg_strdup(from->id),      pseg_strdup(from->model),
            pseg_strdup(from->digest),  pseg_strdup(from->device),
            pseg_strdup(from->version), pseg_strdup(from->log ? from->log : "")};
    if (!w || !m || !w->w.id || !w->w.model || !w->w.digest || !w->w.device || !w->w.version ||
        !w->w.log) {
        if (w)
            worker_free(w);
        no_memory(r);
        return;
    }
    int64_t kept_ms = 3 * o->lease_ms > 30000 ? 3 * o->lease_ms : 30000;
    w->expire_us = now_us(s) + kept_ms * 1000;
    w->seen_us = now_us(s);
    m->seen_us = now_us(s);
    w->next = s->workers;
    s->workers = w;
}

typedef struct mem_claimer {
    const char *worker, *model;
    double cost_us, clock;
    size_t held, most;
    int64_t lease_us;
    pseg_queue_reply *r;
} mem_claimer;

static mem_job *first_in_line(mem_store *s, const char *model, const char *tenant)
{
    mem_job *first = NULL;

    for (mem_job *job = s->jobs; job; job = job->next)
        if (job->in_line && strcmp(job->j.model, model) == 0 &&
            strcmp(job->j.tenant, tenant) == 0 && (!first || job->place < first->place))
            first = job;
    return first;
}

/* False: it must wait until the worker's hands are empty. */
static bool claim_one(mem_store *s, mem_claimer *c, mem_job *job, mem_share *x)
{
    pseg_queue_reply *r = c->r;

    if (job->j.deadline_unix_us <= now_us(s)) {
        finish(s, job, PSEG_JOB_EXPIRED);
        return true;
    }
    if (job->group > 0 && c->held >= (size_t)job->group)
        return false;
    if (job->group > 0 && (size_t)job->group < c->most)
        c->most = (size_t)job->group;
    if (x->time > c->clock)
        c->clock = x->time;
    x->time += c->cost_us / (double)job->weight;
    job->in_line = false;
    job->charge_us = (int64_t)c->cost_us;
    job->fence++;
    job->lease_us = now_us(s) + c->lease_us;
    job->j.attempts++;
    job->j.state = PSEG_JOB_RUNNING;
    job->j.started_unix_us = now_us(s);
    job->j.worker = text_in(job->arena, c->worker);
    s->changed(s->ud, job->j.id, PSEG_JOB_RUNNING);
    c->held++;
    r->claims[r->n_claims++] = (pseg_queue_claim){.id = text_in(r->arena, job->j.id),
                                                  .tenant = text_in(r->arena, job->j.tenant),
                                                  .image = text_in(r->arena, job->image->name),
                                                  .fence = job->fence,
                                                  .attempt = job->j.attempts,
                                                  .group = job->group,
                                                  .deadline_unix_us = job->j.deadline_unix_us,
                                                  .created_unix_us = job->j.created_unix_us,
                                                  .spec = bytes_in(r->arena, job->j.spec)};
    left_line(s, job->j.model, job->j.tenant);
    return true;
}

/* Whose turn it is. Ties go by name, as they lie when the claim begins: `order` keeps that. */
static mem_share *next_share(mem_share **order, size_t n)
{
    mem_share *first = NULL;

    for (size_t i = 0; i < n; i++)
        if (order[i]->waits && (!first || order[i]->time < first->time))
            first = order[i];
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

void mem_claim(mem_store *s, const pseg_queue_options *o, const char *worker, const char *model,
               size_t max, size_t held, pseg_queue_reply *r)
{
    mem_model *m = model_of(s, model, false);
    mem_share **order = pseg_arena_calloc(r->arena, max + 1, sizeof(mem_share *));
    mem_claimer c = {.worker = worker,
                     .model = model,
                     .cost_us = m && m->cost_us > 0 ? m->cost_us : FIRST_COST_US,
                     .held = held,
                     .most = held + max,
                     .lease_us = o->lease_ms * 1000,
                     .r = r};

    r->claims = pseg_arena_calloc(r->arena, max, sizeof *r->claims);
    if (!r->claims || !order) {
        no_memory(r);
        return;
    }
    size_t n = shares_in_order(s, model, order, max + 1);
    while (c.held < c.most) {
        mem_share *x = next_share(order, n);
        mem_job *job = x ? first_in_line(s, model, x->tenant) : NULL;
        if (!job || !claim_one(s, &c, job, x))
            break;
    }
    if (m && n > 1 && c.clock > 0 && waits_any(s, model, NULL))
        m->clock = c.clock;
}

/* The job if the worker holds it; else NULL, and *ended is the job if the worker itself ended this
 * very lease, so that a request whose answer was lost can be repeated. */
static mem_job *held_by(mem_store *s, const char *worker, pseg_queue_lease l, mem_job **ended)
{
    mem_job *job = job_of(s, l.id);

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
        job->by_worker = text_in(job->arena, worker);
        job->by_fence = l.fence;
    }
    return job;
}

/* Cancelled or past its deadline. */
static bool is_over(mem_store *s, mem_job *job)
{
    bool is_late = job->j.deadline_unix_us <= now_us(s);

    if (job->j.cancel_requested || is_late)
        finish(s, job, job->j.cancel_requested ? PSEG_JOB_CANCELLED : PSEG_JOB_EXPIRED);
    return pseg_job_state_is_terminal(job->j.state);
}

void mem_renew(mem_store *s, const pseg_queue_options *o, const char *worker,
               const pseg_queue_lease *l, size_t n, pseg_queue_reply *r)
{
    int64_t now = now_us(s);

    r->leases = pseg_arena_calloc(r->arena, n, sizeof *r->leases);
    if (!r->leases) {
        no_memory(r);
        return;
    }
    r->n_leases = n;
    for (size_t i = 0; i < n; i++) {
        mem_job *ended, *job = held_by(s, worker, l[i], &ended), *any = job_of(s, l[i].id);
        r->leases[i] = PSEG_LEASE_LOST;
        if (any && any->j.state == PSEG_JOB_EXPIRED)
            r->leases[i] = PSEG_LEASE_EXPIRED;
        if (job && job->j.deadline_unix_us <= now) {
            finish(s, job, PSEG_JOB_EXPIRED);
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
    mem_model *m = model_of(s, job->j.model, true);
    mem_share *x = share_of(s, job->j.model, job->j.tenant, false);

    if (m)
        m->cost_us = m->cost_us > 0 ? m->cost_us + (cost_us - m->cost_us) / 64 : cost_us;
    if (x && (x->waits || x->time > 0))
        x->time += (cost_us - (double)job->charge_us) / (double)job->weight;
}

void mem_publish(mem_store *s, const char *worker, pseg_queue_lease l, pseg_bytes result,
                 const pseg_bytes *masks, size_t n, int64_t cost_us, pseg_queue_reply *r)
{
    mem_job *job = end_lease(s, worker, l, true, r);

    if (!job)
        return;
    if (!is_over(s, job)) {
        job->masks = pseg_arena_calloc(job->arena, n, sizeof *job->masks);
        for (size_t i = 0; job->masks && i < n; i++)
            job->masks[job->n_masks++] = bytes_in(job->arena, masks[i]);
        if (cost_us > 0)
            pay(s, job, (double)cost_us);
        job->j.result = bytes_in(job->arena, result);
        say(job, PSEG_R_NONE, "");
        finish(s, job, PSEG_JOB_SUCCEEDED);
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
        finish(s, job, PSEG_JOB_CANCELLED);
    } else if (!is_over(s, job)) {
        bool again = pseg_reason_is_retryable(why->reason) && job->j.attempts < o->max_attempts;
        snprintf(text, sizeof text, "%s", why->msg);
        if (!again && *job->history)
            snprintf(text, sizeof text, "%s (attempt %lld; before: %s)", why->msg,
                     (long long)job->j.attempts, job->history);
        if (pseg_reason_is_retryable(why->reason))
            note(s, job, pseg_reason_name(why->reason), why->msg);
        say(job, why->reason, text);
        if (again) {
            requeue(s, job, delay_ms);
        } else {
            finish(s, job, PSEG_JOB_FAILED);
            if (pseg_reason_is_retryable(why->reason))
                quarantine(s, job);
        }
    } else if (job->j.state == PSEG_JOB_EXPIRED) {
        say(job, why->reason, why->msg);
    }
    r->state = job->j.state;
}

void mem_release(mem_store *s, const char *worker, pseg_queue_lease l, pseg_queue_reply *r)
{
    mem_job *job = end_lease(s, worker, l, false, r);

    if (!job)
        return;
    if (!is_over(s, job)) {
        job->j.attempts--;
        requeue(s, job, 0);
    }
    r->state = job->j.state;
}

/* ---- sweep ---- */

static mem_worker *worker_of(mem_store *s, const char *id)
{
    mem_worker *w = s->workers;

    while (w && strcmp(w->w.id, id) != 0)
        w = w->next;
    return w;
}

/* What becomes of a job whose worker went silent while it held n; see pseg.lua. */
static void lease_ends(mem_store *s, const pseg_queue_options *o, mem_job *job, int64_t n)
{
    const mem_worker *w = worker_of(s, job->j.worker);
    char why[256], text[HISTORY_LENGTH + 512];

    if (is_over(s, job))
        return;
    snprintf(why, sizeof why, "worker %s went away during attempt %lld", job->j.worker,
             (long long)job->j.attempts);
    if (w && w->seen_us > now_us(s) - o->lease_ms * 500) {
        job->j.attempts--;
        requeue(s, job, 0);
        return;
    }
    if (n > 1 && job->group != 1) {
        int64_t group = (n + 1) / 2;
        if (job->group > 0 && job->group - 1 < group)
            group = job->group > 2 ? job->group - 1 : 1;
        snprintf(text, sizeof text, "%s, with %lld others", why, (long long)n - 1);
        job->group = group;
        job->j.attempts--;
        say(job, PSEG_R_LEASE_LOST, text);
        requeue(s, job, 0);
        return;
    }
    snprintf(text, sizeof text, "%s, the last of %lld%s%s%s", why, (long long)o->max_attempts,
             *job->history ? " (before: " : "", job->history, *job->history ? ")" : "");
    note(s, job, "LEASE_LOST", why);
    if (job->j.attempts < o->max_attempts) {
        say(job, PSEG_R_LEASE_LOST, why);
        requeue(s, job, 0);
        return;
    }
    say(job, PSEG_R_ATTEMPTS_EXHAUSTED, text);
    finish(s, job, PSEG_JOB_FAILED);
    quarantine(s, job);
}

/* Leases that have ended, and with them those that a dead worker has not renewed for half a lease.
 */
static void sweep_leases(mem_store *s, const pseg_queue_options *o)
{
    int64_t now = now_us(s);

    for (mem_job *stale = s->jobs; stale; stale = stale->next) {
        if (stale->j.state != PSEG_JOB_RUNNING || stale->lease_us > now)
            continue;
        char worker[128];
        int64_t n = 0, soon = now + o->lease_ms * 500;
        snprintf(worker, sizeof worker, "%s", stale->j.worker);
        const mem_worker *w = worker_of(s, worker);
        if (w && w->seen_us > now - o->lease_ms * 500)
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
    c->id = text_in(a, c->id);
    c->tenant = text_in(a, c->tenant);
    c->model = text_in(a, c->model);
    c->message = text_in(a, c->message);
    c->request_id = text_in(a, c->request_id);
    c->evidence = text_in(a, c->evidence);
}

void mem_list_cases(mem_store *s, const char *after_id, size_t limit, pseg_queue_reply *r)
{
    r->cases = pseg_arena_calloc(r->arena, limit, sizeof *r->cases);
    if (!r->cases) {
        no_memory(r);
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
        no_memory(r);
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

    if (!x)
        return;
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
    if (r->err.code == PSEG_OK)
        case_drop(case_at(s, id));
}

void mem_sweep(mem_store *s, const pseg_queue_options *o)
{
    int64_t now = now_us(s);

    sweep_leases(s, o);
    for (mem_job **p = &s->jobs; *p;) {
        mem_job *job = *p;
        if (job->due_us && job->due_us <= now)
            enqueue(s, job);
        if (!pseg_job_state_is_terminal(job->j.state) && job->j.deadline_unix_us <= now)
            finish(s, job, PSEG_JOB_EXPIRED);
        if (pseg_job_state_is_terminal(job->j.state) && job->j.expire_unix_us <= now) {
            *p = job->next;
            job_free(job);
        } else {
            p = &job->next;
        }
    }
    for (mem_case **at = &s->cases; *at;)
        if ((*at)->expire_us <= now)
            case_drop(at);
        else
            at = &(*at)->next;
    purge_images(s);
    for (mem_worker **p = &s->workers; *p;) {
        mem_worker *w = *p;
        if (w->expire_us >= now) {
            p = &w->next;
            continue;
        }
        *p = w->next;
        worker_free(w);
    }
    for (mem_model *m = s->models; m; m = m->next)
        if (m->seen_us && m->seen_us < now - MODEL_KEPT_US)
            m->seen_us = 0;
}

void mem_free(mem_store *s)
{
    while (s->cases)
        case_drop(&s->cases);
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
        job_free(job);
    }
    for (mem_image *i = s->images, *next; i; i = next) {
        next = i->next;
        image_free(s, i);
    }
    for (mem_worker *w = s->workers, *next; w; w = next) {
        next = w->next;
        worker_free(w);
    }
    for (mem_model *m = s->models, *next; m; m = next) {
        next = m->next;
        pseg_free(m->name);
        pseg_free(m);
    }
}
