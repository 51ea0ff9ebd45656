/* What it costs to decode in a process that is locked in: `test_decode_bench [FILE [N]]` prints the
 * median time of N rounds here and there, and how many images a second N decoders give (CTest runs
 * a few rounds on a small fixture). */
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "worker/decode/decoders.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE = 224, MAX_ROUNDS = 1000 };

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    const char *path =
        argc > 1 ? argv[1] : PSEG_TEST_SOURCE_DIR "/tests/unit/data/image/progressive.jpg";
    int rounds = argc > 2 ? atoi(argv[2]) : 5;
    static float chw[3 * SIDE * SIDE];
    static int64_t us[2][MAX_ROUNDS];
    pseg_decoders_options o = PSEG_DECODERS_OPTIONS_DEFAULT;
    pseg_err e = PSEG_ERR_INIT;
    pseg_image_prepared p = {0};
    pseg_decoders *d = NULL;
    uint8_t *data = NULL;
    size_t len = 0;

    if (rounds < 1 || rounds > MAX_ROUNDS)
        rounds = MAX_ROUNDS;
    o.how = (pseg_preprocess){
        .fit = PSEG_IMAGE_SQUASH, .width = SIDE, .height = SIDE, .std = {1, 1, 1}};
    o.program = PSEG_TEST_BINARY_DIR "/bin/pseg-decode";
    int failed = pseg_image_init(&e) || pseg_file_read(&data, &len, path, 1 << 28, &e) ||
                 pseg_decoders_open(&d, &o, &e);
    pseg_image_file file = {data, len};
    for (int i = 0; i < 2 * rounds && !failed; i++) {
        int64_t begin = pseg_clock_mono_us();
        failed = i % 2 ? pseg_decoders_prepare(d, &p, chw, "", file, &e)
                       : pseg_image_prepare(&p, chw, file, &o.limits, &o.how, &e);
        us[i % 2][i / 2] = pseg_clock_mono_us() - begin;
    }
    if (!failed) {
        for (int k = 0; k < 2; k++)
            qsort(us[k], (size_t)rounds, sizeof **us, by_value);
        printf("%u x %u, %zu bytes, %d rounds: here %.2f ms, locked in %.2f ms\n", p.width,
               p.height, len, rounds, (double)us[0][rounds / 2] / 1e3,
               (double)us[1][rounds / 2] / 1e3);
    } else {
        fprintf(stderr, "%s\n", e.msg);
    }
    pseg_decoders_close(d);
    pseg_free(data);
    pseg_image_shutdown();
    return failed != 0;
}
