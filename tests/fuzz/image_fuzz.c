/* Any bytes as a photo: the header, then the pixels. What comes out must be what was asked for. */
#include "common/image/image.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    if (pseg_image_init(NULL) != PSEG_OK)
        abort();
    return 0;
}

static void check_error(pseg_status rc, const pseg_err *e)
{
    if (rc >= 0 || e->code != rc || !e->msg[0] || strchr(e->msg, '\n'))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* Small, so that an input that asks for much is refused and the many others run. */
    const pseg_image_limits limits = {
        .max_bytes = 1 << 20, .max_pixels = 1 << 20, .max_side = 4096, .max_frames = 1};
    pseg_image_info info;
    pseg_image *photo;
    pseg_err e = PSEG_ERR_INIT;
    pseg_status rc = pseg_image_probe(&info, data, size, &limits, &e);
    unsigned sum = 0;

    if (rc != PSEG_OK)
        check_error(rc, &e);
    else if (info.width > 4096 || info.height > 4096 ||
             (uint64_t)info.width * info.height > 1 << 20 || info.frames > 1)
        abort();
    pseg_status decoded = pseg_image_decode(&photo, data, size, &limits, &e);
    if (decoded != PSEG_OK) {
        check_error(decoded, &e);
        if (photo)
            abort();
        return 0;
    }
    if (rc != PSEG_OK || photo->width != info.width || photo->height != info.height)
        abort();
    for (size_t i = 0; i < 3 * (size_t)photo->width * photo->height; i++)
        sum += photo->rgb[i];
    pseg_image_free(photo);
    return sum == 1; /* read, so that a block that is too short is noticed */
}
