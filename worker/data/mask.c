/* From the three ways that masks are written in to pixels.
 *
 * Positions count down the columns, as COCO's runs do. A mask of runs or of a polygon is a set of
 * positions at which inside and outside change places. */
#include "common/base/alloc.h"
#include "worker/data/builder.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- polygons -------------------------------------------------------------------------------- */

/* COCO's rule (cocoapi, maskApi.c, rleFrPoly): the outline is drawn on a grid five times as fine,
 * one point a step along the longer side of each edge; where the fine x passes the middle of a
 * column of pixels, the mask changes at the y that is met there, rounded up. */
enum { FINE = 5 };

typedef struct outline {
    uint8_t *change; /* [width * height], down the columns */
    uint32_t width, height;
    int x, y; /* the point before, on the fine grid */
    bool has_point;
} outline;

static void add_point(outline *o, int x, int y)
{
    if (o->has_point && x != o->x) {
        double column = ((x < o->x ? x : x - 1) + 0.5) / FINE - 0.5;
        double row = ((y < o->y ? y : o->y) + 0.5) / FINE - 0.5;
        if (floor(column) == column && column >= 0 && column <= o->width - 1) {
            row = row < 0 ? 0 : row > o->height ? o->height : ceil(row);
            size_t at = (size_t)column * o->height + (size_t)row;
            if (at < (size_t)o->width * o->height)
                o->change[at] ^= 1;
        }
    }
    o->x = x;
    o->y = y;
    o->has_point = true;
}

static void add_edge(outline *o, const int from[2], const int to[2])
{
    int dx = abs(to[0] - from[0]), dy = abs(to[1] - from[1]), longer = dx >= dy ? dx : dy;
    bool is_flat = dx >= dy;
    bool is_back = is_flat ? from[0] > to[0] : from[1] > to[1];
    const int *a = is_back ? to : from, *b = is_back ? from : to;
    double slope = longer == 0 ? 0 : (double)(is_flat ? b[1] - a[1] : b[0] - a[0]) / longer;

    for (int d = 0; d <= longer; d++) {
        int t = is_back ? longer - d : d;
        if (is_flat)
            add_point(o, t + a[0], (int)(a[1] + slope * t + 0.5));
        else
            add_point(o, (int)(a[0] + slope * t + 0.5), t + a[1]);
    }
}

static void draw_ring(uint8_t *change, const pseg_data_mask *m, const double *xy, uint32_t n)
{
    outline o = {.change = change, .width = m->width, .height = m->height};

    for (uint32_t i = 0; i < n; i += 2) {
        uint32_t k = i + 2 < n ? i + 2 : 0;
        int from[2] = {(int)(FINE * xy[i] + 0.5), (int)(FINE * xy[i + 1] + 0.5)};
        int to[2] = {(int)(FINE * xy[k] + 0.5), (int)(FINE * xy[k + 1] + 0.5)};
        add_edge(&o, from, to);
    }
}

/* ---- pixels ---------------------------------------------------------------------------------- */

/* Adds what lies between changes to pixels, and clears the changes. */
static void fill(uint8_t *pixels, uint8_t *change, const pseg_data_mask *m)
{
    size_t at = 0;
    uint8_t inside = 0;

    for (uint32_t x = 0; x < m->width; x++)
        for (uint32_t y = 0; y < m->height; y++, at++) {
            inside ^= change[at];
            pixels[(size_t)y * m->width + x] |= inside;
        }
    memset(change, 0, at);
}

static void fill_rings(uint8_t *pixels, uint8_t *change, const pseg_data_mask *m)
{
    const double *xy = m->points;

    for (uint32_t i = 0; i < m->n_rings; i++) {
        draw_ring(change, m, xy, m->ring_len[i]);
        fill(pixels, change, m);
        xy += m->ring_len[i];
    }
}

static void fill_runs(uint8_t *pixels, uint8_t *change, const pseg_data_mask *m)
{
    size_t all = (size_t)m->width * m->height, at = 0;

    for (size_t i = 0; i < m->n_runs; i++) {
        at += m->runs[i];
        if (at < all)
            change[at] ^= 1;
    }
    fill(pixels, change, m);
}

pseg_status pseg_data_mask_decode(pseg_mask **out, const pseg_data_mask *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *pixels = NULL, *change = NULL;
    int64_t area;
    char why[160];

    *out = NULL;
    if (record_check_mask(why, sizeof why, &area, m) == PSEG_DATA_MASK_BROKEN)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "the mask cannot be used: %s", why);
    if (m->form == PSEG_DATA_MASK_RLE) {
        PSEG_TRY(pseg_mask_from_rle(out, m->rle, m->width, m->height, err));
        return rc;
    }
    pixels = pseg_calloc(m->width, m->height);
    change = pseg_calloc(m->width, m->height);
    if (!pixels || !change)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a mask of %u x %u", m->width, m->height);
    if (m->form == PSEG_DATA_MASK_RUNS)
        fill_runs(pixels, change, m);
    else
        fill_rings(pixels, change, m);
    PSEG_TRY(pseg_mask_from_pixels(out, pixels, m->width, m->height, err));
out:
    pseg_free(pixels);
    pseg_free(change);
    return rc;
}
