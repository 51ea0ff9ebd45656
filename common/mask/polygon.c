/* Outlines along pixel edges, with the inside always on the right hand. */
#include "common/mask/mask.h"
#include "common/base/alloc.h"

#include <string.h>

/* Directions in clockwise order on screen (y down). */
enum { RIGHT, DOWN, LEFT, UP };

typedef struct tracer {
    const pseg_mask *m;
    uint8_t *done; /* a bit per pixel whose left edge has been walked */
} tracer;

static bool inside(const pseg_mask *m, int64_t x, int64_t y)
{
    return x >= 0 && y >= 0 && x < m->width && y < m->height && m->data[y * m->width + x];
}

/* Is the edge that leaves the corner (x, y) in direction d on the outline, inside to its right? */
static bool is_edge(const pseg_mask *m, int64_t x, int64_t y, int d)
{
    switch (d) {
    case RIGHT:
        return inside(m, x, y) && !inside(m, x, y - 1);
    case DOWN:
        return inside(m, x - 1, y) && !inside(m, x, y);
    case LEFT:
        return inside(m, x - 1, y - 1) && !inside(m, x - 1, y);
    default:
        return inside(m, x, y - 1) && !inside(m, x - 1, y - 1);
    }
}

static pseg_status trace(tracer *t, pseg_buf *out, int64_t x0, int64_t y0, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    static const int dx[] = {1, 0, -1, 0}, dy[] = {0, 1, 0, -1};
    int64_t x = x0, y = y0;
    int d = UP;
    bool first = true;

    /* Walks up the left edge of the pixel above (x0, y0) and on until it is there again. */
    do {
        if (d == UP) {
            size_t pixel = (size_t)(y - 1) * t->m->width + (size_t)x;
            t->done[pixel / 8] |= (uint8_t)(1 << pixel % 8);
        }
        x += dx[d];
        y += dy[d];
        /* A right turn first keeps regions apart that touch at a corner. */
        int next = (d + 1) % 4;
        if (!is_edge(t->m, x, y, next))
            next = is_edge(t->m, x, y, d) ? d : (d + 3) % 4;
        if (next != d) {
            PSEG_TRY(pseg_buf_printf(out, err, "%s%lld,%lld", first ? "" : ",", (long long)x,
                                     (long long)y));
            first = false;
        }
        d = next;
    } while (x != x0 || y != y0 || d != UP);
out:
    return rc;
}

pseg_status pseg_mask_polygon(pseg_buf *out, const pseg_mask *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    tracer t = {m, pseg_calloc(((size_t)m->width * m->height + 7) / 8, 1)};
    bool first = true;

    if (!t.done)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the outline of a mask of %u x %u",
                  m->width, m->height);
    PSEG_TRY(pseg_buf_puts(out, "[", err));
    for (uint32_t y = 0; y < m->height; y++)
        for (uint32_t x = 0; x < m->width; x++) {
            size_t pixel = (size_t)y * m->width + x;
            if (!m->data[pixel] || (x > 0 && m->data[pixel - 1]) ||
                (t.done[pixel / 8] >> pixel % 8 & 1))
                continue;
            PSEG_TRY(pseg_buf_puts(out, first ? "[" : ",[", err));
            PSEG_TRY(trace(&t, out, x, (int64_t)y + 1, err));
            PSEG_TRY(pseg_buf_puts(out, "]", err));
            first = false;
        }
    PSEG_TRY(pseg_buf_puts(out, "]", err));
out:
    pseg_free(t.done);
    return rc;
}
