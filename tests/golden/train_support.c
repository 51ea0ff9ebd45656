#include "tests/golden/train_support.h"
#include "common/base/alloc.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { IMAGES = 2, BATCH = 3, MAX_PROMPT = 5, STEPS = 10 };

/* golden_train.py's figures. */
static pseg_head_config config_of(const train_case *which)
{
    pseg_head_config c;

    pseg_head_config_default(&c);
    c.n_taps = 2;
    c.dim = which->is_muon ? 24 : 16;
    c.heads = 2;
    c.depth = 2;
    c.mlp = 40;
    c.downsample = 2;
    c.groups = 4;
    c.gh = 2;
    c.gw = which->towers ? 2 : 3;
    c.is_tap_normed = which->is_tap_normed;
    if (which->towers) {
        c.taps[0] = 1;
        c.taps[1] = 2;
        c.patch = which->towers->vision->patch;
        c.height = c.width = 2 * c.patch;
    }
    if (which->is_deep) {
        c.height = 19;
        c.width = 30;
    }
    c.n_upsample = 2;
    c.upsample[0] = 12;
    c.upsample[1] = 8;
    c.vision_dim = 20;
    c.text_dim = 24;
    c.text_hidden = 20;
    c.has_word_tokens = which->has_words;
    return c;
}

void train_put(setup *t, pseg_view v, const void *data, size_t n)
{
    gold_must(pseg_mem_write(t->s, v.mem, v.off * 4, data, n * 4, &t->err) == PSEG_OK &&
                  pseg_stream_finish(t->s, &t->err) == PSEG_OK,
              "write", &t->err);
}

/* An input by formula; caller frees. */
static float *made(const setup *t, const char *what, size_t n, double c, float a)
{
    float *v = pseg_malloc(n * sizeof *v);
    char key[96];

    gold_must(v, "memory", NULL);
    snprintf(key, sizeof key, "%s:input.%s", t->name, what);
    gold_fill_as(v, n, key, c, a);
    return v;
}

static void write_text(setup *t)
{
    const pseg_train_views *v = pseg_train_head_views(t->head);
    size_t n;
    float *x;

    x = made(t, "text", BATCH * t->c.text_dim, 0, 1);
    for (size_t b = 0; b < BATCH; b++) {
        double sum = 0;
        for (size_t i = 0; i < t->c.text_dim; i++)
            sum += (double)x[b * t->c.text_dim + i] * x[b * t->c.text_dim + i];
        for (size_t i = 0; i < t->c.text_dim; i++)
            x[b * t->c.text_dim + i] = (float)(x[b * t->c.text_dim + i] / sqrt(sum));
    }
    train_put(t, v->text, x, BATCH * t->c.text_dim);
    pseg_free(x);
    if (t->c.has_word_tokens) {
        n = BATCH * (MAX_PROMPT - 1) * t->c.text_hidden;
        x = made(t, "words", n, 0, 1);
        train_put(t, v->words, x, n);
        pseg_free(x);
    }
}

static void write_inputs(setup *t)
{
    static const int32_t ids[BATCH * MAX_PROMPT] = {38, 3,  39, 39, 39, 38, 7, 3,
                                                    11, 39, 38, 21, 7,  39, 39};
    static const int32_t ends[BATCH] = {2, MAX_PROMPT + 4, 2 * MAX_PROMPT + 3};
    static const int32_t image_of[BATCH] = {0, 1, 1};
    static const float weight[BATCH] = {0.5f, 0.3f, 0.2f};
    const int32_t words[BATCH] = {5, 7, 6}, pooled[BATCH] = {3, 3, 3};
    const pseg_train_views *v = pseg_train_head_views(t->head);
    size_t places = t->c.gh * t->c.gw, pixels = pseg_train_head_pixels(t->head), n;
    uint32_t *order = pseg_malloc(pixels * sizeof *order);
    float *x, *y;
    char name[32];

    for (uint32_t i = 0; i < t->c.n_taps && v->taps[i].mem; i++) {
        snprintf(name, sizeof name, "tap.%u", i);
        n = IMAGES * places * t->c.vision_dim;
        x = made(t, name, n, 0, 1);
        train_put(t, v->taps[i], x, n);
        pseg_free(x);
    }
    train_put(t, v->image_of, image_of, BATCH);
    train_put(t, v->weight, weight, BATCH);
    train_put(t, v->key_len, t->c.has_word_tokens ? words : pooled, BATCH);
    if (v->images.mem) {
        n = IMAGES * 3 * (size_t)t->c.height * t->c.width;
        x = made(t, "images", n, 0, 1);
        train_put(t, v->images, x, n);
        pseg_free(x);
        train_put(t, v->ids, ids, BATCH * MAX_PROMPT);
        train_put(t, v->ends, ends, BATCH);
    } else {
        write_text(t);
    }
    if (v->coarse.mem) {
        x = made(t, "coarse", BATCH * places, 0.5, 0.5f);
        train_put(t, v->coarse, x, BATCH * places);
        pseg_free(x);
        n = BATCH * pseg_train_head_targets(t->head);
        x = made(t, "target", n, 0.5, 0.5f); /* at the input's size: row by row */
        train_put(t, v->target, x, n);
        pseg_free(x);
        pseg_free(order);
        return;
    }
    x = made(t, "target", BATCH * pixels, 0.5, 0.5f);
    y = pseg_malloc(BATCH * pixels * sizeof *y);
    pseg_train_head_order(order, &t->c, t->c.gh, t->c.gw);
    for (size_t b = 0; b < BATCH; b++)
        for (size_t j = 0; j < pixels; j++)
            y[b * pixels + j] = x[b * pixels + order[j]];
    train_put(t, v->target, y, BATCH * pixels);
    pseg_free(x);
    pseg_free(y);
    pseg_free(order);
}

void train_open(setup *t, pseg_cl *cl, const train_case *which, bool has_ema)
{
    pseg_weights *w = NULL;
    gold_formula formula;
    pseg_optim_options o = PSEG_OPTIM_OPTIONS_DEFAULT;

    *t = (setup){.name = which->name, .cl = cl};
    t->c = config_of(which);
    pseg_train_shape shape = {.gh = t->c.gh,
                              .gw = t->c.gw,
                              .n_images = IMAGES,
                              .batch = BATCH,
                              .max_prompt = which->has_words ? MAX_PROMPT : 1,
                              .has_backward = true,
                              .loss = {1, 1, 0.5f},
                              .towers = which->towers,
                              .at_input = which->is_deep,
                              .deep = which->is_deep ? 0.7f : 0};
    o.lr[PSEG_PARAM_NECK] = 1e-3f;
    o.lr[PSEG_PARAM_DECODER] = 2e-3f;
    o.lr[PSEG_PARAM_VISION] = 5e-4f;
    o.lr[PSEG_PARAM_TEXT] = 8e-4f;
    o.lr[PSEG_PARAM_PROBE] = 3e-3f;
    o.ema = has_ema ? 0.5f : 0;
    o.lr_muon = which->is_muon ? 0.02f : 0;
    gold_must(pseg_stream_open(&t->s, cl, &t->err) == PSEG_OK, "stream", &t->err);
    gold_must(pseg_train_head_specs(&t->specs, &t->c, &t->err) == PSEG_OK, "specs", &t->err);
    if (which->is_deep)
        gold_must(pseg_train_probe_specs(&t->specs, &t->c, &t->err) == PSEG_OK, "specs", &t->err);
    if (which->towers)
        gold_must(pseg_train_towers_specs(&t->specs, &t->is_frozen, which->towers, &t->c,
                                          &t->err) == PSEG_OK,
                  "specs", &t->err);
    gold_must(pseg_params_new(&t->params, cl, &t->specs, t->is_frozen, has_ema, &t->err) == PSEG_OK,
              "params", &t->err);
    formula = (gold_formula){t->name, &t->specs};
    gold_must(pseg_weights_from_fn(&w, gold_fill, &formula, &t->err) == PSEG_OK, "weights",
              &t->err);
    gold_must(pseg_params_load(t->params, t->s, PSEG_PARAMS_VALUE, w, "", "", true, &t->err) ==
                  PSEG_OK,
              "load", &t->err);
    pseg_weights_free(w);
    gold_must(pseg_train_head_new(&t->head, cl, t->params, &t->c, &shape, &t->err) == PSEG_OK,
              "graph", &t->err);
    gold_must(pseg_optim_new(&t->optim, cl, t->params, &o, &t->err) == PSEG_OK, "optimiser",
              &t->err);
}

void train_close(setup *t)
{
    pseg_optim_free(t->optim);
    pseg_train_head_free(t->head);
    pseg_params_free(t->params);
    pseg_specs_deinit(&t->specs);
    pseg_free(t->is_frozen);
    pseg_stream_close(t->s);
}

float *train_read_all(setup *t, pseg_params_buffer which)
{
    float *host = pseg_malloc(pseg_params_all_elems(t->params) * sizeof *host);

    gold_must(host, "memory", NULL);
    gold_must(pseg_params_read(host, t->params, t->s, which, &t->err) == PSEG_OK, "read", &t->err);
    return host;
}

/* Compares each tensor of a buffer with PREFIX.NAME. A key's bias changes no softmax, so its
 * gradient is what rounding leaves, and AdamW makes steps of its sign: it is looked at, and must be
 * small, while the weights that come of it are not. base: what both began with, or NULL: then the
 * numbers themselves are compared, else their change. */
static unsigned compare(setup *t, const char *prefix, const float *host, const float *base,
                        double tolerance)
{
    unsigned bad = 0, n_seen = 0;
    double worst = 0;
    char name[160], worst_at[160] = "";

    for (size_t i = 0; i < pseg_params_count(t->params); i++) {
        const pseg_param *p = pseg_params_at(t->params, i);
        float *got = pseg_malloc(p->plain * sizeof *got), *from = NULL;
        double off = 0, size = 0;
        bool is_key_bias =
            strstr(p->spec.name, "k_proj.bias") || strstr(p->spec.name, "attention.key.bias");

        snprintf(name, sizeof name, "%s.%s", prefix, p->spec.name);
        const pseg_tensor *want = gold_need(&t->g, name, PSEG_TENSOR_F32);
        gold_must(want->n == p->plain, name, NULL);
        gold_must(pseg_params_unpack(got, t->params, i, host, &t->err) == PSEG_OK, name, &t->err);
        if (base) {
            from = pseg_malloc(p->plain * sizeof *from);
            gold_must(pseg_params_unpack(from, t->params, i, base, &t->err) == PSEG_OK, name,
                      &t->err);
        }
        for (size_t k = 0; k < p->plain; k++) {
            float w;
            memcpy(&w, want->data + 4 * k, sizeof w);
            double zero = from ? from[k] : 0, d = (double)got[k] - (double)w;
            off += d * d;
            size += ((double)w - zero) * ((double)w - zero);
        }
        pseg_free(got);
        pseg_free(from);
        n_seen++;
        if (is_key_bias) {
            if (!base && !(sqrt(off) < 1e-6)) {
                printf("FAIL %s: %s is %g, should be 0\n", t->name, name, sqrt(off));
                bad++;
            }
            continue;
        }
        double nmse = off / size;
        if (!(nmse <= tolerance)) {
            printf("FAIL %s: %s: NMSE %.3g over %.3g\n", t->name, name, nmse, tolerance);
            bad++;
        }
        if (nmse > worst) {
            worst = nmse;
            snprintf(worst_at, sizeof worst_at, "%s", name);
        }
    }
    printf("%s %s: %s of %u tensors, worst NMSE %.2g at %s\n", bad ? "FAIL" : "ok  ", t->name,
           prefix, n_seen, worst, worst_at);
    return bad;
}

static unsigned near(const setup *t, const char *what, size_t i, double got, double want,
                     double tolerance)
{
    if (fabs(got - want) <= tolerance * (1e-2 + fabs(want)))
        return 0;
    printf("FAIL %s: %s %zu: %.9g, expected %.9g\n", t->name, what, i, got, want);
    return 1;
}

static const float *floats(const pseg_tensor *t, size_t i)
{
    static float v;

    memcpy(&v, t->data + 4 * i, sizeof v);
    return &v;
}

static float *read_view(setup *t, pseg_view v, size_t n)
{
    float *host = pseg_malloc(n * sizeof *host);

    gold_must(host, "memory", NULL);
    gold_must(pseg_mem_read(host, t->s, v.mem, v.off * 4, n * 4, &t->err) == PSEG_OK &&
                  pseg_stream_finish(t->s, &t->err) == PSEG_OK,
              "read", &t->err);
    return host;
}

static unsigned check_parts(setup *t)
{
    static const int which[] = {PSEG_LOSS_BCE, PSEG_LOSS_DICE, PSEG_LOSS_MISS, PSEG_LOSS_IOU,
                                PSEG_LOSS_PRED};
    const pseg_train_views *v = pseg_train_head_views(t->head);
    const pseg_tensor *parts = gold_need(&t->g, "parts", PSEG_TENSOR_F32);
    const pseg_tensor *want = gold_need(&t->g, "logits", PSEG_TENSOR_F32);
    const pseg_tensor *iou = gold_need(&t->g, "iou", PSEG_TENSOR_F32);
    size_t pixels = pseg_train_head_pixels(t->head);
    float *stats = read_view(t, v->stats, BATCH * PSEG_LOSS_STATS);
    float *logits = read_view(t, v->logits, BATCH * pixels), *guess = read_view(t, v->iou, BATCH);
    uint32_t *order = pseg_malloc(pixels * sizeof *order);
    unsigned bad = 0;

    pseg_train_head_order(order, &t->c, t->c.gh, t->c.gw);
    for (size_t b = 0; b < BATCH; b++) {
        for (size_t k = 0; k < 5; k++)
            bad += near(t, "part", b * 5 + k, stats[b * PSEG_LOSS_STATS + (size_t)which[k]],
                        *floats(parts, b * 5 + k), 1e-5);
        for (size_t j = 0; j < pixels; j++)
            bad += near(t, "logit", b * pixels + j, logits[b * pixels + j],
                        *floats(want, b * pixels + order[j]), 1e-4);
        bad += near(t, "iou", b, guess[b], *floats(iou, b), 1e-4);
    }
    pseg_free(stats);
    pseg_free(logits);
    pseg_free(guess);
    pseg_free(order);
    return bad;
}

static double total_loss(setup *t)
{
    float *stats = read_view(t, pseg_train_head_views(t->head)->stats, BATCH * PSEG_LOSS_STATS);
    double sum = 0;

    for (size_t b = 0; b < BATCH; b++)
        sum += stats[b * PSEG_LOSS_STATS + PSEG_LOSS_TOTAL];
    pseg_free(stats);
    return sum;
}

/* Inputs live until they have been used: they are written before each pass. */
static void forward(setup *t)
{
    write_inputs(t);
    gold_must(pseg_graph_forward(pseg_train_head_graph(t->head), t->s, &t->err) == PSEG_OK,
              "forward", &t->err);
}

void train_pass(setup *t, bool fresh)
{
    if (fresh)
        gold_must(pseg_params_zero(t->params, t->s, PSEG_PARAMS_GRAD, &t->err) == PSEG_OK, "zero",
                  &t->err);
    forward(t);
    gold_must(pseg_graph_backward(pseg_train_head_graph(t->head), t->s, &t->err) == PSEG_OK,
              "backward", &t->err);
}

unsigned train_ten_steps(pseg_cl *cl, const train_case *which)
{
    setup t;
    char file[64];
    unsigned bad = 0;
    float *first, *all, norm;

    train_open(&t, cl, which, false);
    snprintf(file, sizeof file, "%s.stages", which->name);
    gold_open(&t.g, file);
    const pseg_tensor *steps = gold_need(&t.g, "steps", PSEG_TENSOR_F32);
    first = train_read_all(&t, PSEG_PARAMS_VALUE);
    forward(&t);
    bad += check_parts(&t);
    for (size_t i = 0; i < STEPS; i++) {
        train_pass(&t, true);
        if (i == 0) {
            all = train_read_all(&t, PSEG_PARAMS_GRAD);
            bad += compare(&t, "grad", all, NULL, 1e-9);
            pseg_free(all);
        }
        bad += near(&t, "loss of step", i, total_loss(&t), *floats(steps, 2 * i), 2e-5);
        float scale = i < 3 ? (float)(i + 1) / 4 : 1;
        gold_must(pseg_optim_step(&norm, t.optim, t.s, scale, &t.err) == PSEG_OK, "step", &t.err);
        bad += near(&t, "norm of step", i, norm, *floats(steps, 2 * i + 1), 2e-4);
    }
    all = train_read_all(&t, PSEG_PARAMS_VALUE);
    bad += compare(&t, "final", all, first, 1e-4);
    printf("     %s: %zu bytes planned, %zu without sharing\n", t.name,
           (size_t)pseg_graph_bytes(pseg_train_head_graph(t.head)),
           (size_t)pseg_graph_bytes_unshared(pseg_train_head_graph(t.head)));
    pseg_free(all);
    pseg_free(first);
    t.g.n_compared++;
    bad += !gold_close(&t.g, NULL);
    train_close(&t);
    return bad;
}
