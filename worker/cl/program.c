/* Programs: their sources, built once per context unless they are kept on disk (program_keep.c). */
#include "worker/cl/internal.h"

#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/conf.h"
#include "common/base/file.h"
#include "common/base/hash.h"
#include "kernels/embedded.h"

#include <stdio.h>
#include <string.h>

#define MAX_SOURCE      (1u << 20)
#define MAX_LOG         (1u << 20)
#define N_PARTS         4u /* params.h, common.clh, a #line, the kernel's file */
#define MAX_OPTION_TEXT 512u

typedef struct source {
    char *text[N_PARTS];
    char options[MAX_OPTION_TEXT];
    char key[PSEG_SHA256_HEX + 1];
} source;

static void source_deinit(source *s)
{
    for (size_t i = 0; i < N_PARTS; i++)
        pseg_free(s->text[i]);
}

static pseg_status read_part(char **out, const pseg_cl *cl, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = NULL;
    uint8_t *data = NULL;
    size_t n = 0;

    *out = NULL;
    if (cl->kernel_dir) {
        path = pseg_path_join(cl->kernel_dir, name);
        if (!path)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
        PSEG_TRY(pseg_file_read(&data, &n, path, MAX_SOURCE, err));
        *out = (char *)data;
        goto out;
    }
    for (size_t i = 0; i < pseg_n_kernel_sources && !*out; i++)
        if (strcmp(pseg_kernel_sources[i].name, name) == 0) {
            *out = pseg_strndup((const char *)pseg_kernel_sources[i].data,
                                pseg_kernel_sources[i].size);
            if (!*out)
                PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
        }
    if (!*out)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "no kernel source %s", name);
out:
    pseg_free(path);
    return rc;
}

static void hash_string(pseg_sha256 *h, const char *s)
{
    pseg_sha256_update(h, s, strlen(s) + 1); /* with the NUL: "ab","c" is not "a","bc" */
}

pseg_status pseg_cl_kernel_digest(char out[65], const pseg_cl *cl, pseg_err *err)
{
    _Static_assert(PSEG_SHA256_HEX + 1 == 65, "the size in the header");
    pseg_status rc = PSEG_OK;
    pseg_sha256 *h = pseg_sha256_new();
    uint8_t digest[PSEG_SHA256_BYTES];
    char *text = NULL;

    if (!h)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    for (size_t i = 0; i < pseg_n_kernel_sources; i++) {
        PSEG_TRY(read_part(&text, cl, pseg_kernel_sources[i].name, err));
        hash_string(h, pseg_kernel_sources[i].name);
        hash_string(h, text);
        pseg_free(text);
        text = NULL;
    }
    pseg_sha256_finish(h, digest);
    pseg_hex(out, digest, sizeof digest);
out:
    pseg_sha256_free(h);
    return rc;
}

static pseg_status source_init(source *s, const pseg_cl *cl, const pseg_kernel *k, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_sha256 *h = NULL;
    uint8_t digest[PSEG_SHA256_BYTES];

    memset(s, 0, sizeof *s);
    PSEG_TRY(read_part(&s->text[0], cl, "params.h", err));
    PSEG_TRY(read_part(&s->text[1], cl, "common.clh", err));
    s->text[2] = pseg_asprintf("\n#line 1 \"%s\"\n", k->file);
    if (!s->text[2])
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    PSEG_TRY(read_part(&s->text[3], cl, k->file, err));
    int n = snprintf(s->options, sizeof s->options, "-cl-std=CL1.2 -DPSEG_CPU=%d %s",
                     cl->variant == PSEG_CL_CPU, k->options ? k->options : "");
    PSEG_ASSERT(n > 0 && (size_t)n < sizeof s->options);
    h = pseg_sha256_new();
    if (!h)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    for (size_t i = 0; i < N_PARTS; i++)
        hash_string(h, s->text[i]);
    hash_string(h, s->options);
    hash_string(h, cl->info.name);
    hash_string(h, cl->info.vendor);
    hash_string(h, cl->info.driver);
    hash_string(h, cl->info.version);
    hash_string(h, cl->info.platform_name);
    hash_string(h, cl->info.platform_version);
    pseg_sha256_finish(h, digest);
    pseg_hex(s->key, digest, sizeof digest);
out:
    pseg_sha256_free(h);
    if (rc != PSEG_OK)
        source_deinit(s);
    return rc;
}

/* The first line of the build log that names an error, else its first line. */
static pseg_status build_failed(pseg_err *err, const pseg_cl *cl, cl_program p, cl_int code,
                                const char *file)
{
    size_t n = 0;
    char *log = NULL;
    const char *line = "the driver gave no log";
    int len = (int)strlen(line);

    if (clGetProgramBuildInfo(p, cl->device, CL_PROGRAM_BUILD_LOG, 0, NULL, &n) == CL_SUCCESS &&
        n > 1 && n <= MAX_LOG && (log = pseg_calloc(n + 1, 1)) != NULL &&
        clGetProgramBuildInfo(p, cl->device, CL_PROGRAM_BUILD_LOG, n, log, NULL) == CL_SUCCESS) {
        line = strcasestr(log, "error:");
        while (line && line > log && line[-1] != '\n')
            line--;
        if (!line)
            line = log + strspn(log, "\r\n \t");
        len = (int)strcspn(line, "\r\n");
    }
    pseg_status rc =
        pseg_err_set(err, PSEG_R_KERNEL_BUILD_FAILED, code, PSEG_HERE,
                     "kernel %s does not build on device %s: %.*s", file, cl->info.id, len, line);
    pseg_free(log);
    return rc;
}

static pseg_status build_source(cl_program *out, pseg_cl *cl, const source *s, const char *file,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    cl_program p = NULL;
    cl_int code = CL_SUCCESS;
    const char *text[N_PARTS];

    *out = NULL;
    for (size_t i = 0; i < N_PARTS; i++)
        text[i] = s->text[i];
    p = clCreateProgramWithSource(cl->context, N_PARTS, text, NULL, &code);
    PSEG_CL_TRY(clCreateProgramWithSource, code);
    code = clBuildProgram(p, 1, &cl->device, s->options, NULL, NULL);
    if (code != CL_SUCCESS) {
        rc = build_failed(err, cl, p, code, file);
        goto out;
    }
    *out = p;
    p = NULL;
out:
    if (p)
        clReleaseProgram(p);
    return rc;
}

static bool is_same(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

/* Would a second process halve the time? PoCL has one lock around its compiler, and what it has
 * compiled is found by other processes. Once, if so, tells whoever asked for it. */
static void tell_of_compiling(pseg_cl *cl)
{
    const char *cache = pseg_conf_env("POCL_KERNEL_CACHE");

    if (cl->on_compile && cl->info.type == PSEG_DEVICE_CPU && cl->info.compute_units > 1 &&
        strcmp(cl->info.platform_name, "Portable Computing Language") == 0 &&
        !(cache && strcmp(cache, "0") == 0))
        cl->on_compile(cl->on_compile_ud, cl->info.id);
    cl->on_compile = NULL;
}

pseg_status pseg_program_get(cl_program *out, pseg_cl *cl, const pseg_kernel *k, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_program *p = NULL;
    source s;
    bool has_source = false;
    int64_t t0 = pseg_clock_mono_us();

    *out = NULL;
    pthread_mutex_lock(&cl->programs_lock);
    for (p = cl->programs; p; p = p->next)
        if (is_same(p->file, k->file) && is_same(p->options, k->options)) {
            *out = p->program;
            p = NULL;
            goto out;
        }
    PSEG_TRY(source_init(&s, cl, k, err));
    has_source = true;
    p = pseg_calloc(1, sizeof *p);
    if (!p)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    p->file = k->file;
    p->options = k->options;
    p->keep_at = cl->cache_dir ? pseg_asprintf("%s/%s.clbin", cl->cache_dir, s.key) : NULL;
    if (p->keep_at)
        p->program = pseg_program_load_kept(&p->is_damaged, cl, p->keep_at, s.options);
    bool is_cached = p->program != NULL;
    if (is_cached) {
        pseg_free(p->keep_at);
        p->keep_at = NULL;
    } else {
        tell_of_compiling(cl);
        PSEG_TRY(build_source(&p->program, cl, &s, k->file, err));
        pthread_cond_broadcast(&cl->keeper_cv);
    }
    atomic_fetch_add(is_cached ? &cl->n_cached : &cl->n_built, 1);
    PSEG_DBG(cl->log, "cl", "program ready file=%s options=\"%s\" from=%s ms=%.1f", k->file,
             s.options, is_cached ? "cache" : "source", (double)(pseg_clock_mono_us() - t0) * 1e-3);
    p->next = cl->programs;
    cl->programs = p;
    *out = p->program;
    p = NULL;
out:
    if (p)
        pseg_free(p->keep_at);
    pseg_free(p);
    if (has_source)
        source_deinit(&s);
    pthread_mutex_unlock(&cl->programs_lock);
    return rc;
}

void pseg_programs_free(pseg_cl *cl)
{
    while (cl->programs) {
        pseg_program *p = cl->programs;

        cl->programs = p->next;
        clReleaseProgram(p->program);
        pseg_free(p->keep_at);
        pseg_free(p);
    }
}
