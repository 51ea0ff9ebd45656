/* Files of choices: their text, and where they are. */
#include "worker/ops/internal.h"
#include "worker/ops/tune.h"

#include "common/base/alloc.h"
#include "common/base/buf.h"
#include "common/base/file.h"
#include "common/base/hash.h"
#include "common/base/version.h"
#include "kernels/embedded.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE   (64u << 10)
#define MAX_LINE   512u
#define FIRST_LINE "pseg tuning 1"

/* ---- conditions --------------------------------------------------------------------------- */

enum { DEVICE, DRIVER, UNITS, KERNELS, PROGRAM, N_CONDITIONS };
static const char *const names[N_CONDITIONS] = {"device", "driver", "units", "kernels", "program"};

typedef struct conditions {
    char value[N_CONDITIONS][MAX_LINE];
} conditions;

static pseg_status conditions_of(conditions *out, const pseg_cl *cl, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_device_info *d = pseg_cl_device(cl);
    char digest[65];

    PSEG_TRY(pseg_cl_kernel_digest(digest, cl, err));
    snprintf(out->value[DEVICE], MAX_LINE, "%s", d->name);
    snprintf(out->value[DRIVER], MAX_LINE, "%s", d->driver);
    snprintf(out->value[UNITS], MAX_LINE, "%u", d->compute_units);
    snprintf(out->value[KERNELS], MAX_LINE, "%s", digest);
    snprintf(out->value[PROGRAM], MAX_LINE, "%s", PSEG_VERSION);
out:
    return rc;
}

/* ---- text --------------------------------------------------------------------------------- */

pseg_status pseg_tuning_format(char **out, const pseg_tuning *t, const pseg_cl *cl, bool is_bound,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    conditions *c = pseg_calloc(1, sizeof *c);
    pseg_buf b;

    *out = NULL;
    pseg_buf_init(&b, MAX_FILE);
    if (!c)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a tuning");
    PSEG_TRY(conditions_of(c, cl, err));
    PSEG_TRY(pseg_buf_puts(&b, FIRST_LINE "\n", err));
    for (int i = 0; i < (is_bound ? N_CONDITIONS : UNITS); i++)
        PSEG_TRY(pseg_buf_printf(&b, err, "%s = %s\n", names[i], c->value[i]));
    if (is_bound && t->peaks.fp32_gflops > 0)
        PSEG_TRY(pseg_buf_printf(
            &b, err, "peak fp32_gflops %.1f\npeak bf16_gflops %.1f\npeak read_gbytes %.2f\n",
            t->peaks.fp32_gflops, t->peaks.bf16_gflops, t->peaks.read_gbytes));
    for (size_t i = 0; i < t->n; i++) {
        const pseg_tune_choice *k = &t->choices[i];
        if (is_bound || k->best != k->usual)
            PSEG_TRY(pseg_buf_printf(&b, err, "choose %s %s %s %.4f %.4f\n", k->op->name,
                                     k->op->variants->classes[k->class_index].name, k->best->name,
                                     k->best_ms, k->usual_ms));
    }
    PSEG_TRY(pseg_buf_puts(&b, "end\n", err));
    *out = (char *)pseg_buf_take(&b, NULL);
out:
    pseg_buf_deinit(&b);
    pseg_free(c);
    return rc;
}

static pseg_status parse_condition(const conditions *c, const char *name, const char *value,
                                   pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int i = 0;

    while (i < N_CONDITIONS && strcmp(names[i], name) != 0)
        i++;
    if (i == N_CONDITIONS)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "unknown condition \"%.60s\"", name);
    if (strcmp(c->value[i], value) != 0)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "it is for %s \"%.80s\", this is \"%.80s\"", name, value,
                  c->value[i]);
out:
    return rc;
}

static pseg_status parse_peak(pseg_peaks *p, const char *name, double value, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    double *at = strcmp(name, "fp32_gflops") == 0   ? &p->fp32_gflops
                 : strcmp(name, "bf16_gflops") == 0 ? &p->bf16_gflops
                 : strcmp(name, "read_gbytes") == 0 ? &p->read_gbytes
                                                    : NULL;

    if (!at || !(value > 0) || !isfinite(value))
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "peak \"%.60s\" of %g", name, value);
    *at = value;
out:
    return rc;
}

typedef struct choice_text {
    char op[64], shape[64], variant[64];
    double best_ms, usual_ms;
} choice_text;

static pseg_status parse_choice(pseg_tuning *t, const choice_text *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_op *op = pseg_op_find(c->op);
    size_t k = 0;

    if (!op || !op->variants || t->n == PSEG_TUNE_MAX)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "operation \"%s\" has no variants", c->op);
    while (k < op->variants->n_classes && strcmp(op->variants->classes[k].name, c->shape) != 0)
        k++;
    const pseg_op_variant *v = pseg_op_variant_find(op, c->variant, strlen(c->variant));
    if (k == op->variants->n_classes || !v)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "%s has no variant \"%s\" or shape \"%s\"", c->op,
                  c->variant, c->shape);
    t->choices[t->n++] = (pseg_tune_choice){
        .op = op, .class_index = k, .best = v, .best_ms = c->best_ms, .usual_ms = c->usual_ms};
out:
    return rc;
}

static pseg_status parse_line(pseg_tuning *t, const conditions *c, const char *line, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *equals = strstr(line, " = ");
    char name[64];
    choice_text k;
    double value;
    int end = 0;

    if (sscanf(line, "choose %63s %63s %63s %lf %lf %n", k.op, k.shape, k.variant, &k.best_ms,
               &k.usual_ms, &end) == 5 &&
        line[end] == '\0')
        PSEG_TRY(parse_choice(t, &k, err));
    else if (sscanf(line, "peak %63s %lf %n", name, &value, &end) == 2 && line[end] == '\0')
        PSEG_TRY(parse_peak(&t->peaks, name, value, err));
    else if (equals && equals - line < (int)sizeof name) {
        snprintf(name, sizeof name, "%.*s", (int)(equals - line), line);
        PSEG_TRY(parse_condition(c, name, equals + 3, err));
    } else
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "a line that means nothing: \"%.80s\"", line);
out:
    return rc;
}

pseg_status pseg_tuning_parse(pseg_tuning *out, const pseg_cl *cl, const char *text, size_t n,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    conditions *c = pseg_calloc(1, sizeof *c);
    char *copy = n <= MAX_FILE ? pseg_strndup(text, n) : NULL, *rest = copy, *line;
    bool is_first = true, is_over = false;

    memset(out, 0, sizeof *out);
    if (!c || !copy)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a tuning of %zu bytes", n);
    if (strlen(copy) != n)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "it holds bytes of 0");
    PSEG_TRY(conditions_of(c, cl, err));
    while ((line = strsep(&rest, "\n"))) {
        line[strcspn(line, "\r")] = '\0';
        if (*line == '\0' || *line == '#')
            continue;
        if (is_over || (is_first && strcmp(line, FIRST_LINE) != 0))
            PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                      "\"%.80s\" where \"" FIRST_LINE "\" or nothing is due", line);
        if (!is_first && strcmp(line, "end") == 0)
            is_over = true;
        else if (!is_first)
            PSEG_TRY(parse_line(out, c, line, err));
        is_first = false;
    }
    if (!is_over)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "it ends before its end");
out:
    if (rc != PSEG_OK)
        memset(out, 0, sizeof *out);
    pseg_free(copy);
    pseg_free(c);
    return rc;
}

/* ---- files -------------------------------------------------------------------------------- */

/* One file a device: its name by what tells devices apart, so that another driver or kernel finds
 * the file, says that it is stale, and tuning again replaces it. NULL: there is no cache folder. */
static char *file_path(const pseg_cl *cl)
{
    const pseg_device_info *d = pseg_cl_device(cl);
    const char *dir = pseg_cl_cache_dir(cl);
    uint8_t digest[PSEG_SHA256_BYTES];
    char *key =
        dir ? pseg_asprintf("%s\n%s\n%u", d->name, d->platform_name, d->compute_units) : NULL;
    char hex[PSEG_SHA256_HEX + 1], *path = NULL;

    if (key) {
        pseg_sha256_of(digest, key, strlen(key));
        pseg_hex(hex, digest, sizeof digest);
        path = pseg_asprintf("%s/%.16s.tuning", dir, hex);
    }
    pseg_free(key);
    return path;
}

pseg_status pseg_tuning_save(const pseg_tuning *t, const pseg_cl *cl, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = file_path(cl), *text = NULL;

    if (!path)
        goto out;
    PSEG_TRY(pseg_tuning_format(&text, t, cl, true, err));
    PSEG_TRY(pseg_dir_make(pseg_cl_cache_dir(cl), err));
    PSEG_TRY(pseg_file_write(path, text, strlen(text), err));
out:
    pseg_free(text);
    pseg_free(path);
    return rc;
}

/* What another version or driver was tuned for is nobody's mistake, and would be told each time. */
static void tell_ignored(const pseg_log *log, const char *path, const pseg_err *e)
{
    if (e->reason == PSEG_R_UNSUPPORTED)
        PSEG_INFO(log, "tune", "tuning is ignored path=%s: %s; pseg devices --tune makes it anew",
                  path, e->msg);
    else
        PSEG_WARN(log, "tune", "tuning is ignored path=%s: %s", path, e->msg);
}

void pseg_tuning_recall(pseg_tuning *out, const pseg_cl *cl, const pseg_log *log)
{
    char *path = file_path(cl);
    uint8_t *data = NULL;
    size_t n = 0;
    pseg_err e = PSEG_ERR_INIT;

    memset(out, 0, sizeof *out);
    if (path && pseg_file_exists(path) &&
        (pseg_file_read(&data, &n, path, MAX_FILE, &e) != PSEG_OK ||
         pseg_tuning_parse(out, cl, (const char *)data, n, &e) != PSEG_OK))
        tell_ignored(log, path, &e);
    pseg_free(data);
    pseg_free(path);
}

/* Choices that come with the program, for devices of this name and driver. */
static void apply_embedded(pseg_tuning *t, pseg_cl *cl)
{
    for (size_t i = 0; i < pseg_n_tuned_files; i++) {
        const pseg_kernel_source *f = &pseg_tuned_files[i];
        pseg_err e = PSEG_ERR_INIT;

        if (pseg_tuning_parse(t, cl, (const char *)f->data, f->size, &e) == PSEG_OK) {
            pseg_tuning_apply(t, cl);
            PSEG_INFO(pseg_cl_log(cl), "tune", "choices=%zu from=program file=%s", t->n, f->name);
        } else if (e.reason != PSEG_R_UNSUPPORTED) {
            PSEG_WARN(pseg_cl_log(cl), "tune", "tuning is ignored file=%s: %s", f->name, e.msg);
        }
    }
}

void pseg_tuning_load(pseg_cl *cl)
{
    pseg_tuning *t = pseg_calloc(1, sizeof *t);

    if (!t)
        return;
    apply_embedded(t, cl);
    pseg_tuning_recall(t, cl, pseg_cl_log(cl));
    pseg_tuning_apply(t, cl);
    if (t->n > 0)
        PSEG_INFO(pseg_cl_log(cl), "tune", "choices=%zu from=cache", t->n);
    pseg_free(t);
}

pseg_status pseg_peaks_get(pseg_peaks *out, pseg_stream *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_cl *cl = pseg_stream_cl(s);
    pseg_tuning *t = pseg_calloc(1, sizeof *t);
    pseg_err e = PSEG_ERR_INIT;

    if (!t)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the peaks");
    pseg_tuning_recall(t, cl, NULL);
    if (t->peaks.fp32_gflops <= 0 || t->peaks.read_gbytes <= 0) {
        PSEG_TRY(pseg_peaks_measure(&t->peaks, s, err));
        if (pseg_tuning_save(t, cl, &e) != PSEG_OK)
            PSEG_WARN(pseg_cl_log(cl), "tune", "peaks are not kept: %s", e.msg);
    }
    *out = t->peaks;
out:
    pseg_free(t);
    return rc;
}
