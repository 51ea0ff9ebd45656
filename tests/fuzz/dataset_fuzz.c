/* Any bytes as a data set of JSON: lines, or COCO's file if they begin with '{"' and hold no line
 * with an image. Masks of what was read are decoded where they are small. */
#include "common/base/err.h"
#include "worker/data/dataset.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void read_all(pseg_dataset *d)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_data_record *r;
    pseg_mask *m;

    for (size_t i = 0; i < pseg_dataset_n_images(d) && i < 20; i++) {
        if (pseg_dataset_read(&r, d, i, &err) != PSEG_OK)
            continue;
        for (uint32_t k = 0; k < r->n_samples && k < 20; k++) {
            const pseg_data_mask *mask = &r->samples[k].mask;
            if ((uint64_t)mask->width * mask->height <= 1 << 20 &&
                pseg_data_mask_decode(&m, mask, &err) == PSEG_OK)
                pseg_mask_free(m);
        }
        pseg_data_record_free(r);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const pseg_data_format formats[] = {PSEG_DATA_JSONL, PSEG_DATA_COCO};
    pseg_err err = PSEG_ERR_INIT;
    int fd = memfd_create("set", 0);
    char path[64];

    if (fd < 0 || write(fd, data, n) != (ssize_t)n)
        return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    for (size_t i = 0; i < 2; i++) {
        pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
        pseg_dataset *d;
        o.format = formats[i];
        if (pseg_dataset_open(&d, path, &o, &err) != PSEG_OK)
            continue;
        read_all(d);
        pseg_dataset_close(d);
    }
    close(fd);
    return 0;
}
