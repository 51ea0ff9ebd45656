/* Pictures that show a result. */
#include "common/image/image.h"
#include "common/base/alloc.h"

#include <string.h>

static pseg_status image_new(pseg_image **out, uint32_t width, uint32_t height, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image *i = pseg_calloc(1, sizeof *i);

    *out = NULL;
    if (i)
        i->rgb = pseg_malloc(3 * (size_t)width * height);
    if (!i || !i->rgb) {
        pseg_free(i);
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a picture of %u x %u", width, height);
    }
    i->width = width;
    i->height = height;
    *out = i;
out:
    return rc;
}

/* Is a pixel of the mask within `reach` of one outside it? */
static bool is_outline(const uint8_t *mask, int64_t w, int64_t h, int64_t x, int64_t y,
                       int64_t reach)
{
    for (int64_t dy = -reach; dy <= reach; dy++)
        for (int64_t dx = -reach; dx <= reach; dx++) {
            int64_t px = x + dx, py = y + dy;
            if (px >= 0 && py >= 0 && px < w && py < h && !mask[py * w + px])
                return true;
        }
    return false;
}

pseg_status pseg_image_overlay(pseg_image **out, const pseg_image *photo, const uint8_t *mask,
                               pseg_err *err)
{
    static const int tint[3] = {255, 40, 120};
    int64_t w = photo->width, h = photo->height, reach = (w > h ? w : h) / 600 + 1;
    pseg_status rc = image_new(out, photo->width, photo->height, err);

    if (rc != PSEG_OK)
        return rc;
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++) {
            const uint8_t *p = photo->rgb + 3 * (y * w + x);
            uint8_t *q = (*out)->rgb + 3 * (y * w + x);
            bool in = mask[y * w + x], edge = in && is_outline(mask, w, h, x, y, reach);
            int grey = (p[0] * 77 + p[1] * 150 + p[2] * 29) >> 8;
            for (int c = 0; c < 3; c++)
                q[c] = (uint8_t)(edge ? 255
                                 : in ? (p[c] * 11 + tint[c] * 9) / 20
                                      : (p[c] * 2 + grey) / 4);
        }
    return rc;
}

pseg_status pseg_image_of_mask(pseg_image **out, const uint8_t *mask, uint32_t width,
                               uint32_t height, pseg_err *err)
{
    pseg_status rc = image_new(out, width, height, err);

    for (size_t i = 0; rc == PSEG_OK && i < (size_t)width * height; i++)
        memset((*out)->rgb + 3 * i, mask[i] ? 255 : 0, 3);
    return rc;
}

pseg_status pseg_image_beside(pseg_image **out, const pseg_image *const *images, size_t n,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t w = images[0]->width, h = images[0]->height, gap = w / 50 + 2;
    uint32_t all = (uint32_t)(n * w + (n - 1) * gap);

    *out = NULL;
    for (size_t i = 0; i < n; i++)
        PSEG_REQUIRE(images[i]->width == w && images[i]->height == h, "pictures of one size");
    PSEG_TRY(image_new(out, all, h, err));
    memset((*out)->rgb, 255, 3 * (size_t)all * h);
    for (size_t i = 0; i < n; i++)
        for (uint32_t y = 0; y < h; y++)
            memcpy((*out)->rgb + 3 * ((size_t)y * all + i * (w + gap)),
                   images[i]->rgb + 3 * (size_t)y * w, 3 * (size_t)w);
out:
    return rc;
}
