/* Outlines along pixel edges, with the inside always on the right hand. */
#include "common/mask/mask.h"
#include "common/base/alloc.h"

#include <string.h>

/* Directions in clockwise order on screen (y down). */
enum { RIGHT, DOWN, LEFT, UP };

typedef struct tracer {
    const pseg_mask *m;
    uint8_t *done; /* a bit per pixel whose left edge has been walked */
    pseg_buf *out;
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

/* Digits of n and the character behind them; returns where to go on. A mask of noise has a corner a
 * pixel, where printf would take most of the time. */
static char *put_number(char *to, uint32_t n, char behind)
{
    char digits[10];
    size_t k = 0;

    do
        digits[k++] = (char)('0' + n % 10);
    while (n /= 10);
    while (k)
        *to++ = digits[--k];
    *to++ = behind;
    return to;
}

static pseg_status put_corner(tracer *t, int64_t x, int64_t y, pseg_err *err)
{
    char text[24], *end = put_number(text, (uint32_t)x, ',');

    end = put_number(end, (uint32_t)y, ',');
    return pseg_buf_append(t->out, text, (size_t)(end - text), err);
}

/* Walks up the left edge of the pixel above (x0, y0) and on until it is there again. */
static pseg_status trace(tracer *t, int64_t x0, int64_t y0, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    static const int dx[] = {1, 0, -1, 0}, dy[] = {0, 1, 0, -1};
    int64_t x = x0, y = y0;
    int d = UP;

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
        if (next != d)
            PSEG_TRY(put_corner(t, x, y, err));
        d = next;
    } while (x != x0 || y != y0 || d != UP);
out:
    return rc;
}

/* Rings of which the highest left edge begins in row y. */
static pseg_status trace_row(tracer *t, uint32_t y, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t width = t->m->width;
    const uint8_t *row = t->m->data + y * width, *end = row + width, *p = row;

    while ((p = memchr(p, 1, (size_t)(end - p))) != NULL) {
        size_t x = (size_t)(p - row), pixel = y * width + x;
        if (!(t->done[pixel / 8] >> pixel % 8 & 1)) {
            PSEG_TRY(pseg_buf_append(t->out, "[", 1, err));
            PSEG_TRY(trace(t, (int64_t)x, (int64_t)y + 1, err));
            t->out->data[t->out->len - 1] = ']'; /* the last corner's comma */
            PSEG_TRY(pseg_buf_append(t->out, ",", 1, err));
        }
        p = memchr(p, 0, (size_t)(end - p));
        if (!p)
            break;
    }
out:
    return rc;
}

pseg_status pseg_mask_polygon(pseg_buf *out, const pseg_mask *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t before = out->len;
    tracer t = {m, pseg_calloc(((size_t)m->width * m->height + 7) / 8, 1), out};

    if (!t.done)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the outline of a mask of %u x %u",
                  m->width, m->height);
    PSEG_TRY(pseg_buf_append(out, "[", 1, err));
    for (uint32_t y = 0; y < m->height; y++)
        PSEG_TRY(trace_row(&t, y, err));
    if (out->data[out->len - 1] == ',')
        out->data[out->len - 1] = ']';
    else
        PSEG_TRY(pseg_buf_append(out, "]", 1, err));
out:
    if (rc != PSEG_OK)
        out->len = before;
    pseg_free(t.done);
    return rc;
}
