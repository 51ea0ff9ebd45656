/* Any bytes as a file of packed weights. What opens gives pieces that lie inside the file, or
 * refuses them. Sums are mended as far as they go, so that the checks behind them are reached. */
#include "tests/fuzz/fuzz_files.h"
#include "worker/model/packed.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEADER = 128, ENTRY = 144, TABLE_AT = 32, TABLE_SUM = 40, KEY = 48, HEADER_SUM = 120 };

static const uint8_t key[PSEG_SHA256_BYTES] = {1, 2, 3};

static void mend(uint8_t *file, size_t size)
{
    uint64_t table, sum;

    memcpy(file + KEY, key, sizeof key);
    memcpy(&table, file + TABLE_AT, sizeof table);
    if (table <= size) {
        sum = pseg_packed_sum(file + table, size - table);
        memcpy(file + TABLE_SUM, &sum, sizeof sum);
    }
    sum = pseg_packed_sum(file, HEADER_SUM);
    memcpy(file + HEADER_SUM, &sum, sizeof sum);
}

/* Asks for the pieces by what the table says of them, well or badly. */
static void use(const uint8_t *file, size_t size)
{
    pseg_packed *f = NULL;
    pseg_err e = PSEG_ERR_INIT;
    uint64_t table = 0, bytes, n = 0;
    uint32_t type;
    char name[PSEG_PACKED_NAME] = "";
    const void *at;
    unsigned sum = 0;

    fuzz_files_set("x.packed", file, size);
    pseg_status rc = pseg_packed_open(&f, FUZZ_FILES "/x.packed", key, &e);

    if (rc != PSEG_OK && (f || e.code != rc || !e.msg[0] || strchr(e.msg, '\n')))
        abort();
    if (rc == PSEG_OK) {
        memcpy(&table, file + TABLE_AT, sizeof table);
        n = (size - table) / ENTRY;
    }
    for (uint64_t i = 0; rc == PSEG_OK && i < n; i++) {
        const uint8_t *entry = file + table + i * ENTRY;
        memcpy(&bytes, entry + 8, sizeof bytes);
        memcpy(&type, entry + 24, sizeof type);
        memcpy(name, entry + 32, sizeof name);
        rc = pseg_packed_next(&at, f, name, type, bytes, &e);
        for (size_t k = 0; rc == PSEG_OK && k < bytes; k++)
            sum += ((const uint8_t *)at)[k];
    }
    if (f && rc == PSEG_OK && !pseg_packed_is_used_up(f))
        abort();
    pseg_packed_close(f);
    if (sum == 123456789)
        puts(name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    use(data, size);
    if (size >= HEADER) {
        uint8_t *copy = malloc(size);
        if (!copy)
            abort();
        memcpy(copy, data, size);
        mend(copy, size);
        use(copy, size);
        free(copy);
    }
    return 0;
}
