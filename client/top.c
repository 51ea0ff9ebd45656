/* pseg top: what serves, what waits and how fast it goes, refreshed in place. By the public API
 * alone: models and workers by ListModels, lines by EstimateJob, ends by WatchJobs. */
#include "client/client.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "pseg/v1/batch.pb-c.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_MODELS = 64, NAME_BYTES = 64 };

typedef struct args {
    cli cli;
    int64_t interval_ms, count;
    bool once;
} args;

typedef struct row {
    char name[NAME_BYTES];
    int64_t workers, waiting, running;
    double cost_s, backlog_s; /* negative: not known */
} row;

typedef struct view {
    row rows[MAX_MODELS];
    size_t n;
    int64_t succeeded, unsuccessful; /* the caller's ends since it was begun */
    double per_s;                    /* ends a second since the view before; negative: not known */
    int64_t mono_ms;
} view;

/* The thread that counts ends. A stream that breaks is begun anew at the next view. */
typedef struct counter {
    pseg_rpc_stream *stream;
    pthread_t thread;
    bool runs;
    _Atomic int64_t succeeded, unsuccessful;
    _Atomic bool is_over;
} counter;

static const pseg_conf_option top_options[] = {
    CLI_CONNECTION,
    {"timeout_ms", PSEG_CONF_INT, offsetof(args, cli.timeout_ms), "10s", .unit = "ms", .min = 1,
     .max = 86400000, .help = "for one call"},
    {"json", PSEG_CONF_BOOL, offsetof(args, cli.json), "false",
     .help = "print one JSON object a view"},
    {"interval_ms", PSEG_CONF_INT, offsetof(args, interval_ms), "2s", .unit = "ms", .min = 100,
     .max = 3600000, .help = "between two views"},
    {"count", PSEG_CONF_INT, offsetof(args, count), "0", .min = 0, .max = 1e9,
     .help = "so many views; 0: until interrupted"},
    {"once", PSEG_CONF_BOOL, offsetof(args, once), "false",
     .help = "one view, as a plain list: for scripts"},
    {0}};

/* ---- counting ends ---- */

static void *count_ends(void *arg)
{
    counter *c = arg;
    Pseg__V1__WatchJobsResponse *m;

    while ((m = (Pseg__V1__WatchJobsResponse *)pseg_rpc_stream_recv(c->stream))) {
        if (m->event && m->event->state == PSEG__V1__STATE__STATE_SUCCEEDED)
            atomic_fetch_add(&c->succeeded, 1);
        else if (m->event && m->event->state > PSEG__V1__STATE__STATE_SUCCEEDED)
            atomic_fetch_add(&c->unsuccessful, 1);
        pseg_rpc_message_free(&m->base);
    }
    atomic_store(&c->is_over, true);
    return NULL;
}

static void counter_end(counter *c)
{
    if (!c->runs)
        return;
    pseg_rpc_stream_cancel(c->stream);
    pthread_join(c->thread, NULL);
    pseg_rpc_close(c->stream, NULL, NULL);
    c->runs = false;
}

/* Without it there is no rate, and nothing else is missing. */
static void counter_begin(counter *c, const cli *connection)
{
    Pseg__V1__WatchJobsRequest q = PSEG__V1__WATCH_JOBS_REQUEST__INIT;

    if (c->runs && !atomic_load(&c->is_over))
        return;
    counter_end(c);
    if (pseg_rpc_open(&c->stream, connection->channel, "/pseg.v1.BatchService/WatchJobs",
                      &pseg__v1__watch_jobs_response__descriptor, -1, NULL) != PSEG_OK)
        return;
    pseg_rpc_stream_send(c->stream, &q.base);
    pseg_rpc_stream_half_close(c->stream);
    atomic_store(&c->is_over, false);
    c->runs = pthread_create(&c->thread, NULL, count_ends, c) == 0;
    if (!c->runs) {
        pseg_rpc_stream_cancel(c->stream);
        pseg_rpc_close(c->stream, NULL, NULL);
    }
}

/* ---- looking ---- */

static double seconds_of(const Google__Protobuf__Duration *d)
{
    return d ? (double)d->seconds + d->nanos / 1e9 : -1;
}

/* model "": the server's default. */
static pseg_status look_at(view *v, cli *c, const char *model, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__EstimateJobRequest q = PSEG__V1__ESTIMATE_JOB_REQUEST__INIT;
    Pseg__V1__EstimateJobResponse *e = NULL;

    if (v->n == MAX_MODELS)
        return PSEG_OK;
    q.model = (char *)(uintptr_t)model;
    PSEG_TRY(cli_call((ProtobufCMessage **)&e, c, "EstimateJob", &q.base,
                      &pseg__v1__estimate_job_response__descriptor, c->timeout_ms, err));
    row *r = &v->rows[v->n++];
    snprintf(r->name, sizeof r->name, "%s", e->model);
    r->workers = e->workers;
    r->waiting = e->jobs_waiting;
    r->running = e->jobs_running;
    r->cost_s = seconds_of(e->compute_cost);
    r->backlog_s = r->cost_s >= 0 && r->workers > 0
                       ? (double)(r->waiting + r->running) * r->cost_s / (double)r->workers
                       : -1;
out:
    if (e)
        pseg_rpc_message_free(&e->base);
    return rc;
}

static pseg_status look(view *v, cli *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__ListModelsRequest q = PSEG__V1__LIST_MODELS_REQUEST__INIT;
    Pseg__V1__ListModelsResponse *models = NULL;

    PSEG_TRY(cli_call((ProtobufCMessage **)&models, c, "ListModels", &q.base,
                      &pseg__v1__list_models_response__descriptor, c->timeout_ms, err));
    PSEG_TRY(look_at(v, c, "", err));
    for (size_t i = 0; i < models->n_models; i++) {
        bool is_there = false; /* a model is listed once for each digest */
        for (size_t k = 0; k < v->n; k++)
            is_there = is_there || strcmp(v->rows[k].name, models->models[i]->name) == 0;
        if (!is_there)
            PSEG_TRY(look_at(v, c, models->models[i]->name, err));
    }
out:
    if (models)
        pseg_rpc_message_free(&models->base);
    return rc;
}

/* ---- showing ---- */

static void show_json(const view *v)
{
    json_t *j = json_object(), *list = json_array();

    for (size_t i = 0; i < v->n; i++) {
        const row *r = &v->rows[i];
        json_t *m = json_pack("{s:o, s:I, s:I, s:I}", "name", json_text(r->name), "workers",
                              (json_int_t)r->workers, "waiting", (json_int_t)r->waiting, "running",
                              (json_int_t)r->running);
        if (r->cost_s >= 0)
            json_object_set_new(m, "cost_s", json_real(r->cost_s));
        if (r->backlog_s >= 0)
            json_object_set_new(m, "backlog_s", json_real(r->backlog_s));
        json_array_append_new(list, m);
    }
    json_object_set_new(j, "models", list);
    if (v->per_s >= 0) {
        json_object_set_new(j, "succeeded", json_integer(v->succeeded));
        json_object_set_new(j, "unsuccessful", json_integer(v->unsuccessful));
        json_object_set_new(j, "ended_per_s", json_real(v->per_s));
    }
    json_dumpf(j, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(7));
    putchar('\n');
    json_decref(j);
}

static void show_lines(const view *v, const char *server)
{
    printf("pseg top  %s", server);
    if (v->per_s >= 0)
        printf("  yours: %.1f ended/s, %lld succeeded, %lld not", v->per_s, (long long)v->succeeded,
               (long long)v->unsuccessful);
    printf("\n%-24s %8s %9s %9s %10s %10s\n", "model", "workers", "waiting", "running", "s a job",
           "backlog s");
    for (size_t i = 0; i < v->n; i++) {
        const row *r = &v->rows[i];
        char cost[24] = "-", backlog[24] = "-";
        if (r->cost_s >= 0)
            snprintf(cost, sizeof cost, "%.3f", r->cost_s);
        if (r->backlog_s >= 0)
            snprintf(backlog, sizeof backlog, "%.1f", r->backlog_s);
        printf("%-24s %8lld %9lld %9lld %10s %10s\n", r->name, (long long)r->workers,
               (long long)r->waiting, (long long)r->running, cost, backlog);
    }
}

static pseg_status run_views(args *a, counter *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    view before = {0};
    bool in_place = !a->cli.json && !a->once && isatty(STDOUT_FILENO);
    int64_t views = a->once ? 1 : a->count;

    for (int64_t i = 0; (views == 0 || i < views) && !ferror(stdout); i++) {
        view v = {.per_s = -1};
        if (i > 0)
            poll(NULL, 0, (int)a->interval_ms);
        if (!a->once)
            counter_begin(c, &a->cli);
        PSEG_TRY(look(&v, &a->cli, err));
        v.mono_ms = pseg_clock_mono_ms();
        v.succeeded = atomic_load(&c->succeeded);
        v.unsuccessful = atomic_load(&c->unsuccessful);
        if (i > 0 && v.mono_ms > before.mono_ms)
            v.per_s =
                (double)(v.succeeded + v.unsuccessful - before.succeeded - before.unsuccessful) *
                1e3 / (double)(v.mono_ms - before.mono_ms);
        before = v;
        if (in_place)
            printf("\033[H\033[J");
        if (a->cli.json)
            show_json(&v);
        else
            show_lines(&v, a->cli.server);
        fflush(stdout);
        a->cli.has_printed = true;
    }
out:
    return rc;
}

static int top_run(const command *self, int argc, char **argv)
{
    args a = {0};
    counter c = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    if (!cli_begin(&conf, &a, self, top_options, argc, argv, &status))
        return status;
    pseg_status rc = cli_dial(&a.cli, &err);
    if (rc == PSEG_OK)
        rc = run_views(&a, &c, &err);
    counter_end(&c);
    if (rc != PSEG_OK)
        status = cli_fail(&a.cli, &err);
    cli_end(&a.cli, conf);
    return status;
}

const command top_command = {
    "top",
    {"pseg top", "[--interval-ms T] [--once] [--json]",
     "Shows models, their workers and lines, and how fast your jobs end.\n"
     "Backlog is how long the workers of now need for what waits and runs. With --json one object "
     "a\nline for each view.",
     "pseg top\npseg top --once --json", CLI_AFTER},
    0,
    top_run};
