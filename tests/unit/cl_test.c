/* Devices, memory, programs and their cache, launches, profile. Needs a device for most: those are
 * skipped without one. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/base/file.h"
#include "kernels/embedded.h"
#include "tests/support/skips.h"
#include "worker/cl/cl.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64]; /* of this run: kernels and cache */
static bool has_device;

static void write_text(const char *name, const char *text)
{
    char path[160];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(pseg_file_write(path, text, strlen(text), NULL), PSEG_OK);
}

static pseg_cl *open_cl(bool profile)
{
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_cl *cl = NULL;
    char cache[96];

    snprintf(cache, sizeof cache, "%s/cache", dir);
    o.cache_dir = cache;
    o.kernel_dir = dir;
    o.profile = profile;
    if (pseg_cl_open(&cl, &o, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    return cl;
}

static pseg_stream *open_stream(pseg_cl *cl)
{
    pseg_stream *s = NULL;

    assert_int_equal(pseg_stream_open(&s, cl, NULL), PSEG_OK);
    return s;
}

#define NEEDS_DEVICE()   \
    do {                 \
        if (!has_device) \
            skip_here(); \
    } while (0)

/* ---- selection ---------------------------------------------------------------------------- */

static const pseg_device_info three[] = {
    {.id = "0:0", .type = PSEG_DEVICE_CPU, .name = "pthread-EPYC", .platform_name = "PoCL"},
    {.id = "1:0", .type = PSEG_DEVICE_GPU, .name = "Iris", .vendor = "Intel Corp."},
    {.id = "2:0", .type = PSEG_DEVICE_GPU, .name = "H100", .vendor = "NVIDIA"},
};

static void selects_by_type_index_and_name(void **state)
{
    static const struct {
        const char *which;
        size_t want;
    } good[] = {{NULL, 1},  {"", 1},     {"auto", 1},   {"cpu", 0},  {"CPU", 0},  {"gpu", 1},
                {"2:0", 2}, {"h100", 2}, {"nvidia", 2}, {"pocl", 0}, {"intel", 1}};
    static const char *const bad[] = {"accelerator", "3:0", "2:1", "radeon", ":"};
    pseg_err err;
    size_t at;

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(pseg_device_select(&at, three, 3, good[i].which, NULL), PSEG_OK);
        assert_int_equal(at, good[i].want);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pseg_err_clear(&err);
        assert_int_equal(pseg_device_select(&at, three, 3, bad[i], &err), PSEG_EDEVICE);
        assert_int_equal(err.reason, PSEG_R_DEVICE_NOT_FOUND);
        assert_non_null(strstr(err.msg, "pseg devices"));
    }
    assert_int_equal(pseg_device_select(&at, three, 1, NULL, NULL), PSEG_OK);
    assert_int_equal(at, 0);
}

static void assert_refused(const char *which, const char *error)
{
    char ids[3][PSEG_DEVICE_ID];
    pseg_err err = PSEG_ERR_INIT;
    size_t n = 7;

    assert_int_equal(pseg_device_expand(ids, &n, 3, &which, 1, &err), PSEG_EINVAL);
    assert_int_equal(n, 0);
    assert_int_equal(err.reason, PSEG_R_CONFIG_INVALID);
    if (!strstr(err.msg, error))
        fail_msg("%s: %s", which, err.msg);
}

static void several_devices_are_named_at_once(void **state)
{
    static const char *const twice[] = {"0:0", "0:0"};
    pseg_device_info *list = NULL;
    char ids[3][PSEG_DEVICE_ID], text[80];
    pseg_err err = PSEG_ERR_INIT;
    size_t n = 0, n_all = 0;

    (void)state;
    NEEDS_DEVICE();
    assert_int_equal(pseg_device_list(&list, &n_all, NULL), PSEG_OK);
    const char *which = "all";
    if (n_all <= 3) {
        assert_int_equal(pseg_device_expand(ids, &n, 3, &which, 1, NULL), PSEG_OK);
        assert_int_equal(n, n_all);
        for (size_t i = 0; i < n; i++)
            assert_string_equal(ids[i], list[i].id);
    }
    assert_int_equal(pseg_device_expand(ids, &n, 3, twice, 1, NULL), PSEG_OK);
    assert_int_equal(n, 1);
    assert_string_equal(ids[0], "0:0");
    assert_refused("0:0,0:0", "device 0:0 is named twice");
    assert_int_equal(pseg_device_expand(ids, &n, 3, twice, 2, &err), PSEG_EINVAL);
    assert_refused("0:0/0", "device 0:0 in 0 parts");
    assert_refused("0:0/63000", "the limits are 1..");
    assert_refused("0:0/1.1", "part 1 of 1; parts count from 0");
    which = "no such/2";
    assert_int_equal(pseg_device_expand(ids, &n, 3, &which, 1, &err), PSEG_EDEVICE);
    if (list[0].compute_units >= 2) {
        snprintf(text, sizeof text, "%s/2.1,0:0/2.0", list[0].id);
        which = text;
        assert_int_equal(pseg_device_expand(ids, &n, 3, &which, 1, NULL), PSEG_OK);
        assert_int_equal(n, 2);
        assert_string_equal(ids[0], "0:0/2.1");
        assert_string_equal(ids[1], "0:0/2.0");
        assert_refused("0:0/2,0:0/2.1", "named twice");
        assert_refused("0:0/2,0:0/1.0,0:0", "more than 3 devices");
    }
    pseg_free(list);
}

/* A part has a share of the units, its own id, and works. */
static void a_part_is_a_device(void **state)
{
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_cl *cl = NULL;
    pseg_stream *s;
    pseg_mem *m = NULL;
    uint8_t data[64] = "from here", back[64] = "";

    (void)state;
    NEEDS_DEVICE();
    o.device = "cpu/2.1";
    o.no_cache = true;
    if (pseg_cl_open(&cl, &o, &err) != PSEG_OK) {
        assert_true(err.reason == PSEG_R_CONFIG_INVALID || err.reason == PSEG_R_DEVICE_NOT_FOUND);
        skip_here(); /* no CPU device, one of one unit, or a driver that cannot */
    }
    assert_non_null(strstr(pseg_cl_device(cl)->id, "/2.1"));
    assert_true(pseg_cl_device(cl)->compute_units >= 1);
    s = open_stream(cl);
    assert_int_equal(pseg_mem_new(&m, cl, sizeof data, NULL), PSEG_OK);
    assert_int_equal(pseg_mem_write(s, m, 0, data, sizeof data, NULL), PSEG_OK);
    assert_int_equal(pseg_mem_read(back, s, m, 0, sizeof back, NULL), PSEG_OK);
    assert_int_equal(pseg_stream_finish(s, NULL), PSEG_OK);
    assert_memory_equal(data, back, sizeof data);
    pseg_mem_free(m);
    pseg_stream_close(s);
    pseg_cl_close(cl);
    o.device = "cpu/2";
    assert_int_equal(pseg_cl_open(&cl, &o, &err), PSEG_EINVAL);
    assert_non_null(strstr(err.msg, "are 2 devices, one is wanted"));
}

static void no_device_names_the_remedy(void **state)
{
    pseg_err err = PSEG_ERR_INIT;
    size_t at;

    (void)state;
    assert_int_equal(pseg_device_select(&at, NULL, 0, NULL, &err), PSEG_EDEVICE);
    assert_int_equal(err.reason, PSEG_R_DEVICE_NOT_FOUND);
    assert_non_null(strstr(err.msg, "pocl-opencl-icd"));
}

static void unknown_device_is_refused_on_opening(void **state)
{
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_cl *cl = (pseg_cl *)1;

    (void)state;
    o.device = "no such device";
    assert_int_equal(pseg_cl_open(&cl, &o, &err), PSEG_EDEVICE);
    assert_int_equal(err.reason, PSEG_R_DEVICE_NOT_FOUND);
    assert_null(cl);
    pseg_cl_close(NULL);
}

static void listed_devices_are_described(void **state)
{
    pseg_device_info *list = NULL;
    size_t n = 0;

    (void)state;
    NEEDS_DEVICE();
    assert_int_equal(pseg_device_list(&list, &n, NULL), PSEG_OK);
    assert_true(n > 0);
    for (size_t i = 0; i < n; i++) {
        assert_true(list[i].name[0] && list[i].vendor[0] && list[i].version[0]);
        assert_true(list[i].compute_units > 0 && list[i].mem_bytes > 0);
        assert_true(list[i].max_alloc_bytes > 0 && list[i].max_group_size > 0);
        assert_string_not_equal(pseg_device_type_name(list[i].type), "");
    }
    pseg_free(list);
}

static void threads_are_chosen_before_drivers_start(void **state)
{
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    assert_int_equal(pseg_device_set_threads(0, &err), PSEG_OK);
    assert_int_equal(pseg_device_set_threads(3, &err), PSEG_EINTERNAL);
    assert_null(getenv("POCL_AFFINITY")); /* which would put thread i on CPU i of the machine */
}

/* ---- memory ------------------------------------------------------------------------------- */

static void memory_is_written_copied_zeroed_and_read(void **state)
{
    pseg_cl *cl;
    pseg_stream *s;
    pseg_mem *a = NULL, *b = NULL;
    uint8_t in[100], out[100];
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    NEEDS_DEVICE();
    cl = open_cl(false);
    s = open_stream(cl);
    for (int i = 0; i < 100; i++)
        in[i] = (uint8_t)(i + 1);
    assert_int_equal(pseg_mem_new(&a, cl, 100, &err), PSEG_OK);
    assert_int_equal(pseg_mem_new(&b, cl, 100, &err), PSEG_OK);
    assert_int_equal(pseg_cl_mem_used(cl), 200);
    assert_int_equal(pseg_mem_size(a), 100);
    assert_int_equal(pseg_mem_write(s, a, 0, in, 100, &err), PSEG_OK);
    assert_int_equal(pseg_mem_zero(s, b, 0, 100, &err), PSEG_OK);
    assert_int_equal(pseg_mem_copy(s, b, 10, a, 20, 30, &err), PSEG_OK);
    assert_int_equal(pseg_mem_read(out, s, b, 5, 50, &err), PSEG_OK);
    assert_int_equal(pseg_stream_flush(s, &err), PSEG_OK);
    assert_int_equal(pseg_stream_finish(s, &err), PSEG_OK);
    for (int i = 0; i < 50; i++)
        assert_int_equal(out[i], i >= 5 && i < 35 ? in[i - 5 + 20] : 0);

    assert_int_equal(pseg_mem_write(s, a, 1, in, 100, &err), PSEG_EINVAL);
    assert_int_equal(pseg_mem_write(s, a, SIZE_MAX, in, 2, &err), PSEG_EINVAL);
    assert_int_equal(pseg_mem_read(out, s, a, 100, 1, &err), PSEG_EINVAL);
    assert_int_equal(pseg_mem_copy(s, a, 0, b, 90, 11, &err), PSEG_EINVAL);
    assert_int_equal(pseg_mem_copy(s, a, 0, a, 10, 11, &err), PSEG_EINVAL);
    assert_int_equal(pseg_mem_zero(s, a, 50, 51, &err), PSEG_EINVAL);
    assert_int_equal(pseg_mem_write(s, a, 100, in, 0, &err), PSEG_OK);
    pseg_mem_free(a);
    pseg_mem_free(b);
    pseg_mem_free(NULL);
    assert_int_equal(pseg_cl_mem_used(cl), 0);
    pseg_stream_close(s);
    pseg_stream_close(NULL);
    pseg_cl_close(cl);
}

static void wrapped_memory_holds_the_bytes_and_is_read_only(void **state)
{
    pseg_cl *cl;
    pseg_stream *s;
    pseg_mem *m[2] = {NULL, NULL};
    uint8_t *host, out[64];

    (void)state;
    NEEDS_DEVICE();
    cl = open_cl(false);
    s = open_stream(cl);
    host = pseg_aligned_alloc(256);
    assert_non_null(host);
    for (int i = 0; i < 256; i++)
        host[i] = (uint8_t)(255 - i);
    assert_int_equal(pseg_mem_wrap(&m[0], cl, host, 64, NULL), PSEG_OK);
    assert_int_equal(pseg_mem_is_in_place(m[0]), pseg_cl_device(cl)->is_host_memory);
    assert_int_equal(pseg_mem_wrap(&m[1], cl, host + 1, 64, NULL), PSEG_OK); /* unaligned: a copy */
    assert_false(pseg_mem_is_in_place(m[1]));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pseg_mem_read(out, s, m[i], 0, 64, NULL), PSEG_OK);
        assert_int_equal(pseg_stream_finish(s, NULL), PSEG_OK);
        assert_memory_equal(out, host + i, 64);
        assert_int_equal(pseg_mem_write(s, m[i], 0, out, 1, NULL), PSEG_EINVAL);
        pseg_mem_free(m[i]);
    }
    pseg_map map; /* a file's pages, which nothing may write: how weights are read */
    char path[160];
    snprintf(path, sizeof path, "%s/twice.cl", dir);
    assert_int_equal(pseg_map_open(&map, path, NULL), PSEG_OK);
    assert_int_equal(pseg_mem_wrap(&m[0], cl, map.data + 4, 64, NULL), PSEG_OK);
    assert_int_equal(pseg_mem_is_in_place(m[0]), pseg_cl_device(cl)->is_host_memory);
    assert_int_equal(pseg_mem_read(out, s, m[0], 0, 64, NULL), PSEG_OK);
    assert_int_equal(pseg_stream_finish(s, NULL), PSEG_OK);
    assert_memory_equal(out, map.data + 4, 64);
    pseg_mem_free(m[0]);
    pseg_map_close(&map);
    assert_int_equal(pseg_mem_wrap(&m[0], cl, NULL, 64, NULL), PSEG_EINVAL);
    assert_int_equal(pseg_mem_wrap(&m[0], cl, host, 0, NULL), PSEG_EINVAL);
    pseg_free(host);
    pseg_stream_close(s);
    pseg_cl_close(cl);
}

static void too_much_memory_is_its_own_error(void **state)
{
    pseg_cl *cl;
    pseg_mem *m = NULL;
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    NEEDS_DEVICE();
    cl = open_cl(false);
    assert_int_equal(pseg_mem_new(&m, cl, SIZE_MAX / 2, &err), PSEG_ENOMEM);
    assert_int_equal(err.reason, PSEG_R_DEVICE_OUT_OF_MEMORY);
    assert_true(err.detail != 0);
    assert_null(m);
    assert_int_equal(pseg_mem_new(&m, cl, 0, &err), PSEG_EINVAL);
    pseg_cl_close(cl);
}

/* ---- programs and launches ---------------------------------------------------------------- */

static const char twice_source[] =
    "__kernel void twice(__global int *x, int n, int by, __local int *tmp, __global int *unused)\n"
    "{\n"
    "    for (int i = get_global_id(0); i < n; i += (int)get_global_size(0)) {\n"
    "        tmp[get_local_id(0)] = x[i];\n"
    "        x[i] = tmp[get_local_id(0)] * by * FACTOR;\n"
    "    }\n"
    "}\n";
static const pseg_kernel twice = {"twice.cl", "twice", "-DFACTOR=1"};
static const pseg_kernel thrice = {"twice.cl", "twice", "-DFACTOR=3"};

static int run_kernel(pseg_stream *s, const pseg_kernel *k, int value)
{
    pseg_mem *m = NULL;
    int x[10], n = 10, by = 2;
    size_t global = 7, local = 4; /* rounded up to 8 */
    pseg_err err = PSEG_ERR_INIT;

    for (int i = 0; i < n; i++)
        x[i] = value;
    assert_int_equal(pseg_mem_new(&m, pseg_stream_cl(s), sizeof x, &err), PSEG_OK);
    assert_int_equal(pseg_mem_write(s, m, 0, x, sizeof x, &err), PSEG_OK);
    pseg_arg args[] = {PSEG_ARG_MEM(m), PSEG_ARG_VALUE(n), PSEG_ARG_VALUE(by),
                       PSEG_ARG_LOCAL(4 * sizeof(int)), PSEG_ARG_NONE};
    if (pseg_launch(s, k, 1, &global, &local, args, 5, &err) != PSEG_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(pseg_mem_read(x, s, m, 0, sizeof x, &err), PSEG_OK);
    assert_int_equal(pseg_stream_finish(s, &err), PSEG_OK);
    pseg_mem_free(m);
    for (int i = 1; i < n; i++)
        assert_int_equal(x[i], x[0]);
    return x[0];
}

static void kernels_are_launched_by_their_options(void **state)
{
    pseg_cl *cl;
    pseg_stream *s;
    size_t nothing = 0;

    (void)state;
    NEEDS_DEVICE();
    cl = open_cl(false);
    s = open_stream(cl);
    assert_int_equal(run_kernel(s, &twice, 7), 14);
    assert_int_equal(run_kernel(s, &thrice, 7), 42);
    assert_int_equal(run_kernel(s, &twice, -1), -2);
    assert_int_equal(pseg_launch(s, &twice, 1, &nothing, NULL, NULL, 0, NULL), PSEG_OK);
    assert_int_equal(pseg_launch(s, &twice, 4, &nothing, NULL, NULL, 0, NULL), PSEG_EINVAL);
    pseg_stream_close(s);
    pseg_cl_close(cl);
}

static void faults_of_programs_are_named(void **state)
{
    static const pseg_kernel broken = {"broken.cl", "broken", NULL};
    static const pseg_kernel absent = {"absent.cl", "absent", NULL};
    static const pseg_kernel unnamed = {"twice.cl", "nothing", "-DFACTOR=1"};
    pseg_cl *cl;
    pseg_stream *s;
    pseg_err err = PSEG_ERR_INIT;

    (void)state;
    NEEDS_DEVICE();
    write_text("broken.cl",
               "__kernel void broken(__global int *x)\n{\n    x[0] = undeclared_name;\n}\n");
    cl = open_cl(false);
    s = open_stream(cl);
    assert_int_equal(pseg_kernel_prepare(s, &broken, &err), PSEG_EDEVICE);
    assert_int_equal(err.reason, PSEG_R_KERNEL_BUILD_FAILED);
    assert_non_null(strstr(err.msg, "undeclared_name"));
    assert_true(err.detail < 0);
    pseg_err_clear(&err);
    assert_int_equal(pseg_kernel_prepare(s, &absent, &err), PSEG_ENOTFOUND);
    pseg_err_clear(&err);
    assert_int_equal(pseg_kernel_prepare(s, &unnamed, &err), PSEG_EDEVICE);
    assert_non_null(strstr(err.msg, "nothing"));
    assert_int_equal(run_kernel(s, &twice, 4), 8); /* the stream is still good */
    pseg_stream_close(s);
    pseg_cl_close(cl);
}

static void embedded_sources_build(void **state)
{
    static const pseg_kernel k = {"pointwise.cl", "act", NULL};
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
    pseg_cl *cl = NULL;
    pseg_stream *s;
    unsigned built, cached;

    (void)state;
    NEEDS_DEVICE();
    o.no_cache = true;
    for (int v = PSEG_CL_CPU; v <= PSEG_CL_PORTABLE; v++) {
        o.variant = (pseg_cl_variant)v;
        assert_int_equal(pseg_cl_open(&cl, &o, NULL), PSEG_OK);
        assert_int_equal(pseg_cl_variant_of(cl), v);
        s = open_stream(cl);
        assert_int_equal(pseg_kernel_prepare(s, &k, NULL), PSEG_OK);
        pseg_cl_program_counts(cl, &built, &cached);
        assert_int_equal(built, 1);
        assert_int_equal(cached, 0);
        pseg_stream_close(s);
        pseg_cl_close(cl);
    }
}

/* ---- cache -------------------------------------------------------------------------------- */

/* Files in the cache, temporary ones included; path: one of them. */
static size_t cache_files(char *path, size_t cap)
{
    char cache[96];
    struct dirent *e;
    size_t n = 0;

    snprintf(cache, sizeof cache, "%s/cache", dir);
    DIR *d = opendir(cache);
    if (!d)
        return 0;
    while ((e = readdir(d)) != NULL)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            snprintf(path, cap, "%s/%.120s", cache, e->d_name);
            n++;
        }
    closedir(d);
    return n;
}

static void use_cache(unsigned want_built, unsigned want_cached)
{
    pseg_cl *cl = open_cl(false);
    pseg_stream *s = open_stream(cl);
    unsigned built, cached;

    assert_int_equal(run_kernel(s, &twice, 21), 42);
    pseg_cl_program_counts(cl, &built, &cached);
    assert_int_equal(built, want_built);
    assert_int_equal(cached, want_cached);
    pseg_stream_close(s);
    pseg_cl_close(cl);
}

static void programs_are_kept_and_bad_files_replaced(void **state)
{
    char path[256];
    uint8_t *data = NULL;
    size_t n = 0;

    (void)state;
    NEEDS_DEVICE();
    while (cache_files(path, sizeof path) > 0)
        unlink(path);
    use_cache(1, 0);
    assert_int_equal(cache_files(path, sizeof path), 1);
    use_cache(0, 1);

    assert_int_equal(pseg_file_read(&data, &n, path, 1u << 26, NULL), PSEG_OK);
    assert_true(n > 100);
    struct {
        const char *what;
        size_t size, flip; /* bytes kept; byte changed, or SIZE_MAX */
    } bad[] = {{"empty", 0, SIZE_MAX}, {"half", n / 2, SIZE_MAX}, {"header alone", 40, SIZE_MAX},
               {"one bit", n, n - 7},  {"foreign", n, 0},         {"checksum", n, 12}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint8_t *copy = pseg_memdup(data, n);

        assert_non_null(copy);
        if (bad[i].flip != SIZE_MAX)
            copy[bad[i].flip] ^= 1;
        assert_int_equal(pseg_file_write(path, copy, bad[i].size, NULL), PSEG_OK);
        pseg_free(copy);
        use_cache(1, 0);
        use_cache(0, 1); /* it was replaced */
        assert_int_equal(cache_files(path, sizeof path), 1);
    }
    pseg_free(data);

    write_text("common.clh", "\n#define CHANGED 1\n"); /* another source: another program */
    use_cache(1, 0);
    assert_int_equal(cache_files(path, sizeof path), 2);
    write_text("common.clh", "\n");
    use_cache(0, 1);
}

/* A build does not wait for the file: it is written when asked for, when closed, or beside. */
static void programs_are_kept_beside_the_work(void **state)
{
    char path[256];
    pseg_cl *cl;
    pseg_stream *s;

    (void)state;
    NEEDS_DEVICE();
    while (cache_files(path, sizeof path) > 0)
        unlink(path);
    cl = open_cl(false);
    s = open_stream(cl);
    assert_int_equal(run_kernel(s, &twice, 21), 42);
    assert_int_equal(cache_files(path, sizeof path), 0); /* a kill here leaves no file at all */
    pseg_cl_keep_in_background(cl);
    pseg_cl_keep_in_background(cl); /* a second one changes nothing */
    for (int i = 0; i < 50; i++)    /* the device goes on meanwhile */
        assert_int_equal(run_kernel(s, &twice, (uint32_t)i), 2 * i);
    pseg_cl_keep_now(cl);
    assert_int_equal(cache_files(path, sizeof path), 1);
    unlink(path);
    pseg_cl_keep_now(cl); /* what has been kept is not kept again */
    assert_int_equal(cache_files(path, sizeof path), 0);
    pseg_stream_close(s);
    pseg_cl_close(cl);
    assert_int_equal(cache_files(path, sizeof path), 0);

    cl = open_cl(false); /* what comes after the thread was started is kept, too */
    s = open_stream(cl);
    pseg_cl_keep_in_background(cl);
    assert_int_equal(run_kernel(s, &twice, 21), 42);
    pseg_cl_keep_now(cl);
    assert_int_equal(cache_files(path, sizeof path), 1);
    pseg_stream_close(s);
    pseg_cl_close(cl);
    use_cache(0, 1);
}

static void a_cache_that_cannot_be_written_is_no_error(void **state)
{
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
    pseg_cl *cl = NULL;
    pseg_stream *s;

    (void)state;
    NEEDS_DEVICE();
    o.cache_dir = "/proc/pseg-no-such-place";
    o.kernel_dir = dir;
    assert_int_equal(pseg_cl_open(&cl, &o, NULL), PSEG_OK);
    s = open_stream(cl);
    assert_int_equal(run_kernel(s, &twice, 1), 2);
    pseg_stream_close(s);
    pseg_cl_close(cl);
}

static void the_digest_is_that_of_the_sources(void **state)
{
    pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
    pseg_cl *cl = NULL;
    char first[65], second[65], other[65];

    (void)state;
    NEEDS_DEVICE();
    assert_int_equal(pseg_cl_open(&cl, &o, NULL), PSEG_OK);
    assert_int_equal(pseg_cl_kernel_digest(first, cl, NULL), PSEG_OK);
    assert_int_equal(pseg_cl_kernel_digest(second, cl, NULL), PSEG_OK);
    assert_int_equal(strlen(first), 64);
    assert_string_equal(first, second);
    pseg_cl_close(cl);

    for (size_t i = 0; i < pseg_n_kernel_sources; i++) { /* the same texts, from files */
        char *text =
            strndup((const char *)pseg_kernel_sources[i].data, pseg_kernel_sources[i].size);

        write_text(pseg_kernel_sources[i].name, text);
        free(text);
    }
    o.kernel_dir = dir;
    assert_int_equal(pseg_cl_open(&cl, &o, NULL), PSEG_OK);
    assert_int_equal(pseg_cl_kernel_digest(second, cl, NULL), PSEG_OK);
    assert_string_equal(first, second);
    write_text("gemm.cl", "/* another */\n");
    assert_int_equal(pseg_cl_kernel_digest(other, cl, NULL), PSEG_OK);
    assert_string_not_equal(first, other);
    pseg_cl_close(cl);
    write_text("params.h", "\n");
    write_text("common.clh", "\n");
}

/* ---- profile ------------------------------------------------------------------------------ */

static void count_launch(void *ud, const char *name, uint64_t start_ns, uint64_t end_ns)
{
    assert_string_equal(name, "twice");
    assert_true(end_ns >= start_ns);
    ++*(unsigned *)ud;
}

static void profile_sums_by_name(void **state)
{
    pseg_profile_entry e[4];
    pseg_cl *cl;
    pseg_stream *s;

    (void)state;
    NEEDS_DEVICE();
    cl = open_cl(true);
    s = open_stream(cl);
    run_kernel(s, &twice, 1);
    run_kernel(s, &twice, 1);
    run_kernel(s, &thrice, 1);
    assert_int_equal(pseg_stream_profile(e, 4, s), 1); /* two variants, one name */
    assert_string_equal(e[0].name, "twice");
    assert_int_equal(e[0].launches, 3);
    assert_true(e[0].total_ms >= e[0].max_ms && e[0].max_ms >= 0);
    pseg_stream_profile_reset(s);
    unsigned n_traced = 0;
    pseg_stream_trace(s, count_launch, &n_traced);
    run_kernel(s, &twice, 1);
    pseg_stream_credit(s, 10, 20);
    assert_int_equal(pseg_stream_finish(s, NULL), PSEG_OK);
    pseg_stream_trace(s, NULL, NULL);
    run_kernel(s, &twice, 1);
    assert_int_equal(n_traced, 1);
    assert_int_equal(pseg_stream_profile(e, 4, s), 1);
    assert_true(e[0].flops == 10 && e[0].bytes == 20);
    pseg_stream_profile_reset(s);
    assert_int_equal(pseg_stream_profile(e, 4, s), 0);
    pseg_stream_close(s);
    pseg_cl_close(cl);

    cl = open_cl(false);
    s = open_stream(cl);
    run_kernel(s, &twice, 1);
    assert_int_equal(pseg_stream_profile(e, 4, s), 0);
    pseg_stream_close(s);
    pseg_cl_close(cl);
}

/* ---- failing allocations ------------------------------------------------------------------ */

static void failing_allocations_are_reported(void **state)
{
    (void)state;
    NEEDS_DEVICE();
    bool is_done = false;
    for (uint64_t nth = 1; nth < 200 && !is_done; nth++) {
        pseg_cl_options o = PSEG_CL_OPTIONS_DEFAULT;
        pseg_cl *cl = NULL;
        pseg_stream *s = NULL;
        pseg_mem *m = NULL;
        pseg_err err = PSEG_ERR_INIT;

        o.no_cache = true;
        o.kernel_dir = dir;
        o.profile = true;
        pseg_alloc_fail_nth(nth);
        pseg_status rc = pseg_cl_open(&cl, &o, &err);
        if (rc == PSEG_OK)
            rc = pseg_stream_open(&s, cl, &err);
        if (rc == PSEG_OK)
            rc = pseg_mem_new(&m, cl, 64, &err);
        if (rc == PSEG_OK)
            rc = pseg_kernel_prepare(s, &twice, &err);
        pseg_alloc_fail_nth(0);
        /* A string of a device's description may be missing instead: that is no error. */
        if (rc != PSEG_OK)
            assert_int_equal(err.code, rc);
        is_done = rc == PSEG_OK && nth > 120;
        pseg_mem_free(m);
        pseg_stream_close(s);
        pseg_cl_close(cl);
    }
    assert_true(is_done);
}

static int set_up(void **state)
{
    pseg_device_info *list = NULL;
    size_t n = 0;

    (void)state;
    snprintf(dir, sizeof dir, "/tmp/pseg-cl-test-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    write_text("params.h", "\n");
    write_text("common.clh", "\n");
    write_text("twice.cl", twice_source);
    if (pseg_device_list(&list, &n, NULL) != PSEG_OK)
        return -1;
    pseg_free(list);
    has_device = n > 0;
    return 0;
}

static int tear_down(void **state)
{
    static const char *const names[] = {"params.h", "common.clh", "twice.cl", "broken.cl"};
    char path[256];

    (void)state;
    while (cache_files(path, sizeof path) > 0)
        unlink(path);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/cache", dir);
    rmdir(path);
    rmdir(dir);
    return 0;
}

static void assembly_is_for_drivers_that_survive_it(void **state)
{
    static const struct {
        const char *version;
        bool takes;
    } cases[] = {{"OpenCL 3.0 PoCL 3.1+debian  Linux, None+Asserts", true},
                 {"OpenCL 3.0 PoCL 6.0+debian  Linux, None+Asserts", false},
                 {"OpenCL 3.0 LINUX", true}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pseg_device_info d = {0};
        snprintf(d.platform_version, sizeof d.platform_version, "%s", cases[i].version);
        assert_int_equal(pseg_device_takes_assembly(&d), cases[i].takes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(selects_by_type_index_and_name),
        cmocka_unit_test(assembly_is_for_drivers_that_survive_it),
        cmocka_unit_test(no_device_names_the_remedy),
        cmocka_unit_test(several_devices_are_named_at_once),
        cmocka_unit_test(a_part_is_a_device),
        cmocka_unit_test(unknown_device_is_refused_on_opening),
        cmocka_unit_test(listed_devices_are_described),
        cmocka_unit_test(threads_are_chosen_before_drivers_start),
        cmocka_unit_test(memory_is_written_copied_zeroed_and_read),
        cmocka_unit_test(wrapped_memory_holds_the_bytes_and_is_read_only),
        cmocka_unit_test(too_much_memory_is_its_own_error),
        cmocka_unit_test(programs_are_kept_and_bad_files_replaced),
        cmocka_unit_test(kernels_are_launched_by_their_options),
        cmocka_unit_test(faults_of_programs_are_named),
        cmocka_unit_test(embedded_sources_build),
        cmocka_unit_test(programs_are_kept_beside_the_work),
        cmocka_unit_test(a_cache_that_cannot_be_written_is_no_error),
        cmocka_unit_test(profile_sums_by_name),
        cmocka_unit_test(the_digest_is_that_of_the_sources),
        cmocka_unit_test(failing_allocations_are_reported),
    };

    unsetenv("POCL_AFFINITY");
    return with_skips(cmocka_run_group_tests(tests, set_up, tear_down));
}
