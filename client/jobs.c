/* pseg submit, get, wait, cancel, list, models. */
#include "client/client.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/image/image.h"

#include <stdio.h>
#include <string.h>

typedef struct args {
    cli cli;
    job_args job;
    const char *out, *encoding, *page_token, *state;
    int64_t mask, page_size;
    double mask_threshold;
    bool all;
} args;

typedef pseg_status (*action)(args *a, pseg_conf *conf, pseg_err *err);

static int act(const command *self, const pseg_conf_option *table, action f, int argc, char **argv)
{
    args a = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    if (!cli_begin(&conf, &a, self, table, argc, argv, &status))
        return status;
    pseg_status rc = cli_dial(&a.cli, &err);
    if (rc == PSEG_OK)
        rc = f(&a, conf, &err);
    if (rc != PSEG_OK)
        status = cli_fail(&a.cli, &err);
    cli_end(&a.cli, conf);
    return status;
}

static void show(args *a, const Pseg__V1__Job *job)
{
    if (a->cli.json)
        print_json(&a->cli, json_of_job(job));
    else
        print_job(job);
}

/* The job named by the only argument; "ID" alone will do. */
static pseg_status job_name(char out[64], pseg_conf *conf, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *name = pseg_conf_arg(conf, 0);

    if (!name || pseg_conf_n_args(conf) != 1)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "name one job: jobs/ID (`pseg list` shows them)");
    snprintf(out, 64, "%s%s", strncmp(name, "jobs/", 5) == 0 ? "" : "jobs/", name);
out:
    return rc;
}

static pseg_status call_by_name(Pseg__V1__Job **job, args *a, const char *method, pseg_conf *conf,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    /* The three requests have the same form: a name. */
    Pseg__V1__GetJobRequest get = PSEG__V1__GET_JOB_REQUEST__INIT;
    Pseg__V1__CancelJobRequest cancel = PSEG__V1__CANCEL_JOB_REQUEST__INIT;
    char name[64];

    *job = NULL;
    PSEG_TRY(job_name(name, conf, err));
    get.name = cancel.name = name;
    PSEG_TRY(cli_call((ProtobufCMessage **)job, &a->cli, method,
                      strcmp(method, "GetJob") == 0 ? &get.base : &cancel.base,
                      &pseg__v1__job__descriptor, a->cli.timeout_ms, err));
out:
    return rc;
}

/* ---- submit ---- */

static const pseg_conf_option submit_options[] = {CLI_OPTIONS, JOB_OPTIONS(args, job), {0}};

static pseg_status submit(args *a, pseg_conf *conf, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
    Pseg__V1__Job *job = NULL;
    uint8_t *image = NULL;
    size_t len = 0;

    (void)conf;
    if (!a->job.image || a->job.prompts.n == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--image FILE and --prompt TEXT are needed (--help tells more)");
    PSEG_TRY(pseg_file_read(&image, &len, a->job.image, limits.max_bytes, err));
    PSEG_TRY(cli_create_job(&job, &a->cli, &a->job, image, len, err));
    if (a->cli.json)
        show(a, job);
    else
        puts(job->name);
out:
    if (job)
        pseg_rpc_message_free(&job->base);
    pseg_free(image);
    return rc;
}

static int submit_run(const command *self, int argc, char **argv)
{
    return act(self, submit_options, submit, argc, argv);
}

const command submit_command = {
    "submit",
    {"pseg submit", "--image FILE --prompt TEXT [--prompt TEXT ...]",
     "Sends a job and prints its name at once.",
     "pseg submit --image scene.png --prompt \"a star\" --label batch=7\npseg submit --image "
     "scene.png --prompt \"a star\" --request-id order-17   # safe to repeat",
     CLI_AFTER},
    0,
    submit_run};

/* ---- get ---- */

static const pseg_conf_option get_options[] = {
    CLI_OPTIONS,
    {"mask", PSEG_CONF_INT, offsetof(args, mask), "-1", .min = -1, .max = 1000,
     .help = "fetch the mask of this prompt (from 0)"},
    {"encoding", PSEG_CONF_STRING, offsetof(args, encoding), "png", .unit = "NAME",
     .help = "png, rle, bits, polygon or float16"},
    {"mask_threshold", PSEG_CONF_REAL, offsetof(args, mask_threshold), "0", .min = 0,
     .max = 0.999999, .help = "0: the job's own"},
    {"out", PSEG_CONF_STRING, offsetof(args, out), "-", .unit = "FILE", .letter = 'o',
     .help = "where the mask goes; -: standard output"},
    {0}};

static pseg_status encoding_of(Pseg__V1__MaskEncoding *out, const char *name, pseg_err *err)
{
    static const char *const names[] = {"png", "rle", "bits", "polygon", "float16"};
    pseg_status rc = PSEG_OK;

    for (int i = 0; i < 5; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (Pseg__V1__MaskEncoding)(i + 1);
            return PSEG_OK;
        }
    PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
              "--encoding \"%s\" is not png, rle, bits, polygon or float16", name);
out:
    return rc;
}

static pseg_status get(args *a, pseg_conf *conf, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__Job *job = NULL;
    Pseg__V1__MaskEncoding encoding = PSEG__V1__MASK_ENCODING__MASK_ENCODING_PNG;
    Pseg__V1__Mask head = PSEG__V1__MASK__INIT;
    uint8_t *data = NULL;
    size_t len;

    PSEG_TRY(encoding_of(&encoding, a->encoding, err));
    PSEG_TRY(call_by_name(&job, a, "GetJob", conf, err));
    if (a->mask < 0) {
        show(a, job);
        goto out;
    }
    PSEG_TRY(cli_fetch_mask(&data, &len, &head, &a->cli, job->name, (uint32_t)a->mask, encoding,
                            (float)a->mask_threshold, err));
    PSEG_TRY(pseg_file_write(a->out, data, len, err));
    if (strcmp(a->out, "-") != 0) {
        if (a->cli.json)
            print_json(&a->cli, json_pack("{s:o, s:I, s:i, s:i}", "file", json_text(a->out),
                                          "bytes", (json_int_t)len, "width", (int)head.width,
                                          "height", (int)head.height));
        else
            printf("%s: %zu bytes, %u x %u pixels\n", a->out, len, head.width, head.height);
    }
out:
    if (job)
        pseg_rpc_message_free(&job->base);
    pseg_free(data);
    return rc;
}

static int get_run(const command *self, int argc, char **argv)
{
    return act(self, get_options, get, argc, argv);
}

const command get_command = {
    "get",
    {"pseg get", "jobs/ID [--mask N] [--encoding NAME] [--out FILE]",
     "Shows a job as it is now, or fetches one of its masks.",
     "pseg get jobs/ID --json\npseg get jobs/ID --mask 0 --encoding rle --out mask.rle", CLI_AFTER},
    1,
    get_run};

/* ---- wait ---- */

static const pseg_conf_option plain_options[] = {CLI_OPTIONS, {0}};

static pseg_status wait_for(args *a, pseg_conf *conf, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__Job *job = NULL;
    char name[64];

    PSEG_TRY(job_name(name, conf, err));
    PSEG_TRY(cli_wait_job(&job, &a->cli, name, err));
    show(a, job);
    PSEG_TRY(cli_job_status(job, err));
out:
    if (job)
        pseg_rpc_message_free(&job->base);
    return rc;
}

static int wait_run(const command *self, int argc, char **argv)
{
    return act(self, plain_options, wait_for, argc, argv);
}

const command wait_command = {
    "wait",
    {"pseg wait", "jobs/ID",
     "Waits until a job has ended, and shows it. Status 5 if it did not succeed.",
     "pseg wait jobs/ID --timeout-ms 10m", CLI_AFTER},
    1,
    wait_run};

/* ---- cancel ---- */

static pseg_status cancel(args *a, pseg_conf *conf, pseg_err *err)
{
    Pseg__V1__Job *job = NULL;
    pseg_status rc = call_by_name(&job, a, "CancelJob", conf, err);

    if (rc == PSEG_OK)
        show(a, job);
    if (job)
        pseg_rpc_message_free(&job->base);
    return rc;
}

static int cancel_run(const command *self, int argc, char **argv)
{
    return act(self, plain_options, cancel, argc, argv);
}

const command cancel_command = {
    "cancel",
    {"pseg cancel", "jobs/ID",
     "Cancels a job: at once if it waits, before its next stage if it runs.", "pseg cancel jobs/ID",
     CLI_AFTER},
    1,
    cancel_run};

/* ---- list ---- */

static const pseg_conf_option list_options[] = {
    CLI_OPTIONS,
    {"state", PSEG_CONF_STRING, offsetof(args, state), "", .unit = "STATE",
     .help = "only QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED or EXPIRED"},
    {"page_size", PSEG_CONF_INT, offsetof(args, page_size), "50", .min = 1, .max = 1000,
     .help = "jobs per call"},
    {"page_token", PSEG_CONF_STRING, offsetof(args, page_token), "", .unit = "TOKEN",
     .help = "go on from here"},
    {"all", PSEG_CONF_BOOL, offsetof(args, all), "false", .help = "all pages"},
    {0}};

static pseg_status list(args *a, pseg_conf *conf, pseg_err *err)
{
    static const char *const names[] = {"",       "QUEUED",    "RUNNING", "SUCCEEDED",
                                        "FAILED", "CANCELLED", "EXPIRED"};
    pseg_status rc = PSEG_OK;
    Pseg__V1__ListJobsRequest q = PSEG__V1__LIST_JOBS_REQUEST__INIT;
    Pseg__V1__ListJobsResponse *page = NULL;
    Pseg__V1__State state = 0;
    json_t *jobs = json_array();
    char token[80];

    (void)conf;
    snprintf(token, sizeof token, "%s", a->page_token);
    for (int i = 1; i < 7; i++)
        if (strcmp(names[i], a->state) == 0)
            state = (Pseg__V1__State)i;
    if (*a->state && !state)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--state \"%s\" is not QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED or EXPIRED",
                  a->state);
    q.page_size = (int32_t)a->page_size;
    q.states = &state;
    q.n_states = state ? 1 : 0;
    do {
        q.page_token = token;
        PSEG_TRY(cli_call((ProtobufCMessage **)&page, &a->cli, "ListJobs", &q.base,
                          &pseg__v1__list_jobs_response__descriptor, a->cli.timeout_ms, err));
        for (size_t i = 0; i < page->n_jobs; i++) {
            if (a->cli.json)
                json_array_append_new(jobs, json_of_job(page->jobs[i]));
            else
                print_job(page->jobs[i]);
        }
        snprintf(token, sizeof token, "%s", page->next_page_token);
        pseg_rpc_message_free(&page->base);
        page = NULL;
    } while (a->all && *token && !ferror(stdout));
    if (a->cli.json)
        print_json(&a->cli,
                   json_pack("{s:O, s:o}", "jobs", jobs, "next_page_token", json_text(token)));
    else if (*token)
        printf("more: --page-token %s\n", token);
out:
    json_decref(jobs);
    return rc;
}

static int list_run(const command *self, int argc, char **argv)
{
    return act(self, list_options, list, argc, argv);
}

const command list_command = {"list",
                              {"pseg list", "[--state STATE] [--page-size N] [--all]",
                               "Lists jobs, newest first.",
                               "pseg list --state FAILED\npseg list --all --json", CLI_AFTER},
                              0,
                              list_run};

/* ---- models ---- */

static pseg_status models(args *a, pseg_conf *conf, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__ListModelsRequest q = PSEG__V1__LIST_MODELS_REQUEST__INIT;
    Pseg__V1__ListModelsResponse *r = NULL;
    json_t *list = json_array();

    (void)conf;
    PSEG_TRY(cli_call((ProtobufCMessage **)&r, &a->cli, "ListModels", &q.base,
                      &pseg__v1__list_models_response__descriptor, a->cli.timeout_ms, err));
    for (size_t i = 0; i < r->n_models; i++) {
        const Pseg__V1__Model *m = r->models[i];
        json_array_append_new(list, json_pack("{s:o, s:o, s:i, s:b}", "name", json_text(m->name),
                                              "digest", json_text(m->digest), "workers",
                                              (int)m->workers, "default", (int)m->is_default));
        if (!a->cli.json)
            printf("%s %.12s, %u worker%s%s\n", m->name, m->digest, m->workers,
                   m->workers == 1 ? "" : "s", m->is_default ? ", default" : "");
    }
    if (a->cli.json)
        print_json(&a->cli, json_pack("{s:O}", "models", list));
    else if (r->n_models == 0)
        printf("no worker is alive\n");
out:
    if (r)
        pseg_rpc_message_free(&r->base);
    json_decref(list);
    return rc;
}

static int models_run(const command *self, int argc, char **argv)
{
    return act(self, plain_options, models, argc, argv);
}

const command models_command = {"models",
                                {"pseg models", "[--json]",
                                 "Lists the models that live workers serve.", "pseg models",
                                 CLI_AFTER},
                                0,
                                models_run};
