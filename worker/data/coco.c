/* A COCO instances file as a data set: its category names are the phrases.
 *
 * "dog" means every dog of the photo: the objects of a category are one mask, as kind "class".
 * Where all are polygons, so is the mask, with the rings of all; a crowd, which COCO writes as
 * runs, makes it a mask of runs. With option `objects` each object is a sample of its own, as kind
 * "object". */
#include "worker/data/coco.h"
#include "common/base/alloc.h"

#include <stdlib.h>
#include <string.h>

static int by_image_and_category(const void *a, const void *b)
{
    const coco_object *x = a, *y = b;

    if (x->image != y->image)
        return x->image < y->image ? -1 : 1;
    if (x->category != y->category)
        return x->category < y->category ? -1 : 1;
    return (x->at > y->at) - (x->at < y->at);
}

/* What the masks of a group are put together in. */
typedef struct united {
    double *points;
    uint32_t *ring_len;
    size_t n_points, cap_points, n_rings, cap_rings;
    pseg_mask *pixels; /* once one of them was no polygon */
    pseg_buf rle;
} united;

static bool has_room(void *list, size_t *cap, size_t n, size_t size)
{
    void **at = list;
    size_t bytes;
    void *p;

    if (n <= *cap)
        return true;
    p = pseg_mul_size(&bytes, 2 * n, size) ? pseg_realloc(*at, bytes) : NULL;
    if (p) {
        *at = p;
        *cap = 2 * n;
    }
    return p != NULL;
}

static pseg_status add_rings(united *u, const pseg_data_mask *m, pseg_err *err)
{
    size_t n = 0;

    for (uint32_t i = 0; i < m->n_rings; i++)
        n += m->ring_len[i];
    if (!has_room(&u->points, &u->cap_points, u->n_points + n + 1, sizeof *u->points) ||
        !has_room(&u->ring_len, &u->cap_rings, u->n_rings + m->n_rings + 1, sizeof *u->ring_len))
        return pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory for a mask");
    if (n)
        memcpy(u->points + u->n_points, m->points, n * sizeof *m->points);
    if (m->n_rings)
        memcpy(u->ring_len + u->n_rings, m->ring_len, m->n_rings * sizeof *m->ring_len);
    u->n_points += n;
    u->n_rings += m->n_rings;
    return PSEG_OK;
}

static pseg_status add_pixels(united *u, const pseg_data_mask *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mask *more = NULL, *both;

    PSEG_TRY(pseg_data_mask_decode(&more, m, err));
    if (!u->pixels) {
        u->pixels = more;
        more = NULL;
        goto out;
    }
    if (more->width != u->pixels->width || more->height != u->pixels->height)
        goto out; /* its size is told when it is looked at alone */
    for (size_t i = 0; i < (size_t)more->width * more->height; i++)
        more->data[i] |= u->pixels->data[i];
    PSEG_TRY(pseg_mask_from_pixels(&both, more->data, more->width, more->height, err));
    pseg_mask_free(u->pixels);
    u->pixels = both;
out:
    pseg_mask_free(more);
    return rc;
}

static pseg_data_mask rings_of(const united *u, uint32_t width, uint32_t height)
{
    return (pseg_data_mask){.form = PSEG_DATA_MASK_POLYGON,
                            .width = width,
                            .height = height,
                            .points = u->points,
                            .ring_len = u->ring_len,
                            .n_rings = (uint32_t)u->n_rings};
}

/* The mask of the group; false: it has none. */
static pseg_status unite(pseg_data_mask *out, united *u, uint32_t width, uint32_t height,
                         pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *out = rings_of(u, width, height);
    if (!u->pixels)
        return rc;
    if (u->n_rings)
        PSEG_TRY(add_pixels(u, out, err));
    pseg_buf_clear(&u->rle);
    PSEG_TRY(pseg_mask_rle(&u->rle, u->pixels, err));
    *out = (pseg_data_mask){.form = PSEG_DATA_MASK_RLE,
                            .width = u->pixels->width,
                            .height = u->pixels->height,
                            .rle = (const char *)u->rle.data};
out:
    return rc;
}

/* A mask that cannot be used is told of and left out, not the others of its category. */
static bool is_good(coco *c, const coco_object *o, const pseg_data_mask *m)
{
    const coco_image *image = &c->images[o->image];
    pseg_data_fault fault;
    int64_t area;
    char why[160], where[256];

    fault = record_check_mask(why, sizeof why, &area, m);
    if (fault == PSEG_DATA_N_FAULTS && (m->width != image->width || m->height != image->height)) {
        fault = PSEG_DATA_MASK_SIZE;
        snprintf(why, sizeof why, "it has %u x %u pixels, its image %u x %u", m->width, m->height,
                 image->width, image->height);
    }
    if (fault == PSEG_DATA_N_FAULTS)
        return true;
    coco_where(where, sizeof where, c, o);
    builder_fault(c->d, fault, where, "the mask cannot be used: %s", why);
    return false;
}

static pseg_status give_group(coco *c, const coco_object *o, size_t n, united *u, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const coco_image *image = &c->images[o->image];
    const char *name = c->categories[o->category];
    pseg_data_sample s = {.id = -1, .bbox = {0, 0, -1, -1}, .area = -1}, one;
    char where[256];
    uint32_t index;

    u->n_points = u->n_rings = 0;
    pseg_mask_free(u->pixels);
    u->pixels = NULL;
    for (size_t i = 0; i < n; i++) {
        json_t *json;
        if (!coco_sample(&one, &json, c, &o[i]))
            continue;
        if (is_good(c, &o[i], &one.mask))
            rc = one.mask.form == PSEG_DATA_MASK_POLYGON ? add_rings(u, &one.mask, err)
                                                         : add_pixels(u, &one.mask, err);
        if (n == 1)
            s = one;
        json_decref(json);
        PSEG_TRY(rc);
    }
    if (!u->n_rings && !u->pixels)
        return rc;
    PSEG_TRY(unite(&s.mask, u, image->width, image->height, err));
    s.category = name;
    s.kind = c->d->o.objects ? "object" : "class";
    s.sentences = &name;
    s.n_sentences = 1;
    coco_where(where, sizeof where, c, o);
    PSEG_TRY(coco_give_image(&index, c, o->image, err));
    PSEG_TRY(builder_sample(c->d, index, &s, where, err));
out:
    return rc;
}

pseg_status coco_read(pseg_dataset *d, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    united u = {0};
    coco c;

    pseg_buf_init(&u.rle, 64 << 20);
    PSEG_TRY(coco_init(&c, d, path, err));
    if (c.n_objects > 1)
        qsort(c.objects, c.n_objects, sizeof *c.objects, by_image_and_category);
    for (size_t i = 0, n; i < c.n_objects; i += n) {
        const coco_object *o = &c.objects[i];
        for (n = 1; !d->o.objects && i + n < c.n_objects && o[n].image == o->image &&
                    o[n].category == o->category;)
            n++;
        if (d->o.objects && o->is_crowd && !d->o.keeps_crowds)
            continue;
        PSEG_TRY(give_group(&c, o, n, &u, err));
    }
out:
    coco_deinit(&c);
    pseg_mask_free(u.pixels);
    pseg_free(u.points);
    pseg_free(u.ring_len);
    pseg_buf_deinit(&u.rle);
    return rc;
}
