/* Any text as COCO's compressed counts of a mask of any size (two bytes each for width and height).
 * A mask that comes out is consistent, and writes counts that read as itself. */
#include "common/mask/mask.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_mask(const pseg_mask *m, uint32_t width, uint32_t height)
{
    uint64_t area = 0;

    if (m->width != width || m->height != height || m->box_x + m->box_width > width ||
        m->box_y + m->box_height > height)
        abort();
    for (uint64_t i = 0; i < (uint64_t)width * height; i++) {
        if (m->data[i] > 1)
            abort();
        area += m->data[i];
    }
    if (area != m->area || (m->box_width == 0) != (area == 0))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char counts[1 << 16];
    pseg_mask *m = NULL, *back = NULL;
    pseg_err e = PSEG_ERR_INIT;
    pseg_buf b;

    if (size < 4 || size - 4 >= sizeof counts)
        return 0;
    uint32_t width = data[0] | (uint32_t)data[1] << 8, height = data[2] | (uint32_t)data[3] << 8;
    if ((uint64_t)width * height > 1 << 22)
        height &= 63;
    memcpy(counts, data + 4, size - 4);
    counts[size - 4] = '\0';
    pseg_buf_init(&b, 64 << 20);
    pseg_status rc = pseg_mask_from_rle(&m, counts, width, height, &e);
    if (rc == PSEG_OK) {
        check_mask(m, width, height);
        if (pseg_mask_rle(&b, m, &e) != PSEG_OK || pseg_buf_append(&b, "", 1, &e) != PSEG_OK ||
            pseg_mask_from_rle(&back, (const char *)b.data, width, height, &e) != PSEG_OK ||
            pseg_mask_iou(m, back) != 1)
            abort();
    } else if (m || e.code != rc || !e.msg[0]) {
        abort();
    }
    pseg_mask_free(m);
    pseg_mask_free(back);
    pseg_buf_deinit(&b);
    return 0;
}
