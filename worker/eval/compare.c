#include "worker/eval/compare.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/eval/json.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_REPORT_BYTES = 256 << 20 };

/* ---- finding the other run's records ---- */

static char *beside(const char *path, const char *name)
{
    const char *slash = strrchr(path, '/');

    return slash ? pseg_asprintf("%.*s/%s", (int)(slash - path), path, name) : pseg_strdup(name);
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);

    return n >= m && strcmp(s + n - m, end) == 0;
}

/* What the report says of its model, and the path of its records. */
static pseg_status read_report(char **records, pseg_eval_compared *c, const char *path,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *data = NULL;
    size_t n = 0;
    json_t *j = NULL;

    PSEG_TRY(pseg_file_read(&data, &n, path, MAX_REPORT_BYTES, err));
    j = json_loadb((const char *)data, n, 0, NULL);
    const char *schema = json_string_value(json_object_get(j, "schema"));
    const char *name = json_string_value(json_object_get(j, "records"));
    const json_t *model = json_object_get(j, "model");
    const char *model_name = json_string_value(json_object_get(model, "name"));
    const char *digest = json_string_value(json_object_get(model, "digest"));
    if (!schema || strcmp(schema, "pseg-eval/1") != 0)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s is no report of `pseg eval` (schema pseg-eval/1)",
                  path);
    if (!name || strchr(name, '/'))
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "%s has no records to pair with: run that evaluation with --records", path);
    c->name = pseg_strdup(model_name ? model_name : "");
    c->digest = pseg_strdup(digest ? digest : "");
    *records = beside(path, name);
    if (!c->name || !c->digest || !*records)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a report");
out:
    json_decref(j);
    pseg_free(data);
    return rc;
}

static pseg_status find_records(char **records, pseg_eval_compared *c, const char *path,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *in_folder = NULL;

    *records = NULL;
    if (ends_with(path, ".jsonl")) {
        c->name = pseg_strdup(path);
        c->digest = pseg_strdup("");
        *records = pseg_strdup(path);
        if (!c->name || !c->digest || !*records)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a path");
        goto out;
    }
    in_folder = pseg_path_join(path, "report.json");
    if (!in_folder)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a path");
    PSEG_TRY(read_report(records, c, pseg_file_exists(in_folder) ? in_folder : path, err));
out:
    pseg_free(in_folder);
    return rc;
}

/* ---- pairing ---- */

/* A phrase's name in both runs. */
static uint64_t key_of(const char *image, uint64_t target, uint64_t sentence, const char *phrase)
{
    uint64_t h = 0xcbf29ce484222325;

    for (const char *s = image; *s; s++)
        h = (h ^ (uint8_t)*s) * 0x100000001b3;
    h = (h ^ (target << 32 | sentence)) * 0x100000001b3;
    for (const char *s = phrase; *s; s++)
        h = (h ^ (uint8_t)*s) * 0x100000001b3;
    h ^= h >> 33;
    return h * 0xff51afd7ed558ccd;
}

typedef struct named {
    uint64_t key;
    pseg_eval_example e;
} named;

typedef struct others {
    named *all; /* n of them, by key */
    size_t n, cap;
} others;

static int compare_keys(const void *a, const void *b)
{
    uint64_t x = ((const named *)a)->key, y = ((const named *)b)->key;

    return x < y ? -1 : x > y;
}

/* false: a field is missing or of another type. */
static bool read_record(named *out, const json_t *j)
{
    const char *image = json_string_value(json_object_get(j, "image"));
    const char *phrase = json_string_value(json_object_get(j, "phrase"));
    static const char *const names[] = {"target", "sentence", "truth_px", "area_px", "both_px"};
    json_int_t v[5];

    for (int i = 0; i < 5; i++) {
        const json_t *f = json_object_get(j, names[i]);
        if (!json_is_integer(f) || (v[i] = json_integer_value(f)) < 0)
            return false;
    }
    if (!image || !phrase || v[4] > v[2] || v[4] > v[3])
        return false;
    const json_t *guess = json_object_get(j, "predicted_iou");
    out->key = key_of(image, (uint64_t)v[0], (uint64_t)v[1], phrase);
    out->e =
        (pseg_eval_example){.truth = (uint64_t)v[2],
                            .area = (uint64_t)v[3],
                            .both = (uint64_t)v[4],
                            .predicted = json_is_number(guess) ? json_number_value(guess) : NAN};
    return true;
}

static pseg_status others_add(others *o, const named *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (o->n == o->cap) {
        size_t cap = o->cap ? 2 * o->cap : 1024;
        named *all = pseg_realloc(o->all, cap * sizeof *all);
        if (!all)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu records", cap);
        o->all = all;
        o->cap = cap;
    }
    o->all[o->n++] = *r;
out:
    return rc;
}

static pseg_status read_records(others *o, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    FILE *f = fopen(path, "rb");
    char *line = NULL; /* getline's own memory */
    size_t room = 0, number = 0;
    ssize_t len;

    if (!f)
        PSEG_FAIL(errno == ENOENT ? PSEG_R_FILE_NOT_FOUND : PSEG_R_FILE_IO, errno,
                  "cannot open %s: %s", path, strerror(errno));
    while ((len = getline(&line, &room, f)) > 0) {
        named r;
        json_t *j = json_loadb(line, (size_t)len, 0, NULL);
        bool is_good = j && read_record(&r, j);
        json_decref(j);
        number++;
        if (!is_good)
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s:%zu is no record of `pseg eval`", path,
                      number);
        PSEG_TRY(others_add(o, &r, err));
    }
    if (ferror(f))
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot read %s: %s", path, strerror(errno));
    if (o->n > 0)
        qsort(o->all, o->n, sizeof *o->all, compare_keys);
out:
    if (f)
        fclose(f);
    pseg_free(line);
    return rc;
}

/* ---- the figures ---- */

typedef struct both {
    pseg_eval_set *here, *there;
} both;

static void statistics(void *ud, double *out, const uint32_t *weight, double *scratch)
{
    const both *b = ud;
    double *here = out, *there = out + PSEG_EVAL_N_FIGURES, *d = out + 2 * PSEG_EVAL_N_FIGURES;

    pseg_eval_figures(here, b->here, weight, scratch);
    pseg_eval_figures(there, b->there, weight, scratch);
    for (int f = 0; f < PSEG_EVAL_N_FIGURES; f++)
        d[f] = here[f] - there[f];
}

/* The entries that stand in both runs, as two rows of examples with one numbering of images. */
static pseg_status pair(pseg_eval_compared *c, pseg_eval_example *here, pseg_eval_example *there,
                        const pseg_eval_plan *p, const pseg_eval_run *r, const others *o)
{
    uint32_t image = PSEG_EVAL_NONE;

    for (uint32_t i = 0; i < p->n; i++) {
        const pseg_eval_entry *e = &p->entries[i];
        const pseg_eval_outcome *mine = &r->outcomes[i];
        named want = {
            .key = key_of(p->names[e->image], e->target, e->sentence, p->texts.text[e->phrase])};
        if (!mine->is_done)
            continue;
        const named *found =
            o->n ? bsearch(&want, o->all, o->n, sizeof *o->all, compare_keys) : NULL;
        if (!found || found->e.truth != mine->truth) {
            c->n_only_here++;
            continue;
        }
        c->n_images += e->image != image;
        image = e->image;
        here[c->n] = (pseg_eval_example){c->n_images - 1, mine->truth, mine->own.area,
                                         mine->own.both, (double)mine->own.predicted};
        there[c->n] = found->e;
        there[c->n].image = c->n_images - 1;
        double d = pseg_eval_iou(&here[c->n]) - pseg_eval_iou(&there[c->n]);
        c->n_better += d > 0;
        c->n_worse += d < 0;
        c->n++;
    }
    c->n_only_there = o->n > c->n ? (uint32_t)(o->n - c->n) : 0;
    return PSEG_OK;
}

pseg_status pseg_eval_compare(pseg_eval_compared **out, const char *path, const pseg_eval_plan *p,
                              const pseg_eval_run *r, const pseg_eval_bootstrap_options *o,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_eval_compared *c = pseg_calloc(1, sizeof *c);
    pseg_eval_example *here = pseg_calloc(p->n, sizeof *here);
    pseg_eval_example *there = pseg_calloc(p->n, sizeof *there);
    pseg_eval_interval all[3 * PSEG_EVAL_N_FIGURES];
    pseg_eval_bootstrap_options options = *o;
    char *records = NULL;
    others other = {0};
    both sets = {0};

    *out = NULL;
    if (!c || !here || !there)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to compare %u phrases", p->n);
    PSEG_TRY(find_records(&records, c, path, err));
    PSEG_TRY(read_records(&other, records, err));
    PSEG_TRY(pair(c, here, there, p, r, &other));
    if (c->n == 0)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "none of the %zu phrases of %s is among those evaluated here", other.n, records);
    PSEG_TRY(pseg_eval_set_new(&sets.here, here, c->n, c->n_images, err));
    PSEG_TRY(pseg_eval_set_new(&sets.there, there, c->n, c->n_images, err));
    options.n_scratch = pseg_eval_set_scratch(sets.here);
    PSEG_TRY(pseg_eval_bootstrap(all, 3 * (size_t)PSEG_EVAL_N_FIGURES, c->n_images, statistics,
                                 &sets, &options, err));
    memcpy(c->here, all, sizeof c->here);
    memcpy(c->there, all + PSEG_EVAL_N_FIGURES, sizeof c->there);
    memcpy(c->difference, all + (size_t)2 * PSEG_EVAL_N_FIGURES, sizeof c->difference);
    *out = c;
    c = NULL;
out:
    pseg_eval_set_free(sets.here);
    pseg_eval_set_free(sets.there);
    pseg_free(other.all);
    pseg_free(here);
    pseg_free(there);
    pseg_free(records);
    pseg_eval_compared_free(c);
    return rc;
}

void pseg_eval_compared_free(pseg_eval_compared *c)
{
    if (!c)
        return;
    pseg_free(c->name);
    pseg_free(c->digest);
    pseg_free(c);
}
