/* The same for a whole model with its encoders (golden_whole.py); then what frozen tensors and LoRA
 * do to the list of what is trained, and that frozen ones change nothing of the others' gradients.
 */
#include "common/base/alloc.h"
#include "tests/golden/train_support.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const pseg_clip_config text = {.vocab = 40,
                                      .hidden = 20,
                                      .layers = 2,
                                      .heads = 2,
                                      .mlp = 48,
                                      .max_pos = 5,
                                      .proj = 24,
                                      .act = PSEG_ACT_QUICK_GELU,
                                      .eps = 1e-4f};
static const pseg_vit_config gelu = {.kind = PSEG_VIT_DINOV2,
                                     .hidden = 20,
                                     .layers = 2,
                                     .heads = 2,
                                     .mlp = 40,
                                     .patch = 4,
                                     .pos_h = 2,
                                     .pos_w = 2,
                                     .has_layer_scale = true,
                                     .has_qkv_bias = true,
                                     .has_mask_token = true,
                                     .act = PSEG_ACT_GELU,
                                     .eps = 1e-3f};

static pseg_train_towers towers_of(const pseg_vit_config *vision)
{
    return (pseg_train_towers){.vision = vision,
                               .text = &text,
                               .text_prefix = "text_model.",
                               .max_tokens = 5,
                               .vision_layers = PSEG_TRAIN_ALL,
                               .text_layers = PSEG_TRAIN_ALL};
}

/* Hugging Face's rule for SwiGLU's inner width: two thirds, rounded up to a multiple of 8. */
static pseg_vit_config swiglu_of(void)
{
    pseg_vit_config c = gelu;

    c.has_swiglu = true;
    c.mlp = (40 * 2 / 3 + 7) / 8 * 8;
    return c;
}

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), k = strlen(with);

    return n >= k && strcmp(s + n - k, with) == 0;
}

/* The last block of each tower alone: fewer tensors, and the same gradients for them. */
static unsigned frozen_change_nothing(pseg_cl *cl)
{
    pseg_train_towers all = towers_of(&gelu), last = all;
    train_case whole = {"whole_gelu", true, &all, true}, part = {"whole_gelu", true, &last, true};
    setup a, b;
    unsigned bad = 0, n_frozen = 0;

    last.vision_layers = last.text_layers = 1;
    train_open(&a, cl, &whole, false);
    train_open(&b, cl, &part, false);
    train_pass(&a, true);
    train_pass(&b, true);
    float *x = train_read_all(&a, PSEG_PARAMS_GRAD), *y = train_read_all(&b, PSEG_PARAMS_GRAD);
    for (size_t i = 0; i < pseg_params_count(b.params); i++) {
        const pseg_param *p = pseg_params_at(b.params, i), *q;
        q = pseg_params_at(a.params, pseg_params_find(a.params, p->spec.name));
        bool below = strstr(p->spec.name, ".layer.0.") || strstr(p->spec.name, ".layers.0.") ||
                     strstr(p->spec.name, "embedding");

        if (strncmp(p->spec.name, "vision.", 7) != 0 && strncmp(p->spec.name, "text.", 5) != 0)
            below = false;
        if (p->is_frozen != below) {
            printf("FAIL %s is %s\n", p->spec.name, p->is_frozen ? "frozen" : "trained");
            bad++;
        }
        n_frozen += p->is_frozen;
        if (!p->is_frozen && memcmp(x + q->off, y + p->off, p->elems * sizeof *x) != 0) {
            printf("FAIL %s: another gradient when the blocks below are frozen\n", p->spec.name);
            bad++;
        }
    }
    if (n_frozen < 20 || pseg_graph_bytes(pseg_train_head_graph(b.head)) >
                             pseg_graph_bytes(pseg_train_head_graph(a.head))) {
        printf("FAIL %u tensors frozen, or memory for gradients that nobody wants\n", n_frozen);
        bad++;
    }
    pseg_free(x);
    pseg_free(y);
    train_close(&a);
    train_close(&b);
    return bad;
}

/* LoRA: the encoders' own tensors are frozen; d_b = (d_y)^T (x a^T), so that of b's gradient and
 * a's, b's is what the weight's own would give: d_w a^T. */
static unsigned lora_is_the_weights_gradient(pseg_cl *cl)
{
    pseg_train_towers all = towers_of(&gelu), low = all;
    train_case whole = {"whole_gelu", true, &all, true}, part = {"whole_gelu", true, &low, true};
    setup a, b;
    unsigned bad = 0, n_seen = 0;
    enum { RANK = 3 };

    low.lora_rank = RANK;
    train_open(&a, cl, &whole, false);
    train_open(&b, cl, &part, false);
    /* b is zero, as it begins, so that both graphs compute the same. */
    float *values = train_read_all(&b, PSEG_PARAMS_VALUE);
    for (size_t i = 0; i < pseg_params_count(b.params); i++) {
        const pseg_param *p = pseg_params_at(b.params, i);
        if (ends(p->spec.name, ".lora_b.weight"))
            memset(values + p->off, 0, p->elems * sizeof *values);
    }
    gold_must(pseg_params_write(b.params, b.s, PSEG_PARAMS_VALUE, values, &b.err) == PSEG_OK,
              "write", &b.err);
    train_pass(&a, true);
    train_pass(&b, true);
    float *x = train_read_all(&a, PSEG_PARAMS_GRAD), *y = train_read_all(&b, PSEG_PARAMS_GRAD);
    for (size_t i = 0; i < pseg_params_count(b.params); i++) {
        const pseg_param *p = pseg_params_at(b.params, i);
        char name[200];

        if (!ends(p->spec.name, ".lora_b.weight"))
            continue;
        snprintf(name, sizeof name, "%.*s.weight",
                 (int)(strlen(p->spec.name) - strlen(".lora_b.weight")), p->spec.name);
        size_t at = pseg_params_find(a.params, name);
        gold_must(at != SIZE_MAX, name, NULL);
        const pseg_param *w = pseg_params_at(a.params, at);
        snprintf(name, sizeof name, "%.*s.lora_a.weight",
                 (int)(strlen(p->spec.name) - strlen(".lora_b.weight")), p->spec.name);
        size_t down = pseg_params_find(b.params, name);
        gold_must(down != SIZE_MAX, name, NULL);
        float *dw = pseg_malloc(w->plain * sizeof *dw), *db = pseg_malloc(p->plain * sizeof *db);
        float *fa = pseg_malloc(RANK * w->k * sizeof *fa);
        gold_must(dw && db && fa, "memory", NULL);
        pseg_params_unpack(dw, a.params, at, x, &a.err);
        pseg_params_unpack(db, b.params, i, y, &b.err);
        pseg_params_unpack(fa, b.params, down, values, &b.err);
        double off = 0, size = 0;
        for (size_t r = 0; r < w->n; r++)
            for (size_t k = 0; k < RANK; k++) {
                double want = 0;
                for (size_t j = 0; j < w->k; j++)
                    want += (double)dw[r * w->k + j] * (double)fa[k * w->k + j];
                double d = want - (double)db[r * RANK + k];
                off += d * d;
                size += want * want;
            }
        if (!(off <= 1e-9 * size)) {
            printf("FAIL %s: NMSE %g\n", p->spec.name, off / size);
            bad++;
        }
        n_seen++;
        pseg_free(dw);
        pseg_free(db);
        pseg_free(fa);
    }
    if (n_seen != 8) { /* query and value of two blocks of two towers */
        printf("FAIL %u small matrices, expected 8\n", n_seen);
        bad++;
    }
    pseg_free(values);
    pseg_free(x);
    pseg_free(y);
    train_close(&a);
    train_close(&b);
    return bad;
}

int main(void)
{
    pseg_cl *cl = gold_cl();
    const pseg_vit_config swiglu = swiglu_of();
    pseg_train_towers a = towers_of(&gelu), b = towers_of(&swiglu);
    const train_case words = {"whole_gelu", true, &a, true};
    const train_case pooled = {"whole_swiglu", false, &b, false};
    unsigned bad = 0;

    bad += train_ten_steps(cl, &words);
    bad += train_ten_steps(cl, &pooled);
    bad += frozen_change_nothing(cl);
    bad += lora_is_the_weights_gradient(cl);
    pseg_cl_close(cl);
    return bad ? 1 : 0;
}
