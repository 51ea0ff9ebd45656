/* Names of an image encoder's tensors, shared by vit_names.c (which have them) and vit.c (which
 * loads by them) only. */
#ifndef PSEG_MODEL_VIT_PARTS_H
#define PSEG_MODEL_VIT_PARTS_H

#include "worker/model/vit.h"

/* Names of the tensors; those from norm1 on stand behind layer's prefix. Linear and norm layers
 * without .weight and .bias. qkv: one matrix for all three, or NULL. */
typedef struct vit_naming {
    const char *cls, *mask, *pos, *regs, *patch, *norm, *layer;
    const char *norm1, *qkv, *q, *k, *v, *out, *ls1, *norm2, *fc1, *fc2, *gate_in, *gate_out, *ls2;
} vit_naming;

const vit_naming *vit_naming_of(pseg_vit_names names, pseg_vit_kind kind);

typedef struct vit_part_name {
    char s[PSEG_SPEC_NAME - 8]; /* leaves room for ".weight" */
} vit_part_name;
/* "LAYER.i.PART" */
vit_part_name vit_layer_part(const vit_naming *n, uint32_t i, const char *part);

#endif
