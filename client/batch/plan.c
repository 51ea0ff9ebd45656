#include "client/batch/plan.h"

#include "client/batch/json.h"
#include "common/base/alloc.h"
#include "common/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct batch_planner {
    const batch_source *source;
    json_t *prompts; /* of the source; NULL: none */
    FILE *items, *index;
    const char *dir;
    pseg_buf text;
    uint64_t at, n;
};

struct batch_plan {
    int items, index;
    uint64_t n;
};

bool batch_form_parse(batch_form *out, const char *name)
{
    static const char *const names[] = {"auto", "jsonl", "csv", "tsv", "coco", "images"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (batch_form)i;
            return true;
        }
    return false;
}

const batch_source *batch_planner_source(const batch_planner *w)
{
    return w->source;
}

/* ---- writing ---- */

static pseg_status put(batch_planner *w, const json_t *item, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t at = w->at;

    pseg_buf_clear(&w->text);
    PSEG_TRY(batch_json_put(&w->text, item, err));
    PSEG_TRY(pseg_buf_puts(&w->text, "\n", err));
    if (fwrite(w->text.data, 1, w->text.len, w->items) != w->text.len ||
        fwrite(&at, sizeof at, 1, w->index) != 1)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write the plan into %s: %s", w->dir,
                  strerror(errno));
    w->at += w->text.len;
    w->n++;
out:
    return rc;
}

pseg_status batch_planner_add_bad(batch_planner *w, json_t *item, uint64_t line, pseg_reason reason,
                                  pseg_err *err, const char *fmt, ...)
{
    pseg_err text = PSEG_ERR_INIT; /* its message is one line of UTF-8 of bounded length */
    va_list ap;

    va_start(ap, fmt);
    pseg_err_setv(&text, reason, 0, PSEG_HERE, fmt, ap);
    va_end(ap);
    if (!json_is_object(item)) {
        json_decref(item);
        item = json_object();
    }
    json_object_set_new(item, "line", json_integer((json_int_t)line));
    json_object_set_new(item, "reason", json_string(pseg_reason_name(reason)));
    json_object_set_new(item, "message", json_string(text.msg));
    pseg_status rc = put(w, item, err);
    json_decref(item);
    return rc;
}

static json_t *slice(const json_t *list, size_t from, size_t n)
{
    json_t *part = json_array();

    for (size_t i = from; i < from + n && i < json_array_size(list); i++)
        json_array_append(part, json_array_get(list, i));
    return part;
}

/* As many items as it takes: the image is the same, and a worker that has encoded it a moment ago
 * need not do so again. */
static pseg_status put_in_parts(batch_planner *w, json_t *item, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const json_t *categories = json_object_get(item, "categories");

    for (size_t at = 0; at < n; at += BATCH_MAX_PROMPTS) {
        json_t *part = json_copy(item);
        json_object_set_new(part, "prompts",
                            slice(json_object_get(item, "prompts"), at, BATCH_MAX_PROMPTS));
        if (categories)
            json_object_set_new(part, "categories", slice(categories, at, BATCH_MAX_PROMPTS));
        rc = put(w, part, err);
        json_decref(part);
        PSEG_TRY(rc);
    }
out:
    return rc;
}

pseg_status batch_planner_add(batch_planner *w, json_t *item, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t line = (uint64_t)json_integer_value(json_object_get(item, "line"));
    const json_t *prompts = json_object_get(item, "prompts");

    if (json_array_size(prompts) == 0) {
        if (!w->prompts) {
            rc = batch_planner_add_bad(w, json_incref(item), line, PSEG_R_PROMPT_MISSING, err,
                                       "no prompt: neither the line has one nor --prompt");
            goto out;
        }
        json_object_set(item, "prompts", w->prompts);
        prompts = w->prompts;
    }
    size_t n = json_array_size(prompts);
    PSEG_TRY(n <= BATCH_MAX_PROMPTS ? put(w, item, err) : put_in_parts(w, item, n, err));
out:
    json_decref(item);
    return rc;
}

static pseg_status set_prompts(batch_planner *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_conf_list *list = &w->source->prompts;

    if (list->n == 0)
        goto out;
    w->prompts = json_array();
    for (size_t i = 0; i < list->n; i++)
        if (json_array_append_new(w->prompts, json_string(list->items[i])) != 0)
            PSEG_FAIL(PSEG_R_PROMPT_NOT_TEXT, 0, "--prompt \"%s\" is not UTF-8", list->items[i]);
out:
    return rc;
}

static const char *ending_of(const char *path)
{
    const char *dot = strrchr(path, '.');

    return dot && !strchr(dot, '/') ? dot : "";
}

batch_form batch_source_form(const batch_source *s)
{
    static const struct {
        const char *ending;
        batch_form form;
    } forms[] = {{".jsonl", BATCH_JSONL},
                 {".ndjson", BATCH_JSONL},
                 {".csv", BATCH_CSV},
                 {".tsv", BATCH_TSV},
                 {".json", BATCH_COCO}};
    struct stat st;

    if (s->form != BATCH_AUTO)
        return s->form;
    if (strcmp(s->names[0], "-") == 0)
        return BATCH_JSONL;
    if (stat(s->names[0], &st) == 0 && S_ISDIR(st.st_mode))
        return BATCH_IMAGES;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (strcasecmp(ending_of(s->names[0]), forms[i].ending) == 0)
            return forms[i].form;
    return BATCH_IMAGES;
}

static pseg_status read_source(batch_planner *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const batch_source *s = w->source;

    if (s->n_names == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "name a manifest, a folder or images (--help tells more)");
    batch_form form = batch_source_form(s);
    if (form == BATCH_IMAGES) {
        if (s->prompts.n == 0)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "images alone say nothing of what to find: give --prompt");
        PSEG_TRY(batch_read_images(w, err));
        goto out;
    }
    if (s->n_names > 1)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%s is a manifest, and \"%s\" stands behind it; name one", s->names[0],
                  s->names[1]);
    if (form == BATCH_COCO)
        PSEG_TRY(batch_read_coco(w, s->names[0], err));
    else
        PSEG_TRY(batch_read_lines(w, s->names[0], form, err));
out:
    return rc;
}

/* The index comes last: where it is, the plan is whole. */
static pseg_status keep(batch_planner *w, const char *items_tmp, const char *index_tmp,
                        pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *items = pseg_path_join(w->dir, "plan.jsonl"),
         *index = pseg_path_join(w->dir, "plan.index");
    uint64_t at = w->at;

    if (!items || !index)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    if (fwrite(&at, sizeof at, 1, w->index) != 1 || fflush(w->items) || fflush(w->index) ||
        fsync(fileno(w->items)) || fsync(fileno(w->index)) || rename(items_tmp, items) ||
        rename(index_tmp, index))
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write the plan into %s: %s", w->dir,
                  strerror(errno));
out:
    pseg_free(items);
    pseg_free(index);
    return rc;
}

pseg_status batch_plan_make(const char *dir, const batch_source *source, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_planner w = {.source = source, .dir = dir};
    char *items = pseg_path_join(dir, "plan.jsonl.new"),
         *index = pseg_path_join(dir, "plan.index.new");

    pseg_buf_init(&w.text, 16 * BATCH_LINE_BYTES);
    if (!items || !index)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    PSEG_TRY(set_prompts(&w, err));
    w.items = fopen(items, "we");
    w.index = fopen(index, "we");
    if (!w.items || !w.index)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write the plan into %s: %s", dir, strerror(errno));
    PSEG_TRY(read_source(&w, err));
    if (w.n == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "nothing to do: %s%s names no image", source->names[0],
                  source->n_names > 1 ? " and what follows it" : "");
    PSEG_TRY(keep(&w, items, index, err));
out:
    if (w.items)
        fclose(w.items);
    if (w.index)
        fclose(w.index);
    if (rc != PSEG_OK && items && index) {
        unlink(items);
        unlink(index);
    }
    json_decref(w.prompts);
    pseg_buf_deinit(&w.text);
    pseg_free(items);
    pseg_free(index);
    return rc;
}

void batch_plan_remove(const char *dir)
{
    static const char *const names[] = {"plan.index", "plan.jsonl"};

    for (size_t i = 0; i < 2; i++) {
        char *path = pseg_path_join(dir, names[i]);
        if (path)
            unlink(path);
        pseg_free(path);
    }
}

/* ---- reading ---- */

static pseg_status open_part(int *fd, const char *dir, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = pseg_path_join(dir, name);

    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd < 0)
        PSEG_FAIL(errno == ENOENT ? PSEG_R_FILE_NOT_FOUND : PSEG_R_FILE_IO, errno,
                  "cannot open %s: %s", path, strerror(errno));
out:
    pseg_free(path);
    return rc;
}

pseg_status batch_plan_open(batch_plan **out, const char *dir, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_plan *p = pseg_calloc(1, sizeof *p);
    struct stat items, index;
    uint64_t end = 0;

    *out = NULL;
    if (!p)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    p->items = p->index = -1;
    PSEG_TRY(open_part(&p->items, dir, "plan.jsonl", err));
    PSEG_TRY(open_part(&p->index, dir, "plan.index", err));
    if (fstat(p->items, &items) || fstat(p->index, &index))
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot look at the plan in %s: %s", dir, strerror(errno));
    if (index.st_size < (off_t)(2 * sizeof end) || index.st_size % (off_t)sizeof end ||
        pread(p->index, &end, sizeof end, index.st_size - (off_t)sizeof end) != sizeof end ||
        end != (uint64_t)items.st_size)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "plan.jsonl and plan.index in %s are not of one batch",
                  dir);
    p->n = (uint64_t)index.st_size / sizeof end - 1;
    *out = p;
    p = NULL;
out:
    batch_plan_close(p);
    return rc;
}

void batch_plan_close(batch_plan *p)
{
    if (!p)
        return;
    if (p->items >= 0)
        close(p->items);
    if (p->index >= 0)
        close(p->index);
    pseg_free(p);
}

uint64_t batch_plan_items(const batch_plan *p)
{
    return p->n;
}

pseg_status batch_plan_get(json_t **out, const batch_plan *p, uint64_t seq, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t at[2] = {0, 0};
    char small[4096], *text = small;

    *out = NULL;
    PSEG_REQUIRE(seq >= 1 && seq <= p->n, "seq");
    if (pread(p->index, at, sizeof at, (off_t)((seq - 1) * sizeof *at)) != sizeof at ||
        at[1] <= at[0] || at[1] - at[0] > 16 * BATCH_LINE_BYTES)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "plan.index is damaged at item %llu",
                  (unsigned long long)seq);
    size_t len = (size_t)(at[1] - at[0]);
    if (len > sizeof small && !(text = pseg_malloc(len)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an item of %zu bytes", len);
    if (pread(p->items, text, len, (off_t)at[0]) != (ssize_t)len ||
        !(*out = json_loadb(text, len, 0, NULL)))
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "plan.jsonl is damaged at item %llu",
                  (unsigned long long)seq);
out:
    if (text != small)
        pseg_free(text);
    return rc;
}
