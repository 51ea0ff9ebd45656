#include "common/queue/queue_mem_impl.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <string.h>

int64_t mem_now_us(const mem_store *s)
{
    return pseg_clock_unix_us() + s->skew_us;
}

void mem_no_memory(pseg_queue_reply *r)
{
    pseg_err_set(&r->err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory for the queue");
}

/* ---- copies ---- */

pseg_bytes mem_bytes_in(pseg_arena *a, pseg_bytes b)
{
    uint8_t *copy = pseg_arena_alloc(a, b.len + 1);

    if (!copy)
        return (pseg_bytes){NULL, 0};
    if (b.len)
        memcpy(copy, b.data, b.len);
    copy[b.len] = '\0';
    return (pseg_bytes){copy, b.len};
}

const char *mem_text_in(pseg_arena *a, const char *s)
{
    const char *copy = pseg_arena_strdup(a, s ? s : "");

    return copy ? copy : "";
}

void mem_job_in(pseg_arena *a, pseg_job *to, const pseg_job *j)
{
    *to = *j;
    to->id = mem_text_in(a, j->id);
    to->tenant = mem_text_in(a, j->tenant);
    to->request_id = mem_text_in(a, j->request_id);
    to->model = mem_text_in(a, j->model);
    to->worker = mem_text_in(a, j->worker);
    to->message = mem_text_in(a, j->message);
    to->spec = mem_bytes_in(a, j->spec);
    to->result = mem_bytes_in(a, j->result);
}

bool mem_reply_jobs(pseg_queue_reply *r, size_t n)
{
    r->jobs = pseg_arena_calloc(r->arena, n, sizeof *r->jobs);
    r->n_jobs = r->jobs ? n : 0;
    if (!r->jobs)
        mem_no_memory(r);
    return r->jobs != NULL;
}

void mem_reply_job(pseg_queue_reply *r, const mem_job *job)
{
    if (mem_reply_jobs(r, 1))
        mem_job_in(r->arena, &r->jobs[0], &job->j);
}

/* ---- finding ---- */

mem_job *mem_job_of(mem_store *s, const char *id)
{
    int64_t now = mem_now_us(s);

    for (mem_job *job = s->jobs; job; job = job->next)
        if (strcmp(job->j.id, id) == 0)
            return job->j.expire_unix_us && job->j.expire_unix_us <= now ? NULL : job;
    return NULL;
}

mem_job *mem_job_of_tenant(mem_store *s, const char *tenant, const char *id)
{
    mem_job *job = mem_job_of(s, id);

    return job && strcmp(job->j.tenant, tenant) == 0 ? job : NULL;
}

mem_image *mem_image_of(mem_store *s, const char *name)
{
    mem_image *i = s->images;

    while (i && strcmp(i->name, name) != 0)
        i = i->next;
    return i;
}

mem_model *mem_model_of(mem_store *s, const char *name, bool make)
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
