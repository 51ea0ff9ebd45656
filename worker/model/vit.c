#include "worker/model/vit.h"
#include "common/base/alloc.h"
#include "worker/model/interpolate.h"
#include "worker/model/layers.h"
#include "worker/model/vit_parts.h"

#include <math.h>
#include <string.h>

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

pseg_status pseg_vit_positions(float **out, pseg_weights *w, pseg_vit_names names,
                               const pseg_vit_config *c, uint32_t gh, uint32_t gw, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t of_cls = pseg_vit_has_cls_position(c, names) ? c->hidden : 0;
    size_t stored = of_cls + (size_t)c->pos_h * c->pos_w * c->hidden;
    size_t needed = (1 + (size_t)gh * gw) * c->hidden;
    float *given = NULL, *made = NULL;
    pseg_values p;

    *out = NULL;
    PSEG_TRY(pseg_weights_get(&p, w, stored, err, "%s", vit_naming_of(names, c->kind)->pos));
    given = pseg_aligned_alloc(stored * sizeof *given);
    made = pseg_aligned_alloc(needed * sizeof *made);
    if (!given || !made)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for position embeddings");
    pseg_to_f32(given, p.data, p.type, stored);
    memset(made, 0, c->hidden * sizeof *made);
    memcpy(made, given, of_cls * sizeof *made);
    PSEG_TRY(pseg_interpolate_bicubic(made + c->hidden, gh, gw, given + of_cls, c->pos_h, c->pos_w,
                                      c->hidden, c->kind == PSEG_VIT_DINOV2_REG, err));
    *out = made;
    made = NULL;
out:
    pseg_free(given);
    pseg_free(made);
    return rc;
}

static pseg_status load_positions(pseg_vit *v, pseg_store *store, pseg_weights *w,
                                  pseg_vit_names names, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float *made;

    PSEG_TRY(pseg_vit_positions(&made, w, names, &v->c, v->gh, v->gw, err));
    PSEG_TRY(
        pseg_store_floats(&v->pos, store, made, (1 + (size_t)v->gh * v->gw) * v->c.hidden, err));
out:
    return rc;
}

static pseg_status load_block(block *b, pseg_store *store, pseg_weights *w,
                              const pseg_vit_config *c, const vit_naming *n, uint32_t i,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    vit_part_name q = vit_layer_part(n, i, n->qkv ? n->qkv : n->q);
    vit_part_name k = vit_layer_part(n, i, n->qkv ? "" : n->k),
                  v = vit_layer_part(n, i, n->qkv ? "" : n->v);
    const char *const parts[] = {q.s, k.s, v.s};
    const size_t d = c->hidden;

    PSEG_TRY(pseg_load_norm(&b->norm1, store, w, vit_layer_part(n, i, n->norm1).s, d, err));
    if (n->qkv)
        PSEG_TRY(pseg_load_linear(&b->qkv, store, w, q.s, 3 * d, d, c->has_qkv_bias, err));
    else
        PSEG_TRY(pseg_load_stacked(&b->qkv, store, w, parts, 3, d, d, c->has_qkv_bias, err));
    PSEG_TRY(pseg_load_linear(&b->out, store, w, vit_layer_part(n, i, n->out).s, d, d, true, err));
    PSEG_TRY(pseg_load_norm(&b->norm2, store, w, vit_layer_part(n, i, n->norm2).s, d, err));
    PSEG_TRY(pseg_load_linear(&b->fc1, store, w,
                              vit_layer_part(n, i, c->has_swiglu ? n->gate_in : n->fc1).s,
                              c->has_swiglu ? 2 * (size_t)c->mlp : c->mlp, d, true, err));
    PSEG_TRY(pseg_load_linear(&b->fc2, store, w,
                              vit_layer_part(n, i, c->has_swiglu ? n->gate_out : n->fc2).s, d,
                              c->mlp, true, err));
    if (c->has_layer_scale) {
        PSEG_TRY(pseg_load_vector(&b->ls1, store, w, d, err, "%s", vit_layer_part(n, i, n->ls1).s));
        PSEG_TRY(pseg_load_vector(&b->ls2, store, w, d, err, "%s", vit_layer_part(n, i, n->ls2).s));
    }
out:
    return rc;
}

static pseg_status load_all(pseg_vit *v, pseg_store *store, pseg_weights *w, pseg_vit_names names,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const vit_naming *n = vit_naming_of(names, v->c.kind);
    const pseg_vit_config *c = &v->c;
    size_t patch = 3 * (size_t)c->patch * c->patch;

    PSEG_TRY(pseg_load_vector(&v->cls, store, w, c->hidden, err, "%s", n->cls));
    PSEG_TRY(load_positions(v, store, w, names, err));
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
    PSEG_TRY(load_all(v, store, w, names, err));
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
