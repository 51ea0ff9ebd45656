#include "common/mask/mask_impl.h"
#include "common/base/alloc.h"

#include <endian.h>
#include <string.h>

pseg_status mask_check_size(uint32_t width, uint32_t height, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t n = (uint64_t)width * height;

    if (n == 0 || n > PSEG_MASK_MAX_PIXELS)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "a mask of %u x %u is out of range: it must have from 1 to %llu pixels", width,
                  height, (unsigned long long)PSEG_MASK_MAX_PIXELS);
out:
    return rc;
}

pseg_status mask_new(pseg_mask **out, uint32_t width, uint32_t height, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mask *m = NULL;

    *out = NULL;
    PSEG_TRY(mask_check_size(width, height, err));
    m = pseg_calloc(1, sizeof *m);
    if (m)
        m->data = pseg_calloc(height, width);
    if (!m || !m->data)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a mask of %u x %u", width, height);
    m->width = width;
    m->height = height;
    *out = m;
    m = NULL;
out:
    pseg_mask_free(m);
    return rc;
}

void pseg_mask_free(pseg_mask *m)
{
    if (!m)
        return;
    pseg_free(m->data);
    pseg_free(m);
}

/* Ones in n bytes of 0 and 1: eight sums at a time, folded before one of them can overflow. */
static uint64_t count_ones(const uint8_t *p, size_t n)
{
    uint64_t all = 0;

    while (n >= 8) {
        size_t words = n / 8 < 255 ? n / 8 : 255;
        uint64_t sums = 0, word;
        for (size_t i = 0; i < words; i++) {
            memcpy(&word, p + 8 * i, 8);
            sums += word;
        }
        for (int i = 0; i < 64; i += 8)
            all += sums >> i & 0xFF;
        p += 8 * words;
        n -= 8 * words;
    }
    while (n--)
        all += *p++;
    return all;
}

void mask_measure_row(pseg_mask *m, uint32_t y)
{
    const uint8_t *row = m->data + (size_t)y * m->width;
    const uint8_t *first = memchr(row, 1, m->width);

    if (!first)
        return;
    uint32_t x0 = (uint32_t)(first - row);
    uint32_t x1 = (uint32_t)((const uint8_t *)memrchr(row, 1, m->width) - row) + 1;
    if (m->area) {
        uint32_t end = m->box_x + m->box_width;
        x0 = x0 < m->box_x ? x0 : m->box_x;
        x1 = x1 > end ? x1 : end;
    } else {
        m->box_y = y;
    }
    m->box_x = x0;
    m->box_width = x1 - x0;
    m->box_height = y + 1 - m->box_y;
    m->area += count_ones(row, m->width);
}

pseg_status pseg_mask_from_pixels(pseg_mask **out, const uint8_t *pixels, uint32_t width,
                                  uint32_t height, pseg_err *err)
{
    pseg_status rc = mask_new(out, width, height, err);

    for (uint32_t y = 0; rc == PSEG_OK && y < height; y++) {
        const uint8_t *from = pixels + (size_t)y * width;
        uint8_t *to = (*out)->data + (size_t)y * width;
        for (uint32_t x = 0; x < width; x++)
            to[x] = from[x] != 0;
        mask_measure_row(*out, y);
    }
    return rc;
}

pseg_status pseg_mask_bits(pseg_buf *out, const pseg_mask *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t stride = ((size_t)m->width + 7) / 8;
    uint8_t *at;

    PSEG_TRY(pseg_buf_extend(&at, out, stride * m->height, err));
    for (uint32_t y = 0; y < m->height; y++, at += stride) {
        const uint8_t *row = m->data + (size_t)y * m->width;
        for (size_t x = 0; x < m->width; x += 8) {
            uint64_t eight = 0;
            memcpy(&eight, row + x, m->width - x < 8 ? m->width - x : 8);
            /* Bit k of the factor is set for k = 63 - 9 i: it moves byte i to bit 63 - i. */
            at[x / 8] = (uint8_t)(le64toh(eight) * 0x8040201008040201 >> 56);
        }
    }
out:
    return rc;
}

/* As count_ones, of a & b. */
static uint64_t count_both(const uint8_t *a, const uint8_t *b, size_t n)
{
    uint64_t all = 0;

    while (n >= 8) {
        size_t words = n / 8 < 255 ? n / 8 : 255;
        uint64_t sums = 0, x, y;
        for (size_t i = 0; i < words; i++) {
            memcpy(&x, a + 8 * i, 8);
            memcpy(&y, b + 8 * i, 8);
            sums += x & y;
        }
        for (int i = 0; i < 64; i += 8)
            all += sums >> i & 0xFF;
        a += 8 * words;
        b += 8 * words;
        n -= 8 * words;
    }
    while (n--)
        all += *a++ & *b++;
    return all;
}

uint64_t pseg_mask_overlap(const pseg_mask *a, const pseg_mask *b)
{
    uint32_t x0 = a->box_x > b->box_x ? a->box_x : b->box_x;
    uint32_t y0 = a->box_y > b->box_y ? a->box_y : b->box_y;
    uint32_t ax = a->box_x + a->box_width, bx = b->box_x + b->box_width;
    uint32_t ay = a->box_y + a->box_height, by = b->box_y + b->box_height;
    uint32_t x1 = ax < bx ? ax : bx, y1 = ay < by ? ay : by;
    uint64_t both = 0;

    for (uint32_t y = y0; x0 < x1 && y < y1; y++)
        both += count_both(a->data + (size_t)y * a->width + x0, b->data + (size_t)y * b->width + x0,
                           x1 - x0);
    return both;
}

double pseg_mask_iou(const pseg_mask *a, const pseg_mask *b)
{
    uint64_t both = pseg_mask_overlap(a, b), either = a->area + b->area - both;

    return either ? (double)both / (double)either : 1;
}
