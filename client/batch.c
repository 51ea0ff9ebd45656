/* pseg batch: a manifest of images through the service, and what became of each into a folder. */
#include "client/batch_run.h"

#include "client/batch/json.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/job/job.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct args {
    cli cli;
    pseg_conf_list prompts;
    const char *out, *input, *format, *images, *model;
    double threshold;
    int64_t priority, ttl_ms, patience_ms;
    bool skip_held, progress, cancel;
    bool is_done; /* nothing is left to go on with */
} args;

static const pseg_conf_option options[] = {
    CLI_CONNECTION,
    {"timeout_ms", PSEG_CONF_INT, offsetof(args, cli.timeout_ms), "5m", .unit = "ms", .min = 1,
     .max = 86400000, .help = "for one call, such as an upload"},
    {"json", PSEG_CONF_BOOL, offsetof(args, cli.json), "false", .help = "print JSON"},
    {"out", PSEG_CONF_STRING, offsetof(args, out), NULL, .unit = "DIR", .letter = 'o',
     .help = "folder for results, failures, and what it takes to go on"},
    {"prompt", PSEG_CONF_LIST, offsetof(args, prompts), NULL, .unit = "TEXT", .letter = 'p',
     .help = "what to find where the manifest does not say; may be given again"},
    {"input", PSEG_CONF_STRING, offsetof(args, input), "auto", .unit = "FORM",
     .help = "auto (by the name), jsonl, csv, tsv, coco or images"},
    {"format", PSEG_CONF_STRING, offsetof(args, format), "jsonl", .unit = "FORM",
     .help = "results as jsonl (COCO's RLE), coco (results JSON) or png"},
    {"images", PSEG_CONF_STRING, offsetof(args, images), NULL, .unit = "DIR",
     .help = "where a manifest's images lie; else beside it"},
    {"model", PSEG_CONF_STRING, offsetof(args, model), "", .unit = "NAME",
     .help = "model; empty: the server's default"},
    {"threshold", PSEG_CONF_REAL, offsetof(args, threshold), "0.5", .min = 1e-6, .max = 0.999999,
     .help = "probability above which a pixel counts"},
    {"priority", PSEG_CONF_INT, offsetof(args, priority), "0", .min = -10, .max = 10,
     .help = "among the tenant's own jobs; 2 goes ahead of those two minutes older"},
    {"ttl_ms", PSEG_CONF_INT, offsetof(args, ttl_ms), "0", .unit = "ms", .min = 0, .max = 604800000,
     .help = "how long results are kept by the server; 0: its default"},
    {"skip_held", PSEG_CONF_BOOL, offsetof(args, skip_held), "false",
     .help = "ask of every image whether the server holds it; else where that has paid"},
    {"patience_ms", PSEG_CONF_INT, offsetof(args, patience_ms), "10m", .unit = "ms", .min = 0,
     .max = 86400000, .help = "how long a server that cannot be reached is tried again"},
    {"progress", PSEG_CONF_BOOL, offsetof(args, progress), "false",
     .help = "show progress also where standard error is no terminal"},
    {"cancel", PSEG_CONF_BOOL, offsetof(args, cancel), "false",
     .help = "end the batch of --out: what has not ended is cancelled, what is done stays"},
    {0}};

/* ---- what the command is ---- */

/* Where relative paths begin; absolute, so that another working folder is told from another batch.
 */
static pseg_status find_base(char out[PATH_MAX], const args *a, pseg_conf *conf, batch_form form,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *first = pseg_conf_arg(conf, 0);
    char parent[PATH_MAX] = ".";

    if (form != BATCH_IMAGES && a->images) {
        snprintf(parent, sizeof parent, "%s", a->images);
    } else if (form != BATCH_IMAGES && strchr(first, '/')) {
        snprintf(parent, sizeof parent, "%s", first);
        parent[strrchr(first, '/') - first + 1] = '\0';
    }
    if (!realpath(parent, out))
        PSEG_FAIL(errno == ENOENT ? PSEG_R_FILE_NOT_FOUND : PSEG_R_FILE_IO, errno,
                  "cannot find folder %s: %s", parent, strerror(errno));
out:
    return rc;
}

static json_t *texts_of(const char *const *items, size_t n)
{
    json_t *list = json_array();

    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_text(items[i]));
    return list;
}

/* Whatever would make the same items others, or their results. */
static json_t *facts_of(const args *a, const batch_source *source, const char *base)
{
    pseg_file_id id = {0};

    /* A folder changes with what is written beside; its plan is what counts. */
    if (source->n_names == 1 && batch_source_form(source) != BATCH_IMAGES &&
        strcmp(source->names[0], "-") != 0)
        (void)pseg_file_identify(&id, source->names[0], NULL);
    return json_pack("{s:o, s:I, s:I, s:s, s:o, s:s, s:o, s:o, s:f, s:I, s:I}", "manifest",
                     texts_of(source->names, source->n_names), "manifest's size",
                     (json_int_t)id.size, "manifest's time", (json_int_t)id.written_ns, "--input",
                     a->input, "--images", json_text(base), "--format", a->format, "--prompt",
                     texts_of(a->prompts.items, a->prompts.n), "--model", json_text(a->model),
                     "--threshold", a->threshold, "--priority", (json_int_t)a->priority, "--ttl-ms",
                     (json_int_t)a->ttl_ms);
}

static pseg_status check_args(const args *a, batch_format *format, batch_form *form, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!a->out)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--out DIR is needed (--help tells more)");
    if (!batch_format_parse(format, a->format))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--format \"%s\" is not jsonl, coco or png", a->format);
    if (!batch_form_parse(form, a->input))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--input \"%s\" is not auto, jsonl, csv, tsv, coco or images", a->input);
out:
    return rc;
}

/* ---- the batch at the server ---- */

static pseg_status call_batch(batch_run *r, const char *name, const ProtobufCMessage *q,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_patience patience;
    ProtobufCMessage *reply = NULL;
    char method[64];

    snprintf(method, sizeof method, "/pseg.v1.BatchService/%s", name);
    batch_patience_begin(&patience, r);
    while ((rc = pseg_rpc_unary(&reply, r->cli->channel, method, q, &pseg__v1__batch__descriptor,
                                r->cli->timeout_ms, err)) != PSEG_OK)
        PSEG_TRY(batch_patience_wait(&patience, -1, err));
    pseg_rpc_message_free(reply);
    batch_patience_reset(&patience);
out:
    return rc;
}

/* Made under a name that is kept already: a call whose answer was lost can be repeated. */
static pseg_status make_or_find(batch_run *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__CreateBatchRequest create = PSEG__V1__CREATE_BATCH_REQUEST__INIT;
    Pseg__V1__GetBatchRequest get = PSEG__V1__GET_BATCH_REQUEST__INIT;
    Google__Protobuf__Duration ttl = GOOGLE__PROTOBUF__DURATION__INIT;

    if (r->state->is_made) {
        get.name = r->state->batch;
        rc = call_batch(r, "GetBatch", &get.base, err);
        if (rc == PSEG_ENOTFOUND)
            pseg_err_prefix(err,
                            "the server has lost what %s was to fetch; begin in another folder",
                            batch_state_folder(r->state));
        goto out;
    }
    create.batch_id = r->state->batch + strlen("batches/");
    ttl.seconds = r->ttl_ms / 1000;
    if (r->ttl_ms)
        create.ttl = &ttl;
    PSEG_TRY(call_batch(r, "CreateBatch", &create.base, err));
    r->state->is_made = true;
    PSEG_TRY(batch_state_save(r->state, err));
out:
    return rc;
}

/* ---- beginning, and going on ---- */

static pseg_status begin(batch_state *s, const batch_source *source, json_t *facts, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_plan *plan = NULL;
    char id[PSEG_JOB_ID_LEN + 1];

    PSEG_TRY(batch_plan_make(batch_state_folder(s), source, err));
    PSEG_TRY(batch_plan_open(&plan, batch_state_folder(s), err));
    PSEG_TRY(pseg_job_new_id(id, err));
    pseg_free(s->batch);
    s->batch = pseg_asprintf("batches/%s", id);
    if (!s->batch)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    s->of = json_incref(facts);
    s->items = batch_plan_items(plan);
    s->begun_unix_us = pseg_clock_unix_us();
    PSEG_TRY(batch_state_save(s, err));
out:
    batch_plan_close(plan);
    return rc;
}

/* ---- the end ---- */

static pseg_status print_summary(args *a, const batch_state *s, batch_format format, double seconds,
                                 pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *results = batch_output_path(a->out, format),
         *failures = pseg_path_join(a->out, "failures.jsonl");
    const char *reason;
    json_t *count;

    if (!results || !failures)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    if (a->cli.json) {
        print_json(&a->cli,
                   json_pack("{s:s, s:I, s:I, s:I, s:O, s:o, s:o, s:b, s:f}", "batch", s->batch,
                             "items", (json_int_t)s->items, "succeeded", (json_int_t)s->succeeded,
                             "failed", (json_int_t)s->failed, "reasons", s->reasons, "results",
                             json_text(results), "failures", json_text(failures), "finished",
                             (int)s->is_finished, "seconds", seconds));
        goto out;
    }
    printf("results  %s%s\nfailures %s\n%llu items: %llu succeeded, %llu failed\n", results,
           s->is_finished || format != BATCH_COCO_RESULTS ? "" : ".part", failures,
           (unsigned long long)s->items, (unsigned long long)s->succeeded,
           (unsigned long long)s->failed);
    json_object_foreach(s->reasons, reason, count)
        printf("  %-26s %lld\n", reason, (long long)json_integer_value(count));
out:
    pseg_free(results);
    pseg_free(failures);
    return rc;
}

static pseg_status finish(batch_run *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_state *s = r->state;
    uint64_t told = s->succeeded + s->failed;

    /* Sealed short of its end: somebody cancelled it. */
    if (told < s->items && r->sent_end == told + 1)
        PSEG_FAIL(PSEG_R_JOB_CANCELLED, 0, "%s was cancelled: %llu of %llu items were never sent",
                  s->batch, (unsigned long long)(s->items - told), (unsigned long long)s->items);
    if (told != s->items)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "the server told of %llu of %llu items",
                  (unsigned long long)told, (unsigned long long)s->items);
    PSEG_TRY(batch_output_finish(r->output, err));
    s->is_finished = true;
    PSEG_TRY(batch_state_save(s, err));
    batch_plan_remove(batch_state_folder(s));
    batch_told_remove(batch_state_folder(s));
out:
    return rc;
}

/* From where the state says, to the end or a signal. */
static pseg_status go(args *a, batch_state *s, batch_format format, const char *base, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_plan *plan = NULL;
    batch_run r = {.cli = &a->cli,
                   .base = base,
                   .name = s->batch,
                   .model = a->model,
                   .threshold = a->threshold,
                   .priority = a->priority,
                   .ttl_ms = a->ttl_ms,
                   .skip_held = a->skip_held,
                   .patience_ms = a->patience_ms,
                   .format = format,
                   .state = s,
                   .succeeded = s->succeeded,
                   .failed = s->failed};

    batch_run_init(&r);
    PSEG_TRY(batch_plan_open(&plan, batch_state_folder(s), err));
    r.plan = plan;
    r.n_items = batch_plan_items(plan);
    PSEG_TRY(batch_output_open(&r.output, a->out, format, &s->at, err));
    PSEG_TRY(
        batch_told_open(&r.told, batch_state_folder(s), r.n_items, s->succeeded + s->failed, err));
    PSEG_TRY(make_or_find(&r, err));
    PSEG_TRY(batch_attend(&r, a->progress, err));
    if (!batch_signal() || s->succeeded + s->failed == s->items)
        PSEG_TRY(finish(&r, err));
out:
    batch_output_close(r.output);
    batch_told_close(r.told);
    batch_plan_close(plan);
    batch_run_deinit(&r);
    return rc;
}

/* The batch of --out, without its manifest. */
static pseg_status cancel(args *a, batch_state *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_run r = {.cli = &a->cli, .state = s, .patience_ms = a->patience_ms};
    Pseg__V1__CancelBatchRequest q = PSEG__V1__CANCEL_BATCH_REQUEST__INIT;

    batch_run_init(&r);
    if (!s->exists || !s->is_made)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s holds no batch that was sent", a->out);
    q.name = s->batch;
    PSEG_TRY(call_batch(&r, "CancelBatch", &q.base, err));
    if (a->cli.json)
        print_json(&a->cli, json_pack("{s:s}", "cancelled", s->batch));
    else
        printf("%s is cancelled; the command that began it fetches what is done\n", s->batch);
out:
    batch_run_deinit(&r);
    return rc;
}

static pseg_status begin_or_go_on(args *a, pseg_conf *conf, batch_state *s, batch_source *source,
                                  char base[PATH_MAX], pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    json_t *facts = NULL;

    if (source->n_names == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "name a manifest, a folder or images (--help tells more)");
    PSEG_TRY(find_base(base, a, conf, batch_source_form(source), err));
    facts = facts_of(a, source, base);
    if (!facts)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    if (s->exists)
        PSEG_TRY(batch_state_check(s, facts, err));
    else
        PSEG_TRY(begin(s, source, facts, err));
out:
    json_decref(facts);
    return rc;
}

static pseg_status batch(args *a, pseg_conf *conf, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_source source = {.n_names = pseg_conf_n_args(conf), .prompts = a->prompts};
    const char **names = pseg_calloc(source.n_names + 1, sizeof *names);
    batch_format format = BATCH_RLE;
    batch_state *s = NULL;
    int64_t begin_us = pseg_clock_mono_us();
    char base[PATH_MAX];

    if (!names)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    for (size_t i = 0; i < source.n_names; i++)
        names[i] = pseg_conf_arg(conf, i);
    source.names = names;
    PSEG_TRY(check_args(a, &format, &source.form, err));
    PSEG_TRY(batch_state_open(&s, a->out, err));
    PSEG_TRY(cli_dial(&a->cli, err));
    if (a->cancel) {
        PSEG_TRY(cancel(a, s, err));
        goto out;
    }
    PSEG_TRY(begin_or_go_on(a, conf, s, &source, base, err));
    if (!s->is_finished)
        PSEG_TRY(go(a, s, format, base, err));
    PSEG_TRY(print_summary(a, s, format, (double)(pseg_clock_mono_us() - begin_us) / 1e6, err));
    a->is_done = s->is_finished;
    if (s->is_finished && s->failed)
        PSEG_FAIL(PSEG_R_JOB_FAILED, 0,
                  "%llu of %llu items failed; %s/failures.jsonl tells of each",
                  (unsigned long long)s->failed, (unsigned long long)s->items, a->out);
out:
    batch_state_close(s);
    pseg_free(names);
    return rc;
}

static int run(const command *self, int argc, char **argv)
{
    args a = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    if (!cli_begin(&conf, &a, self, options, argc, argv, &status))
        return status;
    if (batch(&a, conf, &err) != PSEG_OK)
        status = cli_fail(&a.cli, &err);
    cli_end(&a.cli, conf);
    if (batch_signal() && status == 0 && !a.is_done) {
        fflush(stdout);
        fprintf(stderr, "stopped; what was sent goes on, and the same command goes on from here\n");
        signal(batch_signal(), SIG_DFL);
        raise(batch_signal());
    }
    return status;
}

const command batch_command = {
    "batch",
    {"pseg batch",
     "MANIFEST --out DIR [--prompt TEXT ...]\nFOLDER|FILE|PATTERN ... --prompt TEXT --out "
     "DIR\n--out DIR --cancel",
     "Sends many images and writes what becomes of each into a folder.\n"
     "The manifest holds JSON lines, a table (CSV, TSV) or COCO's images. Stopped in whatever way, "
     "the "
     "same\ncommand goes on where it was, and each line is told once: in results.jsonl (or "
     "results.json) "
     "or in\nfailures.jsonl.",
     "pseg batch photos.jsonl --out found          # {\"image\": \"a.jpg\", \"prompts\": [\"a "
     "dog\"]}\n"
     "pseg batch 'photos/*.jpg' --prompt \"a dog\" --prompt \"the sky\" --out found --format png\n"
     "pseg batch instances_val2017.json --images val2017 --format coco --out found --json",
     CLI_AFTER},
    SIZE_MAX,
    run};
