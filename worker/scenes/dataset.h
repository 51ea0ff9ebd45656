/* Scenes as a data set on disk, for whoever trains or scores a model without this library:
 *
 *     DIR/images/000007.png      the scene of seed 7
 *     DIR/masks/000007_1.png     the visible pixels of its object 1, grey, 0 and 255
 *     DIR/scenes.jsonl           one line a scene:
 *         {"image": "images/000007.png", "width", "height", "seed",
 *          "objects": [{"id", "kind", "colour", "size", "texture", "bbox", "area", "mask_file"}],
 *          "samples": [{"kind": "attribute" | "relational" | "superlative", "sentences": [text],
 *                       "bbox": [x, y, width, height], "area": pixels,
 *                       "mask": {"counts": COCO's compressed RLE, "size": [height, width]},
 *                       "target": object id, "other": object id}]}
 *
 * scenes.jsonl gets its name when the data set is closed: where it stands, the set is whole. Files
 * of an earlier run are replaced. An object of one thread.
 *
 *     pseg_scene_dataset *d;
 *     PSEG_TRY(pseg_scene_dataset_open(&d, "out", err));
 *     PSEG_TRY(pseg_scene_dataset_add(d, scene, err));
 *     PSEG_TRY(pseg_scene_dataset_finish(d, err));
 *     pseg_scene_dataset_free(d);
 */
#ifndef PSEG_SCENES_DATASET_H
#define PSEG_SCENES_DATASET_H

#include "worker/scenes/scenes.h"

typedef struct pseg_scene_dataset pseg_scene_dataset;

/* Makes dir and its folders where they are missing. Caller frees with pseg_scene_dataset_free.
 * Errors: PSEG_R_FILE_IO, PSEG_R_FILE_NOT_FOUND, PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_scene_dataset_open(pseg_scene_dataset **out, const char *dir, pseg_err *err);

/* Writes a scene's image, masks and line. After an error the set cannot be finished. */
pseg_status pseg_scene_dataset_add(pseg_scene_dataset *d, const pseg_scene *s, pseg_err *err);

/* Gives scenes.jsonl its name. */
pseg_status pseg_scene_dataset_finish(pseg_scene_dataset *d, pseg_err *err);

/* Without finish before it, what was written as lines is removed. NULL: nothing happens. */
void pseg_scene_dataset_free(pseg_scene_dataset *d);

#endif
