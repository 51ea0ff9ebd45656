/* pseg-eval, run by users as `pseg eval`: a model on a data set, with figures, controls and a page.
 */
#include "worker/apps/eval.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "worker/apps/engine_options.h"
#include "worker/apps/program.h"
#include "worker/cl/quota.h"
#include "worker/eval/source_data.h"
#include "worker/eval/sweep.h"

#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct args {
    engine_args engine;
    const char *data, *format, *images, *split, *part, *out, *title, *tune, *tune_data, *compare,
        *log;
    double threshold, confidence;
    int64_t seed, replicates, batch, readers, case_px;
    bool shuffle, records, cases, json, quiet, verbose;
} args;

static const pseg_conf_option table[] = {
    {"data", PSEG_CONF_STRING, offsetof(args, data), NULL, "PATH",
     .help = "data set (file or folder), or scenes:FIRST-LAST, drawn by seed"},
    {"format", PSEG_CONF_STRING, offsetof(args, format), "auto", "NAME",
     .help = "auto, jsonl, parquet, coco or refcoco"},
    {"images", PSEG_CONF_STRING, offsetof(args, images), NULL, "DIR",
     .help = "folder of the image files, if they are not beside the annotations"},
    {"part", PSEG_CONF_STRING, offsetof(args, part), NULL, "NAME",
     .help = "the part that the data set itself names: val, testA ..."},
    {"split", PSEG_CONF_STRING, offsetof(args, split), "all", "SPEC",
     .help = "images: all, first:N, last:N, hash:10%, list:FILE, or `not` one of these"},
    {"out", PSEG_CONF_STRING, offsetof(args, out), "pseg-eval", "DIR",
     .help = "folder for report.html and report.json", .letter = 'o'},
    {"title", PSEG_CONF_STRING, offsetof(args, title), NULL, "TEXT", .help = "of the report"},
    {"threshold", PSEG_CONF_REAL, offsetof(args, threshold), "0", .min = 0, .max = 0.999999,
     .help = "probability above which a pixel counts; 0: the model's own"},
    {"shuffle", PSEG_CONF_BOOL, offsetof(args, shuffle), "true",
     .help = "the control with phrases of other images"},
    {"tune", PSEG_CONF_STRING, offsetof(args, tune), NULL, "SPEC",
     .help = "also try thresholds on these images, which must be others: a split, or scenes:A-B"},
    {"tune_data", PSEG_CONF_STRING, offsetof(args, tune_data), NULL, "PATH",
     .help = "of another data set than --data"},
    {"compare", PSEG_CONF_STRING, offsetof(args, compare), NULL, "FILE",
     .help = "report.json of another run with --records: differences, paired"},
    {"log", PSEG_CONF_STRING, offsetof(args, log), NULL, "FILE",
     .help = "log.jsonl of the training run, for learning curves"},
    {"records", PSEG_CONF_BOOL, offsetof(args, records), "false",
     .help = "also records.jsonl, one line a phrase"},
    {"cases", PSEG_CONF_BOOL, offsetof(args, cases), "true",
     .help = "pictures of best, median and worst cases in the page"},
    {"case_px", PSEG_CONF_INT, offsetof(args, case_px), "240", "px", .min = 16, .max = 1024,
     .help = "longest side of those pictures"},
    {"seed", PSEG_CONF_INT, offsetof(args, seed), "0", .min = 0, .max = 0x1p53,
     .help = "of the control's shuffling and of the bootstrap"},
    {"replicates", PSEG_CONF_INT, offsetof(args, replicates), "2000", "N", .min = 0, .max = 100000,
     .help = "of the bootstrap; 0: no intervals"},
    {"confidence", PSEG_CONF_REAL, offsetof(args, confidence), "0.95", .min = 0.5, .max = 0.9999,
     .help = "of the intervals"},
    {"batch", PSEG_CONF_INT, offsetof(args, batch), "8", "N", .min = 1, .max = 256,
     .help = "images of a pass of the device"},
    {"readers", PSEG_CONF_INT, offsetof(args, readers), "0", "N", .min = 0, .max = 64,
     .help = "threads that read images and count pixels; 0: as many as CPUs, at most 8"},
    ENGINE_OPTIONS(args, engine),
    {"json", PSEG_CONF_BOOL, offsetof(args, json), "false",
     .help = "print report.json in place of the summary"},
    {"quiet", PSEG_CONF_BOOL, offsetof(args, quiet), "false", .help = "no progress line",
     .letter = 'q'},
    {"verbose", PSEG_CONF_BOOL, offsetof(args, verbose), "false", .letter = 'v',
     .help = "log what happens"},
    {0}};

static const pseg_conf_about about = {
    .name = "pseg eval",
    .usage = "--data PATH [--split SPEC] [--model DIR] [--out DIR]\n"
             "--data scenes:FIRST-LAST [--model DIR] [--out DIR]",
    .what =
        "Scores a model on a data set, with controls and confidence intervals, as a page and as "
        "JSON.\n"
        "IoU is taken at the photo's own size for every phrase of every image. The same is done\n"
        "with the phrases of other images: a model that does not read scores as well with those.",
    .example =
        "pseg eval --data scenes:0-999 --out report       # the model in the box on held-out "
        "scenes\n"
        "pseg eval --data photos/annotations.jsonl --split last:46 --model DIR --out report\n"
        "pseg eval --data D --split last:46 --tune \"not last:46\" --records --out a\n"
        "pseg eval --data D --split last:46 --model OTHER --compare a/report.json --out b",
    .after = "docs/evaluation.md tells what the figures mean and how the files are read."};

static volatile sig_atomic_t is_stopped;

static void stop(int signal_number)
{
    (void)signal_number;
    is_stopped = 1;
}

static bool asks_to_stop(void *ud)
{
    (void)ud;
    return is_stopped;
}

/* Images to score or to tune on, opened. */
typedef struct subject {
    pseg_dataset *d;
    pseg_eval_source *source;
    pseg_eval_plan *plan;
} subject;

static void subject_close(subject *s)
{
    pseg_eval_plan_free(s->plan);
    pseg_eval_source_close(s->source);
    pseg_dataset_close(s->d);
}

/* Everything that lives as long as the program works. */
typedef struct session {
    const args *a;
    pseg_log log;
    pseg_engine_options engine;
    char *folder;
    pseg_cl *cl;
    pseg_model *model;
    unsigned readers;
    eval_faults faults;
    eval_progress progress;
    subject scored, tuned;
    pseg_eval_run *run, *tune_run;
    pseg_eval_analysis *analysis;
    pseg_eval_cases *cases;
    pseg_eval_curves *curves;
    pseg_eval_compared *other;
    char *command, *title;
} session;

static pseg_status open_data(subject *s, session *of, const char *path, const char *split,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const args *a = of->a;
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    pseg_data_selection chosen = {0};
    char what[256];

    o.images = a->images;
    o.split = a->part;
    o.report = eval_show_data_fault;
    o.report_ud = &of->faults;
    if (!pseg_data_format_parse(&o.format, a->format))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--format \"%s\" is not auto, jsonl, parquet, coco or refcoco", a->format);
    PSEG_TRY(pseg_dataset_open(&s->d, path, &o, err));
    PSEG_TRY(pseg_data_select(&chosen, s->d, split, err));
    const char *slash = strrchr(path, '/');
    snprintf(what, sizeof what, "%s%s%s%s%s", slash && slash[1] ? slash + 1 : path,
             a->part ? ", " : "", a->part ? a->part : "", strcmp(split, "all") == 0 ? "" : ", ",
             strcmp(split, "all") == 0 ? "" : split);
    PSEG_TRY(pseg_eval_source_data(&s->source, s->d, &chosen, what, &of->engine.limits, err));
out:
    pseg_data_selection_free(&chosen);
    return rc;
}

/* path: a data set, or scenes. */
static pseg_status open_subject(subject *s, session *of, const char *path, const char *split,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t first;
    uint32_t count;
    int size;

    if (strncmp(path, "scenes:", 7) == 0) {
        if (!pseg_eval_is_scenes(path, &first, &count, &size))
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "\"%s\" is not scenes:FIRST-LAST or scenes:FIRST-LAST@SIZE, at most 10000000 "
                      "of them",
                      path);
        size = size ? size : (int)pseg_model_get_info(of->model)->width;
        if (size < 64 || size > 1024)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "scenes of %d px are out of range: 64 to 1024 (scenes:FIRST-LAST@SIZE)",
                      size);
        PSEG_TRY(pseg_eval_source_scenes(&s->source, first, count, size, err));
    } else {
        PSEG_TRY(open_data(s, of, path, split, err));
    }
    PSEG_TRY(pseg_eval_plan_new(&s->plan, s->source, of->readers, asks_to_stop, NULL, err));
out:
    return rc;
}

/* As many as this process may use CPUs, at most 8. */
static unsigned default_readers(void)
{
    cpu_set_t set;
    double n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;

    n = fmin(fmin(n, ceil(pseg_cpu_quota(""))), 8);
    return n < 1 ? 1 : (unsigned)n;
}

static pseg_status open_model(session *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    program_progress *line = NULL;

    if (strcmp(s->a->engine.model, PSEG_ENGINE_EMPTY) == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "the empty model makes no masks to be scored");
    PSEG_TRY(engine_options_of(&s->engine, &s->folder, &s->a->engine, &s->log, err));
    s->engine.model.max_images = (uint32_t)s->a->batch;
    s->engine.model.max_phrases = (uint32_t)(s->a->batch < 8 ? 16 : 64);
    PSEG_TRY(pseg_image_init(err));
    line = program_progress_begin("opening the model (kernels are compiled the first time)");
    PSEG_TRY(pseg_cl_open(&s->cl, &s->engine.cl, err));
    PSEG_TRY(pseg_model_open(&s->model, s->cl, &s->engine.source, &s->engine.model, err));
    s->readers = s->a->readers ? (unsigned)s->a->readers : default_readers();
out:
    program_progress_end(line);
    return rc;
}

static pseg_eval_options options_of(session *s)
{
    const args *a = s->a;
    double own = (double)pseg_model_get_info(s->model)->threshold;

    return (pseg_eval_options){.threshold = (float)(a->threshold > 0 ? a->threshold : own),
                               .threads = s->readers,
                               .may_shrink = s->engine.shrink_on_load,
                               .batch = (uint32_t)a->batch,
                               .report = eval_show_fault,
                               .report_ud = &s->faults,
                               .is_cancelled = asks_to_stop,
                               .progress = eval_progress_show,
                               .ud = &s->progress};
}

static pseg_eval_bootstrap_options bootstrap_of(const session *s)
{
    return (pseg_eval_bootstrap_options){.replicates = (uint32_t)s->a->replicates,
                                         .level = s->a->confidence,
                                         .seed = (uint64_t)s->a->seed,
                                         .threads = s->readers};
}

enum { N_SWEEP = 19 };

/* Tries thresholds on images of their own; the best becomes o->tuned. */
static pseg_status tune(session *s, pseg_eval_sweep *sweep, float *thresholds,
                        pseg_eval_interval *iou, pseg_eval_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const args *a = s->a;
    bool is_scenes = strncmp(a->tune, "scenes:", 7) == 0;
    const char *path = is_scenes ? a->tune : a->tune_data ? a->tune_data : a->data;
    pseg_eval_options own = *o;
    pseg_eval_bootstrap_options b = bootstrap_of(s);

    PSEG_TRY(open_subject(&s->tuned, s, path, a->tune, err));
    PSEG_TRY(pseg_eval_check_apart(s->tuned.plan, s->scored.plan, err));
    for (int i = 0; i < N_SWEEP; i++)
        thresholds[i] = (float)(i + 1) / (N_SWEEP + 1);
    own.sweep = thresholds;
    own.n_sweep = N_SWEEP;
    eval_progress_begin(&s->progress, "tuning the threshold");
    PSEG_TRY(pseg_eval_run_new(&s->tune_run, s->model, s->tuned.source, s->tuned.plan, &own, err));
    eval_progress_end(&s->progress);
    *sweep = (pseg_eval_sweep){.thresholds = thresholds,
                               .iou = iou,
                               .n = N_SWEEP,
                               .data = s->tuned.source->description,
                               .n_phrases = s->tune_run->n_done,
                               .n_images = s->tuned.plan->n_images};
    PSEG_TRY(
        pseg_eval_sweep_intervals(iou, &sweep->best, s->tuned.plan, s->tune_run, &own, &b, err));
    o->tuned = thresholds[sweep->best];
out:
    return rc;
}

/* The command line as a shell would take it. */
static char *command_of(int argc, char **argv)
{
    pseg_buf b;

    pseg_buf_init(&b, 1 << 16);
    pseg_status rc = pseg_buf_puts(&b, "pseg eval", NULL);
    for (int i = 1; i < argc && rc == PSEG_OK; i++) {
        bool is_plain =
            argv[i][0] && strspn(argv[i], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP"
                                          "QRSTUVWXYZ0123456789_-./:=@%,+") == strlen(argv[i]);
        rc = pseg_buf_puts(&b, is_plain ? " " : " '", NULL);
        for (const char *c = argv[i]; *c && rc == PSEG_OK; c++)
            rc = *c == '\'' ? pseg_buf_puts(&b, "'\\''", NULL) : pseg_buf_append(&b, c, 1, NULL);
        if (rc == PSEG_OK && !is_plain)
            rc = pseg_buf_puts(&b, "'", NULL);
    }
    size_t n;
    char *text = rc == PSEG_OK ? (char *)pseg_buf_take(&b, &n) : NULL;
    pseg_buf_deinit(&b);
    return text;
}

typedef pseg_status report_fn(pseg_buf *out, const pseg_eval_report *r, pseg_err *err);

static pseg_status write_one(const char *folder, const char *name, report_fn *fn,
                             const pseg_eval_report *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = pseg_path_join(folder, name);
    pseg_buf b;

    pseg_buf_init(&b, (size_t)4 << 30);
    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a path");
    PSEG_TRY(fn(&b, r, err));
    PSEG_TRY(pseg_file_write(path, b.data, b.len, err));
out:
    pseg_buf_deinit(&b);
    pseg_free(path);
    return rc;
}

static pseg_status write_all(const session *s, const pseg_eval_report *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_buf b;

    pseg_buf_init(&b, (size_t)1 << 30);
    PSEG_TRY(pseg_dir_make(s->a->out, err));
    /* The report names the records: they come first. */
    if (r->has_records)
        PSEG_TRY(write_one(s->a->out, "records.jsonl", pseg_eval_report_records, r, err));
    PSEG_TRY(write_one(s->a->out, "report.html", pseg_eval_report_html, r, err));
    PSEG_TRY(write_one(s->a->out, "report.json", pseg_eval_report_json, r, err));
    if (s->a->json) {
        PSEG_TRY(pseg_eval_report_json(&b, r, err));
        fwrite(b.data, 1, b.len, stdout);
    } else {
        eval_print_summary(r, s->a->out);
    }
out:
    pseg_buf_deinit(&b);
    return rc;
}

/* Figures, pictures and files from what was counted. */
static pseg_status report(session *s, const pseg_eval_sweep *sweep, const pseg_eval_options *o,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const args *a = s->a;
    pseg_eval_bootstrap_options b = bootstrap_of(s);
    const pseg_model_info *info = pseg_model_get_info(s->model);
    uint64_t faults[PSEG_EVAL_N_FAULTS];
    char date[40];

    for (int f = 0; f < PSEG_EVAL_N_FAULTS; f++)
        faults[f] = s->scored.source->faults[f] + s->run->faults[f];
    pseg_clock_format_unix_us(date, pseg_clock_unix_us());
    date[19] = 'Z';
    date[20] = '\0';
    PSEG_TRY(pseg_eval_analysis_new(&s->analysis, s->scored.plan, s->run, &b, err));
    if (a->cases)
        PSEG_TRY(pseg_eval_cases_new(&s->cases, s->model, s->scored.source, s->scored.plan,
                                     s->analysis, o->threshold, (uint32_t)a->case_px, err));
    if (a->compare)
        PSEG_TRY(pseg_eval_compare(&s->other, a->compare, s->scored.plan, s->run, &b, err));
    s->title = a->title ? pseg_strdup(a->title) : pseg_asprintf("Evaluation of %s", info->name);
    if (!s->title)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a title");
    if (is_stopped)
        PSEG_FAIL(PSEG_R_CANCELLED, 0, "stopped before the report; nothing was written");
    pseg_eval_report r = {.plan = s->scored.plan,
                          .run = s->run,
                          .analysis = s->analysis,
                          .model = info,
                          .title = s->title,
                          .model_path = s->folder ? s->folder : a->engine.decoder,
                          .device = pseg_cl_device(s->cl)->name,
                          .data = s->scored.source->description,
                          .data_digest = s->scored.source->digest,
                          .command = s->command,
                          .date = date,
                          .threshold = o->threshold,
                          .seed = (uint64_t)a->seed,
                          .replicates = b.replicates,
                          .level = b.level,
                          .faults = faults,
                          .sweep = sweep->n ? sweep : NULL,
                          .cases = s->cases,
                          .curves = s->curves,
                          .other = s->other,
                          .has_records = a->records};
    PSEG_TRY(write_all(s, &r, err));
out:
    return rc;
}

static pseg_status evaluate(session *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const args *a = s->a;
    pseg_eval_sweep sweep = {0};
    float thresholds[N_SWEEP];
    pseg_eval_interval iou[N_SWEEP];

    if (!a->data)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--data PATH or --data scenes:FIRST-LAST is needed (--help tells more)");
    if (a->tune_data && !a->tune)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--tune-data needs --tune SPEC (`all` for all of it)");
    if (a->log)
        PSEG_TRY(pseg_eval_curves_read(&s->curves, a->log, err));
    PSEG_TRY(open_model(s, err));
    PSEG_TRY(open_subject(&s->scored, s, a->data, a->split, err));
    if (a->shuffle)
        PSEG_TRY(pseg_eval_plan_shuffle(s->scored.plan, (uint64_t)a->seed, err));
    pseg_eval_options o = options_of(s);
    if (a->tune)
        PSEG_TRY(tune(s, &sweep, thresholds, iou, &o, err));
    eval_progress_begin(&s->progress, "evaluating");
    PSEG_TRY(pseg_eval_run_new(&s->run, s->model, s->scored.source, s->scored.plan, &o, err));
    eval_progress_end(&s->progress);
    PSEG_TRY(report(s, &sweep, &o, err));
out:
    eval_progress_end(&s->progress);
    return rc;
}

static pseg_status run(const args *a, int argc, char **argv, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    struct sigaction on_stop = {.sa_handler = stop, .sa_flags = (int)SA_RESETHAND};
    session s = {.a = a,
                 .log = {a->verbose ? PSEG_LOG_DEBUG : PSEG_LOG_WARN, STDERR_FILENO},
                 .progress = {.is_quiet = a->quiet},
                 .command = command_of(argc, argv)};

    sigaction(SIGINT, &on_stop, NULL);
    sigaction(SIGTERM, &on_stop, NULL);
    if (!s.command)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the command line");
    PSEG_TRY(evaluate(&s, err));
out:
    pseg_eval_compared_free(s.other);
    pseg_eval_curves_free(s.curves);
    pseg_eval_cases_free(s.cases);
    pseg_eval_analysis_free(s.analysis);
    pseg_eval_run_free(s.run);
    pseg_eval_run_free(s.tune_run);
    subject_close(&s.scored);
    subject_close(&s.tuned);
    pseg_model_close(s.model);
    pseg_cl_close(s.cl);
    pseg_free(s.folder);
    pseg_free(s.command);
    pseg_free(s.title);
    return rc;
}

int main(int argc, char **argv)
{
    args a = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    if (program_begin(&conf, &a, table, &about, argc, argv, &status))
        status = program_end(run(&a, argc, argv, &err), &err, a.json);
    pseg_conf_free(conf);
    return status;
}
