/* What a batch is to do, one item after the other, in two files: `plan.jsonl` holds the items as
 * JSON lines, `plan.index` where each begins. A manifest of any form is read once into a plan; from
 * then on item N is what the plan says, whatever becomes of the manifest, and finding any item
 * costs two reads and no memory. It knows no servers and reads no image.
 *
 * An item is a JSON object: `line` (in the manifest, from 1), `image` as the manifest names it,
 * `prompts`, and where they are known `id`, `image_id`, `categories` (a number for each prompt),
 * `model`, `threshold`. A line that cannot be one is an item too: `line`, `reason` (a pseg_reason
 * by name), `message`, and what else of it could be read.
 *
 *     batch_plan *p = NULL;
 *     PSEG_TRY(batch_plan_make(dir, &source, err));
 *     PSEG_TRY(batch_plan_open(&p, dir, err));
 *     for (uint64_t i = 1; i <= batch_plan_items(p); i++) {
 *         PSEG_TRY(batch_plan_get(&item, p, i, err));
 *         ...
 *         json_decref(item);
 *     }
 *     batch_plan_close(p); */
#ifndef PSEG_CLIENT_BATCH_PLAN_H
#define PSEG_CLIENT_BATCH_PLAN_H

#include "common/base/conf.h"
#include "common/base/err.h"

#include <jansson.h>
#include <stdint.h>

#define BATCH_LINE_BYTES  ((size_t)1 << 20) /* of a manifest, and of an image's entry in COCO's */
#define BATCH_MAX_PROMPTS 64                /* of one item: the API's limit */

typedef enum batch_form {
    BATCH_AUTO, /* by the name: .jsonl .ndjson, .csv, .tsv, .json (COCO); anything else: images */
    BATCH_JSONL,
    BATCH_CSV,
    BATCH_TSV,
    BATCH_COCO,
    BATCH_IMAGES, /* files, folders, patterns */
} batch_form;
/* false: no such form. */
bool batch_form_parse(batch_form *out, const char *name);

typedef struct batch_source {
    const char *const *names; /* one manifest ("-": standard input, JSON lines), or images, folders,
                                 patterns of the shell */
    size_t n_names;
    batch_form form;
    pseg_conf_list prompts; /* for items that name none */
} batch_source;

/* The form that AUTO stands for; n_names is at least 1. */
batch_form batch_source_form(const batch_source *s);

/* Writes the plan's files into dir, which exists; they are there whole or not at all. In a folder,
 * files are taken by their endings (.jpg .jpeg .png .webp .tif .tiff .heic .heif), in no order. A
 * plan of no item is an error. Memory does not grow with the manifest. Errors:
 * PSEG_R_FILE_NOT_FOUND, PSEG_R_FILE_IO, PSEG_R_CONFIG_INVALID (two manifests, a table without the
 * column `image`, nothing found), PSEG_R_DATA_CORRUPT (COCO's file is no JSON). */
pseg_status batch_plan_make(const char *dir, const batch_source *source, pseg_err *err);

typedef struct batch_plan batch_plan;
/* Caller frees with batch_plan_close. Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_FILE_IO,
 * PSEG_R_DATA_CORRUPT (the two files do not fit each other). */
pseg_status batch_plan_open(batch_plan **out, const char *dir, pseg_err *err);
void batch_plan_close(batch_plan *p); /* NULL is accepted */
uint64_t batch_plan_items(const batch_plan *p);
/* Item 1..items. Caller frees *out with json_decref. Any thread. */
pseg_status batch_plan_get(json_t **out, const batch_plan *p, uint64_t seq, pseg_err *err);
/* They are of no use any more. */
void batch_plan_remove(const char *dir);

/* ---- for the readers: plan_lines.c, plan_images.c, plan_coco.c ---- */

typedef struct batch_planner batch_planner;
const batch_source *batch_planner_source(const batch_planner *w);
/* Adds a checked item, split where it has more prompts than one job takes. Takes ownership of item.
 * An item whose prompts are missing gets those of the source, or becomes a bad one. */
pseg_status batch_planner_add(batch_planner *w, json_t *item, pseg_err *err);
/* Adds a line that is none. Takes ownership of `item`, which may be NULL: what could be read of it.
 */
pseg_status batch_planner_add_bad(batch_planner *w, json_t *item, uint64_t line, pseg_reason reason,
                                  pseg_err *err, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
pseg_status batch_read_lines(batch_planner *w, const char *path, batch_form form, pseg_err *err);
pseg_status batch_read_images(batch_planner *w, pseg_err *err);
pseg_status batch_read_coco(batch_planner *w, const char *path, pseg_err *err);

#endif
