/* From the model's grid to the photo's pixels.
 *
 * Between two neighbouring columns of the grid, along a row of the photo, the logit is linear: it
 * lies between its two ends. So where both ends are on one side of the threshold, all pixels
 * between them are, and only cells that the outline crosses are worked out pixel by pixel. */
#include "common/mask/mask_impl.h"
#include "common/base/alloc.h"
#include "common/base/half.h"

#include <math.h>
#include <string.h>

/* Photo columns (or rows) begin..end - 1, all of which lie between `low` and `high` of the grid. */
typedef struct cell {
    uint32_t begin, end, low, high;
} cell;

typedef struct axis {
    cell *cells; /* in order, without gaps */
    size_t n_cells;
    float *weight; /* of `high`, one a photo position */
} axis;

/* The photo's rows of logits, one after the other. */
typedef struct enlarger {
    const pseg_mask_grid *g;
    axis x, y;
    float *grid;  /* [grid_height, grid_width] */
    float *blend; /* one grid row between two */
} enlarger;

static void axis_free(axis *a)
{
    pseg_free(a->cells);
    pseg_free(a->weight);
}

static pseg_status axis_make(axis *a, uint32_t n, uint32_t grid, float from, float to,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t max_cells = n < grid ? n : grid;

    *a = (axis){.cells = pseg_calloc(max_cells, sizeof *a->cells),
                .weight = pseg_calloc(n, sizeof *a->weight)};
    if (!a->cells || !a->weight)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to enlarge a mask to %u pixels", n);
    for (uint32_t i = 0; i < n; i++) {
        double centre = i + 0.5;
        if (centre < from || centre > to)
            continue;
        double u = (centre - from) / ((double)to - from) * grid - 0.5;
        u = u < 0 ? 0 : u > grid - 1 ? grid - 1 : u;
        uint32_t low = (uint32_t)u;
        a->weight[i] = (float)(u - low);
        if (a->n_cells && a->cells[a->n_cells - 1].low == low)
            a->cells[a->n_cells - 1].end = i + 1;
        else
            a->cells[a->n_cells++] = (cell){i, i + 1, low, low + 1 < grid ? low + 1 : low};
    }
out:
    return rc;
}

static void enlarger_free(enlarger *e)
{
    axis_free(&e->x);
    axis_free(&e->y);
    pseg_free(e->grid);
    pseg_free(e->blend);
}

/* Logits as finite numbers, since infinity times a weight of 0 is no number: infinities become the
 * largest halves, and what is no number is outside. */
static void read_logits(float *out, const uint16_t *in, size_t n)
{
    const float most = 65504;

    pseg_half_to_floats(out, in, n);
    for (size_t i = 0; i < n; i++)
        out[i] = out[i] > most ? most : out[i] >= -most ? out[i] : -most;
}

static pseg_status enlarger_make(enlarger *e, const pseg_mask_grid *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = (size_t)g->grid_width * g->grid_height;

    *e = (enlarger){.g = g};
    PSEG_TRY(mask_check_size(g->width, g->height, err));
    if (n == 0 || n > PSEG_MASK_MAX_PIXELS)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "a grid of %u x %u logits is out of range: it must have from 1 to %llu",
                  g->grid_width, g->grid_height, (unsigned long long)PSEG_MASK_MAX_PIXELS);
    if (!(g->x1 > g->x0) || !(g->y1 > g->y0) || !isfinite(g->x1 - g->x0) ||
        !isfinite(g->y1 - g->y0))
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "the grid's rectangle %g,%g to %g,%g must be finite and not empty", g->x0, g->y0,
                  g->x1, g->y1);
    PSEG_TRY(axis_make(&e->x, g->width, g->grid_width, g->x0, g->x1, err));
    PSEG_TRY(axis_make(&e->y, g->height, g->grid_height, g->y0, g->y1, err));
    e->grid = pseg_calloc(n, sizeof *e->grid);
    e->blend = pseg_calloc(g->grid_width, sizeof *e->blend);
    if (!e->grid || !e->blend)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to enlarge a mask to %u x %u", g->width,
                  g->height);
    read_logits(e->grid, g->logits, n);
out:
    return rc;
}

/* Fills e->blend for photo row y, which lies in the cell. */
static void blend_row(enlarger *e, const cell *rows, uint32_t y)
{
    const float *a = e->grid + (size_t)rows->low * e->g->grid_width;
    const float *b = e->grid + (size_t)rows->high * e->g->grid_width;
    float *blend = e->blend, w = e->y.weight[y];

    for (uint32_t i = 0; i < e->g->grid_width; i++)
        blend[i] = a[i] + w * (b[i] - a[i]);
}

/* Sets the pixels above the limit in a row of zeros; false: there are none. */
static bool fill_row(uint8_t *row, const enlarger *e, float limit)
{
    bool any = false;

    for (size_t k = 0; k < e->x.n_cells; k++) {
        const cell *c = &e->x.cells[k];
        float p = e->blend[c->low], d = e->blend[c->high] - p;
        bool left = p > limit, right = e->blend[c->high] > limit;
        if (!left && !right)
            continue;
        any = true;
        if (left && right) {
            memset(row + c->begin, 1, c->end - c->begin);
            continue;
        }
        const float *weight = e->x.weight;
        for (uint32_t x = c->begin; x < c->end; x++)
            row[x] = p + weight[x] * d > limit;
    }
    return any;
}

/* The logit above which a pixel is inside. */
static pseg_status limit_of(float *out, float threshold, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!(threshold > 0 && threshold < 1))
        PSEG_FAIL(PSEG_R_THRESHOLD_OUT_OF_RANGE, 0, "threshold %g is not between 0 and 1",
                  threshold);
    *out = (float)log((double)threshold / (1 - (double)threshold));
out:
    return rc;
}

pseg_status pseg_mask_make(pseg_mask **out, const pseg_mask_grid *g, float threshold, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mask *m = NULL;
    float limit = 0;
    enlarger e;

    *out = NULL;
    PSEG_TRY(enlarger_make(&e, g, err));
    PSEG_TRY(limit_of(&limit, threshold, err));
    PSEG_TRY(mask_new(&m, g->width, g->height, err));
    for (size_t k = 0; k < e.y.n_cells; k++)
        for (uint32_t y = e.y.cells[k].begin; y < e.y.cells[k].end; y++) {
            blend_row(&e, &e.y.cells[k], y);
            if (fill_row(m->data + (size_t)y * m->width, &e, limit))
                mask_measure_row(m, y);
        }
    *out = m;
    m = NULL;
out:
    enlarger_free(&e);
    pseg_mask_free(m);
    return rc;
}

static void logits_row(float *out, const enlarger *e)
{
    for (size_t k = 0; k < e->x.n_cells; k++) {
        const cell *c = &e->x.cells[k];
        float p = e->blend[c->low], d = e->blend[c->high] - p;
        for (uint32_t x = c->begin; x < c->end; x++)
            out[x] = p + e->x.weight[x] * d;
    }
}

/* What lies above the limit in a row: pixels, the first of them, and the end of the last. */
typedef struct span {
    uint32_t n, begin, end;
} span;

static span measure_row(const enlarger *e, float limit)
{
    span s = {0};

    for (size_t k = 0; k < e->x.n_cells; k++) {
        const cell *c = &e->x.cells[k];
        float p = e->blend[c->low], d = e->blend[c->high] - p;
        bool left = p > limit, right = e->blend[c->high] > limit;
        uint32_t n = 0, begin = c->begin, end = c->end;
        if (!left && !right)
            continue;
        if (left && right) {
            n = end - begin;
        } else {
            /* Along the cell the logits rise or fall, so those inside are at one of its ends; but
             * rounding could make one beyond step back. */
            const float *weight = e->x.weight;
            for (uint32_t x = c->begin; x < c->end; x++)
                n += p + weight[x] * d > limit;
            while (begin < end && !(p + weight[begin] * d > limit))
                begin++;
            while (begin < end && !(p + weight[end - 1] * d > limit))
                end--;
        }
        if (n == 0)
            continue;
        if (s.n == 0)
            s.begin = begin;
        s.end = end;
        s.n += n;
    }
    return s;
}

pseg_status pseg_mask_measure(pseg_mask *out, const pseg_mask_grid *g, float threshold,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    float limit = 0;
    enlarger e;

    *out = (pseg_mask){.width = g->width, .height = g->height};
    PSEG_TRY(enlarger_make(&e, g, err));
    PSEG_TRY(limit_of(&limit, threshold, err));
    uint32_t box_end = 0;
    for (size_t k = 0; k < e.y.n_cells; k++)
        for (uint32_t y = e.y.cells[k].begin; y < e.y.cells[k].end; y++) {
            blend_row(&e, &e.y.cells[k], y);
            span s = measure_row(&e, limit);
            if (s.n == 0)
                continue;
            if (out->area == 0)
                out->box_y = y;
            if (out->area == 0 || s.begin < out->box_x)
                out->box_x = s.begin;
            box_end = s.end > box_end ? s.end : box_end;
            out->box_height = y + 1 - out->box_y;
            out->area += s.n;
        }
    out->box_width = box_end - out->box_x;
out:
    enlarger_free(&e);
    return rc;
}

pseg_status pseg_mask_probabilities(pseg_buf *out, const pseg_mask_grid *g, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t stride = (size_t)g->width * 2;
    uint16_t *halves = NULL;
    float *logits = NULL;
    uint8_t *at;
    enlarger e;

    PSEG_TRY(enlarger_make(&e, g, err));
    halves = pseg_calloc(g->width, sizeof *halves);
    logits = pseg_calloc(g->width, sizeof *logits);
    if (!halves || !logits)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to enlarge a mask to %u x %u", g->width,
                  g->height);
    PSEG_TRY(pseg_buf_extend(&at, out, stride * g->height, err));
    if (e.x.n_cells == 0)
        e.y.n_cells = 0; /* the grid lies beside the photo */
    uint32_t x0 = e.x.n_cells ? e.x.cells[0].begin : 0, y = 0;
    uint32_t x1 = e.x.n_cells ? e.x.cells[e.x.n_cells - 1].end : 0;
    size_t row_zeros = stride - 2 * (size_t)(x1 - x0), left_zeros = 2 * (size_t)x0;
    for (size_t k = 0; k < e.y.n_cells; k++) {
        const cell *rows = &e.y.cells[k];
        for (; y < rows->begin; y++)
            memset(at + y * stride, 0, stride);
        for (; y < rows->end; y++) {
            uint8_t *row = at + y * stride;
            blend_row(&e, rows, y);
            logits_row(logits, &e);
            mask_sigmoid_halves(halves, logits + x0, x1 - x0);
            memset(row, 0, left_zeros);
            memcpy(row + left_zeros, halves, 2 * (size_t)(x1 - x0));
            memset(row + 2 * (size_t)x1, 0, row_zeros - left_zeros);
        }
    }
    for (; y < g->height; y++)
        memset(at + y * stride, 0, stride);
out:
    enlarger_free(&e);
    pseg_free(halves);
    pseg_free(logits);
    return rc;
}
