#include "client/batch/output.h"

#include "client/batch/json.h"
#include "common/base/alloc.h"
#include "common/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define RECORD_BYTES ((size_t)1 << 30)
#define BUFFER_BYTES ((size_t)256 << 10)

/* A file that grows, by our own buffer: what its position is is never in doubt. */
typedef struct sink {
    char *path;
    int fd;
    pseg_buf buffer; /* of what is not in the file yet */
    uint64_t bytes;  /* of the file and the buffer */
} sink;

struct batch_output {
    char *dir, *final_path; /* final_path: of the results */
    batch_format format;
    sink results, failures;
    uint64_t made_folder; /* 1 + number of the folder of masks that is known to be there; 0: none */
};

bool batch_format_parse(batch_format *out, const char *name)
{
    static const char *const names[] = {"jsonl", "coco", "png"};

    for (size_t i = 0; i < 3; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (batch_format)i;
            return true;
        }
    return false;
}

Pseg__V1__MaskEncoding batch_format_encoding(batch_format f)
{
    return f == BATCH_PNG ? PSEG__V1__MASK_ENCODING__MASK_ENCODING_PNG
                          : PSEG__V1__MASK_ENCODING__MASK_ENCODING_COCO_RLE;
}

/* ---- files ---- */

static pseg_status sink_open(sink *s, char *path, uint64_t at, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    struct stat st;

    s->path = path;
    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    s->fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (s->fd < 0 || fstat(s->fd, &st))
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", path, strerror(errno));
    if ((uint64_t)st.st_size < at)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                  "%s has %lld bytes, but had %llu when this batch was cut off; bring it back, or "
                  "begin in another folder",
                  path, (long long)st.st_size, (unsigned long long)at);
    if (ftruncate(s->fd, (off_t)at) || lseek(s->fd, 0, SEEK_END) < 0)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", path, strerror(errno));
    s->bytes = at;
out:
    return rc;
}

static pseg_status sink_flush(sink *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t at = 0; at < s->buffer.len;) {
        ssize_t n = write(s->fd, s->buffer.data + at, s->buffer.len - at);
        if (n < 0 && errno != EINTR)
            PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", s->path, strerror(errno));
        at += n > 0 ? (size_t)n : 0;
    }
    pseg_buf_clear(&s->buffer);
out:
    return rc;
}

static pseg_status sink_put(sink *s, const char *before, const json_t *j, const char *after,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t len = s->buffer.len;

    PSEG_TRY(pseg_buf_puts(&s->buffer, before, err));
    PSEG_TRY(batch_json_put(&s->buffer, j, err));
    PSEG_TRY(pseg_buf_puts(&s->buffer, after, err));
    s->bytes += s->buffer.len - len;
    if (s->buffer.len >= BUFFER_BYTES)
        PSEG_TRY(sink_flush(s, err));
out:
    return rc;
}

static void sink_close(sink *s)
{
    if (s->fd >= 0)
        close(s->fd);
    pseg_buf_deinit(&s->buffer);
    pseg_free(s->path);
}

/* A batch whose end was cut off may have its final name already. */
static char *reopen_part(const char *final_path)
{
    char *part = pseg_asprintf("%s.part", final_path);

    if (part && !pseg_file_exists(part) && pseg_file_exists(final_path) &&
        rename(final_path, part) != 0) {
        pseg_free(part);
        return NULL;
    }
    return part;
}

char *batch_output_path(const char *dir, batch_format format)
{
    return pseg_path_join(dir, format == BATCH_COCO_RESULTS ? "results.json" : "results.jsonl");
}

pseg_status batch_output_open(batch_output **out, const char *dir, batch_format format,
                              const batch_position *at, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_output *o = pseg_calloc(1, sizeof *o);

    *out = NULL;
    if (!o)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    o->format = format;
    o->results.fd = o->failures.fd = -1;
    pseg_buf_init(&o->results.buffer, RECORD_BYTES);
    pseg_buf_init(&o->failures.buffer, RECORD_BYTES);
    o->dir = pseg_strdup(dir);
    o->final_path = batch_output_path(dir, format);
    if (!o->dir || !o->final_path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    PSEG_TRY(sink_open(&o->results,
                       format == BATCH_COCO_RESULTS ? reopen_part(o->final_path)
                                                    : pseg_strdup(o->final_path),
                       at->results_bytes, err));
    PSEG_TRY(
        sink_open(&o->failures, pseg_path_join(dir, "failures.jsonl"), at->failures_bytes, err));
    *out = o;
    o = NULL;
out:
    batch_output_close(o);
    return rc;
}

void batch_output_close(batch_output *o)
{
    if (!o)
        return;
    sink_close(&o->results);
    sink_close(&o->failures);
    pseg_free(o->dir);
    pseg_free(o->final_path);
    pseg_free(o);
}

pseg_status batch_output_sync(batch_position *at, batch_output *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(sink_flush(&o->results, err));
    PSEG_TRY(sink_flush(&o->failures, err));
    /* The masks are thousands of files: one call for the file system instead of one for each. */
    int bad = o->format == BATCH_PNG ? syncfs(o->results.fd) : fdatasync(o->results.fd);
    if (bad || fdatasync(o->failures.fd))
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write into %s: %s", o->dir, strerror(errno));
    *at = (batch_position){o->results.bytes, o->failures.bytes};
out:
    return rc;
}

pseg_status batch_output_finish(batch_output *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_position ignored;

    if (o->format == BATCH_COCO_RESULTS)
        PSEG_TRY(pseg_buf_puts(&o->results.buffer, o->results.bytes ? "\n]\n" : "[]\n", err));
    PSEG_TRY(batch_output_sync(&ignored, o, err));
    if (o->format == BATCH_COCO_RESULTS && rename(o->results.path, o->final_path))
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", o->final_path, strerror(errno));
out:
    return rc;
}

/* ---- records ---- */

/* masks/000/000017-0.png: a thousand items a folder. Borrowed name of `path` within the folder. */
static pseg_status put_png(char *name, size_t room, batch_output *o, uint64_t seq, size_t i,
                           const Pseg__V1__Mask *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t folder = seq / 1000;
    char *path = NULL;
    int fd = -1;

    snprintf(name, room, "masks/%03llu", (unsigned long long)folder);
    if (o->made_folder != folder + 1) {
        if (!(path = pseg_path_join(o->dir, name)))
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
        PSEG_TRY(pseg_dir_make(path, err));
        o->made_folder = folder + 1;
        pseg_free(path);
    }
    snprintf(name, room, "masks/%03llu/%06llu-%zu.png", (unsigned long long)folder,
             (unsigned long long)seq, i);
    if (!(path = pseg_path_join(o->dir, name)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    /* In place: one that is cut off is written again, for its result was not kept as told. */
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    for (size_t at = 0; fd >= 0 && at < m->data.len;) {
        ssize_t n = write(fd, m->data.data + at, m->data.len - at);
        if (n < 0 && errno != EINTR)
            PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", path, strerror(errno));
        at += n > 0 ? (size_t)n : 0;
    }
    if (fd < 0 || close(fd))
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", path, strerror(errno));
    fd = -1;
out:
    if (fd >= 0)
        close(fd);
    pseg_free(path);
    return rc;
}

static json_t *box_of(const Pseg__V1__PromptResult *r)
{
    const Pseg__V1__BoundingBox *b = r->box;

    return json_pack("[i,i,i,i]", b ? (int)b->x : 0, b ? (int)b->y : 0, b ? (int)b->width : 0,
                     b ? (int)b->height : 0);
}

static json_t *segmentation_of(const Pseg__V1__Mask *m)
{
    json_t *counts = json_stringn((const char *)m->data.data, m->data.len);

    return counts ? json_pack("{s:[i,i], s:o}", "size", (int)m->height, (int)m->width, "counts",
                              counts)
                  : NULL;
}

static void copy(json_t *to, const json_t *item, const char *key)
{
    json_t *value = json_object_get(item, key);

    if (value)
        json_object_set(to, key, value);
}

static json_t *begin_record(const json_t *item)
{
    static const char *const keys[] = {"line", "id", "image_id", "image"};
    json_t *j = json_object();

    for (size_t i = 0; i < 4; i++)
        copy(j, item, keys[i]);
    return j;
}

static pseg_status put_line(batch_output *o, uint64_t seq, const json_t *item,
                            const Pseg__V1__Job *job, Pseg__V1__Mask *const *masks, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    json_t *j = begin_record(item), *list = json_array();
    const json_t *prompts = json_object_get(item, "prompts");
    char name[64];

    json_object_set_new(j, "job", batch_json_text(job->name));
    json_object_set_new(j, "width", json_integer(job->image_width));
    json_object_set_new(j, "height", json_integer(job->image_height));
    json_object_set_new(j, "results", list);
    for (size_t i = 0; i < job->n_results; i++) {
        const Pseg__V1__PromptResult *r = job->results[i];
        json_t *one = json_object();
        json_array_append_new(list, one);
        json_object_set(one, "prompt", json_array_get(prompts, i));
        json_object_set_new(one, "score", json_real((double)r->predicted_iou));
        json_object_set_new(one, "area", json_integer((json_int_t)r->area_px));
        json_object_set_new(one, "bbox", box_of(r));
        if (r->truncated)
            json_object_set_new(one, "truncated", json_true());
        if (o->format == BATCH_PNG) {
            PSEG_TRY(put_png(name, sizeof name, o, seq, i, masks[i], err));
            json_object_set_new(one, "mask", json_string(name));
        } else {
            json_object_set_new(one, "segmentation", segmentation_of(masks[i]));
        }
    }
    PSEG_TRY(sink_put(&o->results, "", j, "\n", err));
out:
    json_decref(j);
    return rc;
}

/* An entry for each prompt. Where a manifest has no image_id, its line stands for it, and the
 * prompt's place, from 1, for a category. */
static pseg_status put_coco(batch_output *o, const json_t *item, const Pseg__V1__Job *job,
                            Pseg__V1__Mask *const *masks, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    json_t *image_id = json_object_get(item, "image_id");
    const json_t *categories = json_object_get(item, "categories");

    if (!image_id)
        image_id = json_object_get(item, "line");
    for (size_t i = 0; i < job->n_results; i++) {
        const Pseg__V1__PromptResult *r = job->results[i];
        json_t *j = json_object(), *category = json_array_get(categories, i);
        json_object_set(j, "image_id", image_id);
        json_object_set_new(j, "category_id",
                            category ? json_incref(category) : json_integer((json_int_t)i + 1));
        json_object_set_new(j, "segmentation", segmentation_of(masks[i]));
        json_object_set_new(j, "bbox", box_of(r));
        json_object_set_new(j, "area", json_integer((json_int_t)r->area_px));
        json_object_set_new(j, "score", json_real((double)r->predicted_iou));
        rc = sink_put(&o->results, o->results.bytes ? ",\n" : "[\n", j, "", err);
        json_decref(j);
        PSEG_TRY(rc);
    }
out:
    return rc;
}

pseg_status batch_output_result(batch_output *o, uint64_t seq, const json_t *item,
                                const Pseg__V1__Job *job, Pseg__V1__Mask *const *masks,
                                size_t n_masks, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (n_masks != job->n_results || n_masks != json_array_size(json_object_get(item, "prompts")))
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "item %llu: %zu prompts, %zu results and %zu masks",
                  (unsigned long long)seq, json_array_size(json_object_get(item, "prompts")),
                  job->n_results, n_masks);
    if (o->format == BATCH_COCO_RESULTS)
        PSEG_TRY(put_coco(o, item, job, masks, err));
    else
        PSEG_TRY(put_line(o, seq, item, job, masks, err));
out:
    return rc;
}

pseg_status batch_output_failure(batch_output *o, const json_t *item, const char *state,
                                 const char *reason, const char *message, pseg_err *err)
{
    json_t *j = begin_record(item);

    json_object_set_new(j, "state", batch_json_text(state));
    json_object_set_new(j, "reason", batch_json_text(reason));
    json_object_set_new(j, "message", batch_json_text(message));
    pseg_status rc = sink_put(&o->failures, "", j, "\n", err);
    json_decref(j);
    return rc;
}
