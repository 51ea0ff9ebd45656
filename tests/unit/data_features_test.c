#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/data_support.h"
#include "worker/data/features.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* 2 taps of 3 x 2 places and 5 channels: 120 bytes in a slot of 4096. */
enum { NUMBERS = 2 * 3 * 2 * 5 };

static const pseg_vision_info vision = {
    .digest = "abc", .hidden = 5, .gh = 2, .gw = 3, .taps = {1, 2}, .n_taps = 2};
static const pseg_preprocess how = {.width = 42, .height = 28, .std = {1, 1, 1}};
static pseg_err err;

#define OK(call)                                \
    do {                                        \
        if ((call) != PSEG_OK)                  \
            fail_msg("%s: %s", #call, err.msg); \
    } while (0)

static pseg_feature_cache *open_cache(const char *dir)
{
    pseg_feature_cache *c;

    OK(pseg_feature_cache_open(&c, dir, &vision, &how, &err));
    return c;
}

static pseg_feature_key key_of(unsigned i)
{
    pseg_data_bytes b = {(const uint8_t *)&i, sizeof i, NULL};

    return pseg_feature_key_of(&b, i & 1);
}

static void make_numbers(uint16_t out[NUMBERS], unsigned i)
{
    for (unsigned k = 0; k < NUMBERS; k++)
        out[k] = (uint16_t)(i * 31 + k * 7);
}

static void put(pseg_feature_cache *c, unsigned i)
{
    uint16_t taps[NUMBERS];
    pseg_feature f = {taps, 100 + i, 50};
    pseg_feature_key key = key_of(i);

    make_numbers(taps, i);
    OK(pseg_feature_cache_put(NULL, c, &key, &f, &err));
}

/* Is entry i there, and right? */
static bool has(pseg_feature_cache *c, unsigned i)
{
    uint16_t taps[NUMBERS];
    pseg_feature_key key = key_of(i);
    pseg_feature f;
    uint32_t entry;

    if (!pseg_feature_cache_find(&entry, c, &key) ||
        pseg_feature_cache_get(&f, c, entry, &err) != PSEG_OK)
        return false;
    make_numbers(taps, i);
    assert_memory_equal(f.taps, taps, sizeof taps);
    assert_true(f.width == 100 + i && f.height == 50);
    return true;
}

static void keeps_entries(void **state)
{
    char *dir = make_folder();
    pseg_feature_cache *c = open_cache(dir), *other;
    pseg_vision_info deeper = vision;
    pseg_feature_key key = key_of(0), turned = key_of(0);
    uint32_t entry;

    (void)state;
    assert_false(has(c, 0));
    OK(pseg_feature_cache_lock(c, &err));
    for (unsigned i = 0; i < 300; i++)
        put(c, i);
    for (unsigned i = 0; i < 300; i++)
        assert_true(has(c, i));
    pseg_feature_cache_unlock(c);
    pseg_feature_cache_close(c);

    c = open_cache(dir);
    assert_int_equal(pseg_feature_cache_count(c), 300);
    for (unsigned i = 0; i < 300; i++)
        assert_true(has(c, i));
    assert_false(has(c, 300));
    turned.is_mirrored = true;
    assert_true(pseg_feature_cache_find(&entry, c, &key));
    assert_false(pseg_feature_cache_find(&entry, c, &turned));

    /* Other taps have a folder of their own. */
    deeper.taps[1] = 3;
    OK(pseg_feature_cache_open(&other, dir, &deeper, &how, &err));
    assert_int_equal(pseg_feature_cache_count(other), 0);
    assert_string_not_equal(pseg_feature_cache_folder(other), pseg_feature_cache_folder(c));
    pseg_feature_cache_close(other);
    pseg_feature_cache_close(c);
    drop_folder(dir);
}

/* A process is killed while it writes: what it had told of is there, and the next one goes on. */
static void survives_kill(void **state)
{
    char *dir = make_folder();

    (void)state;
    for (unsigned from = 0; from < 200; from += 50) {
        int done[2];
        unsigned i = 0;
        assert_int_equal(pipe(done), 0);
        pid_t pid = fork();
        if (pid == 0) {
            pseg_feature_cache *c = open_cache(dir);
            OK(pseg_feature_cache_lock(c, &err));
            for (unsigned k = from; k < 100000; k++) {
                put(c, k);
                if (write(done[1], &k, sizeof k) != sizeof k)
                    _exit(1);
            }
            _exit(0);
        }
        while (i < from + 49)
            assert_int_equal(read(done[0], &i, sizeof i), sizeof i);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        close(done[0]);
        close(done[1]);
        pseg_feature_cache *c = open_cache(dir);
        for (unsigned k = 0; k <= i; k++)
            assert_true(has(c, k));
        assert_int_equal(pseg_feature_cache_n_damaged(c), 0);
        pseg_feature_cache_close(c);
    }
    drop_folder(dir);
}

static char *file_of(const pseg_feature_cache *c, const char *name)
{
    static char path[256];

    snprintf(path, sizeof path, "%s/%s", pseg_feature_cache_folder(c), name);
    return path;
}

static void write_at(const char *path, long at, const void *data, size_t n)
{
    FILE *f = fopen(path, "r+b");

    assert_non_null(f);
    assert_int_equal(fseek(f, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* A torn line at the end is cut off; a changed one is skipped; changed numbers are seen. */
static void sees_damage(void **state)
{
    char *dir = make_folder();
    pseg_feature_cache *c = open_cache(dir);
    FILE *f;

    (void)state;
    OK(pseg_feature_cache_lock(c, &err));
    for (unsigned i = 0; i < 10; i++)
        put(c, i);
    pseg_feature_cache_unlock(c);
    f = fopen(file_of(c, "index"), "ab");
    assert_int_equal(fwrite("half a line", 1, 11, f), 11);
    fclose(f);
    write_at(file_of(c, "index"), 64 * 3 + 20, "x", 1);
    write_at(file_of(c, "taps-000000"), 4096 * 5 + 60, "xy", 2);
    pseg_feature_cache_close(c);

    c = open_cache(dir);
    assert_int_equal(pseg_feature_cache_count(c), 9);
    for (unsigned i = 0; i < 10; i++)
        assert_int_equal(has(c, i), i != 3 && i != 5);
    assert_int_equal(pseg_feature_cache_n_damaged(c), 2);
    OK(pseg_feature_cache_lock(c, &err));
    put(c, 3);
    put(c, 5);
    put(c, 10);
    pseg_feature_cache_unlock(c);
    for (unsigned i = 0; i < 11; i++)
        assert_true(has(c, i));
    pseg_feature_cache_close(c);
    c = open_cache(dir);
    for (unsigned i = 0; i < 11; i++)
        assert_true(has(c, i));

    /* A file that lost its end. */
    assert_int_equal(truncate(file_of(c, "taps-000000"), 4096 * 4), 0);
    pseg_feature_cache_close(c);
    c = open_cache(dir);
    assert_true(has(c, 2));
    assert_false(has(c, 7));
    write_at(file_of(c, "spec.txt"), 0, "F", 1);
    pseg_feature_cache_close(c);
    assert_int_equal(pseg_feature_cache_open(&c, dir, &vision, &how, &err), PSEG_ECORRUPT);
    assert_non_null(strstr(err.msg, "spec.txt"));
    drop_folder(dir);
}

/* The disk is full after 20 entries: an error that says so; those stay good. */
static void a_full_disk_loses_nothing(void **state)
{
    char *dir = make_folder();
    int status;
    pid_t pid = fork();

    (void)state;
    if (pid == 0) {
        struct rlimit limit = {20 * 4096, 20 * 4096};
        pseg_feature_cache *c = open_cache(dir);
        uint16_t taps[NUMBERS];
        pseg_feature f = {taps, 100 + 20, 50};
        pseg_feature_key key = key_of(20);
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
        OK(pseg_feature_cache_lock(c, &err));
        for (unsigned i = 0; i < 20; i++)
            put(c, i);
        make_numbers(taps, 20);
        if (pseg_feature_cache_put(NULL, c, &key, &f, &err) != PSEG_EIO || !strstr(err.msg, dir))
            _exit(1);
        for (unsigned i = 0; i < 20; i++)
            if (!has(c, i))
                _exit(2);
        _exit(has(c, 20) ? 3 : 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    pseg_feature_cache *c = open_cache(dir);
    assert_int_equal(pseg_feature_cache_count(c), 20);
    pseg_feature_cache_close(c);
    drop_folder(dir);
}

/* A second writer waits, and then sees what the first has added; readers read meanwhile. */
static void one_writes_at_a_time(void **state)
{
    char *dir = make_folder();
    pseg_feature_cache *a = open_cache(dir);
    int locked[2], go[2], status;
    char c = 0;

    (void)state;
    assert_int_equal(pipe(locked), 0);
    assert_int_equal(pipe(go), 0);
    pid_t pid = fork();
    if (pid == 0) {
        pseg_feature_cache *b = open_cache(dir);
        if (pseg_feature_cache_lock(b, &err) != PSEG_OK)
            _exit(1);
        put(b, 1);
        if (write(locked[1], "l", 1) != 1 || read(go[0], &c, 1) != 1)
            _exit(2);
        put(b, 2);
        _exit(0); /* the lock ends with the process */
    }
    assert_int_equal(read(locked[0], &c, 1), 1);
    pseg_feature_cache *reader = open_cache(dir);
    assert_true(has(reader, 1));
    pseg_feature_cache_close(reader);
    assert_int_equal(write(go[1], "g", 1), 1);
    OK(pseg_feature_cache_lock(a, &err));
    assert_true(has(a, 1) && has(a, 2));
    put(a, 3);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    pseg_feature_cache_close(a);
    a = open_cache(dir);
    assert_true(has(a, 1) && has(a, 2) && has(a, 3));
    pseg_feature_cache_close(a);
    drop_folder(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_entries),        cmocka_unit_test(survives_kill),
        cmocka_unit_test(sees_damage),          cmocka_unit_test(a_full_disk_loses_nothing),
        cmocka_unit_test(one_writes_at_a_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
