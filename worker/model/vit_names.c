/* Which tensors an image encoder has, under whose names. */
#include "worker/model/vit_parts.h"

#include <stdio.h>
#include <string.h>

static const vit_naming hf_dinov2 = {
    .cls = "embeddings.cls_token",
    .mask = "embeddings.mask_token",
    .pos = "embeddings.position_embeddings",
    .regs = "embeddings.register_tokens",
    .patch = "embeddings.patch_embeddings.projection",
    .norm = "layernorm",
    .layer = "encoder.layer",
    .norm1 = "norm1",
    .q = "attention.attention.query",
    .k = "attention.attention.key",
    .v = "attention.attention.value",
    .out = "attention.output.dense",
    .ls1 = "layer_scale1.lambda1",
    .norm2 = "norm2",
    .fc1 = "mlp.fc1",
    .fc2 = "mlp.fc2",
    .gate_in = "mlp.weights_in",
    .gate_out = "mlp.weights_out",
    .ls2 = "layer_scale2.lambda1",
};

static const vit_naming hf_vit = {
    .cls = "embeddings.cls_token",
    .mask = "embeddings.mask_token",
    .pos = "embeddings.position_embeddings",
    .regs = "embeddings.register_tokens",
    .patch = "embeddings.patch_embeddings.projection",
    .norm = "layernorm",
    .layer = "encoder.layer",
    .norm1 = "layernorm_before",
    .q = "attention.attention.query",
    .k = "attention.attention.key",
    .v = "attention.attention.value",
    .out = "attention.output.dense",
    .ls1 = "layer_scale1.lambda1",
    .norm2 = "layernorm_after",
    .fc1 = "intermediate.dense",
    .fc2 = "output.dense",
    .gate_in = "mlp.weights_in",
    .gate_out = "mlp.weights_out",
    .ls2 = "layer_scale2.lambda1",
};

static const vit_naming meta = {
    .cls = "cls_token",
    .mask = "mask_token",
    .pos = "pos_embed",
    .regs = "register_tokens",
    .patch = "patch_embed.proj",
    .norm = "norm",
    .layer = "blocks",
    .norm1 = "norm1",
    .qkv = "attn.qkv",
    .out = "attn.proj",
    .ls1 = "ls1.gamma",
    .norm2 = "norm2",
    .fc1 = "mlp.fc1",
    .fc2 = "mlp.fc2",
    .gate_in = "mlp.w12",
    .gate_out = "mlp.w3",
    .ls2 = "ls2.gamma",
};

/* What _convert_dinov2 of timm's vision_transformer.py makes of Meta's. */
static const vit_naming timm = {
    .cls = "cls_token",
    .mask = "mask_token",
    .pos = "pos_embed",
    .regs = "reg_token",
    .patch = "patch_embed.proj",
    .norm = "norm",
    .layer = "blocks",
    .norm1 = "norm1",
    .qkv = "attn.qkv",
    .out = "attn.proj",
    .ls1 = "ls1.gamma",
    .norm2 = "norm2",
    .fc1 = "mlp.fc1",
    .fc2 = "mlp.fc2",
    .gate_in = "mlp.fc1",
    .gate_out = "mlp.fc2",
    .ls2 = "ls2.gamma",
};

const vit_naming *vit_naming_of(pseg_vit_names names, pseg_vit_kind kind)
{
    return names == PSEG_VIT_NAMES_META   ? &meta
           : names == PSEG_VIT_NAMES_TIMM ? &timm
           : kind == PSEG_VIT_PLAIN       ? &hf_vit
                                          : &hf_dinov2;
}

bool pseg_vit_has_cls_position(const pseg_vit_config *c, pseg_vit_names names)
{
    return names != PSEG_VIT_NAMES_TIMM || c->n_regs == 0;
}

vit_part_name vit_layer_part(const vit_naming *n, uint32_t i, const char *part)
{
    vit_part_name out;

    snprintf(out.s, sizeof out.s, "%s.%u.%s", n->layer, i, part);
    return out;
}

bool pseg_vit_part_name(char out[PSEG_SPEC_NAME], const pseg_vit_config *c, pseg_vit_names names,
                        pseg_vit_part part, uint32_t i)
{
    const vit_naming *n = vit_naming_of(names, c->kind);
    const char *const found[] = {n->cls,
                                 n->pos,
                                 n->regs,
                                 n->patch,
                                 n->norm,
                                 n->norm1,
                                 n->q,
                                 n->k,
                                 n->v,
                                 n->out,
                                 n->ls1,
                                 n->norm2,
                                 c->has_swiglu ? n->gate_in : n->fc1,
                                 c->has_swiglu ? n->gate_out : n->fc2,
                                 n->ls2};
    const char *name = found[part];

    if (!name)
        out[0] = '\0';
    else if (part >= PSEG_VIT_NORM1)
        snprintf(out, PSEG_SPEC_NAME, "%s.%u.%s", n->layer, i, name);
    else
        snprintf(out, PSEG_SPEC_NAME, "%s", name);
    return name;
}

/* name is part, or part.weight or part.bias: what stands behind it. NULL: another. */
static const char *behind(const char *name, const char *part)
{
    size_t n = strlen(part);

    if (strncmp(name, part, n) != 0)
        return NULL;
    name += n;
    return !*name || strcmp(name, ".weight") == 0 || strcmp(name, ".bias") == 0 ? name : NULL;
}

uint32_t pseg_vit_hf_names(char out[3][PSEG_SPEC_NAME], const pseg_vit_config *c,
                           pseg_vit_names names, const char *name)
{
    const vit_naming *from = vit_naming_of(names, c->kind);
    const vit_naming *to = vit_naming_of(PSEG_VIT_NAMES_HF, c->kind);
    const char *const whole[][2] = {{from->cls, to->cls},     {from->mask, to->mask},
                                    {from->pos, to->pos},     {from->regs, to->regs},
                                    {from->patch, to->patch}, {from->norm, to->norm}};
    const char *const parts[][2] = {
        {from->norm1, to->norm1},
        {from->out, to->out},
        {from->ls1, to->ls1},
        {from->norm2, to->norm2},
        {c->has_swiglu ? from->gate_in : from->fc1, c->has_swiglu ? to->gate_in : to->fc1},
        {c->has_swiglu ? from->gate_out : from->fc2, c->has_swiglu ? to->gate_out : to->fc2},
        {from->ls2, to->ls2},
        {from->qkv, to->q}};
    const char *const qkv[] = {to->q, to->k, to->v};
    const char *rest;
    unsigned block;
    int n = 0;

    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        if ((rest = behind(name, whole[i][0]))) {
            snprintf(out[0], PSEG_SPEC_NAME, "%s%s", whole[i][1], rest);
            return 1;
        }
    if (sscanf(name, "blocks.%u.%n", &block, &n) != 1 || n == 0)
        return 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (!(rest = behind(name + n, parts[i][0])))
            continue;
        bool is_qkv = parts[i][1] == to->q;
        for (uint32_t k = 0; k < (is_qkv ? 3 : 1); k++)
            snprintf(out[k], PSEG_SPEC_NAME, "%s.%u.%s%s", to->layer, block,
                     is_qkv ? qkv[k] : parts[i][1], rest);
        return is_qkv ? 3 : 1;
    }
    return 0;
}

static pseg_status layer_specs(pseg_specs *s, const pseg_vit_config *c, const vit_naming *n,
                               uint32_t i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint64_t w = c->hidden;
    const char *const qkv[] = {n->q, n->k, n->v};

    PSEG_TRY(pseg_specs_norm(s, vit_layer_part(n, i, n->norm1).s, w, err));
    if (n->qkv)
        PSEG_TRY(
            pseg_specs_linear(s, vit_layer_part(n, i, n->qkv).s, 3 * w, w, c->has_qkv_bias, err));
    for (size_t k = 0; !n->qkv && k < 3; k++)
        PSEG_TRY(pseg_specs_linear(s, vit_layer_part(n, i, qkv[k]).s, w, w, c->has_qkv_bias, err));
    PSEG_TRY(pseg_specs_linear(s, vit_layer_part(n, i, n->out).s, w, w, true, err));
    if (c->has_layer_scale)
        PSEG_TRY(pseg_specs_add(s, 1, &w, err, "%s", vit_layer_part(n, i, n->ls1).s));
    PSEG_TRY(pseg_specs_norm(s, vit_layer_part(n, i, n->norm2).s, w, err));
    PSEG_TRY(pseg_specs_linear(s, vit_layer_part(n, i, c->has_swiglu ? n->gate_in : n->fc1).s,
                               c->has_swiglu ? 2 * (uint64_t)c->mlp : c->mlp, w, true, err));
    PSEG_TRY(pseg_specs_linear(s, vit_layer_part(n, i, c->has_swiglu ? n->gate_out : n->fc2).s, w,
                               c->mlp, true, err));
    if (c->has_layer_scale)
        PSEG_TRY(pseg_specs_add(s, 1, &w, err, "%s", vit_layer_part(n, i, n->ls2).s));
out:
    return rc;
}

pseg_status pseg_vit_specs(pseg_specs *out, const pseg_vit_config *c, pseg_vit_names names,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const vit_naming *n = vit_naming_of(names, c->kind);
    const uint64_t w = c->hidden;
    uint64_t positions = pseg_vit_has_cls_position(c, names) + (uint64_t)c->pos_h * c->pos_w;

    PSEG_TRY(pseg_specs_add(out, 3, (uint64_t[]){1, 1, w}, err, "%s", n->cls));
    if (c->has_mask_token) {
        PSEG_TRY(pseg_specs_add(out, 2, (uint64_t[]){1, w}, err, "%s", n->mask));
        out->items[out->n - 1].is_unused = true;
    }
    PSEG_TRY(pseg_specs_add(out, 3, (uint64_t[]){1, positions, w}, err, "%s", n->pos));
    if (c->n_regs)
        PSEG_TRY(pseg_specs_add(out, 3, (uint64_t[]){1, c->n_regs, w}, err, "%s", n->regs));
    PSEG_TRY(
        pseg_specs_add(out, 4, (uint64_t[]){w, 3, c->patch, c->patch}, err, "%s.weight", n->patch));
    PSEG_TRY(pseg_specs_add(out, 1, &w, err, "%s.bias", n->patch));
    for (uint32_t i = 0; i < c->layers; i++)
        PSEG_TRY(layer_specs(out, c, n, i, err));
    PSEG_TRY(pseg_specs_norm(out, n->norm, w, err));
out:
    return rc;
}

static bool has(const pseg_tensors *t, const char *prefix, const char *name)
{
    char whole[96];

    snprintf(whole, sizeof whole, "%s%s", prefix, name);
    return pseg_tensors_find(t, whole) != NULL;
}

pseg_status pseg_vit_detect(const char **prefix, pseg_vit_names *names, const pseg_tensors *t,
                            pseg_err *err)
{
    static const char *const prefixes[] = {"", "dinov2.", "dinov2_with_registers.", "vit.",
                                           "backbone."};
    pseg_status rc = PSEG_OK;

    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        *prefix = prefixes[i];
        if (has(t, *prefix, hf_vit.cls))
            *names = PSEG_VIT_NAMES_HF;
        else if (has(t, *prefix, timm.cls))
            *names = has(t, *prefix, meta.regs) || has(t, *prefix, "blocks.0.mlp.w12.weight")
                         ? PSEG_VIT_NAMES_META
                         : PSEG_VIT_NAMES_TIMM;
        else
            continue;
        goto out;
    }
    PSEG_FAIL(
        PSEG_R_MODEL_MISMATCH, 0,
        "%s: no tensor %s (Hugging Face) or %s (timm), with or without dinov2. or vit. before "
        "it: not the weights of an image encoder",
        pseg_tensors_path(t), hf_vit.cls, timm.cls);
out:
    return rc;
}
