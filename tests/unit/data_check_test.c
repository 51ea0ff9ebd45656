#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/buf.h"
#include "common/image/image.h"
#include "tests/support/skips.h"
#include "tests/unit/data_support.h"
#include "worker/data/check.h"

static pseg_err err;

#define OK(call)                                \
    do {                                        \
        if ((call) != PSEG_OK)                  \
            fail_msg("%s: %s", #call, err.msg); \
    } while (0)

#define MASK                "\"mask\":{\"size\":[2,3],\"counts\":\"222\"}"
#define LINE(image, sample) "{\"image\":\"" image "\",\"samples\":[" sample "]}\n"

static void put_picture(const char *dir, const char *name, uint32_t w, uint32_t h, uint8_t shade)
{
    uint8_t rgb[3 * 64];
    pseg_buf png;

    memset(rgb, shade, sizeof rgb);
    pseg_buf_init(&png, 1 << 20);
    OK(pseg_png_write(&png, rgb, w, h, 3, &err));
    put_file(dir, name, png.data, png.len);
    pseg_buf_deinit(&png);
}

static pseg_check *new_check(told *t, const char *text)
{
    pseg_check_options o = {.report = tell, .report_ud = t, .text = text};
    pseg_check *c;

    OK(pseg_check_new(&c, &o, &err));
    return c;
}

static void add(pseg_check *c, const char *path)
{
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;

    o.max_phrase_bytes = 20000;
    OK(pseg_check_add(c, path, &o, &err));
}

static void a_good_set_has_no_faults(void **state)
{
    char *dir = make_folder();
    static told t;
    pseg_check *c = new_check(&t, NULL);

    (void)state;
    put_picture(dir, "a.png", 3, 2, 9);
    add(c,
        put_file(dir, "s.jsonl",
                 LINE("a.png", "{\"sentences\":[\"one\",\"two words\"],\"area\":2,\"bbox\":[1,0,1,"
                               "2]," MASK "}"),
                 strlen(LINE("a.png", "{\"sentences\":[\"one\",\"two words\"],\"area\":2,"
                                      "\"bbox\":[1,0,1,2]," MASK "}"))));
    assert_string_equal(t.text, "");
    assert_int_equal(pseg_check_n_faults(c), 0);
    const pseg_check_set *s = pseg_check_set_of(c, 0);
    assert_true(s->n_images == 1 && s->n_usable_images == 1 && s->n_phrases == 2);
    assert_true(s->mean_words == 1.5 && s->min_side == 2 && s->max_side == 3);
    pseg_check_free(c);
    drop_folder(dir);
}

static void every_fault_is_named(void **state)
{
    static const char *const want[] = {
        "image_broken s.jsonl:2: b.png:",
        "image_missing s.jsonl:3: no.png:",
        "mask_size s.jsonl:4: wide.png has 4 x 2 pixels, its masks 3 x 2",
        "image_repeated s.jsonl:5: image name:twin (twin.png) has the same bytes as s.jsonl:1",
        "mask_area s.jsonl:6 sample 0: the area is told as 5, the mask has 2 pixels",
        "mask_area s.jsonl:6 sample 0: the bbox is told as 9 0 1 2",
        "phrase_empty s.jsonl:7 sample 0: phrase 0 is empty",
        "phrase_repeated s.jsonl:7 sample 1: \"cup\" also means sample 0",
        "phrase_repeated s.jsonl:7 sample 1: \"mug\" twice for one mask",
        "phrase_long s.jsonl:8 sample 0: \"w w w w",
        "mask_empty s.jsonl:9 sample 0: the mask",
        "bad_record s.jsonl:10:",
    };
    char *dir = make_folder();
    static told t;
    pseg_buf text;
    pseg_check *c = new_check(&t, NULL);

    (void)state;
    put_picture(dir, "a.png", 3, 2, 9);
    put_file(dir, "b.png", "\x89PNG\r\n\x1a\n", 8);
    put_picture(dir, "wide.png", 4, 2, 8);
    put_picture(dir, "twin.png", 3, 2, 9);
    put_picture(dir, "box.png", 3, 2, 7);
    put_picture(dir, "c.png", 3, 2, 6);
    put_picture(dir, "d.png", 3, 2, 5);
    pseg_buf_init(&text, 1 << 20);
    OK(pseg_buf_puts(
        &text,
        LINE("a.png", "{\"phrase\":\"p\"," MASK "}") LINE("b.png", "{\"phrase\":\"p\"," MASK "}")
            LINE("no.png", "{\"phrase\":\"p\"," MASK "}")
                LINE("wide.png", "{\"phrase\":\"p\"," MASK "}")
                    LINE("twin.png", "{\"phrase\":\"p\"," MASK "}")
                        LINE("box.png", "{\"phrase\":\"p\",\"area\":5,\"bbox\":[9,0,1,2]," MASK "}")
                            LINE("c.png", "{\"sentences\":[\" \",\"cup\"]," MASK
                                          "},{\"sentences\":[\"cup\",\"mug\",\"mug\"]," MASK
                                          "}") "{\"image\":\"d.png\",\"samples\":[{"
                                               "\"phrase\":\"",
        &err));
    for (int i = 0; i < 9999; i++) /* a phrase of 10,000 words */
        OK(pseg_buf_puts(&text, "w ", &err));
    OK(pseg_buf_puts(
        &text,
        "w\"," MASK "}]}\n" LINE(
            "e.png", "{\"phrase\":\"p\",\"mask\":{\"size\":[2,3],\"counts\":\"6\"}}") "{\n",
        &err));
    add(c, put_file(dir, "s.jsonl", text.data, text.len));
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        if (!strstr(t.text, want[i]))
            fail_msg("not told: %s\ntold:\n%s", want[i], t.text);
    assert_int_equal(pseg_check_set_of(c, 0)->n_usable_images, 5);
    assert_int_equal(pseg_check_n_faults(c), sizeof want / sizeof *want + 1); /* and no_samples */
    pseg_buf_deinit(&text);
    pseg_check_free(c);
    drop_folder(dir);
}

/* Two sets: every image that both hold is named, by its number or by its bytes. */
static void shared_images_are_named(void **state)
{
    static const char a[] = LINE("COCO_train2014_000000000007.png", "{\"phrase\":\"p\"," MASK "}")
        LINE("only.png", "{\"phrase\":\"p\"," MASK "}");
    static const char b[] = LINE("000000000007.png", "{\"phrase\":\"q\"," MASK "}")
        LINE("other.png", "{\"phrase\":\"q\"," MASK "}")
            LINE("new.png", "{\"phrase\":\"q\"," MASK "}");
    char *dir = make_folder();
    static told t;
    pseg_check *c = new_check(&t, NULL);

    (void)state;
    put_picture(dir, "COCO_train2014_000000000007.png", 3, 2, 1);
    put_picture(dir, "000000000007.png", 3, 2, 2);
    put_picture(dir, "only.png", 3, 2, 3);
    put_picture(dir, "other.png", 3, 2, 3);
    put_picture(dir, "new.png", 3, 2, 4);
    add(c, put_file(dir, "a.jsonl", a, strlen(a)));
    assert_int_equal(pseg_check_n_faults(c), 0);
    add(c, put_file(dir, "b.jsonl", b, strlen(b)));
    assert_int_equal(pseg_check_set_of(c, 1)->faults[PSEG_DATA_SHARED], 2);
    assert_int_equal(pseg_check_n_faults(c), 2);
    assert_non_null(strstr(t.text, "shared b.jsonl:1: image coco:7 (000000000007.png) is in "));
    assert_non_null(strstr(t.text, "a.jsonl:1"));
    assert_non_null(
        strstr(t.text, "shared b.jsonl:2: image name:other (other.png) has the same bytes"));
    assert_non_null(strstr(t.text, "a.jsonl:2"));
    pseg_check_free(c);
    drop_folder(dir);
}

static void phrases_are_sought_in_a_table(void **state)
{
    static const char text[] =
        LINE("a.png", "{\"sentences\":[\"Traffic Light\",\"doge\"]," MASK "}");
    char *dir;
    static told t;
    pseg_check *c;

    (void)state;
    if (!pseg_file_exists(PSEG_TEST_DATA_DIR "/clip_text_table/names.json"))
        skip_here();
    dir = make_folder();
    c = new_check(&t, PSEG_TEST_DATA_DIR "/clip_text_table");
    put_picture(dir, "a.png", 3, 2, 1);
    add(c, put_file(dir, "a.jsonl", text, strlen(text)));
    assert_int_equal(pseg_check_n_faults(c), 1);
    assert_non_null(strstr(t.text, "phrase_unknown a.jsonl:1 sample 0:"));
    assert_non_null(strstr(t.text, "lacks \"doge\""));
    pseg_check_free(c);
    drop_folder(dir);
}

static void a_set_that_cannot_be_used_is_an_error(void **state)
{
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    static told t;
    pseg_check *c = new_check(&t, NULL);

    (void)state;
    assert_int_equal(pseg_check_add(c, "/nowhere", &o, &err), PSEG_ENOTFOUND);
    assert_int_equal(pseg_check_n_sets(c), 0);
    pseg_check_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_set_has_no_faults),
        cmocka_unit_test(every_fault_is_named),
        cmocka_unit_test(shared_images_are_named),
        cmocka_unit_test(phrases_are_sought_in_a_table),
        cmocka_unit_test(a_set_that_cannot_be_used_is_an_error),
    };

    if (pseg_image_init(&err) != PSEG_OK)
        return 1;
    int failed = with_skips(cmocka_run_group_tests(tests, NULL, NULL));
    pseg_image_shutdown();
    return failed;
}
