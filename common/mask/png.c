#include "common/mask/mask.h"
#include "common/base/alloc.h"

#include <png.h>
#include <setjmp.h>
#include <string.h>

/* What libpng's callbacks reach. */
typedef struct sink {
    pseg_buf *out;
    pseg_err *err;
    pseg_status rc;
} sink;

static void on_error(png_structp png, png_const_charp message)
{
    sink *s = png_get_error_ptr(png);

    if (s->rc == PSEG_OK)
        s->rc = pseg_err_set(s->err, PSEG_R_INTERNAL, 0, PSEG_HERE, "png: %s", message);
    longjmp(png_jmpbuf(png), 1);
}

static void on_warning(png_structp png, png_const_charp message)
{
    (void)png;
    (void)message;
}

static void on_write(png_structp png, png_bytep data, png_size_t n)
{
    sink *s = png_get_io_ptr(png);

    s->rc = pseg_buf_append(s->out, data, n, s->err);
    if (s->rc != PSEG_OK)
        png_error(png, "no room");
}

static void on_flush(png_structp png)
{
    (void)png;
}

/* Rows by a function, so that a mask's 0 and 1 need no second picture of 0 and 255. */
typedef void (*row_fn)(uint8_t *row, const void *from, uint32_t y);

static pseg_status write_png(pseg_buf *out, uint32_t width, uint32_t height, int channels,
                             int level, row_fn fill, const void *from, pseg_err *err)
{
    sink s = {out, err, PSEG_OK};
    size_t before = out->len;
    png_infop info = NULL;
    uint8_t *volatile row = pseg_malloc((size_t)width * (size_t)channels);
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &s, on_error, on_warning);

    if (png)
        info = png_create_info_struct(png);
    if (!png || !info || !row) {
        s.rc = pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE,
                            "no memory to write a PNG of %u x %u", width, height);
    } else if (setjmp(png_jmpbuf(png)) == 0) {
        png_set_user_limits(png, 0x7FFFFFFF, 0x7FFFFFFF);
        png_set_write_fn(png, &s, on_write, on_flush);
        png_set_IHDR(png, info, width, height, 8,
                     channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                     PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
        png_set_compression_level(png, level);
        if (channels == 1)
            png_set_filter(png, 0, PNG_FILTER_NONE);
        png_write_info(png, info);
        for (uint32_t y = 0; y < height; y++) {
            fill(row, from, y);
            png_write_row(png, row);
        }
        png_write_end(png, info);
    }
    png_destroy_write_struct(&png, &info);
    pseg_free(row);
    if (s.rc != PSEG_OK)
        out->len = before;
    return s.rc;
}

static void mask_row(uint8_t *row, const void *from, uint32_t y)
{
    const pseg_mask *m = from;
    const uint8_t *p = m->data + (size_t)y * m->width;

    for (uint32_t x = 0; x < m->width; x++)
        row[x] = (uint8_t)-p[x];
}

pseg_status pseg_mask_png(pseg_buf *out, const pseg_mask *m, pseg_err *err)
{
    return write_png(out, m->width, m->height, 1, 2, mask_row, m, err);
}

typedef struct picture {
    const uint8_t *pixels;
    size_t stride;
} picture;

static void picture_row(uint8_t *row, const void *from, uint32_t y)
{
    const picture *p = from;

    memcpy(row, p->pixels + y * p->stride, p->stride);
}

pseg_status pseg_png_write(pseg_buf *out, const uint8_t *pixels, uint32_t width, uint32_t height,
                           int channels, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    picture p = {pixels, (size_t)width * (size_t)channels};

    if (width == 0 || height == 0 || (channels != 1 && channels != 3))
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "cannot write a PNG of %u x %u with %d channels",
                  width, height, channels);
    rc = write_png(out, width, height, channels, 6, picture_row, &p, err);
out:
    return rc;
}
