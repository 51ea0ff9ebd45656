/* Running works on the device. A batch goes through three steps: images that are not encoded yet,
 * phrases, and pairs of the two; each of these is made once, however many works want it. */
#include "worker/serve/engine_internal.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <string.h>

/* A pair of an image and a phrase, and where its results are. */
typedef struct pair {
    const pseg_picture *picture;
    size_t phrase;
} pair;

typedef struct batch {
    pseg_engine *e;
    size_t device;
    pseg_model *model;
    pseg_engine_job *jobs;
    size_t n;
    bool (*is_cancelled)(void *ud);
    pseg_engine_batch *done;
    /* All in one piece of memory, for as many phrases as the works have together: */
    pseg_phrase_list distinct;
    pseg_prompt **prompts; /* of these */
    size_t **phrase_of;    /* [work][its phrase]: place among the distinct; then among the pairs */
    pair *pairs;
    size_t n_pairs;
    const pseg_features **features; /* of the pairs */
    const pseg_prompt **asked;
    float *logits, *iou;
    pseg_arena *arena;
    pseg_kernel_times *times; /* or NULL */
} batch;

static bool is_alive(const pseg_engine_job *j)
{
    return j->rc == PSEG_OK;
}

static pseg_status drop_cancelled(batch *b)
{
    for (size_t i = 0; i < b->n; i++) {
        pseg_engine_job *j = &b->jobs[i];
        if (is_alive(j) && b->is_cancelled && b->is_cancelled(j->ud))
            j->rc = pseg_err_set(&j->err, PSEG_R_CANCELLED, 0, PSEG_HERE, "the job was cancelled");
    }
    return PSEG_OK;
}

static size_t n_alive(const batch *b)
{
    size_t n = 0;

    for (size_t i = 0; i < b->n; i++)
        n += is_alive(&b->jobs[i]);
    return n;
}

static size_t n_prompts_alive(const batch *b)
{
    size_t n = 0;

    for (size_t i = 0; i < b->n; i++)
        if (is_alive(&b->jobs[i]))
            n += b->jobs[i].work->n_prompts;
    return n;
}

/* ---- images ---- */

/* Works that are alive and have this image. */
static size_t n_users(const batch *b, const pseg_picture *p)
{
    size_t n = 0;

    for (size_t i = 0; i < b->n; i++)
        n += is_alive(&b->jobs[i]) && b->jobs[i].work->picture == p;
    return n;
}

/* The images without features on the device, each once. is_found: those whose features are at hand
 * as numbers; else those that are to be encoded. */
static size_t list_pictures(const batch *b, pseg_picture **out, bool is_found)
{
    size_t n = 0;

    for (size_t i = 0; i < b->n; i++) {
        pseg_picture *p = b->jobs[i].work->picture;
        size_t k = 0;
        if (!is_alive(&b->jobs[i]) || p->features[b->device] || (p->numbers != NULL) != is_found)
            continue;
        while (k < n && out[k] != p)
            k++;
        if (k == n)
            out[n++] = p;
    }
    return n;
}

/* What was just made, as numbers for other devices and for who keeps it elsewhere. */
static pseg_status read_numbers(batch *b, pseg_picture *p, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool is_kept = b->e->reads_features && p->key;

    if (!is_kept && b->e->n_devices == 1)
        goto out;
    p->numbers = pseg_aligned_alloc(pseg_engine_n_features(b->e) * sizeof(float));
    if (!p->numbers && b->e->n_devices > 1)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an image's features");
    if (p->numbers)
        PSEG_TRY(pseg_features_read(p->numbers, b->model, p->features[b->device], err));
    p->is_fresh = is_kept && p->numbers;
out:
    if (rc != PSEG_OK) {
        pseg_free(p->numbers);
        p->numbers = NULL;
    }
    return rc;
}

/* n images in one pass. */
static pseg_status encode_pass(batch *b, pseg_picture *const *p, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t image = 3 * (size_t)b->e->how.width * b->e->how.height;
    pseg_features *features[PSEG_ENGINE_MAX_JOBS];
    float *together = NULL;

    if (n > 1) {
        together = pseg_aligned_alloc(n * image * sizeof *together);
        if (!together)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to encode %zu images", n);
        for (size_t i = 0; i < n; i++)
            memcpy(together + i * image, p[i]->chw, image * sizeof *together);
    }
    PSEG_TRY(pseg_model_encode_images(features, b->model, n > 1 ? together : p[0]->chw, n, err));
    for (size_t i = 0; i < n; i++)
        p[i]->features[b->device] = features[i];
    for (size_t i = 0; i < n; i++) {
        PSEG_TRY(read_numbers(b, p[i], err));
        pseg_free(p[i]->chw);
        p[i]->chw = NULL;
    }
out:
    pseg_free(together);
    return rc;
}

/* What was found, or made by another device, goes to this one. */
static pseg_status load_found(batch *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_picture *all[PSEG_ENGINE_MAX_JOBS];
    size_t n = list_pictures(b, all, true);

    for (size_t i = 0; i < n; i++) {
        PSEG_TRY(pseg_features_write(&all[i]->features[b->device], b->model, all[i]->numbers, err));
        if (b->e->n_devices == 1)
            pseg_picture_forget_numbers(&b->e->pictures, all[i]);
    }
out:
    return rc;
}

static pseg_status encode_images(batch *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_picture *all[PSEG_ENGINE_MAX_JOBS];
    size_t n = list_pictures(b, all, false);

    size_t max = pseg_engine_max_encode(b->e, b->device);
    PSEG_TRY(load_found(b, err));
    for (size_t at = 0; at < n; at += max) {
        size_t k = n - at < max ? n - at : max;
        int64_t begin = pseg_clock_mono_us();
        PSEG_TRY(encode_pass(b, all + at, k, err));
        int64_t each_us = (pseg_clock_mono_us() - begin) / (int64_t)k;
        for (size_t i = 0; i < b->n; i++)
            for (size_t m = at; m < at + k; m++)
                if (is_alive(&b->jobs[i]) && b->jobs[i].work->picture == all[m])
                    pseg_work_stage(b->jobs[i].work, "encode_image",
                                    each_us / (int64_t)n_users(b, all[m]));
    }
out:
    b->done->n_encodes = rc == PSEG_OK ? n : 0;
    for (size_t i = 0; rc == PSEG_OK && i < n; i++)
        b->done->encoded[i] = all[i];
    return rc;
}

/* ---- phrases ---- */

static pseg_status allocate(batch *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = n_prompts_alive(b);
    pseg_arena *a = b->arena;

    b->distinct.phrases = pseg_arena_calloc(a, n, sizeof *b->distinct.phrases);
    b->distinct.owners = pseg_arena_calloc(a, n, sizeof *b->distinct.owners);
    b->prompts = pseg_arena_calloc(a, n, sizeof(pseg_prompt *));
    b->phrase_of = pseg_arena_calloc(a, b->n, sizeof *b->phrase_of);
    b->pairs = pseg_arena_calloc(a, n, sizeof *b->pairs);
    b->features = pseg_arena_calloc(a, n, sizeof *b->features);
    b->asked = pseg_arena_calloc(a, n, sizeof *b->asked);
    if (!b->distinct.phrases || !b->distinct.owners || !b->prompts || !b->phrase_of || !b->pairs ||
        !b->features || !b->asked)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu phrases", n);
    for (size_t i = 0; i < b->n; i++) {
        if (!is_alive(&b->jobs[i]))
            continue;
        b->phrase_of[i] = pseg_arena_calloc(a, b->jobs[i].work->n_prompts, sizeof(size_t));
        if (!b->phrase_of[i])
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu phrases", n);
    }
out:
    return rc;
}

/* Place of a work's phrase among the distinct ones, of which there may be one more then. */
static size_t place_of_phrase(batch *b, const pseg_work *w, size_t i)
{
    pseg_phrase_list *l = &b->distinct;
    size_t k = 0;

    while (k < l->n && strcmp(l->phrases[k], w->prompts[i]) != 0)
        k++;
    if (k == l->n) {
        l->owners[k] = w->owner ? w->owner : "";
        l->phrases[l->n++] = w->prompts[i];
    }
    return k;
}

/* The work's share of a step that all works took part in, by their phrases. */
static void share_step(const batch *b, const char *stage, int64_t us)
{
    int64_t all = (int64_t)n_prompts_alive(b);

    for (size_t i = 0; i < b->n; i++)
        if (is_alive(&b->jobs[i]))
            pseg_work_stage(b->jobs[i].work, stage, us * (int64_t)b->jobs[i].work->n_prompts / all);
}

static pseg_status encode_phrases(batch *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t begin = pseg_clock_mono_us();

    PSEG_TRY(allocate(b, err));
    for (size_t i = 0; i < b->n; i++)
        for (size_t k = 0; is_alive(&b->jobs[i]) && k < b->jobs[i].work->n_prompts; k++)
            b->phrase_of[i][k] = place_of_phrase(b, b->jobs[i].work, k);
    PSEG_TRY(pseg_engine_take_prompts(b->prompts, &b->done->n_texts, &b->e->devices[b->device],
                                      b->arena, &b->distinct, err));
    share_step(b, "encode_text", pseg_clock_mono_us() - begin);
out:
    return rc;
}

/* ---- pairs ---- */

static size_t place_of_pair(batch *b, const pseg_picture *p, size_t phrase)
{
    size_t k = 0;

    while (k < b->n_pairs && (b->pairs[k].picture != p || b->pairs[k].phrase != phrase))
        k++;
    if (k == b->n_pairs) {
        b->features[k] = p->features[b->device];
        b->asked[k] = b->prompts[phrase];
        b->pairs[b->n_pairs++] = (pair){p, phrase};
    }
    return k;
}

static pseg_status allocate_results(pseg_engine *e, pseg_work *w, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    pseg_free(w->logits); /* of an attempt in company that failed */
    pseg_free(w->iou);
    pseg_free(w->truncated);
    w->logits = pseg_calloc(w->n_prompts * pseg_engine_grid(e), sizeof *w->logits);
    w->iou = pseg_calloc(w->n_prompts, sizeof *w->iou);
    w->truncated = pseg_calloc(w->n_prompts, sizeof *w->truncated);
    if (!w->logits || !w->iou || !w->truncated)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu masks", w->n_prompts);
out:
    return rc;
}

static pseg_status hand_out(const batch *b, size_t i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_work *w = b->jobs[i].work;
    size_t grid = pseg_engine_grid(b->e);

    PSEG_TRY(allocate_results(b->e, w, err));
    for (size_t k = 0; k < w->n_prompts; k++) {
        size_t at = b->phrase_of[i][k];
        memcpy(w->logits + k * grid, b->logits + at * grid, grid * sizeof *w->logits);
        w->iou[k] = b->iou[at];
        w->truncated[k] = pseg_prompt_is_cut(b->asked[at]);
    }
out:
    return rc;
}

static pseg_status decode_pairs(batch *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t begin = pseg_clock_mono_us();

    for (size_t i = 0; i < b->n; i++)
        for (size_t k = 0; is_alive(&b->jobs[i]) && k < b->jobs[i].work->n_prompts; k++)
            b->phrase_of[i][k] = place_of_pair(b, b->jobs[i].work->picture, b->phrase_of[i][k]);
    b->logits = pseg_calloc(b->n_pairs * pseg_engine_grid(b->e), sizeof *b->logits);
    b->iou = pseg_calloc(b->n_pairs, sizeof *b->iou);
    if (!b->logits || !b->iou)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %zu masks", b->n_pairs);
    PSEG_TRY(
        pseg_model_decode(b->logits, b->iou, b->model, b->features, b->asked, b->n_pairs, err));
    for (size_t i = 0; i < b->n; i++)
        if (is_alive(&b->jobs[i]))
            PSEG_TRY(hand_out(b, i, err));
    share_step(b, "decode_mask", pseg_clock_mono_us() - begin);
    b->done->n_pairs = b->n_pairs;
    for (size_t k = 0; k < b->n_pairs; k++)
        for (size_t m = 0; m < b->done->n_encodes; m++)
            b->done->n_prompts[m] += b->pairs[k].picture == b->done->encoded[m];
out:
    return rc;
}

/* ---- the whole ---- */

static void run_steps(batch *b)
{
    static const struct {
        const char *stage;
        pseg_status (*run)(batch *, pseg_err *);
    } steps[] = {{"encode_image", encode_images},
                 {"encode_text", encode_phrases},
                 {"decode_mask", decode_pairs}};
    pseg_err e = PSEG_ERR_INIT;

    for (size_t k = 0; k < sizeof steps / sizeof *steps; k++) {
        drop_cancelled(b);
        if (n_alive(b) == 0)
            return;
        pseg_kernel_times_step(b->times, steps[k].stage);
        pseg_status rc = steps[k].run(b, &e);
        for (size_t i = 0; rc != PSEG_OK && i < b->n; i++)
            if (is_alive(&b->jobs[i])) {
                b->jobs[i].rc = rc;
                b->jobs[i].err = e;
            }
    }
}

/* The empty model: a job's masks have one pixel each, outside. */
static void run_empty(pseg_engine *e, pseg_engine_job *j)
{
    j->rc = allocate_results(e, j->work, &j->err);
    for (size_t i = 0; j->rc == PSEG_OK && i < j->work->n_prompts; i++)
        j->work->logits[i] = -10;
}

void pseg_engine_run_batch(pseg_engine *e, size_t device, pseg_engine_job *jobs, size_t n,
                           bool (*is_cancelled)(void *), pseg_engine_batch *done)
{
    batch b = {.e = e,
               .device = device,
               .model = e->devices[device].model,
               .jobs = jobs,
               .n = n,
               .is_cancelled = is_cancelled,
               .done = done};

    *done = (pseg_engine_batch){0};
    for (size_t i = 0; i < n; i++) {
        jobs[i].work->device = device;
        jobs[i].rc = PSEG_OK;
        jobs[i].err = (pseg_err)PSEG_ERR_INIT;
        if (!b.model)
            run_empty(e, &jobs[i]);
    }
    if (!b.model)
        return;
    pseg_pictures_reap(&e->pictures, device);
    b.arena = jobs[0].work->arena;
    b.times = pseg_kernel_times_begin(b.model, jobs, n);
    run_steps(&b);
    pseg_kernel_times_end(b.times, b.model, jobs, n);
    pseg_engine_give_prompts(&e->devices[device], b.prompts, &b.distinct);
    pseg_free(b.logits);
    pseg_free(b.iou);
    for (size_t i = 0; i < n; i++)
        pseg_engine_unclaim(e, device, jobs[i].work);
}

pseg_status pseg_engine_run(pseg_engine *e, pseg_work *w, bool (*is_cancelled)(void *), void *ud,
                            pseg_err *err)
{
    pseg_engine_job j = {.work = w, .ud = ud};
    pseg_engine_batch done;

    pseg_engine_run_batch(e, 0, &j, 1, is_cancelled, &done);
    if (j.rc != PSEG_OK && err)
        *err = j.err;
    return j.rc;
}
