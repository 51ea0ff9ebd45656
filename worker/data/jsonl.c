/* JSON lines: an image a line, {"image": file, "width", "height", "samples": [...]}. */
#include "common/base/file.h"
#include "worker/data/builder.h"
#include "worker/data/fields.h"

#include <string.h>

enum { MAX_LINE = 256 << 20, DROP_EVERY = 16 << 20 };

static bool is_of_split(const pseg_dataset *d, const json_t *line)
{
    const char *split = json_string_value(json_object_get(line, "split"));

    return !d->o.split || (split && strcmp(split, d->o.split) == 0);
}

static pseg_status read_samples(pseg_dataset *d, const json_t *line, const builder_image_in *in,
                                fields_room *room, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const json_t *samples = json_object_get(line, "samples"), *o;
    pseg_data_sample s;
    const char *why;
    uint32_t index;
    char where[320];
    size_t i;

    PSEG_TRY(builder_image(&index, d, in, err));
    json_array_foreach(samples, i, o)
    {
        snprintf(where, sizeof where, "%s sample %zu", in->where, i);
        if (fields_sample(&s, &why, o, room, in->width, in->height) &&
            fields_sentences(&s, &why, o, room))
            PSEG_TRY(builder_sample(d, index, &s, where, err));
        else
            builder_fault(d, PSEG_DATA_BAD_RECORD, where, "the sample cannot be read: %s", why);
    }
out:
    return rc;
}

static pseg_status read_line(pseg_dataset *d, const json_t *line, const char *where,
                             fields_room *room, pseg_err *err)
{
    builder_image_in in = {.where = where};
    int64_t width, height;
    bool good = json_is_object(line) && fields_text(&in.file_name, line, "image", NULL) &&
                (in.file_name || fields_text(&in.file_name, line, "file_name", NULL)) &&
                fields_int(&in.image_id, line, "image_id", -1) &&
                fields_int(&width, line, "width", 0) && fields_int(&height, line, "height", 0);

    if (!good || !in.file_name || !in.file_name[0]) {
        builder_fault(d, PSEG_DATA_BAD_RECORD, where, "the line has no \"image\": a file's name");
        return PSEG_OK;
    }
    if (width < 0 || height < 0 || width > INT32_MAX || height > INT32_MAX) {
        builder_fault(d, PSEG_DATA_BAD_RECORD, where, "width or height is out of range");
        return PSEG_OK;
    }
    in.width = (uint32_t)width;
    in.height = (uint32_t)height;
    if (!json_is_array(json_object_get(line, "samples"))) {
        builder_fault(d, PSEG_DATA_BAD_RECORD, where, "the line has no \"samples\": a list");
        return PSEG_OK;
    }
    return is_of_split(d, line) ? read_samples(d, line, &in, room, err) : PSEG_OK;
}

static bool is_empty(const char *s, size_t n)
{
    while (n && (s[n - 1] == ' ' || s[n - 1] == '\r' || s[n - 1] == '\t'))
        n--;
    return n == 0;
}

static pseg_status take_line(pseg_dataset *d, const char *s, size_t n, const char *where,
                             fields_room *room, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    json_error_t fault;
    json_t *line = NULL;

    if (is_empty(s, n))
        return rc;
    if (n > MAX_LINE) {
        builder_fault(d, PSEG_DATA_BAD_RECORD, where, "a line of %zu bytes; the limit is %d", n,
                      MAX_LINE);
        return rc;
    }
    line = json_loadb(s, n, 0, &fault);
    if (!line)
        builder_fault(d, PSEG_DATA_BAD_RECORD, where, "the line is no JSON: %s (byte %d)",
                      fault.text, fault.position);
    else
        rc = read_line(d, line, where, room, err);
    json_decref(line);
    return rc;
}

pseg_status jsonl_read(pseg_dataset *d, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    fields_room room = {0};
    pseg_map map = {0};
    size_t number = 0, dropped = 0;
    char where[256];

    PSEG_TRY(pseg_map_open(&map, path, err));
    for (size_t at = 0; at < map.size;) {
        const char *s = (const char *)map.data + at;
        const char *end = memchr(s, '\n', map.size - at);
        size_t n = end ? (size_t)(end - s) : map.size - at;
        snprintf(where, sizeof where, "%.200s:%zu", base, ++number);
        PSEG_TRY(take_line(d, s, n, where, &room, err));
        at += n + 1;
        if (at - dropped > DROP_EVERY && at < map.size) {
            pseg_map_drop(map.data + dropped, at - dropped);
            dropped = at;
        }
    }
out:
    pseg_map_close(&map);
    fields_room_deinit(&room);
    return rc;
}
