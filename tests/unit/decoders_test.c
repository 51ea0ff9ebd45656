/* Decoders that are locked in: the same numbers as in the process itself, and what becomes of an
 * image whose decoder crashes, loops, eats memory, attacks or is killed. */
#include "tests/unit/image_support.h"
#include "common/base/clock.h"
#include "worker/decode/decoders.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

enum { W = 224, H = 160, N = 3 * W * H };

static const pseg_preprocess how = {.fit = PSEG_IMAGE_LETTERBOX,
                                    .width = W,
                                    .height = H,
                                    .mean = {0.5f, 0.4f, 0.3f},
                                    .std = {0.2f, 0.3f, 0.4f}};

/* cpu_s: far more than any fault but the loop takes, on a machine that is slow at giving memory,
 * too. */
static pseg_decoders *open_with(size_t n, bool with_faults, int64_t cpu_s)
{
    pseg_decoders_options o = PSEG_DECODERS_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_decoders *d = NULL;

    o.n = n;
    o.program = with_faults ? PSEG_TEST_BINARY_DIR "/tests/decode_fault"
                            : PSEG_TEST_BINARY_DIR "/bin/pseg-decode";
    o.how = how;
    o.cpu_s = cpu_s;
    o.wall_ms = 60000;
    o.memory_bytes = (uint64_t)1 << 30;
    if (pseg_decoders_open(&d, &o, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    return d;
}

static pseg_decoders *open_them(size_t n, bool with_faults)
{
    return open_with(n, with_faults, 40);
}

static pseg_reason try_text_of(pseg_decoders *d, const char *owner, const char *text, pseg_err *err)
{
    static float chw[N];
    pseg_image_prepared p;

    pseg_err_clear(err);
    pseg_image_file file = {text, strlen(text)};
    pseg_status rc = pseg_decoders_prepare(d, &p, chw, owner, file, err);
    return rc == PSEG_OK ? PSEG_R_NONE : err->reason;
}

static pseg_reason try_text(pseg_decoders *d, const char *text, pseg_err *err)
{
    return try_text_of(d, "a", text, err);
}

/* An image after the fault is decoded as if nothing had been. */
static void assert_well_of(pseg_decoders *d, const char *owner)
{
    static float chw[N];
    pseg_err err = PSEG_ERR_INIT;
    pseg_image_prepared p;
    size_t len;
    uint8_t *data = read_fixture("rgb.png", &len);

    if (pseg_decoders_prepare(d, &p, chw, owner, (pseg_image_file){data, len}, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(p.width, 24);
    pseg_free(data);
}

static void assert_well(pseg_decoders *d)
{
    assert_well_of(d, "a");
}

static void compare_of(pseg_decoders *d, const char *owner, const char *name)
{
    static float here[N], there[N];
    pseg_image_prepared a = {0}, b = {0};
    pseg_err e1 = PSEG_ERR_INIT, e2 = PSEG_ERR_INIT;
    const pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
    size_t len;
    uint8_t *data = read_fixture(name, &len);
    pseg_image_file file = {data, len};

    memset(here, 0, sizeof here);
    memset(there, 0, sizeof there);
    pseg_status rc = pseg_image_prepare(&a, here, file, &limits, &how, &e1);
    assert_int_equal(pseg_decoders_prepare(d, &b, there, owner, file, &e2), rc);
    if (rc != PSEG_OK) {
        assert_int_equal(e1.reason, e2.reason);
        assert_string_equal(e1.msg, e2.msg);
        assert_string_equal(e1.limit, e2.limit);
    } else {
        assert_memory_equal(here, there, sizeof here);
        assert_memory_equal(a.rect, b.rect, sizeof a.rect);
        assert_int_equal(a.width, b.width);
        assert_int_equal(a.height, b.height);
        assert_int_equal(a.shrink, b.shrink);
    }
    pseg_free(data);
}

static void compare(pseg_decoders *d, const char *name)
{
    compare_of(d, "a", name);
}

/* Every fixture, good, odd or broken: numbers, sizes, reasons and words are those of this process.
 */
static void test_same_as_here(void **state)
{
    pseg_decoders *d = open_them(2, false);
    DIR *folder = opendir(PSEG_TEST_SOURCE_DIR "/tests/unit/data/image");
    struct dirent *e;
    int n = 0;

    (void)state;
    assert_non_null(folder);
    while ((e = readdir(folder)))
        if (e->d_name[0] != '.' && !strstr(e->d_name, ".py") && !strstr(e->d_name, ".h") &&
            strcmp(e->d_name, "expected.ppm") != 0) {
            compare(d, e->d_name);
            n++;
        }
    closedir(folder);
    assert_true(n > 60);
    pseg_decoders_close(d);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CRASH_SAYS "crashed its decoder" /* the sanitizer reports the signal and exits */
#else
#define CRASH_SAYS "signal 11"
#endif

static void test_faults(void **state)
{
    static const struct {
        const char *text, *says;
        pseg_reason reason;
    } cases[] = {
        {"fault:crash", CRASH_SAYS, PSEG_R_IMAGE_DECODER_CRASHED},
        {"fault:abort", "signal", PSEG_R_IMAGE_DECODER_CRASHED},
        {"fault:exit", "exit status 7", PSEG_R_IMAGE_DECODER_CRASHED},
        {"fault:socket", "system call", PSEG_R_IMAGE_DECODER_CRASHED},
        {"fault:exec", "system call", PSEG_R_IMAGE_DECODER_CRASHED},
        {"fault:kill", "system call", PSEG_R_IMAGE_DECODER_CRASHED},
        {"fault:ptrace", "system call", PSEG_R_IMAGE_DECODER_CRASHED},
        /* Denied with an error: the process goes on, and finds that its file is no image. */
        {"fault:soft", "the image is text", PSEG_R_IMAGE_FORMAT_UNSUPPORTED},
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
        {"fault:eat", "limit of 1024", PSEG_R_IMAGE_DECODER_MEMORY},
        {"fault:read", "the image is text", PSEG_R_IMAGE_FORMAT_UNSUPPORTED},
#endif
    };
    pseg_decoders *d = open_them(1, true);
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pseg_reason r = try_text(d, cases[i].text, &err);
        if (r != cases[i].reason || !strstr(err.msg, cases[i].says))
            fail_msg("%s: %s: %s", cases[i].text, pseg_reason_name(r), err.msg);
        assert_false(pseg_reason_is_retryable(r));
        assert_well(d);
    }
    assert_int_equal(access("/tmp/pseg-decode-was-here", F_OK), -1);
    pseg_decoders_close(d);
}

static void test_loop(void **state)
{
    pseg_decoders *d = open_with(1, true, 1);
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    assert_int_equal(try_text(d, "fault:loop", &err), PSEG_R_IMAGE_DECODER_TIMEOUT);
    assert_non_null(strstr(err.msg, "longer than the limit of 1 s"));
    assert_false(pseg_reason_is_retryable(err.reason));
    assert_well(d);
    pseg_decoders_close(d);
}

/* A decoder that neither works nor ends is killed when the time is over. */
static void test_silent(void **state)
{
    pseg_decoders_options o = PSEG_DECODERS_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_decoders *d = NULL;

    (void)state;
    o.n = 1;
    o.program = PSEG_TEST_BINARY_DIR "/tests/decode_fault";
    o.how = how;
    o.wall_ms = 300;
    assert_int_equal(pseg_decoders_open(&d, &o, &err), PSEG_OK);
    assert_int_equal(try_text(d, "fault:wait", &err), PSEG_R_IMAGE_DECODER_TIMEOUT);
    pseg_decoders_close(d);
}

/* The process group of a decoder: the only child of this process that is called so. */
static pid_t decoder_of(pid_t parent)
{
    char path[64], name[64];
    DIR *all = opendir("/proc");
    struct dirent *e;
    pid_t found = 0;

    assert_non_null(all);
    while ((e = readdir(all))) {
        int pid = 0, ppid = 0;
        snprintf(path, sizeof path, "/proc/%.20s/stat", e->d_name);
        FILE *f = e->d_name[0] >= '0' && e->d_name[0] <= '9' ? fopen(path, "r") : NULL;
        if (!f)
            continue;
        if (fscanf(f, "%d (%63[^)]) %*c %d", &pid, name, &ppid) == 3 && ppid == parent)
            found = pid;
        fclose(f);
    }
    closedir(all);
    return found;
}

typedef struct waiting {
    pseg_decoders *d;
    pseg_reason reason;
    pseg_err err;
} waiting;

static void *wait_main(void *arg)
{
    waiting *w = arg;

    w->reason = try_text(w->d, "fault:wait", &w->err);
    return NULL;
}

/* kill -9 of the program while it is at an image: another takes over, the image is tried once more,
 * and when that is killed, too, the job may be tried elsewhere. */
static void test_killed(void **state)
{
    pseg_decoders *d = open_them(1, true);
    pseg_decoders_stats stats;
    waiting w = {.d = d, .err = PSEG_ERR_INIT};
    pthread_t thread;
    pid_t last = 0;
    int kills = 0;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, wait_main, &w), 0);
    for (int64_t until = pseg_clock_mono_ms() + 30000; kills < 2 && pseg_clock_mono_ms() < until;) {
        pid_t nursery = decoder_of(getpid()), child = nursery ? decoder_of(nursery) : 0;
        pseg_decoders_get_stats(d, &stats);
        if (!child || nursery == last || stats.images == 0 || stats.restarts != (uint64_t)kills)
            continue;
        last = nursery;
        assert_int_equal(kill(-nursery, SIGKILL), 0);
        kills++;
    }
    pthread_join(thread, NULL);
    assert_int_equal(kills, 2);
    assert_int_equal(w.reason, PSEG_R_OUT_OF_MEMORY);
    assert_true(pseg_reason_is_retryable(w.reason));
    pseg_decoders_get_stats(d, &stats);
    assert_int_equal(stats.restarts, 1);
    assert_well(d);
    pseg_decoders_close(d);
}

static void *many_main(void *arg)
{
    for (int i = 0; i < 20; i++)
        compare_of(arg, i % 5 == 4 ? "b" : "a",
                   i % 3 == 0   ? "progressive.jpg"
                   : i % 3 == 1 ? "rgba.png"
                                : "broken_icc.jpg");
    return NULL;
}

static void *crash_main(void *arg)
{
    pseg_err err = PSEG_ERR_INIT;

    for (int i = 0; i < 20; i++)
        if (try_text(arg, "fault:crash", &err) != PSEG_R_IMAGE_DECODER_CRASHED)
            return arg;
    return NULL;
}

/* Images of others are not touched by one that crashes beside them. */
static void test_neighbours(void **state)
{
    pseg_decoders *d = open_them(2, true);
    pthread_t a, b;
    void *failed;

    (void)state;
    assert_int_equal(pthread_create(&a, NULL, crash_main, d), 0);
    many_main(d);
    assert_int_equal(pthread_join(a, &failed), 0);
    assert_null(failed);
    assert_int_equal(pthread_create(&b, NULL, crash_main, d), 0);
    many_main(d);
    assert_int_equal(pthread_join(b, &failed), 0);
    assert_null(failed);
    pseg_decoders_close(d);
}

/* Images of one owner share a process, and no two owners do. */
static void test_owners(void **state)
{
    pseg_decoders *d = open_them(1, true);
    pseg_decoders_stats stats;
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    assert_well_of(d, "a");
    assert_well_of(d, "a");
    assert_well_of(d, "a");
    pseg_decoders_get_stats(d, &stats);
    assert_int_equal(stats.shared, 2);
    assert_well_of(d, "b");
    assert_well_of(d, NULL);
    assert_well_of(d, NULL);
    pseg_decoders_get_stats(d, &stats);
    assert_int_equal(stats.shared, 2);
    /* What a process has kept of one owner's image is not there for the next owner. */
    for (int i = 0; i < 20; i++) {
        assert_int_equal(try_text_of(d, i % 2 ? "a" : "b", "fault:once", &err),
                         PSEG_R_IMAGE_FORMAT_UNSUPPORTED);
        assert_non_null(strstr(err.msg, "the image is text"));
    }
    pseg_decoders_close(d);
}

/* A process that an earlier image has spoiled refuses none: that is for a fresh one to tell. */
static void test_spoiled(void **state)
{
    pseg_decoders *d = open_them(1, true);
    pseg_decoders_stats stats;
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    for (int i = 0; i < 5; i++) {
        assert_well(d);
        assert_int_equal(try_text(d, "fault:once", &err), PSEG_R_IMAGE_FORMAT_UNSUPPORTED);
        assert_int_equal(try_text(d, "fault:once", &err), PSEG_R_IMAGE_FORMAT_UNSUPPORTED);
    }
    pseg_decoders_get_stats(d, &stats);
    assert_int_equal(stats.crashed, 0);
    assert_well(d);
    assert_int_equal(try_text(d, "fault:crash", &err), PSEG_R_IMAGE_DECODER_CRASHED);
    pseg_decoders_get_stats(d, &stats);
    assert_int_equal(stats.crashed, 1);
    assert_well(d);
    pseg_decoders_close(d);
}

/* One that answers more often than it was asked answers nobody else's image. */
static void test_forged(void **state)
{
    pseg_decoders *d = open_them(1, true);
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(try_text_of(d, "b", "fault:forge", &err), PSEG_R_IMAGE_DECODER_CRASHED);
        assert_well(d);
    }
    pseg_decoders_close(d);
}

/* A process leaves after so many images, just when the next one comes, too. */
static void test_turns(void **state)
{
    pseg_decoders_options o = PSEG_DECODERS_OPTIONS_DEFAULT;
    pseg_decoders_stats stats;
    pseg_err err = PSEG_ERR_INIT;
    pseg_decoders *d = NULL;

    (void)state;
    o.n = 1;
    o.program = PSEG_TEST_BINARY_DIR "/bin/pseg-decode";
    o.how = how;
    o.images = 3;
    assert_int_equal(pseg_decoders_open(&d, &o, &err), PSEG_OK);
    for (int i = 0; i < 60; i++)
        compare_of(d, i % 20 < 15 ? "a" : "b", i % 2 ? "rgba.png" : "progressive.jpg");
    pseg_decoders_get_stats(d, &stats);
    assert_int_equal(stats.images, 60);
    assert_int_equal(stats.restarts, 0);
    assert_in_range(stats.shared, 20, 59);
    pseg_decoders_close(d);
}

/* What the program does before it forks leaves no thread behind, whose locks a child would inherit
 * and never see opened. */
static void test_forks_alone(void **state)
{
    pseg_decoders *d = open_them(1, false);
    char path[64];
    struct dirent *e;
    int n = 0;

    (void)state;
    snprintf(path, sizeof path, "/proc/%d/task", (int)decoder_of(getpid()));
    DIR *threads = opendir(path);
    assert_non_null(threads);
    while ((e = readdir(threads)))
        n += e->d_name[0] != '.';
    closedir(threads);
    assert_int_equal(n, 1);
    pseg_decoders_close(d);
}

static void test_open(void **state)
{
    pseg_decoders_options o = PSEG_DECODERS_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_decoders *d;

    (void)state;
    o.how = how;
    o.program = "/nowhere/pseg-decode";
    assert_int_equal(pseg_decoders_open(&d, &o, &err), PSEG_ENOTFOUND);
    assert_non_null(strstr(err.msg, "/nowhere/pseg-decode"));
    pseg_err_clear(&err);
    o.program = "/bin/true"; /* ends without a word */
    assert_int_equal(pseg_decoders_open(&d, &o, &err), PSEG_ENOMEM);
    o.n = 0;
    assert_int_equal(pseg_decoders_open(&d, &o, NULL), PSEG_EINVAL);
    pseg_decoders_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_here), cmocka_unit_test(test_faults),
        cmocka_unit_test(test_loop),         cmocka_unit_test(test_silent),
        cmocka_unit_test(test_killed),       cmocka_unit_test(test_neighbours),
        cmocka_unit_test(test_owners),       cmocka_unit_test(test_spoiled),
        cmocka_unit_test(test_forged),       cmocka_unit_test(test_turns),
        cmocka_unit_test(test_open),         cmocka_unit_test(test_forks_alone),
    };
    pseg_err err = PSEG_ERR_INIT;

    if (pseg_image_init(&err) != PSEG_OK)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    pseg_image_shutdown();
    return failed;
}
