#include "worker/apps/worker_metrics.h"
#include "common/base/alloc.h"
#include "common/metrics/http.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct pseg_worker_metrics {
    pseg_metrics *registry;
    pseg_metrics_http *http;
    pseg_metric *info, *jobs, *stages, *prompts, *device_up, *device_jobs, *redis_up;
    pseg_series *held, *oldest, *n_prompts, *batch_size, *per_encode;
    const char *id;
    pthread_mutex_t mu; /* of w: it must not be stopped while it is asked */
    pseg_worker *w;
    const pseg_engine
        *engine; /* stands before the worker's threads do, and they read it unlocked */
};

static const double stage_seconds[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                       0.5,    1,     2.5,    5,     10,   30,    60,   300};
static const double prompt_counts[] = {1, 2, 4, 8, 16, 32, 64};

static const pseg_metric_desc
    info = {"pseg_worker_info",
            "Always 1: which model this worker runs, and on what; one of each device.",
            PSEG_METRIC_GAUGE,
            {"worker", "model", "digest", "device"}},
    device_up = {"pseg_worker_device_up",
                 "1 while the device takes jobs, 0 once it has failed.",
                 PSEG_METRIC_GAUGE,
                 {"device"}},
    device_jobs = {"pseg_worker_device_jobs_total",
                   "Jobs that went to the device, each attempt of this worker.",
                   PSEG_METRIC_COUNTER,
                   {"device"}},
    jobs = {"pseg_worker_jobs_total",
            "Jobs that this worker ended: published, failed (by reason), "
            "released, or lost to another worker.",
            PSEG_METRIC_COUNTER,
            {"outcome", "reason"}},
    stages = {"pseg_stage_duration_seconds",
              "Time of each stage of the jobs that ended here.",
              PSEG_METRIC_HISTOGRAM,
              {"stage"},
              stage_seconds,
              sizeof stage_seconds / sizeof *stage_seconds},
    prompts = {"pseg_prompts_per_job", "Phrases of the jobs published.",
               PSEG_METRIC_HISTOGRAM,  {NULL},
               prompt_counts,          sizeof prompt_counts / sizeof *prompt_counts},
    batches = {"pseg_batch_size",     "Jobs that went to the device together, of each pass.",
               PSEG_METRIC_HISTOGRAM, {NULL},
               prompt_counts,         sizeof prompt_counts / sizeof *prompt_counts},
    per_encode = {"pseg_prompts_per_encode",
                  "Phrases decoded in the pass in which their image was encoded, of "
                  "each image encoded; equal ones count once.",
                  PSEG_METRIC_HISTOGRAM,
                  {NULL},
                  prompt_counts,
                  sizeof prompt_counts / sizeof *prompt_counts},
    held = {"pseg_worker_jobs_held", "Jobs claimed and not ended yet.", PSEG_METRIC_GAUGE},
    oldest = {"pseg_worker_oldest_job_seconds",
              "Since the job held longest was claimed; 0: none is held.", PSEG_METRIC_GAUGE},
    redis_up = {"pseg_redis_up",
                "1 while Redis answers, by part of the queue.",
                PSEG_METRIC_GAUGE,
                {"part"}};

/* Before the worker is there nothing is known of parts. */
static void measure_redis(pseg_worker_metrics *m)
{
    char part[8];

    for (size_t i = 0; i < (m->w ? pseg_worker_n_parts(m->w) : 1); i++) {
        snprintf(part, sizeof part, "%zu", i);
        pseg_series_set(pseg_metric_with(m->redis_up, (const char *[]){part}),
                        m->w && pseg_worker_reaches(m->w, i));
    }
}

static void measure(void *ud)
{
    pseg_worker_metrics *m = ud;

    pthread_mutex_lock(&m->mu);
    pseg_series_set(m->held, m->w ? (double)pseg_worker_n_held(m->w) : 0);
    pseg_series_set(m->oldest, m->w ? (double)pseg_worker_oldest_us(m->w) / 1e6 : 0);
    measure_redis(m);
    for (size_t i = 0; m->w && i < pseg_engine_n_devices(m->engine); i++) {
        const char *name = pseg_engine_device(m->engine, i);
        pseg_series_set(pseg_metric_with(m->device_up, &name), !pseg_worker_is_out(m->w, i));
    }
    pthread_mutex_unlock(&m->mu);
}

static bool is_live(void *ud)
{
    pseg_worker_metrics *m = ud;

    pthread_mutex_lock(&m->mu);
    bool live = !m->w || !pseg_worker_has_failed(m->w);
    pthread_mutex_unlock(&m->mu);
    return live;
}

static bool is_ready(void *ud)
{
    pseg_worker_metrics *m = ud;

    pthread_mutex_lock(&m->mu);
    bool ready = m->w && pseg_worker_is_connected(m->w) && !pseg_worker_has_failed(m->w);
    pthread_mutex_unlock(&m->mu);
    return ready;
}

pseg_status pseg_worker_metrics_new(pseg_worker_metrics **out, const pseg_worker_metrics_options *o,
                                    pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_worker_metrics *m = pseg_calloc(1, sizeof *m);
    int port = 0;

    *out = NULL;
    if (!m)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for metrics");
    pthread_mutex_init(&m->mu, NULL);
    m->id = o->worker;
    PSEG_TRY(pseg_metrics_new(&m->registry, err));
    m->info = pseg_metrics_add(m->registry, &info);
    m->device_up = pseg_metrics_add(m->registry, &device_up);
    m->device_jobs = pseg_metrics_add(m->registry, &device_jobs);
    m->jobs = pseg_metrics_add(m->registry, &jobs);
    m->stages = pseg_metrics_add(m->registry, &stages);
    m->prompts = pseg_metrics_add(m->registry, &prompts);
    m->n_prompts = pseg_metric_with(m->prompts, NULL);
    m->batch_size = pseg_metric_with(pseg_metrics_add(m->registry, &batches), NULL);
    m->per_encode = pseg_metric_with(pseg_metrics_add(m->registry, &per_encode), NULL);
    m->held = pseg_metric_with(pseg_metrics_add(m->registry, &held), NULL);
    m->oldest = pseg_metric_with(pseg_metrics_add(m->registry, &oldest), NULL);
    m->redis_up = pseg_metrics_add(m->registry, &redis_up);
    pseg_metrics_before(m->registry, measure, m);
    pseg_metrics_add_process(m->registry, "pseg-worker");
    const pseg_metrics_probes probes = {is_live, is_ready, m};
    PSEG_TRY(pseg_metrics_http_start(&m->http, o->listen, m->registry, &probes, &port, err));
    PSEG_INFO(o->log, "worker", "metrics listen=%s port=%d", o->listen, port);
    *out = m;
    m = NULL;
out:
    pseg_worker_metrics_free(m);
    return rc;
}

pseg_metrics *pseg_worker_metrics_registry(pseg_worker_metrics *m)
{
    return m->registry;
}

void pseg_worker_metrics_free(pseg_worker_metrics *m)
{
    if (!m)
        return;
    pseg_metrics_http_stop(m->http);
    pseg_metrics_free(m->registry);
    pthread_mutex_destroy(&m->mu);
    pseg_free(m);
}

void pseg_worker_metrics_runs(pseg_worker_metrics *m, const pseg_engine *engine)
{
    if (!m)
        return;
    pthread_mutex_lock(&m->mu); /* the probes may be asked already */
    m->engine = engine;
    pthread_mutex_unlock(&m->mu);
    for (size_t i = 0; i < pseg_engine_n_devices(engine); i++)
        pseg_series_set(pseg_metric_with(m->info, (const char *[]){m->id, pseg_engine_name(engine),
                                                                   pseg_engine_digest(engine),
                                                                   pseg_engine_device(engine, i)}),
                        1);
}

void pseg_worker_metrics_watch(pseg_worker_metrics *m, pseg_worker *w)
{
    if (!m)
        return;
    pthread_mutex_lock(&m->mu);
    m->w = w;
    pthread_mutex_unlock(&m->mu);
}

void pseg_worker_metrics_on_ended(void *ud, const pseg_worker_ended *e)
{
    pseg_worker_metrics *m = ud;
    bool published = strcmp(e->outcome, "published") == 0;

    pseg_series_add(pseg_metric_with(m->jobs, (const char *[]){e->outcome, e->reason}), 1);
    if (published)
        pseg_series_observe(m->n_prompts, (double)e->work->n_prompts);
    for (size_t i = 0; i < e->work->n_stages; i++)
        pseg_series_observe(pseg_metric_with(m->stages, &e->work->stages[i].name),
                            (double)e->work->stages[i].us * 1e-6);
}

void pseg_worker_metrics_on_batch(void *ud, size_t device, size_t n_jobs,
                                  const pseg_engine_batch *done)
{
    pseg_worker_metrics *m = ud;
    const char *name = pseg_engine_device(m->engine, device);

    pseg_series_observe(m->batch_size, (double)n_jobs);
    pseg_series_add(pseg_metric_with(m->device_jobs, &name), (double)n_jobs);
    for (size_t i = 0; i < done->n_encodes; i++)
        pseg_series_observe(m->per_encode, (double)done->n_prompts[i]);
}
