#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/base/arena.h"
#include "common/base/buf.h"
#include "common/base/clock.h"
#include "common/base/err.h"
#include "common/base/file.h"
#include "common/base/hash.h"
#include "common/base/log.h"
#include "common/base/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

/* ---- err ---- */

static pseg_status fails(pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_FAIL(PSEG_R_IMAGE_TOO_LARGE, 7, "image of %d bytes\nis over the limit", 9);
out:
    return rc;
}

static void error_carries_reason_origin_and_one_line(void **state)
{
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    assert_int_equal(fails(&e), PSEG_EINVAL);
    assert_int_equal(e.reason, PSEG_R_IMAGE_TOO_LARGE);
    assert_int_equal(e.detail, 7);
    assert_non_null(strstr(e.where, "base_test.c:"));
    assert_string_equal(e.msg, "image of 9 bytes?is over the limit");
    pseg_err_prefix(&e, "load %s", "a.jpg");
    assert_string_equal(e.msg, "load a.jpg: image of 9 bytes?is over the limit");
    pseg_err_field(&e, "job.%s", "image");
    pseg_err_field(&e, "other");
    assert_string_equal(e.field, "job.image");
    assert_int_equal(fails(NULL), PSEG_EINVAL);
}

static void message_is_text_whatever_was_put_into_it(void **state)
{
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    pseg_err_set(&e, PSEG_R_FILE_NOT_FOUND, 0, PSEG_HERE, "cannot open %s", "a\xff\xc3(\n\xc3\xa9");
    assert_string_equal(e.msg, "cannot open a?"
                               "?(?\xc3\xa9");
    pseg_err_prefix(&e, "load \xe2\x82");
    pseg_err_field(&e, "x\xff[1]");
    assert_true(pseg_utf8_is_valid(e.msg, strlen(e.msg)));
    assert_string_equal(e.field, "x?[1]");
}

static void error_tells_programs_value_limit_and_resource(void **state)
{
    pseg_err e = PSEG_ERR_INIT;
    char name[200];

    (void)state;
    pseg_err_value(&e, "ignored");
    assert_string_equal(e.value, ""); /* no error, nothing to tell */
    pseg_err_set(&e, PSEG_R_PROMPT_TOO_LONG, 0, PSEG_HERE, "too long");
    pseg_err_value(&e, "%d\n", 2000);
    pseg_err_limit(&e, "%d..%d", 1, 1024);
    assert_string_equal(e.value, "2000?");
    assert_string_equal(e.limit, "1..1024");
    memset(name, 'x', sizeof name);
    memcpy(name + 77, "\xe2\x82\xac", 4); /* does not fit whole */
    pseg_err_resource(&e, "pseg.v1.Job", name);
    assert_string_equal(e.resource, "pseg.v1.Job");
    assert_true(pseg_utf8_is_valid(e.value, strlen(e.value)));
    pseg_err_set(&e, PSEG_R_INTERNAL, 0, PSEG_HERE, "another");
    assert_true(!e.value[0] && !e.limit[0] && !e.resource); /* they belong to one error */
    pseg_err_value(NULL, "x");
    pseg_err_limit(NULL, "x");
    pseg_err_resource(NULL, "x", "y");
}

static void long_message_is_cut_at_a_character(void **state)
{
    char text[1000];
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    for (size_t shift = 0; shift < 4; shift++) {
        memset(text, 'a', sizeof text);
        for (size_t i = shift; i + 3 < sizeof text; i += 3)
            memcpy(text + i, "\xe2\x82\xac", 3);
        text[sizeof text - 1] = '\0';
        text[999 - (999 - shift) % 3] = '\0';
        pseg_err_set(&e, PSEG_R_INTERNAL, 0, PSEG_HERE, "%s", text);
        assert_true(strlen(e.msg) > sizeof e.msg - 6);
        assert_true(pseg_utf8_is_valid(e.msg, strlen(e.msg)));
    }
}

static void every_reason_has_a_name_and_a_failing_status(void **state)
{
    (void)state;
    for (int r = 1; r < PSEG_R_COUNT; r++) {
        const char *name = pseg_reason_name((pseg_reason)r);
        assert_true(strlen(name) > 0 && strlen(name) <= 63);
        assert_int_equal(pseg_reason_from_name(name), r);
        assert_true(pseg_reason_status((pseg_reason)r) < 0);
        assert_in_range(pseg_reason_grpc((pseg_reason)r), 1, 16);
        assert_true(pseg_reason_exit_status((pseg_reason)r) > 0);
    }
    assert_int_equal(pseg_reason_from_name("NO_SUCH"), PSEG_R_NONE);
    assert_int_equal(pseg_reason_exit_status(PSEG_R_NONE), 0);
}

/* ---- memory ---- */

static void buffer_stops_at_its_maximum_unchanged(void **state)
{
    pseg_buf b;
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    pseg_buf_init(&b, 10);
    assert_int_equal(pseg_buf_append(&b, "12345678", 8, &e), PSEG_OK);
    assert_int_equal(pseg_buf_append(&b, "abc", 3, &e), PSEG_EINVAL);
    assert_int_equal(e.reason, PSEG_R_REQUEST_TOO_LARGE);
    assert_int_equal(b.len, 8);
    assert_int_equal(pseg_buf_printf(&b, &e, "%d", 42), PSEG_OK);
    assert_string_equal((char *)b.data, "1234567842");
    pseg_buf_deinit(&b);
}

static void buffer_survives_a_failed_allocation(void **state)
{
    pseg_buf b;
    pseg_err e = PSEG_ERR_INIT;

    (void)state;
    pseg_buf_init(&b, 1 << 20);
    assert_int_equal(pseg_buf_puts(&b, "hello", &e), PSEG_OK);
    pseg_alloc_fail_nth(1);
    char *big = calloc(1, 4096);
    memset(big, 'x', 4095);
    assert_int_equal(pseg_buf_puts(&b, big, &e), PSEG_ENOMEM);
    assert_string_equal((char *)b.data, "hello");
    assert_int_equal(pseg_buf_puts(&b, big, &e), PSEG_OK);
    assert_int_equal(b.len, 5 + 4095);
    free(big);
    pseg_buf_deinit(&b);
}

static int order[4], n_order;
static void note(void *ud)
{
    order[n_order++] = *(int *)ud;
}

static void arena_runs_cleanups_in_reverse_and_keeps_its_bound(void **state)
{
    static int one = 1, two = 2, three = 3;
    pseg_arena *a = pseg_arena_new(100000);

    (void)state;
    n_order = 0;
    assert_int_equal(pseg_arena_cleanup(a, note, &one), 0);
    assert_int_equal(pseg_arena_cleanup(a, note, &two), 0);
    char *p = pseg_arena_alloc(a, 60000), *q = pseg_arena_alloc(a, 17);
    assert_non_null(p);
    assert_non_null(q);
    assert_int_equal((uintptr_t)q % 16, 0);
    memset(p, 1, 60000);
    memset(q, 2, 17);
    assert_null(pseg_arena_alloc(a, 60000));
    assert_null(pseg_arena_alloc(a, SIZE_MAX));
    assert_null(pseg_arena_calloc(a, SIZE_MAX / 2, 3));
    while (pseg_arena_alloc(a, 16)) {
    }
    assert_int_equal(pseg_arena_cleanup(a, note, &three), -1); /* ran at once */
    pseg_arena_free(a);
    assert_int_equal(n_order, 3);
    assert_int_equal(order[0], 3);
    assert_int_equal(order[1], 2);
    assert_int_equal(order[2], 1);
    pseg_arena_free(NULL);
}

/* ---- files ---- */

static void file_is_written_whole_and_read_back(void **state)
{
    char dir[] = "/tmp/pseg-base-XXXXXX";
    pseg_err e = PSEG_ERR_INIT;
    uint8_t *data;
    size_t n;

    (void)state;
    assert_non_null(mkdtemp(dir));
    char *sub = pseg_path_join(dir, "a/b/c"), *path = pseg_path_join(sub, "file");
    assert_int_equal(pseg_dir_make(sub, &e), PSEG_OK);
    assert_int_equal(pseg_dir_make(sub, &e), PSEG_OK);
    char *big = malloc(200000);
    memset(big, 'z', 200000);
    assert_int_equal(pseg_file_write(path, big, 200000, &e), PSEG_OK);
    assert_int_equal(pseg_file_read(&data, &n, path, 200000, &e), PSEG_OK);
    assert_int_equal(n, 200000);
    assert_memory_equal(data, big, n);
    assert_int_equal(data[n], 0);
    pseg_free(data);
    assert_int_equal(pseg_file_read(&data, &n, path, 199999, &e), PSEG_EINVAL);
    assert_int_equal(e.reason, PSEG_R_REQUEST_TOO_LARGE);
    assert_null(data);

    pseg_map m;
    assert_int_equal(pseg_map_open(&m, path, &e), PSEG_OK);
    assert_int_equal(m.size, 200000);
    assert_memory_equal(m.data, big, m.size);
    pseg_map_close(&m);
    assert_int_equal(pseg_file_write(path, "", 0, &e), PSEG_OK);
    assert_int_equal(pseg_file_read(&data, &n, path, 10, &e), PSEG_OK);
    assert_int_equal(n, 0);
    assert_non_null(data);
    pseg_free(data);
    assert_int_equal(pseg_map_open(&m, path, &e), PSEG_OK);
    assert_int_equal(m.size, 0);
    pseg_map_close(&m);

    assert_int_equal(pseg_file_read(&data, &n, "/no/such/file", 10, &e), PSEG_ENOTFOUND);
    assert_int_equal(e.reason, PSEG_R_FILE_NOT_FOUND);
    assert_int_equal(pseg_file_read(&data, &n, dir, 10, &e), PSEG_EIO);
    assert_int_equal(pseg_map_open(&m, dir, &e), PSEG_EIO);
    assert_int_equal(pseg_dir_make(path, &e), PSEG_EIO);
    unlink(path);
    free(big);
    pseg_free(path);
    pseg_free(sub);
    char cmd[100];
    snprintf(cmd, sizeof cmd, "rm -r %s", dir);
    assert_int_equal(system(cmd), 0);
}

/* ---- hash, utf8, clock, log ---- */

static void sha256_agrees_with_the_standard(void **state)
{
    uint8_t d[32], back[32];
    char hex[65];

    (void)state;
    pseg_sha256_of(d, "abc", 3); /* FIPS 180-4, example B.1 */
    pseg_hex(hex, d, 32);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_true(pseg_unhex(back, 32, hex));
    assert_memory_equal(back, d, 32);
    hex[5] = 'g';
    assert_false(pseg_unhex(back, 32, hex));
    assert_false(pseg_unhex(back, 32, "ab"));
    pseg_sha256 *h = pseg_sha256_new();
    pseg_sha256_update(h, "a", 1);
    pseg_sha256_update(h, "bc", 2);
    pseg_sha256_finish(h, back);
    pseg_sha256_free(h);
    assert_memory_equal(back, d, 32);
    assert_true(pseg_equal_secret(back, d, 32));
    back[31] ^= 1;
    assert_false(pseg_equal_secret(back, d, 32));
}

static void utf8_accepts_only_what_is_valid(void **state)
{
    static const char *const good[] = {
        "", "abc", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {"\x80",
                                      "\xc3",
                                      "\xc0\xaf",
                                      "\xed\xa0\x80",
                                      "\xf4\x90\x80\x80",
                                      "a\xff",
                                      "\xe2\x82",
                                      "\xf8\x88\x80\x80\x80"};
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(pseg_utf8_is_valid(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(pseg_utf8_is_valid(bad[i], strlen(bad[i])));

    char *nfc;
    size_t n;
    assert_int_equal(pseg_utf8_nfc(&nfc, &n, "e\xcc\x81", 3, NULL), PSEG_OK);
    assert_string_equal(nfc, "\xc3\xa9");
    pseg_free(nfc);
    assert_true(pseg_utf8_is_letter(0xE9) && pseg_utf8_is_number(0xBD) && pseg_utf8_is_space(0xA0));
    assert_false(pseg_utf8_is_letter('1') || pseg_utf8_is_number('a') || pseg_utf8_is_space('x'));
    assert_int_equal(pseg_utf8_lower(0xC9), 0xE9);
    char enc[4];
    uint32_t cp;
    assert_int_equal(pseg_utf8_encode(enc, 0x20AC), 3);
    assert_int_equal(pseg_utf8_decode(&cp, enc, 3), 3);
    assert_int_equal(cp, 0x20AC);
}

static void repaired_text_is_valid_and_keeps_what_was(void **state)
{
    char text[] = "a\xff z\xc3\xa9\xe2\x82 \xed\xa0\x80.";

    (void)state;
    pseg_utf8_repair(text);
    assert_string_equal(text, "a? z\xc3\xa9?? ???.");
}

static void lost_output_is_an_error_but_a_reader_that_left_is_none(void **state)
{
    pseg_err e = PSEG_ERR_INIT;
    int ends[2];
    FILE *f = fopen("/dev/full", "w");

    (void)state;
    fputs("text", f);
    assert_int_equal(pseg_file_flush(f, "the disk", &e), PSEG_EIO);
    assert_non_null(strstr(e.msg, "cannot write to the disk: No space"));
    fclose(f);

    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(pipe(ends), 0);
    f = fdopen(ends[1], "w");
    close(ends[0]);
    for (int i = 0; i < 100000;
         i++) /* more than one buffer: an early write fails, and later ones */
        fputc('x', f);
    assert_int_equal(pseg_file_flush(f, "the pipe", &e), PSEG_OK);
    fclose(f);
}

static void time_is_written_as_rfc3339(void **state)
{
    char text[28];

    (void)state;
    pseg_clock_format_unix_us(text, 1767323045678901);
    assert_string_equal(text, "2026-01-02T03:04:05.678901Z");
    pseg_clock_format_unix_us(text, -1);
    assert_string_equal(text, "1969-12-31T23:59:59.999999Z");
}

static void log_writes_one_line_and_obeys_its_level(void **state)
{
    int fd[2];
    char text[4096] = "";

    (void)state;
    assert_int_equal(pipe(fd), 0);
    pseg_log log = {PSEG_LOG_WARN, fd[1]};
    PSEG_INFO(&log, "t", "not seen");
    PSEG_WARN(&log, "t", "two\nlines job=%d", 5);
    PSEG_WARN(NULL, "t", "silent");
    ssize_t n = read(fd[0], text, sizeof text - 1);
    assert_true(n > 0);
    assert_non_null(strstr(text, "Z warn  t two?lines job=5\n"));
    assert_null(strstr(text, "not seen"));
    close(fd[0]);
    close(fd[1]);
    pseg_log_level level;
    assert_true(pseg_log_level_parse(&level, "debug"));
    assert_int_equal(level, PSEG_LOG_DEBUG);
    assert_false(pseg_log_level_parse(&level, "loud"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_carries_reason_origin_and_one_line),
        cmocka_unit_test(message_is_text_whatever_was_put_into_it),
        cmocka_unit_test(error_tells_programs_value_limit_and_resource),
        cmocka_unit_test(long_message_is_cut_at_a_character),
        cmocka_unit_test(every_reason_has_a_name_and_a_failing_status),
        cmocka_unit_test(buffer_stops_at_its_maximum_unchanged),
        cmocka_unit_test(buffer_survives_a_failed_allocation),
        cmocka_unit_test(arena_runs_cleanups_in_reverse_and_keeps_its_bound),
        cmocka_unit_test(file_is_written_whole_and_read_back),
        cmocka_unit_test(sha256_agrees_with_the_standard),
        cmocka_unit_test(utf8_accepts_only_what_is_valid),
        cmocka_unit_test(repaired_text_is_valid_and_keeps_what_was),
        cmocka_unit_test(lost_output_is_an_error_but_a_reader_that_left_is_none),
        cmocka_unit_test(time_is_written_as_rfc3339),
        cmocka_unit_test(log_writes_one_line_and_obeys_its_level),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
