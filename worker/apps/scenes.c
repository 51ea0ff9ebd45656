/* pseg-scenes, run by users as `pseg scenes`: draws scenes by seed as a data set or as a stream. */
#include "common/base/buf.h"
#include "common/base/clock.h"
#include "worker/apps/program.h"
#include "worker/scenes/dataset.h"
#include "worker/scenes/raw.h"
#include "worker/scenes/scenes.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

typedef struct options {
    int64_t seed, count, size;
    const char *out;
    bool raw, describe, json, quiet;
} options;

static const pseg_conf_option table[] = {
    {"out", PSEG_CONF_STRING, offsetof(options, out), NULL, "DIR",
     .help = "write images, masks and scenes.jsonl into DIR", .letter = 'o'},
    {"raw", PSEG_CONF_BOOL, offsetof(options, raw), "false",
     .help = "write a binary stream to standard output instead"},
    {"describe", PSEG_CONF_BOOL, offsetof(options, describe), "false",
     .help = "with --raw: also what each object looks like, for training"},
    {"seed", PSEG_CONF_INT, offsetof(options, seed), "0", .min = 0, .max = 0x1p53,
     .help = "seed of the first scene; scene i of a run has seed + i", .letter = 's'},
    {"count", PSEG_CONF_INT, offsetof(options, count), "10", "N", .min = 1, .max = 1e12,
     .help = "how many scenes", .letter = 'n'},
    {"size", PSEG_CONF_INT, offsetof(options, size), "224", "PIXELS", .min = 64, .max = 1024,
     .help = "width and height of a scene"},
    {"json", PSEG_CONF_BOOL, offsetof(options, json), "false",
     .help = "summary as JSON (on standard error with --raw)"},
    {"quiet", PSEG_CONF_BOOL, offsetof(options, quiet), "false", .help = "no progress line",
     .letter = 'q'},
    {0}};

static const pseg_conf_about about = {
    .name = "pseg scenes",
    .usage = "--out DIR [--seed S] [--count N] [--size PIXELS]\n"
             "--raw [--seed S] [--count N] [--size PIXELS] > FILE",
    .what = "Draws scenes of three to eight coloured shapes, with a mask of each shape and phrases "
            "that\n"
            "each mean exactly one of them. The same seed and size give the same scene on every "
            "machine.\n"
            "The model in the box was trained on seeds from 1000000 and is scored on seeds 0 to "
            "999.",
    .example =
        "pseg scenes --out scenes --count 5          # five scenes as PNG, masks and scenes.jsonl\n"
        "pseg scenes --out one --seed 7 --count 1    # scene 7 alone\n"
        "pseg scenes --out s --count 1 --json        # what was written, for scripts\n"
        "pseg scenes --raw --count 1000 > stream     # records as worker/scenes/raw.h describes",
    .after = "docs/modules/scenes.md tells how scenes and phrases are made and what scenes.jsonl "
             "holds."};

typedef struct progress {
    int64_t start_ms, shown_ms;
    bool is_shown;
    int64_t done, phrases[3];
} progress;

/* On a terminal a line that is written over, elsewhere one every ten seconds; none in the first
 * second, and none beside a stream whose reader shows its own. */
static void show_progress(progress *p, const options *o)
{
    int64_t now = pseg_clock_mono_ms();
    bool is_terminal = isatty(STDERR_FILENO);

    if (o->quiet || (o->raw && !is_terminal))
        return;
    if (now - p->start_ms < 1000 || now - p->shown_ms < (is_terminal ? 200 : 10000))
        return;
    p->shown_ms = now;
    p->is_shown = is_terminal;
    fprintf(stderr, "%s%" PRId64 " of %" PRId64 " scenes, %.0f scenes/s%s", is_terminal ? "\r" : "",
            p->done, o->count, (double)p->done * 1000 / (double)(now - p->start_ms),
            is_terminal ? "  " : "\n");
}

static pseg_status write_stream(const pseg_scene *s, bool describe, pseg_buf *record, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    pseg_buf_clear(record);
    PSEG_TRY(pseg_scene_write_raw(record, s, describe, err));
    if (fwrite(record->data, 1, record->len, stdout) != record->len)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write to standard output: %s", strerror(errno));
out:
    return rc;
}

static pseg_status write_all(progress *p, const options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_scene_dataset *set = NULL;
    pseg_scene *s = NULL;
    pseg_buf record;

    pseg_buf_init(&record, 8 << 20);
    if (!o->raw)
        PSEG_TRY(pseg_scene_dataset_open(&set, o->out, err));
    for (int64_t i = 0; i < o->count; i++) {
        pseg_scene_free(s);
        PSEG_TRY(pseg_scene_make(&s, (uint64_t)(o->seed + i), (int)o->size, err));
        if (o->raw)
            PSEG_TRY(write_stream(s, o->describe, &record, err));
        else
            PSEG_TRY(pseg_scene_dataset_add(set, s, err));
        for (int k = 0; k < s->n_phrases; k++)
            p->phrases[s->phrases[k].kind]++;
        p->done++;
        show_progress(p, o);
    }
    if (set)
        PSEG_TRY(pseg_scene_dataset_finish(set, err));
    if (o->raw && fflush(stdout) != 0)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write to standard output: %s", strerror(errno));
out:
    pseg_scene_free(s);
    pseg_scene_dataset_free(set);
    pseg_buf_deinit(&record);
    return rc;
}

static void print_summary(const progress *p, const options *o)
{
    FILE *f = o->raw ? stderr : stdout;
    double seconds = (double)(pseg_clock_mono_ms() - p->start_ms) / 1000;
    int64_t n = p->phrases[0] + p->phrases[1] + p->phrases[2];

    if (o->json) {
        json_t *j = json_pack(
            "{so sI sI sI sI s{sI sI sI} sf}", "out", o->raw ? json_null() : program_text(o->out),
            "seed", (json_int_t)o->seed, "count", (json_int_t)p->done, "size", (json_int_t)o->size,
            "phrases", (json_int_t)n, "kinds", pseg_scene_phrase_kind_name(PSEG_PHRASE_ATTRIBUTE),
            (json_int_t)p->phrases[PSEG_PHRASE_ATTRIBUTE],
            pseg_scene_phrase_kind_name(PSEG_PHRASE_RELATION),
            (json_int_t)p->phrases[PSEG_PHRASE_RELATION],
            pseg_scene_phrase_kind_name(PSEG_PHRASE_SUPERLATIVE),
            (json_int_t)p->phrases[PSEG_PHRASE_SUPERLATIVE], "seconds", seconds);
        json_dumpf(j, f, JSON_COMPACT | JSON_REAL_PRECISION(6));
        fputc('\n', f);
        json_decref(j);
    } else if (!o->raw) {
        fprintf(f, "%" PRId64 " scenes with %" PRId64 " phrases: %s/scenes.jsonl\n", p->done, n,
                o->out);
    }
}

/* Makes the scenes and tells what was made. */
static pseg_status run(const options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    progress p = {.start_ms = pseg_clock_mono_ms()};

    if (o->raw == (o->out != NULL))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  o->raw ? "--raw and --out exclude each other; take one"
                         : "nowhere to write: give --out DIR, or --raw for a stream (--help)");
    if (o->raw && isatty(STDOUT_FILENO))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--raw writes binary data, and standard output is a terminal; redirect it");
    p.shown_ms = p.start_ms;
    rc = write_all(&p, o, err);
    if (p.is_shown)
        fputc('\n', stderr);
    if (rc == PSEG_OK)
        print_summary(&p, o);
out:
    return rc;
}

int main(int argc, char **argv)
{
    options o = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    if (program_begin(&conf, &o, table, &about, argc, argv, &status))
        status = program_end(run(&o, &err), &err, o.json && !o.raw);
    pseg_conf_free(conf);
    return status;
}
