#include "scheduler/metrics.h"
#include "common/base/alloc.h"
#include "common/metrics/http.h"
#include "scheduler/metrics_models.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { N_STATES = 4 };

struct pseg_scheduler_metrics {
    pseg_metrics *registry;
    pseg_metrics_http *http;
    pseg_model_metrics *models;
    pseg_metric *calls, *redis_up;
    pseg_series *submitted, *ended[N_STATES], *live, *leased, *delayed, *image_bytes;
    pseg_series *live_calls, *refused;
    _Atomic bool is_ready, asking;
};

/* From a read of a hash to a wait of a minute. */
static const double call_seconds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                      0.25,  0.5,    1,     2.5,  5,     10,   60};

static const pseg_metric_desc calls = {"pseg_rpc_duration_seconds",
                                       "Time of a call from its arrival to its status.",
                                       PSEG_METRIC_HISTOGRAM,
                                       {"method", "code"},
                                       call_seconds,
                                       sizeof call_seconds / sizeof *call_seconds},
                              refused = {"pseg_rpc_refused_total",
                                         "Calls refused: busy, unknown, malformed or not allowed.",
                                         PSEG_METRIC_COUNTER},
                              live_calls = {"pseg_rpc_live", "Calls under way.", PSEG_METRIC_GAUGE},
                              redis_up = {"pseg_redis_up",
                                          "1 while Redis answers, by part of the queue.",
                                          PSEG_METRIC_GAUGE,
                                          {"part"}},
                              submitted = {"pseg_jobs_submitted_total",
                                           "Jobs accepted by the queue since it was made, by all "
                                           "schedulers together.",
                                           PSEG_METRIC_COUNTER},
                              ended = {"pseg_jobs_terminal_total",
                                       "Jobs of the queue that ended, by all workers together.",
                                       PSEG_METRIC_COUNTER,
                                       {"state"}},
                              depth = {"pseg_queue_depth",
                                       "Jobs alive: waiting in line, running, or waiting for "
                                       "another attempt.",
                                       PSEG_METRIC_GAUGE,
                                       {"state"}},
                              bytes = {"pseg_queue_image_bytes",
                                       "Bytes of images that Redis holds.", PSEG_METRIC_GAUGE};

static bool is_ready(void *ud)
{
    pseg_scheduler_metrics *m = ud;

    return atomic_load(&m->is_ready);
}

static pseg_series *series(pseg_metrics *r, const pseg_metric_desc *d)
{
    return pseg_metric_with(pseg_metrics_add(r, d), NULL);
}

pseg_status pseg_scheduler_metrics_new(pseg_scheduler_metrics **out, const char *listen,
                                       const pseg_log *log, pseg_err *err)
{
    static const char *const states[N_STATES] = {"SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"};
    pseg_status rc = PSEG_OK;
    pseg_scheduler_metrics *m = pseg_calloc(1, sizeof *m);
    int port = 0;

    *out = NULL;
    if (!m)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for metrics");
    PSEG_TRY(pseg_metrics_new(&m->registry, err));
    m->calls = pseg_metrics_add(m->registry, &calls);
    m->refused = series(m->registry, &refused);
    m->live_calls = series(m->registry, &live_calls);
    m->redis_up = pseg_metrics_add(m->registry, &redis_up);
    m->submitted = series(m->registry, &submitted);
    pseg_metric *by_state = pseg_metrics_add(m->registry, &ended);
    for (int i = 0; i < N_STATES; i++)
        m->ended[i] = pseg_metric_with(by_state, &states[i]);
    by_state = pseg_metrics_add(m->registry, &depth);
    m->live = pseg_metric_with(by_state, (const char *[]){"queued"});
    m->leased = pseg_metric_with(by_state, (const char *[]){"running"});
    m->delayed = pseg_metric_with(by_state, (const char *[]){"delayed"});
    m->image_bytes = series(m->registry, &bytes);
    PSEG_TRY(pseg_model_metrics_new(&m->models, m->registry, err));
    pseg_metrics_add_process(m->registry, "pseg-scheduler");
    const pseg_metrics_probes probes = {.is_ready = is_ready, .ud = m};
    PSEG_TRY(pseg_metrics_http_start(&m->http, listen, m->registry, &probes, &port, err));
    PSEG_INFO(log, "scheduler", "metrics listen=%s port=%d", listen, port);
    *out = m;
    m = NULL;
out:
    pseg_scheduler_metrics_free(m);
    return rc;
}

pseg_metrics *pseg_scheduler_metrics_registry(pseg_scheduler_metrics *m)
{
    return m->registry;
}

void pseg_scheduler_metrics_free(pseg_scheduler_metrics *m)
{
    if (!m)
        return;
    pseg_metrics_http_stop(m->http);
    pseg_metrics_free(m->registry);
    pseg_model_metrics_free(m->models);
    pseg_free(m);
}

void pseg_scheduler_metrics_on_ended(void *ud, const pseg_rpc_ended *e)
{
    pseg_scheduler_metrics *m = ud;
    const char *method = strrchr(e->path, '/');
    const char *values[] = {method ? method + 1 : e->path, e->code};

    pseg_series_observe(pseg_metric_with(m->calls, values), (double)e->us * 1e-6);
}

static void counted(void *ud, pseg_queue_reply *r)
{
    pseg_scheduler_metrics *m = ud;
    const pseg_queue_stats *s = &r->stats;

    if (r->err.code == PSEG_OK) {
        const int64_t by_state[N_STATES] = {s->succeeded, s->failed, s->cancelled, s->expired};

        for (int i = 0; i < N_STATES; i++)
            pseg_series_set(m->ended[i], (double)by_state[i]);
        pseg_series_set(m->submitted, (double)s->submitted);
        pseg_series_set(m->live, (double)(s->live - s->leased - s->delayed));
        pseg_series_set(m->leased, (double)s->leased);
        pseg_series_set(m->delayed, (double)s->delayed);
        pseg_series_set(m->image_bytes, (double)s->image_bytes);
    }
    pseg_queue_reply_free(r);
    atomic_store(&m->asking, false);
}

void pseg_scheduler_metrics_tick(pseg_scheduler_metrics *m, pseg_queue *q, pseg_rpc_server *server,
                                 bool ready, int64_t silence_ms)
{
    pseg_rpc_stats s;
    char part[8];

    atomic_store(&m->is_ready, ready);
    for (size_t i = 0; i < pseg_queue_n_parts(q); i++) {
        snprintf(part, sizeof part, "%zu", i);
        pseg_series_set(pseg_metric_with(m->redis_up, (const char *[]){part}),
                        pseg_queue_part_silence_ms(q, i) < silence_ms);
    }
    pseg_rpc_server_stats(server, &s);
    pseg_series_set(m->live_calls, (double)s.live);
    pseg_series_set(m->refused, (double)s.refused);
    if (ready && !atomic_exchange(&m->asking, true))
        pseg_queue_get_stats(q, counted, m);
    if (ready)
        pseg_model_metrics_tick(m->models, q);
}
