#include "worker/model/sam.h"
#include "common/base/alloc.h"
#include "worker/model/config.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SAM_BLOCKS 2
#define CALMED     0.1f

struct pseg_sam {
    pseg_tensors *file;
    unsigned last_stage; /* of the head's upsampler */
};

/* Where one tensor of the head comes from. */
typedef struct origin {
    char name[160];
    bool is_row; /* its first row only */
    float scale;
} origin;

static bool has_start(const char *s, const char *start, const char **rest)
{
    size_t n = strlen(start);

    *rest = s + n;
    return strncmp(s, start, n) == 0;
}

/* False: nothing in SAM for it. */
static bool find_origin(origin *o, const char *name, unsigned last_stage)
{
    static const char sam[] = "mask_decoder.";
    const char *rest;
    unsigned block;
    int n = 0;

    *o = (origin){.scale = 1};
    if (sscanf(name, "decoder.layers.%u.%n", &block, &n) == 1 && n > 0) {
        rest = name + n;
        if (block >= SAM_BLOCKS && (strstr(rest, "out_proj.") || strstr(rest, "mlp.lin2.")))
            o->scale = CALMED;
        snprintf(o->name, sizeof o->name, "%stransformer.layers.%u.%s", sam,
                 block < SAM_BLOCKS ? block : SAM_BLOCKS - 1, rest);
    } else if (has_start(name, "decoder.final_attn_token_to_image.", &rest) ||
               has_start(name, "decoder.layer_norm_final_attn.", &rest)) {
        snprintf(o->name, sizeof o->name, "%stransformer.%s", sam, name + strlen("decoder."));
    } else if (strcmp(name, "decoder.iou_token") == 0) {
        snprintf(o->name, sizeof o->name, "%siou_token.weight", sam);
    } else if (strcmp(name, "decoder.mask_token") == 0) {
        snprintf(o->name, sizeof o->name, "%smask_tokens.weight", sam);
        o->is_row = true;
    } else if (has_start(name, "decoder.mask_mlp.", &rest)) {
        snprintf(o->name, sizeof o->name, "%soutput_hypernetworks_mlps.0.%s", sam, rest);
    } else if (has_start(name, "decoder.iou_head.", &rest)) {
        snprintf(o->name, sizeof o->name, "%siou_prediction_head.%s", sam, rest);
        o->is_row = strncmp(rest, "proj_out.", 9) == 0;
    } else if (sscanf(name, "decoder.upsample.%u.conv.%n", &block, &n) == 1 && n > 0 &&
               block == last_stage) {
        snprintf(o->name, sizeof o->name, "%supscale_conv2.%s", sam, name + n);
    } else {
        return false;
    }
    return true;
}

/* Does the origin's tensor have the spec's shape, or, for a row, that shape but for the number of
 * rows? */
static pseg_status check_one(const pseg_sam *s, const pseg_spec *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char want[80], found[80];
    origin o;

    if (!find_origin(&o, p->name, s->last_stage))
        goto out;
    const pseg_tensor *t = pseg_tensors_find(s->file, o.name);
    pseg_tensor_shape(want, sizeof want, p->dims, p->rank);
    if (!t)
        PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0, "%s: tensor %s is missing; expected %s for %s",
                  pseg_tensors_path(s->file), o.name, want, p->name);
    pseg_tensor_shape(found, sizeof found, t->dims, t->rank);
    bool good = t->rank == p->rank;
    for (uint32_t i = 0; good && i < p->rank; i++)
        good = t->dims[i] == p->dims[i] || (o.is_row && i == 0 && t->dims[0] > 0);
    if (!good)
        PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0, "%s: tensor %s has shape %s; expected %s for %s",
                  t->path, t->name, found, want, p->name);
    if (t->type > PSEG_TENSOR_BF16)
        PSEG_FAIL(PSEG_R_MODEL_MISMATCH, 0, "%s: tensor %s holds %s; expected F32, F16 or BF16",
                  t->path, t->name, pseg_tensor_type_name(t->type));
out:
    return rc;
}

pseg_status pseg_sam_open(pseg_sam **out, const char *folder, const pseg_specs *head, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_sam *s = NULL;
    unsigned stage;

    *out = NULL;
    PSEG_TRY(pseg_sam_config_check(folder, err));
    s = pseg_calloc(1, sizeof *s);
    if (!s)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to open %s", folder);
    PSEG_TRY(pseg_tensors_open_folder(&s->file, folder, err));
    for (size_t i = 0; i < head->n; i++)
        if (sscanf(head->items[i].name, "decoder.upsample.%u.", &stage) == 1 &&
            stage > s->last_stage)
            s->last_stage = stage;
    for (size_t i = 0; i < head->n; i++)
        PSEG_TRY(check_one(s, &head->items[i], err));
    *out = s;
    s = NULL;
out:
    pseg_sam_close(s);
    return rc;
}

void pseg_sam_close(pseg_sam *s)
{
    if (!s)
        return;
    pseg_tensors_close(s->file);
    pseg_free(s);
}

const pseg_tensors *pseg_sam_tensors(const pseg_sam *s)
{
    return s->file;
}

bool pseg_sam_fill(void *ud, float *out, uint64_t n, const char *name)
{
    static const pseg_dtype types[] = {
        [PSEG_TENSOR_F32] = PSEG_F32, [PSEG_TENSOR_F16] = PSEG_F16, [PSEG_TENSOR_BF16] = PSEG_BF16};
    const pseg_sam *s = ud;
    const pseg_tensor *t;
    origin o;

    /* What pseg_sam_open has checked is there and large enough. */
    if (!find_origin(&o, name, s->last_stage) || !(t = pseg_tensors_find(s->file, o.name)) ||
        t->n < n || t->type > PSEG_TENSOR_BF16)
        return false;
    pseg_to_f32(out, t->data, types[t->type], n);
    for (uint64_t i = 0; o.scale != 1 && i < n; i++)
        out[i] *= o.scale;
    return true;
}
