/* The files that show a result: their names, their bytes, and what happens where they cannot be. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/show/show.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { W = 40, H = 30 };

typedef struct scene {
    char root[40], folder[64];
    uint8_t rgb[W * H * 3];
    pseg_image photo;
    pseg_mask *mask;
} scene;

static int set_up(void **state)
{
    static scene s;
    uint8_t pixels[W * H];

    memcpy(s.root, "/tmp/pseg-show-XXXXXX", 22);
    if (!mkdtemp(s.root))
        return -1;
    snprintf(s.folder, sizeof s.folder, "%s/a/b", s.root);
    for (size_t i = 0; i < sizeof s.rgb; i++)
        s.rgb[i] = (uint8_t)(i * 7);
    s.photo = (pseg_image){s.rgb, W, H};
    for (size_t i = 0; i < W * H; i++)
        pixels[i] = i % W > 10 && i % W < 30 && i / W > 5 && i / W < 20;
    *state = &s;
    return pseg_mask_from_pixels(&s.mask, pixels, W, H, NULL);
}

static int tear_down(void **state)
{
    scene *s = *state;
    char command[64];

    pseg_mask_free(s->mask);
    snprintf(command, sizeof command, "rm -r %s", s->root);
    return system(command);
}

static int count_files(const char *folder)
{
    DIR *d = opendir(folder);
    int n = 0;

    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

static pseg_image *read_image(const char *path)
{
    pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
    pseg_image *i;
    uint8_t *data;
    size_t n;

    assert_int_equal(pseg_file_read(&data, &n, path, 1 << 20, NULL), PSEG_OK);
    assert_int_equal(pseg_image_decode(&i, data, n, &limits, NULL), PSEG_OK);
    pseg_free(data);
    return i;
}

static void check_name(const char *path, const scene *s, const char *name)
{
    char want[128];

    snprintf(want, sizeof want, "%s/%s", s->folder, name);
    assert_string_equal(path, want);
    assert_true(pseg_file_exists(path));
}

static void the_original_is_copied_byte_for_byte(void **state)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *name;
    } known[] = {
        {"\xFF\xD8\xFF\xE0 any\0thing", 14, "original.jpg"},
        {"\x89PNG\r\n\x1A\n", 8, "original.png"},
        {"RIFF\x10\0\0\0WEBPVP8 ", 16, "original.webp"},
        {"II*\0\x08\0\0\0", 8, "original.tif"},
        {"MM\0*\0\0\0\x08", 8, "original.tif"},
        {"\0\0\0\x18"
         "ftypheic",
         12, "original.heic"},
    };
    scene *s = *state;

    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        pseg_show show = {s->folder, false, known[i].bytes, known[i].n, &s->photo, 1};
        char *path;
        uint8_t *data;
        size_t n;
        assert_int_equal(pseg_show_original(&path, &show, NULL), PSEG_OK);
        check_name(path, s, known[i].name);
        assert_int_equal(pseg_file_read(&data, &n, path, 1000, NULL), PSEG_OK);
        assert_int_equal(n, known[i].n);
        assert_memory_equal(data, known[i].bytes, n);
        pseg_free(data);
        pseg_free(path);
    }
}

static void one_mask_has_no_number(void **state)
{
    scene *s = *state;
    pseg_show show = {s->folder, true, "", 0, &s->photo, 1};
    pseg_shown shown;

    assert_int_equal(pseg_show_mask(&shown, &show, 0, s->mask, NULL), PSEG_OK);
    check_name(shown.mask, s, "mask.png");
    check_name(shown.overlay, s, "overlay.png");
    check_name(shown.side_by_side, s, "side-by-side.png");
    assert_int_equal(count_files(s->folder), 3);
    pseg_image *mask = read_image(shown.mask), *overlay = read_image(shown.overlay),
               *beside = read_image(shown.side_by_side);
    int64_t red[2] = {0, 0}; /* outside, inside: the tint is red */
    for (size_t i = 0; i < W * H; i++) {
        assert_int_equal(mask->rgb[3 * i], s->mask->data[i] ? 255 : 0);
        red[s->mask->data[i]] += overlay->rgb[3 * i] - overlay->rgb[3 * i + 1];
    }
    assert_true(overlay->width == W && overlay->height == H);
    assert_true(red[1] / (int64_t)s->mask->area > red[0] / (int64_t)(W * H) + 20);
    assert_true(beside->height == H && beside->width >= 3 * W && beside->width < 4 * W);
    pseg_image_free(mask);
    pseg_image_free(overlay);
    pseg_image_free(beside);
    pseg_shown_free(&shown);
    assert_null(shown.mask);
    pseg_shown_free(&shown);
}

static void several_masks_are_numbered(void **state)
{
    scene *s = *state;
    pseg_show show = {s->folder, false, "", 0, &s->photo, 2};
    static const char *const masks[] = {"mask-0.png", "mask-1.png"}, *const overlays[] = {
                                                                         "overlay-0.png",
                                                                         "overlay-1.png"};

    for (size_t i = 0; i < 2; i++) {
        pseg_shown shown;
        assert_int_equal(pseg_show_mask(&shown, &show, i, s->mask, NULL), PSEG_OK);
        check_name(shown.mask, s, masks[i]);
        check_name(shown.overlay, s, overlays[i]);
        assert_null(shown.side_by_side);
        pseg_shown_free(&shown);
    }
    assert_int_equal(count_files(s->folder), 4);
}

static void a_folder_that_cannot_be_is_an_error(void **state)
{
    scene *s = *state;
    pseg_show show = {"/dev/null/there", false, "x", 1, &s->photo, 1};
    pseg_err e = PSEG_ERR_INIT;
    pseg_shown shown;
    char *path;

    assert_true(pseg_show_original(&path, &show, &e) < 0);
    assert_null(path);
    assert_non_null(strstr(e.msg, "/dev/null"));
    pseg_err_clear(&e);
    assert_true(pseg_show_mask(&shown, &show, 0, s->mask, &e) < 0);
    assert_non_null(strstr(e.msg, "/dev/null"));
    assert_true(!shown.mask && !shown.overlay && !shown.side_by_side);
}

static void a_mask_of_another_size_is_an_error(void **state)
{
    scene *s = *state;
    pseg_image other = {s->rgb, H, W};
    pseg_show show = {s->folder, false, "x", 1, &other, 1};
    pseg_shown shown;

    assert_int_equal(pseg_show_mask(&shown, &show, 0, s->mask, NULL), PSEG_EINTERNAL);
    assert_null(shown.mask);
    assert_false(pseg_file_exists(s->folder));
}

static void short_memory_leaves_no_path(void **state)
{
    scene *s = *state;
    pseg_show show = {s->folder, true, "x", 1, &s->photo, 1};
    pseg_status rc = PSEG_ENOMEM;
    pseg_shown shown;
    uint64_t nth;

    for (nth = 1; rc == PSEG_ENOMEM && nth < 100; nth++) {
        pseg_alloc_fail_nth(nth);
        rc = pseg_show_mask(&shown, &show, 0, s->mask, NULL);
        assert_true((rc == PSEG_OK) == (shown.mask != NULL));
    }
    pseg_alloc_fail_nth(0);
    assert_int_equal(rc, PSEG_OK);
    assert_true(nth > 10);
    pseg_shown_free(&shown);
}

int main(void)
{
#define SHOW_TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        SHOW_TEST(the_original_is_copied_byte_for_byte),
        SHOW_TEST(one_mask_has_no_number),
        SHOW_TEST(several_masks_are_numbered),
        SHOW_TEST(a_folder_that_cannot_be_is_an_error),
        SHOW_TEST(a_mask_of_another_size_is_an_error),
        SHOW_TEST(short_memory_leaves_no_path),
    };
    if (pseg_image_init(NULL) != PSEG_OK)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pseg_image_shutdown();
    return failed;
}
