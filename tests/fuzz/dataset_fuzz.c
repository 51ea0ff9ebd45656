/* Any bytes as a data set of JSON: lines, or COCO's file if they begin with '{"' and hold no line
 * with an image. Masks of what was read are decoded where they are small. */
#include "common/base/err.h"
#include "tests/fuzz/fuzz_files.h"
#include "worker/data/builder.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
pseg_status __wrap_spool_open(spool *s, pseg_err *err);
void __wrap_spool_close(spool *s);

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

/* One temporary file for all the sets, emptied instead of made anew (--wrap). */
pseg_status __wrap_spool_open(spool *s, pseg_err *err)
{
    static FILE *only;

    (void)err;
    if (!only && !(only = tmpfile()))
        abort();
    rewind(only);
    *s = (spool){.f = only};
    return PSEG_OK;
}

void __wrap_spool_close(spool *s)
{
    *s = (spool){0};
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const pseg_data_format formats[] = {PSEG_DATA_JSONL, PSEG_DATA_COCO};
    pseg_err err = PSEG_ERR_INIT;

    fuzz_files_set("set", data, n);
    for (size_t i = 0; i < 2; i++) {
        pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
        pseg_dataset *d;
        o.format = formats[i];
        if (pseg_dataset_open(&d, FUZZ_FILES "/set", &o, &err) != PSEG_OK)
            continue;
        read_all(d);
        pseg_dataset_close(d);
    }
    return 0;
}
