/* pseg-data, run by users as `pseg data`: what is wrong in a data set. */
#include "common/base/clock.h"
#include "common/base/version.h"
#include "common/image/image.h"
#include "worker/apps/program.h"
#include "worker/data/check.h"

#include <string.h>
#include <unistd.h>

typedef struct options {
    const char *format, *images, *text;
    pseg_conf_list split;
    int64_t max_phrase;
    bool headers, objects, json, quiet;
} options;

static const pseg_conf_option table[] = {
    {"format", PSEG_CONF_STRING, offsetof(options, format), "auto", "NAME",
     .help = "auto, jsonl, parquet, coco or refcoco"},
    {"images", PSEG_CONF_STRING, offsetof(options, images), NULL, "DIR",
     .help = "folder of the image files; else beside the annotations, or in images/"},
    {"split", PSEG_CONF_LIST, offsetof(options, split), NULL, "NAME",
     .help = "that split alone; given again, it belongs to the next set"},
    {"text", PSEG_CONF_STRING, offsetof(options, text), NULL, "DIR",
     .help = "folder of a text encoder, whose tokens are counted, or of a table of phrases"},
    {"max_phrase", PSEG_CONF_INT, offsetof(options, max_phrase), "4096", "bytes", .min = 1,
     .max = 1 << 20, .help = "longer phrases are faults"},
    {"headers", PSEG_CONF_BOOL, offsetof(options, headers), "false",
     .help = "look at the headers of image files only, which is quick"},
    {"objects", PSEG_CONF_BOOL, offsetof(options, objects), "false",
     .help = "COCO: each object by itself, not all of a category as one mask"},
    {"json", PSEG_CONF_BOOL, offsetof(options, json), "false", .help = "one JSON document"},
    {"quiet", PSEG_CONF_BOOL, offsetof(options, quiet), "false",
     .help = "the summary alone, not each fault", .letter = 'q'},
    {0}};

static const pseg_conf_about about = {
    .name = "pseg data check",
    .usage = "DATA [DATA ...] [--text DIR] [--headers] [--json]",
    .what = "Tells what is wrong in data sets, before a training loses an hour to it.\n"
            "Every broken record, image, mask and phrase is named with its line or row; of several "
            "sets,\n"
            "every image that two of them share. Exit status 0: nothing was found; 1: faults were "
            "found,\n"
            "which training leaves out; 2 or 3: a set cannot be used at all.",
    .example = "pseg data check photos                         # a folder, or a file\n"
               "pseg data check train.jsonl val.jsonl          # and do they share images?\n"
               "pseg data check refcoco refcoco --split train --split val --images train2014\n"
               "pseg data check photos --text clip-vit-base-patch16 --json",
    .after = "docs/data.md describes the formats and each fault."};

typedef struct job {
    const options *o;
    json_t *problems; /* or NULL */
    int64_t shown_ms;
    bool is_shown;
} job;

static void clear_line(job *j)
{
    if (j->is_shown)
        fputs("\r\033[K", stderr);
    j->is_shown = false;
}

static void report(void *ud, pseg_data_fault fault, const char *where, const char *what)
{
    job *j = ud;

    if (j->problems) {
        json_array_append_new(j->problems,
                              json_pack("{s:s, s:o, s:o}", "fault", pseg_data_fault_name(fault),
                                        "where", program_text(where), "what", program_text(what)));
    } else if (!j->o->quiet) {
        clear_line(j);
        printf("%s: %s: %s\n", where, pseg_data_fault_name(fault), what);
    }
}

static bool progress(void *ud, size_t done, size_t total)
{
    job *j = ud;
    int64_t now = pseg_clock_mono_ms();

    if (isatty(STDERR_FILENO) && now - j->shown_ms > 500) {
        fprintf(stderr, "\r\033[K%zu of %zu images", done, total);
        j->shown_ms = now;
        j->is_shown = true;
    }
    return true;
}

static void print_set(const pseg_check_set *s)
{
    size_t n = 0;

    printf("%s%s%s: %s, %zu images (%zu good), %zu masks, %zu phrases", s->path,
           s->split[0] ? " split " : "", s->split, pseg_data_format_name(s->format), s->n_images,
           s->n_usable_images, s->n_samples, s->n_phrases);
    printf("; sides %u to %u px, masks %.1f %% of the image, %.1f words\n", s->min_side,
           s->max_side, 100 * s->mean_area, s->mean_words);
    for (int i = 0; i < PSEG_DATA_N_FAULTS; i++) {
        if (s->faults[i])
            printf("  %-16s %zu\n", pseg_data_fault_name((pseg_data_fault)i), s->faults[i]);
        n += s->faults[i];
    }
    if (!n)
        puts("  nothing is wrong");
}

static json_t *json_of(const pseg_check_set *s)
{
    json_t *faults = json_object();

    for (int i = 0; i < PSEG_DATA_N_FAULTS; i++)
        json_object_set_new(faults, pseg_data_fault_name((pseg_data_fault)i),
                            json_integer((json_int_t)s->faults[i]));
    return json_pack("{s:o, s:o, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:o}", "path",
                     program_text(s->path), "split", program_text(s->split), "format",
                     pseg_data_format_name(s->format), "images", (json_int_t)s->n_images,
                     "good_images", (json_int_t)s->n_usable_images, "masks",
                     (json_int_t)s->n_samples, "phrases", (json_int_t)s->n_phrases, "min_side_px",
                     (json_int_t)s->min_side, "max_side_px", (json_int_t)s->max_side, "mean_area",
                     s->mean_area, "mean_words", s->mean_words, "faults", faults);
}

static void print_all(pseg_check *c, job *j)
{
    json_t *sets = json_array();

    for (size_t i = 0; i < pseg_check_n_sets(c); i++) {
        if (!j->o->json)
            print_set(pseg_check_set_of(c, i));
        json_array_append_new(sets, json_of(pseg_check_set_of(c, i)));
    }
    if (j->o->json)
        program_print(json_pack("{s:o, s:I, s:O}", "sets", sets, "faults",
                                (json_int_t)pseg_check_n_faults(c), "problems", j->problems));
    else
        json_decref(sets);
}

static pseg_status check_sets(pseg_check *c, const options *o, const pseg_conf *conf, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_data_options d = PSEG_DATA_OPTIONS_DEFAULT;

    d.images = o->images;
    d.objects = o->objects;
    d.max_phrase_bytes = (uint32_t)o->max_phrase;
    if (!pseg_data_format_parse(&d.format, o->format))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--format %.40s: expected auto, jsonl, parquet, coco or refcoco", o->format);
    for (size_t i = 0; i < pseg_conf_n_args(conf); i++) {
        d.split = i < o->split.n ? o->split.items[i] : o->split.n == 1 ? o->split.items[0] : NULL;
        PSEG_TRY(pseg_check_add(c, pseg_conf_arg(conf, i), &d, err));
    }
out:
    return rc;
}

/* *n_faults: what was found. */
static pseg_status run(size_t *n_faults, const options *o, const pseg_conf *conf, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    job j = {.o = o, .problems = o->json ? json_array() : NULL, .shown_ms = pseg_clock_mono_ms()};
    pseg_check_options co = {.text = o->text,
                             .headers_only = o->headers,
                             .report = report,
                             .report_ud = &j,
                             .progress = progress,
                             .progress_ud = &j};
    pseg_check *c = NULL;

    PSEG_TRY(pseg_image_init(err));
    PSEG_TRY(pseg_check_new(&c, &co, err));
    PSEG_TRY(check_sets(c, o, conf, err));
    clear_line(&j);
    print_all(c, &j);
    *n_faults = pseg_check_n_faults(c);
out:
    clear_line(&j);
    json_decref(j.problems);
    pseg_check_free(c);
    return rc;
}

static int check(int argc, char **argv)
{
    options o = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    size_t n_faults = 0;
    int status = 0;

    if (program_begin_with(&conf, &o, table, &about, argc, argv, &status)) {
        pseg_status rc =
            pseg_conf_n_args(conf)
                ? run(&n_faults, &o, conf, &err)
                : pseg_err_set(&err, PSEG_R_CONFIG_INVALID, 0, PSEG_HERE,
                               "no data set: name one or more files or folders (--help)");
        status = program_end(rc, &err, o.json);
        if (status == 0 && n_faults)
            status = 1;
    }
    pseg_conf_free(conf);
    return status;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "--help";

    if (strcmp(name, "check") == 0)
        return check(argc - 1, argv + 1);
    if (strcmp(name, "--version") == 0) {
        puts("pseg data " PSEG_VERSION);
        return 0;
    }
    if (strcmp(name, "--help") != 0 && strcmp(name, "-h") != 0) {
        fprintf(stderr,
                "error: unknown work \"%.40s\"; `pseg data --help` lists all (CONFIG_INVALID)\n",
                name);
        return 2;
    }
    fputs("usage: pseg data WHAT [options]\n\nWorks on data sets for training and evaluation. "
          "What:\n\n"
          "  check     tells what is wrong in them, and which images two of them share\n"
          "\n`pseg data WHAT --help` tells more. A first try:\n"
          "  pseg scenes --out drawn --count 5 && pseg data check drawn\n",
          argc > 1 ? stdout : stderr);
    return argc > 1 ? program_end(PSEG_OK, NULL, false) : 2;
}
