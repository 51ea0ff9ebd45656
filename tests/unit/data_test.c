#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/buf.h"
#include "tests/support/skips.h"
#include "tests/unit/data_support.h"
#include "worker/scenes/dataset.h"

/* 3 x 2: the middle column inside. */
#define MASK "\"mask\":{\"size\":[2,3],\"counts\":\"222\"}"

static pseg_dataset *open_text(const char *text, told *t)
{
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_dataset *d = NULL;
    char *dir = make_folder();

    o.report = tell;
    o.report_ud = t;
    o.max_phrase_bytes = 64;
    if (pseg_dataset_open(&d, put_file(dir, "a.jsonl", text, strlen(text)), &o, &err))
        tell(t, PSEG_DATA_N_FAULTS, "error", err.msg);
    drop_folder(dir);
    return d;
}

static void reads_lines(void **state)
{
    static const char text[] =
        "{\"image\":\"COCO_train2014_000000000009.jpg\",\"width\":3,\"height\":2,\"samples\":["
        "{\"id\":5,\"kind\":\"class\",\"category\":\"cup\",\"sentences\":[\"a cup\",\"the mug\"],"
        "\"bbox\":[1,0,1,2],\"area\":2," MASK "},"
        "{\"sentence\":\"all\",\"mask\":{\"size\":[2,3],\"counts\":[0,6]}}]}\n"
        "\r\n"
        "{\"image\":\"x/"
        "seven.png\",\"image_id\":7,\"width\":4,\"height\":4,\"samples\":[{\"phrase\":"
        "\"box\",\"segmentation\":[[1,1,3,1,3,3,1,3]]}]}";
    told t = {0};
    pseg_dataset *d = open_text(text, &t);
    pseg_err err = PSEG_ERR_INIT;
    pseg_data_record *r;
    pseg_mask *m;

    (void)state;
    assert_string_equal(t.text, "");
    assert_non_null(d);
    assert_int_equal(pseg_dataset_n_images(d), 2);
    assert_int_equal(pseg_dataset_n_samples(d), 3);
    assert_int_equal(pseg_dataset_n_phrases(d), 4);

    assert_int_equal(pseg_dataset_read(&r, d, 0, &err), PSEG_OK);
    assert_string_equal(r->key, "coco:9");
    assert_string_equal(r->where, "a.jsonl:1");
    assert_int_equal(r->n_samples, 2);
    assert_int_equal(r->samples[0].id, 5);
    assert_string_equal(r->samples[0].category, "cup");
    assert_string_equal(r->samples[0].kind, "class");
    assert_string_equal(r->samples[0].sentences[1], "the mug");
    assert_true(r->samples[0].area == 2 && r->samples[0].bbox[3] == 2);
    assert_true(r->samples[1].area == -1);
    assert_int_equal(pseg_data_mask_decode(&m, &r->samples[0].mask, &err), PSEG_OK);
    assert_memory_equal(m->data, "\0\1\0\0\1\0", 6);
    pseg_mask_free(m);
    assert_int_equal(pseg_data_mask_decode(&m, &r->samples[1].mask, &err), PSEG_OK);
    assert_int_equal(m->area, 6);
    pseg_mask_free(m);
    pseg_data_record_free(r);

    assert_int_equal(pseg_dataset_read(&r, d, 1, &err), PSEG_OK);
    assert_string_equal(r->key, "id:7");
    assert_string_equal(r->where, "a.jsonl:3");
    assert_int_equal(pseg_data_mask_decode(&m, &r->samples[0].mask, &err), PSEG_OK);
    assert_memory_equal(m->data, "\0\0\0\0\0\1\1\0\0\1\1\0\0\0\0\0", 16);
    pseg_mask_free(m);
    pseg_data_record_free(r);
    pseg_dataset_close(d);
}

/* Each thing that is wrong is left out, counted and named with its line; the rest stays. */
static void names_what_it_leaves_out(void **state)
{
#define LINE(image, sample) \
    "{\"image\":\"" image "\",\"width\":3,\"height\":2,\"samples\":[" sample "]}\n"
    static const char text[] = LINE(
        "a",
        "{\"sentences\":[\"ok\"]," MASK
        "}") "{\"image\":\n"
             "{\"samples\":[]}\n"
             "{\"image\":\"n\",\"samples\":5}\n" LINE("a", "{\"sentences\":[\"again\"]," MASK "}")
                 LINE("b", "{\"sentences\":[\"p\"],\"mask\":{\"size\":[2,3],\"counts\":\"6\"}}")
                     LINE("c",
                          "{\"sentences\":[\"p\"],\"mask\":{\"size\":[2,3],\"counts\":\"22\"}}")
                         LINE(
                             "d",
                             "{\"sentences\":[\"p\"],\"mask\":{\"size\":[3,2],\"counts\":\"222\"}}")
                             LINE("e", "{\"sentences\":[]," MASK "}") LINE(
                                 "f", "{\"sentences\":[\" \\t\",\"good\"]," MASK
                                      "}") LINE("g", "{\"sentences\":["
                                                     "\"0123456789012345678901234567890123456789012"
                                                     "345678901234567890123456789\"]," MASK "}")
                                 LINE("h",
                                      "{\"sentences\":[\"p\"]}") "{\"image\":\"i\",\"samples\":[{"
                                                                 "\"sentences\":[\"\xff\"]," MASK
                                                                 "}]}\n" LINE(
                                                                     "j", "{\"sentences\":[5]," MASK
                                                                          "}") LINE("k", "");
    static const struct {
        pseg_data_fault fault;
        size_t n;
        const char *line;
    } want[] = {
        {PSEG_DATA_BAD_RECORD, 6, "bad_record a.jsonl:2:"},
        {PSEG_DATA_BAD_RECORD, 6, "bad_record a.jsonl:3:"},
        {PSEG_DATA_BAD_RECORD, 6, "bad_record a.jsonl:4:"},
        {PSEG_DATA_IMAGE_REPEATED, 1, "image_repeated a.jsonl:5: image name:a"},
        {PSEG_DATA_MASK_EMPTY, 1, "mask_empty a.jsonl:6 sample 0:"},
        {PSEG_DATA_MASK_BROKEN, 1, "mask_broken a.jsonl:7 sample 0:"},
        {PSEG_DATA_MASK_SIZE, 1, "mask_size a.jsonl:8 sample 0: the mask has 2 x 3"},
        {PSEG_DATA_PHRASE_MISSING, 1, "phrase_missing a.jsonl:9 sample 0:"},
        {PSEG_DATA_PHRASE_EMPTY, 1, "phrase_empty a.jsonl:10 sample 0: phrase 0"},
        {PSEG_DATA_PHRASE_LONG, 1, "phrase_long a.jsonl:11 sample 0: phrase 0"},
        {PSEG_DATA_BAD_RECORD, 6, "bad_record a.jsonl:12 sample 0:"},
        {PSEG_DATA_BAD_RECORD, 6, "bad_record a.jsonl:13: the line is no JSON: unable to decode"},
        {PSEG_DATA_BAD_RECORD, 6, "bad_record a.jsonl:14 sample 0:"},
    };
    told t = {0};
    pseg_dataset *d = open_text(text, &t);

    (void)state;
    assert_non_null(d);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        if (!strstr(t.text, want[i].line))
            fail_msg("not told: %s\ntold:\n%s", want[i].line, t.text);
        assert_int_equal(pseg_dataset_n_faults(d, want[i].fault), want[i].n);
    }
    assert_int_equal(pseg_dataset_n_images(d), 2);
    assert_int_equal(pseg_dataset_n_phrases(d), 2);
    pseg_dataset_close(d);
}

static void refuses_a_set_of_nothing(void **state)
{
    told t = {0};

    (void)state;
    assert_null(open_text("{\"image\":\"a\",\"samples\":[]}\n", &t));
    assert_non_null(strstr(t.text, "no image with a mask and a phrase is left"));
    t = (told){0};
    assert_null(open_text("", &t));
    assert_non_null(strstr(t.text, "no image with a mask and a phrase is left"));
}

static void finds_the_set_in_a_folder(void **state)
{
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_dataset *d;
    char *dir = make_folder();

    (void)state;
    assert_int_equal(pseg_dataset_open(&d, "/nowhere/at/all", &o, &err), PSEG_ENOTFOUND);
    assert_int_equal(pseg_dataset_open(&d, dir, &o, &err), PSEG_EINVAL);
    assert_non_null(strstr(err.msg, "holds no data set"));
    put_file(dir, "one.jsonl", "{}", 2);
    put_file(dir, "two.jsonl", "{}", 2);
    assert_int_equal(pseg_dataset_open(&d, dir, &o, &err), PSEG_EINVAL);
    assert_non_null(strstr(err.msg, "one.jsonl"));
    drop_folder(dir);
}

/* What `pseg scenes` writes: every mask is the scene's. */
static void reads_scenes(void **state)
{
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_scene_dataset *out;
    pseg_dataset *d;
    char *dir = make_folder();

    (void)state;
    assert_int_equal(pseg_scene_dataset_open(&out, dir, &err), PSEG_OK);
    for (uint64_t seed = 3; seed < 7; seed++) {
        pseg_scene *s;
        assert_int_equal(pseg_scene_make(&s, seed, 96, &err), PSEG_OK);
        assert_int_equal(pseg_scene_dataset_add(out, s, &err), PSEG_OK);
        pseg_scene_free(s);
    }
    assert_int_equal(pseg_scene_dataset_finish(out, &err), PSEG_OK);
    pseg_scene_dataset_free(out);
    assert_int_equal(pseg_dataset_open(&d, dir, &o, &err), PSEG_OK);
    assert_int_equal(pseg_dataset_n_images(d), 4);
    for (uint64_t i = 0; i < 4; i++) {
        pseg_scene *s;
        pseg_data_record *r;
        pseg_data_bytes bytes;
        assert_int_equal(pseg_scene_make(&s, 3 + i, 96, &err), PSEG_OK);
        assert_int_equal(pseg_dataset_read(&r, d, i, &err), PSEG_OK);
        assert_int_equal(r->n_samples, s->n_phrases);
        for (uint32_t k = 0; k < r->n_samples; k++) {
            pseg_mask *m;
            assert_string_equal(r->samples[k].sentences[0], s->phrases[k].text);
            assert_int_equal(pseg_data_mask_decode(&m, &r->samples[k].mask, &err), PSEG_OK);
            for (size_t p = 0; p < 96 * 96; p++)
                assert_int_equal(m->data[p], s->id[p] == s->phrases[k].target + 1);
            pseg_mask_free(m);
        }
        assert_int_equal(pseg_dataset_image(&bytes, d, i, &err), PSEG_OK);
        assert_memory_equal(bytes.data, "\x89PNG", 4);
        pseg_data_bytes_free(&bytes);
        pseg_data_record_free(r);
        pseg_scene_free(s);
    }
    pseg_dataset_close(d);
    drop_folder(dir);
}

static void reads_the_photos(void **state)
{
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_dataset *d;
    size_t n = 0;

    (void)state;
    if (!pseg_file_exists(PSEG_TEST_DATA_DIR "/photos/annotations.jsonl"))
        skip_here();
    assert_int_equal(pseg_dataset_open(&d, PSEG_TEST_DATA_DIR "/photos", &o, &err), PSEG_OK);
    assert_int_equal(pseg_dataset_n_images(d), 226);
    assert_int_equal(pseg_dataset_n_samples(d), 873);
    for (size_t i = 0; i < 226; i++) {
        pseg_data_record *r;
        pseg_data_bytes bytes;
        assert_int_equal(pseg_dataset_read(&r, d, i, &err), PSEG_OK);
        for (uint32_t k = 0; k < r->n_samples; k++) {
            pseg_mask *m;
            assert_int_equal(pseg_data_mask_decode(&m, &r->samples[k].mask, &err), PSEG_OK);
            assert_true((double)m->area == r->samples[k].area);
            pseg_mask_free(m);
            n++;
        }
        assert_int_equal(pseg_dataset_image(&bytes, d, i, &err), PSEG_OK);
        pseg_data_bytes_free(&bytes);
        pseg_data_record_free(r);
    }
    assert_int_equal(n, 873);
    pseg_dataset_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_lines),
        cmocka_unit_test(names_what_it_leaves_out),
        cmocka_unit_test(refuses_a_set_of_nothing),
        cmocka_unit_test(finds_the_set_in_a_folder),
        cmocka_unit_test(reads_scenes),
        cmocka_unit_test(reads_the_photos),
    };
    return with_skips(cmocka_run_group_tests(tests, NULL, NULL));
}
