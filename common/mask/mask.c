#include "common/mask/mask.h"
#include "common/base/alloc.h"
#include "common/base/half.h"

#include <math.h>
#include <string.h>

#define MAX_PIXELS ((uint64_t)1 << 30)

/* Where each photo column (or row) falls between two of the grid. */
typedef struct axis {
    uint32_t *low, *high; /* grid indexes */
    float *weight;        /* of high */
    uint32_t begin, end;  /* positions of the photo inside the grid's rectangle */
} axis;

static void axis_free(axis *a)
{
    pseg_free(a->low);
    pseg_free(a->high);
    pseg_free(a->weight);
}

static pseg_status axis_make(axis *a, uint32_t n, uint32_t grid, float from, float to,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *a = (axis){.low = pseg_calloc(n, sizeof *a->low),
                .high = pseg_calloc(n, sizeof *a->high),
                .weight = pseg_calloc(n, sizeof *a->weight),
                .begin = n};
    if (!a->low || !a->high || !a->weight)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to enlarge a mask to %u pixels", n);
    for (uint32_t i = 0; i < n; i++) {
        double centre = i + 0.5;
        if (centre < from || centre > to)
            continue;
        if (a->begin == n)
            a->begin = i;
        a->end = i + 1;
        double u = (centre - from) / ((double)to - from) * grid - 0.5;
        u = u < 0 ? 0 : u > grid - 1 ? grid - 1 : u;
        a->low[i] = (uint32_t)u;
        a->high[i] = a->low[i] + 1 < grid ? a->low[i] + 1 : a->low[i];
        a->weight[i] = (float)(u - a->low[i]);
    }
out:
    return rc;
}

/* The photo's rows of logits, one after the other. */
typedef struct enlarger {
    const pseg_mask_grid *g;
    axis x, y;
    float *grid;  /* [grid_height, grid_width] */
    float *blend; /* one grid row between two */
    float *row;   /* one photo row; valid in x.begin..x.end */
} enlarger;

static void enlarger_free(enlarger *e)
{
    axis_free(&e->x);
    axis_free(&e->y);
    pseg_free(e->grid);
    pseg_free(e->blend);
    pseg_free(e->row);
}

static pseg_status enlarger_make(enlarger *e, const pseg_mask_grid *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = (size_t)g->grid_width * g->grid_height;

    *e = (enlarger){.g = g};
    if (g->grid_width == 0 || g->grid_height == 0 || n > MAX_PIXELS || g->width == 0 ||
        g->height == 0 || (uint64_t)g->width * g->height > MAX_PIXELS)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "mask of %u x %u from a grid of %u x %u is out of range", g->width, g->height,
                  g->grid_width, g->grid_height);
    if (!(g->x1 > g->x0) || !(g->y1 > g->y0) || !isfinite(g->x1 - g->x0) ||
        !isfinite(g->y1 - g->y0))
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "the grid's rectangle %g,%g to %g,%g is empty", g->x0,
                  g->y0, g->x1, g->y1);
    PSEG_TRY(axis_make(&e->x, g->width, g->grid_width, g->x0, g->x1, err));
    PSEG_TRY(axis_make(&e->y, g->height, g->grid_height, g->y0, g->y1, err));
    e->grid = pseg_calloc(n, sizeof *e->grid);
    e->blend = pseg_calloc(g->grid_width, sizeof *e->blend);
    e->row = pseg_calloc(g->width, sizeof *e->row);
    if (!e->grid || !e->blend || !e->row)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to enlarge a mask to %u x %u", g->width,
                  g->height);
    pseg_half_to_floats(e->grid, g->logits, n);
out:
    return rc;
}

/* Fills e->row; y inside y.begin..y.end. */
static void enlarge_row(enlarger *e, uint32_t y)
{
    const float *a = e->grid + (size_t)e->y.low[y] * e->g->grid_width;
    const float *b = e->grid + (size_t)e->y.high[y] * e->g->grid_width;
    float w = e->y.weight[y];

    for (uint32_t i = 0; i < e->g->grid_width; i++)
        e->blend[i] = a[i] + w * (b[i] - a[i]);
    const uint32_t *low = e->x.low, *high = e->x.high;
    for (uint32_t x = e->x.begin; x < e->x.end; x++) {
        float p = e->blend[low[x]], q = e->blend[high[x]];
        e->row[x] = p + e->x.weight[x] * (q - p);
    }
}

static pseg_status mask_new(pseg_mask **out, uint32_t width, uint32_t height, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mask *m = NULL;

    *out = NULL;
    if (width == 0 || height == 0 || (uint64_t)width * height > MAX_PIXELS)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "mask of %u x %u is out of range", width, height);
    m = pseg_calloc(1, sizeof *m);
    if (m)
        m->data = pseg_calloc(height, width);
    if (!m || !m->data) {
        pseg_free(m);
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a mask of %u x %u", width, height);
    }
    m->width = width;
    m->height = height;
    *out = m;
out:
    return rc;
}

void pseg_mask_free(pseg_mask *m)
{
    if (!m)
        return;
    pseg_free(m->data);
    pseg_free(m);
}

/* Area and box from the pixels. */
static void measure(pseg_mask *m)
{
    uint32_t x0 = m->width, x1 = 0, y0 = m->height, y1 = 0;

    m->area = 0;
    for (uint32_t y = 0; y < m->height; y++) {
        const uint8_t *row = m->data + (size_t)y * m->width;
        const uint8_t *first = memchr(row, 1, m->width),
                      *last = first ? memrchr(row, 1, m->width) : NULL;
        if (!first)
            continue;
        uint32_t n = 0;
        for (const uint8_t *p = first; p <= last; p++)
            n += *p;
        m->area += n;
        x0 = (uint32_t)(first - row) < x0 ? (uint32_t)(first - row) : x0;
        x1 = (uint32_t)(last - row) + 1 > x1 ? (uint32_t)(last - row) + 1 : x1;
        y0 = y < y0 ? y : y0;
        y1 = y + 1;
    }
    m->box_x = m->area ? x0 : 0;
    m->box_y = m->area ? y0 : 0;
    m->box_width = m->area ? x1 - x0 : 0;
    m->box_height = m->area ? y1 - y0 : 0;
}

pseg_status pseg_mask_make(pseg_mask **out, const pseg_mask_grid *g, float threshold, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mask *m = NULL;
    enlarger e;

    *out = NULL;
    PSEG_TRY(enlarger_make(&e, g, err));
    if (!(threshold > 0 && threshold < 1))
        PSEG_FAIL(PSEG_R_THRESHOLD_OUT_OF_RANGE, 0, "threshold %g is not between 0 and 1",
                  threshold);
    float limit = (float)log((double)threshold / (1 - (double)threshold));
    PSEG_TRY(mask_new(&m, g->width, g->height, err));
    for (uint32_t y = e.y.begin; y < e.y.end; y++) {
        uint8_t *row = m->data + (size_t)y * m->width;
        enlarge_row(&e, y);
        for (uint32_t x = e.x.begin; x < e.x.end; x++)
            row[x] = e.row[x] > limit;
    }
    measure(m);
    *out = m;
    m = NULL;
out:
    enlarger_free(&e);
    pseg_mask_free(m);
    return rc;
}

pseg_status pseg_mask_from_pixels(pseg_mask **out, const uint8_t *pixels, uint32_t width,
                                  uint32_t height, pseg_err *err)
{
    pseg_status rc = mask_new(out, width, height, err);

    if (rc == PSEG_OK) {
        for (size_t i = 0; i < (size_t)width * height; i++)
            (*out)->data[i] = pixels[i] != 0;
        measure(*out);
    }
    return rc;
}

pseg_status pseg_mask_probabilities(pseg_buf *out, const pseg_mask_grid *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *at;
    enlarger e;

    PSEG_TRY(enlarger_make(&e, g, err));
    PSEG_TRY(pseg_buf_extend(&at, out, (size_t)g->width * g->height * 2, err));
    memset(at, 0, (size_t)g->width * g->height * 2);
    for (uint32_t y = e.y.begin; y < e.y.end; y++) {
        enlarge_row(&e, y);
        for (uint32_t x = e.x.begin; x < e.x.end; x++) {
            uint16_t h = pseg_half_from_float(1 / (1 + expf(-e.row[x])));
            uint8_t *p = at + 2 * ((size_t)y * g->width + x);
            p[0] = (uint8_t)h;
            p[1] = (uint8_t)(h >> 8);
        }
    }
out:
    enlarger_free(&e);
    return rc;
}

pseg_status pseg_mask_bits(pseg_buf *out, const pseg_mask *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t stride = ((size_t)m->width + 7) / 8;
    uint8_t *at;

    PSEG_TRY(pseg_buf_extend(&at, out, stride * m->height, err));
    memset(at, 0, stride * m->height);
    for (uint32_t y = 0; y < m->height; y++)
        for (uint32_t x = 0; x < m->width; x++)
            at[y * stride + x / 8] |= (uint8_t)(m->data[(size_t)y * m->width + x] << (7 - x % 8));
out:
    return rc;
}

double pseg_mask_iou(const pseg_mask *a, const pseg_mask *b)
{
    uint64_t both = 0;

    for (size_t i = 0; i < (size_t)a->width * a->height; i++)
        both += a->data[i] & b->data[i];
    uint64_t either = a->area + b->area - both;
    return either ? (double)both / (double)either : 1;
}
