/* Models as a whole, where no reference is needed: batches cut into passes, other sizes, what must
 * be refused, and memory running out. */
#include "tests/golden/golden.h"
#include "common/base/alloc.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pseg_cl *cl;
static bool all_good = true;

static void must(pseg_status rc, const char *what, const pseg_err *err)
{
    gold_must(rc == PSEG_OK, what, err);
}

#define PAIRS 6

/* Logits of two images by formula with three phrases, by a model with room for so many; order[i] =
 * image * 3 + phrase. Written at the pair's own place, whatever the order. */
static size_t decode_pairs(float **out, const char *name, uint32_t max_images, uint32_t max_phrases,
                           const size_t order[PAIRS])
{
    const char *phrases[] = {"the small red circle", "a dog", "left of the large blue square"};
    pseg_model_options o = {.max_images = max_images, .max_phrases = max_phrases};
    pseg_model_source src = {0};
    pseg_err err = PSEG_ERR_INIT;
    const pseg_features *fs[PAIRS];
    const pseg_prompt *ps[PAIRS];
    pseg_features *f[2];
    pseg_prompt *p[3];
    char path[512];
    pseg_model *m;

    snprintf(path, sizeof path, GOLD_DATA "models/%s", name);
    src.folder = path;
    must(pseg_model_open(&m, cl, &src, &o, &err), name, &err);
    const pseg_model_info *info = pseg_model_get_info(m);
    size_t mask = (size_t)info->mask_height * info->mask_width;
    size_t image = 3 * (size_t)info->height * info->width;
    float *pixels = pseg_calloc(2 * image, sizeof *pixels), iou[PAIRS];
    float *logits = pseg_malloc(PAIRS * mask * sizeof *logits);
    *out = pseg_malloc(PAIRS * mask * sizeof **out);
    gold_must(pixels && logits && *out, "memory", NULL);
    gold_fill_as(pixels, 2 * image, "pixels", 0, 1);
    must(pseg_model_warm_up(m, &err), name, &err);
    must(pseg_model_encode_images(f, m, pixels, 2, &err), name, &err);
    must(pseg_model_encode_texts(p, m, phrases, 3, &err), name, &err);
    for (size_t i = 0; i < PAIRS; i++) {
        fs[i] = f[order[i] / 3];
        ps[i] = p[order[i] % 3];
    }
    must(pseg_model_decode(logits, iou, m, fs, ps, PAIRS, &err), name, &err);
    for (size_t i = 0; i < PAIRS; i++)
        memcpy(*out + order[i] * mask, logits + i * mask, mask * sizeof *logits);
    for (size_t i = 0; i < 3; i++)
        pseg_prompt_free(p[i]);
    pseg_features_free(f[0]);
    pseg_features_free(f[1]);
    pseg_free(pixels);
    pseg_free(logits);
    pseg_model_close(m);
    return mask;
}

/* However the pairs are cut into passes, and whether or not phrases of one image share its keys,
 * each pair has the logits that it has alone. */
static void test_passes(const char *name)
{
    static const size_t orders[][PAIRS] = {
        {0, 1, 2, 3, 4, 5}, {5, 0, 4, 2, 3, 1}, {3, 0, 1, 2, 4, 5}};
    static const uint32_t rooms[] = {2, 4, 5, 6};
    float *alone, *got;
    size_t mask = decode_pairs(&alone, name, 1, 1, orders[0]);
    double worst = 0, apart = 0;

    for (size_t i = 0; i < mask; i++)
        for (size_t k = 1; k < PAIRS; k++)
            apart = fmax(apart, fabs(alone[i] - alone[k * mask + i]));
    for (size_t r = 0; r < sizeof rooms / sizeof *rooms; r++)
        for (size_t k = 0; k < sizeof orders / sizeof *orders; k++) {
            decode_pairs(&got, name, 1 + (uint32_t)k, rooms[r], orders[k]);
            for (size_t i = 0; i < PAIRS * mask; i++) {
                double d = fabs(got[i] - alone[i]);
                worst = d <= worst ? worst : d;
            }
            pseg_free(got);
        }
    bool good = worst <= 1e-5 * apart;
    printf("%s %s in passes: worst %.2g where pairs differ by %.2g\n", good ? "ok  " : "FAIL", name,
           worst, apart);
    all_good &= good;
    pseg_free(alone);
}

static void refused(const pseg_model_source *src, pseg_reason reason, const char *part)
{
    pseg_model_options o = PSEG_MODEL_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_model *m;
    bool good = pseg_model_open(&m, cl, src, &o, &err) != PSEG_OK && !m && err.reason == reason &&
                strstr(err.msg, part);

    printf("%s refused: %s\n", good ? "ok  " : "FAIL", err.msg);
    all_good &= good;
}

static void test_refusals(void)
{
    static const char pooled[] = GOLD_DATA "models/pseg_pooled";
    static const char tiny[] = GOLD_DATA "models/dinov2_tiny";

    refused(&(pseg_model_source){0}, PSEG_R_MODEL_MISSING, "vision, text and decoder");
    refused(&(pseg_model_source){.folder = "/nowhere"}, PSEG_R_MODEL_MISSING, "no such folder");
    refused(&(pseg_model_source){.folder = tiny}, PSEG_R_MODEL_MISSING, "pseg.json");
    refused(&(pseg_model_source){.folder = pooled, .vision = tiny}, PSEG_R_MODEL_MISMATCH,
            "width 32, this one has 48");
    refused(&(pseg_model_source){.folder = pooled, .text = tiny}, PSEG_R_MODEL_UNSUPPORTED,
            "clip_text_model");
    refused(&(pseg_model_source){.folder = pooled, .decoder = GOLD_DATA "no.safetensors"},
            PSEG_R_MODEL_MISSING, "no.safetensors");
    refused(&(pseg_model_source){.folder = pooled,
                                 .decoder = GOLD_DATA "models/dinov2_tiny/model.safetensors"},
            PSEG_R_MODEL_UNSUPPORTED, "not a PSEG decoder");
    refused(&(pseg_model_source){.folder = pooled, .sam = GOLD_DATA "models/sam_tiny"},
            PSEG_R_MODEL_MISMATCH, "mask_decoder.");
    refused(&(pseg_model_source){.folder = pooled, .height = 57, .width = 56},
            PSEG_R_CONFIG_INVALID, "57x56");
}

/* Opens, runs everything once, and tells whether the logits are numbers. */
static bool runs(pseg_model *m)
{
    const pseg_model_info *info = pseg_model_get_info(m);
    size_t mask = (size_t)info->mask_height * info->mask_width;
    float *pixels = pseg_calloc((size_t)info->height * info->width, 3 * sizeof *pixels), iou;
    float *logits = pseg_malloc(mask * sizeof *logits);
    const char *phrase = "the large dog <|endoftext|> what stands behind does not count";
    pseg_features *f;
    pseg_prompt *p;
    pseg_err err = PSEG_ERR_INIT;
    bool good = true;

    gold_must(pixels && logits, "memory", NULL);
    must(pseg_model_encode_images(&f, m, pixels, 1, &err), "image", &err);
    must(pseg_model_encode_texts(&p, m, &phrase, 1, &err), "text", &err);
    must(pseg_model_decode(logits, &iou, m, (const pseg_features *const *)&f,
                           (const pseg_prompt *const *)&p, 1, &err),
         "decode", &err);
    for (size_t i = 0; i < mask; i++)
        good &= (bool)isfinite(logits[i]);
    pseg_features_free(f);
    pseg_prompt_free(p);
    pseg_free(pixels);
    pseg_free(logits);
    return good && iou > 0 && iou < 1;
}

static void test_sizes(void)
{
    pseg_model_options o = {.max_images = 1, .max_phrases = 1};
    pseg_model_source src = {.folder = GOLD_DATA "models/pseg_tokens", .height = 42, .width = 84};
    pseg_err err = PSEG_ERR_INIT;
    pseg_model *m;

    must(pseg_model_open(&m, cl, &src, &o, &err), "another size", &err);
    const pseg_model_info *info = pseg_model_get_info(m);
    bool good = info->is_pos_resized && info->mask_height == 12 && info->mask_width == 24 &&
                strlen(info->digest) == 64 && runs(m);
    pseg_model_close(m);
    must(pseg_model_random(&m, cl, "dinov2-small-reg@56", 7, &o, &err), "random", &err);
    info = pseg_model_get_info(m);
    good &= info->vision_params == 22058112 && info->text_params == 63428096 && info->gh == 4 &&
            !info->is_pos_resized && runs(m);
    pseg_model_close(m);
    good &= pseg_model_random(&m, cl, "dinov2-small@57", 7, &o, &err) == PSEG_EINVAL && !m;
    good &= pseg_model_random(&m, cl, "dinov2-small@", 7, &o, &err) == PSEG_ENOTFOUND && !m;
    good &= pseg_model_random(&m, cl, "dinov2-none", 7, &o, &err) == PSEG_ENOTFOUND && !m;
    o.max_images = 0;
    good &= pseg_model_random(&m, cl, "dinov2-small", 7, &o, &err) == PSEG_EINVAL && !m;
    printf("%s other sizes and random models\n", good ? "ok  " : "FAIL");
    all_good &= good;
}

/* A phrase that is not text names its place, nothing is left behind and the model goes on. A phrase
 * ends at its first EOS, also where the user has written it. */
static void test_phrases(void)
{
    pseg_model_options o = {.max_images = 1, .max_phrases = 2};
    pseg_model_source src = {.folder = GOLD_DATA "models/pseg_tokens"};
    const char *bad[] = {"a dog", "\xFF"}, *ended[] = {"a dog", "a dog<|endoftext|> and a cat"};
    pseg_err err = PSEG_ERR_INIT;
    pseg_features *f;
    pseg_prompt *p[2];
    pseg_model *m;

    must(pseg_model_open(&m, cl, &src, &o, &err), "open", &err);
    bool good = pseg_model_encode_texts(p, m, bad, 2, &err) == PSEG_EINVAL && !p[0] && !p[1] &&
                err.reason == PSEG_R_PROMPT_NOT_TEXT && strcmp(err.field, "prompts[1].text") == 0 &&
                runs(m);
    const pseg_model_info *info = pseg_model_get_info(m);
    size_t mask = (size_t)info->mask_height * info->mask_width;
    float *pixels = pseg_calloc((size_t)info->height * info->width, 3 * sizeof *pixels), iou[2];
    float *logits = pseg_malloc(2 * mask * sizeof *logits);
    gold_must(pixels && logits, "memory", NULL);
    must(pseg_model_encode_images(&f, m, pixels, 1, &err), "image", &err);
    must(pseg_model_encode_texts(p, m, ended, 2, &err), "texts", &err);
    const pseg_features *fs[] = {f, f};
    must(pseg_model_decode(logits, iou, m, fs, (const pseg_prompt *const *)p, 2, &err), "decode",
         &err);
    good &=
        pseg_prompt_n_tokens(p[0]) == pseg_prompt_n_tokens(p[1]) && fabsf(iou[0] - iou[1]) < 1e-6f;
    for (size_t i = 0; i < mask; i++)
        good &= fabsf(logits[i] - logits[mask + i]) < 1e-5f;
    pseg_prompt_free(p[0]);
    pseg_prompt_free(p[1]);
    pseg_features_free(f);
    pseg_free(pixels);
    pseg_free(logits);
    pseg_model_close(m);
    printf("%s phrases that are no text, or end early\n", good ? "ok  " : "FAIL");
    all_good &= good;
}

/* The prompts of one pass, read as they go by; of n_batch phrases at once. */
typedef struct seen_prompts {
    float *rows; /* [n_batch, t, c] */
    size_t n_batch, t, c;
} seen_prompts;

static void see_prompts(void *ud, pseg_stream *s, const char *name, pseg_view v, size_t batch,
                        size_t rows, size_t c)
{
    seen_prompts *p = ud;

    if (strcmp(name, "text.prompt") != 0)
        return;
    pseg_free(p->rows);
    *p = (seen_prompts){gold_read(s, v, batch * rows * c), batch, rows, c};
}

/* Phrases that share beginnings, one that is another's beginning, and equal ones: each has the
 * prompt that it has alone, to the last bit, and equal ones are encoded once. */
static void test_shared_beginnings(const char *name)
{
    enum { N = 9, N_DISTINCT = 7 };
    static const char *const phrases[N] = {"the red circle", "the red dog",         "the red",
                                           "a dog",          "The RED dog",         "dog a",
                                           "the red circle", "the red circle left", "the red dogs"};
    static const size_t slot[N] = {0, 1, 2, 3, 1, 4, 0, 5, 6};
    pseg_model_options o = {.max_images = 1, .max_phrases = N};
    seen_prompts all = {0}, one = {0};
    pseg_err err = PSEG_ERR_INIT;
    pseg_prompt *p[N], *alone;
    char path[512];
    pseg_model *m;

    snprintf(path, sizeof path, GOLD_DATA "models/%s", name);
    must(pseg_model_open(&m, cl, &(pseg_model_source){.folder = path}, &o, &err), name, &err);
    pseg_model_set_stage_hook(m, see_prompts, &all);
    must(pseg_model_encode_texts(p, m, phrases, N, &err), name, &err);
    bool good = all.n_batch == N_DISTINCT;
    pseg_model_set_stage_hook(m, see_prompts, &one);
    for (size_t i = 0; good && i < N; i++) {
        must(pseg_model_encode_texts(&alone, m, &phrases[i], 1, &err), name, &err);
        good &= one.n_batch == 1 && one.t <= all.t && one.c == all.c &&
                pseg_prompt_n_tokens(alone) == pseg_prompt_n_tokens(p[i]) &&
                memcmp(one.rows, all.rows + slot[i] * all.t * all.c,
                       one.t * one.c * sizeof(float)) == 0;
        pseg_prompt_free(alone);
    }
    for (size_t i = 0; i < N; i++)
        pseg_prompt_free(p[i]);
    pseg_free(all.rows);
    pseg_free(one.rows);
    pseg_model_close(m);
    printf("%s %s: phrases that share beginnings\n", good ? "ok  " : "FAIL", name);
    all_good &= good;
}

/* Some of the allocations fail: an error each time, nothing leaks (the sanitizer build tells). A
 * few only cost time, such as those to look up the digest or to read what was tuned, a hundred in a
 * row at most: so it is many successes that end it. */
static void test_failing_allocations(void)
{
    pseg_model_options o = {.max_images = 1, .max_phrases = 1};
    pseg_model_source src = {.folder = GOLD_DATA "models/pseg_pooled"};
    unsigned n_failed = 0, n_opened = 0;
    bool good = true;

    for (uint64_t i = 1; good && n_opened < 24; i += 13) {
        pseg_err err = PSEG_ERR_INIT;
        pseg_model *m;
        pseg_alloc_fail_nth(i);
        pseg_status rc = pseg_model_open(&m, cl, &src, &o, &err);
        pseg_alloc_fail_nth(0);
        good &= rc == PSEG_OK || (rc == PSEG_ENOMEM && !m);
        n_failed += rc != PSEG_OK;
        n_opened = rc == PSEG_OK ? n_opened + 1 : 0;
        pseg_model_close(m);
        good &= i < 100000;
    }
    printf("%s failing allocations: %u\n", good && n_failed > 30 ? "ok  " : "FAIL", n_failed);
    all_good &= good && n_failed > 30;
}

int main(void)
{
    cl = gold_cl();
    test_passes("pseg_tokens");
    test_passes("pseg_pooled");
    test_refusals();
    test_sizes();
    test_phrases();
    test_shared_beginnings("pseg_tokens");
    test_shared_beginnings("pseg_pooled");
    test_failing_allocations();
    pseg_cl_close(cl);
    return all_good ? 0 : 1;
}
