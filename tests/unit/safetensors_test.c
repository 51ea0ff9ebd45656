/* Reading of safetensors: whole files and shards, and everything that can be wrong with them. */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/model/safetensors.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/pseg-safetensors-XXXXXX";
static char path[64];

/* Writes name into the folder: length, header, n_data bytes 0, 1, 2... */
static void write_named(const char *name, uint64_t claimed, const char *header, size_t n_data)
{
    size_t n = strlen(header);
    uint8_t *file = pseg_malloc(8 + n + n_data);
    pseg_err err = PSEG_ERR_INIT;

    assert_non_null(file);
    for (size_t i = 0; i < 8; i++)
        file[i] = (uint8_t)(claimed >> (8 * i));
    memcpy(file + 8, header, n);
    for (size_t i = 0; i < n_data; i++)
        file[8 + n + i] = (uint8_t)i;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(pseg_file_write(path, file, 8 + n + n_data, &err), PSEG_OK);
    pseg_free(file);
}

static void write_file(const char *header, size_t n_data)
{
    write_named("model.safetensors", strlen(header), header, n_data);
}

static void remove_named(const char *name)
{
    char at[96];

    snprintf(at, sizeof at, "%s/%s", folder, name);
    remove(at);
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    remove_named("model.safetensors");
    remove_named("model.safetensors.index.json");
    remove_named("one.safetensors");
    remove_named("two.safetensors");
    return rmdir(folder);
}

static pseg_tensors *open_good(void)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_tensors *t;

    if (pseg_tensors_open_folder(&t, folder, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    return t;
}

/* It must be refused as corrupt, naming the file and `part`. */
static void assert_refused(const char *part)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_tensors *t;

    if (pseg_tensors_open_folder(&t, folder, &err) == PSEG_OK)
        fail_msg("accepted; expected an error about %s", part);
    assert_null(t);
    assert_int_equal(err.reason, PSEG_R_MODEL_CORRUPT);
    assert_non_null(strstr(err.msg, folder));
    if (!strstr(err.msg, part))
        fail_msg("\"%s\" does not say \"%s\"", err.msg, part);
}

static void reads_types_shapes_and_metadata(void **state)
{
    pseg_tensors *t;
    const pseg_tensor *x;
    char shape[64];
    (void)state;

    write_file("{\"__metadata__\":{\"format\":\"pt\",\"n\":\"7\"},"
               "\"b\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
               "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
               "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[16,16]},"
               "\"c\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[16,18]},"
               "\"i\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[18,26]},"
               "\"u\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[26,29]}}   ",
               29);
    t = open_good();
    assert_int_equal(pseg_tensors_count(t), 6);
    assert_string_equal(pseg_tensors_at(t, 0)->name, "a");
    assert_null(pseg_tensors_at(t, 6));
    assert_string_equal(pseg_tensors_metadata(t, "n"), "7");
    assert_null(pseg_tensors_metadata(t, "m"));
    assert_null(pseg_tensors_find(t, "d"));
    x = pseg_tensors_find(t, "b");
    assert_non_null(x);
    assert_int_equal(x->type, PSEG_TENSOR_F16);
    assert_int_equal(x->rank, 2);
    assert_int_equal(x->n, 6);
    assert_int_equal(x->bytes, 12);
    assert_int_equal(x->data[0], 4);
    assert_string_equal(x->path, path);
    pseg_tensor_shape(shape, sizeof shape, x->dims, x->rank);
    assert_string_equal(shape, "[2, 3]");
    x = pseg_tensors_find(t, "a");
    assert_int_equal(x->rank, 0);
    assert_int_equal(x->n, 1);
    pseg_tensor_shape(shape, sizeof shape, x->dims, x->rank);
    assert_string_equal(shape, "[]");
    assert_int_equal(pseg_tensors_find(t, "empty")->n, 0);
    assert_int_equal(pseg_tensors_find(t, "c")->type, PSEG_TENSOR_BF16);
    assert_int_equal(pseg_tensors_find(t, "i")->type, PSEG_TENSOR_I64);
    assert_int_equal(pseg_tensors_find(t, "u")->type, PSEG_TENSOR_OTHER);
    pseg_tensors_close(t);
}

static void a_file_without_tensors_is_good(void **state)
{
    (void)state;
    write_file("{}", 0);
    pseg_tensors *t = open_good();
    assert_int_equal(pseg_tensors_count(t), 0);
    assert_null(pseg_tensors_find(t, "a"));
    pseg_tensors_close(t);
}

#define A(type, shape, begin, end) \
    "\"a\":{\"dtype\":\"" type "\",\"shape\":[" shape "],\"data_offsets\":[" begin "," end "]}"
#define B(begin, end) "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[" begin "," end "]}"

static void corrupt_headers_are_refused(void **state)
{
    static const struct {
        const char *header;
        size_t n_data;
        const char *part;
    } cases[] = {
        {"", 0, "JSON"},
        {"[]", 0, "JSON"},
        {"null", 0, "JSON"},
        {"{\"a\":", 0, "JSON"},
        {"{\"\xFF\":1}", 0, "JSON"},
        {"{\"a\":1}", 0, "a"},
        {"{\"a\":{}}", 0, "tensor a"},
        {"{\"__metadata__\":[]}", 0, "__metadata__"},
        {"{" A("F32", "1", "0", "4") "," A("F32", "1", "0", "4") "}", 4, "duplicate"},
        {"{" A("F31", "1", "0", "4") "}", 4, "F31"},
        {"{" A("F32", "2", "0", "4") "}", 4, "needs 8"},
        {"{" A("F32", "-1", "0", "4") "}", 4, "shape"},
        {"{" A("F32", "1.0", "0", "4") "}", 4, "shape"},
        {"{" A("F32", "\\\"1\\\"", "0", "4") "}", 4, "JSON"},
        {"{" A("F32", "1,1,1,1,1,1,1,1,1", "0", "4") "}", 4, "dimensions"},
        {"{" A("F32", "4294967296,4294967296", "0", "4") "}", 4, "shape"},
        {"{" A("F32", "4611686018427387905", "0", "4") "}", 4, "needs"},
        {"{" A("F32", "9223372036854775807,2,2", "0", "4") "}", 4, "shape"},
        {"{" A("F32", "99999999999999999999999", "0", "4") "}", 4, "JSON"},
        {"{" A("F32", "1", "4", "0") "}", 4, "data_offsets"},
        {"{" A("F32", "1", "-4", "0") "}", 4, "data_offsets"},
        {"{" A("F32", "1", "0", "9223372036854775807") "}", 4, "data_offsets"},
        {"{" A("F32", "2", "0", "8") "}", 4, "cut short"},
        {"{" A("F32", "1", "0", "4") "," B("0", "4") "}", 4, "overlaps"},
        {"{" A("F32", "1", "0", "4") "," B("2", "6") "}", 6, "overlaps"},
        {"{" A("F32", "1", "0", "4") "," B("5", "9") "}", 9, "gap"},
        {"{" A("F32", "1", "1", "5") "}", 5, "gap"},
        {"{" A("F32", "1", "0", "4") "}", 5, "belong to no tensor"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4, "data_offsets"},
        {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "shape"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_file(cases[i].header, cases[i].n_data);
        assert_refused(cases[i].part);
    }
}

static void lying_lengths_are_refused(void **state)
{
    static const uint64_t lengths[] = {
        3, 1000, (16u << 20) + 1, (uint64_t)1 << 32, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 7};
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    for (size_t i = 1; i < sizeof lengths / sizeof *lengths; i++) {
        write_named("model.safetensors", lengths[i], "{}", 0);
        assert_refused("claims");
    }
    write_named("model.safetensors", lengths[0], "{}", 1);
    assert_refused("JSON");
    for (size_t n = 0; n < 8; n++) {
        snprintf(path, sizeof path, "%s/model.safetensors", folder);
        assert_int_equal(pseg_file_write(path, "\2\0\0\0\0\0\0\0", n, &err), PSEG_OK);
        assert_refused("too few");
    }
}

static void a_file_cut_anywhere_is_refused(void **state)
{
    static const char header[] = "{" A("F32", "1", "0", "4") "," B("4", "8") "}";
    uint8_t *whole;
    size_t n;
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    write_file(header, 8);
    assert_int_equal(pseg_file_read(&whole, &n, path, 1000, &err), PSEG_OK);
    for (size_t k = 0; k < n; k++) {
        assert_int_equal(pseg_file_write(path, whole, k, &err), PSEG_OK);
        assert_refused("");
    }
    assert_int_equal(pseg_file_write(path, whole, n, &err), PSEG_OK);
    pseg_tensors_close(open_good());
    pseg_free(whole);
}

static void write_shard(const char *name, const char *header)
{
    write_named(name, strlen(header), header, 4);
}

/* Random bytes changed anywhere: whatever is still accepted must hold what it says. */
static void changed_bytes_do_no_harm(void **state)
{
    uint8_t *whole, *copy;
    size_t n, n_good = 0;
    uint64_t x = 1;
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    write_file("{" A("F16", "1, 2", "0", "4") "," B("4", "8") ",\"__metadata__\":{\"k\":\"v\"}}",
               8);
    assert_int_equal(pseg_file_read(&whole, &n, path, 1000, &err), PSEG_OK);
    copy = pseg_malloc(n);
    assert_non_null(copy);
    for (int round = 0; round < 1500; round++) {
        pseg_tensors *t;
        unsigned sum = 0;
        memcpy(copy, whole, n);
        for (int k = 0; k <= round % 3; k++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            copy[(x >> 33) % n] =
                round % 2 ? (uint8_t)(x >> 50) : (uint8_t) "0123456789,[]{}\""[x >> 60];
        }
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(copy, 1, n, f), n);
        fclose(f);
        if (pseg_tensors_open_folder(&t, folder, NULL) != PSEG_OK)
            continue;
        n_good++;
        for (size_t i = 0; i < pseg_tensors_count(t); i++) {
            const pseg_tensor *at = pseg_tensors_at(t, i);
            for (uint64_t k = 0; k < at->bytes; k++)
                sum += at->data[k];
            assert_ptr_equal(pseg_tensors_find(t, at->name), at);
        }
        assert_true(sum < 8 * 256);
        pseg_tensors_close(t);
    }
    assert_true(n_good > 10);
    pseg_free(whole);
    pseg_free(copy);
}

static void write_index(const char *json)
{
    pseg_err err = PSEG_ERR_INIT;

    remove_named("model.safetensors");
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    assert_int_equal(pseg_file_write(path, json, strlen(json), &err), PSEG_OK);
}

static void reads_shards(void **state)
{
    pseg_tensors *t;
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    write_shard("one.safetensors", "{" A("F32", "1", "0", "4") "}");
    write_shard("two.safetensors", "{" B("0", "4") "}");
    write_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    t = open_good();
    assert_int_equal(pseg_tensors_count(t), 2);
    assert_non_null(strstr(pseg_tensors_find(t, "b")->path, "two.safetensors"));
    assert_string_equal(pseg_tensors_path(t), folder);
    pseg_tensors_close(t);
    write_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\"}}");
    assert_refused("tensor c");
    write_index("{\"weight_map\":{\"a\":\"../one.safetensors\"}}");
    assert_refused("plain file name");
    write_index("{\"weight_map\":{\"a\":\"..\"}}");
    assert_refused("plain file name");
    write_index("{\"weight_map\":{\"a\":7}}");
    assert_refused("plain file name");
    write_index("{\"weight_map\":{}}");
    assert_refused("weight_map");
    write_index("{}");
    assert_refused("weight_map");
    write_index("{\"weight_map\":");
    assert_refused("JSON");
    write_index("{\"weight_map\":{\"a\":\"three.safetensors\"}}");
    assert_int_equal(pseg_tensors_open_folder(&t, folder, &err), PSEG_ENOTFOUND);
    assert_int_equal(err.reason, PSEG_R_MODEL_MISSING);
    assert_non_null(strstr(err.msg, "three.safetensors"));
    /* the same tensor in two shards */
    write_shard("two.safetensors", "{" A("F32", "1", "0", "4") "}");
    write_index("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    assert_refused("tensor a");
}

static void what_is_missing_is_named(void **state)
{
    pseg_tensors *t;
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    remove_named("model.safetensors");
    remove_named("model.safetensors.index.json");
    assert_int_equal(pseg_tensors_open_folder(&t, "/nowhere/at/all", &err), PSEG_ENOTFOUND);
    assert_int_equal(err.reason, PSEG_R_MODEL_MISSING);
    assert_non_null(strstr(err.msg, "no such folder"));
    assert_int_equal(pseg_tensors_open_folder(&t, folder, &err), PSEG_ENOTFOUND);
    assert_non_null(strstr(err.msg, "no model.safetensors"));
    write_named("pytorch_model.bin", 0, "", 0);
    assert_int_equal(pseg_tensors_open_folder(&t, folder, &err), PSEG_ENOTFOUND);
    assert_non_null(strstr(err.msg, "convert"));
    remove_named("pytorch_model.bin");
    assert_int_equal(pseg_tensors_open_file(&t, folder, &err), PSEG_EIO);
}

static void digest_of(char hex[PSEG_SHA256_HEX + 1])
{
    pseg_tensors *t = open_good();
    pseg_sha256 *h = pseg_sha256_new();
    uint8_t sum[PSEG_SHA256_BYTES];

    assert_non_null(h);
    pseg_tensors_digest(t, h);
    pseg_sha256_finish(h, sum);
    pseg_sha256_free(h);
    pseg_hex(hex, sum, sizeof sum);
    pseg_tensors_close(t);
}

static void every_byte_counts_in_the_digest(void **state)
{
    char one[PSEG_SHA256_HEX + 1], two[PSEG_SHA256_HEX + 1];
    (void)state;

    write_file("{" A("F32", "1", "0", "4") "}", 4);
    digest_of(one);
    digest_of(two);
    assert_string_equal(one, two);
    write_file("{" A("I32", "1", "0", "4") "}", 4);
    digest_of(two);
    assert_string_not_equal(one, two);
}

static void survives_every_failing_allocation(void **state)
{
    bool is_done = false;
    (void)state;

    write_file("{" A("F32", "1", "0", "4") "," B("4", "8") "}", 8);
    for (uint64_t i = 1; !is_done; i++) {
        pseg_err err = PSEG_ERR_INIT;
        pseg_tensors *t;
        pseg_alloc_fail_nth(i);
        pseg_status rc = pseg_tensors_open_folder(&t, folder, &err);
        pseg_alloc_fail_nth(0);
        assert_true(rc == PSEG_OK || rc == PSEG_ENOMEM);
        pseg_tensors_close(t);
        is_done = rc == PSEG_OK;
        assert_true(i < 1000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_types_shapes_and_metadata),
        cmocka_unit_test(a_file_without_tensors_is_good),
        cmocka_unit_test(corrupt_headers_are_refused),
        cmocka_unit_test(lying_lengths_are_refused),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),
        cmocka_unit_test(changed_bytes_do_no_harm),
        cmocka_unit_test(what_is_missing_is_named),
        cmocka_unit_test(every_byte_counts_in_the_digest),
        cmocka_unit_test(survives_every_failing_allocation),
        cmocka_unit_test(reads_shards),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
