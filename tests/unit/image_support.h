/* Fixtures of the image tests: tests/unit/data/image, made by make_images.py there. */
#ifndef PSEG_TESTS_UNIT_IMAGE_SUPPORT_H
#define PSEG_TESTS_UNIT_IMAGE_SUPPORT_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/base/hash.h"
#include "common/image/image.h"

#include <stdlib.h>
#include <string.h>

/* A fixture's bytes; freed with pseg_free. */
static inline uint8_t *read_fixture(const char *name, size_t *n)
{
    char *path = pseg_asprintf("%s/tests/unit/data/image/%s", PSEG_TEST_SOURCE_DIR, name);
    uint8_t *data = NULL;
    pseg_err err = PSEG_ERR_INIT;

    assert_non_null(path);
    if (pseg_file_read(&data, n, path, (size_t)64 << 20, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    pseg_free(path);
    return data;
}

/* splitmix64 as bytes, the same as in make_images.py; hard: 0 and 255 only. Freed with pseg_free.
 */
static inline uint8_t *noise(size_t n, bool hard)
{
    uint8_t *out = pseg_malloc(n + 8);

    assert_non_null(out);
    for (uint64_t i = 0; i * 8 < n; i++) {
        uint64_t z = (i + 1) * UINT64_C(0x9E3779B97F4A7C15);

        z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
        z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
        z ^= z >> 31;
        for (size_t k = 0; k < 8; k++) {
            uint8_t b = (uint8_t)(z >> (8 * k));

            out[i * 8 + k] = hard ? (b >= 128 ? 255 : 0) : b;
        }
    }
    return out;
}

static inline void hex_digest(char out[PSEG_SHA256_HEX + 1], const void *data, size_t n)
{
    uint8_t d[PSEG_SHA256_BYTES];

    pseg_sha256_of(d, data, n);
    pseg_hex(out, d, sizeof d);
}

#endif
