/* The decoder's tensors: which there are, and how they get to the device. */
#include "common/base/alloc.h"
#include "worker/model/decoder_parts.h"
#include "worker/model/interpolate.h"

#include <stdio.h>

typedef struct part_name {
    char s[PSEG_SPEC_NAME - 16];
} part_name;

static part_name layer_part(uint32_t i, const char *part)
{
    part_name out;

    snprintf(out.s, sizeof out.s, "decoder.layers.%u.%s", i, part);
    return out;
}

static part_name joined(const char *a, const char *b)
{
    part_name out;

    snprintf(out.s, sizeof out.s, "%s.%s", a, b);
    return out;
}

/* ---- which ----------------------------------------------------------------------------------- */

static pseg_status attention_specs(pseg_specs *s, const char *prefix, uint64_t d, uint64_t inner,
                                   pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_specs_linear(s, joined(prefix, "q_proj").s, inner, d, true, err));
    PSEG_TRY(pseg_specs_linear(s, joined(prefix, "k_proj").s, inner, d, true, err));
    PSEG_TRY(pseg_specs_linear(s, joined(prefix, "v_proj").s, inner, d, true, err));
    PSEG_TRY(pseg_specs_linear(s, joined(prefix, "out_proj").s, d, inner, true, err));
out:
    return rc;
}

static pseg_status layer_specs(pseg_specs *s, const pseg_head_config *c, uint32_t i, pseg_err *err)
{
    static const char *const norms[] = {"layer_norm1", "layer_norm2", "layer_norm3", "layer_norm4"};
    pseg_status rc = PSEG_OK;
    uint64_t d = c->dim, inner = d / c->downsample;

    PSEG_TRY(attention_specs(s, layer_part(i, "self_attn").s, d, d, err));
    PSEG_TRY(attention_specs(s, layer_part(i, "cross_attn_token_to_image").s, d, inner, err));
    PSEG_TRY(attention_specs(s, layer_part(i, "cross_attn_image_to_token").s, d, inner, err));
    PSEG_TRY(pseg_specs_linear(s, layer_part(i, "mlp.lin1").s, c->mlp, d, true, err));
    PSEG_TRY(pseg_specs_linear(s, layer_part(i, "mlp.lin2").s, d, c->mlp, true, err));
    for (size_t k = 0; k < 4; k++)
        PSEG_TRY(pseg_specs_norm(s, layer_part(i, norms[k]).s, d, err));
out:
    return rc;
}

static pseg_status mlp3_specs(pseg_specs *s, const char *prefix, uint64_t d, uint64_t n,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_specs_linear(s, joined(prefix, "proj_in").s, d, d, true, err));
    PSEG_TRY(pseg_specs_linear(s, joined(prefix, "layers.0").s, d, d, true, err));
    PSEG_TRY(pseg_specs_linear(s, joined(prefix, "proj_out").s, n, d, true, err));
out:
    return rc;
}

pseg_status pseg_decoder_specs(pseg_specs *out, const pseg_head_config *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t d = c->dim, cin = d;

    PSEG_TRY(pseg_specs_linear(out, "text_proj", d, c->text_dim, true, err));
    if (c->has_word_tokens)
        PSEG_TRY(pseg_specs_linear(out, "text_token_proj", d, c->text_hidden, true, err));
    PSEG_TRY(pseg_specs_add(out, 4, (uint64_t[]){1, d, c->gh, c->gw}, err, "decoder.pos_embed"));
    PSEG_TRY(pseg_specs_add(out, 2, (uint64_t[]){1, d}, err, "decoder.iou_token"));
    PSEG_TRY(pseg_specs_add(out, 2, (uint64_t[]){1, d}, err, "decoder.mask_token"));
    for (uint32_t i = 0; i < c->depth; i++)
        PSEG_TRY(layer_specs(out, c, i, err));
    PSEG_TRY(attention_specs(out, "decoder.final_attn_token_to_image", d, d / c->downsample, err));
    PSEG_TRY(pseg_specs_norm(out, "decoder.layer_norm_final_attn", d, err));
    for (uint32_t i = 0; i < c->n_upsample; i++) {
        uint64_t n = c->upsample[i];
        PSEG_TRY(pseg_specs_add(out, 4, (uint64_t[]){cin, n, 2, 2}, err,
                                "decoder.upsample.%u.conv.weight", i));
        PSEG_TRY(pseg_specs_add(out, 1, &n, err, "decoder.upsample.%u.conv.bias", i));
        if (i + 1 < c->n_upsample) {
            PSEG_TRY(pseg_specs_add(out, 1, &n, err, "decoder.upsample.%u.norm.weight", i));
            PSEG_TRY(pseg_specs_add(out, 1, &n, err, "decoder.upsample.%u.norm.bias", i));
        }
        cin = n;
    }
    PSEG_TRY(mlp3_specs(out, "decoder.mask_mlp", d, cin, err));
    PSEG_TRY(mlp3_specs(out, "decoder.iou_head", d, 1, err));
out:
    return rc;
}

/* ---- loading --------------------------------------------------------------------------------- */

/* [1, D, gh, gw] to [run_gh*run_gw, D], resized if the grids differ. */
static pseg_status load_positions(pseg_decoder *d, pseg_store *store, pseg_weights *w,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, stored = (size_t)d->c.gh * d->c.gw, needed = d->places;
    float *planar = NULL, *turned = NULL, *made = NULL, *take;
    pseg_values v;

    PSEG_TRY(pseg_weights_get(&v, w, stored * c, err, "decoder.pos_embed"));
    planar = pseg_aligned_alloc(stored * c * sizeof *planar);
    turned = pseg_aligned_alloc(stored * c * sizeof *turned);
    made = pseg_aligned_alloc(needed * c * sizeof *made);
    if (!planar || !turned || !made)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the decoder");
    pseg_to_f32(planar, v.data, v.type, stored * c);
    for (size_t i = 0; i < stored; i++)
        for (size_t k = 0; k < c; k++)
            turned[i * c + k] = planar[k * stored + i];
    PSEG_TRY(pseg_interpolate_bicubic(made, d->limits.gh, d->limits.gw, turned, d->c.gh, d->c.gw,
                                      (uint32_t)c, false, err));
    take = made;
    made = NULL;
    PSEG_TRY(pseg_store_floats(&d->pos, store, take, needed * c, err));
out:
    pseg_free(planar);
    pseg_free(turned);
    pseg_free(made);
    return rc;
}

/* The two tokens that every sample begins with, [2, D]. */
static pseg_status load_lead(pseg_decoder *d, pseg_store *store, pseg_weights *w, pseg_err *err)
{
    static const char *const names[] = {"decoder.iou_token", "decoder.mask_token"};
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim;
    float *host = pseg_aligned_alloc(2 * c * sizeof *host), *take;
    pseg_values v;

    if (!host)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the decoder");
    for (size_t i = 0; i < 2; i++) {
        PSEG_TRY(pseg_weights_get(&v, w, c, err, "%s", names[i]));
        pseg_to_f32(host + i * c, v.data, v.type, c);
    }
    take = host;
    host = NULL;
    PSEG_TRY(pseg_store_floats(&d->lead, store, take, 2 * c, err));
out:
    pseg_free(host);
    return rc;
}

static pseg_status load_layer(pseg_decoder_layer *l, pseg_decoder *d, pseg_store *store,
                              pseg_weights *w, uint32_t i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, inner = d->inner;
    part_name sa = layer_part(i, "self_attn"), ti = layer_part(i, "cross_attn_token_to_image");
    part_name it = layer_part(i, "cross_attn_image_to_token");
    part_name q = joined(sa.s, "q_proj"), k = joined(sa.s, "k_proj");
    part_name tk = joined(ti.s, "k_proj"), iq = joined(it.s, "q_proj");
    const char *const self[] = {q.s, k.s}, *const keys[] = {tk.s, iq.s};

    PSEG_TRY(pseg_load_stacked(&l->self_qk, store, w, self, 2, c, c, true, err));
    PSEG_TRY(pseg_load_linear(&l->self_v, store, w, joined(sa.s, "v_proj").s, c, c, true, err));
    PSEG_TRY(pseg_load_linear(&l->self_out, store, w, joined(sa.s, "out_proj").s, c, c, true, err));
    PSEG_TRY(pseg_load_linear(&l->ti_q, store, w, joined(ti.s, "q_proj").s, inner, c, true, err));
    PSEG_TRY(pseg_load_stacked(&l->keys_kq, store, w, keys, 2, inner, c, true, err));
    PSEG_TRY(pseg_load_linear(&l->ti_v, store, w, joined(ti.s, "v_proj").s, inner, c, true, err));
    PSEG_TRY(
        pseg_load_linear(&l->ti_out, store, w, joined(ti.s, "out_proj").s, c, inner, true, err));
    PSEG_TRY(pseg_load_linear(&l->it_k, store, w, joined(it.s, "k_proj").s, inner, c, true, err));
    PSEG_TRY(pseg_load_linear(&l->it_v, store, w, joined(it.s, "v_proj").s, inner, c, true, err));
    PSEG_TRY(
        pseg_load_linear(&l->it_out, store, w, joined(it.s, "out_proj").s, c, inner, true, err));
    PSEG_TRY(
        pseg_load_linear(&l->lin1, store, w, layer_part(i, "mlp.lin1").s, d->c.mlp, c, true, err));
    PSEG_TRY(
        pseg_load_linear(&l->lin2, store, w, layer_part(i, "mlp.lin2").s, c, d->c.mlp, true, err));
    PSEG_TRY(pseg_load_norm(&l->norm1, store, w, layer_part(i, "layer_norm1").s, c, err));
    PSEG_TRY(pseg_load_norm(&l->norm2, store, w, layer_part(i, "layer_norm2").s, c, err));
    PSEG_TRY(pseg_load_norm(&l->norm3, store, w, layer_part(i, "layer_norm3").s, c, err));
    PSEG_TRY(pseg_load_norm(&l->norm4, store, w, layer_part(i, "layer_norm4").s, c, err));
out:
    return rc;
}

static pseg_status load_final(pseg_decoder *d, pseg_store *store, pseg_weights *w, pseg_err *err)
{
    static const char prefix[] = "decoder.final_attn_token_to_image";
    pseg_status rc = PSEG_OK;
    size_t c = d->c.dim, inner = d->inner;

    PSEG_TRY(
        pseg_load_linear(&d->final_q, store, w, joined(prefix, "q_proj").s, inner, c, true, err));
    PSEG_TRY(
        pseg_load_linear(&d->final_k, store, w, joined(prefix, "k_proj").s, inner, c, true, err));
    PSEG_TRY(
        pseg_load_linear(&d->final_v, store, w, joined(prefix, "v_proj").s, inner, c, true, err));
    PSEG_TRY(pseg_load_linear(&d->final_out, store, w, joined(prefix, "out_proj").s, c, inner, true,
                              err));
    PSEG_TRY(pseg_load_norm(&d->final_norm, store, w, "decoder.layer_norm_final_attn", c, err));
out:
    return rc;
}

static pseg_status load_mlp3(pseg_linear out[3], pseg_store *store, pseg_weights *w,
                             const char *prefix, size_t d, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_load_linear(&out[0], store, w, joined(prefix, "proj_in").s, d, d, true, err));
    PSEG_TRY(pseg_load_linear(&out[1], store, w, joined(prefix, "layers.0").s, d, d, true, err));
    PSEG_TRY(pseg_load_linear(&out[2], store, w, joined(prefix, "proj_out").s, n, d, true, err));
out:
    return rc;
}

pseg_status pseg_decoder_load(pseg_decoder *d, pseg_store *store, pseg_weights *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_head_config *c = &d->c;
    size_t cin = c->dim;
    char name[64];
    /* A few rows a phrase are projected, and read off at the end: nothing to be won. */
    const pseg_dtype type = pseg_store_type(store);

    pseg_store_set_type(store, PSEG_F32);
    PSEG_TRY(
        pseg_load_linear(&d->text_proj, store, w, "text_proj", c->dim, c->text_dim, true, err));
    if (c->has_word_tokens)
        PSEG_TRY(pseg_load_linear(&d->word_proj, store, w, "text_token_proj", c->dim,
                                  c->text_hidden, true, err));
    PSEG_TRY(load_positions(d, store, w, err));
    PSEG_TRY(load_lead(d, store, w, err));
    pseg_store_set_type(store, type);
    for (uint32_t i = 0; i < c->depth; i++)
        PSEG_TRY(load_layer(&d->layers[i], d, store, w, i, err));
    PSEG_TRY(load_final(d, store, w, err));
    for (uint32_t i = 0; i < c->n_upsample; i++) {
        snprintf(name, sizeof name, "decoder.upsample.%u.conv", i);
        PSEG_TRY(pseg_load_convt2(&d->up_conv[i], store, w, name, cin, c->upsample[i], err));
        snprintf(name, sizeof name, "decoder.upsample.%u.norm", i);
        if (i + 1 < c->n_upsample)
            PSEG_TRY(pseg_load_norm(&d->up_norm[i], store, w, name, c->upsample[i], err));
        cin = c->upsample[i];
    }
    pseg_store_set_type(store, PSEG_F32);
    PSEG_TRY(load_mlp3(d->mask_mlp, store, w, "decoder.mask_mlp", c->dim, cin, err));
    PSEG_TRY(load_mlp3(d->iou_head, store, w, "decoder.iou_head", c->dim, 1, err));
out:
    pseg_store_set_type(store, type);
    return rc;
}
