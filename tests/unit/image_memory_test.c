/* What hostile files, short memory and busy neighbours can do: nothing beyond one error.
 * `image_memory_test large` decodes the largest picture that the limits allow instead. */
#include "tests/unit/image_support.h"
#include "common/base/clock.h"

#include <math.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* MiB beyond the reckoning: libvips' rows and tables, and the 256 MiB that ASan keeps of what was
 * freed. */
#if defined(__SANITIZE_ADDRESS__)
enum { SPARE = 320 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { SPARE = 320 };
#else
enum { SPARE = 24 };
#endif
#else
enum { SPARE = 24 };
#endif

static const pseg_image_limits usual = PSEG_IMAGE_LIMITS_DEFAULT;

/* What a child that runs `work` takes at its peak beyond what it began with, in MiB; *ms: its
 * time. work returns 0 if all went as it should; the test fails otherwise. libvips starts in the
 * child, because its threads do not survive a fork. */
static long peak_mib(int64_t *ms, int (*work)(void *), void *ud)
{
    struct rusage before, after;
    int64_t start = pseg_clock_mono_ms();
    long peak = -1;
    int ends[2], status;

    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int bad = pseg_image_init(NULL) != PSEG_OK;
        getrusage(RUSAGE_SELF, &before);
        bad = bad || work(ud);
        getrusage(RUSAGE_SELF, &after);
        peak = (after.ru_maxrss - before.ru_maxrss) / 1024;
        bad = bad || write(ends[1], &peak, sizeof peak) != sizeof peak;
        _exit(bad);
    }
    close(ends[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(read(ends[0], &peak, sizeof peak), sizeof peak);
    close(ends[0]);
    *ms = pseg_clock_mono_ms() - start;
    return peak;
}

/* A baseline JPEG of middle grey, upright or (turned) to be turned by 90 degrees; w a multiple of
 * 32. A block is the two bits 00: one DC code for no difference, one AC code for nothing more. */
static uint8_t *flat_jpeg(size_t *len, uint32_t w, uint32_t h, bool turned)
{
    static const uint8_t exif[] = {0xff, 0xe1, 0, 34, 'E', 'x', 'i', 'f', 0, 0,  'M', 'M',
                                   0,    42,   0, 0,  0,   8,   0,   1,   1, 18, 0,   3,
                                   0,    0,    0, 1,  0,   6,   0,   0,   0, 0,  0,   0};
    /* A code of ones alone is not allowed, so each table has a second entry that nobody uses. */
    static const uint8_t tables[] = {
        0xff, 0xc4, 0,    21,   0x00, 1,    1,    0,    0,    0,    0, 0, 0, 0, 0, 0, 0,  0, 0,
        0,    0,    0x00, 0x01, 0xff, 0xc4, 0,    21,   0x10, 1,    1, 0, 0, 0, 0, 0, 0,  0, 0,
        0,    0,    0,    0,    0,    0,    0x00, 0x01, 0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0};
    const uint8_t frame[] = {0xff,    0xc0, 0, 11,   8, h >> 8 & 255, h & 255, w >> 8 & 255,
                             w & 255, 1,    1, 0x11, 0};
    size_t data = (size_t)(w / 8) * (h / 8) / 4;
    uint8_t *b = pseg_malloc(500 + data), *p = b;

    assert_non_null(b);
    assert_true(w % 32 == 0 && h % 8 == 0 && w < 65536 && h < 65536);
    memcpy(p, "\xff\xd8", 2);
    p += 2;
    if (turned) {
        memcpy(p, exif, sizeof exif);
        p += sizeof exif;
    }
    memcpy(p, "\xff\xdb\0\x43\0", 5);
    memset(p + 5, 1, 64);
    p += 69;
    memcpy(p, frame, sizeof frame);
    p += sizeof frame;
    memcpy(p, tables, sizeof tables);
    p += sizeof tables;
    memset(p, 0, data);
    p += data;
    memcpy(p, "\xff\xd9", 2);
    *len = (size_t)(p + 2 - b);
    return b;
}

typedef struct file {
    const uint8_t *data;
    size_t len;
    pseg_reason reason; /* PSEG_R_NONE: it decodes, to middle grey */
    uint32_t width, height;
} file;

static int decode_file(void *ud)
{
    const file *f = ud;
    pseg_image *i;
    pseg_err e = PSEG_ERR_INIT;
    pseg_status rc = pseg_image_decode(&i, f->data, f->len, &usual, &e);

    if (f->reason != PSEG_R_NONE) {
        if (e.reason != f->reason)
            print_error("%s\n", e.msg);
        return rc == PSEG_OK || e.reason != f->reason;
    }
    int bad = rc != PSEG_OK || i->width != f->width || i->height != f->height;
    for (size_t k = 0; !bad && k < 3 * (size_t)f->width * f->height; k += 997)
        bad = i->rgb[k] != 128;
    pseg_image_free(i);
    return bad;
}

static void a_16k_jpeg_is_refused_by_its_header(void **state)
{
    int64_t ms;
    size_t len;
    uint8_t *jpeg = flat_jpeg(&len, 16384, 16384, false);
    file f = {jpeg, len, PSEG_R_IMAGE_TOO_MANY_PIXELS, 0, 0};
    long peak = peak_mib(&ms, decode_file, &f);

    (void)state;
    assert_in_range(peak, 0, SPARE);
    assert_in_range(ms, 0, 5000);
    pseg_free(jpeg);
}

/* A turned picture takes no more than an upright one: 3 bytes a pixel, once. */
static void pixels_are_held_once(void **state)
{
    int64_t ms;

    (void)state;
    for (int turned = 0; turned < 2; turned++) {
        size_t len;
        uint8_t *jpeg = flat_jpeg(&len, 4096, 2048, turned);
        file f = {jpeg, len, PSEG_R_NONE, turned ? 2048 : 4096, turned ? 4096 : 2048};
        assert_in_range(peak_mib(&ms, decode_file, &f), 24, 24 + SPARE);
        pseg_free(jpeg);
    }
}

static void the_largest_allowed_decodes(void **state)
{
    int64_t ms;
    size_t len;
    uint8_t *jpeg = flat_jpeg(&len, 14112, 14112, true);
    file f = {jpeg, len, PSEG_R_NONE, 14112, 14112};
    long peak = peak_mib(&ms, decode_file, &f);

    (void)state;
    print_message("14112 x 14112, turned: %ld MiB, %lld ms\n", peak, (long long)ms);
    assert_in_range(peak, 0, 570 + 64 + SPARE);
    pseg_free(jpeg);
}

/* ---- headers that lie in TIFF's own way ------------------------------------------------------ */

static uint8_t *put(uint8_t *p, uint32_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        *p++ = (uint8_t)(v >> 8 * i);
    return p;
}

static uint8_t *entry(uint8_t *p, uint32_t tag, uint32_t value)
{
    return put(put(put(put(p, tag, 2), 4, 2), 1, 4), value, 4);
}

/* `pages` grey pages of 16 x 16, of one tile of that side (0: one strip) at byte 8. */
static uint8_t *tiff(size_t *len, uint32_t pages, uint32_t tile)
{
    enum { N = 9, IFD = 2 + 12 * N + 4, DATA = 256 };
    uint8_t *b = pseg_calloc(1, 8 + DATA + (size_t)pages * IFD), *p = b;

    assert_non_null(b);
    memcpy(p, "II*\0", 4);
    put(p + 4, 8 + DATA, 4);
    p += 8 + DATA;
    for (uint32_t k = 0; k < pages; k++) {
        p = entry(entry(put(p, N, 2), 256, 16), 257, 16);
        p = entry(entry(entry(entry(p, 258, 8), 259, 1), 262, 1), tile ? 277 : 273, tile ? 1 : 8);
        if (tile)
            p = put(entry(entry(entry(p, 322, tile), 323, tile), 324, 8), 0, 0);
        else
            p = entry(entry(entry(p, 277, 1), 278, 16), 279, DATA);
        p = put(p, k + 1 < pages ? 8 + DATA + (k + 1) * IFD : 0, 4);
    }
    *len = (size_t)(p - b);
    return b;
}

static void a_tiff_of_one_huge_tile_takes_little(void **state)
{
    int64_t ms;
    size_t len;
    uint8_t *data = tiff(&len, 1, 65536);
    file f = {data, len, PSEG_R_IMAGE_UNDECODABLE, 0, 0};
    long peak = peak_mib(&ms, decode_file, &f);

    (void)state;
    assert_in_range(peak, 0, SPARE);
    assert_in_range(ms, 0, 5000);
    pseg_free(data);
}

static void pages_are_counted_beyond_what_libvips_believes(void **state)
{
    int64_t ms;
    size_t len;
    uint8_t *data = tiff(&len, 10001, 0);
    file f = {data, len, PSEG_R_IMAGE_TOO_MANY_FRAMES, 0, 0};

    (void)state;
    assert_in_range(peak_mib(&ms, decode_file, &f), 0, SPARE);
    pseg_free(data);
}

/* ---- the model's input of extreme shapes ----------------------------------------------------- */

/* A line of 32,768 pixels has 256 x 8,388,608 once its short side is 256: only what the model sees
 * may be made. */
static int crop_a_line(void *ud)
{
    const pseg_preprocess how = {PSEG_IMAGE_CENTRE_CROP, 224, 224, 256, {0}, {1, 1, 1}};
    float *chw = pseg_malloc(3 * 224 * 224 * sizeof *chw), rect[4];
    int bad = !chw || pseg_image_preprocess(chw, rect, ud, &how, NULL) != PSEG_OK;

    bad = bad || fabsf(rect[2] - rect[0]) > 0.876f || fabsf(rect[3] - rect[1]) > 0.876f;
    pseg_free(chw);
    return bad;
}

static void a_crop_of_a_line_takes_little(void **state)
{
    pseg_image across = {noise(3 * 32768, false), 32768, 1}, down = {across.rgb, 1, 32768};
    int64_t ms;

    (void)state;
    assert_in_range(peak_mib(&ms, crop_a_line, &across), 0, 40 + SPARE);
    assert_in_range(peak_mib(&ms, crop_a_line, &down), 0, 40 + SPARE);
    pseg_free(across.rgb);
}

static void an_input_has_a_size(void **state)
{
    static const pseg_preprocess hows[] = {{PSEG_IMAGE_SQUASH, 0, 1, 0, {0}, {1, 1, 1}},
                                           {PSEG_IMAGE_LETTERBOX, 1, 0, 0, {0}, {1, 1, 1}},
                                           {PSEG_IMAGE_CENTRE_CROP, 1, 1, 0, {0}, {1, 1, 1}}};
    uint8_t pixel[3] = {0};
    pseg_image photo = {pixel, 1, 1};
    float chw[3], rect[4];

    (void)state;
    for (int k = 0; k < 3; k++)
        assert_int_equal(pseg_image_preprocess(chw, rect, &photo, &hows[k], NULL), PSEG_EINVAL);
    assert_int_equal(pseg_image_resize(pixel, 0, 1, pixel, 1, 1, NULL), PSEG_EINVAL);
    assert_int_equal(pseg_image_resize(pixel, 1, 1, pixel, 1, 0, NULL), PSEG_EINVAL);
}

/* ---- neighbours and short memory ------------------------------------------------------------- */

/* A bad file's message is its own, however many others fail beside it. */
enum { THREADS = 8, ROUNDS = 10, JOBS = 6 };

static struct job {
    const char *name;
    size_t keep; /* in 100ths of the file */
    uint8_t *data;
    size_t len;
    char msg[320]; /* "": it decodes */
} jobs[JOBS] = {{.name = "rgb.jpg", .keep = 100}, {.name = "progressive.jpg", .keep = 70},
                {.name = "rgb.tif", .keep = 60},  {.name = "interlaced.png", .keep = 50},
                {.name = "p3.png", .keep = 100},  {.name = "rgb.png", .keep = 80}};

static void *decode_all(void *ud)
{
    intptr_t bad = 0;

    for (size_t k = 0; k < ROUNDS * JOBS; k++) {
        const struct job *j = &jobs[((uintptr_t)ud + k) % JOBS];
        pseg_image *got;
        pseg_err e = PSEG_ERR_INIT;
        pseg_image_decode(&got, j->data, j->len, &usual, &e);
        bad += strcmp(e.msg, j->msg) != 0;
        pseg_image_free(got);
    }
    return (void *)bad;
}

static int decode_in_threads(void *ud)
{
    pthread_t threads[THREADS];
    void *wrong;
    intptr_t bad = 0;

    (void)ud;
    for (size_t k = 0; k < JOBS; k++) {
        pseg_image *i;
        pseg_err e = PSEG_ERR_INIT;
        pseg_image_decode(&i, jobs[k].data, jobs[k].len, &usual, &e);
        memcpy(jobs[k].msg, e.msg, sizeof e.msg);
        bad += (jobs[k].keep == 100) != !e.msg[0];
        pseg_image_free(i);
    }
    for (size_t k = 0; k < THREADS; k++)
        bad += pthread_create(&threads[k], NULL, decode_all, (void *)(uintptr_t)k);
    for (size_t k = 0; k < THREADS; k++) {
        pthread_join(threads[k], &wrong);
        bad += (intptr_t)wrong;
    }
    return bad != 0;
}

static void every_thread_hears_of_its_own_file(void **state)
{
    int64_t ms;

    (void)state;
    for (size_t k = 0; k < JOBS; k++) {
        jobs[k].data = read_fixture(jobs[k].name, &jobs[k].len);
        jobs[k].len = jobs[k].len * jobs[k].keep / 100;
    }
    assert_true(peak_mib(&ms, decode_in_threads, NULL) >= 0);
    for (size_t k = 0; k < JOBS; k++)
        pseg_free(jobs[k].data);
}

static int fail_each_allocation(void *ud)
{
    const file *f = ud;
    static const pseg_preprocess how = {PSEG_IMAGE_CENTRE_CROP, 28, 28, 32, {0}, {1, 1, 1}};
    static float chw[3 * 28 * 28];
    pseg_image_prepared prepared;
    float rect[4];
    pseg_status rc = PSEG_ENOMEM;
    uint64_t nth = 0;

    while (rc == PSEG_ENOMEM && nth < 200) {
        pseg_image *i, *shown = NULL;
        static const uint8_t mask[100 * 100];
        pseg_alloc_fail_nth(++nth);
        rc = pseg_image_decode(&i, f->data, f->len, &usual, NULL);
        if (rc == PSEG_OK)
            rc = pseg_image_preprocess(chw, rect, i, &how, NULL);
        if (rc == PSEG_OK)
            rc = pseg_image_prepare(&prepared, chw, (pseg_image_file){f->data, f->len}, &usual,
                                    &how, NULL);
        if (rc == PSEG_OK)
            rc = pseg_image_overlay(&shown, i, mask, NULL);
        pseg_alloc_fail_nth(0);
        if (rc != PSEG_OK && shown)
            return 1;
        pseg_image_free(i);
        pseg_image_free(shown);
    }
    return rc != PSEG_OK || nth < 14;
}

static void short_memory_is_an_error(void **state)
{
    int64_t ms;
    file f = {0};
    uint8_t *data = read_fixture("turn5.jpg", &f.len);

    (void)state;
    f.data = data;
    assert_true(peak_mib(&ms, fail_each_allocation, &f) >= 0);
    pseg_free(data);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_16k_jpeg_is_refused_by_its_header),
        cmocka_unit_test(pixels_are_held_once),
        cmocka_unit_test(a_tiff_of_one_huge_tile_takes_little),
        cmocka_unit_test(pages_are_counted_beyond_what_libvips_believes),
        cmocka_unit_test(a_crop_of_a_line_takes_little),
        cmocka_unit_test(an_input_has_a_size),
        cmocka_unit_test(every_thread_hears_of_its_own_file),
        cmocka_unit_test(short_memory_is_an_error),
    };
    const struct CMUnitTest large[] = {cmocka_unit_test(the_largest_allowed_decodes)};

    if (argc > 1 && strcmp(argv[1], "large") == 0)
        return cmocka_run_group_tests(large, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
