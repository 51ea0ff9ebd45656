/* When a job would be done: lua/estimate.lua in C. */
#include "common/queue/queue_mem_impl.h"

#include <math.h>
#include <string.h>

void mem_learn_cost(mem_model *m, double cost_us, double phrases)
{
    double rate = m->cost_us > 0 ? 1.0 / 64 : 1;
    const struct {
        double *mean, value;
    } all[] = {{&m->cost_us, cost_us},
               {&m->phrases, phrases},
               {&m->squares, phrases * phrases},
               {&m->products, phrases * cost_us}};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        *all[i].mean += (all[i].value - *all[i].mean) * rate;
}

static double cost_with(const mem_model *m, double phrases)
{
    double spread = m->squares - m->phrases * m->phrases;

    if (m->cost_us <= 0 || m->phrases <= 0 || spread < 0.05)
        return m->cost_us;
    double slope = (m->products - m->phrases * m->cost_us) / spread;
    slope = fmax(0, fmin(m->cost_us / m->phrases, slope));
    return fmax(1, m->cost_us + slope * (phrases - m->phrases));
}

/* The other's jobs that are begun before `turn`, its share's time being what it is. */
static int64_t begun_of(const mem_store *s, const mem_share *x, const char *tenant, double turn,
                        double cost_us)
{
    const mem_job *first = NULL;
    int64_t n = 0;

    for (const mem_job *job = s->jobs; job; job = job->next)
        if (job->in_line && strcmp(job->j.model, x->model) == 0 &&
            strcmp(job->j.tenant, x->tenant) == 0) {
            n++;
            if (!first || job->place < first->place)
                first = job;
        }
    if (!first || x->time > turn)
        return 0;
    double steps = (turn - x->time) / (cost_us / (double)first->weight), begun = ceil(steps);
    if (begun == steps && strcmp(x->tenant, tenant) < 0)
        begun++;
    return begun < (double)n ? (int64_t)begun : n;
}

static int64_t ahead_of(mem_store *s, const mem_model *m, const pseg_queue_estimate_args *a,
                        int64_t place, double cost_us)
{
    const mem_share *own = mem_share_of(s, a->model, a->tenant, false);
    int64_t ahead = 0;

    for (const mem_job *job = s->jobs; job; job = job->next)
        ahead += job->in_line && strcmp(job->j.model, a->model) == 0 &&
                 strcmp(job->j.tenant, a->tenant) == 0 && job->place < place;
    double turn = own ? own->time : 0;
    if (!(own && own->waits) && m && m->clock > turn)
        turn = m->clock;
    turn += (double)ahead * cost_us / (double)a->weight;
    for (const mem_share *x = s->shares; x; x = x->next)
        if (x->waits && strcmp(x->model, a->model) == 0 && strcmp(x->tenant, a->tenant) != 0)
            ahead += begun_of(s, x, a->tenant, turn, cost_us);
    return ahead;
}

void mem_estimate(mem_store *s, const pseg_queue_estimate_args *a, pseg_queue_reply *r)
{
    const mem_model *m = mem_model_of(s, a->model, false);
    pseg_queue_estimate *e = &r->estimate;
    int64_t now = mem_now_us(s);

    if (!a->model_is_default && !(m && m->seen_us)) {
        pseg_err_set(&r->err, PSEG_R_MODEL_UNKNOWN, 0, PSEG_HERE,
                     "model \"%s\" is served by no worker", a->model);
        return;
    }
    e->now_unix_us = now;
    for (const mem_worker *w = s->workers; w; w = w->next)
        e->workers += w->expire_us >= now && strcmp(w->w.model, a->model) == 0;
    for (const mem_job *job = s->jobs; job; job = job->next) {
        e->waiting += job->in_line && strcmp(job->j.model, a->model) == 0;
        e->busy += !pseg_job_state_is_terminal(job->j.state) && !job->in_line &&
                   strcmp(job->j.model, a->model) == 0;
        e->is_known = e->is_known || (*a->request_id && strcmp(job->j.tenant, a->tenant) == 0 &&
                                      strcmp(job->j.request_id, a->request_id) == 0);
    }
    e->mean_us = m ? (int64_t)ceil(m->cost_us) : 0;
    e->cost_us = m ? (int64_t)ceil(cost_with(m, (double)a->phrases)) : 0;
    int64_t last = s->last_place + 1;
    e->ahead = ahead_of(s, m, a, (last > now ? last : now) - a->priority * HEAD_START_US,
                        e->mean_us ? m->cost_us : FIRST_COST_US);
}
