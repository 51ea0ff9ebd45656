#include "common/mask/mask.h"
#include "common/mask/deflate.h"

#include <png.h>
#include <setjmp.h>
#include <string.h>
#include <zlib.h> /* the name of a strategy */

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

/* libpng's writer into the sink; NULL: no memory. */
static png_structp writer_new(sink *s)
{
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, s, on_error, on_warning);

    if (png) {
        png_set_user_limits(png, 0x7FFFFFFF, 0x7FFFFFFF);
        png_set_write_fn(png, s, on_write, on_flush);
    }
    return png;
}

/* ---- masks ---- */

static void put_u32(uint8_t *to, uint32_t n)
{
    for (int i = 0; i < 4; i++)
        to[i] = (uint8_t)(n >> (24 - 8 * i));
}

/* The mask's rows, each behind the byte that says "no filter". */
static pseg_status deflate_rows(pseg_buf *out, const pseg_mask *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    mask_deflate d;

    PSEG_TRY(mask_deflate_begin(&d, out, err));
    for (uint32_t y = 0; y < m->height; y++) {
        const uint8_t *p = m->data + (size_t)y * m->width, *end = p + m->width;
        PSEG_TRY(mask_deflate_run(&d, 0, 1, err));
        while (p < end) {
            const uint8_t *change = memchr(p, !*p, (size_t)(end - p));
            size_t n = (size_t)((change ? change : end) - p);
            PSEG_TRY(mask_deflate_run(&d, (uint8_t) - *p, n, err));
            p += n;
        }
    }
    PSEG_TRY(mask_deflate_end(&d, err));
out:
    return rc;
}

/* libpng's own rows would go through zlib byte by byte; here it frames the chunks. */
static void write_mask_chunks(png_structp png, const pseg_mask *m, const pseg_buf *rows)
{
    uint8_t header[13] = {[8] = 8, [9] = PNG_COLOR_TYPE_GRAY};

    put_u32(header, m->width);
    put_u32(header + 4, m->height);
    if (setjmp(png_jmpbuf(png)) == 0) {
        png_write_sig(png);
        png_write_chunk(png, (png_const_bytep) "IHDR", header, sizeof header);
        png_write_chunk(png, (png_const_bytep) "IDAT", rows->data, rows->len);
        png_write_chunk(png, (png_const_bytep) "IEND", NULL, 0);
    }
}

pseg_status pseg_mask_png(pseg_buf *out, const pseg_mask *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    sink s = {out, err, PSEG_OK};
    size_t before = out->len;
    png_structp png = NULL;
    pseg_buf rows;

    pseg_buf_init(&rows, PNG_UINT_31_MAX);
    PSEG_TRY(deflate_rows(&rows, m, err));
    png = writer_new(&s);
    if (!png)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to write a PNG of %u x %u", m->width,
                  m->height);
    write_mask_chunks(png, m, &rows);
    PSEG_TRY(s.rc);
out:
    if (rc != PSEG_OK)
        out->len = before;
    png_destroy_write_struct(&png, NULL);
    pseg_buf_deinit(&rows);
    return rc;
}

/* ---- pictures ---- */

/* Strategy and filter for photos: as small as level 6 with every filter to within 5 %, and in a
 * fifteenth of the time (docs/modules/mask.md). */
static void write_rows(png_structp png, png_infop info, const uint8_t *pixels, uint32_t width,
                       uint32_t height, int channels)
{
    size_t stride = (size_t)width * (size_t)channels;

    if (setjmp(png_jmpbuf(png)) == 0) {
        png_set_IHDR(png, info, width, height, 8,
                     channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                     PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
        png_set_compression_level(png, 1);
        png_set_compression_strategy(png, Z_RLE);
        png_set_filter(png, PNG_FILTER_TYPE_BASE, PNG_FILTER_SUB);
        png_write_info(png, info);
        for (uint32_t y = 0; y < height; y++)
            png_write_row(png, pixels + y * stride);
        png_write_end(png, info);
    }
}

pseg_status pseg_png_write(pseg_buf *out, const uint8_t *pixels, uint32_t width, uint32_t height,
                           int channels, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    sink s = {out, err, PSEG_OK};
    size_t before = out->len;
    png_structp png = NULL;
    png_infop info = NULL;

    if (width == 0 || height == 0 || (channels != 1 && channels != 3))
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "cannot write a PNG of %u x %u with %d channels",
                  width, height, channels);
    png = writer_new(&s);
    if (png)
        info = png_create_info_struct(png);
    if (!png || !info)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to write a PNG of %u x %u", width, height);
    write_rows(png, info, pixels, width, height, channels);
    PSEG_TRY(s.rc);
out:
    if (rc != PSEG_OK)
        out->len = before;
    png_destroy_write_struct(&png, &info);
    return rc;
}
