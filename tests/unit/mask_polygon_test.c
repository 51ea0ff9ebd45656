/* Polygons: filled again they are the mask, and their rings turn the way they should. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/mask/mask.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct outline {
    size_t n_rings, n_corners;
    int64_t area; /* of outer rings less that of holes */
    size_t n_holes;
} outline;

/* Reads "[x0,y0,...]" behind its "[", draws its upright edges into `edges` and gives twice its
 * area, positive if it turns clockwise on screen. */
static const char *read_ring(const char *s, uint8_t *edges, uint32_t width, uint32_t height,
                             int64_t *twice, size_t *n_corners)
{
    int64_t first[2], last[2], at[2];
    size_t n = 0;

    *twice = 0;
    for (bool more = true; more; n++) {
        char *end;
        for (int k = 0; k < 2; k++) {
            at[k] = strtol(s, &end, 10);
            assert_true(end > s && *s >= '0' && *s <= '9');
            assert_true(at[k] >= 0 && at[k] <= (int64_t)(k ? height : width));
            assert_true(*end == ',' || (k == 1 && *end == ']'));
            more = *end == ',';
            s = end + 1;
        }
        if (n == 0)
            memcpy(first, at, sizeof at);
        for (int closing = 0; closing <= !more; closing++) {
            const int64_t *to = closing ? first : at;
            if (n == 0 && !closing) {
                memcpy(last, at, sizeof at);
                continue;
            }
            assert_true((to[0] == last[0]) != (to[1] == last[1])); /* one step along an axis */
            for (int64_t y = to[1] < last[1] ? to[1] : last[1];
                 y < (to[1] > last[1] ? to[1] : last[1]); y++)
                edges[(size_t)y * (width + 1) + (size_t)to[0]] ^= 1;
            *twice += last[0] * to[1] - to[0] * last[1];
            memcpy(last, to, sizeof last);
        }
    }
    assert_true(n >= 4 && n % 2 == 0); /* and no corner lies on a straight line */
    *n_corners += n;
    return s;
}

static outline check(const uint8_t *pixels, uint32_t width, uint32_t height)
{
    outline o = {0};
    pseg_mask *m;
    pseg_buf b;
    uint8_t *edges = calloc((size_t)width + 1, height + 1);

    assert_non_null(edges);
    assert_int_equal(pseg_mask_from_pixels(&m, pixels, width, height, NULL), PSEG_OK);
    pseg_buf_init(&b, (size_t)1 << 28);
    assert_int_equal(pseg_mask_polygon(&b, m, NULL), PSEG_OK);
    const char *s = (const char *)b.data;
    assert_int_equal(*s++, '[');
    while (*s == '[') {
        int64_t twice;
        s = read_ring(s + 1, edges, width, height, &twice, &o.n_corners);
        assert_true(twice != 0);
        o.area += twice / 2;
        o.n_holes += twice < 0;
        o.n_rings++;
        s += *s == ',' && s[1] == '[';
    }
    assert_string_equal(s, "]");
    assert_int_equal(o.area, m->area); /* outer rings count up and holes down */
    for (uint32_t y = 0; y < height; y++) {
        uint8_t in = 0;
        for (uint32_t x = 0; x < width; x++) {
            in ^= edges[(size_t)y * (width + 1) + x];
            assert_int_equal(in, m->data[(size_t)y * width + x]);
        }
    }
    free(edges);
    pseg_buf_deinit(&b);
    pseg_mask_free(m);
    return o;
}

static outline check_text(const char *rows, uint32_t width)
{
    uint8_t pixels[400];
    size_t n = strlen(rows);

    for (size_t i = 0; i < n; i++)
        pixels[i] = rows[i] == '#';
    return check(pixels, width, (uint32_t)(n / width));
}

static void small_masks_have_the_rings_one_expects(void **state)
{
    static const struct {
        const char *rows;
        uint32_t width;
        size_t rings, holes, corners;
    } known[] = {
        {"#", 1, 1, 0, 4},      /* one pixel, all of the frame */
        {"....", 2, 0, 0, 0},   /* nothing */
        {"######", 3, 1, 0, 4}, /* the frame */
        {"#..#", 2, 2, 0, 8},   /* touching at a corner: apart */
        {".##.", 2, 2, 0, 8},
        {"####.####", 3, 2, 1, 8}, /* a hole */
        {"####"
         "#.##"
         "##.#"
         "####",
         4, 2, 1, 12}, /* holes touching at a corner: one, 8 corners */
        {"#######"
         "#.....#"
         "#.###.#"
         "#.#.#.#"
         "#.###.#"
         "#.....#"
         "#######",
         7, 4, 2, 16}, /* nested */
        {"#.#"
         "###",
         3, 1, 0, 8},
    };

    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        outline o = check_text(known[i].rows, known[i].width);
        assert_int_equal(o.n_rings, known[i].rings);
        assert_int_equal(o.n_holes, known[i].holes);
        assert_int_equal(o.n_corners, known[i].corners);
    }
}

static void the_text_is_as_documented(void **state)
{
    static const uint8_t pixels[] = {0, 0, 0, 0, 1, 1}, none[] = {0};
    pseg_mask *m;
    pseg_buf b;

    (void)state;
    pseg_buf_init(&b, 1000);
    assert_int_equal(pseg_mask_from_pixels(&m, pixels, 3, 2, NULL), PSEG_OK);
    assert_int_equal(pseg_mask_polygon(&b, m, NULL), PSEG_OK);
    assert_string_equal((const char *)b.data, "[[1,1,3,1,3,2,1,2]]");
    pseg_mask_free(m);
    assert_int_equal(pseg_mask_from_pixels(&m, none, 1, 1, NULL), PSEG_OK);
    assert_int_equal(pseg_mask_polygon(&b, m, NULL), PSEG_OK);
    assert_string_equal((const char *)b.data, "[[1,1,3,1,3,2,1,2]][]"); /* appended */
    pseg_mask_free(m);
    pseg_buf_deinit(&b);
}

static void random_masks_come_back(void **state)
{
    static uint8_t pixels[80 * 80];
    uint32_t u = 1;

    (void)state;
    for (int i = 0; i < 300; i++) {
        u = u * 1664525 + 1013904223;
        uint32_t w = (u >> 8) % 80 + 1, h = (u >> 20) % 80 + 1, density = (u >> 16) % 257;
        for (size_t k = 0; k < (size_t)w * h; k++) {
            u = u * 1664525 + 1013904223;
            pixels[k] = (u >> 24) < density;
        }
        check(pixels, w, h);
    }
}

/* The most rings that a million pixels can have. */
static void a_checkerboard_is_bounded(void **state)
{
    enum { SIDE = 1000 };
    uint8_t *pixels = malloc(SIDE * SIDE);

    (void)state;
    assert_non_null(pixels);
    for (size_t i = 0; i < SIDE * SIDE; i++)
        pixels[i] = (i / SIDE + i) % 2;
    outline o = check(pixels, SIDE, SIDE);
    assert_int_equal(o.n_rings, SIDE * SIDE / 2);
    assert_int_equal(o.n_corners, SIDE * SIDE * 2);
    free(pixels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_masks_have_the_rings_one_expects),
        cmocka_unit_test(the_text_is_as_documented),
        cmocka_unit_test(random_masks_come_back),
        cmocka_unit_test(a_checkerboard_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
