/* Features on their way to other workers and back: a head, then float16 numbers in the byte order
 * of the machine. */
#include "worker/serve/engine_internal.h"
#include "common/base/alloc.h"
#include "common/base/half.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAGIC      0x31465350u /* "PSF1", and something else on a machine of other byte order */
#define HALF_LIMIT 65504.0f

typedef struct head {
    uint32_t magic, width, height, n;
    float rect[4];
} head;

void pseg_engine_features_key(const pseg_engine *e, char out[PSEG_ENGINE_MAX_KEY + 1],
                              const char *content)
{
    snprintf(out, PSEG_ENGINE_MAX_KEY + 1, "%.64s:%.16s:%s:%ux%u%s:%s", e->digest, e->kernel_digest,
             pseg_precision_name(e->info ? e->info->precision : 0), e->how.width, e->how.height,
             e->how.may_shrink ? "f" : "", content);
}

/* Of a picture that could have been read here: masks are made at its size. */
static bool is_sound(const head *h, const pseg_image_limits *most)
{
    const float *r = h->rect;

    return h->width > 0 && h->height > 0 && h->width <= most->max_side &&
           h->height <= most->max_side && (uint64_t)h->width * h->height <= most->max_pixels &&
           isfinite(r[0]) && isfinite(r[1]) && isfinite(r[2]) && isfinite(r[3]) && r[0] < r[2] &&
           r[1] < r[3];
}

pseg_status pseg_engine_restore(pseg_engine *e, pseg_work *w, pseg_bytes packed, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = e->info ? pseg_engine_n_features(e) : 0;
    uint16_t *half = NULL;
    float *numbers = NULL;
    head h;

    if (!n || !w->picture || packed.len != sizeof h + n * sizeof *half)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "features of %zu bytes: %zu were expected",
                  packed.len, sizeof h + n * sizeof *half);
    memcpy(&h, packed.data, sizeof h);
    if (h.magic != MAGIC || h.n != n || !is_sound(&h, &e->limits))
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "features that were not packed for this model");
    half = pseg_malloc(n * sizeof *half);
    numbers = pseg_aligned_alloc(n * sizeof *numbers);
    if (!half || !numbers)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an image's features");
    memcpy(half, packed.data + sizeof h, n * sizeof *half);
    pseg_half_to_floats(numbers, half, n);
    w->picture->width = h.width;
    w->picture->height = h.height;
    memcpy(w->picture->rect, h.rect, sizeof h.rect);
    w->picture->numbers = numbers;
    numbers = NULL;
    pseg_engine_adopt(w, w->picture);
out:
    pseg_free(half);
    pseg_free(numbers);
    return rc;
}

static pseg_bytes pack(const pseg_picture *p, size_t n, pseg_arena *arena)
{
    bool fits = true;

    for (size_t i = 0; i < n; i++)
        fits = fits && fabsf(p->numbers[i]) <= HALF_LIMIT; /* and is a number */
    uint8_t *data = fits ? pseg_arena_alloc(arena, sizeof(head) + n * sizeof(uint16_t)) : NULL;
    if (!data)
        return (pseg_bytes){NULL, 0};
    head h = {.magic = MAGIC, .width = p->width, .height = p->height, .n = (uint32_t)n};
    memcpy(h.rect, p->rect, sizeof h.rect);
    memcpy(data, &h, sizeof h);
    _Static_assert(sizeof h % sizeof(uint16_t) == 0, "the numbers are aligned");
    pseg_half_from_floats((uint16_t *)(void *)(data + sizeof h), p->numbers, n);
    return (pseg_bytes){data, sizeof h + n * sizeof(uint16_t)};
}

pseg_bytes pseg_engine_take_features(pseg_engine *e, pseg_work *w)
{
    pseg_picture *p = w->picture;

    if (!p || !p->is_fresh)
        return (pseg_bytes){NULL, 0};
    pseg_bytes packed = pack(p, pseg_engine_n_features(e), w->arena);
    p->is_fresh = false;
    if (e->n_devices == 1)
        pseg_picture_forget_numbers(&e->pictures, p);
    return packed;
}
