/* Files of packed weights and the folder they are kept in: whatever happened to a file, it is
 * refused or holds what was put in; one of many processes makes it; the folder stays in bounds. */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "worker/model/packed.h"
#include "worker/model/packed_cache.h"
#include "worker/ops/ops.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char folder[] = "/tmp/pseg-packed-XXXXXX";
static char path[160];
static const uint8_t key[PSEG_SHA256_BYTES] = {1, 2, 3}, other[PSEG_SHA256_BYTES] = {1, 2, 4};

static const size_t sizes[] = {1, 255, 256, 257, 4095, 4096, 5000};
#define N_PIECES (sizeof sizes / sizeof *sizes)

static void remove_all(void)
{
    DIR *d = opendir(folder);

    for (struct dirent *e; d && (e = readdir(d));)
        unlinkat(dirfd(d), e->d_name, 0);
    if (d)
        closedir(d);
}

/* Files in the folder whose name ends so. */
static unsigned count_files(const char *end)
{
    DIR *d = opendir(folder);
    unsigned n = 0;

    for (struct dirent *e; d && (e = readdir(d));) {
        size_t k = strlen(e->d_name), m = strlen(end);
        n += e->d_name[0] != '.' && k >= m && strcmp(e->d_name + k - m, end) == 0;
    }
    if (d)
        closedir(d);
    return n;
}

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    char *p = pseg_packed_path(folder, key);
    snprintf(path, sizeof path, "%s", p ? p : "");
    pseg_free(p);
    signal(SIGXFSZ, SIG_IGN);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    remove_all();
    return rmdir(folder);
}

static int clean(void **state)
{
    (void)state;
    remove_all();
    return 0;
}

static uint8_t byte_of(size_t piece, size_t i)
{
    return (uint8_t)(piece * 31 + i * 7 + (i >> 8));
}

static pseg_status add_all(pseg_packer *p, pseg_err *err)
{
    uint8_t data[5000];
    char name[32];

    for (size_t k = 0; k < N_PIECES; k++) {
        for (size_t i = 0; i < sizes[k]; i++)
            data[i] = byte_of(k, i);
        snprintf(name, sizeof name, "piece.%zu", k);
        pseg_status rc = pseg_packer_add(p, name, (uint32_t)k, data, sizes[k], err);
        if (rc != PSEG_OK)
            return rc;
    }
    return PSEG_OK;
}

static pseg_status write_all(pseg_err *err)
{
    pseg_packer *p;
    pseg_status rc = pseg_packer_new(&p, path, key, err);

    if (rc == PSEG_OK)
        rc = add_all(p, err);
    if (rc == PSEG_OK)
        rc = pseg_packer_commit(p, err);
    pseg_packer_free(p);
    return rc;
}

/* Reads every piece. What is given out must be what was put in. */
static pseg_status read_all(pseg_err *err)
{
    pseg_packed *f;
    const void *data;
    char name[32];
    pseg_status rc = pseg_packed_open(&f, path, key, err);

    for (size_t k = 0; rc == PSEG_OK && k < N_PIECES; k++) {
        snprintf(name, sizeof name, "piece.%zu", k);
        rc = pseg_packed_next(&data, f, name, (uint32_t)k, sizes[k], err);
        if (rc == PSEG_OK)
            assert_int_equal((uintptr_t)data % PSEG_PACKED_ALIGN, 0);
        for (size_t i = 0; rc == PSEG_OK && i < sizes[k]; i++)
            assert_int_equal(((const uint8_t *)data)[i], byte_of(k, i));
    }
    if (rc == PSEG_OK)
        assert_true(pseg_packed_is_used_up(f));
    pseg_packed_close(f);
    return rc;
}

static void must(pseg_status rc, const pseg_err *err)
{
    if (rc != PSEG_OK)
        fail_msg("%s", err->msg);
}

static void what_is_written_is_read(void **state)
{
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    assert_int_equal(read_all(&err), PSEG_ENOTFOUND);
    must(write_all(&err), &err);
    must(read_all(&err), &err);
    must(write_all(&err), &err); /* over the one that is there */
    must(read_all(&err), &err);
    assert_int_equal(count_files(".tmp"), 0);
}

static void pieces_come_in_order_and_as_asked_for(void **state)
{
    static const struct {
        const char *name;
        uint32_t type;
        size_t bytes;
    } wrong[] = {{"piece.1", 0, 1}, {"piece.0", 1, 1}, {"piece.0", 0, 2}, {"piece.", 0, 1}};
    pseg_err err = PSEG_ERR_INIT;
    pseg_packed *f;
    const void *data;
    (void)state;

    must(write_all(&err), &err);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        must(pseg_packed_open(&f, path, key, &err), &err);
        assert_int_equal(
            pseg_packed_next(&data, f, wrong[i].name, wrong[i].type, wrong[i].bytes, &err),
            PSEG_ECORRUPT);
        assert_null(data);
        assert_non_null(strstr(err.msg, "piece.0"));
        /* One that is refused ends it: what follows may be displaced as well. */
        assert_int_equal(pseg_packed_next(&data, f, "piece.0", 0, 1, &err), PSEG_ECORRUPT);
        assert_false(pseg_packed_is_used_up(f));
        pseg_packed_close(f);
    }
    must(pseg_packed_open(&f, path, key, &err), &err);
    must(pseg_packed_next(&data, f, "piece.0", 0, 1, &err), &err);
    assert_false(pseg_packed_is_used_up(f));
    pseg_packed_close(f);
    assert_int_equal(pseg_packed_open(&f, path, other, &err), PSEG_ECORRUPT);
    assert_non_null(strstr(err.msg, "other weights"));
    assert_null(f);
}

static void store_bytes(const char *at, const void *data, size_t n)
{
    int fd = open(at, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0 && write(fd, data, n) == (ssize_t)n && close(fd) == 0);
}

static void a_file_of_another_length_is_refused(void **state)
{
    pseg_err err = PSEG_ERR_INIT;
    uint8_t *whole;
    size_t n;
    (void)state;

    must(write_all(&err), &err);
    must(pseg_file_read(&whole, &n, path, 1 << 20, &err), &err);
    for (size_t cut = 0; cut < n; cut += cut < 300 || n - cut < 1200 ? 1 : 61) {
        store_bytes(path, whole, cut);
        assert_int_equal(read_all(&err), PSEG_ECORRUPT);
    }
    uint8_t *longer = pseg_calloc(n + 1, 1);
    assert_non_null(longer);
    memcpy(longer, whole, n);
    store_bytes(path, longer, n + 1);
    assert_int_equal(read_all(&err), PSEG_ECORRUPT);
    pseg_free(longer);
    pseg_free(whole);
}

/* One bit of every byte in turn: header, pieces, the gaps between them, table. */
static void a_changed_bit_is_found(void **state)
{
    pseg_err err = PSEG_ERR_INIT;
    uint8_t *whole;
    size_t n, n_bytes = 0, n_good = 0;
    (void)state;

    must(write_all(&err), &err);
    must(pseg_file_read(&whole, &n, path, 1 << 20, &err), &err);
    for (size_t k = 0; k < N_PIECES; k++)
        n_bytes += sizes[k];
    int fd = open(path, O_WRONLY);
    for (size_t i = 0; i < n; i++) {
        uint8_t turned = whole[i] ^ (uint8_t)(1 << i % 8);
        assert_int_equal(pwrite(fd, &turned, 1, (off_t)i), 1);
        pseg_status rc = read_all(&err); /* which looks at what it is given */
        assert_true(rc == PSEG_OK || rc == PSEG_ECORRUPT);
        n_good += rc == PSEG_OK;
        assert_int_equal(pwrite(fd, &whole[i], 1, (off_t)i), 1);
    }
    close(fd);
    /* Harmless are the gaps only. */
    assert_int_equal(n_good, n - 128 - n_bytes - N_PIECES * 144);
    pseg_free(whole);
}

static void the_sum_sees_what_cancels_in_weaker_ones(void **state)
{
    uint8_t data[1024] = {0};
    uint64_t plain = pseg_packed_sum(data, sizeof data);
    (void)state;

    for (size_t i = 0; i + 64 < sizeof data; i += 8) { /* two signs, in the same lane */
        data[i + 7] ^= 0x80;
        data[i + 71] ^= 0x80;
        assert_int_not_equal(pseg_packed_sum(data, sizeof data), plain);
        data[i + 7] ^= 0x80;
        data[i + 71] ^= 0x80;
    }
    assert_int_not_equal(pseg_packed_sum(data, sizeof data - 1), plain);
    data[0] = 1;
    uint64_t first = pseg_packed_sum(data, sizeof data);
    data[0] = 0;
    data[8] = 1; /* moved by one word */
    assert_int_not_equal(pseg_packed_sum(data, sizeof data), first);
}

static void what_is_not_committed_leaves_nothing(void **state)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_packer *p;
    (void)state;

    must(pseg_packer_new(&p, path, key, &err), &err);
    must(add_all(p, &err), &err);
    assert_int_equal(count_files(".tmp"), 1);
    pseg_packer_free(p);
    assert_int_equal(count_files(""), 0);
    assert_int_equal(pseg_packer_new(&p, "/proc/none/x.packed", key, &err), PSEG_EIO);
    assert_null(p);
}

/* Runs fn in a process of its own; its result is the exit status. */
static pid_t spawn(int (*fn)(void))
{
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0)
        _exit(fn());
    return pid;
}

static int status_of(pid_t pid)
{
    int status = -1;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 200;
}

/* The disk is full after `room` bytes; 0 if that was told, and nothing was left behind. */
static rlim_t room;

static int write_in_little_room(void)
{
    struct rlimit limit = {room, room};
    pseg_err err = PSEG_ERR_INIT;

    if (setrlimit(RLIMIT_FSIZE, &limit))
        return 1;
    if (write_all(&err) != PSEG_EIO || !err.detail || !strstr(err.msg, "cannot write"))
        return 2;
    return count_files("") ? 3 : 0;
}

static void a_full_disk_is_told(void **state)
{
    (void)state;
    for (room = 0; room < 18400; room += 2300)
        assert_int_equal(status_of(spawn(write_in_little_room)), 0);
}

static int write_and_read(void)
{
    pseg_err err = PSEG_ERR_INIT;

    for (int i = 0; i < 6; i++)
        if (write_all(&err) != PSEG_OK || read_all(&err) != PSEG_OK)
            return 1;
    return 0;
}

static void writers_do_not_disturb_each_other(void **state)
{
    pseg_err err = PSEG_ERR_INIT;
    pid_t pids[4];
    (void)state;

    for (size_t i = 0; i < 4; i++)
        pids[i] = spawn(write_and_read);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(status_of(pids[i]), 0);
    must(read_all(&err), &err);
    assert_int_equal(count_files(""), 1);
}

/* As a worker does it: 10 if it was the one that made the file. */
static int make_once(void)
{
    pseg_err err = PSEG_ERR_INIT;
    int lock = pseg_packed_lock(path, 60000), made = 0;

    if (lock < 0)
        return 1;
    if (read_all(NULL) != PSEG_OK) {
        made = 10;
        if (write_all(&err) != PSEG_OK)
            return 2;
    }
    pseg_packed_unlock(lock, path);
    return made;
}

static int hold_and_die(void)
{
    pseg_packer *p;
    pseg_err err = PSEG_ERR_INIT;

    if (pseg_packed_lock(path, 0) < 0 || pseg_packer_new(&p, path, key, &err) != PSEG_OK)
        return 1;
    return 0; /* with the lock and half a file */
}

static void one_process_makes_it(void **state)
{
    pid_t pids[8];
    int sum = 0;
    (void)state;

    assert_int_equal(status_of(spawn(hold_and_die)), 0);
    for (size_t i = 0; i < 8; i++)
        pids[i] = spawn(make_once);
    for (size_t i = 0; i < 8; i++)
        sum += status_of(pids[i]);
    assert_int_equal(sum, 10);
    assert_int_equal(count_files(".packed"), 1);
    assert_int_equal(count_files(".lock"), 0);
    /* Whoever holds it for too long is not waited for. */
    int lock = pseg_packed_lock(path, 0);
    assert_true(lock >= 0);
    assert_int_equal(pseg_packed_lock(path, 0), -1);
    pseg_packed_unlock(lock, path);
    lock = pseg_packed_lock(path, 0);
    assert_true(lock >= 0);
    pseg_packed_unlock(lock, path);
    assert_int_equal(pseg_packed_lock("/proc/none/x.packed", 60000), -1);
    pseg_packed_unlock(-1, path);
}

/* ---- the folder ---- */

/* A file of n bytes, last used `age` seconds ago, named by 64 digits and end. */
static char *make_aged(char digit, const char *end, size_t n, int age)
{
    char name[PSEG_SHA256_HEX + 1];
    struct timespec times[2] = {{0, 0}, {0, 0}};

    memset(name, digit, PSEG_SHA256_HEX);
    name[PSEG_SHA256_HEX] = '\0';
    char *at = pseg_asprintf("%s/%s%s", folder, name, end);
    assert_non_null(at);
    int fd = open(at, O_WRONLY | O_CREAT, 0600);
    times[0].tv_sec = times[1].tv_sec = time(NULL) - age;
    assert_true(fd >= 0 && ftruncate(fd, (off_t)n) == 0 && futimens(fd, times) == 0);
    close(fd);
    return at;
}

static void what_was_used_last_stays(void **state)
{
    char *oldest = make_aged('a', ".packed", 400, 500), *old = make_aged('b', ".packed", 400, 400);
    char *young = make_aged('c', ".packed", 400, 10), *keep = make_aged('d', ".packed", 400, 900);
    char *kernel = make_aged('e', ".clbin", 4000, 9000000);
    char *half = make_aged('f', ".packed.0123456789abcdef.tmp", 400, 4000);
    char *fresh = make_aged('0', ".packed.0123456789abcdef.tmp", 4000, 4);
    char *sum = make_aged('1', ".sum", 88, 91 * 86400), *new_sum = make_aged('2', ".sum", 88, 9);
    char *all[] = {oldest, old, young, keep, kernel, half, fresh, sum, new_sum};
    (void)state;

    pseg_packed_touch(oldest);
    pseg_packed_trim(folder, keep, 1200);
    assert_true(pseg_file_exists(oldest) && pseg_file_exists(young) && pseg_file_exists(keep));
    assert_false(pseg_file_exists(old));
    assert_true(pseg_file_exists(kernel) && pseg_file_exists(fresh) && pseg_file_exists(new_sum));
    assert_false(pseg_file_exists(half) || pseg_file_exists(sum));
    pseg_packed_trim(folder, keep, 0); /* one that is larger than the limit stays alone */
    assert_true(pseg_file_exists(keep));
    assert_false(pseg_file_exists(young) || pseg_file_exists(oldest));
    pseg_packed_trim("/proc/none", keep, 0);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        pseg_free(all[i]);
}

/* What is removed while it is in use stays readable for who uses it. */
static void a_removed_file_stays_with_its_reader(void **state)
{
    pseg_err err = PSEG_ERR_INIT;
    const void *data;
    pseg_packed *f;
    (void)state;

    must(write_all(&err), &err);
    must(pseg_packed_open(&f, path, key, &err), &err);
    pseg_packed_trim(folder, NULL, 0);
    assert_false(pseg_file_exists(path));
    must(pseg_packed_next(&data, f, "piece.0", 0, 1, &err), &err);
    assert_int_equal(*(const uint8_t *)data, byte_of(0, 0));
    pseg_packed_close(f);
}

static void a_digest_is_recalled_unless_in_doubt(void **state)
{
    const int64_t now = (int64_t)1700000000 * 1000000000;
    uint8_t digest[PSEG_SHA256_BYTES], made[PSEG_SHA256_BYTES] = {9, 8, 7};
    pseg_err err = PSEG_ERR_INIT;
    (void)state;

    assert_false(pseg_sum_recall(digest, folder, key, now - 5000000000));
    must(pseg_sum_remember(folder, key, made, now, &err), &err);
    assert_true(pseg_sum_recall(digest, folder, key, now - PSEG_SUM_DOUBT_NS - 1));
    assert_memory_equal(digest, made, sizeof made);
    assert_false(pseg_sum_recall(digest, folder, key, now - PSEG_SUM_DOUBT_NS));
    assert_false(pseg_sum_recall(digest, folder, key, now + 1));
    assert_false(pseg_sum_recall(digest, folder, other, 0));
    must(pseg_sum_remember(folder, key, made, now + 10000000000, &err), &err);
    assert_true(pseg_sum_recall(digest, folder, key, now + 1));
    /* Damaged, or another's under this name. */
    char *at = pseg_asprintf("%s/%.64s.sum", folder, strrchr(path, '/') + 1), *text = NULL;
    assert_non_null(at);
    size_t n;
    must(pseg_file_read((uint8_t **)&text, &n, at, 1000, &err), &err);
    for (size_t i = 0; i < n; i++) {
        text[i] ^= 4;
        store_bytes(at, text, n);
        assert_false(pseg_sum_recall(digest, folder, key, 0));
        text[i] ^= 4;
    }
    store_bytes(at, text, n - 1);
    assert_false(pseg_sum_recall(digest, folder, key, 0));
    pseg_free(text);
    pseg_free(at);
    assert_int_equal(pseg_sum_remember("/proc/none", key, made, now, &err), PSEG_ENOTFOUND);
}

/* ---- layouts ---- */

/* If this fails because you changed a layout: raise PSEG_PACK_VERSION, or files that were made
 * before would be taken for the new form; then bring the sums up to date. */
static void the_version_is_raised_with_the_layouts(void **state)
{
    enum { N = 40, K = 72, C = 8 };
    static float w[N * K], conv[N * C * 9], four[4 * N];
    static float f32[64 * 96], turned[N * C * 9];
    static uint16_t b16[64 * 96], x2[2 * 64 * 96];
    (void)state;

    for (size_t i = 0; i < N * K; i++)
        w[i] = (float)((i * 2654435761u) >> 16 & 4095) / 4096 - 0.5f;
    assert_int_equal(PSEG_PACK_VERSION, 1);
    assert_int_equal(pseg_gemm_packed_elems(N, K), 64 * K);
    pseg_gemm_pack_rows(f32, 0, w, PSEG_F32, N, K);
    assert_int_equal(pseg_packed_sum(f32, 64 * K * sizeof *f32), 0x2efb7650c313f6bu);
    assert_int_equal(pseg_gemm_packed_bf16_elems(N, K), 64 * 96);
    pseg_gemm_pack_bf16_rows(b16, 0, w, PSEG_F32, N, K);
    assert_int_equal(pseg_packed_sum(b16, sizeof b16), 0xf9119896c76f4004u);
    pseg_gemm_pack_bf16x2_rows(x2, 0, w, PSEG_F32, N, K);
    assert_int_equal(pseg_packed_sum(x2, sizeof x2), 0x7420bf5e7282f5u);
    for (size_t i = 0; i < N * C * 9; i++)
        conv[i] = w[i % (N * K)];
    pseg_conv3_weight(turned, conv, N, C);
    assert_int_equal(pseg_packed_sum(turned, sizeof turned), 0x9b36519a3b93e797u);
    pseg_convt2_weight(turned, conv, C, N);
    assert_int_equal(pseg_packed_sum(turned, 4 * N * C * sizeof *turned), 0xe833929e0d2cac0cu);
    pseg_convt2_bias(four, w, N);
    assert_int_equal(pseg_packed_sum(four, sizeof four), 0xc6d79c8918835eb3u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(what_is_written_is_read, clean),
        cmocka_unit_test_teardown(pieces_come_in_order_and_as_asked_for, clean),
        cmocka_unit_test_teardown(a_file_of_another_length_is_refused, clean),
        cmocka_unit_test_teardown(a_changed_bit_is_found, clean),
        cmocka_unit_test(the_sum_sees_what_cancels_in_weaker_ones),
        cmocka_unit_test_teardown(what_is_not_committed_leaves_nothing, clean),
        cmocka_unit_test_teardown(a_full_disk_is_told, clean),
        cmocka_unit_test_teardown(writers_do_not_disturb_each_other, clean),
        cmocka_unit_test_teardown(one_process_makes_it, clean),
        cmocka_unit_test_teardown(what_was_used_last_stays, clean),
        cmocka_unit_test_teardown(a_removed_file_stays_with_its_reader, clean),
        cmocka_unit_test_teardown(a_digest_is_recalled_unless_in_doubt, clean),
        cmocka_unit_test(the_version_is_raised_with_the_layouts),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
