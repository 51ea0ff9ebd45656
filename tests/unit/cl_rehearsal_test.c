/* Launches that are noted and compiled later, and who is told that compiling begins. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/base/file.h"
#include "tests/support/skips.h"
#include "worker/cl/cl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64]; /* of this run: kernels */

static const char source[] =
    "__kernel void put(__global int *x, int value, __local int *tmp, __global int *unused)\n"
    "{\n"
    "    tmp[get_local_id(0)] = value;\n"
    "    x[get_global_id(0)] = tmp[get_local_id(0)] * FACTOR;\n"
    "}\n"
    "__kernel void clear(__global int *x) { x[get_global_id(0)] = 0; }\n";
static const pseg_kernel put = {"put.cl", "put", "-DFACTOR=1"},
                         put_twice = {"put.cl", "put", "-DFACTOR=2"},
                         put_alike = {"put.cl", "put", "-DFACTOR=1"},
                         clear = {"put.cl", "clear", "-DFACTOR=1"},
                         broken = {"put.cl", "put", "-DFACTOR=undeclared"};

static void write_text(const char *name, const char *text)
{
    char path[160];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(pseg_file_write(path, text, strlen(text), NULL), PSEG_OK);
}

typedef struct told {
    unsigned n;
    char device[PSEG_DEVICE_ID];
} told;

static void on_compile(void *ud, const char *device)
{
    told *t = ud;

    t->n++;
    snprintf(t->device, sizeof t->device, "%s", device);
}

/* NULL: there is no such device here. */
static pseg_cl *open_cl(const char *device, told *t)
{
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
    pseg_cl *cl = NULL;

    o.device = device;
    o.kernel_dir = dir;
    o.no_cache = true;
    o.on_compile = on_compile;
    o.on_compile_ud = t;
    (void)pseg_cl_open(&cl, &o, NULL);
    return cl;
}

static unsigned n_built(const pseg_cl *cl)
{
    unsigned built, cached;

    pseg_cl_program_counts(cl, &built, &cached);
    return built;
}

enum { N = 64 };

static void launch(pseg_stream *s, const pseg_kernel *k, pseg_mem *m, int value, size_t n)
{
    size_t local = 4;
    pseg_arg args[] = {PSEG_ARG_MEM(m), PSEG_ARG_VALUE(value), PSEG_ARG_LOCAL(4 * sizeof(int)),
                       PSEG_ARG_NONE};

    assert_int_equal(pseg_launch(s, k, 1, &n, &local, args, k == &clear ? 1 : 4, NULL), PSEG_OK);
}

static void holds(pseg_stream *s, const pseg_mem *m, int first, int last)
{
    int x[N];

    assert_int_equal(pseg_mem_read(x, s, m, 0, sizeof x, NULL), PSEG_OK);
    assert_int_equal(pseg_stream_finish(s, NULL), PSEG_OK);
    assert_int_equal(x[0], first);
    assert_int_equal(x[N - 1], last);
}

static pseg_mem *new_mem(pseg_stream *s)
{
    pseg_mem *m = NULL;

    assert_int_equal(pseg_mem_new(&m, pseg_stream_cl(s), N * sizeof(int), NULL), PSEG_OK);
    assert_int_equal(pseg_mem_zero(s, m, 0, N * sizeof(int), NULL), PSEG_OK);
    return m;
}

/* Nothing runs and nothing is built; then each kernel's smallest launch does, with what it was
 * given, in memory whose owner has freed it. */
static void launches_are_noted_and_the_smallest_run_later(void **state)
{
    told t = {0};
    pseg_cl *cl = open_cl(NULL, &t);
    pseg_stream *s = NULL;

    (void)state;
    if (!cl)
        skip_here();
    assert_int_equal(pseg_stream_open(&s, cl, NULL), PSEG_OK);
    pseg_mem *a = new_mem(s), *gone = new_mem(s);
    assert_int_equal(pseg_stream_rehearse(s, NULL), PSEG_OK);
    assert_int_equal(pseg_stream_rehearse(s, NULL), PSEG_EINVAL);
    launch(s, &clear, gone, 0, N);
    launch(s, &put, a, 5, N);
    launch(s, &put_twice, gone, 7, N);
    launch(s, &put_twice, a, 7, 4);
    launch(s, &put_alike, a, 6, 8);
    pseg_mem_free(gone);
    holds(s, a, 0, 0);
    assert_int_equal(n_built(cl), 0);
    assert_int_equal(t.n, 0);

    assert_int_equal(pseg_stream_compile_rehearsed(s, NULL), PSEG_OK);
    assert_int_equal(n_built(cl), 2);
    holds(s, a, 6, 0); /* the first program last: its put came after that of the second */
    assert_int_equal(pseg_stream_compile_rehearsed(s, NULL), PSEG_EINVAL);
    launch(s, &put, a, 9, N);
    launch(s, &clear, a, 0, 4);
    holds(s, a, 0, 9);
    assert_int_equal(n_built(cl), 2);
    pseg_mem_free(a);
    pseg_stream_close(s);
    pseg_cl_close(cl);
}

static void a_kernel_that_does_not_build_is_told(void **state)
{
    told t = {0};
    pseg_cl *cl = open_cl(NULL, &t);
    pseg_stream *s = NULL;
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    if (!cl)
        skip_here();
    assert_int_equal(pseg_stream_open(&s, cl, NULL), PSEG_OK);
    pseg_mem *a = new_mem(s);
    assert_int_equal(pseg_stream_rehearse(s, NULL), PSEG_OK);
    launch(s, &broken, a, 5, 4);
    assert_int_equal(pseg_stream_compile_rehearsed(s, &err), PSEG_EDEVICE);
    assert_int_equal(err.reason, PSEG_R_KERNEL_BUILD_FAILED);
    launch(s, &put, a, 5, N); /* the stream is still good */
    holds(s, a, 5, 5);
    assert_int_equal(pseg_stream_rehearse(s, NULL), PSEG_OK);
    launch(s, &put, a, 8, N);
    pseg_mem_free(a);
    pseg_stream_close(s); /* in the middle of a rehearsal */
    pseg_cl_close(cl);
}

/* On a CPU device of PoCL that has several cores, once; with one core there is nothing to gain. */
static void who_asks_is_told_once_that_compiling_begins(void **state)
{
    static const char *const devices[] = {"cpu", "cpu/2.1"};
    bool is_told = false;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        told t = {0};
        pseg_cl *cl = open_cl(devices[i], &t);
        pseg_stream *s = NULL;

        if (!cl)
            continue;
        const pseg_device_info *d = pseg_cl_device(cl);
        bool pays = d->compute_units > 1 && strstr(d->platform_version, "PoCL");
        assert_int_equal(pseg_stream_open(&s, cl, NULL), PSEG_OK);
        assert_int_equal(pseg_kernel_prepare(s, &put, NULL), PSEG_OK);
        assert_int_equal(pseg_kernel_prepare(s, &put_twice, NULL), PSEG_OK);
        assert_int_equal(t.n, pays ? 1 : 0);
        if (pays)
            assert_string_equal(t.device, d->id);
        is_told = is_told || pays;
        pseg_stream_close(s);
        pseg_cl_close(cl);
    }
    if (!is_told)
        skip_here();
}

static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/pseg-cl-test-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    write_text("params.h", "\n");
    write_text("common.clh", "\n");
    write_text("put.cl", source);
    return 0;
}

static int tear_down(void **state)
{
    static const char *const names[] = {"params.h", "common.clh", "put.cl"};
    char path[160];

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(launches_are_noted_and_the_smallest_run_later),
        cmocka_unit_test(a_kernel_that_does_not_build_is_told),
        cmocka_unit_test(who_asks_is_told_once_that_compiling_begins),
    };

    return with_skips(cmocka_run_group_tests(tests, set_up, tear_down));
}
