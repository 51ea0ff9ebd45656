#include "worker/model/vit.h"
#include "common/base/alloc.h"
#include "worker/model/interpolate.h"
#include "worker/model/layers.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Names of the tensors; those from norm1 on stand behind layer's prefix. Linear and norm layers
 * without .weight and .bias. qkv: one matrix for all three, or NULL. */
typedef struct naming {
    const char *cls, *mask, *pos, *regs, *patch, *norm, *layer;
    const char *norm1, *qkv, *q, *k, *v, *out, *ls1, *norm2, *fc1, *fc2, *gate_in, *gate_out, *ls2;
} naming;

static const naming hf_dinov2 = {
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

static const naming hf_vit = {
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

static const naming timm = {
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

static const naming *naming_of(pseg_vit_names names, pseg_vit_kind kind)
{
    return names == PSEG_VIT_NAMES_TIMM ? &timm : kind == PSEG_VIT_PLAIN ? &hf_vit : &hf_dinov2;
}

typedef struct part_name {
    char s[PSEG_SPEC_NAME - 8]; /* leaves room for ".weight" */
} part_name;

static part_name layer_part(const naming *n, uint32_t i, const char *part)
{
    part_name out;

    snprintf(out.s, sizeof out.s, "%s.%u.%s", n->layer, i, part);
    return out;
}

bool pseg_vit_part_name(char out[PSEG_SPEC_NAME], const pseg_vit_config *c, pseg_vit_names names,
                        pseg_vit_part part, uint32_t i)
{
    const naming *n = naming_of(names, c->kind);
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

static pseg_status layer_specs(pseg_specs *s, const pseg_vit_config *c, const naming *n, uint32_t i,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint64_t w = c->hidden;
    const char *const qkv[] = {n->q, n->k, n->v};

    PSEG_TRY(pseg_specs_norm(s, layer_part(n, i, n->norm1).s, w, err));
    if (n->qkv)
        PSEG_TRY(pseg_specs_linear(s, layer_part(n, i, n->qkv).s, 3 * w, w, c->has_qkv_bias, err));
    for (size_t k = 0; !n->qkv && k < 3; k++)
        PSEG_TRY(pseg_specs_linear(s, layer_part(n, i, qkv[k]).s, w, w, c->has_qkv_bias, err));
    PSEG_TRY(pseg_specs_linear(s, layer_part(n, i, n->out).s, w, w, true, err));
    if (c->has_layer_scale)
        PSEG_TRY(pseg_specs_add(s, 1, &w, err, "%s", layer_part(n, i, n->ls1).s));
    PSEG_TRY(pseg_specs_norm(s, layer_part(n, i, n->norm2).s, w, err));
    PSEG_TRY(pseg_specs_linear(s, layer_part(n, i, c->has_swiglu ? n->gate_in : n->fc1).s,
                               c->has_swiglu ? 2 * (uint64_t)c->mlp : c->mlp, w, true, err));
    PSEG_TRY(pseg_specs_linear(s, layer_part(n, i, c->has_swiglu ? n->gate_out : n->fc2).s, w,
                               c->mlp, true, err));
    if (c->has_layer_scale)
        PSEG_TRY(pseg_specs_add(s, 1, &w, err, "%s", layer_part(n, i, n->ls2).s));
out:
    return rc;
}

pseg_status pseg_vit_specs(pseg_specs *out, const pseg_vit_config *c, pseg_vit_names names,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const naming *n = naming_of(names, c->kind);
    const uint64_t w = c->hidden;
    uint64_t positions = 1 + (uint64_t)c->pos_h * c->pos_w;

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

pseg_status pseg_vit_detect(const char **prefix, pseg_vit_names *names, const pseg_tensors *t,
                            pseg_err *err)
{
    static const char *const prefixes[] = {"", "dinov2.", "dinov2_with_registers.", "vit.",
                                           "backbone."};
    pseg_status rc = PSEG_OK;
    char name[96];

    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        for (int k = 0; k < 2; k++) {
            snprintf(name, sizeof name, "%s%s", prefixes[i], k ? timm.cls : hf_vit.cls);
            if (pseg_tensors_find(t, name)) {
                *prefix = prefixes[i];
                *names = k ? PSEG_VIT_NAMES_TIMM : PSEG_VIT_NAMES_HF;
                goto out;
            }
        }
    PSEG_FAIL(
        PSEG_R_MODEL_MISMATCH, 0,
        "%s: no tensor %s (Hugging Face) or %s (timm), with or without dinov2. or vit. before "
        "it: not the weights of an image encoder",
        pseg_tensors_path(t), hf_vit.cls, timm.cls);
out:
    return rc;
}

/* ---- on the device --------------------------------------------------------------------------- */

typedef struct block {
    pseg_norm norm1, norm2;
    pseg_linear qkv, out, fc1, fc2;
    pseg_view ls1, ls2; /* absent: 1 */
} block;

struct pseg_vit {
    pseg_vit_config c;
    uint32_t gh, gw, n_taps, n_blocks, max_batch;
    bool is_tap_normed;
    uint32_t taps[PSEG_MAX_TAPS];
    pseg_view cls, pos, regs;
    pseg_linear patch;
    pseg_norm norm;
    block *blocks;
    /* x: tokens; y: what is multiplied next; wide: patches, qkv, or the inner layer, one at a time;
     * gate: SwiGLU's output; patches: embedded, before they are tokens. All but x and patches are
     * of the matrices' type. */
    pseg_view x, y, wide, gate, patches, tap[PSEG_MAX_TAPS];
};

static pseg_status load_positions(pseg_vit *v, pseg_store *store, pseg_weights *w, const naming *n,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_vit_config *c = &v->c;
    size_t stored = (1 + (size_t)c->pos_h * c->pos_w) * c->hidden;
    size_t needed = (1 + (size_t)v->gh * v->gw) * c->hidden;
    float *given = NULL, *made = NULL;
    pseg_values p;

    PSEG_TRY(pseg_weights_get(&p, w, stored, err, "%s", n->pos));
    given = pseg_aligned_alloc(stored * sizeof *given);
    made = pseg_aligned_alloc(needed * sizeof *made);
    if (!given || !made)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for position embeddings");
    pseg_to_f32(given, p.data, p.type, stored);
    memcpy(made, given, c->hidden * sizeof *made);
    PSEG_TRY(pseg_interpolate_bicubic(made + c->hidden, v->gh, v->gw, given + c->hidden, c->pos_h,
                                      c->pos_w, c->hidden, c->kind == PSEG_VIT_DINOV2_REG, err));
    float *take = made;
    made = NULL;
    PSEG_TRY(pseg_store_floats(&v->pos, store, take, needed, err));
out:
    pseg_free(given);
    pseg_free(made);
    return rc;
}

static pseg_status load_block(block *b, pseg_store *store, pseg_weights *w,
                              const pseg_vit_config *c, const naming *n, uint32_t i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    part_name q = layer_part(n, i, n->qkv ? n->qkv : n->q);
    part_name k = layer_part(n, i, n->qkv ? "" : n->k), v = layer_part(n, i, n->qkv ? "" : n->v);
    const char *const parts[] = {q.s, k.s, v.s};
    const size_t d = c->hidden;

    PSEG_TRY(pseg_load_norm(&b->norm1, store, w, layer_part(n, i, n->norm1).s, d, err));
    if (n->qkv)
        PSEG_TRY(pseg_load_linear(&b->qkv, store, w, q.s, 3 * d, d, c->has_qkv_bias, err));
    else
        PSEG_TRY(pseg_load_stacked(&b->qkv, store, w, parts, 3, d, d, c->has_qkv_bias, err));
    PSEG_TRY(pseg_load_linear(&b->out, store, w, layer_part(n, i, n->out).s, d, d, true, err));
    PSEG_TRY(pseg_load_norm(&b->norm2, store, w, layer_part(n, i, n->norm2).s, d, err));
    PSEG_TRY(pseg_load_linear(&b->fc1, store, w,
                              layer_part(n, i, c->has_swiglu ? n->gate_in : n->fc1).s,
                              c->has_swiglu ? 2 * (size_t)c->mlp : c->mlp, d, true, err));
    PSEG_TRY(pseg_load_linear(&b->fc2, store, w,
                              layer_part(n, i, c->has_swiglu ? n->gate_out : n->fc2).s, d, c->mlp,
                              true, err));
    if (c->has_layer_scale) {
        PSEG_TRY(pseg_load_vector(&b->ls1, store, w, d, err, "%s", layer_part(n, i, n->ls1).s));
        PSEG_TRY(pseg_load_vector(&b->ls2, store, w, d, err, "%s", layer_part(n, i, n->ls2).s));
    }
out:
    return rc;
}

static pseg_status load_all(pseg_vit *v, pseg_store *store, pseg_weights *w, const naming *n,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_vit_config *c = &v->c;
    size_t patch = 3 * (size_t)c->patch * c->patch;

    PSEG_TRY(pseg_load_vector(&v->cls, store, w, c->hidden, err, "%s", n->cls));
    PSEG_TRY(load_positions(v, store, w, n, err));
    if (c->n_regs)
        PSEG_TRY(pseg_load_vector(&v->regs, store, w, (size_t)c->n_regs * c->hidden, err, "%s",
                                  n->regs));
    PSEG_TRY(pseg_load_linear(&v->patch, store, w, n->patch, c->hidden, patch, true, err));
    for (uint32_t i = 0; i < v->n_blocks; i++)
        PSEG_TRY(load_block(&v->blocks[i], store, w, c, n, i, err));
    if (v->is_tap_normed)
        PSEG_TRY(pseg_load_norm(&v->norm, store, w, n->norm, c->hidden, err));
out:
    return rc;
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static pseg_status plan(pseg_vit *v, pseg_store *store, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_vit_config *c = &v->c;
    size_t places = (size_t)v->max_batch * v->gh * v->gw;
    size_t rows = places + (size_t)v->max_batch * (1 + c->n_regs);
    size_t inner = c->has_swiglu ? 2 * (size_t)c->mlp : c->mlp;
    size_t wide = max_size(rows * max_size(3 * (size_t)c->hidden, inner), places * v->patch.k);
    pseg_dtype type = pseg_store_input_type(store);

    PSEG_TRY(pseg_store_scratch(&v->x, store, rows * c->hidden, err));
    PSEG_TRY(pseg_store_scratch_of(&v->y, store, type, rows * c->hidden, err));
    PSEG_TRY(pseg_store_scratch_of(&v->wide, store, type, wide, err));
    v->patches = v->y;
    if (type != PSEG_F32)
        PSEG_TRY(pseg_store_scratch(&v->patches, store, places * c->hidden, err));
    if (c->has_swiglu)
        PSEG_TRY(pseg_store_scratch_of(&v->gate, store, type, rows * c->mlp, err));
    for (uint32_t i = 0; i < v->n_taps; i++)
        PSEG_TRY(pseg_store_scratch_of(&v->tap[i], store, type, places * c->hidden, err));
out:
    return rc;
}

pseg_status pseg_vit_new(pseg_vit **out, pseg_store *store, pseg_weights *w, pseg_vit_names names,
                         const pseg_vit_config *c, const uint32_t *taps, uint32_t n_taps,
                         bool is_tap_normed, uint32_t gh, uint32_t gw, uint32_t max_batch,
                         pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_vit *v = NULL;

    *out = NULL;
    PSEG_REQUIRE(n_taps >= 1 && n_taps <= PSEG_MAX_TAPS, "taps");
    PSEG_REQUIRE(taps[n_taps - 1] >= 1 && taps[n_taps - 1] <= c->layers, "taps");
    PSEG_REQUIRE(gh && gw && max_batch, "sizes");
    v = pseg_calloc(1, sizeof *v);
    if (!v || !(v->blocks = pseg_calloc(taps[n_taps - 1], sizeof *v->blocks)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the image encoder");
    v->c = *c;
    v->gh = gh;
    v->gw = gw;
    v->max_batch = max_batch;
    v->is_tap_normed = is_tap_normed;
    v->n_taps = n_taps;
    v->n_blocks = taps[n_taps - 1];
    memcpy(v->taps, taps, n_taps * sizeof *taps);
    PSEG_TRY(load_all(v, store, w, naming_of(names, c->kind), err));
    PSEG_TRY(plan(v, store, err));
    *out = v;
    v = NULL;
out:
    pseg_vit_free(v);
    return rc;
}

void pseg_vit_free(pseg_vit *v)
{
    if (!v)
        return;
    pseg_free(v->blocks);
    pseg_free(v);
}

pseg_view pseg_vit_tap(const pseg_vit *v, uint32_t i)
{
    return v->tap[i];
}

static pseg_status embed(pseg_vit *v, pseg_stream *s, pseg_view pixels, uint32_t batch,
                         pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_vit_config *c = &v->c;
    size_t places = (size_t)v->gh * v->gw;

    PSEG_TRY(
        pseg_op_patches(s, v->wide, pixels, batch, 3, v->gh, v->gw, c->patch, v->patch.k, err));
    PSEG_TRY(
        pseg_linear_run(s, &v->patch, v->patches, v->wide, batch * places, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_op_tokens(s,
                            &(pseg_tokens){.out = v->x,
                                           .patch = v->patches,
                                           .cls = v->cls,
                                           .regs = v->regs,
                                           .pos = v->pos,
                                           .batch = batch,
                                           .n_patches = places,
                                           .n_regs = c->n_regs,
                                           .c = c->hidden},
                            err));
out:
    return rc;
}

static pseg_status run_block(pseg_vit *v, pseg_stream *s, const block *b, uint32_t batch,
                             size_t tokens, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_vit_config *c = &v->c;
    size_t rows = batch * tokens, d = c->hidden, head = d / c->heads;

    PSEG_TRY(pseg_norm_run(s, &b->norm1, v->y, v->x, rows, d, c->eps, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_linear_run(s, &b->qkv, v->wide, v->y, rows, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_op_attention(s,
                               &(pseg_attention){.out = v->y,
                                                 .q = v->wide,
                                                 .k = pseg_view_at(v->wide, d),
                                                 .v = pseg_view_at(v->wide, 2 * d),
                                                 .batch = batch,
                                                 .heads = c->heads,
                                                 .d = head,
                                                 .n_q = tokens,
                                                 .n_k = tokens,
                                                 .q_row = 3 * d,
                                                 .k_row = 3 * d,
                                                 .v_row = 3 * d,
                                                 .out_row = d,
                                                 .q_batch = tokens * 3 * d,
                                                 .k_batch = tokens * 3 * d,
                                                 .v_batch = tokens * 3 * d,
                                                 .out_batch = tokens * d,
                                                 .scale = 1.0f / sqrtf((float)head)},
                               err));
    PSEG_TRY(pseg_linear_add(s, &b->out, v->x, v->y, b->ls1, rows, err));
    PSEG_TRY(pseg_norm_run(s, &b->norm2, v->y, v->x, rows, d, c->eps, PSEG_ACT_NONE, err));
    PSEG_TRY(pseg_linear_run(s, &b->fc1, v->wide, v->y, rows,
                             c->has_swiglu ? PSEG_ACT_NONE : c->act, err));
    if (c->has_swiglu)
        PSEG_TRY(pseg_op_swiglu(s, v->gate, v->wide, rows, c->mlp, err));
    PSEG_TRY(
        pseg_linear_add(s, &b->fc2, v->x, c->has_swiglu ? v->gate : v->wide, b->ls2, rows, err));
out:
    return rc;
}

/* The patches' rows of x, as the decoder wants them. */
static pseg_status take_tap(pseg_vit *v, pseg_stage *st, uint32_t i, uint32_t batch, size_t tokens,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t d = v->c.hidden, places = (size_t)v->gh * v->gw, skip = tokens - places;

    if (!v->is_tap_normed)
        PSEG_TRY(pseg_op_copy(st->s, pseg_block_of(v->tap[i], places * d, d),
                              pseg_block_of(pseg_view_at(v->x, skip * d), tokens * d, d), batch,
                              places, d, 1.0f, err));
    for (uint32_t b = 0; v->is_tap_normed && b < batch; b++)
        PSEG_TRY(pseg_norm_run(st->s, &v->norm, pseg_view_at(v->tap[i], b * places * d),
                               pseg_view_at(v->x, (b * tokens + skip) * d), places, d, v->c.eps,
                               PSEG_ACT_NONE, err));
    pseg_stage_done(st, v->tap[i], batch, places, d, "vision.tap.%u", i);
out:
    return rc;
}

pseg_status pseg_vit_run(pseg_vit *v, pseg_stage *st, pseg_view pixels, uint32_t batch,
                         pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t tokens = 1 + v->c.n_regs + (size_t)v->gh * v->gw;
    uint32_t tap = 0;

    PSEG_REQUIRE(batch >= 1 && batch <= v->max_batch, "batch");
    PSEG_TRY(embed(v, st->s, pixels, batch, err));
    pseg_stage_done(st, v->x, batch, tokens, v->c.hidden, "vision.hidden.%u", 0u);
    for (uint32_t i = 0; i < v->n_blocks; i++) {
        PSEG_TRY(run_block(v, st->s, &v->blocks[i], batch, tokens, err));
        pseg_stage_done(st, v->x, batch, tokens, v->c.hidden, "vision.hidden.%u", i + 1);
        for (; tap < v->n_taps && v->taps[tap] == i + 1; tap++)
            PSEG_TRY(take_tap(v, st, tap, batch, tokens, err));
    }
out:
    return rc;
}
