/* What pseg-train trains on: scenes, or data sets on disk. */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/apps/train.h"
#include "worker/train/source_data.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* scenes:N or, where it may be, scenes:N,fixed. */
static pseg_status scenes_of(uint64_t *out, bool *is_fixed, const char *option, const char *set,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *end = NULL;

    *out = strncmp(set, "scenes:", 7) == 0 && set[7] >= '0' && set[7] <= '9'
               ? strtoull(set + 7, &end, 10)
               : 0;
    if (end && is_fixed && strcmp(end, ",fixed") == 0) {
        *is_fixed = true;
        end += strlen(end);
    }
    if (!end || *end || *out > 1000000000)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--%s \"%.80s\": expected scenes:N%s, N up to 10^9",
                  option, set, is_fixed ? " or scenes:N,fixed" : "");
out:
    return rc;
}

/* --kind-weight: KIND=W, joined by commas; 1 for those that are not named. */
static pseg_status weights_of(float *out, const char *text, pseg_err *err)
{
    static const char *const kinds[PSEG_TRAIN_N_PHRASES] = {
        [PSEG_TRAIN_ATTRIBUTE] = "attribute",
        [PSEG_TRAIN_DIRECTION] = "direction",
        [PSEG_TRAIN_NEAR] = "near",
        [PSEG_TRAIN_SUPERLATIVE] = "superlative",
    };
    pseg_status rc = PSEG_OK;
    char *copy = text ? pseg_strdup(text) : NULL, *rest = copy;

    for (size_t k = 0; k < PSEG_TRAIN_N_PHRASES; k++)
        out[k] = 1;
    if (text && !copy)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for --kind-weight");
    for (char *one; rest && (one = strsep(&rest, ","));) {
        char *value = strchr(one, '='), *end = NULL;
        double w = value ? strtod(value + 1, &end) : 0;
        size_t k = 0;

        while (k < PSEG_TRAIN_N_PHRASES && (!value || strlen(kinds[k]) != (size_t)(value - one) ||
                                            strncmp(one, kinds[k], (size_t)(value - one)) != 0))
            k++;
        if (k == PSEG_TRAIN_N_PHRASES || end == value + 1 || *end || !(w >= 0.01 && w <= 100))
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "--kind-weight \"%.60s\": expected KIND=W with attribute, direction, near or "
                      "superlative, and W of 0.01 to 100",
                      text);
        out[k] = (float)w;
    }
out:
    pseg_free(copy);
    return rc;
}

static pseg_status open_scenes(pseg_train_source *out, const train_args *a,
                               const pseg_head_config *c, const pseg_train_sizes *sizes,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_train_scene_set set = {0};
    const char *val = !a->val ? "scenes:64" : strcmp(a->val, "none") == 0 ? "scenes:0" : a->val;

    if (a->data.n > 1)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--data %s: scenes are not mixed with other sets",
                  a->data.items[0]);
    PSEG_TRY(scenes_of(&set.train, &set.is_fixed, "data", a->data.items[0], err));
    PSEG_TRY(scenes_of(&set.val, NULL, "val", val, err));
    if (set.train == 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--data %s: nothing to train on", a->data.items[0]);
    PSEG_TRY(weights_of(set.weights, a->kind_weight, err));
    PSEG_TRY(pseg_train_scenes(out, c, sizes, &set, err));
out:
    return rc;
}

/* PATH or PATH,weight=W; the path is cut off in place. */
static pseg_status part_of(pseg_train_part *out, char *text, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *comma = strstr(text, ",weight="), *end;

    *out = (pseg_train_part){text, 1};
    if (!comma)
        goto out;
    out->weight = strtod(comma + strlen(",weight="), &end);
    if (*end || end == comma + strlen(",weight=") || !(out->weight > 0 && out->weight <= 1000))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--data \"%.80s\": expected PATH,weight=W with W above 0, at most 1000", text);
    *comma = '\0';
out:
    return rc;
}

enum { NAMED = 5 }; /* of each fault; the others are counted */

static void on_left_out(void *ud, pseg_data_fault fault, const char *where, const char *what)
{
    train_left_out *l = ud;

    if (l->n[fault]++ < NAMED)
        fprintf(stderr, "left out: %s: %s (%s)\n", where, what, pseg_data_fault_name(fault));
}

void train_left_out_tell(train_left_out *l)
{
    for (size_t i = 0; i < PSEG_DATA_N_FAULTS; i++) {
        if (l->n[i] > NAMED && l->n[i] != l->told[i])
            fprintf(stderr, "left out: %" PRIu64 " in all (%s)\n", l->n[i],
                    pseg_data_fault_name((pseg_data_fault)i));
        l->told[i] = l->n[i];
    }
}

typedef struct looking {
    bool is_terminal, has_pixels;
    const volatile sig_atomic_t *stop;
} looking;

static bool on_images(void *ud, size_t done, size_t n_skipped, size_t total)
{
    const looking *l = ud;

    if (l->is_terminal)
        fprintf(stderr, "\r\033[K%s %zu of %zu images%s",
                l->has_pixels ? "looked at" : "features of", done, total,
                done == total ? "\n" : "");
    (void)n_skipped;
    return !*l->stop;
}

/* Empty places of a batch cost as much as any. */
static void tell_of_places(const pseg_train_source *s, const pseg_train_sizes *sizes)
{
    double mean = (double)s->n_phrases / (double)s->n_train;

    if (sizes->images < sizes->batch && s->n_train > 1 && mean < 0.75 * sizes->batch)
        fprintf(stderr,
                "batches hold %.3g of %u phrases on average, since images have few: more --images "
                "than %u, or a smaller --batch, leave fewer places empty\n",
                mean, sizes->batch, sizes->images);
}

static pseg_status open_data(pseg_train_source *out, pseg_cl *cl, const train_args *a,
                             const pseg_head_config *c, const pseg_trainer_options *t,
                             train_left_out *left, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    looking l = {isatty(STDERR_FILENO), t->towers.vision, t->stop};
    char **texts = pseg_calloc(a->data.n, sizeof *texts), *cache = NULL;
    pseg_train_part *parts = pseg_calloc(a->data.n, sizeof *parts);
    pseg_text_table *table = NULL;
    pseg_train_data_options o = {.parts = parts,
                                 .n_parts = a->data.n,
                                 .val_images = a->val_images,
                                 .kind = a->kind,
                                 .has_pixels = l.has_pixels,
                                 .vision = a->vision,
                                 .has_mirror = a->mirror,
                                 .report = on_left_out,
                                 .report_ud = left,
                                 .progress = on_images,
                                 .progress_ud = &l};

    if (!texts || !parts)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for data sets");
    if (a->kind_weight)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "--kind-weight %.60s: kinds are known of scenes alone (--data scenes:N)",
                  a->kind_weight);
    for (size_t i = 0; i < a->data.n; i++) {
        texts[i] = pseg_strdup(a->data.items[i]);
        if (!texts[i])
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for data sets");
        PSEG_TRY(part_of(&parts[i], texts[i], err));
    }
    o.val = !a->val ? parts[0].path : strcmp(a->val, "none") == 0 ? NULL : a->val;
    if (a->features)
        cache = pseg_strdup(a->features);
    else if (pseg_cl_cache_dir(cl))
        cache = pseg_path_join(pseg_cl_cache_dir(cl), "features");
    if (!cache && !l.has_pixels)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "no folder for features: give --features DIR");
    o.cache = cache;
    if (pseg_text_table_is(a->text))
        PSEG_TRY(pseg_text_table_open(&table, a->text, err));
    o.table = table;
    PSEG_TRY(pseg_train_data(out, cl, c, &t->sizes, &o, err));
    train_left_out_tell(left);
    tell_of_places(out, &t->sizes);
out:
    for (size_t i = 0; texts && i < a->data.n; i++)
        pseg_free(texts[i]);
    pseg_text_table_close(table);
    pseg_free(texts);
    pseg_free(parts);
    pseg_free(cache);
    return rc;
}

pseg_status train_source_open(pseg_train_source *out, pseg_cl *cl, const train_args *a,
                              const pseg_head_config *c, const pseg_trainer_options *t,
                              train_left_out *left, pseg_err *err)
{
    return strncmp(a->data.items[0], "scenes:", 7) == 0 ? open_scenes(out, a, c, &t->sizes, err)
                                                        : open_data(out, cl, a, c, t, left, err);
}
