/* pseg watch: a line for every change of a job, over restarts of the server. */
#include "client/client.h"
#include "common/base/clock.h"
#include "common/job/job.h"
#include "pseg/v1/batch.pb-c.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

enum { MAX_NAMES = 1000, NAME_BYTES = 80, FIRST_PAUSE_MS = 200, LONGEST_PAUSE_MS = 5000 };

typedef struct args {
    cli cli;
    const char *batch, *resume_token;
} args;

/* One watch, over as many calls as it takes. */
typedef struct watching {
    args *a;
    Pseg__V1__WatchJobsRequest q;
    char names[MAX_NAMES][NAME_BYTES], *list[MAX_NAMES];
    char batch[NAME_BYTES], token[NAME_BYTES];
    bool has_begun; /* the server has answered once */
    int64_t pause_ms;
} watching;

static const pseg_conf_option watch_options[] = {
    CLI_CONNECTION,
    {"batch", PSEG_CONF_STRING, offsetof(args, batch), NULL, .unit = "ID",
     .help = "the jobs of this batch"},
    {"resume_token", PSEG_CONF_STRING, offsetof(args, resume_token), "", .unit = "TOKEN",
     .help = "go on from here (a line of --json has it); empty: from now on"},
    {"timeout_ms", PSEG_CONF_INT, offsetof(args, cli.timeout_ms), "0", .unit = "ms", .min = 0,
     .max = 86400000, .help = "for the whole command; 0: none"},
    {"json", PSEG_CONF_BOOL, offsetof(args, cli.json), "false",
     .help = "print one JSON object a line"},
    {0}};

static const char *state_of(Pseg__V1__State state)
{
    return state == PSEG__V1__STATE__STATE_UNSPECIFIED ? "NOT_FOUND"
                                                       : pseg_job_state_name((pseg_job_state)state);
}

static void show_json(const Pseg__V1__WatchJobsResponse *m)
{
    const Pseg__V1__JobEvent *e = m->event;
    json_t *j = json_object();
    char time[32];

    if (e) {
        json_object_set_new(j, "name", json_text(e->name));
        json_object_set_new(j, "state", json_text(state_of(e->state)));
        if (e->time) {
            pseg_clock_format_unix_us(time, e->time->seconds * 1000000 + e->time->nanos / 1000);
            json_object_set_new(j, "time", json_text(time));
        }
        if (*e->worker)
            json_object_set_new(j, "worker", json_text(e->worker));
        if (*e->batch)
            json_object_set_new(j, "batch", json_text(e->batch));
    }
    if (m->gap)
        json_object_set_new(j, "gap", json_true());
    json_object_set_new(j, "resume_token", json_text(m->resume_token));
    json_dumpf(j, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(j);
}

static void show_line(const Pseg__V1__JobEvent *e)
{
    char time[32] = "-";

    if (e->time)
        pseg_clock_format_unix_us(time, e->time->seconds * 1000000 + e->time->nanos / 1000);
    printf("%s %s %s%s%s%s%s\n", time, e->name, state_of(e->state), *e->worker ? " worker=" : "",
           e->worker, *e->batch ? " batch=" : "", e->batch);
}

static void show(watching *w, const Pseg__V1__WatchJobsResponse *m)
{
    if (m->gap)
        fprintf(stderr, "events were lost before this one; `pseg list` tells the present\n");
    if (w->a->cli.json)
        show_json(m);
    else if (m->event)
        show_line(m->event);
    fflush(stdout);
    w->a->cli.has_printed = true;
}

/* One call: from the last token to its end. */
static pseg_status watch_once(watching *w, int64_t left_ms, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_rpc_stream *s = NULL;
    Pseg__V1__WatchJobsResponse *m;

    PSEG_TRY(pseg_rpc_open(&s, w->a->cli.channel, "/pseg.v1.BatchService/WatchJobs",
                           &pseg__v1__watch_jobs_response__descriptor, left_ms, err));
    pseg_rpc_stream_send(s, &w->q.base);
    pseg_rpc_stream_half_close(s);
    while (!ferror(stdout) && (m = (Pseg__V1__WatchJobsResponse *)pseg_rpc_stream_recv(s))) {
        w->has_begun = true;
        w->pause_ms = FIRST_PAUSE_MS;
        show(w, m);
        snprintf(w->token, sizeof w->token, "%s", m->resume_token);
        pseg_rpc_message_free(&m->base);
    }
    if (ferror(stdout)) { /* its reader has left */
        pseg_rpc_stream_cancel(s);
        pseg_rpc_close(s, NULL, NULL);
    } else {
        rc = pseg_rpc_close(s, NULL, err);
    }
out:
    return rc;
}

static bool goes_on(const watching *w, const pseg_err *err)
{
    return w->has_begun && pseg_reason_grpc(err->reason) == pseg_reason_grpc(PSEG_R_DRAINING);
}

static pseg_status watch_all(watching *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t timeout = w->a->cli.timeout_ms, begin = pseg_clock_mono_ms();

    for (;;) {
        int64_t left = timeout ? timeout - (pseg_clock_mono_ms() - begin) : -1;
        if (timeout && left <= 0)
            PSEG_FAIL(PSEG_R_DEADLINE_EXCEEDED, 0,
                      "watched for %lld ms, as --timeout-ms says; --resume-token %s goes on",
                      (long long)timeout, w->token);
        rc = watch_once(w, left, err);
        if (rc == PSEG_OK || !goes_on(w, err))
            break;
        fprintf(stderr, "%s; going on from there\n", err->msg);
        pseg_err_clear(err);
        int64_t pause = timeout && left < w->pause_ms ? left : w->pause_ms;
        poll(NULL, 0, (int)pause); /* a server that is not there is not to be pestered */
        w->pause_ms = 2 * w->pause_ms < LONGEST_PAUSE_MS ? 2 * w->pause_ms : LONGEST_PAUSE_MS;
    }
out:
    return rc;
}

static pseg_status begin(watching *w, pseg_conf *conf, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const args *a = w->a;

    pseg__v1__watch_jobs_request__init(&w->q);
    w->q.n_names = pseg_conf_n_args(conf);
    w->q.names = w->list;
    for (size_t i = 0; i < w->q.n_names; i++) {
        const char *name = pseg_conf_arg(conf, i);
        snprintf(w->names[i], NAME_BYTES, "%s%s", strncmp(name, "jobs/", 5) == 0 ? "" : "jobs/",
                 name);
        w->list[i] = w->names[i];
    }
    if (a->batch && w->q.n_names)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "name jobs or a --batch, not both");
    if (a->batch) {
        snprintf(w->batch, sizeof w->batch, "%s%s",
                 strncmp(a->batch, "batches/", 8) == 0 ? "" : "batches/", a->batch);
        w->q.batch = w->batch;
    }
    snprintf(w->token, sizeof w->token, "%s", a->resume_token);
    w->q.resume_token = w->token;
    w->pause_ms = FIRST_PAUSE_MS;
out:
    return rc;
}

static int watch_run(const command *self, int argc, char **argv)
{
    static watching w; /* the names are too much for a stack */
    args a = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    if (!cli_begin(&conf, &a, self, watch_options, argc, argv, &status))
        return status;
    w.a = &a;
    pseg_status rc = begin(&w, conf, &err);
    if (rc == PSEG_OK)
        rc = cli_dial(&a.cli, &err);
    if (rc == PSEG_OK)
        rc = watch_all(&w, &err);
    if (rc != PSEG_OK)
        status = cli_fail(&a.cli, &err);
    cli_end(&a.cli, conf);
    return status;
}

const command watch_command = {
    "watch",
    {"pseg watch", "[jobs/ID ... | --batch ID] [--json]",
     "Prints a line for each change of a job's state.\n"
     "Of the jobs that are named, until all have ended; of a batch; or of all. Goes on by itself\n"
     "when a server stops, as soon as it or another one answers.",
     "pseg watch\npseg watch jobs/ID jobs/ID --json", CLI_AFTER},
    MAX_NAMES,
    watch_run};
