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

/* near[x] = is a pixel of the row outside the mask, `reach` columns away or less? */
static void near_outside(uint8_t *near, const uint8_t *row, int64_t w, int64_t reach)
{
    int64_t next = 0; /* the first pixel outside at or behind x - reach */

    for (int64_t x = 0; x < w; x++) {
        while (next < w && (next < x - reach || row[next]))
            next++;
        near[x] = next < w && next <= x + reach;
    }
}

/* The outline, without looking at reach^2 pixels for each: `nears` holds near_outside of the
 * 2 reach + 1 rows around the present one, in turn, and counts[x] how many of them are set at x. */
typedef struct outline {
    const uint8_t *mask;
    int64_t w, h, reach, last; /* the last row that was taken in */
    uint8_t *nears;            /* [2 reach + 1, w] */
    uint32_t *counts;          /* [w] */
} outline;

static pseg_status outline_init(outline *o, const uint8_t *mask, int64_t w, int64_t h,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t reach = (w > h ? w : h) / 600 + 1;

    *o = (outline){.mask = mask, .w = w, .h = h, .reach = reach, .last = -1};
    o->nears = pseg_calloc((size_t)(2 * reach + 1), (size_t)w);
    o->counts = pseg_calloc((size_t)w, sizeof *o->counts);
    if (!o->nears || !o->counts)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an outline");
out:
    return rc;
}

static void outline_deinit(outline *o)
{
    pseg_free(o->nears);
    pseg_free(o->counts);
}

/* Rows are asked for in order. counts[x] > 0 then tells whether (x, y) has one outside in reach. */
static void outline_row(outline *o, int64_t y)
{
    while (o->last < y + o->reach) {
        uint8_t *near = o->nears + ++o->last % (2 * o->reach + 1) * o->w;

        for (int64_t x = 0; x < o->w; x++)
            o->counts[x] -= near[x]; /* the row that leaves the window, or zeros at first */
        memset(near, 0, (size_t)o->w);
        if (o->last < o->h)
            near_outside(near, o->mask + o->last * o->w, o->w, o->reach);
        for (int64_t x = 0; x < o->w; x++)
            o->counts[x] += near[x];
    }
}

pseg_status pseg_image_overlay(pseg_image **out, const pseg_image *photo, const uint8_t *mask,
                               pseg_err *err)
{
    static const int tint[3] = {255, 40, 120};
    pseg_status rc = PSEG_OK;
    int64_t w = photo->width, h = photo->height;
    outline o = {0};

    *out = NULL;
    PSEG_TRY(outline_init(&o, mask, w, h, err));
    PSEG_TRY(image_new(out, photo->width, photo->height, err));
    for (int64_t y = 0; y < h; y++) {
        outline_row(&o, y);
        for (int64_t x = 0; x < w; x++) {
            const uint8_t *p = photo->rgb + 3 * (y * w + x);
            uint8_t *q = (*out)->rgb + 3 * (y * w + x);
            bool in = mask[y * w + x], edge = in && o.counts[x] > 0;
            int grey = (p[0] * 77 + p[1] * 150 + p[2] * 29) >> 8;
            for (int c = 0; c < 3; c++)
                q[c] = (uint8_t)(edge ? 255
                                 : in ? (p[c] * 11 + tint[c] * 9) / 20
                                      : (p[c] * 2 + grey) / 4);
        }
    }
out:
    outline_deinit(&o);
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
