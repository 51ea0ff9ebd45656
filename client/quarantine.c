/* pseg quarantine: jobs that failed at their last attempt, for those who run the service. */
#include "client/client.h"
#include "common/base/alloc.h"
#include "pseg/v1/admin.pb-c.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

typedef struct args {
    cli cli;
    int64_t page_size;
    const char *page_token;
} args;

/* Not --server and --key: an address and a key that a user's environment holds for his own jobs are
 * of no use here. */
static const pseg_conf_option options[] = {
    {"admin", PSEG_CONF_STRING, offsetof(args, cli.server), "127.0.0.1:7434", .unit = "ADDR",
     .help = "host:port or unix:/path of a scheduler's --admin-listen"},
    {"admin_key", PSEG_CONF_STRING, offsetof(args, cli.key), NULL, .unit = "TEXT",
     .is_secret = true, .help = "key of its --admin-keys; better as PSEG_ADMIN_KEY"},
    {"tls", PSEG_CONF_BOOL, offsetof(args, cli.tls), "false",
     .help = "encrypt, by the system's authorities"},
    {"ca", PSEG_CONF_STRING, offsetof(args, cli.ca), NULL, .unit = "FILE",
     .help = "encrypt, by these authorities (PEM)"},
    {"timeout_ms", PSEG_CONF_INT, offsetof(args, cli.timeout_ms), "30s", .unit = "ms", .min = 1,
     .max = 86400000, .help = "for the whole command"},
    {"page_size", PSEG_CONF_INT, offsetof(args, page_size), "50", .min = 1, .max = 100,
     .help = "list: how many"},
    {"page_token", PSEG_CONF_STRING, offsetof(args, page_token), "", .unit = "TEXT",
     .help = "list: where the last page ended"},
    {"json", PSEG_CONF_BOOL, offsetof(args, cli.json), "false", .help = "print JSON"},
    {0}};

static pseg_status call(ProtobufCMessage **reply, args *a, const char *method,
                        const ProtobufCMessage *q, const ProtobufCMessageDescriptor *type,
                        pseg_err *err)
{
    char path[96];

    snprintf(path, sizeof path, "/pseg.v1.AdminService/%s", method);
    return pseg_rpc_unary(reply, a->cli.channel, path, q, type, a->cli.timeout_ms, err);
}

static void time_text(char out[32], const Google__Protobuf__Timestamp *t)
{
    time_t seconds = t ? (time_t)t->seconds : 0;
    struct tm tm;

    out[0] = '\0';
    if (gmtime_r(&seconds, &tm))
        strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static json_t *json_of(const Pseg__V1__QuarantinedJob *j)
{
    char at[32];

    time_text(at, j->quarantine_time);
    json_t *o = json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:s}", "name", json_text(j->name),
                          "tenant", json_text(j->tenant), "request_id", json_text(j->request_id),
                          "model", json_text(j->model), "reason", json_text(j->reason), "message",
                          json_text(j->message), "attempts", (json_int_t)j->attempts,
                          "quarantine_time", at);
    if (j->evidence[0])
        json_object_set_new(o, "evidence", json_text(j->evidence));
    return o;
}

/* What a worker logged may hold anything, and a terminal obeys. */
static void print_lines(const char *s)
{
    for (; *s; s++)
        putchar((unsigned char)*s >= ' ' && *s != 0x7f ? *s : *s == '\n' || *s == '\t' ? *s : '?');
}

static pseg_status list(args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__ListQuarantinedJobsRequest q = PSEG__V1__LIST_QUARANTINED_JOBS_REQUEST__INIT;
    Pseg__V1__ListQuarantinedJobsResponse *r = NULL;
    json_t *jobs = json_array();
    char at[32];

    q.page_size = (int32_t)a->page_size;
    q.page_token = (char *)(uintptr_t)a->page_token;
    PSEG_TRY(call((ProtobufCMessage **)&r, a, "ListQuarantinedJobs", &q.base,
                  &pseg__v1__list_quarantined_jobs_response__descriptor, err));
    for (size_t i = 0; i < r->n_jobs; i++) {
        const Pseg__V1__QuarantinedJob *j = r->jobs[i];
        time_text(at, j->quarantine_time);
        json_array_append_new(jobs, json_of(j));
        if (a->cli.json)
            continue;
        printf("%s  %s  %s  %s, %lld attempts: ", j->name, at, j->tenant, j->reason,
               (long long)j->attempts);
        print_lines(j->message);
        putchar('\n');
    }
    if (a->cli.json)
        print_json(&a->cli, json_pack("{s:O, s:o}", "jobs", jobs, "next_page_token",
                                      json_text(r->next_page_token)));
    else if (r->next_page_token[0])
        printf("more: --page-token %s\n", r->next_page_token);
    else if (r->n_jobs == 0)
        printf("nothing is in quarantine\n");
out:
    if (r)
        pseg_rpc_message_free(&r->base);
    json_decref(jobs);
    return rc;
}

static pseg_status show(args *a, char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__GetQuarantinedJobRequest q = PSEG__V1__GET_QUARANTINED_JOB_REQUEST__INIT;
    Pseg__V1__QuarantinedJob *j = NULL;
    char at[32];

    q.name = name;
    PSEG_TRY(call((ProtobufCMessage **)&j, a, "GetQuarantinedJob", &q.base,
                  &pseg__v1__quarantined_job__descriptor, err));
    if (a->cli.json) {
        print_json(&a->cli, json_of(j));
        goto out;
    }
    time_text(at, j->quarantine_time);
    printf("%s\ntenant %s, request %s, model %s\n%s after %lld attempts, since %s\n", j->name,
           j->tenant, j->request_id[0] ? j->request_id : "without an id", j->model, j->reason,
           (long long)j->attempts, at);
    print_lines(j->message);
    printf("\n\n");
    print_lines(j->evidence);
out:
    if (j)
        pseg_rpc_message_free(&j->base);
    return rc;
}

static pseg_status requeue(args *a, char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__RequeueQuarantinedJobRequest q = PSEG__V1__REQUEUE_QUARANTINED_JOB_REQUEST__INIT;
    Pseg__V1__Job *job = NULL;

    q.name = name;
    PSEG_TRY(call((ProtobufCMessage **)&job, a, "RequeueQuarantinedJob", &q.base,
                  &pseg__v1__job__descriptor, err));
    if (a->cli.json)
        print_json(&a->cli, json_of_job(job));
    else
        puts(job->name);
out:
    if (job)
        pseg_rpc_message_free(&job->base);
    return rc;
}

static pseg_status drop(args *a, char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__DropQuarantinedJobRequest q = PSEG__V1__DROP_QUARANTINED_JOB_REQUEST__INIT;
    ProtobufCMessage *r = NULL;

    q.name = name;
    PSEG_TRY(call(&r, a, "DropQuarantinedJob", &q.base,
                  &pseg__v1__drop_quarantined_job_response__descriptor, err));
    if (a->cli.json)
        print_json(&a->cli, json_pack("{s:o}", "dropped", json_text(name)));
out:
    if (r)
        pseg_rpc_message_free(r);
    return rc;
}

static json_t *usage_json(const Pseg__V1__ListTenantLimitsResponse *r)
{
    json_t *usage = json_array();

    for (size_t i = 0; i < r->n_usage; i++) {
        const Pseg__V1__TenantUsage *u = r->usage[i];
        json_array_append_new(usage,
                              json_pack("{s:o, s:I, s:I, s:I}", "tenant", json_text(u->tenant),
                                        "jobs", (json_int_t)u->jobs, "bytes", (json_int_t)u->bytes,
                                        "batches", (json_int_t)u->batches));
    }
    return usage;
}

static void print_usage(const Pseg__V1__ListTenantLimitsResponse *r)
{
    for (size_t i = 0; i < r->n_usage; i++)
        printf("%s uses jobs=%lld bytes=%lld batches=%lld\n", r->usage[i]->tenant,
               (long long)r->usage[i]->jobs, (long long)r->usage[i]->bytes,
               (long long)r->usage[i]->batches);
}

static pseg_status limits(args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__ListTenantLimitsRequest q = PSEG__V1__LIST_TENANT_LIMITS_REQUEST__INIT;
    Pseg__V1__ListTenantLimitsResponse *r = NULL;
    json_t *tenants = json_array();

    q.with_usage = true;
    PSEG_TRY(call((ProtobufCMessage **)&r, a, "ListTenantLimits", &q.base,
                  &pseg__v1__list_tenant_limits_response__descriptor, err));
    for (size_t i = 0; i < r->n_tenants; i++) {
        const Pseg__V1__TenantLimits *t = r->tenants[i];
        json_array_append_new(
            tenants, json_pack("{s:o, s:I, s:I, s:I, s:I, s:I}", "tenant", json_text(t->tenant),
                               "weight", (json_int_t)t->weight, "jobs", (json_int_t)t->max_jobs,
                               "bytes", (json_int_t)t->max_bytes, "rate", (json_int_t)t->rate,
                               "burst", (json_int_t)t->burst));
        if (!a->cli.json)
            printf("%s weight=%lld jobs=%lld bytes=%lld rate=%lld burst=%lld\n", t->tenant,
                   (long long)t->weight, (long long)t->max_jobs, (long long)t->max_bytes,
                   (long long)t->rate, (long long)t->burst);
    }
    if (a->cli.json)
        print_json(&a->cli, json_pack("{s:O, s:o}", "tenants", tenants, "usage", usage_json(r)));
    else if (r->n_tenants == 0)
        printf("no limits\n");
    if (!a->cli.json)
        print_usage(r);
out:
    if (r)
        pseg_rpc_message_free(&r->base);
    json_decref(tenants);
    return rc;
}

static pseg_status act(args *a, const pseg_conf *conf, pseg_err *err)
{
    static const struct {
        const char *word;
        pseg_status (*f)(args *a, char *name, pseg_err *err);
    } acts[] = {{"show", show}, {"requeue", requeue}, {"drop", drop}};
    pseg_status rc = PSEG_OK;
    const char *word = pseg_conf_arg(conf, 0), *job = pseg_conf_arg(conf, 1);
    char name[64];

    if (word && !job && strcmp(word, "list") == 0)
        return list(a, err);
    if (word && !job && strcmp(word, "limits") == 0)
        return limits(a, err);
    for (size_t i = 0; word && i < sizeof acts / sizeof *acts; i++) {
        if (strcmp(word, acts[i].word) != 0)
            continue;
        if (!job)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "name one job: jobs/ID (`pseg quarantine list` shows them)");
        snprintf(name, sizeof name, "%s%s", strncmp(job, "jobs/", 5) == 0 ? "" : "jobs/", job);
        return acts[i].f(a, name, err);
    }
    PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
              "say list, limits, show JOB, requeue JOB or drop JOB (--help tells more)");
out:
    return rc;
}

static int quarantine_run(const command *self, int argc, char **argv)
{
    args a = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    if (!cli_begin(&conf, &a, self, options, argc, argv, &status))
        return status;
    pseg_status rc = cli_dial(&a.cli, &err);
    if (rc == PSEG_OK)
        rc = act(&a, conf, &err);
    if (rc != PSEG_OK)
        status = cli_fail(&a.cli, &err);
    cli_end(&a.cli, conf);
    return status;
}

const command quarantine_command = {
    "quarantine",
    {"pseg quarantine", "list | show JOB | requeue JOB | drop JOB | limits [--admin ADDR]",
     "Shows and settles jobs that failed at their last attempt.\n"
     "For those who run the service: list them, show one with its evidence, submit its work anew\n"
     "(requeue), or let it go (drop). limits shows what tenants may have, and use.",
     "pseg quarantine list --admin unix:/run/pseg-scheduler/admin.sock", CLI_AFTER},
    2,
    quarantine_run};
