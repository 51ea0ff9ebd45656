/* Decoding: every format and kind of pixel against what Pillow and LittleCMS say of the same file,
 * what must be refused, limits, damage, and many threads. */
#include "tests/unit/image_support.h"

#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const pseg_image_limits usual = PSEG_IMAGE_LIMITS_DEFAULT;

/* ---- against Pillow -------------------------------------------------------------------------- */

typedef struct expected {
    char name[64];
    uint32_t width, height;
    const uint8_t *rgb;
} expected;

/* The next picture of expected.ppm, which begins with its file's name as a comment. */
static bool next_expected(expected *e, const uint8_t **at, const uint8_t *end)
{
    int used = 0;

    if (*at >= end)
        return false;
    assert_int_equal(sscanf((const char *)*at, "P6\n# %63s\n%u %u\n255%n", e->name, &e->width,
                            &e->height, &used),
                     3);
    e->rgb = *at + used + 1;
    *at = e->rgb + 3 * (size_t)e->width * e->height;
    assert_true(*at <= end);
    return true;
}

/* Levels that a channel may be off by: nothing where the file says the pixels, a level of rounding
 * where it converts, and what codecs and colour engines may differ by. */
static int tolerance(const char *name)
{
    static const struct {
        const char *part;
        int levels;
    } rules[] = {
        {"p3_16", 8 /* 8 bits before the conversion, or 16 */},
        {"rgba16", 2},
        {"rgb.heic", 12},
        {"rgb.avif", 12},
        {"lossy.webp", 4},
        {"cmyk_icc", 3},
        {"p3.jpg", 3},
        {"adobe", 2},
        {"p3", 2},
        {"grey_icc", 2},
        {".jpg", 2},
        {"alpha", 1},
        {"rgba", 1},
        {"16", 1},
        {"grey4", 1},
        {"trns", 1},
    };

    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (strstr(name, rules[i].part))
            return rules[i].levels;
    return 0;
}

static void decodes_as_pillow(void **state)
{
    size_t len, n, n_compared = 0, n_missing = 0;
    uint8_t *all = read_fixture("expected.ppm", &len);
    const uint8_t *at = all;
    unsigned n_wrong = 0;
    expected e;

    (void)state;
    while (next_expected(&e, &at, all + len)) {
        pseg_err err = PSEG_ERR_INIT;
        pseg_image *i = NULL;
        int worst = 0;
        uint8_t *file = read_fixture(e.name, &n);
        pseg_status rc = pseg_image_decode(&i, file, n, &usual, &err);

        pseg_free(file);
        /* Without HEIC or AVIF in libvips, that is what is said. */
        if (rc != PSEG_OK && (strstr(e.name, ".heic") || strstr(e.name, ".avif")) &&
            err.reason == PSEG_R_IMAGE_FORMAT_UNSUPPORTED) {
            n_missing++;
            continue;
        }
        if (rc != PSEG_OK) {
            print_message("%s: %s\n", e.name, err.msg);
            n_wrong++;
            continue;
        }
        n_compared++;
        if (i->width != e.width || i->height != e.height) {
            print_message("%s: %u x %u instead of %u x %u\n", e.name, i->width, i->height, e.width,
                          e.height);
            n_wrong++;
        } else {
            for (size_t k = 0; k < 3 * (size_t)e.width * e.height; k++)
                worst = abs(i->rgb[k] - e.rgb[k]) > worst ? abs(i->rgb[k] - e.rgb[k]) : worst;
            if (worst > tolerance(e.name)) {
                print_message("%s: off by %d levels, %d are allowed\n", e.name, worst,
                              tolerance(e.name));
                n_wrong++;
            }
        }
        pseg_image_free(i);
    }
    pseg_free(all);
    print_message("%zu pictures compared, %zu in formats that this libvips lacks\n", n_compared,
                  n_missing);
    assert_true(n_compared >= 40);
    assert_int_equal(n_wrong, 0);
}

/* Without a profile there is no right answer, but white is white, and cyan is not red. */
static void cmyk_without_a_profile(void **state)
{
    static const char *const names[] = {"cmyk.jpg", "cmyk.tif"};

    (void)state;
    for (size_t f = 0; f < 2; f++) {
        size_t n;
        uint8_t *file = read_fixture(names[f], &n);
        pseg_image *i;

        assert_int_equal(pseg_image_decode(&i, file, n, &usual, NULL), PSEG_OK);
        const uint8_t *row = i->rgb + 8 * 3 * (size_t)i->width;
        const uint8_t *white = row + 3 * 3, *c = row + 3 * 12, *m = row + 3 * 20, *y = row + 3 * 28,
                      *k = row + 3 * 36, *all = row + 3 * 44;
        assert_true(white[0] > 245 && white[1] > 245 && white[2] > 245);
        assert_true(c[0] < c[1] && c[0] < c[2] && c[0] < 80);
        assert_true(m[1] < m[0] && m[1] < m[2] && m[1] < 90);
        assert_true(y[2] < y[0] && y[2] < y[1] && y[2] < 90);
        assert_true(k[0] < 70 && k[1] < 70 && k[2] < 70);
        assert_true(all[0] < 50 && all[1] < 50 && all[2] < 50);
        pseg_image_free(i);
        pseg_free(file);
    }
}

/* ---- what is refused ------------------------------------------------------------------------- */

static bool is_one_line(const char *s)
{
    for (; *s; s++)
        if (!isprint((unsigned char)*s))
            return false;
    return true;
}

/* A grey profile in a picture of three colours is left aside: COCO has such photos. */
static void a_profile_of_other_channels_is_left_aside(void **state)
{
    static const char *const names[] = {"rgb.jpg", "rgb_grey_icc.jpg"};
    pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
    pseg_image *i[2];
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    for (int k = 0; k < 2; k++) {
        size_t n;
        uint8_t *data = read_fixture(names[k], &n);
        if (pseg_image_decode(&i[k], data, n, &limits, &err) != PSEG_OK)
            fail_msg("%s: %s", names[k], err.msg);
        pseg_free(data);
    }
    assert_true(i[0]->width == i[1]->width && i[0]->height == i[1]->height);
    assert_memory_equal(i[0]->rgb, i[1]->rgb, 3 * (size_t)i[0]->width * i[0]->height);
    pseg_image_free(i[0]);
    pseg_image_free(i[1]);
}

static void refused(const char *name, const pseg_image_limits *l, pseg_reason reason,
                    const char *part)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_image_info info;
    pseg_image *i = (pseg_image *)1;
    size_t n;
    uint8_t *file = read_fixture(name, &n);
    pseg_status rc = pseg_image_decode(&i, file, n, l, &err);

    if (rc == PSEG_OK || i || err.reason != reason || !strstr(err.msg, part) ||
        !is_one_line(err.msg))
        fail_msg("%s: reason %d instead of %d, \"%s\" without \"%s\"", name, (int)err.reason,
                 (int)reason, err.msg, part);
    pseg_err_clear(&err);
    rc = pseg_image_probe(&info, file, n, l, &err);
    if (reason != PSEG_R_IMAGE_UNDECODABLE)
        assert_int_equal(err.reason, reason);
    pseg_free(file);
}

static void other_formats_are_refused_by_name(void **state)
{
    static const struct {
        const char *name, *part;
    } cases[] = {{"still.gif", "GIF"},  {"animated.gif", "GIF"}, {"still.bmp", "BMP"},
                 {"still.pdf", "PDF"},  {"drawing.svg", "SVG"},  {"declared.svg", "XML"},
                 {"still.ico", "icon"}, {"hello.txt", "text"},   {"still.jp2", "unknown"}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        refused(cases[i].name, &usual, PSEG_R_IMAGE_FORMAT_UNSUPPORTED, cases[i].part);
        refused(cases[i].name, &usual, PSEG_R_IMAGE_FORMAT_UNSUPPORTED, "send JPEG, PNG");
    }
    refused("empty.jpg", &usual, PSEG_R_IMAGE_MISSING, "empty");
    refused("animated.webp", &usual, PSEG_R_IMAGE_TOO_MANY_FRAMES, "3 frames or pages");
    refused("pages.tif", &usual, PSEG_R_IMAGE_TOO_MANY_FRAMES, "limit of 1; send one");
}

static void films_are_no_photos(void **state)
{
    (void)state;
    refused("film.mp4", &usual, PSEG_R_IMAGE_FORMAT_UNSUPPORTED, "the image is a video");
}

/* Each limit holds the image that just fits and refuses the next. */
static void limits_are_exact(void **state)
{
    size_t n;
    uint8_t *file = read_fixture("rgb.png", &n);
    pseg_image *i;
    pseg_image_limits l = usual;

    (void)state;
    l.max_bytes = n;
    l.max_pixels = 24 * 16;
    l.max_side = 24;
    assert_int_equal(pseg_image_decode(&i, file, n, &l, NULL), PSEG_OK);
    pseg_image_free(i);
    l.max_bytes = n - 1;
    refused("rgb.png", &l, PSEG_R_IMAGE_TOO_LARGE, "recompress");
    l.max_bytes = n;
    l.max_pixels = 24 * 16 - 1;
    refused("rgb.png", &l, PSEG_R_IMAGE_TOO_MANY_PIXELS, "24 x 16");
    l.max_pixels = 24 * 16;
    l.max_side = 23;
    refused("rgb.png", &l, PSEG_R_IMAGE_TOO_MANY_PIXELS, "23 a side; shrink it");
    pseg_free(file);
    l = usual;
    l.max_frames = 3;
    file = read_fixture("pages.tif", &n);
    pseg_image_info info;
    assert_int_equal(pseg_image_probe(&info, file, n, &l, NULL), PSEG_OK);
    assert_int_equal(info.frames, 3);
    pseg_free(file);
    l.max_frames = 2;
    refused("pages.tif", &l, PSEG_R_IMAGE_TOO_MANY_FRAMES, "3 frames or pages");
}

static void probe_tells_the_upright_size(void **state)
{
    pseg_image_info info;
    size_t n;
    uint8_t *file = read_fixture("turn6.jpg", &n);

    (void)state;
    assert_int_equal(pseg_image_probe(&info, file, n, &usual, NULL), PSEG_OK);
    assert_string_equal(info.format, "JPEG");
    assert_int_equal(info.width, 24);
    assert_int_equal(info.height, 16);
    pseg_free(file);
}

/* ---- damage ---------------------------------------------------------------------------------- */

/* A file cut anywhere is an error, or has lost nothing but what comes after the pixels. */
static void cut_files_are_never_half_pictures(void **state)
{
    static const char *const names[] = {
        "rgb.jpg",    "progressive.jpg", "rgb.png", "interlaced.png", "rgba16.png",
        "lossy.webp", "alpha.webp",      "rgb.tif", "palette.png",    "rgb.heic"};

    (void)state;
    for (size_t f = 0; f < sizeof names / sizeof *names; f++) {
        size_t n, n_refused = 0, n_whole = 0;
        uint8_t *file = read_fixture(names[f], &n);
        pseg_image *whole = NULL, *i;

        if (pseg_image_decode(&whole, file, n, &usual, NULL) != PSEG_OK) {
            pseg_free(file); /* no HEIC here */
            continue;
        }
        size_t bytes = 3 * (size_t)whole->width * whole->height;
        for (size_t cut = 0; cut<n; cut += n> 400 ? 3 : 1) {
            pseg_err err = PSEG_ERR_INIT;
            uint8_t *part = pseg_memdup(file, cut ? cut : 1); /* so that reading past it shows */

            assert_non_null(part);
            if (pseg_image_decode(&i, part, cut, &usual, &err) != PSEG_OK) {
                assert_null(i);
                assert_true(err.msg[0] && is_one_line(err.msg));
                n_refused++;
            } else {
                n_whole++;
                if (i->width != whole->width || memcmp(i->rgb, whole->rgb, bytes) != 0)
                    fail_msg("%s cut to %zu of %zu bytes gave a picture, but another one", names[f],
                             cut, n);
                pseg_image_free(i);
            }
            pseg_free(part);
        }
        assert_true(n_refused > n_whole);
        pseg_image_free(whole);
        pseg_free(file);
    }
}

static void put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

/* A header that promises what would take gigabytes is refused before any of it is allocated: in a
 * process that may not have them. */
static void lying_headers_cost_nothing(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        uint8_t bomb[64] = "\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
        pseg_err err = PSEG_ERR_INIT;
        struct rusage before, after;
        pseg_image *i;

        put32(bomb + 16, 100000);
        put32(bomb + 20, 100000);
        bomb[24] = 8;
        bomb[25] = 2;
        put32(bomb + 29,
              0); /* libpng's own limits and checksums may speak first: an error either way */
        getrusage(RUSAGE_SELF, &before);
        pseg_status rc = pseg_image_decode(&i, bomb, sizeof bomb, &usual, &err);
        getrusage(RUSAGE_SELF, &after);
        _exit(rc != PSEG_OK && after.ru_maxrss - before.ru_maxrss < 64 * 1024 ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The start of a progressive JPEG with its size overwritten: 65,500 x 65,500 is over the limits. */
static void huge_jpegs_are_refused_by_their_header(void **state)
{
    static const char *const names[] = {"rgb.jpg", "progressive.jpg"};

    (void)state;
    for (size_t f = 0; f < 2; f++) {
        size_t n;
        uint8_t *file = read_fixture(names[f], &n);
        pseg_err err = PSEG_ERR_INIT;
        pseg_image *i;

        for (size_t k = 2; k + 9 < n; k += 2 + (size_t)(file[k + 2] << 8 | file[k + 3])) {
            assert_int_equal(file[k], 0xff);
            if (file[k + 1] == 0xc0 || file[k + 1] == 0xc2) {
                file[k + 5] = file[k + 7] = 0xff;
                file[k + 6] = file[k + 8] = 0xdc;
                break;
            }
        }
        assert_int_not_equal(pseg_image_decode(&i, file, n, &usual, &err), PSEG_OK);
        assert_int_equal(err.reason, PSEG_R_IMAGE_TOO_MANY_PIXELS);
        assert_non_null(strstr(err.msg, "65500 x 65500"));
        pseg_free(file);
    }
}

/* ---- threads --------------------------------------------------------------------------------- */

typedef struct job {
    pthread_t thread;
    const uint8_t *file, *rgb;
    size_t n, bytes;
    bool good;
} job;

static void *decode_often(void *ud)
{
    job *j = ud;

    j->good = true;
    for (int k = 0; k < 20 && j->good; k++) {
        pseg_image *i = NULL;

        j->good = pseg_image_decode(&i, j->file, j->n, &usual, NULL) == PSEG_OK &&
                  memcmp(i->rgb, j->rgb, j->bytes) == 0;
        pseg_image_free(i);
    }
    return NULL;
}

static void threads_agree(void **state)
{
    static const char *const names[] = {"p3.jpg", "rgba16.png", "alpha.webp", "turn6.tif"};
    job jobs[8] = {0};
    uint8_t *files[4];
    pseg_image *images[4];
    size_t n[4];

    (void)state;
    for (size_t k = 0; k < 4; k++) {
        files[k] = read_fixture(names[k], &n[k]);
        assert_int_equal(pseg_image_decode(&images[k], files[k], n[k], &usual, NULL), PSEG_OK);
    }
    for (size_t k = 0; k < 8; k++) {
        const pseg_image *i = images[k % 4];

        jobs[k].file = files[k % 4];
        jobs[k].n = n[k % 4];
        jobs[k].rgb = i->rgb;
        jobs[k].bytes = 3 * (size_t)i->width * i->height;
        assert_int_equal(pthread_create(&jobs[k].thread, NULL, decode_often, &jobs[k]), 0);
    }
    for (size_t k = 0; k < 8; k++) {
        pthread_join(jobs[k].thread, NULL);
        assert_true(jobs[k].good);
    }
    for (size_t k = 0; k < 4; k++) {
        pseg_image_free(images[k]);
        pseg_free(files[k]);
    }
}

static int set_up(void **state)
{
    (void)state;
    return pseg_image_init(NULL) == PSEG_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    pseg_image_shutdown();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_as_pillow),
        cmocka_unit_test(cmyk_without_a_profile),
        cmocka_unit_test(a_profile_of_other_channels_is_left_aside),
        cmocka_unit_test(other_formats_are_refused_by_name),
        cmocka_unit_test(films_are_no_photos),
        cmocka_unit_test(limits_are_exact),
        cmocka_unit_test(probe_tells_the_upright_size),
        cmocka_unit_test(cut_files_are_never_half_pictures),
        cmocka_unit_test(lying_headers_cost_nothing),
        cmocka_unit_test(huge_jpegs_are_refused_by_their_header),
        cmocka_unit_test(threads_agree),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
