/* COCO's instances file: what it says of images, categories and objects. Private to worker/data;
 * for coco.c, which makes a set of it, and refcoco.c, which takes masks from it. */
#ifndef PSEG_DATA_COCO_H
#define PSEG_DATA_COCO_H

#include "worker/data/builder.h"
#include "worker/data/fields.h"
#include "worker/data/json_scan.h"

/* An object, where it stands in the file. */
typedef struct coco_object {
    uint64_t at;
    uint32_t len;
    uint32_t image, category; /* numbers in the lists below */
    bool is_crowd;
} coco_object;

typedef struct coco_image {
    char *file_name;
    int64_t id;
    uint32_t width, height, index; /* index: of the data set, UINT32_MAX while it has none */
} coco_image;

typedef struct coco {
    pseg_dataset *d;
    const char *base; /* of the file's name, for messages */
    pseg_map map;
    coco_image *images;
    char **categories;
    coco_object *objects;
    size_t n_images, cap_images, n_categories, cap_categories, n_objects, cap_objects;
    idmap image_of, category_of, object_of; /* by COCO's ids */
    bool keeps_crowds;
    fields_room room;
} coco;

/* Reads images, categories and where objects stand. What is broken is told of and left out. Free
 * with coco_deinit, also on failure. */
pseg_status coco_init(coco *c, pseg_dataset *d, const char *path, pseg_err *err);
void coco_deinit(coco *c);

/* The object's mask and fields into *out, which borrows from *json (free with json_decref) and from
 * c->room until the next call. False: it cannot be read, and that was told. */
bool coco_sample(pseg_data_sample *out, json_t **json, coco *c, const coco_object *o);
/* Makes the image known to the data set, at its first use. */
pseg_status coco_give_image(uint32_t *index, coco *c, uint32_t image, pseg_err *err);
void coco_where(char *out, size_t size, const coco *c, const coco_object *o);

#endif
