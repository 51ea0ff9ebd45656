/* What a mask of a 12-megapixel photo costs on one core, step by step: `test_mask_bench [N]` prints
 * the median of N rounds (CTest runs one). Fails if what it timed is not a right mask. */
#include "common/base/alloc.h"
#include "common/base/half.h"
#include "common/mask/mask.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GRID = 64, WIDTH = 4000, HEIGHT = 3000, MAX_ROUNDS = 100 };
enum { MEASURE, MAKE, PNG, RLE, UNRLE, BITS, POLYGON, FLOAT16, PICTURE, N_STEPS };

static const char *const names[] = {"measure", "make",    "PNG",     "RLE",    "from RLE",
                                    "bits",    "polygon", "float16", "RGB PNG"};

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

/* Three bodies of which one has a hole, with the unsteady edge that a model gives. */
static void draw_logits(uint16_t *logits)
{
    uint32_t noise = 1;

    for (int y = 0; y < GRID; y++)
        for (int x = 0; x < GRID; x++) {
            double a = 14 - hypot(x - 22, (y - 30) * 0.8), b = 6 - hypot(x - 50, y - 44),
                   c = 5 - hypot(x - 48, y - 14), hole = hypot(x - 24, y - 26) - 4;
            noise = noise * 1664525 + 1013904223;
            double d = fmax(fmax(fmin(a, hole), b), c) + (noise >> 8) / 16777216.0 - 0.5;
            logits[y * GRID + x] = pseg_half_from_float((float)(d * 1.5));
        }
}

/* A photo's smooth shades with grain: what a PNG of an overlay has to hold. */
static void draw_photo(uint8_t *rgb)
{
    uint32_t noise = 1;

    for (size_t y = 0; y < HEIGHT; y++)
        for (size_t x = 0; x < WIDTH; x++)
            for (size_t c = 0; c < 3; c++) {
                noise = noise * 1664525 + 1013904223;
                rgb[(y * WIDTH + x) * 3 + c] =
                    (uint8_t)(60 + x / 40 + y / 50 * c / 2 + (noise >> 29));
            }
}

static int one_round(double ms[N_STEPS], size_t bytes[N_STEPS], const pseg_mask_grid *g,
                     const uint8_t *rgb)
{
    pseg_mask *m = NULL, *again = NULL, measured;
    pseg_buf b[N_STEPS];
    double t[N_STEPS + 1];
    int bad = 0, step = 0;

    for (int i = 0; i < N_STEPS; i++)
        pseg_buf_init(&b[i], (size_t)1 << 30);
    t[step++] = now_ms();
    bad |= pseg_mask_measure(&measured, g, 0.5F, NULL);
    t[step++] = now_ms();
    bad |= pseg_mask_make(&m, g, 0.5F, NULL);
    t[step++] = now_ms();
    bad |= pseg_mask_png(&b[PNG], m, NULL);
    t[step++] = now_ms();
    bad |= pseg_mask_rle(&b[RLE], m, NULL);
    t[step++] = now_ms();
    bad |= pseg_mask_from_rle(&again, (const char *)b[RLE].data, g->width, g->height, NULL);
    t[step++] = now_ms();
    bad |= pseg_mask_bits(&b[BITS], m, NULL);
    t[step++] = now_ms();
    bad |= pseg_mask_polygon(&b[POLYGON], m, NULL);
    t[step++] = now_ms();
    bad |= pseg_mask_probabilities(&b[FLOAT16], g, NULL);
    t[step++] = now_ms();
    bad |= pseg_png_write(&b[PICTURE], rgb, g->width, g->height, 3, NULL);
    t[step++] = now_ms();
    bad |= bad || memcmp(m->data, again->data, (size_t)WIDTH * HEIGHT) != 0 ||
           m->area != again->area || m->area != measured.area || m->area < WIDTH * HEIGHT / 10;
    for (int i = 0; i < N_STEPS; i++) {
        ms[i] = t[i + 1] - t[i];
        bytes[i] = b[i].len;
        pseg_buf_deinit(&b[i]);
    }
    pseg_mask_free(m);
    pseg_mask_free(again);
    return bad;
}

/* The logits of a job of one phrase, to halves and back, by the clock: too short for the other. */
static void print_halves(void)
{
    enum { N = 128 * 128, TIMES = 1000 };
    static float f[N];
    static uint16_t h[N];
    struct timespec t[3];

    for (int i = 0; i < N; i++)
        f[i] = (float)(i % 977) * 0.02F - 10;
    clock_gettime(CLOCK_MONOTONIC, &t[0]);
    for (int i = 0; i < TIMES; i++)
        pseg_half_from_floats(h, f, N);
    clock_gettime(CLOCK_MONOTONIC, &t[1]);
    for (int i = 0; i < TIMES; i++)
        pseg_half_to_floats(f, h, N);
    clock_gettime(CLOCK_MONOTONIC, &t[2]);
    for (int k = 0; k < 2; k++)
        printf("%-9s %8.2f us\n", k ? "to floats" : "to halves",
               ((double)(t[k + 1].tv_sec - t[k].tv_sec) * 1e6 +
                (double)(t[k + 1].tv_nsec - t[k].tv_nsec) / 1e3) /
                   TIMES);
}

int main(int argc, char **argv)
{
    static double ms[N_STEPS][MAX_ROUNDS];
    size_t bytes[N_STEPS];
    uint16_t logits[GRID * GRID];
    uint8_t *rgb = malloc((size_t)WIDTH * HEIGHT * 3);
    pseg_mask_grid g = {logits, GRID, GRID, WIDTH, HEIGHT, 0, 0, WIDTH, HEIGHT};
    int rounds = argc > 1 ? atoi(argv[1]) : 1, bad = rgb == NULL;

    if (rounds < 1 || rounds > MAX_ROUNDS) {
        fprintf(stderr, "usage: %s [ROUNDS from 1 to %d]\n", argv[0], MAX_ROUNDS);
        return 2;
    }
    draw_logits(logits);
    if (!bad)
        draw_photo(rgb);
    for (int i = 0; i < rounds && !bad; i++) {
        double round[N_STEPS];
        bad = one_round(round, bytes, &g, rgb);
        for (int k = 0; k < N_STEPS; k++)
            ms[k][i] = round[k];
    }
    for (int k = 0; k < N_STEPS && !bad; k++) {
        qsort(ms[k], (size_t)rounds, sizeof(double), by_value);
        printf("%-9s %8.2f ms %9zu bytes\n", names[k], ms[k][rounds / 2], bytes[k]);
    }
    if (bad)
        fprintf(stderr, "a step failed, or the mask did not survive RLE\n");
    else
        print_halves();
    free(rgb);
    return bad ? 1 : 0;
}
