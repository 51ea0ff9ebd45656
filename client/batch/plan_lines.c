/* Manifests of lines: JSON lines, and tables (CSV, TSV) whose first line names the columns. What is
 * wrong in one line is told of that line and stops no other. */
#include "client/batch/json.h"
#include "client/batch/lines.h"
#include "client/batch/plan.h"
#include "common/base/alloc.h"
#include "common/base/utf8.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- JSON lines ---- */

static void append_texts(json_t *list, const json_t *j)
{
    size_t i;
    json_t *value;

    if (json_is_string(j))
        json_array_append(list, (json_t *)(uintptr_t)j);
    json_array_foreach(j, i, value) json_array_append(list, value);
}

/* "prompts", "prompt", "phrases", "phrase", or those of "samples", as data sets have them. */
static json_t *prompts_of(const json_t *line)
{
    static const char *const keys[] = {"prompts", "prompt", "phrases", "phrase"};
    static const char *const of_sample[] = {"sentences", "sentence", "phrases", "phrase"};
    json_t *list = json_array(), *sample;
    size_t i;

    for (size_t k = 0; k < 4; k++)
        append_texts(list, json_object_get(line, keys[k]));
    json_array_foreach(json_object_get(line, "samples"), i, sample) for (size_t k = 0; k < 4; k++)
        append_texts(list, json_object_get(sample, of_sample[k]));
    return list;
}

static const char *fault_of_prompts(const json_t *list)
{
    size_t i;
    json_t *value;

    json_array_foreach(list, i, value) if (!json_is_string(value)) return "is no text";
    return NULL;
}

/* Copies a member that is of the type, or names what it should be. */
static const char *copy_members(json_t *item, const json_t *line)
{
    static const struct {
        const char *key;
        bool is_number;
        const char *fault;
    } members[] = {{"id", false, "\"id\" is neither text nor a number"},
                   {"model", false, "\"model\" is no text"},
                   {"image_id", true, "\"image_id\" is no number"},
                   {"threshold", true, "\"threshold\" is no number"}};

    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        json_t *value = json_object_get(line, members[i].key);
        if (!value || json_is_null(value))
            continue;
        if (i == 0 && json_is_integer(value)) {
            char text[24];
            snprintf(text, sizeof text, "%lld", (long long)json_integer_value(value));
            json_object_set_new(item, "id", json_string(text));
        } else if (members[i].is_number ? json_is_number(value) : json_is_string(value)) {
            json_object_set(item, members[i].key, value);
        } else {
            return members[i].fault;
        }
    }
    return NULL;
}

static pseg_status add_object(batch_planner *w, const json_t *line, uint64_t number, pseg_err *err)
{
    json_t *item = json_object(), *prompts = prompts_of(line);
    const char *image = batch_json_get(line, "image");
    const char *fault = copy_members(item, line);

    if (!*image)
        image = batch_json_get(line, "file_name");
    json_object_set_new(item, "line", json_integer((json_int_t)number));
    json_object_set_new(item, "prompts", prompts);
    if (*image)
        json_object_set_new(item, "image", json_string(image));
    if (!*image)
        return batch_planner_add_bad(w, item, number, PSEG_R_IMAGE_MISSING, err,
                                     "line %llu names no image: \"image\" is missing",
                                     (unsigned long long)number);
    if (fault)
        return batch_planner_add_bad(w, item, number, PSEG_R_DATA_CORRUPT, err, "line %llu: %s",
                                     (unsigned long long)number, fault);
    if (fault_of_prompts(prompts)) {
        json_object_del(item, "prompts");
        return batch_planner_add_bad(w, item, number, PSEG_R_PROMPT_NOT_TEXT, err,
                                     "line %llu: a prompt is no text", (unsigned long long)number);
    }
    return batch_planner_add(w, item, err);
}

static pseg_status add_json(batch_planner *w, const batch_lines *l, pseg_err *err)
{
    json_error_t why;
    json_t *line = json_loadb((const char *)l->line.data, l->line.len, 0, &why);
    pseg_status rc;

    if (!line)
        rc = batch_planner_add_bad(w, NULL, l->number, PSEG_R_DATA_CORRUPT, err,
                                   "line %llu is no JSON: %s", (unsigned long long)l->number,
                                   why.text);
    else if (!json_is_object(line))
        rc = batch_planner_add_bad(w, NULL, l->number, PSEG_R_DATA_CORRUPT, err,
                                   "line %llu is no JSON object", (unsigned long long)l->number);
    else
        rc = add_object(w, line, l->number, err);
    json_decref(line);
    return rc;
}

/* ---- tables ---- */

#define MAX_COLUMNS 128

typedef struct row {
    char *fields[MAX_COLUMNS]; /* within the line, which is taken apart in place */
    size_t n;
    const char *fault;
} row;

/* RFC 4180, but that a quoted field ends with its line: a quote that is left open then costs one
 * line and not the rest of the file. */
static void split(row *r, char *line, char separator)
{
    char *from = line, *to = line;

    *r = (row){0};
    while (r->n < MAX_COLUMNS) {
        bool quoted = separator == ',' && *from == '"';
        r->fields[r->n++] = to;
        if (quoted)
            for (from++; *from && (*from != '"' || from[1] == '"'); from++) {
                from += *from == '"';
                *to++ = *from;
            }
        if (quoted && *from != '"') {
            r->fault = "a quote is not closed";
            return;
        }
        from += quoted;
        while (*from && *from != separator)
            *to++ = *from++;
        bool at_end = *from == '\0';
        from++;
        *to++ = '\0';
        if (at_end)
            return;
    }
    r->fault = "it has more than " PSEG_STR(MAX_COLUMNS) " columns";
}

typedef struct table {
    const char *path;
    char separator;
    char *head; /* the first line, taken apart */
    row names;
} table;

static pseg_status read_head(table *t, batch_lines *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool has_image = false;

    t->head = pseg_strndup((const char *)l->line.data, l->line.len);
    if (!t->head)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    split(&t->names, t->head, t->separator);
    for (size_t i = 0; i < t->names.n; i++)
        has_image = has_image || strcmp(t->names.fields[i], "image") == 0;
    if (t->names.fault || !has_image)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "the first line of %s must name the columns, one of them \"image\"; it is "
                  "\"%.80s\"%s%s",
                  t->path, t->head, t->names.fault ? ": " : "",
                  t->names.fault ? t->names.fault : "");
out:
    return rc;
}

/* NULL, or what is wrong. */
static const char *set_field(json_t *item, json_t *prompts, const char *name, const char *value)
{
    char *end;

    if (!*value)
        return NULL;
    if (strcmp(name, "prompt") == 0 || strcmp(name, "phrase") == 0)
        json_array_append_new(prompts, json_string(value));
    else if (strcmp(name, "image") == 0 || strcmp(name, "id") == 0 || strcmp(name, "model") == 0)
        json_object_set_new(item, name, json_string(value));
    else if (strcmp(name, "image_id") == 0) {
        errno = 0;
        json_object_set_new(item, name, json_integer(strtoll(value, &end, 10)));
        return *end || errno ? "image_id is no number" : NULL;
    } else if (strcmp(name, "threshold") == 0) {
        double x = strtod(value, &end);
        if (*end || !(x > 0 && x < 1))
            return "threshold is no number between 0 and 1";
        json_object_set_new(item, name, json_real(x));
    }
    return NULL;
}

static pseg_status add_row(batch_planner *w, const table *t, batch_lines *l, pseg_err *err)
{
    json_t *item = json_object(), *prompts = json_array();
    const char *fault = NULL;
    pseg_reason reason = PSEG_R_DATA_CORRUPT;
    row r;

    json_object_set_new(item, "line", json_integer((json_int_t)l->number));
    if (!pseg_utf8_is_valid((const char *)l->line.data, l->line.len) ||
        memchr(l->line.data, 0, l->line.len)) {
        fault = "it is not UTF-8";
    } else {
        split(&r, (char *)l->line.data, t->separator);
        fault = r.fault;
        if (!fault && r.n > t->names.n)
            fault = "it has more fields than the first line";
        for (size_t i = 0; i < r.n && !fault; i++)
            fault = set_field(item, prompts, t->names.fields[i], r.fields[i]);
    }
    if (!fault && !json_object_get(item, "image")) {
        reason = PSEG_R_IMAGE_MISSING;
        fault = "it names no image";
    }
    json_object_set_new(item, "prompts", prompts);
    if (fault)
        return batch_planner_add_bad(w, item, l->number, reason, err, "line %llu: %s",
                                     (unsigned long long)l->number, fault);
    return batch_planner_add(w, item, err);
}

/* ---- both ---- */

static bool is_blank(const batch_lines *l)
{
    for (size_t i = 0; i < l->line.len; i++)
        if (!strchr(" \t", l->line.data[i]))
            return false;
    return true;
}

pseg_status batch_read_lines(batch_planner *w, const char *path, batch_form form, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_lines l;
    table t = {.path = path, .separator = form == BATCH_CSV ? ',' : '\t'};
    bool more;

    PSEG_TRY(batch_lines_open(&l, path, BATCH_LINE_BYTES, err));
    for (;;) {
        PSEG_TRY(batch_lines_next(&more, &l, err));
        if (!more)
            break;
        if (is_blank(&l))
            continue;
        if (form != BATCH_JSONL && !t.head)
            PSEG_TRY(read_head(&t, &l, err));
        else if (l.too_long)
            PSEG_TRY(batch_planner_add_bad(w, NULL, l.number, PSEG_R_REQUEST_TOO_LARGE, err,
                                           "line %llu is longer than the limit of %zu bytes",
                                           (unsigned long long)l.number, BATCH_LINE_BYTES));
        else
            PSEG_TRY(form == BATCH_JSONL ? add_json(w, &l, err) : add_row(w, &t, &l, err));
    }
out:
    batch_lines_close(&l);
    pseg_free(t.head);
    return rc;
}
