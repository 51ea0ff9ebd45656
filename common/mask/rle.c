/* COCO's compressed run-length encoding: runs of 0 and 1 in turn down the columns, each written as
 * base-32 digits from '0' on, low digit first, 0x20 meaning "more", 0x10 in the last digit the
 * sign; from the fourth run on, the difference to the run two before is written (cocoapi,
 * maskApi.c, rleToString and rleFrString).
 *
 * Memory lies along rows and the runs along columns. Both ways go through the changes from a pixel
 * to the one below it, which are few and found row by row. */
#include "common/mask/mask_impl.h"
#include "common/base/alloc.h"

#include <endian.h>
#include <string.h>

typedef struct writer {
    pseg_buf *out;
    uint32_t previous[2]; /* the two runs before */
    size_t n;
    uint64_t start; /* of the run that is not written yet, counted down the columns */
} writer;

/* Ends the run at position `end`. */
static pseg_status write_run(writer *w, uint64_t end, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t run = (uint32_t)(end - w->start);
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
    w->start = end;
    w->n++;
out:
    return rc;
}

/* Columns x0 .. x0 + n - 1 of a mask, and where they change. */
typedef struct strip {
    const pseg_mask *m;
    uint32_t x0, n;
    size_t *end;  /* [n + 1]: column i's changes end at end[i]; before the strip is filled, begin */
    uint32_t *at; /* rows, in order within a column */
    size_t at_cap;
} strip;

/* Without `at`, counts changes into end[i + 1]; with it, writes them behind end[i] and moves it. */
static void find_changes(const strip *s, uint32_t *at)
{
    for (uint32_t y = 1; y < s->m->height; y++) {
        const uint8_t *row = s->m->data + (size_t)y * s->m->width + s->x0;
        const uint8_t *above = row - s->m->width;
        for (uint32_t i = 0; i < s->n; i += 8) {
            uint64_t a = 0, b = 0;
            size_t n = s->n - i < 8 ? s->n - i : 8;
            if (n == 8) {
                memcpy(&a, row + i, 8);
                memcpy(&b, above + i, 8);
            } else {
                memcpy(&a, row + i, n);
                memcpy(&b, above + i, n);
            }
            for (uint64_t d = le64toh(a ^ b); d; d &= d - 1) {
                uint32_t column = i + (uint32_t)__builtin_ctzll(d) / 8;
                if (at)
                    at[s->end[column]++] = y;
                else
                    s->end[column + 1]++;
            }
        }
    }
}

static pseg_status find_strip(strip *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    memset(s->end, 0, (s->n + 1) * sizeof *s->end);
    find_changes(s, NULL);
    for (uint32_t i = 0; i < s->n; i++)
        s->end[i + 1] += s->end[i];
    if (s->end[s->n] > s->at_cap) {
        pseg_free(s->at);
        s->at_cap = s->end[s->n];
        s->at = pseg_calloc(s->at_cap, sizeof *s->at);
        if (!s->at)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to encode a mask of %u x %u", s->m->width,
                      s->m->height);
    }
    find_changes(s, s->at);
out:
    return rc;
}

/* So many pixels a strip bound what the changes take, 4 bytes each. */
enum { STRIP_PIXELS = 1 << 22, MIN_STRIP = 8 };

pseg_status pseg_mask_rle(pseg_buf *out, const pseg_mask *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    writer w = {.out = out};
    size_t before = out->len;
    uint32_t most = STRIP_PIXELS / m->height > MIN_STRIP ? STRIP_PIXELS / m->height : MIN_STRIP;
    strip s = {.m = m};
    uint8_t value = 0;

    most = most < m->width ? most : m->width;
    s.end = pseg_calloc((size_t)most + 1, sizeof *s.end);
    if (!s.end)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to encode a mask of %u x %u", m->width,
                  m->height);
    for (s.x0 = 0; s.x0 < m->width; s.x0 += s.n) {
        s.n = m->width - s.x0 < most ? m->width - s.x0 : most;
        PSEG_TRY(find_strip(&s, err));
        size_t k = 0;
        for (uint32_t i = 0; i < s.n; i++) {
            uint64_t top = (uint64_t)(s.x0 + i) * m->height;
            if (m->data[s.x0 + i] != value)
                PSEG_TRY(write_run(&w, top, err));
            size_t first = k;
            for (; k < s.end[i]; k++)
                PSEG_TRY(write_run(&w, top + s.at[k], err));
            value = (uint8_t)(m->data[s.x0 + i] ^ ((k - first) & 1));
        }
    }
    PSEG_TRY(write_run(&w, (uint64_t)m->width * m->height, err));
out:
    if (rc != PSEG_OK)
        out->len = before;
    pseg_free(s.end);
    pseg_free(s.at);
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

/* Flips, in a mask of changes, what lies between two positions counted down the columns. */
static void flip_run(pseg_mask *m, uint64_t begin, uint64_t end)
{
    uint64_t x = begin / m->height, y = begin % m->height;

    while (begin < end) {
        uint64_t n = m->height - y < end - begin ? m->height - y : end - begin;
        m->data[y * m->width + x] ^= 1;
        if (y + n < m->height)
            m->data[(y + n) * m->width + x] ^= 1;
        begin += n;
        y = 0;
        x++;
    }
}

pseg_status pseg_mask_from_rle(pseg_mask **out, const char *counts, uint32_t width, uint32_t height,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t all = (uint64_t)width * height, at = 0;
    int64_t previous[2] = {0, 0}, run;
    pseg_mask *m = NULL;
    size_t n = 0;

    *out = NULL;
    PSEG_TRY(mask_new(&m, width, height, err));
    for (const char *s = counts; *s; n++) {
        if (!read_run(&run, &s))
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "run %zu of the counts is malformed", n);
        if (n > 2)
            run += previous[n & 1];
        if (run < 0 || (uint64_t)run > all - at)
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "run %zu of the counts leaves the %u x %u mask",
                      n, width, height);
        if (n & 1)
            flip_run(m, at, at + (uint64_t)run);
        previous[n & 1] = run;
        at += (uint64_t)run;
    }
    if (at != all)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "the counts cover %llu of %llu pixels",
                  (unsigned long long)at, (unsigned long long)all);
    for (uint32_t y = 0; y < height; y++) {
        uint8_t *row = m->data + (size_t)y * width;
        for (uint32_t x = 0; x < width && y > 0; x++)
            row[x] ^= row[(ptrdiff_t)x - (ptrdiff_t)width];
        mask_measure_row(m, y);
    }
    *out = m;
    m = NULL;
out:
    pseg_mask_free(m);
    return rc;
}
