/* Any bytes as an encoded image that another worker left in Redis: refused, or taken and masks made
 * of it, whatever it says about the photo. */
#include "common/base/alloc.h"
#include "worker/serve/engine_internal.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { GRID = 8 };

static void finish(pseg_engine *e, pseg_work *w)
{
    static float logits[GRID * GRID], iou[1];
    static bool truncated[1];
    pseg_err err = PSEG_ERR_INIT;

    for (size_t i = 0; i < GRID * GRID; i++)
        logits[i] = (float)((i * 7) % 13) - 6;
    w->logits = logits;
    w->iou = iou;
    w->truncated = truncated;
    if (pseg_engine_finish(e, w, &err) != PSEG_OK && !*err.msg)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const pseg_model_info info = {
        .gh = 2, .gw = 2, .dim = 2, .mask_width = GRID, .mask_height = GRID};
    static const char *const prompts[] = {"a"};
    static pseg_engine e;
    pseg_picture picture = {.key = NULL};
    pseg_work w = {.prompts = prompts, .n_prompts = 1, .threshold = 0.5f, .picture = &picture};
    pseg_err err = PSEG_ERR_INIT;

    e.info = &info;
    e.limits = (pseg_image_limits)PSEG_IMAGE_LIMITS_DEFAULT;
    e.limits.max_side = 600;
    w.arena = pseg_arena_new(1 << 20);
    if (!w.arena)
        return 0;
    if (pseg_engine_restore(&e, &w, (pseg_bytes){data, size}, &err) == PSEG_OK) {
        if (!picture.numbers || w.width != picture.width || w.width < 1 || w.width > 600 ||
            w.height < 1 || w.height > 600)
            abort();
        finish(&e, &w);
    } else if (picture.numbers || !*err.msg) {
        abort();
    }
    pseg_free(picture.numbers);
    pseg_arena_free(w.arena);
    return 0;
}
