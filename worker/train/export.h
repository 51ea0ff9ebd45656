/* A folder that inference opens, where encoders were trained too: pseg.json, pseg.safetensors (neck
 * and decoder) and, of each encoder that was trained, a Hugging Face folder: the files of the one
 * it began as, with new weights. LoRA's products are added to the weights they belong to. */
#ifndef PSEG_TRAIN_EXPORT_H
#define PSEG_TRAIN_EXPORT_H

#include "worker/train/towers.h"

typedef struct pseg_train_export {
    const char *folder, *best; /* where to, and the checkpoint (checkpoint.h) with the weights */
    const char *vision, *text; /* folders of the encoders that were trained, or NULL */
    const pseg_train_towers *towers;
    const pseg_head_config *head;
    const pseg_folder *about; /* name, description, and the encoders that were not trained */
    bool is_half;             /* weights in float16 */
} pseg_train_export;

/* While it writes there is no pseg.json, so that nobody opens parts that do not belong together; it
 * comes last. Errors: PSEG_R_FILE_IO, PSEG_R_MODEL_UNSUPPORTED (a number that float16 cannot hold),
 * those of reading. */
pseg_status pseg_train_export_write(const pseg_train_export *x, pseg_err *err);

#endif
