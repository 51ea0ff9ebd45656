#include "worker/data/fields.h"
#include "common/base/alloc.h"

#include <math.h>
#include <string.h>

void fields_room_deinit(fields_room *r)
{
    pseg_free(r->runs);
    pseg_free(r->ring_len);
    pseg_free(r->points);
    pseg_free(r->sentences);
    *r = (fields_room){0};
}

/* Room for n of `size` bytes at *p, whose contents are lost. */
static bool make_room(void *p, size_t *cap, size_t n, size_t size)
{
    void **at = p;
    size_t bytes;

    if (n <= *cap)
        return true;
    pseg_free(*at);
    *cap = 0;
    *at = pseg_mul_size(&bytes, n, size) ? pseg_malloc(bytes) : NULL;
    if (*at)
        *cap = n;
    return *at != NULL;
}

bool fields_int(int64_t *out, const json_t *o, const char *name, int64_t absent)
{
    const json_t *v = json_object_get(o, name);

    *out = absent;
    if (!v || json_is_null(v))
        return true;
    if (json_is_real(v) && json_real_value(v) == floor(json_real_value(v)) &&
        fabs(json_real_value(v)) < 0x1p53) {
        *out = (int64_t)json_real_value(v);
        return true;
    }
    *out = json_integer_value(v);
    return json_is_integer(v);
}

bool fields_text(const char **out, const json_t *o, const char *name, const char *absent)
{
    const json_t *v = json_object_get(o, name);

    *out = absent;
    if (!v || json_is_null(v))
        return true;
    *out = json_string_value(v);
    return *out != NULL;
}

static bool read_size(pseg_data_mask *m, const json_t *size)
{
    json_int_t h = json_integer_value(json_array_get(size, 0));
    json_int_t w = json_integer_value(json_array_get(size, 1));

    if (json_array_size(size) != 2 || h < 1 || w < 1 || h > INT32_MAX || w > INT32_MAX)
        return false;
    m->height = (uint32_t)h;
    m->width = (uint32_t)w;
    return true;
}

static const char *read_runs(pseg_data_mask *m, const json_t *counts, fields_room *room)
{
    const json_t *v;
    size_t i;

    m->form = PSEG_DATA_MASK_RUNS;
    m->n_runs = json_array_size(counts);
    if (!make_room(&room->runs, &room->cap_runs, m->n_runs, sizeof *room->runs))
        return "there is no memory for its counts";
    json_array_foreach(counts, i, v)
    {
        json_int_t n = json_integer_value(v);
        if (!json_is_integer(v) || n < 0 || n > UINT32_MAX)
            return "its counts are not whole numbers";
        room->runs[i] = (uint32_t)n;
    }
    m->runs = room->runs;
    return NULL;
}

static const char *read_rings(pseg_data_mask *m, const json_t *rings, fields_room *room)
{
    const json_t *ring, *v;
    size_t i, k, n = 0;

    m->form = PSEG_DATA_MASK_POLYGON;
    json_array_foreach(rings, i, ring)
    {
        if (!json_is_array(ring))
            return "its polygons are not lists of numbers";
        n += json_array_size(ring);
    }
    if (!make_room(&room->ring_len, &room->cap_rings, json_array_size(rings),
                   sizeof *room->ring_len) ||
        !make_room(&room->points, &room->cap_points, n, sizeof *room->points))
        return "there is no memory for its polygons";
    n = 0;
    json_array_foreach(rings, i, ring)
    {
        json_array_foreach(ring, k, v)
        {
            if (!json_is_number(v))
                return "its polygons are not lists of numbers";
            room->points[n++] = json_number_value(v);
        }
        room->ring_len[i] = (uint32_t)k;
    }
    m->n_rings = (uint32_t)json_array_size(rings);
    m->ring_len = room->ring_len;
    m->points = room->points;
    return NULL;
}

static const char *read_mask(pseg_data_mask *m, const json_t *mask, fields_room *room)
{
    const json_t *counts = json_object_get(mask, "counts");

    if (json_is_array(mask))
        return m->width && m->height ? read_rings(m, mask, room)
                                     : "a polygon needs the image's width and height beside it";
    if (!json_is_object(mask))
        return "it has no mask";
    if (!read_size(m, json_object_get(mask, "size")))
        return "its mask has no \"size\": [height, width]";
    if (json_is_array(counts))
        return read_runs(m, counts, room);
    m->form = PSEG_DATA_MASK_RLE;
    m->rle = json_string_value(counts);
    return m->rle ? NULL : "its mask has no \"counts\"";
}

bool fields_sample(pseg_data_sample *out, const char **why, const json_t *o, fields_room *room,
                   uint32_t width, uint32_t height)
{
    const json_t *mask = json_object_get(o, "mask"), *bbox = json_object_get(o, "bbox"),
                 *area = json_object_get(o, "area");
    int64_t crowd;

    *out = (pseg_data_sample){.area = -1, .bbox = {0, 0, -1, -1}};
    out->mask.width = width;
    out->mask.height = height;
    *why = "it is no object";
    if (!json_is_object(o))
        return false;
    *why = read_mask(&out->mask, mask ? mask : json_object_get(o, "segmentation"), room);
    if (*why)
        return false;
    *why = "its id, iscrowd, category or kind is of another type than it should be";
    if (!fields_int(&out->id, o, "id", -1) || !fields_int(&crowd, o, "iscrowd", 0) ||
        !fields_text(&out->category, o, "category", "") || !fields_text(&out->kind, o, "kind", ""))
        return false;
    out->is_crowd = crowd != 0;
    if (json_is_number(area))
        out->area = json_number_value(area);
    for (size_t i = 0; json_array_size(bbox) == 4 && i < 4; i++)
        out->bbox[i] = json_number_value(json_array_get(bbox, i));
    return true;
}

bool fields_sentences(pseg_data_sample *out, const char **why, const json_t *o, fields_room *room)
{
    const json_t *list = json_object_get(o, "sentences"), *v;
    size_t i, n = json_array_size(list);

    *why = "there is no memory for its phrases";
    if (!make_room(&room->sentences, &room->cap_sentences, n + 1, sizeof *room->sentences))
        return false;
    *why = "its \"sentences\" are no list of strings";
    if (list && !json_is_array(list))
        return false;
    json_array_foreach(list, i, v)
    {
        room->sentences[i] = json_string_value(v);
        if (!room->sentences[i])
            return false;
    }
    if (!list && !fields_text(&room->sentences[0], o, "sentence", NULL))
        return false;
    if (!list && !room->sentences[0] && !fields_text(&room->sentences[0], o, "phrase", NULL))
        return false;
    out->n_sentences = list ? (uint32_t)n : room->sentences[0] != NULL;
    out->sentences = room->sentences;
    return true;
}
