/* Pictures as files for other programs to show. */
#include "common/image/image.h"

#include <vips/vips.h>

pseg_status pseg_image_jpeg(pseg_buf *out, const pseg_image *i, int quality, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    void *data = NULL;
    size_t n = 0;
    VipsImage *in = vips_image_new_from_memory(i->rgb, 3 * (size_t)i->width * i->height,
                                               (int)i->width, (int)i->height, 3, VIPS_FORMAT_UCHAR);

    if (!in)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to encode a picture");
    in->Type = VIPS_INTERPRETATION_sRGB;
    if (vips_jpegsave_buffer(in, &data, &n, "Q", quality, "optimize_coding", TRUE, NULL)) {
        vips_error_clear();
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "libvips cannot encode a picture of %u x %u as JPEG",
                  i->width, i->height);
    }
    PSEG_TRY(pseg_buf_append(out, data, n, err));
out:
    if (in)
        g_object_unref(in);
    g_free(data);
    return rc;
}
