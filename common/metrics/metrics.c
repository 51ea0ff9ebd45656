#include "common/metrics/metrics.h"
#include "common/base/alloc.h"
#include "common/base/utf8.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

struct pseg_series {
    pseg_series *next;
    pseg_metric *family;
    char *values[PSEG_METRIC_MAX_LABELS];
    _Atomic uint64_t bits;     /* of the value, or of a histogram's sum: a double */
    _Atomic uint64_t counts[]; /* n_bounds + 1: in each bucket alone */
};

struct pseg_metric {
    pseg_metric *next;
    const pseg_metric_desc *d;
    size_t n_labels, n_series;
    pthread_mutex_t mu; /* of the list; series stay where they are */
    pseg_series *first, **last;
};

enum { MAX_BEFORE = 8 };

struct pseg_metrics {
    pseg_metric *first, **last;
    pthread_mutex_t mu; /* one rendering at a time */
    struct {
        void (*fn)(void *ud);
        void *ud;
    } before[MAX_BEFORE];
    size_t n_before;
};

pseg_status pseg_metrics_new(pseg_metrics **out, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_metrics *m = pseg_calloc(1, sizeof *m);

    *out = NULL;
    if (!m)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for metrics");
    m->last = &m->first;
    pthread_mutex_init(&m->mu, NULL);
    *out = m;
out:
    return rc;
}

static void free_series(pseg_series *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < PSEG_METRIC_MAX_LABELS; i++)
        pseg_free(s->values[i]);
    pseg_free(s);
}

void pseg_metrics_free(pseg_metrics *m)
{
    if (!m)
        return;
    for (pseg_metric *f = m->first, *next; f; f = next) {
        next = f->next;
        for (pseg_series *s = f->first, *n; s; s = n) {
            n = s->next;
            free_series(s);
        }
        pthread_mutex_destroy(&f->mu);
        pseg_free(f);
    }
    pthread_mutex_destroy(&m->mu);
    pseg_free(m);
}

pseg_metric *pseg_metrics_add(pseg_metrics *m, const pseg_metric_desc *d)
{
    pseg_metric *f = pseg_calloc(1, sizeof *f);

    if (!f)
        return NULL;
    f->d = d;
    while (f->n_labels < PSEG_METRIC_MAX_LABELS && d->labels[f->n_labels])
        f->n_labels++;
    f->last = &f->first;
    pthread_mutex_init(&f->mu, NULL);
    *m->last = f;
    m->last = &f->next;
    return f;
}

static bool has_values(const pseg_series *s, const char *const *values)
{
    for (size_t i = 0; i < s->family->n_labels; i++)
        if (strcmp(s->values[i], values[i]) != 0)
            return false;
    return true;
}

static pseg_series *new_series(pseg_metric *f, const char *const *values)
{
    size_t n_counts = f->d->kind == PSEG_METRIC_HISTOGRAM ? f->d->n_bounds + 1 : 0;
    pseg_series *s = pseg_calloc(1, sizeof *s + n_counts * sizeof s->counts[0]);

    if (!s)
        return NULL;
    s->family = f;
    for (size_t i = 0; i < f->n_labels; i++)
        if (!(s->values[i] = pseg_strdup(values[i]))) {
            free_series(s);
            return NULL;
        }
    return s;
}

pseg_series *pseg_metric_with(pseg_metric *f, const char *const *values)
{
    static const char *const other[PSEG_METRIC_MAX_LABELS] = {"other", "other", "other", "other"};
    pseg_series *s = NULL;

    if (!f)
        return NULL;
    pthread_mutex_lock(&f->mu);
    for (int round = 0; round < 2 && !s; round++) {
        for (s = f->first; s && !has_values(s, values); s = s->next)
            ;
        if (s)
            break;
        if (f->n_series >= PSEG_METRIC_MAX_SERIES && round == 0) {
            values = other;
            continue;
        }
        s = new_series(f, values);
        if (s) {
            *f->last = s;
            f->last = &s->next;
            f->n_series++;
        }
        break;
    }
    pthread_mutex_unlock(&f->mu);
    return s;
}

/* ---- counting ---- */

static double value_of(uint64_t bits)
{
    double v;

    memcpy(&v, &bits, sizeof v);
    return v;
}

static uint64_t bits_of(double v)
{
    uint64_t bits;

    memcpy(&bits, &v, sizeof bits);
    return bits;
}

void pseg_series_add(pseg_series *s, double by)
{
    if (!s)
        return;
    uint64_t old = atomic_load_explicit(&s->bits, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&s->bits, &old, bits_of(value_of(old) + by),
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
}

void pseg_series_set(pseg_series *s, double value)
{
    if (s)
        atomic_store_explicit(&s->bits, bits_of(value), memory_order_relaxed);
}

void pseg_series_observe(pseg_series *s, double value)
{
    if (!s || isnan(value))
        return;
    const pseg_metric_desc *d = s->family->d;
    size_t i = 0;
    while (i < d->n_bounds && value > d->bounds[i])
        i++;
    atomic_fetch_add_explicit(&s->counts[i], 1, memory_order_relaxed);
    pseg_series_add(s, value);
}

/* ---- rendering ---- */

void pseg_metrics_before(pseg_metrics *m, void (*fn)(void *ud), void *ud)
{
    if (m->n_before == MAX_BEFORE)
        return;
    m->before[m->n_before].fn = fn;
    m->before[m->n_before++].ud = ud;
}

static void format_number(char out[32], double v)
{
    if (isinf(v))
        snprintf(out, 32, v > 0 ? "+Inf" : "-Inf");
    else if (v == floor(v) && fabs(v) < 1e15)
        snprintf(out, 32, "%.0f", v);
    else
        snprintf(out, 32, "%.9g", v);
}

static pseg_status put_value(pseg_buf *out, const char *value, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *copy = pseg_strdup(value);

    if (!copy)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for metrics");
    pseg_utf8_repair(copy);
    for (const char *c = copy; *c; c++) {
        if (*c == '\n')
            PSEG_TRY(pseg_buf_puts(out, "\\n", err));
        else if (*c == '"' || *c == '\\')
            PSEG_TRY(pseg_buf_printf(out, err, "\\%c", *c));
        else
            PSEG_TRY(pseg_buf_append(out, c, 1, err));
    }
out:
    pseg_free(copy);
    return rc;
}

/* name_suffix{labels, le="bound"} value */
static pseg_status put_sample(pseg_buf *out, const pseg_series *s, const char *suffix,
                              const char *bound, double value, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_metric *f = s->family;
    char number[32];
    const char *sep = "{";

    PSEG_TRY(pseg_buf_printf(out, err, "%s%s", f->d->name, suffix));
    for (size_t i = 0; i < f->n_labels; i++, sep = ",") {
        PSEG_TRY(pseg_buf_printf(out, err, "%s%s=\"", sep, f->d->labels[i]));
        PSEG_TRY(put_value(out, s->values[i], err));
        PSEG_TRY(pseg_buf_puts(out, "\"", err));
    }
    if (bound) {
        PSEG_TRY(pseg_buf_printf(out, err, "%sle=\"%s\"", sep, bound));
        sep = ",";
    }
    format_number(number, value);
    PSEG_TRY(pseg_buf_printf(out, err, "%s %s\n", *sep == ',' ? "}" : "", number));
out:
    return rc;
}

static pseg_status put_series(pseg_buf *out, const pseg_series *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_metric_desc *d = s->family->d;
    double value = value_of(atomic_load_explicit(&s->bits, memory_order_relaxed));
    uint64_t sum = 0;
    char bound[32];

    if (d->kind != PSEG_METRIC_HISTOGRAM)
        return put_sample(out, s, "", NULL, value, err);
    for (size_t i = 0; i <= d->n_bounds; i++) {
        sum += atomic_load_explicit(&s->counts[i], memory_order_relaxed);
        format_number(bound, i < d->n_bounds ? d->bounds[i] : INFINITY);
        PSEG_TRY(put_sample(out, s, "_bucket", bound, (double)sum, err));
    }
    PSEG_TRY(put_sample(out, s, "_sum", NULL, value, err));
    PSEG_TRY(put_sample(out, s, "_count", NULL, (double)sum, err));
out:
    return rc;
}

static pseg_status put_family(pseg_buf *out, pseg_metric *f, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    pthread_mutex_lock(&f->mu);
    for (const pseg_series *s = f->first; s; s = s->next)
        PSEG_TRY(put_series(out, s, err));
out:
    pthread_mutex_unlock(&f->mu);
    return rc;
}

pseg_status pseg_metrics_render(pseg_buf *out, pseg_metrics *m, pseg_err *err)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    pseg_status rc = PSEG_OK;

    pthread_mutex_lock(&m->mu);
    for (size_t i = 0; i < m->n_before; i++)
        m->before[i].fn(m->before[i].ud);
    for (pseg_metric *f = m->first; f; f = f->next) {
        PSEG_TRY(pseg_buf_printf(out, err, "# HELP %s %s\n# TYPE %s %s\n", f->d->name, f->d->help,
                                 f->d->name, kinds[f->d->kind]));
        PSEG_TRY(put_family(out, f, err));
    }
out:
    pthread_mutex_unlock(&m->mu);
    return rc;
}
