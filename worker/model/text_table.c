#include "worker/model/text_table.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/base/half.h"
#include "common/base/utf8.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAMES      "names.json"
#define EMBEDDINGS "embeddings.safetensors"

enum { MAX_NAMES_BYTES = 256 << 20, MAX_ROWS = 1 << 24, MAX_DIM = 8192 };

typedef struct entry {
    char *key; /* the name as it is sought */
    uint32_t row;
} entry;

struct pseg_text_table {
    char **names; /* [n] */
    entry *sorted;
    float *rows; /* [n, dim] */
    uint32_t n, dim;
};

bool pseg_text_table_is(const char *folder)
{
    char *names = pseg_path_join(folder, NAMES), *file = pseg_path_join(folder, EMBEDDINGS);
    bool is = names && file && pseg_file_exists(names) && pseg_file_exists(file);

    pseg_free(names);
    pseg_free(file);
    return is;
}

char *pseg_text_table_file(const char *folder)
{
    return pseg_path_join(folder, EMBEDDINGS);
}

/* Lower case, one space for each run of white space, none at the ends. NULL: no memory. s is
 * UTF-8. */
static char *make_key(const char *s)
{
    size_t left = strlen(s), n = 0, step;
    char *key = pseg_malloc(2 * left + 4), one[4];
    bool is_space = false;
    uint32_t cp;

    for (; key && left; s += step, left -= step) {
        step = pseg_utf8_decode(&cp, s, left);
        if (pseg_utf8_is_space(cp)) {
            is_space = n > 0;
            continue;
        }
        if (is_space)
            key[n++] = ' ';
        is_space = false;
        size_t k = pseg_utf8_encode(one, pseg_utf8_lower(cp));
        memcpy(key + n, one, k);
        n += k;
    }
    if (key)
        key[n] = 0;
    return key;
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const entry *)a)->key, ((const entry *)b)->key);
}

/* ---- opening --------------------------------------------------------------------------------- */

static pseg_status read_names(pseg_text_table *t, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = pseg_path_join(folder, NAMES);
    uint8_t *text = NULL;
    json_t *list = NULL;
    const json_t *v;
    size_t len, i;

    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a table of phrases");
    if (!pseg_file_exists(path))
        PSEG_FAIL(PSEG_R_MODEL_MISSING, 0, "no file %s", path);
    PSEG_TRY(pseg_file_read(&text, &len, path, MAX_NAMES_BYTES, err));
    list = json_loadb((const char *)text, len, 0, NULL);
    if (!json_is_array(list) || !json_array_size(list) || json_array_size(list) > MAX_ROWS)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s is not a JSON list of 1 to %d phrases", path,
                  MAX_ROWS);
    t->n = (uint32_t)json_array_size(list);
    t->names = pseg_calloc(t->n, sizeof *t->names);
    t->sorted = pseg_calloc(t->n, sizeof *t->sorted);
    if (!t->names || !t->sorted)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u phrases", t->n);
    json_array_foreach(list, i, v)
    {
        if (!json_is_string(v))
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: entry %zu is no text", path, i);
        t->names[i] = pseg_strdup(json_string_value(v));
        t->sorted[i] = (entry){make_key(json_string_value(v)), (uint32_t)i};
        if (!t->names[i] || !t->sorted[i].key)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u phrases", t->n);
    }
    qsort(t->sorted, t->n, sizeof *t->sorted, by_key);
    for (i = 0; i + 1 < t->n; i++)
        if (strcmp(t->sorted[i].key, t->sorted[i + 1].key) == 0)
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s holds \"%.80s\" twice", path, t->sorted[i].key);
out:
    json_decref(list);
    pseg_free(text);
    pseg_free(path);
    return rc;
}

static void to_floats(float *out, const pseg_tensor *x)
{
    for (uint64_t i = 0; i < x->n; i++) {
        uint16_t half;
        uint32_t word;
        if (x->type == PSEG_TENSOR_F32) {
            memcpy(&out[i], x->data + 4 * i, 4);
            continue;
        }
        memcpy(&half, x->data + 2 * i, 2);
        word = (uint32_t)half << 16;
        if (x->type == PSEG_TENSOR_F16)
            out[i] = pseg_half_to_float(half);
        else
            memcpy(&out[i], &word, 4);
    }
}

/* To length 1, in double. False: it has none. */
static bool normalise(float *row, uint32_t dim)
{
    double sum = 0;

    for (uint32_t i = 0; i < dim; i++)
        sum += (double)row[i] * row[i];
    if (!(sum > 0) || !isfinite(sum))
        return false;
    for (uint32_t i = 0; i < dim; i++)
        row[i] = (float)(row[i] / sqrt(sum));
    return true;
}

static pseg_status read_rows(pseg_text_table *t, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = pseg_path_join(folder, EMBEDDINGS);
    pseg_tensors *file = NULL;
    const pseg_tensor *x;

    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a table of phrases");
    PSEG_TRY(pseg_tensors_open_file(&file, path, err));
    x = pseg_tensors_find(file, "embeddings");
    if (!x || x->rank != 2 ||
        (x->type != PSEG_TENSOR_F32 && x->type != PSEG_TENSOR_F16 && x->type != PSEG_TENSOR_BF16))
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0,
                  "%s: no tensor embeddings of two dimensions in F32, F16 or BF16", path);
    if (x->dims[0] != t->n || x->dims[1] < 8 || x->dims[1] > MAX_DIM)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0,
                  "%s: embeddings of %llu x %llu for %u names: expected a row of 8 to %d numbers "
                  "for each",
                  path, (unsigned long long)x->dims[0], (unsigned long long)x->dims[1], t->n,
                  MAX_DIM);
    t->dim = (uint32_t)x->dims[1];
    t->rows = pseg_calloc(x->n, sizeof *t->rows);
    if (!t->rows)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u embeddings", t->n);
    to_floats(t->rows, x);
    for (uint32_t i = 0; i < t->n; i++)
        if (!normalise(t->rows + (size_t)i * t->dim, t->dim))
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: row %u, \"%.80s\", has no length", path, i,
                      t->names[i]);
out:
    pseg_tensors_close(file);
    pseg_free(path);
    return rc;
}

pseg_status pseg_text_table_open(pseg_text_table **out, const char *folder, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_text_table *t = NULL;

    *out = NULL;
    t = pseg_calloc(1, sizeof *t);
    if (!t)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a table of phrases");
    PSEG_TRY(read_names(t, folder, err));
    PSEG_TRY(read_rows(t, folder, err));
    *out = t;
    t = NULL;
out:
    pseg_text_table_close(t);
    return rc;
}

void pseg_text_table_close(pseg_text_table *t)
{
    if (!t)
        return;
    for (uint32_t i = 0; t->names && i < t->n; i++)
        pseg_free(t->names[i]);
    for (uint32_t i = 0; t->sorted && i < t->n; i++)
        pseg_free(t->sorted[i].key);
    pseg_free(t->names);
    pseg_free(t->sorted);
    pseg_free(t->rows);
    pseg_free(t);
}

uint32_t pseg_text_table_count(const pseg_text_table *t)
{
    return t->n;
}

uint32_t pseg_text_table_dim(const pseg_text_table *t)
{
    return t->dim;
}

const char *pseg_text_table_name(const pseg_text_table *t, uint32_t row)
{
    return t->names[row];
}

const float *pseg_text_table_row(const pseg_text_table *t, uint32_t row)
{
    return t->rows + (size_t)row * t->dim;
}

/* ---- finding --------------------------------------------------------------------------------- */

enum { NEAR = 3, FAR = 1 << 20, LONGEST = 64 };

/* How far two texts are from each other: changes of a byte (Levenshtein), of their first LONGEST
 * bytes; little if one holds the other whole. */
static int distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    int row[LONGEST + 1];

    if (strstr(a, b) || strstr(b, a))
        return 1;
    n = n < LONGEST ? n : LONGEST;
    m = m < LONGEST ? m : LONGEST;
    for (size_t j = 0; j <= m; j++)
        row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j - 1] + 1 < change)
                change = row[j - 1] + 1;
            row[j] = row[j] + 1 < change ? row[j] + 1 : change;
        }
    }
    return row[m];
}

static pseg_status refuse(const pseg_text_table *t, const char *phrase, const char *key,
                          pseg_err *err)
{
    uint32_t best[NEAR] = {0};
    int how_far[NEAR] = {FAR, FAR, FAR};
    char names[200] = "";
    size_t n = 0;
    pseg_status rc;

    for (uint32_t i = 0; i < t->n; i++) {
        int d = distance(key, t->sorted[i].key), at = NEAR;
        while (at > 0 && d < how_far[at - 1])
            at--;
        for (int k = NEAR - 1; k > at; k--) {
            how_far[k] = how_far[k - 1];
            best[k] = best[k - 1];
        }
        if (at < NEAR) {
            how_far[at] = d;
            best[at] = t->sorted[i].row;
        }
    }
    for (int k = 0; k < NEAR && how_far[k] < FAR && n + 50 < sizeof names; k++)
        n += (size_t)snprintf(names + n, sizeof names - n, "%s\"%.40s\"", k ? ", " : "",
                              t->names[best[k]]);
    rc = pseg_err_set(err, PSEG_R_PROMPT_UNKNOWN, 0, PSEG_HERE,
                      "the model's table of %u phrases lacks \"%.80s\"; the nearest it has: %s",
                      t->n, phrase, names);
    pseg_err_value(err, "%s", phrase);
    return rc;
}

pseg_status pseg_text_table_find(uint32_t *row, const pseg_text_table *t, const char *phrase,
                                 pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    entry wanted = {NULL, 0};
    const entry *found;

    if (!pseg_utf8_is_valid(phrase, strlen(phrase)))
        PSEG_FAIL(PSEG_R_PROMPT_NOT_TEXT, 0, "the phrase is not UTF-8");
    wanted.key = make_key(phrase);
    if (!wanted.key)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a phrase");
    found = bsearch(&wanted, t->sorted, t->n, sizeof *t->sorted, by_key);
    if (!found)
        rc = refuse(t, phrase, wanted.key, err);
    else
        *row = found->row;
out:
    pseg_free(wanted.key);
    return rc;
}
