/* COCO's JSON of images: `images` (`id`, `file_name`) and, where no prompt is given and an image
 * has none of its own, the names of `categories`. The file is scanned, not parsed whole: what is
 * held is one entry at a time, and the categories. */
#include "client/batch/json.h"
#include "client/batch/plan.h"
#include "common/base/buf.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MAX_CATEGORIES 10000

typedef struct scan {
    FILE *f;
    const char *path;
    pseg_buf text; /* of the present value */
    bool too_long;
} scan;

static pseg_status broken(const scan *s, const char *what, pseg_err *err)
{
    if (ferror(s->f))
        return pseg_err_set(err, PSEG_R_FILE_IO, errno, PSEG_HERE, "cannot read %s: %s", s->path,
                            strerror(errno));
    return pseg_err_set(err, PSEG_R_DATA_CORRUPT, 0, PSEG_HERE,
                        "%s is no COCO file: %s near byte %ld", s->path, what, ftell(s->f));
}

static int next_solid(scan *s)
{
    int c;

    do
        c = getc_unlocked(s->f);
    while (c == ' ' || c == '\t' || c == '\n' || c == '\r');
    return c;
}

static pseg_status keep(scan *s, int c, bool wanted, pseg_err *err)
{
    char byte = (char)c;

    if (!wanted)
        return PSEG_OK;
    if (s->text.len >= BATCH_LINE_BYTES) {
        s->too_long = true;
        return PSEG_OK;
    }
    return pseg_buf_append(&s->text, &byte, 1, err);
}

/* One value that begins with c, passed over and, if wanted, kept as text. */
static pseg_status value(scan *s, int c, bool wanted, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int depth = 0;
    bool in_text = false, escaped = false;

    pseg_buf_clear(&s->text);
    s->too_long = false;
    for (;; c = getc_unlocked(s->f)) {
        if (c == EOF)
            PSEG_TRY(broken(s, "it ends within a value", err));
        bool is_scalar_end = !in_text && depth == 0 && strchr(",]}", c);
        if (is_scalar_end) {
            ungetc(c, s->f);
            break;
        }
        PSEG_TRY(keep(s, c, wanted, err));
        if (in_text) {
            in_text = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if (c == '"') {
            in_text = true;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            depth--;
        }
        if (!in_text && depth == 0 && strchr("\"}]", c))
            break;
    }
out:
    return rc;
}

typedef pseg_status (*on_entry)(void *ud, const json_t *entry, const scan *s, uint64_t number,
                                pseg_err *err);

/* The entries of an array whose '[' is read. */
static pseg_status entries(scan *s, on_entry f, void *ud, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t number = 0;
    int c = next_solid(s);

    while (c != ']') {
        PSEG_TRY(value(s, c, true, err));
        json_t *entry = s->too_long ? NULL
                                    : json_loadb((const char *)s->text.data, s->text.len,
                                                 JSON_DECODE_ANY, NULL);
        rc = f(ud, entry, s, ++number, err);
        json_decref(entry);
        PSEG_TRY(rc);
        c = next_solid(s);
        if (c == ',')
            c = next_solid(s);
        else if (c != ']')
            PSEG_TRY(broken(s, "no comma between entries", err));
    }
out:
    return rc;
}

/* Calls f for each entry of the array that is the file's member `key`; *found: there is one. */
static pseg_status member(bool *found, const char *path, const char *key, on_entry f, void *ud,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    scan s = {.path = path, .f = fopen(path, "re")};
    char quoted[32];

    *found = false;
    pseg_buf_init(&s.text, BATCH_LINE_BYTES);
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    if (!s.f)
        PSEG_FAIL(errno == ENOENT ? PSEG_R_FILE_NOT_FOUND : PSEG_R_FILE_IO, errno,
                  "cannot open %s: %s", path, strerror(errno));
    if (next_solid(&s) != '{')
        PSEG_TRY(broken(&s, "it does not begin with {", err));
    for (int c = next_solid(&s); c != '}'; c = next_solid(&s)) {
        if (c == ',')
            c = next_solid(&s);
        if (c != '"')
            PSEG_TRY(broken(&s, "a member has no name", err));
        PSEG_TRY(value(&s, c, true, err));
        bool is_it = s.text.len == strlen(quoted) && memcmp(s.text.data, quoted, s.text.len) == 0;
        if (next_solid(&s) != ':')
            PSEG_TRY(broken(&s, "no colon behind a name", err));
        c = next_solid(&s);
        if (is_it && c == '[') {
            *found = true;
            PSEG_TRY(entries(&s, f, ud, err));
        } else {
            PSEG_TRY(value(&s, c, false, err));
        }
    }
out:
    if (s.f)
        fclose(s.f);
    pseg_buf_deinit(&s.text);
    return rc;
}

typedef struct coco {
    batch_planner *w;
    json_t *names, *ids; /* of the categories */
} coco;

static pseg_status add_category(void *ud, const json_t *entry, const scan *s, uint64_t number,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    coco *c = ud;
    json_t *name = json_object_get(entry, "name"), *id = json_object_get(entry, "id");

    if (!json_is_string(name) || !json_is_integer(id))
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "category %llu of %s has no name or no id",
                  (unsigned long long)number, s->path);
    if (number > MAX_CATEGORIES)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%s has more than %d categories; say by --prompt what to find", s->path,
                  MAX_CATEGORIES);
    json_array_append(c->names, name);
    json_array_append(c->ids, id);
out:
    return rc;
}

static json_t *own_prompts(const json_t *entry)
{
    static const char *const keys[] = {"prompts", "phrases"};

    for (size_t i = 0; i < 2; i++)
        if (json_is_array(json_object_get(entry, keys[i])))
            return json_incref(json_object_get(entry, keys[i]));
    return NULL;
}

static pseg_status add_image(void *ud, const json_t *entry, const scan *s, uint64_t number,
                             pseg_err *err)
{
    coco *c = ud;
    json_t *item = json_object(), *own = own_prompts(entry), *one;
    const char *image = batch_json_get(entry, "file_name");
    json_t *id = json_object_get(entry, "id");
    bool is_text = true;
    size_t i;

    json_array_foreach(own, i, one) is_text = is_text && json_is_string(one);
    json_object_set_new(item, "line", json_integer((json_int_t)number));
    if (json_is_integer(id))
        json_object_set(item, "image_id", id);
    if (*image)
        json_object_set_new(item, "image", json_string(image));
    if (own && is_text)
        json_object_set(item, "prompts", own);
    json_decref(own);
    if (!json_is_object(entry) || !*image || !json_is_integer(id))
        return batch_planner_add_bad(c->w, item, number, PSEG_R_DATA_CORRUPT, err,
                                     "image %llu of %s is no object with file_name and id%s",
                                     (unsigned long long)number, s->path,
                                     s->too_long ? ": it is over the limit of 1 MiB" : "");
    if (!is_text)
        return batch_planner_add_bad(c->w, item, number, PSEG_R_PROMPT_NOT_TEXT, err,
                                     "image %llu of %s: a prompt is no text",
                                     (unsigned long long)number, s->path);
    if (!json_object_get(item, "prompts") && batch_planner_source(c->w)->prompts.n == 0 &&
        json_array_size(c->names)) {
        json_object_set(item, "prompts", c->names);
        json_object_set(item, "categories", c->ids);
    }
    return batch_planner_add(c->w, item, err);
}

pseg_status batch_read_coco(batch_planner *w, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    coco c = {w, json_array(), json_array()};
    bool found;

    /* They stand behind the images, as a rule: hence twice. */
    if (batch_planner_source(w)->prompts.n == 0)
        PSEG_TRY(member(&found, path, "categories", add_category, &c, err));
    PSEG_TRY(member(&found, path, "images", add_image, &c, err));
    if (!found)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "%s is no COCO file: it has no \"images\"", path);
out:
    json_decref(c.names);
    json_decref(c.ids);
    return rc;
}
