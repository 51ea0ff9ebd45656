/* The files that show a result: original, mask, overlay, and all three side by side. Used by
 * `pseg segment` and `pseg run` alike, so that the same result gives the same bytes. */
#ifndef PSEG_SHOW_SHOW_H
#define PSEG_SHOW_SHOW_H

#include "common/base/err.h"
#include "common/image/image.h"
#include "common/mask/mask.h"

typedef struct pseg_show {
    const char *folder; /* made if it is not there */
    bool side_by_side;
    const void *encoded; /* the photo's file, copied as it is; borrowed */
    size_t encoded_len;
    const pseg_image *photo;
    size_t n; /* masks in all: with one, names have no number */
} pseg_show;

/* Paths of what was written; caller frees each with pseg_free. */
typedef struct pseg_shown {
    char *mask, *overlay, *side_by_side;
} pseg_shown;
void pseg_shown_free(pseg_shown *s);

/* Writes original.EXT once; *path is the caller's to free with pseg_free. */
pseg_status pseg_show_original(char **path, const pseg_show *s, pseg_err *err);
/* Writes mask[-I].png, overlay[-I].png and, if asked, side-by-side[-I].png. */
pseg_status pseg_show_mask(pseg_shown *out, const pseg_show *s, size_t index, const pseg_mask *m,
                           pseg_err *err);

#endif
