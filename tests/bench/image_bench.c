/* What it costs to bring a photo to a model's input, step by step, on one core: `test_image_bench
 * [FILE [N]]` prints the median of N rounds (CTest runs one on a small fixture). Fails if the two
 * exact ways differ. */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/image/image.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SIDE = 224, MAX_ROUNDS = 100 };
enum { DECODE, PREPROCESS, PREPARE, FAST, N_STEPS };

static const char *const names[] = {"decode", "preprocess", "both at once", "both, fast"};

static double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

typedef struct outcome {
    double ms[N_STEPS], max, mean; /* max, mean: |fast - exact|, levels */
    double resize_ms[2];           /* of the last two steps */
    uint32_t width, height, shrink;
} outcome;

static pseg_status one_round(outcome *o, pseg_image_file file, pseg_err *err)
{
    static float whole[3 * SIDE * SIDE], rows[3 * SIDE * SIDE], fast[3 * SIDE * SIDE];
    const pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
    pseg_preprocess how = {PSEG_IMAGE_SQUASH, SIDE, SIDE, 0, {0}, {1, 1, 1}, false};
    pseg_status rc = PSEG_OK;
    pseg_image *photo = NULL;
    pseg_image_prepared p;
    double t[N_STEPS + 1], sum = 0;
    float rect[4];

    t[0] = now_ms();
    PSEG_TRY(pseg_image_decode(&photo, file.data, file.len, &limits, err));
    t[1] = now_ms();
    PSEG_TRY(pseg_image_preprocess(whole, rect, photo, &how, err));
    t[2] = now_ms();
    PSEG_TRY(pseg_image_prepare(&p, rows, file, &limits, &how, err));
    t[3] = now_ms();
    o->resize_ms[0] = (double)p.resize_us / 1e3;
    how.may_shrink = true;
    PSEG_TRY(pseg_image_prepare(&p, fast, file, &limits, &how, err));
    t[4] = now_ms();
    o->resize_ms[1] = (double)p.resize_us / 1e3;
    if (memcmp(whole, rows, sizeof whole) != 0)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "row by row the numbers are others");
    o->max = 0;
    for (size_t i = 0; i < 3 * SIDE * SIDE; i++) {
        double d = fabs(fast[i] - whole[i]) * 255;
        o->max = d > o->max ? d : o->max;
        sum += d;
    }
    o->mean = sum / (3 * SIDE * SIDE);
    for (int k = 0; k < N_STEPS; k++)
        o->ms[k] = t[k + 1] - t[k];
    o->width = p.width;
    o->height = p.height;
    o->shrink = p.shrink;
out:
    pseg_image_free(photo);
    return rc;
}

int main(int argc, char **argv)
{
    const char *path =
        argc > 1 ? argv[1] : PSEG_TEST_SOURCE_DIR "/tests/unit/data/image/progressive.jpg";
    int rounds = argc > 2 ? atoi(argv[2]) : 1;
    static double ms[N_STEPS][MAX_ROUNDS];
    pseg_err err = PSEG_ERR_INIT;
    pseg_status rc = PSEG_OK;
    uint8_t *data = NULL;
    pseg_image_file file = {0};
    outcome o = {0};

    if (rounds < 1 || rounds > MAX_ROUNDS) {
        fprintf(stderr, "usage: %s [FILE [ROUNDS from 1 to %d]]\n", argv[0], MAX_ROUNDS);
        return 2;
    }
    PSEG_TRY(pseg_image_init(&err));
    PSEG_TRY(pseg_file_read(&data, &file.len, path, (size_t)64 << 20, &err));
    file.data = data;
    for (int i = 0; i < rounds; i++) {
        PSEG_TRY(one_round(&o, file, &err));
        for (int k = 0; k < N_STEPS; k++)
            ms[k][i] = o.ms[k];
    }
    printf("%u x %u to %d x %d; fast: 1/%u, off by %.2f levels, %.1f at most\n", o.width, o.height,
           SIDE, SIDE, o.shrink, o.mean, o.max);
    for (int k = 0; k < N_STEPS; k++) {
        qsort(ms[k], (size_t)rounds, sizeof(double), by_value);
        printf("%-12s %8.2f ms\n", names[k], ms[k][rounds / 2]);
    }
    printf("of the last two, in the last round, resampling %.2f and %.2f ms\n", o.resize_ms[0],
           o.resize_ms[1]);
out:
    if (rc != PSEG_OK)
        fprintf(stderr, "%s\n", err.msg);
    pseg_free(data);
    return rc == PSEG_OK ? 0 : 1;
}
