#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/data/idmap.h"
#include "worker/data/split.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LIST = 256 << 20 };

void pseg_data_selection_free(pseg_data_selection *s)
{
    pseg_free(s->images);
    *s = (pseg_data_selection){0};
}

/* Marks what the spec names in chosen, one byte an image. */
typedef struct choice {
    const pseg_dataset *d;
    uint8_t *chosen;
    const char *spec; /* for messages */
} choice;

/* ---- by name --------------------------------------------------------------------------------- */

typedef struct named {
    char *name;
    uint32_t image;
} named;

static int by_name(const void *a, const void *b)
{
    const named *x = a, *y = b;
    int order = strcmp(x->name, y->name);

    return order ? order : (x->image > y->image) - (x->image < y->image);
}

static pseg_status choose_end(choice *c, const char *count, bool is_last, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = pseg_dataset_n_images(c->d);
    named *names = NULL;
    char *end;
    unsigned long long k = strtoull(count, &end, 10);

    if (count[0] < '0' || count[0] > '9' || *end || k == 0 || k > n)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "split \"%s\": expected a number of images from 1 to %zu", c->spec, n);
    names = pseg_calloc(n, sizeof *names);
    if (!names)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to sort %zu names", n);
    for (size_t i = 0; i < n; i++) {
        pseg_data_record *r;
        PSEG_TRY(pseg_dataset_read(&r, c->d, i, err));
        names[i] = (named){pseg_strdup(r->file_name), (uint32_t)i};
        pseg_data_record_free(r);
        if (!names[i].name)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to sort %zu names", n);
    }
    qsort(names, n, sizeof *names, by_name);
    for (size_t i = 0; i < k; i++)
        c->chosen[names[is_last ? n - 1 - i : i].image] = 1;
out:
    for (size_t i = 0; names && i < n; i++)
        pseg_free(names[i].name);
    pseg_free(names);
    return rc;
}

/* ---- by hash --------------------------------------------------------------------------------- */

static pseg_status choose_hash(choice *c, const char *spec, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *end;
    double percent = strtod(spec, &end);
    uint64_t seed = 0, below;

    if (end == spec || *end != '%' || !(percent > 0 && percent < 100))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "split \"%s\": expected hash:P%% with P between 0 and 100", c->spec);
    end++;
    if (*end == '@' && end[1] >= '0' && end[1] <= '9')
        seed = strtoull(end + 1, &end, 10);
    if (*end)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "split \"%s\": expected @SEED behind the %%", c->spec);
    below = (uint64_t)(percent / 100 * 0x1p53);
    for (size_t i = 0; i < pseg_dataset_n_images(c->d); i++)
        c->chosen[i] =
            idmap_mix(pseg_dataset_at(c->d, i).key ^ idmap_mix(seed ^ 0x5EED)) >> 11 < below;
out:
    return rc;
}

/* ---- by list --------------------------------------------------------------------------------- */

static uint64_t name_hash(const char *s, size_t n)
{
    return idmap_hash(s, n);
}

/* Every name by which a list may call an image: key, file name, its last part. */
static pseg_status index_names(idmap *names, const pseg_dataset *d, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_data_record *r = NULL;
    uint32_t found;
    bool is_new;

    for (size_t i = 0; i < pseg_dataset_n_images(d); i++) {
        pseg_data_record_free(r);
        PSEG_TRY(pseg_dataset_read(&r, d, i, err));
        const char *slash = strrchr(r->file_name, '/');
        const char *by[] = {r->key, r->file_name, slash ? slash + 1 : r->file_name};
        for (size_t k = 0; k < 3; k++)
            PSEG_TRY(idmap_put(&found, names, name_hash(by[k], strlen(by[k])), (uint32_t)i, &is_new,
                               err));
    }
out:
    pseg_data_record_free(r);
    return rc;
}

static pseg_status choose_list(choice *c, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *text = NULL;
    size_t len, number = 0;
    idmap names = {0};
    uint32_t image;

    PSEG_TRY(pseg_file_read(&text, &len, path, MAX_LIST, err));
    PSEG_TRY(index_names(&names, c->d, err));
    for (const char *s = (const char *)text; *s;) {
        size_t line = strcspn(s, "\n"), n = line;
        number++;
        while (n && (s[n - 1] == '\r' || s[n - 1] == ' '))
            n--;
        if (n && s[0] != '#') {
            if (!idmap_get(&image, &names, name_hash(s, n)))
                PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s:%zu: %s holds no image \"%.*s\"", path,
                          number, pseg_dataset_path(c->d), (int)(n > 80 ? 80 : n), s);
            c->chosen[image] = 1;
        }
        s += line + (s[line] == '\n');
    }
out:
    idmap_deinit(&names);
    pseg_free(text);
    return rc;
}

/* ---- all together ---------------------------------------------------------------------------- */

static const char *after(const char *s, const char *prefix)
{
    size_t n = strlen(prefix);

    return strncmp(s, prefix, n) == 0 ? s + n : NULL;
}

static pseg_status choose(choice *c, const char *spec, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *rest;

    if (strcmp(spec, "all") == 0)
        memset(c->chosen, 1, pseg_dataset_n_images(c->d));
    else if ((rest = after(spec, "last:")))
        rc = choose_end(c, rest, true, err);
    else if ((rest = after(spec, "first:")))
        rc = choose_end(c, rest, false, err);
    else if ((rest = after(spec, "hash:")))
        rc = choose_hash(c, rest, err);
    else if ((rest = after(spec, "list:")))
        rc = choose_list(c, rest, err);
    else
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "split \"%s\": expected all, last:N, first:N, hash:P%%[@SEED] or list:FILE, each "
                  "also with \"not \" before it",
                  c->spec);
out:
    return rc;
}

pseg_status pseg_data_select(pseg_data_selection *out, const pseg_dataset *d, const char *spec,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *rest = after(spec, "not ");
    size_t n = pseg_dataset_n_images(d);
    choice c = {.d = d, .spec = spec};
    pseg_data_selection s = {0};

    *out = s;
    c.chosen = pseg_calloc(n + 1, 1);
    s.images = pseg_calloc(n + 1, sizeof *s.images);
    if (!c.chosen || !s.images)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to choose from %zu images", n);
    PSEG_TRY(choose(&c, rest ? rest : spec, err));
    for (size_t i = 0; i < n; i++)
        if (c.chosen[i] == !rest)
            s.images[s.n++] = (uint32_t)i;
    if (!s.n)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "split \"%s\" leaves none of the %zu images of %s",
                  spec, n, pseg_dataset_path(d));
    *out = s;
    s.images = NULL;
out:
    pseg_free(c.chosen);
    pseg_data_selection_free(&s);
    return rc;
}
