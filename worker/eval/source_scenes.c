#include "worker/eval/source.h"
#include "common/base/alloc.h"
#include "common/base/hash.h"
#include "worker/scenes/scenes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct scenes {
    pseg_eval_source base;
    uint64_t first;
    int size;
} scenes;

bool pseg_eval_is_scenes(const char *text, uint64_t *first, uint32_t *count, int *size)
{
    uint64_t last = 0;
    int used = 0;

    *size = 0;
    if (sscanf(text, "scenes:%" SCNu64 "-%" SCNu64 "%n", first, &last, &used) != 2)
        return false;
    if (text[used] == '@') {
        int more = 0;
        if (sscanf(text + used, "@%d%n", size, &more) != 1)
            return false;
        used += more;
    }
    bool is_good = text[used] == '\0' && *first <= last && last - *first < 10000000;
    *count = is_good ? (uint32_t)(last - *first + 1) : 0;
    return is_good;
}

static void scenes_close(pseg_eval_source *s)
{
    pseg_free(s);
}

static pseg_status make(pseg_scene **out, pseg_eval_source *s, uint32_t image, pseg_err *err)
{
    const scenes *of = (const scenes *)s;

    return pseg_scene_make(out, of->first + image, of->size, err);
}

/* As pick_swap of tests/golden/eval_scenes.py: a phrase about `other`, else about any other object.
 */
static uint32_t pick_swap(const pseg_scene *s, int i)
{
    int pool[PSEG_SCENE_MAX_PHRASES], n = 0;
    const pseg_scene_phrase *p = s->phrases;

    for (int j = 0; j < s->n_phrases; j++)
        if (p[j].target == p[i].other && p[j].target != p[i].target)
            pool[n++] = j;
    for (int j = 0, is_none = n == 0; is_none && j < s->n_phrases; j++)
        if (p[j].target != p[i].target)
            pool[n++] = j;
    return n ? (uint32_t)pool[i % n] : UINT32_MAX;
}

static pseg_status scenes_list(pseg_eval_listing *out, pseg_eval_source *s, uint32_t image,
                               pseg_arena *arena, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_scene *scene = NULL;
    uint32_t said[PSEG_SCENE_MAX_OBJECTS] = {0};
    char name[40];

    PSEG_TRY(make(&scene, s, image, err));
    snprintf(name, sizeof name, "seed %" PRIu64, scene->seed);
    *out = (pseg_eval_listing){
        .name = pseg_arena_strdup(arena, name),
        .n = (uint32_t)scene->n_phrases,
        .phrases = pseg_arena_calloc(arena, (size_t)scene->n_phrases, sizeof *out->phrases)};
    if (!out->name || !out->phrases)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the phrases of a scene");
    for (int k = 0; k < scene->n_phrases; k++) {
        const pseg_scene_phrase *p = &scene->phrases[k];
        out->phrases[k] =
            (pseg_eval_phrase){.text = pseg_arena_strdup(arena, p->text),
                               .kind = pseg_scene_phrase_kind_name(p->kind),
                               .category = pseg_scene_kind_name(scene->objects[p->target].kind),
                               .target = (uint32_t)p->target,
                               .sentence = said[p->target]++,
                               .swap = pick_swap(scene, k)};
        if (!out->phrases[k].text)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the phrases of a scene");
    }
out:
    pseg_scene_free(scene);
    return rc;
}

static pseg_status scenes_load(pseg_eval_photo *out, float *chw, pseg_eval_source *s,
                               uint32_t image, const pseg_preprocess *how, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_scene *scene = NULL;

    PSEG_TRY(make(&scene, s, image, err));
    pseg_image photo = {scene->rgb, (uint32_t)scene->width, (uint32_t)scene->height};
    *out = (pseg_eval_photo){.width = photo.width, .height = photo.height};
    PSEG_TRY(pseg_image_preprocess(chw, out->rect, &photo, how, err));
    out->held = scene;
    scene = NULL;
out:
    pseg_scene_free(scene);
    return rc;
}

static void scenes_unload(pseg_eval_source *s, pseg_eval_photo *p)
{
    (void)s;
    pseg_scene_free(p->held);
    p->held = NULL;
}

static pseg_status scenes_truth(pseg_mask **out, pseg_eval_source *s, const pseg_eval_photo *p,
                                uint32_t target, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_scene *scene = p->held;
    size_t n = (size_t)scene->width * (size_t)scene->height;
    uint8_t *inside = pseg_malloc(n);

    (void)s;
    *out = NULL;
    if (!inside)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a mask");
    for (size_t i = 0; i < n; i++)
        inside[i] = scene->id[i] == target + 1;
    PSEG_TRY(pseg_mask_from_pixels(out, inside, p->width, p->height, err));
out:
    pseg_free(inside);
    return rc;
}

static pseg_status scenes_picture(pseg_image **out, pseg_eval_source *s, uint32_t image,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_scene *scene = NULL;
    pseg_image *i = pseg_calloc(1, sizeof *i);

    *out = NULL;
    if (!i)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a picture");
    PSEG_TRY(make(&scene, s, image, err));
    *i = (pseg_image){scene->rgb, (uint32_t)scene->width, (uint32_t)scene->height};
    scene->rgb = NULL;
    *out = i;
    i = NULL;
out:
    pseg_free(i);
    pseg_scene_free(scene);
    return rc;
}

pseg_status pseg_eval_source_scenes(pseg_eval_source **out, uint64_t first, uint32_t count,
                                    int size_px, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    scenes *s = pseg_calloc(1, sizeof *s);
    uint8_t digest[PSEG_SHA256_BYTES];

    *out = NULL;
    PSEG_REQUIRE(count > 0, "count");
    PSEG_REQUIRE(size_px >= 64 && size_px <= 1024, "size");
    if (!s)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a source of scenes");
    s->first = first;
    s->size = size_px;
    s->base = (pseg_eval_source){.n_images = count,
                                 .close = scenes_close,
                                 .list = scenes_list,
                                 .load = scenes_load,
                                 .unload = scenes_unload,
                                 .truth = scenes_truth,
                                 .picture = scenes_picture};
    snprintf(s->base.description, sizeof s->base.description,
             "scenes of seeds %" PRIu64 " to %" PRIu64 ", %d px", first, first + count - 1,
             size_px);
    /* A scene is its seed and size: to hash them is to hash what they give. */
    pseg_sha256_of(digest, s->base.description, strlen(s->base.description));
    pseg_hex(s->base.digest, digest, sizeof digest);
    *out = &s->base;
    s = NULL;
out:
    pseg_free(s);
    return rc;
}
