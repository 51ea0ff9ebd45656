#include "scheduler/tenants.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/base/keyfile.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { NAME = PSEG_TENANT_BYTES, MAX_FILE = 16 << 20 };

typedef struct entry {
    char tenant[NAME];
    pseg_queue_tenant limits;
} entry;

struct pseg_tenants {
    char *path;
    const pseg_log *log;
    struct timespec seen; /* of the file when it was last read, or tried */
    off_t seen_size;
    pthread_mutex_t mu; /* of the list, which loops read */
    entry *entries;
    size_t n;
};

/* 1 to max; K, M and G count 1024, as in options. */
static bool number_of(int64_t *out, const char *text, int64_t max)
{
    static const char suffixes[] = "KMG";
    char *end;

    errno = 0;
    long long x = strtoll(text, &end, 10);
    const char *s = *end ? strchr(suffixes, *end) : NULL;
    for (int i = 0; s && i <= s - suffixes; i++)
        x = x > max ? max + 1 : x * 1024;
    *out = x;
    return *text >= '0' && *text <= '9' && !errno && (!*end || (s && !end[1])) && x >= 1 &&
           x <= max;
}

static pseg_status take_setting(pseg_queue_tenant *l, char *word, const char *where, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const struct {
        const char *name;
        int64_t *to, max;
    } names[] = {{"weight", &l->weight, 1000},
                 {"jobs", &l->max_jobs, 1000000000000},
                 {"bytes", &l->max_bytes, 1000000000000000},
                 {"rate", &l->rate, 1000000},
                 {"burst", &l->burst, 1000000}};
    char *value = strchr(word, '=');

    if (!value)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s: \"%.40s\" must be name=value", where, word);
    *value++ = '\0';
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i].name, word) != 0)
            continue;
        if (!number_of(names[i].to, value, names[i].max))
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s: %s=%.40s is not a number of 1 to %lld", where,
                      word, value, (long long)names[i].max);
        goto out;
    }
    PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
              "%s: \"%.40s\" is none of weight, jobs, bytes, rate and burst", where, word);
out:
    return rc;
}

static bool is_tenant(const char *s)
{
    return strcmp(s, "*") == 0 || pseg_is_tenant(s);
}

static pseg_status take_line(entry **list, size_t *n, char *line, const char *where, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *save = NULL;
    entry e = {0};

    line[strcspn(line, "#\r")] = '\0';
    char *word = strtok_r(line, " \t", &save);
    if (!word)
        goto out;
    if (!is_tenant(word))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%s: tenant \"%.70s\" must be * or 1 to 63 of a-z 0-9 _ -", where, word);
    snprintf(e.tenant, sizeof e.tenant, "%s", word);
    for (size_t i = 0; i < *n; i++)
        if (strcmp((*list)[i].tenant, e.tenant) == 0)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s: tenant %s has a line already", where,
                      e.tenant);
    while ((word = strtok_r(NULL, " \t", &save)))
        PSEG_TRY(take_setting(&e.limits, word, where, err));
    if (e.limits.burst && !e.limits.rate)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s: burst needs rate", where);
    if (e.limits.rate && !e.limits.burst)
        e.limits.burst = e.limits.rate;
    entry *more = pseg_realloc(*list, (*n + 1) * sizeof *more);
    if (!more)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the limits of tenants");
    *list = more;
    more[(*n)++] = e;
out:
    return rc;
}

static void stamp(const pseg_tenants *t, struct timespec *modified, off_t *size)
{
    struct stat st;

    *modified = (struct timespec){0};
    *size = -1;
    if (stat(t->path, &st) == 0) {
        *modified = st.st_mtim;
        *size = st.st_size;
    }
}

static pseg_status read_limits(pseg_tenants *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    entry *list = NULL;
    uint8_t *text = NULL;
    size_t n = 0, len;
    int number = 0;

    stamp(t, &t->seen, &t->seen_size); /* before reading: a change in between is seen next time */
    PSEG_TRY(pseg_file_read(&text, &len, t->path, MAX_FILE, err));
    for (char *line = (char *)text, *next; line; line = next) {
        char where[300];
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        snprintf(where, sizeof where, "%s:%d", t->path, ++number);
        PSEG_TRY(take_line(&list, &n, line, where, err));
    }
    pthread_mutex_lock(&t->mu);
    entry *old = t->entries;
    t->entries = list;
    t->n = n;
    pthread_mutex_unlock(&t->mu);
    list = old;
out:
    pseg_free(text);
    pseg_free(list);
    return rc;
}

pseg_status pseg_tenants_open(pseg_tenants **out, const char *path, const pseg_log *log,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_tenants *t = pseg_calloc(1, sizeof *t);

    *out = NULL;
    if (t)
        t->path = pseg_strdup(path);
    if (!t || !t->path) {
        pseg_free(t);
        return pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE,
                            "no memory for the limits of %s", path);
    }
    t->log = log;
    pthread_mutex_init(&t->mu, NULL);
    PSEG_TRY(read_limits(t, err));
    *out = t;
    t = NULL;
out:
    pseg_tenants_free(t);
    return rc;
}

void pseg_tenants_refresh(pseg_tenants *t)
{
    pseg_err e = PSEG_ERR_INIT;
    struct timespec modified;
    off_t size;

    stamp(t, &modified, &size);
    if (modified.tv_sec == t->seen.tv_sec && modified.tv_nsec == t->seen.tv_nsec &&
        size == t->seen_size)
        return;
    if (read_limits(t, &e) == PSEG_OK)
        PSEG_INFO(t->log, "scheduler", "limits of tenants were read again file=%s tenants=%zu",
                  t->path, t->n);
    else
        PSEG_ERROR(t->log, "scheduler", "the earlier limits of tenants stay in force: %s", e.msg);
}

void pseg_tenants_limits(void *ud, const char *tenant, pseg_queue_tenant *out)
{
    pseg_tenants *t = ud;

    *out = (pseg_queue_tenant){0};
    pthread_mutex_lock(&t->mu);
    for (size_t i = 0; i < t->n; i++) {
        if (strcmp(t->entries[i].tenant, tenant) == 0) {
            *out = t->entries[i].limits;
            break;
        }
        if (strcmp(t->entries[i].tenant, "*") == 0)
            *out = t->entries[i].limits;
    }
    pthread_mutex_unlock(&t->mu);
}

void pseg_tenants_each(void *ud,
                       void (*f)(void *to, const char *tenant, const pseg_queue_tenant *limits),
                       void *to)
{
    pseg_tenants *t = ud;

    pthread_mutex_lock(&t->mu);
    for (size_t i = 0; i < t->n; i++)
        f(to, t->entries[i].tenant, &t->entries[i].limits);
    pthread_mutex_unlock(&t->mu);
}

void pseg_tenants_free(pseg_tenants *t)
{
    if (!t)
        return;
    pthread_mutex_destroy(&t->mu);
    pseg_free(t->entries);
    pseg_free(t->path);
    pseg_free(t);
}
