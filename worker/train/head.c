#include "worker/train/head_parts.h"
#include "common/base/alloc.h"
#include "worker/model/decoder.h"
#include "worker/model/neck.h"

#include <stdarg.h>
#include <stdio.h>

struct pseg_train_head {
    pseg_head_config c;
    pseg_train_shape shape;
    size_t places, pixels, targets;
    pseg_graph *g;
    pseg_train_views views;
};

pseg_status pseg_train_head_specs(pseg_specs *out, const pseg_head_config *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_neck_specs(out, c, err));
    PSEG_TRY(pseg_decoder_specs(out, c, err));
out:
    return rc;
}

pseg_status pseg_train_probe_specs(pseg_specs *out, const pseg_head_config *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const uint64_t weight[] = {1, c->dim}, bias[] = {1};

    for (uint32_t i = 0; i < c->depth; i++) {
        PSEG_TRY(pseg_specs_add(out, 2, weight, err, "probe.%u.weight", i));
        PSEG_TRY(pseg_specs_add(out, 1, bias, err, "probe.%u.bias", i));
    }
out:
    return rc;
}

pseg_var head_param(pseg_graph *g, const char *fmt, ...)
{
    char name[PSEG_SPEC_NAME];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return pseg_graph_param(g, name);
}

/* x w^T + b (+ res) by the tensors of a prefix. */
pseg_var head_linear(pseg_graph *g, const char *prefix, pseg_var x, pseg_var res, size_t rows,
                     size_t n, size_t k, pseg_act act)
{
    return pseg_graph_linear(g, x, head_param(g, "%s.weight", prefix),
                             head_param(g, "%s.bias", prefix), res, rows, n, k, act);
}

/* ---- the neck -------------------------------------------------------------------------------- */

static pseg_var gn_gelu(const head_builder *b, const char *prefix, pseg_var x)
{
    const pseg_head_config *c = b->c;

    return pseg_graph_groupnorm(b->g, x, head_param(b->g, "%s.norm.weight", prefix),
                                head_param(b->g, "%s.norm.bias", prefix),
                                (pseg_groupnorm){.b_n = b->s->n_images,
                                                 .hw = b->places,
                                                 .c = c->dim,
                                                 .groups = c->groups,
                                                 .eps = c->gn_eps,
                                                 .act = PSEG_ACT_GELU});
}

static pseg_var conv3(const head_builder *b, const char *prefix, pseg_var x)
{
    pseg_var y = pseg_graph_conv3(b->g, x, head_param(b->g, "%s.conv.weight", prefix),
                                  head_param(b->g, "%s.conv.bias", prefix),
                                  (pseg_conv3){.batch = b->s->n_images,
                                               .h = b->s->gh,
                                               .width = b->s->gw,
                                               .c = b->c->dim,
                                               .n = b->c->dim});
    return gn_gelu(b, prefix, y);
}

static pseg_var add_maps(const head_builder *b, pseg_var x, pseg_var y)
{
    return pseg_graph_add(b->g, x, y, b->s->n_images, b->places, b->c->dim, false);
}

static pseg_var build_neck(const head_builder *b, const pseg_var *taps)
{
    size_t rows = b->s->n_images * b->places;
    uint32_t n = b->c->n_taps;
    pseg_var level[PSEG_MAX_TAPS], sum = PSEG_NO_VAR;
    char prefix[64], conv[80];

    for (uint32_t i = 0; i < n; i++) {
        snprintf(prefix, sizeof prefix, "neck.lateral.%u", i);
        snprintf(conv, sizeof conv, "%s.conv", prefix);
        level[i] = gn_gelu(b, prefix,
                           head_linear(b->g, conv, taps[i], PSEG_NO_VAR, rows, b->c->dim,
                                       b->c->vision_dim, PSEG_ACT_NONE));
    }
    for (uint32_t i = n - 1; i > 0; i--)
        level[i - 1] = add_maps(b, level[i - 1], level[i]);
    for (uint32_t i = 0; i < n; i++) {
        snprintf(prefix, sizeof prefix, "neck.smooth.%u", i);
        pseg_var one = conv3(b, prefix, level[i]);
        sum = i ? add_maps(b, sum, one) : one;
    }
    return conv3(b, "neck.fuse", sum);
}

/* ---- all of it ------------------------------------------------------------------------------- */

typedef struct inputs {
    pseg_var taps[PSEG_MAX_TAPS], image_of, text, words, target, weight, images, ids, ends;
    pseg_var logits, iou, stats;
} inputs;

static pseg_var build_tokens(const head_builder *b, inputs *in)
{
    size_t c = b->c->dim, batch = b->s->batch, words = b->s->max_prompt - 1;
    pseg_graph_piece parts[4] = {
        {head_param(b->g, "decoder.iou_token"), 1, true},
        {head_param(b->g, "decoder.mask_token"), 1, true},
    };
    size_t n = 3;

    pseg_var text = PSEG_NO_VAR, word = PSEG_NO_VAR;

    if (b->s->towers && b->s->towers->text) {
        pseg_train_text_build(b->g, b->s->towers, b->s->batch, &in->ids, &in->ends, &text, &word);
    } else {
        text = in->text = pseg_graph_input(b->g, batch * b->c->text_dim);
        if (b->c->has_word_tokens)
            word = in->words = pseg_graph_input(b->g, batch * words * b->c->text_hidden);
    }
    parts[2] = (pseg_graph_piece){
        head_linear(b->g, "text_proj", text, PSEG_NO_VAR, batch, c, b->c->text_dim, PSEG_ACT_NONE),
        1, false};
    if (b->c->has_word_tokens) {
        parts[n++] =
            (pseg_graph_piece){head_linear(b->g, "text_token_proj", word, PSEG_NO_VAR,
                                           batch * words, c, b->c->text_hidden, PSEG_ACT_NONE),
                               words, false};
    }
    return pseg_graph_stack(b->g, parts, n, batch, c);
}

/* The loss, of logits as they are or enlarged. */
static void build_loss(const head_builder *b, inputs *in, size_t pixels)
{
    const pseg_head_config *c = b->c;
    pseg_var x = in->logits;

    if (b->s->at_input) {
        x = pseg_graph_enlarge(b->g, x,
                               (pseg_enlarge){.batch = b->s->batch,
                                              .gh = b->s->gh,
                                              .gw = b->s->gw,
                                              .stages = c->n_upsample,
                                              .oh = c->height,
                                              .ow = c->width});
        pixels = (size_t)c->height * c->width;
    }
    in->stats = pseg_graph_mask_loss(b->g, x, in->target, in->weight, in->iou, b->s->batch, pixels,
                                     b->s->loss);
}

static void build(head_builder *b, inputs *in, size_t pixels, size_t targets)
{
    size_t batch = b->s->batch, last = b->c->upsample[b->c->n_upsample - 1];
    pseg_var q, k, mask, taps[PSEG_MAX_TAPS];

    if (b->s->towers && b->s->towers->vision)
        pseg_train_vision_build(b->g, b->s->towers, b->c, b->s->n_images, &in->images, taps);
    else
        for (uint32_t i = 0; i < b->c->n_taps; i++)
            taps[i] = in->taps[i] =
                pseg_graph_input(b->g, b->s->n_images * b->places * b->c->vision_dim);
    b->key_len = pseg_graph_input(b->g, batch);
    in->target = pseg_graph_input(b->g, batch * targets);
    b->weight = in->weight = pseg_graph_input(b->g, batch);
    b->coarse = b->s->deep > 0 ? pseg_graph_input(b->g, batch * b->places) : PSEG_NO_VAR;
    k = build_neck(b, taps);
    b->image_of = PSEG_NO_VAR;
    if (b->s->n_images != batch)
        b->image_of = in->image_of = pseg_graph_input(b->g, batch);
    b->pos = head_param(b->g, "decoder.pos_embed");
    b->pe = q = build_tokens(b, in);
    head_build_blocks(b, &q, &k);
    k = head_build_upsampler(b, k);
    mask = head_build_mlp(b, "decoder.mask_mlp", q, 1, last);
    in->logits = pseg_graph_maskdot(b->g, mask, k, batch, pixels, last);
    in->iou = head_build_mlp(b, "decoder.iou_head", q, 0, 1);
    pseg_graph_keep(b->g, in->logits);
    pseg_graph_keep(b->g, in->iou);
    build_loss(b, in, pixels);
}

static void find_views(pseg_train_head *h, const head_builder *b, const inputs *in)
{
    pseg_train_views *v = &h->views;

    for (uint32_t i = 0; i < h->c.n_taps; i++)
        v->taps[i] = pseg_graph_view(h->g, in->taps[i]);
    v->images = pseg_graph_view(h->g, in->images);
    v->ids = pseg_graph_view(h->g, in->ids);
    v->ends = pseg_graph_view(h->g, in->ends);
    v->image_of = pseg_graph_view(h->g, in->image_of);
    v->text = pseg_graph_view(h->g, in->text);
    v->words = pseg_graph_view(h->g, in->words);
    v->key_len = pseg_graph_view(h->g, b->key_len);
    v->target = pseg_graph_view(h->g, in->target);
    v->coarse = pseg_graph_view(h->g, b->coarse);
    v->weight = pseg_graph_view(h->g, in->weight);
    v->logits = pseg_graph_view(h->g, in->logits);
    v->iou = pseg_graph_view(h->g, in->iou);
    v->stats = pseg_graph_view(h->g, in->stats);
}

pseg_status pseg_train_head_new(pseg_train_head **out, pseg_cl *cl, const pseg_params *params,
                                const pseg_head_config *c, const pseg_train_shape *shape,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_train_head *h = NULL;
    inputs in;

    *out = NULL;
    PSEG_REQUIRE(shape->gh == c->gh && shape->gw == c->gw, "the grid of the positions");
    PSEG_REQUIRE(shape->batch >= 1 && shape->n_images >= 1 && shape->n_images <= shape->batch,
                 "batch");
    PSEG_REQUIRE(c->has_word_tokens ? shape->max_prompt >= 2 : shape->max_prompt == 1,
                 "max_prompt");
    PSEG_REQUIRE(!shape->towers || !shape->towers->text || !c->has_word_tokens ||
                     shape->towers->max_tokens == shape->max_prompt,
                 "max_tokens");
    h = pseg_calloc(1, sizeof *h);
    if (!h)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a training graph");
    h->c = *c;
    h->shape = *shape;
    h->places = (size_t)shape->gh * shape->gw;
    h->pixels = h->places << (2 * c->n_upsample);
    h->targets = shape->at_input ? (size_t)c->height * c->width : h->pixels;
    PSEG_TRY(pseg_graph_new(&h->g, cl, params, shape->has_backward, err));
    head_builder b = {.g = h->g, .c = &h->c, .s = &h->shape, .places = h->places};
    b.t = 2 + (size_t)shape->max_prompt;
    b.rows = shape->batch * b.t;
    b.keys = shape->batch * h->places;
    in = (inputs){.image_of = PSEG_NO_VAR,
                  .text = PSEG_NO_VAR,
                  .words = PSEG_NO_VAR,
                  .images = PSEG_NO_VAR,
                  .ids = PSEG_NO_VAR,
                  .ends = PSEG_NO_VAR};
    for (uint32_t i = 0; i < PSEG_MAX_TAPS; i++)
        in.taps[i] = PSEG_NO_VAR;
    build(&b, &in, h->pixels, h->targets);
    PSEG_TRY(pseg_graph_plan(h->g, err));
    find_views(h, &b, &in);
    *out = h;
    h = NULL;
out:
    pseg_train_head_free(h);
    return rc;
}

void pseg_train_head_free(pseg_train_head *h)
{
    if (!h)
        return;
    pseg_graph_free(h->g);
    pseg_free(h);
}

const pseg_train_views *pseg_train_head_views(const pseg_train_head *h)
{
    return &h->views;
}

pseg_graph *pseg_train_head_graph(pseg_train_head *h)
{
    return h->g;
}

size_t pseg_train_head_pixels(const pseg_train_head *h)
{
    return h->pixels;
}

size_t pseg_train_head_targets(const pseg_train_head *h)
{
    return h->targets;
}

/* Each stage puts four pixels, (dy, dx), behind each other where one was. */
void pseg_train_head_order(uint32_t *order, const pseg_head_config *c, uint32_t gh, uint32_t gw)
{
    uint32_t stages = c->n_upsample, width = gw << stages;
    size_t inside = (size_t)1 << (2 * stages);

    for (uint32_t y = 0; y < gh; y++)
        for (uint32_t x = 0; x < gw; x++)
            for (size_t j = 0; j < inside; j++) {
                uint32_t py = y, px = x;

                for (uint32_t i = stages; i-- > 0;) {
                    py = 2 * py + (uint32_t)(j >> (2 * i + 1) & 1);
                    px = 2 * px + (uint32_t)(j >> (2 * i) & 1);
                }
                order[((size_t)y * gw + x) * inside + j] = py * width + px;
            }
}
