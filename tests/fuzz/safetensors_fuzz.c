/* Any bytes as a .safetensors file, and as the index of shards beside one that is whole. What opens
 * has tensors that lie inside the file, and PSEG's own configuration reads from it or is refused.
 */
#include "tests/fuzz/fuzz_files.h"
#include "worker/model/config.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_error(pseg_status rc, const pseg_err *e)
{
    if (rc >= 0 || e->code != rc || !e->msg[0] || strchr(e->msg, '\n'))
        abort();
}

/* Reads every byte of every tensor: a sanitizer sees what lies outside. */
static void use(const pseg_tensors *t)
{
    pseg_head_config head;
    pseg_err e = PSEG_ERR_INIT;
    unsigned sum = 0;
    char shape[64];

    for (size_t i = 0; i < pseg_tensors_count(t); i++) {
        const pseg_tensor *x = pseg_tensors_at(t, i);
        uint64_t n = 1;
        for (uint32_t k = 0; k < x->rank; k++)
            n *= x->dims[k];
        if (n != x->n || x->rank > PSEG_TENSOR_MAX_RANK || pseg_tensors_find(t, x->name) == NULL)
            abort();
        for (uint64_t k = 0; k < x->bytes; k++)
            sum += x->data[k];
        pseg_tensor_shape(shape, sizeof shape, x->dims, x->rank);
    }
    pseg_status rc = pseg_head_config_read(&head, t, &e);
    if (rc != PSEG_OK)
        check_error(rc, &e);
    if (sum == 12345678)
        puts(shape);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char shard[] = "\x50\0\0\0\0\0\0\0"
                                "{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}"
                                "                        ABCD";
    pseg_tensors *t = NULL;
    pseg_err e = PSEG_ERR_INIT;

    fuzz_files_clear();
    fuzz_files_set("model.safetensors", data, size);
    pseg_status rc = pseg_tensors_open_file(&t, FUZZ_FILES "/model.safetensors", &e);
    if (rc == PSEG_OK)
        use(t);
    else
        check_error(rc, &e);
    pseg_tensors_close(t);
    if (size && data[0] == '{') {
        fuzz_files_clear();
        fuzz_files_set("model-00001-of-00001.safetensors", shard, sizeof shard - 1);
        fuzz_files_set("model.safetensors.index.json", data, size);
        e = (pseg_err)PSEG_ERR_INIT;
        rc = pseg_tensors_open_folder(&t, FUZZ_FILES, &e);
        if (rc == PSEG_OK)
            use(t);
        else
            check_error(rc, &e);
        pseg_tensors_close(t);
    }
    return 0;
}
