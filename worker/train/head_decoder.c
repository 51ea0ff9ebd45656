/* Two-way transformer, upsampler and the MLPs of tokens: the mathematics of worker/model/decoder.c.
 */
#include "worker/train/head_parts.h"

#include <stdio.h>

static pseg_var layernorm(pseg_graph *g, const char *prefix, pseg_var x, size_t rows, size_t c,
                          float eps, pseg_act act)
{
    return pseg_graph_layernorm(g, x, head_param(g, "%s.weight", prefix),
                                head_param(g, "%s.bias", prefix), rows, c, eps, act);
}

/* ---- the two-way transformer ----------------------------------------------------------------- */

static pseg_var add_pe(const head_builder *b, pseg_var q)
{
    return pseg_graph_add(b->g, q, b->pe, 1, b->rows, b->c->dim, false);
}

static pseg_var add_pos(const head_builder *b, pseg_var k, size_t batch)
{
    return pseg_graph_add(b->g, k, b->pos, batch, b->places, b->c->dim, true);
}

/* Keys of images to those of samples: [n_images, places, c] to [batch, places, c]. */
static pseg_var to_samples(const head_builder *b, pseg_var k, size_t c)
{
    return pseg_graph_gather(b->g, k, b->image_of, b->s->batch, b->s->n_images, b->places * c);
}

/* One attention: inputs of its three projections, and what is added to its result. of_image: the
 * side that comes of the image, q or k and v, is that of images, not yet of samples: it is
 * projected once an image, whatever the number of its phrases. */
typedef struct attend {
    const char *prefix;
    pseg_var q, k, v, res;
    size_t n_q, n_k, inner;
    bool is_masked, q_of_image, kv_of_image;
} attend;

static pseg_var attention(const head_builder *b, const attend *a)
{
    static const char *const parts[] = {"q_proj", "k_proj", "v_proj"};
    const pseg_var in[] = {a->q, a->k, a->v};
    size_t c = b->c->dim, batch = b->s->batch, heads = b->c->heads;
    pseg_var made[3], out;
    char prefix[96];

    for (int i = 0; i < 3; i++) {
        bool of_image = i ? a->kv_of_image : a->q_of_image;
        size_t rows = (of_image ? b->s->n_images : batch) * (i ? a->n_k : a->n_q);

        snprintf(prefix, sizeof prefix, "%s.%s", a->prefix, parts[i]);
        made[i] = head_linear(b->g, prefix, in[i], PSEG_NO_VAR, rows, a->inner, c, PSEG_ACT_NONE);
        if (of_image)
            made[i] = to_samples(b, made[i], a->inner);
    }
    out = pseg_graph_attention(b->g, made[0], made[1], made[2],
                               a->is_masked ? b->key_len : PSEG_NO_VAR, batch, heads,
                               a->inner / heads, a->n_q, a->n_k);
    snprintf(prefix, sizeof prefix, "%s.out_proj", a->prefix);
    return head_linear(b->g, prefix, out, a->res, batch * a->n_q, c, a->inner, PSEG_ACT_NONE);
}

static pseg_var token_norm(const head_builder *b, uint32_t layer, int which, pseg_var x)
{
    char prefix[64];

    snprintf(prefix, sizeof prefix, "decoder.layers.%u.layer_norm%d", layer, which);
    return layernorm(b->g, prefix, x, which == 4 ? b->keys : b->rows, b->c->dim, b->c->ln_eps,
                     PSEG_ACT_NONE);
}

/* *k: of images before the first block, where they are fewer than samples; of samples after it. */
static void build_block(const head_builder *b, uint32_t i, pseg_var *q, pseg_var *k)
{
    size_t c = b->c->dim, inner = c / b->c->downsample;
    bool of_image = i == 0 && b->image_of >= 0;
    char self[64], ti[64], it[64], mlp[64];

    snprintf(self, sizeof self, "decoder.layers.%u.self_attn", i);
    snprintf(ti, sizeof ti, "decoder.layers.%u.cross_attn_token_to_image", i);
    snprintf(it, sizeof it, "decoder.layers.%u.cross_attn_image_to_token", i);
    pseg_var qp = i ? add_pe(b, *q) : *q;
    pseg_var x = attention(b, &(attend){.prefix = self,
                                        .q = qp,
                                        .k = qp,
                                        .v = *q,
                                        .res = i ? *q : PSEG_NO_VAR,
                                        .n_q = b->t,
                                        .n_k = b->t,
                                        .inner = c,
                                        .is_masked = true});
    *q = token_norm(b, i, 1, x);
    pseg_var kp = add_pos(b, *k, of_image ? b->s->n_images : b->s->batch);
    qp = add_pe(b, *q);
    x = attention(b, &(attend){.prefix = ti,
                               .q = qp,
                               .k = kp,
                               .v = *k,
                               .res = *q,
                               .n_q = b->t,
                               .n_k = b->places,
                               .inner = inner,
                               .kv_of_image = of_image});
    *q = token_norm(b, i, 2, x);
    snprintf(mlp, sizeof mlp, "decoder.layers.%u.mlp.lin1", i);
    x = head_linear(b->g, mlp, *q, PSEG_NO_VAR, b->rows, b->c->mlp, c, PSEG_ACT_RELU);
    snprintf(mlp, sizeof mlp, "decoder.layers.%u.mlp.lin2", i);
    x = head_linear(b->g, mlp, x, *q, b->rows, c, b->c->mlp, PSEG_ACT_NONE);
    *q = token_norm(b, i, 3, x);
    qp = add_pe(b, *q);
    x = attention(b, &(attend){.prefix = it,
                               .q = kp,
                               .k = qp,
                               .v = *q,
                               .res = of_image ? to_samples(b, *k, c) : *k,
                               .n_q = b->places,
                               .n_k = b->t,
                               .inner = inner,
                               .is_masked = true,
                               .q_of_image = of_image});
    *k = token_norm(b, i, 4, x);
}

static pseg_var build_final(const head_builder *b, pseg_var q, pseg_var k)
{
    size_t inner = b->c->dim / b->c->downsample;
    pseg_var qp = add_pe(b, q), kp = add_pos(b, k, b->s->batch);
    pseg_var x = attention(b, &(attend){.prefix = "decoder.final_attn_token_to_image",
                                        .q = qp,
                                        .k = kp,
                                        .v = k,
                                        .res = q,
                                        .n_q = b->t,
                                        .n_k = b->places,
                                        .inner = inner});

    return layernorm(b->g, "decoder.layer_norm_final_attn", x, b->rows, b->c->dim,
                     b->c->final_ln_eps, PSEG_ACT_NONE);
}

/* ---- the mask and the IoU -------------------------------------------------------------------- */

pseg_var head_build_upsampler(const head_builder *b, pseg_var x)
{
    size_t rows = b->keys, cin = b->c->dim;
    char prefix[64];

    for (uint32_t i = 0; i < b->c->n_upsample; i++) {
        size_t cout = b->c->upsample[i];
        pseg_var bias =
            pseg_graph_repeat(b->g, head_param(b->g, "decoder.upsample.%u.conv.bias", i), 4, cout);

        x = pseg_graph_linear(b->g, x, head_param(b->g, "decoder.upsample.%u.conv.weight", i), bias,
                              PSEG_NO_VAR, rows, 4 * cout, cin, PSEG_ACT_NONE);
        rows *= 4;
        snprintf(prefix, sizeof prefix, "decoder.upsample.%u.norm", i);
        x = i + 1 < b->c->n_upsample
                ? layernorm(b->g, prefix, x, rows, cout, b->c->upsample_eps, PSEG_ACT_GELU)
                : pseg_graph_act(b->g, x, rows * cout, PSEG_ACT_GELU);
        cin = cout;
    }
    return x;
}

/* MLP of token `row` of each sample. */
pseg_var head_build_mlp(const head_builder *b, const char *prefix, pseg_var q, size_t row, size_t n)
{
    size_t c = b->c->dim, batch = b->s->batch;
    char name[64];
    pseg_var x = pseg_graph_row(b->g, q, batch, b->t, c, row);

    snprintf(name, sizeof name, "%s.proj_in", prefix);
    x = head_linear(b->g, name, x, PSEG_NO_VAR, batch, c, c, PSEG_ACT_RELU);
    snprintf(name, sizeof name, "%s.layers.0", prefix);
    x = head_linear(b->g, name, x, PSEG_NO_VAR, batch, c, c, PSEG_ACT_RELU);
    snprintf(name, sizeof name, "%s.proj_out", prefix);
    return head_linear(b->g, name, x, PSEG_NO_VAR, batch, n, c, PSEG_ACT_NONE);
}

/* The mask read off the keys, and its part of the loss. */
static void build_probe(const head_builder *b, uint32_t i, pseg_var k)
{
    float share = b->s->deep / (float)b->c->depth;
    char prefix[32];

    snprintf(prefix, sizeof prefix, "probe.%u", i);
    pseg_var x = head_linear(b->g, prefix, k, PSEG_NO_VAR, b->keys, 1, b->c->dim, PSEG_ACT_NONE);
    pseg_graph_mask_loss(b->g, x, b->coarse, b->weight, b->weight, b->s->batch, b->places,
                         (pseg_loss_weights){share * b->s->loss.bce, share * b->s->loss.dice, 0});
}

void head_build_blocks(const head_builder *b, pseg_var *q, pseg_var *k)
{
    for (uint32_t i = 0; i < b->c->depth; i++) {
        build_block(b, i, q, k);
        if (b->s->deep > 0)
            build_probe(b, i, *k);
    }
    *q = build_final(b, *q, *k);
}
