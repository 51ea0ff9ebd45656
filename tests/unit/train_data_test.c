/* Batches of data sets, without a device: which phrases come when and with which image, by weights,
 * mirrored, and around images that are broken. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/buf.h"
#include "common/image/image.h"
#include "tests/unit/data_support.h"
#include "worker/train/source_data.h"

#include <unistd.h>

enum { SIDE = 32, PIXELS = 3 * SIDE * SIDE, MOST = 320, IMAGES = 64 };

static pseg_err err;

#define OK(call)                                \
    do {                                        \
        if ((call) != PSEG_OK)                  \
            fail_msg("%s: %s", #call, err.msg); \
    } while (0)

/* ---- sets ---- */

/* An image that shows its number: red is it, and green is the left half. */
static void put_image(const char *dir, unsigned number)
{
    uint8_t rgb[PIXELS];
    char name[32];
    pseg_buf png;

    for (size_t i = 0; i < SIDE * SIDE; i++) {
        rgb[3 * i] = (uint8_t)number;
        rgb[3 * i + 1] = i % SIDE < SIDE / 2 ? 255 : 0;
        rgb[3 * i + 2] = 0;
    }
    pseg_buf_init(&png, 1 << 20);
    OK(pseg_png_write(&png, rgb, SIDE, SIDE, 3, &err));
    snprintf(name, sizeof name, "%06u.png", number);
    put_file(dir, name, png.data, png.len);
    pseg_buf_deinit(&png);
}

/* Columns from the left that phrase k means. */
static unsigned columns(unsigned k)
{
    return k / 2 % 16 + 1;
}

/* n images from `first` on, image i with counts[i] phrases, two a mask; those of image `unsafe`
 * must not be mirrored. */
static char *make_set(unsigned first, const unsigned *counts, unsigned n, unsigned unsafe)
{
    char *dir = pseg_strdup(make_folder());
    pseg_buf text;

    pseg_buf_init(&text, 1 << 24);
    for (unsigned i = first; i < first + n; i++) {
        put_image(dir, i);
        pseg_buf_printf(&text, &err, "{\"image\":\"%06u.png\",\"samples\":[", i);
        for (unsigned k = 0; k < counts[i - first]; k++) {
            const char *end = i == unsafe ? "at 3 o'clock" : "left";

            if (k % 2 == 0)
                pseg_buf_printf(&text, &err,
                                "%s{\"mask\":{\"size\":[%d,%d],\"counts\":[0,%u,%u]},"
                                "\"sentences\":[",
                                k ? "," : "", SIDE, SIDE, columns(k) * SIDE,
                                (SIDE - columns(k)) * SIDE);
            pseg_buf_printf(&text, &err, "%s\"cup %u on %u %s\"", k % 2 ? "," : "", k, i, end);
            if (k % 2 == 1 || k + 1 == counts[i - first])
                pseg_buf_puts(&text, "]}", &err);
        }
        pseg_buf_puts(&text, "]}\n", &err);
    }
    put_file(dir, "a.jsonl", text.data, text.len);
    pseg_buf_deinit(&text);
    return dir;
}

static void drop_set(char *dir)
{
    drop_folder(dir);
    pseg_free(dir);
}

/* ---- a source ---- */

typedef struct fixture {
    pseg_train_source source;
    pseg_train_sizes sizes;
    pseg_train_batch b;
    told told;
    /* of one epoch: how often each phrase came; where it came last: batch * IMAGES + image */
    unsigned times[IMAGES][MOST], place_of[IMAGES][MOST];
    unsigned n_samples, n_full, n_images_full, n_mirrored;
} fixture;

static void set_up(fixture *f, const pseg_train_part *parts, size_t n_parts, const char *val_images,
                   uint32_t batch, uint32_t images, bool mirror)
{
    pseg_head_config head;
    pseg_train_data_options o = {.parts = parts,
                                 .n_parts = n_parts,
                                 .val = val_images ? parts[0].path : NULL,
                                 .val_images = val_images,
                                 .has_pixels = true,
                                 .has_mirror = mirror,
                                 .report = tell,
                                 .report_ud = &f->told};

    *f = (fixture){.sizes = {.batch = batch, .images = images, .seed = 4}};
    pseg_head_config_default(&head);
    head.height = head.width = SIDE;
    head.gh = head.gw = SIDE / 16;
    head.n_upsample = 4;
    head.fit = PSEG_MODEL_SQUASH;
    for (int c = 0; c < 3; c++) {
        head.mean[c] = 0;
        head.std[c] = 1;
    }
    OK(pseg_train_data(&f->source, NULL, &head, &f->sizes, &o, &err));
    f->b.max_images = images;
    f->b.max_samples = batch;
    f->b.pixels = pseg_calloc(images * PIXELS, sizeof(float));
    f->b.image_of = pseg_calloc(batch, sizeof *f->b.image_of);
    f->b.phrases = pseg_calloc(batch, sizeof *f->b.phrases);
    f->b.target = pseg_calloc((size_t)batch * SIDE * SIDE, sizeof(float));
    f->b.id = pseg_calloc(batch, sizeof *f->b.id);
}

static void tear_down(fixture *f)
{
    pseg_train_source_close(&f->source);
    pseg_free(f->b.pixels);
    pseg_free(f->b.image_of);
    pseg_free(f->b.phrases);
    pseg_free(f->b.target);
    pseg_free(f->b.id);
    pseg_arena_free(f->b.arena);
}

static void load(fixture *f, bool is_train, uint64_t epoch, uint64_t batch)
{
    pseg_arena_free(f->b.arena);
    f->b.arena = pseg_arena_new(1 << 20);
    OK(f->source.load(f->source.ud, &f->b, is_train, epoch, batch, &err));
}

/* Sample s has the image that its phrase names, turned as the phrase says, and the phrase's mask.
 */
static void check_sample(fixture *f, uint32_t s, uint64_t batch)
{
    const float *pixels = f->b.pixels + (size_t)f->b.image_of[s] * PIXELS;
    const float *target = f->b.target + (size_t)s * SIDE * SIDE;
    bool is_mirrored = pixels[SIDE * SIDE] < 0.5f;
    unsigned k, i;
    char side[16];

    assert_true(f->b.image_of[s] < f->b.n_images);
    assert_int_equal(sscanf(f->b.phrases[s], "cup %u on %u %15s", &k, &i, side), 3);
    assert_true(pixels[0] * 255 > (float)i - 0.5f && pixels[0] * 255 < (float)i + 0.5f);
    assert_string_equal(side, strcmp(side, "at") == 0 ? "at" : is_mirrored ? "right" : "left");
    assert_true(strcmp(side, "at") != 0 || !is_mirrored);
    assert_true(strstr(f->b.id[s], ", mirrored") ? is_mirrored : !is_mirrored);
    for (unsigned y = 0; y < SIDE; y++)
        for (unsigned x = 0; x < SIDE; x++) {
            unsigned from_left = is_mirrored ? SIDE - 1 - x : x;
            assert_true(target[y * SIDE + x] == (from_left < columns(k) ? 1.0f : 0.0f));
        }
    f->times[i][k]++;
    f->place_of[i][k] = (unsigned)batch * IMAGES + f->b.image_of[s];
    f->n_mirrored += is_mirrored;
}

/* Goes through an epoch, or a validation. */
static void go_through(fixture *f, bool is_train, uint64_t epoch)
{
    uint64_t n = is_train ? f->source.n_train : f->source.n_val;

    memset(f->times, 0, sizeof f->times);
    f->n_samples = f->n_full = f->n_images_full = f->n_mirrored = 0;
    for (uint64_t batch = 0; batch < n; batch++) {
        load(f, is_train, epoch, batch);
        assert_true(f->b.n_images >= 1 && f->b.n_images <= f->sizes.images);
        assert_true(f->b.n_samples >= f->b.n_images && f->b.n_samples <= f->sizes.batch);
        for (uint32_t s = 0; s < f->b.n_samples; s++) {
            /* an image's phrases stand together, and no image is without one */
            assert_int_equal(f->b.image_of[s] - (s ? f->b.image_of[s - 1] : 0),
                             s && f->b.image_of[s] != f->b.image_of[s - 1]);
            check_sample(f, s, batch);
        }
        assert_int_equal(f->b.image_of[f->b.n_samples - 1], f->b.n_images - 1);
        f->n_samples += f->b.n_samples;
        f->n_full += f->b.n_samples == f->sizes.batch;
        f->n_images_full += f->b.n_images == f->sizes.images;
    }
}

/* ---- tests ---- */

static void each_phrase_comes_once(void **state)
{
    static const unsigned counts[] = {1, 2, 3, 300, 5, 4, 1, 9, 17, 2, 6};
    enum { N = sizeof counts / sizeof *counts };
    static const uint32_t images[] = {8, 4, 2, 1};
    static fixture f;
    char *dir = make_set(0, counts, N, 4);
    pseg_train_part part = {dir, 1};

    (void)state;
    for (size_t k = 0; k < sizeof images / sizeof *images; k++) {
        set_up(&f, &part, 1, "last:3", 8, images[k], true);
        for (uint64_t epoch = 0; epoch < 4; epoch++) {
            bool is_train = epoch < 3;

            go_through(&f, is_train, epoch);
            for (unsigned i = 0; i < N; i++)
                for (unsigned p = 0; p < MOST; p++)
                    assert_int_equal(f.times[i][p],
                                     p < counts[i] && (is_train ? i < N - 3 : i >= N - 3));
            assert_true(is_train ? f.n_mirrored > 0 : f.n_mirrored == 0);
        }
        tear_down(&f);
    }
    drop_set(dir);
}

/* Other phrases of an image meet each time, and other images. */
static void blocks_are_mixed(void **state)
{
    static const unsigned counts[] = {40, 40, 40, 40, 40, 40};
    static fixture f;
    char *dir = make_set(0, counts, 6, 99);
    pseg_train_part part = {dir, 1};
    unsigned together[2] = {0}, images_together[2] = {0};

    (void)state;
    set_up(&f, &part, 1, NULL, 8, 2, false);
    for (uint64_t epoch = 0; epoch < 2; epoch++) {
        go_through(&f, true, epoch);
        assert_int_equal(f.n_full, f.source.n_train); /* 240 phrases: 30 full batches */
        assert_int_equal(f.source.n_train, 30);
        for (unsigned p = 1; p < 40; p++)
            if (f.place_of[0][p] == f.place_of[0][0])
                together[epoch] = 40 * together[epoch] + p;
        for (unsigned i = 1; i < 6; i++)
            for (unsigned p = 0; p < 40; p++)
                if (f.place_of[i][p] / IMAGES == f.place_of[0][0] / IMAGES)
                    images_together[epoch] += 1000 * i + p;
    }
    assert_true(together[0] && together[0] != together[1]);
    assert_int_not_equal(images_together[0], images_together[1]);
    tear_down(&f);
    drop_set(dir);
}

/* Batches are as full as images allow: of phrases where there are enough, of images elsewhere. */
static void batches_are_full(void **state)
{
    static const struct {
        unsigned phrases, images;          /* of the set */
        unsigned batches, full, of_images; /* there are; full of phrases; of images */
    } cases[] = {
        {100, 8, 25, 25, 25}, /* hundreds: 8 images of 4 phrases each */
        {4, 32, 4, 4, 4},
        {5, 32, 5, 5, 0}, /* a few more than 4: seven images, one of them with a part */
        {3, 32, 4, 0, 4}, /* 8 images of 3 */
        {1, 20, 3, 0, 2},
    };
    static fixture f;
    unsigned counts[IMAGES];

    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        for (unsigned i = 0; i < cases[c].images; i++)
            counts[i] = cases[c].phrases;
        char *dir = make_set(0, counts, cases[c].images, 99);
        pseg_train_part part = {dir, 1};

        set_up(&f, &part, 1, NULL, 32, 8, false);
        go_through(&f, true, 1);
        assert_int_equal(f.source.n_train, cases[c].batches);
        assert_int_equal(f.n_full, cases[c].full);
        assert_int_equal(f.n_samples, cases[c].images * cases[c].phrases);
        assert_int_equal(f.n_samples, f.source.n_phrases);
        if (cases[c].of_images)
            assert_true(f.n_images_full >= cases[c].of_images);
        tear_down(&f);
        drop_set(dir);
    }
}

/* With as many images as samples each sample has its own, mirrored or not by itself. */
static void samples_may_have_their_own_images(void **state)
{
    static const unsigned counts[] = {30, 2, 9};
    static fixture f;
    char *dir = make_set(0, counts, 3, 99);
    pseg_train_part part = {dir, 1};

    (void)state;
    set_up(&f, &part, 1, NULL, 8, 8, true);
    assert_int_equal(f.source.n_train, 6);
    for (uint64_t batch = 0; batch < 6; batch++) {
        load(&f, true, 0, batch);
        assert_int_equal(f.b.n_images, f.b.n_samples);
        assert_int_equal(f.b.n_samples, batch < 5 ? 8 : 1);
        for (uint32_t s = 0; s < f.b.n_samples; s++)
            assert_int_equal(f.b.image_of[s], s);
    }
    tear_down(&f);
    drop_set(dir);
}

/* Weights 2 and 0.5: every phrase of the first twice an epoch, about half of the second's once, and
 * others the next time; without the photos that are held out, which both have. */
static void weights_say_how_often(void **state)
{
    static const unsigned first[] = {1, 2, 3, 9, 5}, second[] = {1, 7, 3, 2, 12, 5, 4, 6, 30, 1};
    static fixture f;
    static unsigned before[IMAGES][MOST];
    char *a = make_set(0, first, 5, 99), *b = make_set(4, second, 10, 99);
    pseg_train_part parts[] = {{a, 2}, {b, 0.5}};

    (void)state;
    set_up(&f, parts, 2, "last:1", 8, 4, false); /* image 4: the first one of the second set */
    for (uint64_t epoch = 0; epoch < 2; epoch++) {
        unsigned n = 0, all = 0, changed = 0;

        go_through(&f, true, epoch);
        for (unsigned i = 0; i < 14; i++)
            for (unsigned p = 0; p < MOST; p++) {
                if (i < 5)
                    assert_int_equal(f.times[i][p], i < 4 && p < first[i] ? 2 : 0);
                else
                    assert_true(f.times[i][p] <= (p < second[i - 4]));
                n += i < 5 ? 0 : f.times[i][p];
                all += i >= 5 && p < second[i - 4];
                changed += f.times[i][p] != before[i][p];
            }
        assert_int_equal(all, 70);
        assert_true(n > 20 && n < 50);
        assert_true(epoch == 0 || changed > 10);
        memcpy(before, f.times, sizeof before);
    }
    go_through(&f, false, 0);
    assert_int_equal(f.n_samples, 5);
    tear_down(&f);
    parts[0].weight = 0.001; /* never nothing */
    set_up(&f, parts, 1, "last:1", 8, 4, false);
    go_through(&f, true, 0);
    assert_true(f.n_samples >= 1);
    tear_down(&f);
    drop_set(a);
    drop_set(b);
}

/* A batch is the same whatever was loaded before it. */
static void a_batch_depends_on_its_numbers_alone(void **state)
{
    static const unsigned counts[] = {1, 2, 3, 30, 5, 4, 1, 9};
    static fixture f, g;
    char *dir = make_set(0, counts, 8, 99);
    pseg_train_part part = {dir, 1};
    size_t pixels = 4 * PIXELS * sizeof(float), target = 8 * SIDE * SIDE * sizeof(float);

    (void)state;
    set_up(&f, &part, 1, "first:1", 8, 4, true);
    set_up(&g, &part, 1, "first:1", 8, 4, true);
    load(&f, true, 5, 1);
    load(&g, true, 6, 1);
    assert_true(memcmp(f.b.pixels, g.b.pixels, pixels) != 0 ||
                memcmp(f.b.target, g.b.target, target) != 0);
    load(&g, false, 6, 0);
    load(&g, true, 5, 0);
    load(&g, true, 5, 1);
    assert_int_equal(f.b.n_samples, g.b.n_samples);
    assert_memory_equal(f.b.pixels, g.b.pixels, f.b.n_images * PIXELS * sizeof(float));
    assert_memory_equal(f.b.target, g.b.target, f.b.n_samples * SIDE * SIDE * sizeof(float));
    assert_memory_equal(f.b.image_of, g.b.image_of, f.b.n_samples * sizeof *f.b.image_of);
    for (uint32_t s = 0; s < f.b.n_samples; s++) {
        assert_string_equal(f.b.phrases[s], g.b.phrases[s]);
        assert_string_equal(f.b.id[s], g.b.id[s]);
    }
    tear_down(&f);
    tear_down(&g);
    drop_set(dir);
}

/* An image that turns out to be broken is told of once and left out with all of its phrases. */
static void broken_images_are_left_out(void **state)
{
    static const unsigned counts[] = {1, 20, 3, 9};
    static fixture f;
    char *dir = make_set(0, counts, 4, 99), path[128];
    pseg_train_part part = {dir, 1};

    (void)state;
    set_up(&f, &part, 1, NULL, 8, 2, false);
    snprintf(path, sizeof path, "%s/000001.png", dir);
    assert_int_equal(truncate(path, 60), 0); /* after its header was looked at */
    for (uint64_t epoch = 0; epoch < 2; epoch++) {
        unsigned lacks = 0;

        go_through(&f, true, epoch); /* batches of nothing else have another's phrases */
        for (unsigned i = 0; i < 4; i++)
            for (unsigned p = 0; p < counts[i]; p++)
                lacks += f.times[i][p] == 0;
        assert_int_equal(lacks, counts[1]);
    }
    assert_non_null(strstr(f.told.text, "image_broken a.jsonl:2:"));
    assert_null(strstr(strchr(f.told.text, '\n') + 1, "\n"));
    tear_down(&f);
    drop_set(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_phrase_comes_once),
        cmocka_unit_test(blocks_are_mixed),
        cmocka_unit_test(batches_are_full),
        cmocka_unit_test(samples_may_have_their_own_images),
        cmocka_unit_test(weights_say_how_often),
        cmocka_unit_test(a_batch_depends_on_its_numbers_alone),
        cmocka_unit_test(broken_images_are_left_out),
    };

    if (pseg_image_init(&err) != PSEG_OK)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pseg_image_shutdown();
    return failed;
}
