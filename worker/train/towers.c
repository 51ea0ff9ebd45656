#include "worker/train/towers.h"
#include "common/base/alloc.h"
#include "worker/model/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define NAME (PSEG_SPEC_NAME + 16)

/* ---- which tensors --------------------------------------------------------------------------- */

/* What is trained of a tower: blocks from `first` on, and what stands before them if that is 0 and
 * everything was asked for. */
typedef struct choice {
    uint32_t first;
    bool has_embeddings, has_lora;
} choice;

static choice choose(uint32_t n_blocks, uint32_t layers, uint32_t rank)
{
    uint32_t last = layers < n_blocks ? layers : n_blocks;

    return (choice){n_blocks - last, layers == PSEG_TRAIN_ALL && !rank, rank > 0};
}

/* The number behind ".layer." or ".layers." of a name; UINT32_MAX: it has none. */
static uint32_t block_of(const char *name)
{
    const char *at = strstr(name, "encoder.layer");
    unsigned number;

    if (!at || (sscanf(at, "encoder.layer.%u.", &number) != 1 &&
                sscanf(at, "encoder.layers.%u.", &number) != 1))
        return UINT32_MAX;
    return number;
}

typedef struct list {
    pseg_specs *specs;
    bool *is_frozen;
    size_t cap;
} list;

static pseg_status append(list *l, const char *under, const pseg_spec *s, bool is_frozen,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(pseg_specs_add(l->specs, s->rank, s->dims, err, "%s", s->name));
    pseg_spec *to = &l->specs->items[l->specs->n - 1];
    if ((size_t)snprintf(to->name, sizeof to->name, "%s%s", under, s->name) >= sizeof to->name)
        PSEG_FAIL(PSEG_R_UNSUPPORTED, 0, "tensor %s: a name too long to train it", s->name);
    if (l->specs->n > l->cap) {
        size_t cap = 2 * l->specs->n;
        bool *more = pseg_realloc(l->is_frozen, cap * sizeof *more);
        if (!more)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a list of tensors");
        memset(more + l->cap, 0, (cap - l->cap) * sizeof *more);
        l->is_frozen = more;
        l->cap = cap;
    }
    l->is_frozen[l->specs->n - 1] = is_frozen;
out:
    return rc;
}

/* The two small matrices beside a weight [n, k] whose name ends with one of `which`. */
static pseg_status append_lora(list *l, const char *under, const pseg_spec *s, uint32_t rank,
                               pseg_err *err)
{
    static const char *const which[] = {"query.weight", "value.weight", "q_proj.weight",
                                        "v_proj.weight"};
    pseg_status rc = PSEG_OK;
    size_t len = strlen(s->name), stem = len - strlen(".weight");

    for (size_t i = 0; i < sizeof which / sizeof *which; i++) {
        size_t n = strlen(which[i]);
        if (len < n || strcmp(s->name + len - n, which[i]) != 0)
            continue;
        pseg_spec a = {.rank = 2, .dims = {rank, s->dims[1]}};
        pseg_spec b = {.rank = 2, .dims = {s->dims[0], rank}};
        snprintf(a.name, sizeof a.name, "%.*s.lora_a.weight", (int)stem, s->name);
        snprintf(b.name, sizeof b.name, "%.*s.lora_b.weight", (int)stem, s->name);
        PSEG_TRY(append(l, under, &a, false, err));
        PSEG_TRY(append(l, under, &b, false, err));
    }
out:
    return rc;
}

/* One tower's tensors: blocks below n_blocks, and of what belongs to none all but those named
 * skip. */
static pseg_status append_tower(list *l, const char *under, const pseg_specs *all, choice c,
                                uint32_t n_blocks, uint32_t rank, const char *skip, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t i = 0; i < all->n; i++) {
        const pseg_spec *s = &all->items[i];
        uint32_t block = block_of(s->name);
        bool is_last = strstr(s->name, "layernorm.") == s->name ||
                       strstr(s->name, "final_layer_norm.") ||
                       strstr(s->name, "text_projection.") == s->name;
        bool is_trained = block != UINT32_MAX ? block >= c.first && !c.has_lora
                          : is_last           ? !c.has_lora
                                              : c.has_embeddings;

        if (s->is_unused || (block != UINT32_MAX && block >= n_blocks) ||
            (skip && strncmp(s->name, skip, strlen(skip)) == 0))
            continue;
        PSEG_TRY(append(l, under, s, !is_trained, err));
        if (c.has_lora && block != UINT32_MAX && block >= c.first)
            PSEG_TRY(append_lora(l, under, s, rank, err));
    }
out:
    return rc;
}

static pseg_status vision_specs(list *l, const pseg_train_towers *t, const pseg_head_config *head,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_specs all = {0};
    pseg_vit_config c = *t->vision;
    uint32_t n_blocks = head->taps[head->n_taps - 1];
    char norm[PSEG_SPEC_NAME];

    c.pos_h = head->gh; /* positions as they are used: interpolated to the head's grid */
    c.pos_w = head->gw;
    PSEG_TRY(pseg_vit_specs(&all, &c, PSEG_VIT_NAMES_HF, err));
    pseg_vit_part_name(norm, &c, PSEG_VIT_NAMES_HF, PSEG_VIT_NORM, 0);
    PSEG_TRY(append_tower(l, "vision.", &all, choose(n_blocks, t->vision_layers, t->lora_rank),
                          n_blocks, t->lora_rank, head->is_tap_normed ? NULL : norm, err));
out:
    pseg_specs_deinit(&all);
    return rc;
}

static pseg_status text_specs(list *l, const pseg_train_towers *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_specs all = {0};

    PSEG_TRY(pseg_text_specs(&all, t->text, t->text_prefix, err));
    PSEG_TRY(append_tower(l, "text.", &all, choose(t->text->layers, t->text_layers, t->lora_rank),
                          t->text->layers, t->lora_rank, NULL, err));
out:
    pseg_specs_deinit(&all);
    return rc;
}

pseg_status pseg_train_towers_specs(pseg_specs *specs, bool **is_frozen, const pseg_train_towers *t,
                                    const pseg_head_config *head, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    list l = {specs, NULL, specs->n ? specs->n : 1};

    *is_frozen = NULL;
    l.is_frozen = pseg_calloc(l.cap, sizeof *l.is_frozen);
    if (!l.is_frozen)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a list of tensors");
    if (t->vision)
        PSEG_TRY(vision_specs(&l, t, head, err));
    if (t->text)
        PSEG_TRY(text_specs(&l, t, err));
    *is_frozen = l.is_frozen;
    l.is_frozen = NULL;
out:
    pseg_free(l.is_frozen);
    return rc;
}

/* ---- parts of a graph ------------------------------------------------------------------------ */

static pseg_var param(pseg_graph *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static pseg_var param(pseg_graph *g, const char *fmt, ...)
{
    char name[NAME];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return pseg_graph_param(g, name);
}

typedef struct linear {
    const char *name; /* with "vision." or "text." before it */
    size_t rows, n, k, rank;
    bool has_bias;
} linear;

/* x w^T + b (+ res), and LoRA's two where there is a rank. */
static pseg_var run_linear(pseg_graph *g, const linear *l, pseg_var x, pseg_var res)
{
    pseg_var y = pseg_graph_linear(g, x, param(g, "%s.weight", l->name),
                                   l->has_bias ? param(g, "%s.bias", l->name) : PSEG_NO_VAR, res,
                                   l->rows, l->n, l->k, PSEG_ACT_NONE);

    if (!l->rank)
        return y;
    pseg_var low = pseg_graph_linear(g, x, param(g, "%s.lora_a.weight", l->name), PSEG_NO_VAR,
                                     PSEG_NO_VAR, l->rows, l->rank, l->k, PSEG_ACT_NONE);
    return pseg_graph_linear(g, low, param(g, "%s.lora_b.weight", l->name), PSEG_NO_VAR, y, l->rows,
                             l->n, l->rank, PSEG_ACT_NONE);
}

static pseg_var norm(pseg_graph *g, const char *name, pseg_var x, size_t rows, size_t c, float eps)
{
    return pseg_graph_layernorm(g, x, param(g, "%s.weight", name), param(g, "%s.bias", name), rows,
                                c, eps, PSEG_ACT_NONE);
}

/* ---- the image encoder ----------------------------------------------------------------------- */

typedef struct vision {
    pseg_graph *g;
    const pseg_train_towers *t;
    const pseg_vit_config *c;
    uint32_t batch, first_lora;
    size_t tokens, rows;
    uint32_t block;
    char name[NAME];
} vision;

static const char *name_of(vision *v, pseg_vit_part part)
{
    char name[PSEG_SPEC_NAME];

    pseg_vit_part_name(name, v->c, PSEG_VIT_NAMES_HF, part, v->block);
    snprintf(v->name, sizeof v->name, "vision.%s", name);
    return v->name;
}

static pseg_var vision_linear(vision *v, pseg_vit_part part, pseg_var x, size_t n, size_t k,
                              bool has_bias)
{
    bool has_lora = v->block >= v->first_lora && (part == PSEG_VIT_Q || part == PSEG_VIT_V);
    linear l = {.name = name_of(v, part),
                .rows = v->rows,
                .n = n,
                .k = k,
                .rank = has_lora ? v->t->lora_rank : 0,
                .has_bias = has_bias};

    return run_linear(v->g, &l, x, PSEG_NO_VAR);
}

/* x + ls * y */
static pseg_var add_scaled(vision *v, pseg_vit_part part, pseg_var x, pseg_var y)
{
    size_t c = v->c->hidden;

    if (v->c->has_layer_scale)
        y = pseg_graph_scale(v->g, y, param(v->g, "%s", name_of(v, part)), v->rows, c);
    return pseg_graph_add(v->g, x, y, 1, v->rows, c, false);
}

static pseg_var vision_block(vision *v, pseg_var x)
{
    static const pseg_vit_part parts[] = {PSEG_VIT_Q, PSEG_VIT_K, PSEG_VIT_V};
    const pseg_vit_config *c = v->c;
    size_t d = c->hidden, inner = c->mlp;
    pseg_var h = norm(v->g, name_of(v, PSEG_VIT_NORM1), x, v->rows, d, c->eps), qkv[3];

    for (int i = 0; i < 3; i++)
        qkv[i] = vision_linear(v, parts[i], h, d, d, c->has_qkv_bias);
    h = pseg_graph_attention(v->g, qkv[0], qkv[1], qkv[2], PSEG_NO_VAR, v->batch, c->heads,
                             d / c->heads, v->tokens, v->tokens);
    x = add_scaled(v, PSEG_VIT_LS1, x, vision_linear(v, PSEG_VIT_OUT, h, d, d, true));
    h = norm(v->g, name_of(v, PSEG_VIT_NORM2), x, v->rows, d, c->eps);
    h = vision_linear(v, PSEG_VIT_FC1, h, c->has_swiglu ? 2 * inner : inner, d, true);
    h = c->has_swiglu ? pseg_graph_swiglu(v->g, h, v->rows, inner)
                      : pseg_graph_act(v->g, h, v->rows * inner, c->act);
    return add_scaled(v, PSEG_VIT_LS2, x, vision_linear(v, PSEG_VIT_FC2, h, d, inner, true));
}

void pseg_train_vision_build(pseg_graph *g, const pseg_train_towers *t,
                             const pseg_head_config *head, uint32_t n_images, pseg_var *pixels,
                             pseg_var *taps)
{
    const pseg_vit_config *c = t->vision;
    size_t places = (size_t)head->gh * head->gw, d = c->hidden;
    size_t patch = 3 * (size_t)c->patch * c->patch;
    uint32_t n_blocks = head->taps[head->n_taps - 1], tap = 0;
    vision v = {.g = g, .t = t, .c = c, .batch = n_images, .first_lora = UINT32_MAX};
    char name[NAME];

    if (t->lora_rank)
        v.first_lora = choose(n_blocks, t->vision_layers, t->lora_rank).first;
    v.tokens = 1 + c->n_regs + places;
    *pixels = pseg_graph_input(g, n_images * 3 * (size_t)head->height * head->width);
    v.rows = n_images * places;
    pseg_var x = pseg_graph_patches(g, *pixels, n_images, 3, head->gh, head->gw, c->patch);
    x = vision_linear(&v, PSEG_VIT_PATCH, x, d, patch, true);
    pseg_var cls = param(g, "%s", name_of(&v, PSEG_VIT_CLS));
    pseg_var regs = c->n_regs ? param(g, "%s", name_of(&v, PSEG_VIT_REGS)) : PSEG_NO_VAR;
    x = pseg_graph_tokens(
        g, x, cls, regs, param(g, "%s", name_of(&v, PSEG_VIT_POS)),
        (pseg_tokens){.batch = n_images, .n_patches = places, .n_regs = c->n_regs, .c = d});
    v.rows = n_images * v.tokens;
    for (v.block = 0; v.block < n_blocks; v.block++) {
        x = vision_block(&v, x);
        for (; tap < head->n_taps && head->taps[tap] == v.block + 1; tap++) {
            taps[tap] = pseg_graph_rows(g, x, n_images, v.tokens, d, v.tokens - places, places);
            if (head->is_tap_normed) {
                snprintf(name, sizeof name, "%s", name_of(&v, PSEG_VIT_NORM));
                taps[tap] = norm(g, name, taps[tap], n_images * places, d, c->eps);
            }
        }
    }
}

/* ---- the text encoder ------------------------------------------------------------------------ */

typedef struct text {
    pseg_graph *g;
    const pseg_train_towers *t;
    const pseg_clip_config *c;
    size_t batch, rows;
    uint32_t block, first_lora;
} text;

static pseg_var text_linear(const text *v, const char *part, pseg_var x, pseg_var res, size_t n,
                            size_t k)
{
    bool may_lora = strcmp(part, "self_attn.q_proj") == 0 || strcmp(part, "self_attn.v_proj") == 0;
    char name[NAME];
    linear l = {.name = name,
                .rows = v->rows,
                .n = n,
                .k = k,
                .rank = may_lora && v->block >= v->first_lora ? v->t->lora_rank : 0,
                .has_bias = true};

    snprintf(name, sizeof name, "text.%sencoder.layers.%u.%s", v->t->text_prefix, v->block, part);
    return run_linear(v->g, &l, x, res);
}

static pseg_var text_norm(const text *v, const char *part, pseg_var x)
{
    char name[NAME];

    snprintf(name, sizeof name, "text.%sencoder.layers.%u.%s", v->t->text_prefix, v->block, part);
    return norm(v->g, name, x, v->rows, v->c->hidden, v->c->eps);
}

static pseg_var text_block(const text *v, pseg_var x)
{
    const pseg_clip_config *c = v->c;
    size_t d = c->hidden;
    pseg_var h = text_norm(v, "layer_norm1", x);
    pseg_var q = text_linear(v, "self_attn.q_proj", h, PSEG_NO_VAR, d, d);
    pseg_var k = text_linear(v, "self_attn.k_proj", h, PSEG_NO_VAR, d, d);
    pseg_var val = text_linear(v, "self_attn.v_proj", h, PSEG_NO_VAR, d, d);

    h = pseg_graph_causal_attention(v->g, q, k, val, v->batch, c->heads, d / c->heads,
                                    v->t->max_tokens);
    x = text_linear(v, "self_attn.out_proj", h, x, d, d);
    h = text_linear(v, "mlp.fc1", text_norm(v, "layer_norm2", x), PSEG_NO_VAR, c->mlp, d);
    h = pseg_graph_act(v->g, h, v->rows * c->mlp, c->act);
    return text_linear(v, "mlp.fc2", h, x, d, c->mlp);
}

void pseg_train_text_build(pseg_graph *g, const pseg_train_towers *t, uint32_t batch, pseg_var *ids,
                           pseg_var *ends, pseg_var *embed, pseg_var *words)
{
    const pseg_clip_config *c = t->text;
    size_t d = c->hidden, length = t->max_tokens;
    text v = {
        .g = g, .t = t, .c = c, .batch = batch, .rows = batch * length, .first_lora = UINT32_MAX};
    char name[NAME];

    if (t->lora_rank)
        v.first_lora = choose(c->layers, t->text_layers, t->lora_rank).first;
    *ids = pseg_graph_input(g, v.rows);
    *ends = pseg_graph_input(g, batch);
    pseg_var x =
        pseg_graph_gather(g, param(g, "text.%sembeddings.token_embedding.weight", t->text_prefix),
                          *ids, v.rows, c->vocab, d);
    x = pseg_graph_add(g, x,
                       param(g, "text.%sembeddings.position_embedding.weight", t->text_prefix),
                       batch, length, d, true);
    for (v.block = 0; v.block < c->layers; v.block++)
        x = text_block(&v, x);
    snprintf(name, sizeof name, "text.%sfinal_layer_norm", t->text_prefix);
    x = norm(g, name, x, v.rows, d, c->eps);
    pseg_var end = pseg_graph_gather(g, x, *ends, batch, v.rows, d);
    end = pseg_graph_linear(g, end, param(g, "text.text_projection.weight"), PSEG_NO_VAR,
                            PSEG_NO_VAR, batch, c->proj, d, PSEG_ACT_NONE);
    *embed = pseg_graph_l2norm(g, end, batch, c->proj, 1e-12f);
    *words = length > 1 ? pseg_graph_rows(g, x, batch, length, d, 1, length - 1) : PSEG_NO_VAR;
}
