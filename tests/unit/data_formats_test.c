/* The formats that others write, read from files that pyarrow, Python's pickle and pycocotools made
 * (tests/unit/data/sets/make_sets.py), and compared with what those say is in them. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/buf.h"
#include "common/base/hash.h"
#include "tests/unit/data_support.h"
#include "worker/data/parquet.h"
#include "worker/data/pickle.h"

#include <inttypes.h>

#define SETS PSEG_TEST_SOURCE_DIR "/tests/unit/data/sets/"

static pseg_err err;

#define OK(call)                                \
    do {                                        \
        if ((call) != PSEG_OK)                  \
            fail_msg("%s: %s", #call, err.msg); \
    } while (0)

static pseg_dataset *open_set(const char *path, const pseg_data_options *o)
{
    pseg_data_options plain = PSEG_DATA_OPTIONS_DEFAULT;
    pseg_dataset *d = NULL;

    if (pseg_dataset_open(&d, path, o ? o : &plain, &err) != PSEG_OK)
        fail_msg("%s: %s", path, err.msg);
    return d;
}

static char *read_text(const char *path)
{
    uint8_t *text;
    size_t n;

    OK(pseg_file_read(&text, &n, path, 1 << 24, &err));
    return (char *)text;
}

static void same_text(const char *got, const char *want_path, const char *what)
{
    char *want = read_text(want_path);
    size_t i = 0, line = 1;

    for (; got[i] && got[i] == want[i]; i++)
        line += got[i] == '\n';
    if (got[i] != want[i])
        fail_msg("%s differs from %s in line %zu:\n%.200s\nexpected:\n%.200s", what, want_path,
                 line, got + (i > 40 ? i - 40 : 0), want + (i > 40 ? i - 40 : 0));
    pseg_free(want);
}

/* ---- parquet ---- */

/* The set as make_sets.py writes it down. */
static void write_down(pseg_buf *out, pseg_dataset *d)
{
    for (size_t i = 0; i < pseg_dataset_n_images(d); i++) {
        uint8_t sum[PSEG_SHA256_BYTES];
        char hex[2 * PSEG_SHA256_BYTES + 1] = "-";
        pseg_data_bytes file;
        pseg_data_record *r;
        OK(pseg_dataset_read(&r, d, i, &err));
        if (pseg_dataset_image(&file, d, i, &err) == PSEG_OK) {
            pseg_sha256_of(sum, file.data, file.len);
            pseg_hex(hex, sum, 8);
        }
        pseg_data_bytes_free(&file);
        OK(pseg_buf_printf(out, &err, "image %" PRId64 " %s %s\n", r->image_id, r->file_name, hex));
        for (uint32_t k = 0; k < r->n_samples; k++) {
            const pseg_data_sample *s = &r->samples[k];
            pseg_mask *m;
            OK(pseg_data_mask_decode(&m, &s->mask, &err));
            OK(pseg_buf_printf(out, &err, "  sample %" PRId64 " %s %g %g %g %g %ux%u area %llu\n",
                               s->id, s->category, s->bbox[0], s->bbox[1], s->bbox[2], s->bbox[3],
                               m->width, m->height, (unsigned long long)m->area));
            for (uint32_t j = 0; j < s->n_sentences; j++)
                OK(pseg_buf_printf(out, &err, "    %s\n", s->sentences[j]));
            pseg_mask_free(m);
        }
        pseg_data_record_free(r);
    }
}

static void check_parquet(const char *name, const char *expected)
{
    char path[256], want[256];
    pseg_dataset *d;
    pseg_buf text;

    snprintf(path, sizeof path, SETS "parquet/%s.parquet", name);
    snprintf(want, sizeof want, SETS "parquet/%s", expected);
    d = open_set(path, NULL);
    assert_int_equal(pseg_dataset_format(d), PSEG_DATA_PARQUET);
    pseg_buf_init(&text, 1 << 22);
    write_down(&text, d);
    same_text((const char *)text.data, want, name);
    /* images in any order too */
    for (size_t k = 0; k < 3 * pseg_dataset_n_images(d); k++) {
        size_t i = k * 7 % pseg_dataset_n_images(d);
        pseg_data_record *r;
        pseg_data_bytes file;
        OK(pseg_dataset_read(&r, d, i, &err));
        pseg_status rc = pseg_dataset_image(&file, d, i, &err);
        assert_int_equal(rc, r->image_id == 5 ? PSEG_ENOTFOUND : PSEG_OK);
        if (rc == PSEG_OK) {
            uint8_t sum[PSEG_SHA256_BYTES];
            char hex[17], key[64];
            pseg_sha256_of(sum, file.data, file.len);
            pseg_hex(hex, sum, 8);
            snprintf(key, sizeof key, "%s %s\n", r->file_name, hex);
            assert_non_null(strstr((const char *)text.data, key));
        }
        pseg_data_bytes_free(&file);
        pseg_data_record_free(r);
    }
    pseg_buf_deinit(&text);
    pseg_dataset_close(d);
}

static void reads_what_pyarrow_writes(void **state)
{
    static const char *const names[] = {"none_v1",  "none_v2",  "snappy_v1", "snappy_v2",
                                        "gzip_v1",  "gzip_v2",  "zstd_v1",   "zstd_v2",
                                        "delta_v1", "delta_v2", "narrow",    "hf"};

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_parquet(names[i], "expected.txt");
    check_parquet("many_v1", "many.txt");
    check_parquet("many_v2", "many.txt");
}

static void reads_a_folder_of_files(void **state)
{
    char *dir = make_folder(), command[512];
    pseg_dataset *d;

    (void)state;
    snprintf(command, sizeof command,
             "cp %sparquet/snappy_v1.parquet %s/a.parquet && cp "
             "%sparquet/many_v2.parquet %s/b.parquet",
             SETS, dir, SETS, dir);
    assert_int_equal(system(command), 0);
    d = open_set(dir, NULL);
    assert_int_equal(pseg_dataset_n_images(d), 7 + 60);
    pseg_data_record *r;
    pseg_data_bytes file;
    uint8_t a[24], b[24];
    OK(pseg_dataset_read(&r, d, 7, &err));
    assert_string_equal(r->where, "b.parquet:row 0");
    assert_int_equal(r->image_id, 100);
    pseg_data_record_free(r);
    OK(pseg_dataset_image(&file, d, 66, &err));
    assert_memory_equal(file.data, "\x89PNG", 4);
    pseg_data_bytes_free(&file);
    OK(pseg_dataset_source(a, d, 0, &err));
    OK(pseg_dataset_source(b, d, 7, &err));
    assert_memory_not_equal(a, b, 24);
    pseg_dataset_close(d);
    drop_folder(dir);
}

static void refuses_parquet_by_name(void **state)
{
    static const struct {
        const char *name, *says;
        pseg_status rc;
    } cases[] = {{"brotli", "compressed with Brotli", PSEG_EUNSUPPORTED},
                 {"lz4", "compressed with LZ4", PSEG_EUNSUPPORTED},
                 {"other", "has no column image", PSEG_ECORRUPT}};
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    pseg_dataset *d;
    char path[256];

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(path, sizeof path, SETS "parquet/%s.parquet", cases[i].name);
        assert_int_equal(pseg_dataset_open(&d, path, &o, &err), cases[i].rc);
        if (!strstr(err.msg, cases[i].says))
            fail_msg("%s", err.msg);
    }
}

/* Cut at any byte, and with any byte changed, a file is read or refused, never more. */
static void survives_damaged_parquet(void **state)
{
    static const char *const names[] = {"gzip_v1", "delta_v2", "snappy_v2"};
    uint8_t *bytes;
    size_t n;

    (void)state;
    for (size_t f = 0; f < 3; f++) {
        char path[256];
        snprintf(path, sizeof path, SETS "parquet/%s.parquet", names[f]);
        OK(pseg_file_read(&bytes, &n, path, 1 << 20, &err));
        for (size_t i = 0; i < 2 * n; i += 5) {
            uint8_t *copy = pseg_memdup(bytes, n);
            size_t len = i < n ? i : n;
            parquet *p;
            if (i >= n)
                copy[i - n] ^= (uint8_t)(1u << i % 8);
            if (parquet_from(&p, copy, len, "x", &err) == PSEG_OK) {
                for (uint32_t c = 0; c < parquet_n_columns(p); c++) {
                    parquet_cursor *cursor = NULL;
                    parquet_value v;
                    bool has = parquet_cursor_open(&cursor, p, c, &err) == PSEG_OK;
                    for (int k = 0; has && k < 1000; k++)
                        if (parquet_cursor_next(&v, &has, cursor, &err) != PSEG_OK)
                            break;
                    parquet_cursor_close(cursor);
                }
            } else {
                assert_true(i < n || err.code == PSEG_ECORRUPT || err.code == PSEG_EUNSUPPORTED);
            }
            parquet_close(p);
            pseg_free(copy);
        }
        pseg_free(bytes);
    }
}

/* ---- COCO ---- */

/* Objects of a category are one mask, the union that pycocotools makes, pixel for pixel. */
static void coco_categories_are_united(void **state)
{
    pseg_dataset *d = open_set(SETS "coco/instances.json", NULL);
    pseg_buf text, rle;

    (void)state;
    pseg_buf_init(&text, 1 << 20);
    pseg_buf_init(&rle, 1 << 20);
    assert_int_equal(pseg_dataset_format(d), PSEG_DATA_COCO);
    for (size_t i = 0; i < pseg_dataset_n_images(d); i++) {
        static const char *const order[] = {"person", "traffic light", "dog"}; /* ids 1, 3, 18 */
        pseg_data_record *r;
        OK(pseg_dataset_read(&r, d, i, &err));
        for (size_t k = 0; k < 3; k++)
            for (uint32_t s = 0; s < r->n_samples; s++) {
                pseg_mask *m;
                if (strcmp(r->samples[s].category, order[k]) != 0)
                    continue;
                assert_string_equal(r->samples[s].sentences[0], order[k]);
                assert_string_equal(r->samples[s].kind, "class");
                OK(pseg_data_mask_decode(&m, &r->samples[s].mask, &err));
                pseg_buf_clear(&rle);
                OK(pseg_mask_rle(&rle, m, &err));
                OK(pseg_buf_printf(&text, &err, "%" PRId64 " %s %s\n", r->image_id, order[k],
                                   (const char *)rle.data));
                pseg_mask_free(m);
            }
        assert_string_equal(r->key, i == 0 ? "coco:9" : "coco:25");
        pseg_data_record_free(r);
    }
    same_text((const char *)text.data, SETS "coco/classes.txt", "coco");
    pseg_buf_deinit(&text);
    pseg_buf_deinit(&rle);
    pseg_dataset_close(d);
}

static void coco_objects_stand_alone(void **state)
{
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    pseg_dataset *d;
    pseg_buf text;

    (void)state;
    o.objects = true;
    d = open_set(SETS "coco/instances.json", &o);
    pseg_buf_init(&text, 1 << 20);
    for (size_t i = 0; i < pseg_dataset_n_images(d); i++) {
        static const char *const order[] = {"person", "traffic light", "dog"};
        pseg_data_record *r;
        OK(pseg_dataset_read(&r, d, i, &err));
        for (size_t k = 0; k < 3; k++)
            for (uint32_t s = 0; s < r->n_samples; s++) {
                pseg_mask *m;
                if (strcmp(r->samples[s].category, order[k]) != 0)
                    continue;
                OK(pseg_data_mask_decode(&m, &r->samples[s].mask, &err));
                assert_true(r->samples[s].bbox[3] == 4);
                OK(pseg_buf_printf(&text, &err, "%" PRId64 " %s %" PRId64 " %llu\n", r->image_id,
                                   order[k], r->samples[s].id, (unsigned long long)m->area));
                pseg_mask_free(m);
            }
        pseg_data_record_free(r);
    }
    same_text((const char *)text.data, SETS "coco/objects.txt", "coco objects");
    pseg_buf_deinit(&text);
    pseg_dataset_close(d);
}

static void coco_faults_are_told(void **state)
{
    static const char text[] =
        "{\"images\":[{\"id\":1,\"file_name\":\"a.jpg\",\"width\":9,\"height\":9},{\"id\":2},"
        "{\"id\":1,\"file_name\":\"b.jpg\",\"width\":9,\"height\":9}],\n"
        "\"categories\":[{\"id\":5,\"name\":\"cat\"},7],\"annotations\":["
        "{\"id\":1,\"image_id\":1,\"category_id\":5,\"segmentation\":[[1,1,5,1,5,5]]},"
        "{\"id\":2,\"image_id\":1,\"category_id\":5,\"segmentation\":[[1,1,5]]},"
        "{\"id\":3,\"image_id\":8,\"category_id\":5,\"segmentation\":[]},"
        "{\"id\":4,\"image_id\":1,\"category_id\":6,\"segmentation\":[]},"
        "{\"id\":5,\"image_id\":1,\"category_id\":5,\"segmentation\":{\"size\":[8,8],\"counts\":[9,"
        "55]}},"
        "{\"id\":6,\"image_id\":1,\"category_id\":5},{bad}]}";
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    char *dir = make_folder();
    static told t;
    pseg_dataset *d;

    (void)state;
    o.report = tell;
    o.report_ud = &t;
    d = open_set(put_file(dir, "c.json", text, strlen(text)), &o);
    assert_int_equal(pseg_dataset_n_samples(d), 1);
    assert_int_equal(pseg_dataset_n_faults(d, PSEG_DATA_BAD_RECORD), 7);
    assert_int_equal(pseg_dataset_n_faults(d, PSEG_DATA_MASK_BROKEN), 1);
    assert_int_equal(pseg_dataset_n_faults(d, PSEG_DATA_MASK_SIZE), 1);
    if (!strstr(t.text, "bad_record c.json:byte 61: an image needs"))
        fail_msg("%s", t.text);
    pseg_dataset_close(d);
    for (size_t i = 0; i < strlen(text); i += 3) {
        const char *path = put_file(dir, "c.json", text, i);
        if (pseg_dataset_open(&d, path, &o, &err) == PSEG_OK)
            fail_msg("cut at %zu", i);
        assert_true(err.code == PSEG_ECORRUPT);
        t.n = 0;
    }
    drop_folder(dir);
}

/* ---- RefCOCO ---- */

static pseg_dataset *open_refs(const char *refs, const char *split)
{
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    char *dir = make_folder(), command[512], path[128];
    pseg_dataset *d = NULL;

    o.split = split;
    snprintf(command, sizeof command,
             "cp '%srefcoco/%s' '%s/refs(x).p' && cp %scoco/instances.json %s", SETS, refs, dir,
             SETS, dir);
    assert_int_equal(system(command), 0);
    snprintf(path, sizeof path, "%s", dir);
    pseg_status rc = pseg_dataset_open(&d, path, &o, &err);
    drop_folder(dir);
    return rc == PSEG_OK ? d : NULL;
}

static void reads_what_pickle_writes(void **state)
{
    (void)state;
    for (int protocol = 0; protocol < 6; protocol++) {
        char name[32];
        pseg_buf text;
        snprintf(name, sizeof name, "refs(p%d).p", protocol);
        pseg_dataset *d = open_refs(name, NULL);
        if (!d)
            fail_msg("%s: %s", name, err.msg);
        assert_int_equal(pseg_dataset_format(d), PSEG_DATA_REFCOCO);
        pseg_buf_init(&text, 1 << 20);
        for (size_t i = 0; i < pseg_dataset_n_images(d); i++) {
            pseg_data_record *r;
            OK(pseg_dataset_read(&r, d, i, &err));
            for (uint32_t k = 0; k < r->n_samples; k++) {
                static const char *const splits[] = {"train", "val", "testA"};
                OK(pseg_buf_printf(&text, &err, "%" PRId64 " %" PRId64 " %s\n", r->samples[k].id,
                                   r->image_id, splits[r->samples[k].id % 3]));
                for (uint32_t j = 0; j < r->samples[k].n_sentences; j++)
                    OK(pseg_buf_printf(&text, &err, "  %s\n", r->samples[k].sentences[j]));
            }
            pseg_data_record_free(r);
        }
        same_text((const char *)text.data, SETS "refcoco/expected.txt", name);
        pseg_buf_deinit(&text);
        pseg_dataset_close(d);
    }
}

static void refs_have_splits(void **state)
{
    pseg_dataset *d = open_refs("refs(p2).p", "val");

    (void)state;
    assert_non_null(d);
    assert_int_equal(pseg_dataset_n_samples(d), 3);
    pseg_dataset_close(d);
    assert_null(open_refs("refs(p2).p", "testC"));
    assert_int_equal(err.code, PSEG_EINVAL);
    assert_non_null(strstr(err.msg, "no split \"testC\""));
}

static void reads_python_2(void **state)
{
    pseg_data_record *r;
    pseg_dataset *d;

    (void)state;
    d = open_refs("refs(python2).p", "train");
    if (!d)
        fail_msg("%s", err.msg);
    OK(pseg_dataset_read(&r, d, 0, &err));
    assert_int_equal(r->samples[0].id, 7);
    assert_int_equal(r->samples[0].n_sentences, 2);
    assert_string_equal(r->samples[0].sentences[0], "the caf\xc3\xa9's \"cup\"\ttab");
    assert_string_equal(r->samples[0].sentences[1], "gr\xc3\xb6\xc3\x9f"
                                                    "er \xc3\xa9");
    pseg_data_record_free(r);
    pseg_dataset_close(d);
    d = open_refs("refs(python2b).p", NULL);
    if (!d)
        fail_msg("%s", err.msg);
    OK(pseg_dataset_read(&r, d, 0, &err));
    assert_string_equal(r->samples[0].sentences[0], "a man's");
    pseg_data_record_free(r);
    pseg_dataset_close(d);
}

static void a_pickle_that_would_run_is_refused(void **state)
{
    static const char *const names[] = {"evil0.p", "evil2.p", "evil4.p"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        assert_null(open_refs(names[i], NULL));
        assert_int_equal(err.code, PSEG_EUNSUPPORTED);
        assert_non_null(strstr(err.msg, "would run code"));
    }
}

static void survives_damaged_pickles(void **state)
{
    (void)state;
    for (int protocol = 0; protocol < 6; protocol++) {
        char path[256];
        uint8_t *bytes;
        size_t n;
        snprintf(path, sizeof path, SETS "refcoco/refs(p%d).p", protocol);
        OK(pseg_file_read(&bytes, &n, path, 1 << 20, &err));
        for (size_t i = 0; i < n; i++) {
            pickle *p;
            uint8_t before = bytes[i];
            assert_true(pickle_read(&p, bytes, i, "x", &err) != PSEG_OK);
            bytes[i] ^= (uint8_t)(1u << i % 8);
            if (pickle_read(&p, bytes, n, "x", &err) == PSEG_OK)
                pickle_close(p);
            bytes[i] = before;
        }
        pseg_free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_pyarrow_writes),
        cmocka_unit_test(reads_a_folder_of_files),
        cmocka_unit_test(refuses_parquet_by_name),
        cmocka_unit_test(survives_damaged_parquet),
        cmocka_unit_test(coco_categories_are_united),
        cmocka_unit_test(coco_objects_stand_alone),
        cmocka_unit_test(coco_faults_are_told),
        cmocka_unit_test(reads_what_pickle_writes),
        cmocka_unit_test(refs_have_splits),
        cmocka_unit_test(reads_python_2),
        cmocka_unit_test(a_pickle_that_would_run_is_refused),
        cmocka_unit_test(survives_damaged_pickles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
