#include "worker/data/coco.h"
#include "common/base/alloc.h"

#include <inttypes.h>
#include <string.h>

static bool grow(void *list, size_t *cap, size_t n, size_t size)
{
    void **at = list;
    size_t bigger = *cap ? *cap * 2 : 256, bytes;
    void *p;

    if (n < *cap)
        return true;
    p = n < UINT32_MAX - 1 && pseg_mul_size(&bytes, bigger, size) ? pseg_realloc(*at, bytes) : NULL;
    if (p) {
        *at = p;
        *cap = bigger;
    }
    return p != NULL;
}

void coco_where(char *out, size_t size, const coco *c, const coco_object *o)
{
    snprintf(out, size, "%.200s:byte %" PRIu64, c->base, o->at);
}

static void tell(coco *c, uint64_t at, const char *what)
{
    char where[256];

    coco_where(where, sizeof where, c, &(coco_object){.at = at});
    builder_fault(c->d, PSEG_DATA_BAD_RECORD, where, "%s", what);
}

static pseg_status no_memory(pseg_err *err)
{
    return pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory for a COCO file");
}

static pseg_status take_image(coco *c, const json_t *o, uint64_t at, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t id, width, height;
    const char *name;
    uint32_t found;
    bool is_new;

    if (!json_is_object(o) || !fields_int(&id, o, "id", -1) || id < 0 ||
        !fields_int(&width, o, "width", 0) || !fields_int(&height, o, "height", 0) ||
        !fields_text(&name, o, "file_name", NULL) || !name || !name[0] || width < 1 || height < 1 ||
        width > INT32_MAX || height > INT32_MAX) {
        tell(c, at, "an image needs id, file_name, width and height");
        return rc;
    }
    PSEG_TRY(idmap_put(&found, &c->image_of, (uint64_t)id, (uint32_t)c->n_images, &is_new, err));
    if (!is_new) {
        tell(c, at, "a second image of this id");
        return rc;
    }
    if (!grow(&c->images, &c->cap_images, c->n_images, sizeof *c->images) ||
        !(name = pseg_strdup(name)))
        return no_memory(err);
    c->images[c->n_images++] =
        (coco_image){(char *)(uintptr_t)name, id, (uint32_t)width, (uint32_t)height, UINT32_MAX};
out:
    return rc;
}

static pseg_status take_category(coco *c, const json_t *o, uint64_t at, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t id;
    const char *name;
    uint32_t found;
    bool is_new;

    if (!json_is_object(o) || !fields_int(&id, o, "id", -1) || id < 0 ||
        !fields_text(&name, o, "name", NULL) || !name) {
        tell(c, at, "a category needs id and name");
        return rc;
    }
    PSEG_TRY(
        idmap_put(&found, &c->category_of, (uint64_t)id, (uint32_t)c->n_categories, &is_new, err));
    if (!is_new)
        return rc;
    if (!grow(&c->categories, &c->cap_categories, c->n_categories, sizeof *c->categories) ||
        !(name = pseg_strdup(name)))
        return no_memory(err);
    c->categories[c->n_categories++] = (char *)(uintptr_t)name;
out:
    return rc;
}

static pseg_status take_object(coco *c, const json_t *o, uint64_t at, size_t len, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t id, image_id, category_id, crowd;
    coco_object x = {.at = at, .len = (uint32_t)len};
    uint32_t found;
    bool is_new;

    if (!json_is_object(o) || !fields_int(&id, o, "id", -1) ||
        !fields_int(&image_id, o, "image_id", -1) ||
        !fields_int(&category_id, o, "category_id", -1) || !fields_int(&crowd, o, "iscrowd", 0)) {
        tell(c, at, "an annotation needs id, image_id and category_id");
        return rc;
    }
    if (!idmap_get(&x.image, &c->image_of, (uint64_t)image_id) ||
        !idmap_get(&x.category, &c->category_of, (uint64_t)category_id)) {
        tell(c, at, "an annotation of an image or a category that the file does not describe");
        return rc;
    }
    x.is_crowd = crowd != 0;
    if (id >= 0)
        PSEG_TRY(
            idmap_put(&found, &c->object_of, (uint64_t)id, (uint32_t)c->n_objects, &is_new, err));
    if (!grow(&c->objects, &c->cap_objects, c->n_objects, sizeof *c->objects))
        return no_memory(err);
    c->objects[c->n_objects++] = x;
out:
    return rc;
}

static pseg_status take(void *ud, const char *key, const char *text, size_t len, uint64_t at,
                        pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    coco *c = ud;
    json_error_t fault;
    json_t *o = len < INT32_MAX ? json_loadb(text, len, JSON_DECODE_ANY, &fault) : NULL;

    if (!o)
        tell(c, at, len < INT32_MAX ? fault.text : "a record of 2 GiB or more");
    else if (strcmp(key, "images") == 0)
        rc = take_image(c, o, at, err);
    else if (strcmp(key, "categories") == 0)
        rc = take_category(c, o, at, err);
    else
        rc = take_object(c, o, at, len, err);
    json_decref(o);
    return rc;
}

pseg_status coco_init(coco *c, pseg_dataset *d, const char *path, pseg_err *err)
{
    static const char *const first[] = {"images", "categories", NULL};
    static const char *const then[] = {"annotations", NULL};
    pseg_status rc = PSEG_OK;
    const char *slash = strrchr(path, '/');

    *c = (coco){.d = d, .base = slash ? slash + 1 : path};
    PSEG_TRY(pseg_map_open(&c->map, path, err));
    PSEG_TRY(json_scan(&c->map, c->base, first, take, c, err));
    if (!c->n_images || !c->n_categories)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                  "%s is no COCO instances file: it has %zu images and %zu categories", c->base,
                  c->n_images, c->n_categories);
    PSEG_TRY(json_scan(&c->map, c->base, then, take, c, err));
out:
    return rc;
}

void coco_deinit(coco *c)
{
    for (size_t i = 0; i < c->n_images; i++)
        pseg_free(c->images[i].file_name);
    for (size_t i = 0; i < c->n_categories; i++)
        pseg_free(c->categories[i]);
    pseg_free(c->images);
    pseg_free(c->categories);
    pseg_free(c->objects);
    idmap_deinit(&c->image_of);
    idmap_deinit(&c->category_of);
    idmap_deinit(&c->object_of);
    fields_room_deinit(&c->room);
    pseg_map_close(&c->map);
}

bool coco_sample(pseg_data_sample *out, json_t **json, coco *c, const coco_object *o)
{
    const coco_image *image = &c->images[o->image];
    const char *why;

    *json = json_loadb((const char *)c->map.data + o->at, o->len, JSON_DECODE_ANY, NULL);
    if (*json && fields_sample(out, &why, *json, &c->room, image->width, image->height)) {
        out->category = c->categories[o->category];
        return true;
    }
    tell(c, o->at, *json ? why : "no memory for an annotation");
    json_decref(*json);
    *json = NULL;
    return false;
}

pseg_status coco_give_image(uint32_t *index, coco *c, uint32_t image, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    coco_image *i = &c->images[image];
    char where[256];
    builder_image_in in = {.file_name = i->file_name,
                           .image_id = i->id,
                           .width = i->width,
                           .height = i->height,
                           .where = where};

    snprintf(where, sizeof where, "%.200s:image %" PRId64, c->base, i->id);
    if (i->index == UINT32_MAX)
        PSEG_TRY(builder_image(&i->index, c->d, &in, err));
    *index = i->index;
out:
    return rc;
}
