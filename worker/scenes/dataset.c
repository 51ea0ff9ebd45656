#include "worker/scenes/dataset.h"
#include "common/base/alloc.h"
#include "common/base/buf.h"
#include "common/base/file.h"
#include "common/mask/mask.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

/* Larger than any PNG or line of a scene of 1024 x 1024. */
enum { MAX_BYTES = 16 << 20, MAX_NAME = 48 };

struct pseg_scene_dataset {
    char *dir, *lines_path, *part_path; /* the lines' final name, and theirs until then */
    FILE *lines;
    bool is_broken;
};

pseg_status pseg_scene_dataset_open(pseg_scene_dataset **out, const char *dir, pseg_err *err)
{
    static const char *const folders[] = {"images", "masks"};
    pseg_status rc = PSEG_OK;
    pseg_scene_dataset *d = NULL;
    char *path = NULL;

    *out = NULL;
    d = pseg_calloc(1, sizeof *d);
    if (d) {
        d->dir = pseg_strdup(dir);
        d->lines_path = pseg_path_join(dir, "scenes.jsonl");
        d->part_path = pseg_path_join(dir, "scenes.jsonl.part");
    }
    if (!d || !d->dir || !d->lines_path || !d->part_path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        pseg_free(path);
        path = pseg_path_join(dir, folders[i]);
        if (!path)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
        PSEG_TRY(pseg_dir_make(path, err));
    }
    /* A set that is being made again is not whole. */
    if (remove(d->lines_path) != 0 && errno != ENOENT)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot replace %s: %s", d->lines_path, strerror(errno));
    d->lines = fopen(d->part_path, "w");
    if (!d->lines)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", d->part_path, strerror(errno));
    *out = d;
    d = NULL;
out:
    pseg_free(path);
    pseg_scene_dataset_free(d);
    return rc;
}

/* Not pseg_file_write: its sync per file would make thousands of small files slow, and scenes.jsonl
 * already tells a whole set from a broken one. */
static pseg_status write_file(const pseg_scene_dataset *d, const char *name, const pseg_buf *b,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = NULL;
    FILE *f = NULL;

    path = pseg_path_join(d->dir, name);
    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a path");
    f = fopen(path, "wb");
    if (!f || fwrite(b->data, 1, b->len, f) != b->len)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", path, strerror(errno));
    int closed = fclose(f);
    f = NULL;
    if (closed != 0)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", path, strerror(errno));
out:
    if (f)
        fclose(f);
    pseg_free(path);
    return rc;
}

static void image_name(char out[MAX_NAME], const pseg_scene *s)
{
    snprintf(out, MAX_NAME, "images/%06" PRIu64 ".png", s->seed);
}

static void mask_name(char out[MAX_NAME], const pseg_scene *s, int object)
{
    snprintf(out, MAX_NAME, "masks/%06" PRIu64 "_%d.png", s->seed, object + 1);
}

/* Object k's mask: its file, and its counts into rle. */
static pseg_status write_mask(pseg_buf *rle, const pseg_scene_dataset *d, const pseg_scene *s,
                              int object, uint8_t *pixels, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = (size_t)s->width * (size_t)s->height;
    char name[MAX_NAME];
    pseg_mask *m = NULL;
    pseg_buf png;

    pseg_buf_init(&png, MAX_BYTES);
    for (size_t i = 0; i < n; i++)
        pixels[i] = s->id[i] == object + 1;
    PSEG_TRY(pseg_mask_from_pixels(&m, pixels, (uint32_t)s->width, (uint32_t)s->height, err));
    PSEG_TRY(pseg_mask_png(&png, m, err));
    mask_name(name, s, object);
    PSEG_TRY(write_file(d, name, &png, err));
    PSEG_TRY(pseg_mask_rle(rle, m, err));
out:
    pseg_buf_deinit(&png);
    pseg_mask_free(m);
    return rc;
}

static json_t *bbox_json(const pseg_scene_object *o)
{
    return json_pack("[iiii]", o->bbox[0], o->bbox[1], o->bbox[2], o->bbox[3]);
}

static json_t *object_json(const pseg_scene *s, int k)
{
    const pseg_scene_object *o = &s->objects[k];
    char name[MAX_NAME];

    mask_name(name, s, k);
    return json_pack("{si ss ss ss ss so si ss}", "id", k + 1, "kind",
                     pseg_scene_kind_name(o->kind), "colour", pseg_scene_colour_name(o->colour),
                     "size", pseg_scene_size_name(o->size), "texture",
                     pseg_scene_texture_name(o->texture), "bbox", bbox_json(o), "area", o->area,
                     "mask_file", name);
}

static json_t *sample_json(const pseg_scene *s, const pseg_scene_phrase *p, const pseg_buf *rle)
{
    const pseg_scene_object *o = &s->objects[p->target];

    return json_pack("{ss s[s] so si s{ss# s[ii]} si si}", "kind",
                     pseg_scene_phrase_kind_name(p->kind), "sentences", p->text, "bbox",
                     bbox_json(o), "area", o->area, "mask", "counts", (const char *)rle->data,
                     (int)rle->len, "size", s->height, s->width, "target", p->target + 1, "other",
                     p->other + 1);
}

static pseg_status write_line(const pseg_scene_dataset *d, const pseg_scene *s, const pseg_buf *rle,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    json_t *line = NULL, *objects = NULL, *samples = NULL;
    char name[MAX_NAME];
    int bad = 0;

    objects = json_array();
    samples = json_array();
    for (int k = 0; k < s->n_objects; k++)
        bad |= json_array_append_new(objects, object_json(s, k));
    for (int i = 0; i < s->n_phrases; i++)
        bad |= json_array_append_new(samples,
                                     sample_json(s, &s->phrases[i], &rle[s->phrases[i].target]));
    image_name(name, s);
    /* A JSON integer is signed: a seed past its range is given as the name of its image only. */
    json_t *seed = s->seed <= INT64_MAX ? json_integer((json_int_t)s->seed) : json_null();
    line = json_pack("{ss si si so sO sO}", "image", name, "width", s->width, "height", s->height,
                     "seed", seed, "objects", objects, "samples", samples);
    if (bad || !line)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the line of scene %" PRIu64, s->seed);
    if (json_dumpf(line, d->lines, JSON_COMPACT) != 0 || fputc('\n', d->lines) == EOF)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", d->part_path, strerror(errno));
out:
    json_decref(samples);
    json_decref(objects);
    json_decref(line);
    return rc;
}

pseg_status pseg_scene_dataset_add(pseg_scene_dataset *d, const pseg_scene *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *pixels = NULL;
    char name[MAX_NAME];
    pseg_buf png, rle[PSEG_SCENE_MAX_OBJECTS];

    pseg_buf_init(&png, MAX_BYTES);
    for (int k = 0; k < PSEG_SCENE_MAX_OBJECTS; k++)
        pseg_buf_init(&rle[k], MAX_BYTES);
    pixels = pseg_malloc((size_t)s->width * (size_t)s->height);
    if (!pixels)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a mask of %d x %d", s->width, s->height);
    PSEG_TRY(pseg_png_write(&png, s->rgb, (uint32_t)s->width, (uint32_t)s->height, 3, err));
    image_name(name, s);
    PSEG_TRY(write_file(d, name, &png, err));
    for (int k = 0; k < s->n_objects; k++)
        PSEG_TRY(write_mask(&rle[k], d, s, k, pixels, err));
    PSEG_TRY(write_line(d, s, rle, err));
out:
    if (rc != PSEG_OK)
        d->is_broken = true;
    for (int k = 0; k < PSEG_SCENE_MAX_OBJECTS; k++)
        pseg_buf_deinit(&rle[k]);
    pseg_buf_deinit(&png);
    pseg_free(pixels);
    return rc;
}

pseg_status pseg_scene_dataset_finish(pseg_scene_dataset *d, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!d->lines || d->is_broken)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "a data set that is %s cannot be finished",
                  d->lines ? "broken" : "closed");
    int closed = fclose(d->lines);
    d->lines = NULL;
    if (closed != 0 || rename(d->part_path, d->lines_path) != 0) {
        int e = errno;
        remove(d->part_path);
        PSEG_FAIL(PSEG_R_FILE_IO, e, "cannot write %s: %s", d->lines_path, strerror(e));
    }
out:
    return rc;
}

void pseg_scene_dataset_free(pseg_scene_dataset *d)
{
    if (!d)
        return;
    if (d->lines) {
        fclose(d->lines);
        remove(d->part_path);
    }
    pseg_free(d->part_path);
    pseg_free(d->lines_path);
    pseg_free(d->dir);
    pseg_free(d);
}
