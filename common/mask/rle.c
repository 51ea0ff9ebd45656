/* COCO's compressed run-length encoding: runs of 0 and 1 in turn down the columns, each written as
 * base-32 digits from '0' on, low digit first, 0x20 meaning "more", 0x10 in the last digit the
 * sign; from the fourth run on, the difference to the run two before is written (cocoapi,
 * maskApi.c, rleToString and rleFrString). */
#include "common/mask/mask.h"
#include "common/base/alloc.h"

#include <string.h>

typedef struct writer {
    pseg_buf *out;
    uint32_t previous[2]; /* the two runs before */
    size_t n;
} writer;

static pseg_status write_run(writer *w, uint32_t run, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t x = run;
    uint8_t digits[16];
    size_t n = 0;
    bool more = true;

    if (w->n > 2)
        x -= w->previous[w->n & 1];
    while (more) {
        uint8_t c = (uint8_t)(x & 0x1F);
        x >>= 5;
        more = (c & 0x10) ? x != -1 : x != 0;
        digits[n++] = (uint8_t)((more ? c | 0x20 : c) + 48);
    }
    PSEG_TRY(pseg_buf_append(w->out, digits, n, err));
    w->previous[w->n & 1] = run;
    w->n++;
out:
    return rc;
}

/* A strip of columns is turned first, so that memory is read along its rows. */
enum { STRIP = 64 };

pseg_status pseg_mask_rle(pseg_buf *out, const pseg_mask *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    writer w = {.out = out};
    uint8_t value = 0;
    uint32_t run = 0;
    uint8_t *strip = pseg_malloc((size_t)STRIP * m->height);

    if (!strip)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to encode a mask of %u x %u", m->width,
                  m->height);
    for (uint32_t x0 = 0; x0 < m->width; x0 += STRIP) {
        uint32_t n = m->width - x0 < STRIP ? m->width - x0 : STRIP;
        for (uint32_t y = 0; y < m->height; y++)
            for (uint32_t i = 0; i < n; i++)
                strip[(size_t)i * m->height + y] = m->data[(size_t)y * m->width + x0 + i];
        const uint8_t *p = strip, *end = strip + (size_t)n * m->height;
        while (p < end) {
            const uint8_t *change = memchr(p, !value, (size_t)(end - p));
            run += (uint32_t)((change ? change : end) - p);
            if (!change)
                break;
            PSEG_TRY(write_run(&w, run, err));
            value = !value;
            run = 0;
            p = change;
        }
    }
    PSEG_TRY(write_run(&w, run, err));
out:
    pseg_free(strip);
    return rc;
}

/* One run; *s moves on. false: not a number of this form. */
static bool read_run(int64_t *out, const char **s)
{
    int64_t x = 0;
    int shift = 0;

    for (;;) {
        int c = (unsigned char)**s - 48;
        if (c < 0 || c > 63 || shift > 40)
            return false;
        (*s)++;
        x |= (int64_t)(c & 0x1F) << shift;
        shift += 5;
        if (!(c & 0x20)) {
            if (c & 0x10)
                x |= -((int64_t)1 << shift);
            *out = x;
            return true;
        }
    }
}

pseg_status pseg_mask_from_rle(pseg_mask **out, const char *counts, uint32_t width, uint32_t height,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t all = (uint64_t)width * height, at = 0;
    int64_t previous[2] = {0, 0}, run;
    uint8_t *pixels = NULL;

    *out = NULL;
    if (all == 0 || all > (uint64_t)1 << 30)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "mask of %u x %u is out of range", width, height);
    pixels = pseg_calloc(height, width);
    if (!pixels)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a mask of %u x %u", width, height);
    size_t n = 0;
    for (const char *s = counts; *s; n++) {
        if (!read_run(&run, &s))
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "run %zu of the counts is malformed", n);
        if (n > 2)
            run += previous[n & 1];
        if (run < 0 || (uint64_t)run > all - at)
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "run %zu of the counts leaves the %u x %u mask",
                      n, width, height);
        if (n & 1)
            for (uint64_t i = at; i < at + (uint64_t)run; i++)
                pixels[i % height * width + i / height] = 1;
        previous[n & 1] = run;
        at += (uint64_t)run;
    }
    if (at != all)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "the counts cover %llu of %llu pixels",
                  (unsigned long long)at, (unsigned long long)all);
    PSEG_TRY(pseg_mask_from_pixels(out, pixels, width, height, err));
out:
    pseg_free(pixels);
    return rc;
}
