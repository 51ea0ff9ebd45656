#include "tests/golden/golden.h"
#include "common/base/alloc.h"
#include "common/base/conf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* NMSE that a stage may show. The first row whose text stands in the stage's name counts. */
static const struct {
    const char *part;
    double nmse;
    const char *why;
} tolerances[] = {
    {"plain.", 1e-11, "the reference interpolates in float32, C in double, rounded once"},
    {"registers.", 1e-11, "as plain."},
    {"", 1e-9, "float32 throughout; a hundred times the error of PyTorch's own float32"},
};

void gold_must(bool ok, const char *what, const pseg_err *err)
{
    if (ok)
        return;
    printf("FAIL %s: %s\n", what, err ? err->msg : "");
    exit(1);
}

pseg_cl *gold_cl(void)
{
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_cl *cl;

    o.device = pseg_conf_env("PSEG_TEST_DEVICE");
    if (pseg_cl_open(&cl, &o, &err) != PSEG_OK) {
        printf("SKIP: %s\n", err.msg);
        exit(err.reason == PSEG_R_DEVICE_NOT_FOUND ? 77 : 1);
    }
    return cl;
}

void gold_open(gold *g, const char *name)
{
    pseg_err err = PSEG_ERR_INIT;
    char path[512];

    *g = (gold){.allowance = 1};
    snprintf(g->name, sizeof g->name, "%s", name);
    snprintf(path, sizeof path, GOLD_DATA "%s.safetensors", name);
    gold_must(pseg_tensors_open_file(&g->file, path, &err) == PSEG_OK, name, &err);
    g->is_seen = pseg_calloc(pseg_tensors_count(g->file), sizeof *g->is_seen);
    gold_must(g->is_seen, name, NULL);
}

bool gold_close(gold *g, const char *const *ignored)
{
    unsigned unseen = 0;
    bool good;

    for (size_t i = 0; i < pseg_tensors_count(g->file); i++) {
        const char *name = pseg_tensors_at(g->file, i)->name;
        bool skip = g->is_seen[i];
        for (const char *const *p = ignored; p && *p && !skip; p++)
            skip = strstr(name, *p);
        if (skip)
            continue;
        if (unseen++ < 5)
            printf("  never compared: %s\n", name);
    }
    good = g->n_failed == 0 && unseen == 0 && g->n_compared > 0;
    printf("%s %s: %u stages, %u bad, %u not looked at; worst NMSE %.2g at %s\n",
           good ? "ok  " : "FAIL", g->name, g->n_compared, g->n_failed, unseen, g->worst,
           g->worst_at);
    pseg_tensors_close(g->file);
    pseg_free(g->is_seen);
    return good;
}

const pseg_tensor *gold_find(gold *g, const char *name)
{
    const pseg_tensor *t = pseg_tensors_find(g->file, name);

    if (t)
        g->is_seen[t - pseg_tensors_at(g->file, 0)] = true;
    return t;
}

const pseg_tensor *gold_need(gold *g, const char *name, pseg_tensor_type type)
{
    const pseg_tensor *t = gold_find(g, name);

    if (!t || t->type != type) {
        printf("FAIL %s: no tensor %s of the right type\n", g->name, name);
        exit(1);
    }
    return t;
}

static float *floats_of(const pseg_tensor *t)
{
    float *v = pseg_malloc(t->bytes);

    gold_must(v, t->name, NULL);
    memcpy(v, t->data, t->bytes);
    return v;
}

/* A NaN in got makes the sum NaN, and no comparison with it is true. */
static void judge(gold *g, const char *name, double error, double power, double at, double got,
                  double want)
{
    size_t k = 0;
    double nmse = error == 0 ? 0 : error / power;

    while (!strstr(name, tolerances[k].part))
        k++;
    g->n_compared++;
    if (!(nmse <= g->worst)) {
        g->worst = nmse;
        snprintf(g->worst_at, sizeof g->worst_at, "%s", name);
    }
    if (!(nmse <= g->allowance * tolerances[k].nmse)) {
        g->n_failed++;
        printf("  %s %s: NMSE %.3g, allowed %.1g (%s); worst at %.0f: %.9g, want %.9g\n", g->name,
               name, nmse, g->allowance * tolerances[k].nmse, tolerances[k].why, at, got, want);
    }
}

static void compare_whole(gold *g, const char *name, const pseg_tensor *t, const float *got,
                          size_t rows, size_t c, bool is_planar)
{
    float *want = floats_of(t);
    double error = 0, power = 0, far = -1;
    size_t worst = 0, there = c ? t->n / c : 0;
    float worst_got = 0, worst_want = 0;

    if (there * c != t->n || (there > rows && !g->may_be_short) || (is_planar && there != rows)) {
        printf("  %s %s: %zu rows of %zu, but the file has %zu numbers\n", g->name, name, rows, c,
               (size_t)t->n);
        g->n_failed++;
        pseg_free(want);
        return;
    }
    size_t n = there < rows ? t->n : rows * c;
    for (size_t i = 0; i < n; i++) {
        double w = want[is_planar ? i % c * rows + i / c : i], d = got[i] - w;
        error += d * d;
        power += w * w;
        if (!(fabs(d) <= far)) {
            far = fabs(d);
            worst = i;
            worst_got = got[i];
            worst_want = (float)w;
        }
    }
    /* A single number may happen to be near 0. */
    judge(g, name, error, t->n == 1 ? fmax(power, 1) : power, (double)worst, worst_got, worst_want);
    pseg_free(want);
}

/* 64 places, and sum and sum of squares of all: a wrong number anywhere shows in one of them. */
static void compare_sampled(gold *g, const char *name, const pseg_tensor *values, const float *got,
                            size_t rows, size_t c, bool is_planar)
{
    char key[160];
    const pseg_tensor *index, *stats;
    float *want = floats_of(values), *stat;
    double error = 0, power = 0, sum = 0, squares = 0, far = -1;
    size_t n = rows * c, worst = 0;
    float worst_got = 0, worst_want = 0;

    snprintf(key, sizeof key, "%s.index", name);
    index = gold_need(g, key, PSEG_TENSOR_I64);
    snprintf(key, sizeof key, "%s.stats", name);
    stats = gold_find(g, key);
    gold_must(stats && stats->n == 3, key, NULL);
    gold_must(index->n == values->n, key, NULL);
    for (size_t i = 0; i < values->n; i++) {
        int64_t at;
        memcpy(&at, index->data + 8 * i, 8);
        gold_must(at >= 0 && (size_t)at < n, key, NULL);
        size_t mine = is_planar ? (size_t)at % rows * c + (size_t)at / rows : (size_t)at;
        double d = got[mine] - (double)want[i];
        error += d * d;
        power += (double)want[i] * want[i];
        if (!(fabs(d) <= far)) {
            far = fabs(d);
            worst = mine;
            worst_got = got[mine];
            worst_want = want[i];
        }
    }
    judge(g, name, error, values->n == 1 ? fmax(power, 1) : power, (double)worst, worst_got,
          worst_want);
    for (size_t i = 0; i < n; i++) {
        sum += got[i];
        squares += (double)got[i] * got[i];
    }
    /* [count, sum, sum of squares]; float32 figures carry seven digits, float64 fifteen. */
    double s[3];
    if (stats->bytes == 24) {
        memcpy(s, stats->data, 24);
    } else {
        stat = floats_of(stats);
        for (size_t i = 0; i < 3; i++)
            s[i] = stat[i];
        pseg_free(stat);
    }
    double scale = sqrt(fmax(s[2], 1e-30) * (double)n), off = 2e-5 * sqrt(g->allowance);
    if ((size_t)s[0] != n || !(fabs(sum - s[1]) <= off * scale) ||
        !(fabs(squares - s[2]) <= off * s[2])) {
        printf("  %s %s: count %zu sum %.9g squares %.9g, want %.0f %.9g %.9g\n", g->name, name, n,
               sum, squares, s[0], s[1], s[2]);
        g->n_failed++;
    }
    pseg_free(want);
}

void gold_compare(gold *g, const char *name, const float *got, size_t rows, size_t c,
                  bool is_planar)
{
    char key[160];
    const pseg_tensor *t = gold_find(g, name), *values;

    if (t && t->type == PSEG_TENSOR_F32)
        compare_whole(g, name, t, got, rows, c, is_planar);
    snprintf(key, sizeof key, "%s.values", name);
    values = gold_find(g, key);
    if (values)
        compare_sampled(g, name, values, got, rows, c, is_planar);
}

float *gold_read(pseg_stream *s, pseg_view v, size_t n)
{
    pseg_err err = PSEG_ERR_INIT;
    float *host = pseg_malloc(n * sizeof *host);

    gold_must(host, "memory", NULL);
    gold_must(pseg_mem_read(host, s, v.mem, v.off * sizeof *host, n * sizeof *host, &err) ==
                      PSEG_OK &&
                  pseg_stream_finish(s, &err) == PSEG_OK,
              "read", &err);
    return host;
}

/* The reference's convolutional stages are [C, H, W], ours [H*W, C]. */
static bool is_map(const char *stage)
{
    return strncmp(stage, "neck.", 5) == 0 || strncmp(stage, "vision.tap.", 11) == 0 ||
           strncmp(stage, "decoder.upsample.", 17) == 0;
}

void gold_hook(void *ud, pseg_stream *s, const char *stage, pseg_view v, size_t batch, size_t rows,
               size_t c)
{
    gold_watch *w = ud;
    char name[128];
    float *got = gold_read(s, v, batch * rows * c);
    size_t items = w->n_items ? w->n_items : 1;

    gold_must(w->n_items == 0 || w->n_items == batch, stage, NULL);
    for (size_t i = 0; i < items; i++) {
        snprintf(name, sizeof name, "%s%s", w->n_items ? w->items[i] : w->prefix, stage);
        gold_compare(w->g, name, got + i * rows * c, w->n_items ? rows : batch * rows, c,
                     is_map(stage));
    }
    pseg_free(got);
}

/* ---- weights by formula ---------------------------------------------------------------------- */

static bool has_end(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);

    return n >= k && strcmp(s + n - k, end) == 0;
}

static bool has_any_end(const char *s, const char *const *ends)
{
    for (; *ends; ends++)
        if (has_end(s, *ends))
            return true;
    return false;
}

void gold_fill_as(float *out, uint64_t n, const char *key, double c, float a)
{
    uint64_t h = 0xCBF29CE484222325u;

    for (const char *p = key; *p; p++)
        h = (h ^ (unsigned char)*p) * 0x100000001B3u;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t z = h + i + 0x9E3779B97F4A7C15u;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        z ^= z >> 31;
        out[i] = (float)(c + (double)a * ((double)(z >> 40) / 8388608.0 - 1.0));
    }
}

void gold_fill(void *ud, float *out, uint64_t n, const char *name)
{
    static const char *const embeddings[] = {"cls_token",
                                             "mask_token",
                                             "position_embeddings",
                                             "register_tokens",
                                             "pos_embed",
                                             "iou_token",
                                             "iou_token.weight",
                                             "mask_tokens.weight",
                                             "token_embedding.weight",
                                             "position_embedding.weight",
                                             "positional_embedding",
                                             "class_embedding",
                                             "_embed.weight",
                                             NULL};
    static const char *const sharpened[] = {"q_proj.weight", "k_proj.weight", "query.weight",
                                            "key.weight", NULL};
    const gold_formula *f = ud;
    const pseg_spec *s = NULL;
    char key[256];
    double c = 0;
    float a;

    for (size_t i = 0; i < f->specs->n && !s; i++)
        if (strcmp(f->specs->items[i].name, name) == 0)
            s = &f->specs->items[i];
    gold_must(s, name, NULL);
    if (has_any_end(name, embeddings))
        a = 1;
    else if (has_end(name, "lambda1")) {
        c = 0.5;
        a = 0.25f;
    } else if (has_end(name, ".bias"))
        a = 0.125f;
    else if (s->rank == 1) {
        c = 1;
        a = 0.25f;
    } else {
        uint64_t fan = strstr(name, ".upsample.") ? s->dims[0] : n / s->dims[0];
        a = (float)((has_any_end(name, sharpened) ? 1.5 : 1.0) * sqrt(3.0 / (double)fan));
    }
    snprintf(key, sizeof key, "%s:%s", f->model, name);
    gold_fill_as(out, n, key, c, a);
}
