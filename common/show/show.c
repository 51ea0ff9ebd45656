#include "common/show/show.h"
#include "common/base/alloc.h"
#include "common/base/file.h"

#include <string.h>

void pseg_shown_free(pseg_shown *s)
{
    pseg_free(s->mask);
    pseg_free(s->overlay);
    pseg_free(s->side_by_side);
    *s = (pseg_shown){NULL, NULL, NULL};
}

static pseg_status path_of(char **out, const pseg_show *s, const char *name, size_t index,
                           const char *ext, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *out = index == SIZE_MAX || s->n == 1
               ? pseg_asprintf("%s/%s.%s", s->folder, name, ext)
               : pseg_asprintf("%s/%s-%zu.%s", s->folder, name, index, ext);
    if (!*out)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a path");
out:
    return rc;
}

static const char *extension_of(const uint8_t *d, size_t n)
{
    if (n >= 3 && d[0] == 0xFF && d[1] == 0xD8)
        return "jpg";
    if (n >= 4 && memcmp(d, "\x89PNG", 4) == 0)
        return "png";
    if (n >= 4 && memcmp(d, "RIFF", 4) == 0)
        return "webp";
    if (n >= 4 && (memcmp(d, "II*", 3) == 0 || memcmp(d, "MM", 2) == 0))
        return "tif";
    return "heic";
}

pseg_status pseg_show_original(char **path, const pseg_show *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    *path = NULL;
    PSEG_TRY(pseg_dir_make(s->folder, err));
    PSEG_TRY(path_of(path, s, "original", SIZE_MAX, extension_of(s->encoded, s->encoded_len), err));
    PSEG_TRY(pseg_file_write(*path, s->encoded, s->encoded_len, err));
out:
    if (rc != PSEG_OK) {
        pseg_free(*path);
        *path = NULL;
    }
    return rc;
}

static pseg_status write_picture(const char *path, const pseg_image *i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_buf b;

    pseg_buf_init(&b, (size_t)1 << 31);
    PSEG_TRY(pseg_png_write(&b, i->rgb, i->width, i->height, 3, err));
    PSEG_TRY(pseg_file_write(path, b.data, b.len, err));
out:
    pseg_buf_deinit(&b);
    return rc;
}

pseg_status pseg_show_mask(pseg_shown *out, const pseg_show *s, size_t index, const pseg_mask *m,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image *overlay = NULL, *mask = NULL, *beside = NULL;
    pseg_buf png;

    *out = (pseg_shown){NULL, NULL, NULL};
    pseg_buf_init(&png, (size_t)1 << 31);
    if (m->width != s->photo->width || m->height != s->photo->height)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "mask of %u x %u for a photo of %u x %u", m->width, m->height,
                  s->photo->width, s->photo->height);
    PSEG_TRY(pseg_dir_make(s->folder, err));
    PSEG_TRY(path_of(&out->mask, s, "mask", index, "png", err));
    PSEG_TRY(pseg_mask_png(&png, m, err));
    PSEG_TRY(pseg_file_write(out->mask, png.data, png.len, err));
    PSEG_TRY(path_of(&out->overlay, s, "overlay", index, "png", err));
    PSEG_TRY(pseg_image_overlay(&overlay, s->photo, m->data, err));
    PSEG_TRY(write_picture(out->overlay, overlay, err));
    if (s->side_by_side) {
        PSEG_TRY(path_of(&out->side_by_side, s, "side-by-side", index, "png", err));
        PSEG_TRY(pseg_image_of_mask(&mask, m->data, m->width, m->height, err));
        PSEG_TRY(pseg_image_beside(&beside, (const pseg_image *const[]){s->photo, mask, overlay}, 3,
                                   err));
        PSEG_TRY(write_picture(out->side_by_side, beside, err));
    }
out:
    pseg_buf_deinit(&png);
    pseg_image_free(overlay);
    pseg_image_free(mask);
    pseg_image_free(beside);
    if (rc != PSEG_OK)
        pseg_shown_free(out);
    return rc;
}
