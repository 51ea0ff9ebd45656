#include "tests/golden/grads_file.h"

#include "worker/model/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH PSEG_TEST_SOURCE_DIR "/tests/golden/data/grads.safetensors"

static pseg_tensors *file;
static size_t n_seen;

void grads_open(void)
{
    pseg_err err = PSEG_ERR_INIT;

    if (pseg_tensors_open_file(&file, PATH, &err) != PSEG_OK) {
        printf("FAIL %s: %s\n", PATH, err.msg);
        exit(1);
    }
}

void grads_close(void)
{
    pseg_tensors_close(file);
}

static void *values(size_t *n, const char *test_case, const char *name, pseg_tensor_type type,
                    size_t size)
{
    char key[96];

    snprintf(key, sizeof key, "%s.%s", test_case, name);
    const pseg_tensor *t = pseg_tensors_find(file, key);
    if (!t)
        return NULL;
    void *out = malloc(t->n * size + 1);
    if (t->type != type || !out) {
        printf("FAIL %s: type %d\n", key, (int)t->type);
        exit(1);
    }
    memcpy(out, t->data, t->n * size);
    *n = (size_t)t->n;
    n_seen++;
    return out;
}

float *grads_floats(size_t *n, const char *test_case, const char *name)
{
    return values(n, test_case, name, PSEG_TENSOR_F32, sizeof(float));
}

int64_t *grads_ints(size_t *n, const char *test_case, const char *name)
{
    return values(n, test_case, name, PSEG_TENSOR_I64, sizeof(int64_t));
}

void grads_counts(size_t *all, size_t *seen)
{
    *all = pseg_tensors_count(file);
    *seen = n_seen;
}
