/* The training graph computes what inference computes: the same weights, taps and phrases through
 * worker/model's neck and decoder and through worker/train's graph give the same logits and IoU. */
#include "common/base/alloc.h"
#include "tests/golden/golden.h"
#include "worker/model/decoder.h"
#include "worker/model/neck.h"
#include "worker/train/head.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct shape {
    const char *name;
    uint32_t gh, gw, dim, heads, depth, mlp, groups, n_taps, n_upsample, upsample[4];
    uint32_t images, batch, max_prompt; /* 1: pooled */
} shape;

static const shape shapes[] = {
    {"train_equal_pooled", 3, 2, 16, 2, 2, 40, 4, 2, 2, {12, 8}, 2, 3, 1},
    {"train_equal_words", 3, 2, 16, 2, 2, 40, 4, 2, 2, {12, 8}, 3, 3, 6},
    {"train_equal_16", 16, 16, 64, 8, 3, 96, 32, 4, 3, {32, 16, 8}, 2, 4, 9},
    {"train_equal_16_pooled", 16, 16, 64, 8, 3, 96, 32, 4, 3, {32, 16, 8}, 1, 2, 1},
    {"train_equal_one_stage", 5, 4, 32, 4, 1, 33, 8, 1, 1, {7}, 1, 1, 2},
};

enum { MAX_BATCH = 4 };

static pseg_head_config config_of(const shape *f)
{
    pseg_head_config c;

    pseg_head_config_default(&c);
    c.n_taps = f->n_taps;
    c.dim = f->dim;
    c.heads = f->heads;
    c.depth = f->depth;
    c.mlp = f->mlp;
    c.groups = f->groups;
    c.gh = f->gh;
    c.gw = f->gw;
    c.n_upsample = f->n_upsample;
    memcpy(c.upsample, f->upsample, sizeof f->upsample);
    c.vision_dim = 20;
    c.text_dim = 24;
    c.text_hidden = 28;
    c.has_word_tokens = f->max_prompt > 1;
    return c;
}

static pseg_err err;

static void must(pseg_status rc, const char *what)
{
    gold_must(rc == PSEG_OK, what, &err);
}

/* Numbers by formula; caller frees. */
static float *made(const char *name, const char *what, size_t n)
{
    float *v = pseg_malloc(n * sizeof *v);
    char key[96];

    gold_must(v, "memory", NULL);
    snprintf(key, sizeof key, "%s:input.%s", name, what);
    gold_fill_as(v, n, key, 0, 1);
    return v;
}

static void put(pseg_stream *s, pseg_view v, const void *data, size_t n)
{
    must(pseg_mem_write(s, v.mem, v.off * 4, data, n * 4, &err), "write");
    must(pseg_stream_finish(s, &err), "write");
}

/* Everything that both ways start from. */
typedef struct given {
    const shape *f;
    pseg_head_config c;
    pseg_cl *cl;
    pseg_stream *s;
    pseg_specs specs;
    pseg_weights *weights;
    gold_formula formula;
    size_t places, pixels;
    float *taps[PSEG_MAX_TAPS], *text, *words; /* text: not of length 1 */
    uint32_t prompt[MAX_BATCH];                /* tokens of each phrase */
    float *logits, *iou;                       /* of inference, row by row */
} given;

/* ---- inference ------------------------------------------------------------------------------- */

/* The text tower's results as worker/model/text.h hands them on: a row for each token. */
static pseg_text_rows rows_of(given *g, pseg_store *store)
{
    size_t width = g->c.text_hidden, room = g->f->max_prompt - 1;
    pseg_text_rows r = {.n = 0, .length = 0};
    int32_t idx[MAX_BATCH * 16];
    float *hidden;

    must(pseg_store_scratch(&r.embeds, store, g->f->batch * g->c.text_dim, &err), "embeds");
    put(g->s, r.embeds, g->text, g->f->batch * g->c.text_dim);
    if (!g->c.has_word_tokens)
        return r;
    hidden = pseg_calloc(g->f->batch * (room + 1), width * sizeof *hidden);
    gold_must(hidden, "memory", NULL);
    for (uint32_t i = 0; i < g->f->batch; i++)
        r.length = g->prompt[i] > r.length ? g->prompt[i] : r.length;
    for (uint32_t i = 0; i < g->f->batch; i++)
        for (uint32_t t = 0; t < r.length; t++) {
            idx[i * r.length + t] = t < g->prompt[i] ? (int32_t)r.n : -1;
            if (t >= g->prompt[i])
                continue;
            if (t > 0)
                memcpy(hidden + r.n * width, g->words + (i * room + t - 1) * width,
                       width * sizeof *hidden);
            r.n++;
        }
    must(pseg_store_scratch(&r.hidden, store, r.n * width, &err), "hidden");
    must(pseg_store_scratch(&r.words, store, g->f->batch * r.length, &err), "words");
    put(g->s, r.hidden, hidden, r.n * width);
    put(g->s, r.words, idx, g->f->batch * r.length);
    pseg_free(hidden);
    return r;
}

static void infer(given *g)
{
    const shape *f = g->f;
    size_t row = g->c.dim * sizeof(float), map = g->places * row;
    pseg_stage st = {g->s, NULL, NULL};
    pseg_store *store = NULL;
    pseg_neck *neck = NULL;
    pseg_decoder *decoder = NULL;
    pseg_decoder_limits limits = {f->gh, f->gw, f->max_prompt, f->batch};
    pseg_decoder_input in[MAX_BATCH];
    pseg_mem *image[MAX_BATCH] = {NULL}, *prompt[MAX_BATCH] = {NULL};
    pseg_view taps[PSEG_MAX_TAPS], prompts;

    must(pseg_store_new(&store, g->cl, &err), "store");
    must(pseg_neck_new(&neck, store, g->weights, &g->c, f->gh, f->gw, f->images, &err), "neck");
    must(pseg_decoder_new(&decoder, store, g->weights, &g->c, &limits, &err), "decoder");
    for (uint32_t i = 0; i < f->n_taps; i++) {
        size_t n = f->images * g->places * g->c.vision_dim;
        must(pseg_store_scratch(&taps[i], store, n, &err), "tap");
        put(g->s, taps[i], g->taps[i], n);
    }
    must(pseg_neck_run(neck, &st, taps, f->images, &err), "neck");
    pseg_text_rows rows = rows_of(g, store);
    must(pseg_decoder_prompts(&prompts, decoder, &st, &rows, f->batch, &err), "prompts");
    size_t length = g->c.has_word_tokens ? rows.length : 1;
    for (uint32_t i = 0; i < f->images; i++) {
        must(pseg_mem_new(&image[i], g->cl, map, &err), "image");
        must(pseg_mem_copy(g->s, image[i], 0, pseg_neck_out(neck).mem, i * map, map, &err),
             "image");
    }
    for (uint32_t i = 0; i < f->batch; i++) {
        must(pseg_mem_new(&prompt[i], g->cl, length * row, &err), "prompt");
        must(pseg_mem_copy(g->s, prompt[i], 0, prompts.mem, i * length * row, length * row, &err),
             "prompt");
        in[i] = (pseg_decoder_input){image[i % f->images], prompt[i], g->prompt[i]};
    }
    must(pseg_decoder_run(decoder, &st, in, f->batch, &err), "decode");
    g->logits = gold_read(g->s, pseg_decoder_logits(decoder), f->batch * g->pixels);
    g->iou = gold_read(g->s, pseg_decoder_iou(decoder), f->batch);
    for (size_t i = 0; i < MAX_BATCH; i++) {
        pseg_mem_free(image[i]);
        pseg_mem_free(prompt[i]);
    }
    pseg_neck_free(neck);
    pseg_decoder_free(decoder);
    pseg_store_free(store);
}

/* ---- training -------------------------------------------------------------------------------- */

static void feed(given *g, const pseg_train_views *v)
{
    const shape *f = g->f;
    size_t dim = g->c.text_dim, batch = f->batch;
    float *text = pseg_malloc(batch * dim * sizeof *text);
    float *target = pseg_calloc(batch * g->pixels, sizeof *target);
    int32_t image_of[MAX_BATCH], key_len[MAX_BATCH];
    float weight[MAX_BATCH];

    gold_must(text && target, "memory", NULL);
    for (size_t i = 0; i < batch; i++) {
        double sum = 0;
        for (size_t k = 0; k < dim; k++)
            sum += (double)g->text[i * dim + k] * (double)g->text[i * dim + k];
        for (size_t k = 0; k < dim; k++)
            text[i * dim + k] = (float)((double)g->text[i * dim + k] / sqrt(sum));
        image_of[i] = (int32_t)(i % f->images);
        key_len[i] = (int32_t)g->prompt[i] + 2;
        weight[i] = 1;
    }
    for (uint32_t i = 0; i < f->n_taps; i++)
        put(g->s, v->taps[i], g->taps[i], f->images * g->places * g->c.vision_dim);
    put(g->s, v->text, text, batch * dim);
    if (g->c.has_word_tokens)
        put(g->s, v->words, g->words, batch * (f->max_prompt - 1) * g->c.text_hidden);
    if (v->image_of.mem)
        put(g->s, v->image_of, image_of, batch);
    put(g->s, v->key_len, key_len, batch);
    put(g->s, v->target, target, batch * g->pixels);
    put(g->s, v->weight, weight, batch);
    pseg_free(text);
    pseg_free(target);
}

static double error_of(const float *got, const float *want, const uint32_t *order, size_t n,
                       size_t pixels)
{
    double off = 0, size = 0;

    for (size_t i = 0; i < n; i++) {
        double w = (double)want[order ? i / pixels * pixels + order[i % pixels] : i];
        off += ((double)got[i] - w) * ((double)got[i] - w);
        size += w * w;
    }
    return off / size;
}

static unsigned train(given *g, bool has_backward)
{
    const shape *f = g->f;
    pseg_train_shape made_for = {f->gh,         f->gw,        f->images, f->batch,
                                 f->max_prompt, has_backward, {1, 1, 1}};
    pseg_params *params = NULL;
    pseg_train_head *head = NULL;
    uint32_t *order = pseg_calloc(g->pixels, sizeof *order);
    bool good;

    gold_must(order, "memory", NULL);
    must(pseg_params_new(&params, g->cl, &g->specs, NULL, false, &err), "params");
    must(pseg_params_load(params, g->s, PSEG_PARAMS_VALUE, g->weights, "", "", true, &err), "load");
    must(pseg_train_head_new(&head, g->cl, params, &g->c, &made_for, &err), "graph");
    gold_must(pseg_train_head_pixels(head) == g->pixels, "pixels", NULL);
    const pseg_train_views *v = pseg_train_head_views(head);
    feed(g, v);
    must(pseg_graph_forward(pseg_train_head_graph(head), g->s, &err), "forward");
    float *logits = gold_read(g->s, v->logits, f->batch * g->pixels);
    float *iou = gold_read(g->s, v->iou, f->batch);
    pseg_train_head_order(order, &g->c, f->gh, f->gw);
    double a = error_of(logits, g->logits, order, f->batch * g->pixels, g->pixels);
    double b = error_of(iou, g->iou, NULL, f->batch, 1);
    good = a <= 1e-9 && b <= 1e-9; /* a NaN is not */
    printf("%s %s%s: logits NMSE %.2g, IoU %.2g\n", good ? "ok  " : "FAIL", f->name,
           has_backward ? "" : ", forward alone", a, b);
    pseg_free(logits);
    pseg_free(iou);
    pseg_free(order);
    pseg_train_head_free(head);
    pseg_params_free(params);
    return good ? 0 : 1;
}

static unsigned compare(pseg_cl *cl, const shape *f)
{
    given g = {.f = f, .cl = cl};
    unsigned bad = 0;
    char name[32];

    g.c = config_of(f);
    g.places = (size_t)f->gh * f->gw;
    g.pixels = g.places << (2 * f->n_upsample);
    must(pseg_stream_open(&g.s, cl, &err), "stream");
    must(pseg_train_head_specs(&g.specs, &g.c, &err), "specs");
    g.formula = (gold_formula){f->name, &g.specs};
    must(pseg_weights_from_fn(&g.weights, gold_fill, &g.formula, &err), "weights");
    for (uint32_t i = 0; i < f->n_taps; i++) {
        snprintf(name, sizeof name, "tap.%u", i);
        g.taps[i] = made(f->name, name, f->images * g.places * g.c.vision_dim);
    }
    g.text = made(f->name, "text", f->batch * g.c.text_dim);
    g.words = made(f->name, "words", f->batch * f->max_prompt * g.c.text_hidden);
    for (uint32_t i = 0; i < f->batch; i++) /* 2 and up; one of them as long as may be */
        g.prompt[i] = f->max_prompt == 1 ? 1 : f->max_prompt - i % (f->max_prompt - 1);
    infer(&g);
    bad += train(&g, true);
    bad += train(&g, false);
    for (uint32_t i = 0; i < PSEG_MAX_TAPS; i++)
        pseg_free(g.taps[i]);
    pseg_free(g.text);
    pseg_free(g.words);
    pseg_free(g.logits);
    pseg_free(g.iou);
    pseg_weights_free(g.weights);
    pseg_specs_deinit(&g.specs);
    pseg_stream_close(g.s);
    return bad;
}

int main(void)
{
    pseg_cl *cl = gold_cl();
    unsigned bad = 0;

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        bad += compare(cl, &shapes[i]);
    pseg_cl_close(cl);
    return bad ? 1 : 0;
}
