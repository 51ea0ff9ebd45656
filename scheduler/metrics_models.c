#include "scheduler/metrics_models.h"
#include "common/base/alloc.h"

#include <stdatomic.h>
#include <string.h>

enum { MAX_MODELS = 64, MAX_NAME = 64 };

typedef struct model {
    char name[MAX_NAME];
    pseg_series *backlog, *cost, *workers;
    pseg_model_metrics *of;
} model;

struct pseg_model_metrics {
    pseg_metric *backlog, *cost, *workers;
    pseg_queue *queue;
    model models[MAX_MODELS]; /* touched on the queue's thread only */
    size_t n_models;
    _Atomic int n_asked; /* answers that are still to come */
};

static const pseg_metric_desc backlog = {"pseg_backlog_compute_seconds",
                                         "Compute-time of the jobs that wait or run.",
                                         PSEG_METRIC_GAUGE,
                                         {"model"}},
                              cost = {"pseg_job_compute_seconds",
                                      "Mean compute-time of a job; 0 until one has told.",
                                      PSEG_METRIC_GAUGE,
                                      {"model"}},
                              workers = {
                                  "pseg_workers", "Live workers.", PSEG_METRIC_GAUGE, {"model"}};

pseg_status pseg_model_metrics_new(pseg_model_metrics **out, pseg_metrics *registry, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_model_metrics *m = pseg_calloc(1, sizeof *m);

    *out = m;
    if (!m)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for metrics");
    m->backlog = pseg_metrics_add(registry, &backlog);
    m->cost = pseg_metrics_add(registry, &cost);
    m->workers = pseg_metrics_add(registry, &workers);
out:
    return rc;
}

void pseg_model_metrics_free(pseg_model_metrics *m)
{
    pseg_free(m);
}

static void know(pseg_model_metrics *m, const char *name)
{
    size_t len = strlen(name);

    for (size_t i = 0; i < m->n_models; i++)
        if (strcmp(m->models[i].name, name) == 0)
            return;
    if (m->n_models == MAX_MODELS || len >= MAX_NAME)
        return;
    model *x = &m->models[m->n_models++];
    memcpy(x->name, name, len + 1);
    x->backlog = pseg_metric_with(m->backlog, &name);
    x->cost = pseg_metric_with(m->cost, &name);
    x->workers = pseg_metric_with(m->workers, &name);
    x->of = m;
}

static void backlog_known(void *ud, pseg_queue_reply *r)
{
    model *x = ud;
    const pseg_queue_backlog *b = &r->backlog;

    if (r->err.code == PSEG_OK) {
        pseg_series_set(x->backlog, (double)b->live * (double)b->cost_us / 1e6);
        pseg_series_set(x->cost, (double)b->cost_us / 1e6);
        pseg_series_set(x->workers, (double)b->workers);
    }
    pseg_queue_reply_free(r);
    atomic_fetch_sub(&x->of->n_asked, 1);
}

static void workers_known(void *ud, pseg_queue_reply *r)
{
    pseg_model_metrics *m = ud;

    for (size_t i = 0; i < r->n_workers; i++)
        know(m, r->workers[i].model);
    if (r->err.code == PSEG_OK)
        for (size_t i = 0; i < m->n_models; i++) {
            atomic_fetch_add(&m->n_asked, 1);
            pseg_queue_get_backlog(m->queue, m->models[i].name, 0, backlog_known, &m->models[i]);
        }
    pseg_queue_reply_free(r);
    atomic_fetch_sub(&m->n_asked, 1);
}

void pseg_model_metrics_tick(pseg_model_metrics *m, pseg_queue *q)
{
    int none = 0;

    if (!atomic_compare_exchange_strong(&m->n_asked, &none, 1))
        return;
    m->queue = q;
    pseg_queue_workers(q, workers_known, m);
}
