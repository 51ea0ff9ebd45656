/* A model through the cache of packed weights: the same logits bit for bit however its weights came
 * to the device, whatever has happened to the file, and new ones for new weights. Runs itself for
 * every opening, as the workers of a machine are processes. Kernels stay in the build's folder
 * between runs. */
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "tests/golden/golden.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CACHE       PSEG_TEST_BINARY_DIR "/tests/packed-cache"
#define MODEL       PSEG_TEST_BINARY_DIR "/tests/packed-model"
#define SOURCE      PSEG_TEST_SOURCE_DIR "/deploy/models/scenes"
#define MAX_NUMBERS (1u << 20)
#define MAX_LOG     (1u << 16)

static bool all_good = true;

static void check(bool good, const char *what)
{
    printf("%s %s\n", good ? "ok  " : "FAIL", what);
    all_good &= good;
}

static void must(pseg_status rc, const char *what, const pseg_err *err)
{
    gold_must(rc == PSEG_OK, what, err);
}

/* ---- one worker ------------------------------------------------------------------------------ */

enum { OWN, SHARED, COPIED /* by a device with memory of its own */ };

/* Prints what the model says of an image and two phrases: where its weights are, predicted IoU,
 * logits. */
static void run_model(pseg_model *m, const pseg_cl *cl)
{
    const char *phrases[] = {"the red circle", "a large blue square on the left"};
    const pseg_model_info *info = pseg_model_get_info(m);
    size_t mask = (size_t)info->mask_height * info->mask_width, n = 2 * mask + 3;
    size_t pixels = 3 * (size_t)info->height * info->width;
    float *chw = pseg_malloc(pixels * sizeof *chw), *all = pseg_malloc(n * sizeof *all);
    pseg_err err = PSEG_ERR_INIT;
    pseg_features *f;
    pseg_prompt *p[2];

    gold_must(chw && all, "memory", NULL);
    for (size_t i = 0; i < pixels; i++)
        chw[i] = (float)((i * 2654435761u >> 16) % 1000) / 500 - 1;
    must(pseg_model_encode_images(&f, m, chw, 1, &err), "image", &err);
    must(pseg_model_encode_texts(p, m, phrases, 2, &err), "texts", &err);
    const pseg_features *fs[] = {f, f};
    must(pseg_model_decode(all + 3, all + 1, m, fs, (const pseg_prompt *const *)p, 2, &err),
         "decode", &err);
    all[0] = !pseg_cl_device(cl)->is_host_memory        ? COPIED
             : info->shared_bytes == info->weight_bytes ? SHARED
                                                        : OWN;
    fwrite(all, sizeof *all, n, stdout);
    pseg_features_free(f);
    pseg_prompt_free(p[0]);
    pseg_prompt_free(p[1]);
    pseg_free(chw);
    pseg_free(all);
}

/* argv: cache folder or "", precision, room on the disk in bytes or "". */
static int work(char **argv)
{
    const pseg_log log = {PSEG_LOG_INFO, STDERR_FILENO};
    pseg_model_source src = {.folder = MODEL};
    pseg_model_options o = {.max_images = 1, .max_phrases = 2, .log = &log};
    pseg_cl_options co = PSEG_CL_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_model *m;
    pseg_cl *cl;

    if (*argv[2]) {
        struct rlimit limit = {(rlim_t)atoi(argv[2]), (rlim_t)atoi(argv[2])};
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
    }
    co.device = getenv("PSEG_TEST_DEVICE");
    co.cache_dir = argv[0];
    co.no_cache = !*argv[0];
    for (int i = 0; i < PSEG_N_PRECISIONS; i++)
        if (strcmp(argv[1], pseg_precision_name((pseg_precision)i)) == 0)
            o.precision = (pseg_precision)i;
    if (pseg_cl_open(&cl, &co, &err) != PSEG_OK)
        return err.reason == PSEG_R_DEVICE_NOT_FOUND ? 77 : 1;
    must(pseg_model_open(&m, cl, &src, &o, &err), "model", &err);
    run_model(m, cl);
    pseg_model_close(m);
    pseg_cl_close(cl);
    return 0;
}

/* ---- many of them ---------------------------------------------------------------------------- */

typedef struct worker {
    pid_t pid;
    int out, log;
    float *numbers;
    size_t n;
    char text[MAX_LOG];
} worker;

static void start(worker *w, const char *cache, const char *precision, const char *room)
{
    int out[2], log[2];

    *w = (worker){0};
    gold_must(pipe(out) == 0 && pipe(log) == 0, "pipes", NULL);
    w->pid = fork();
    gold_must(w->pid >= 0, "fork", NULL);
    if (w->pid == 0) {
        dup2(out[1], STDOUT_FILENO);
        dup2(log[1], STDERR_FILENO);
        close(out[0]);
        close(log[0]);
        execl("/proc/self/exe", "packed_test", cache, precision, room, (char *)NULL);
        _exit(1);
    }
    close(out[1]);
    close(log[1]);
    w->out = out[0];
    w->log = log[0];
}

static size_t read_until_end(int fd, void *to, size_t max)
{
    size_t n = 0;
    ssize_t k;

    while (n < max && (k = read(fd, (char *)to + n, max - n)) > 0)
        n += (size_t)k;
    close(fd);
    return n;
}

static void finish(worker *w)
{
    int status = -1;

    w->numbers = pseg_malloc(MAX_NUMBERS * sizeof *w->numbers);
    gold_must(w->numbers, "memory", NULL);
    w->n = read_until_end(w->out, w->numbers, MAX_NUMBERS * sizeof *w->numbers) / sizeof(float);
    w->text[read_until_end(w->log, w->text, MAX_LOG - 1)] = '\0';
    gold_must(waitpid(w->pid, &status, 0) == w->pid, "wait", NULL);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
        printf("SKIP: no device\n");
        exit(77);
    }
    if (status != 0 || w->n < 4)
        printf("FAIL worker, status %d: %s\n", status, w->text);
    gold_must(status == 0 && w->n > 3, "worker", NULL);
}

static void run(worker *w, const char *cache, const char *precision, const char *room)
{
    start(w, cache, precision, room);
    finish(w);
}

static void worker_deinit(worker *w)
{
    pseg_free(w->numbers);
    w->numbers = NULL;
}

static unsigned count(const char *text, const char *part)
{
    unsigned n = 0;

    while ((text = strstr(text, part)) != NULL) {
        n++;
        text++;
    }
    return n;
}

/* The same answers, and so many lines "made again", "kept path", "not kept". */
static bool is_as(const worker *w, const worker *want, bool is_shared, unsigned again,
                  unsigned kept, unsigned lost)
{
    float place = w->numbers[0];
    bool good = w->n == want->n && (place == COPIED || place == (is_shared ? SHARED : OWN)) &&
                memcmp(w->numbers + 1, want->numbers + 1, (w->n - 1) * sizeof(float)) == 0 &&
                count(w->text, "made again") == again && count(w->text, "kept path=") == kept &&
                count(w->text, "are not kept") == lost;

    if (!good)
        printf("  %zu numbers, shared %g, log:\n%s", w->n, (double)w->numbers[0], w->text);
    return good;
}

/* ---- files ----------------------------------------------------------------------------------- */

static bool has_end(const char *s, const char *end)
{
    return strlen(s) >= strlen(end) && strcmp(s + strlen(s) - strlen(end), end) == 0;
}

/* Removes what ends so in the cache; returns how many, and the path of one. */
static unsigned in_cache(const char *end, bool is_removed, char found[512])
{
    DIR *d = opendir(CACHE);
    unsigned n = 0;

    for (struct dirent *e; d && (e = readdir(d));) {
        if (!has_end(e->d_name, end))
            continue;
        n++;
        if (found)
            snprintf(found, 512, CACHE "/%s", e->d_name);
        if (is_removed)
            unlinkat(dirfd(d), e->d_name, 0);
    }
    if (d)
        closedir(d);
    return n;
}

static void empty_cache(void)
{
    in_cache(".packed", true, NULL);
    in_cache(".sum", true, NULL);
}

static void copy_model(void)
{
    static const char *const files[] = {"/pseg.json",
                                        "/pseg.safetensors",
                                        "/text/config.json",
                                        "/text/merges.txt",
                                        "/text/model.safetensors",
                                        "/text/tokenizer_config.json",
                                        "/text/vocab.json",
                                        "/vision/config.json",
                                        "/vision/model.safetensors",
                                        "/vision/preprocessor_config.json"};
    pseg_err err = PSEG_ERR_INIT;
    char path[512];
    uint8_t *data;
    size_t n;

    must(pseg_dir_make(MODEL "/text", &err), "folder", &err);
    must(pseg_dir_make(MODEL "/vision", &err), "folder", &err);
    must(pseg_dir_make(CACHE, &err), "folder", &err);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, SOURCE "%s", files[i]);
        must(pseg_file_read(&data, &n, path, 64 << 20, &err), path, &err);
        snprintf(path, sizeof path, MODEL "%s", files[i]);
        must(pseg_file_write(path, data, n, &err), path, &err);
        pseg_free(data);
    }
}

/* Turns a bit of one byte in place; at < 0: from the end. The file's times of access and writing
 * stay as they were, as a careful copy leaves them. */
static void turn(const char *path, off_t at, uint8_t bit)
{
    int fd = open(path, O_RDWR);
    struct stat st;
    uint8_t b;

    gold_must(fd >= 0 && fstat(fd, &st) == 0, path, NULL);
    if (at < 0)
        at += st.st_size;
    struct timespec times[2] = {st.st_atim, st.st_mtim};
    bool good = pread(fd, &b, 1, at) == 1;
    b ^= bit;
    gold_must(good && pwrite(fd, &b, 1, at) == 1 && futimens(fd, times) == 0, path, NULL);
    close(fd);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_precision(const char *precision, worker *plain)
{
    char what[80], file[512] = "";
    static worker w[4];

    empty_cache();
    run(plain, "", precision, "");
    snprintf(what, sizeof what, "%s: first opening", precision);
    run(&w[0], CACHE, precision, "");
    check(is_as(&w[0], plain, true, 0, 1, 0) && in_cache(".packed", false, file) == 1, what);
    snprintf(what, sizeof what, "%s: second opening", precision);
    run(&w[1], CACHE, precision, "");
    check(is_as(&w[1], plain, true, 0, 0, 0), what);
    snprintf(what, sizeof what, "%s: damaged in a piece, in the table, in the header", precision);
    bool good = true;
    static const off_t places[] = {2000000, -100, 50};
    for (size_t i = 0; i < 3; i++) {
        turn(file, places[i], 16);
        run(&w[2], CACHE, precision, "");
        good &= is_as(&w[2], plain, true, 1, 1, 0);
        worker_deinit(&w[2]);
        run(&w[3], CACHE, precision, "");
        good &= is_as(&w[3], plain, true, 0, 0, 0);
        worker_deinit(&w[3]);
    }
    check(good, what);
    snprintf(what, sizeof what, "%s: cut short", precision);
    gold_must(truncate(file, 1000000) == 0, file, NULL);
    run(&w[2], CACHE, precision, "");
    check(is_as(&w[2], plain, true, 1, 1, 0), what);
    for (size_t i = 0; i < 3; i++)
        worker_deinit(&w[i]);
}

static void test_many(const worker *plain)
{
    static worker w[4];
    unsigned kept = 0;
    bool good = true;

    empty_cache();
    for (size_t i = 0; i < 4; i++)
        start(&w[i], CACHE, "fp32", "");
    for (size_t i = 0; i < 4; i++) {
        finish(&w[i]);
        kept += count(w[i].text, "kept path=");
        good &= is_as(&w[i], plain, true, 0, count(w[i].text, "kept path="), 0);
        worker_deinit(&w[i]);
    }
    check(good && kept == 1 && in_cache(".packed", false, NULL) == 1 &&
              in_cache(".lock", false, NULL) == 0 && in_cache(".tmp", false, NULL) == 0,
          "four at once: one makes the file, all use it");
}

static void test_no_room(const worker *plain)
{
    static worker w;

    run(&w, "/proc/none", "fp32", "");
    check(is_as(&w, plain, false, 0, 0, 1), "a folder that cannot be made");
    worker_deinit(&w);
    empty_cache();
    run(&w, CACHE, "fp32", "3000000");
    check(is_as(&w, plain, false, 0, 0, 1) && in_cache(".tmp", false, NULL) == 0 &&
              in_cache(".packed", false, NULL) == 0,
          "a full disk");
    worker_deinit(&w);
}

/* One bit of one weight in place: size, inode and time of writing stay. Then the file replaced. */
static void test_other_weights(const worker *plain)
{
    static worker before, w[2];
    char at[] = MODEL "/vision/model.safetensors", moved[] = MODEL "/vision/aside";
    pseg_err err = PSEG_ERR_INIT;
    uint8_t *data;
    size_t n;

    run(&before, CACHE, "fp32", "");
    turn(at, 2000003, 0x80);
    run(&w[0], "", "fp32", "");
    run(&w[1], CACHE, "fp32", "");
    bool is_other = memcmp(w[0].numbers + 1, plain->numbers + 1, (plain->n - 1) * 4) != 0;
    check(is_other && is_as(&w[1], &w[0], true, 0, 1, 0), "weights changed in place are new");
    worker_deinit(&w[0]);
    worker_deinit(&w[1]);
    must(pseg_file_read(&data, &n, SOURCE "/vision/model.safetensors", 64 << 20, &err), at, &err);
    must(pseg_file_write(moved, data, n, &err), moved, &err);
    pseg_free(data);
    gold_must(rename(moved, at) == 0, at, NULL);
    run(&w[0], CACHE, "fp32", "");
    check(is_as(&w[0], plain, true, 0, 0, 0), "the old ones again find the old file");
    worker_deinit(&w[0]);
    worker_deinit(&before);
}

/* Allocations that fail while the file is made: an error or a model, and no half file. */
static void test_failing_allocations(void)
{
    pseg_model_options o = {.max_images = 1, .max_phrases = 1};
    pseg_model_source src = {.folder = GOLD_DATA "models/pseg_pooled"};
    pseg_cl_options co = PSEG_CL_OPTIONS_DEFAULT;
    unsigned n_failed = 0, n_opened = 0;
    pseg_err err = PSEG_ERR_INIT;
    bool good = true;
    pseg_cl *cl;

    co.device = getenv("PSEG_TEST_DEVICE");
    co.cache_dir = CACHE;
    must(pseg_cl_open(&cl, &co, &err), "device", &err);
    for (uint64_t i = 1; good && n_opened < 3; i += 29) {
        pseg_model *m;

        empty_cache();
        pseg_alloc_fail_nth(i);
        pseg_status rc = pseg_model_open(&m, cl, &src, &o, &err);
        pseg_alloc_fail_nth(0);
        good &= (rc == PSEG_OK || (rc == PSEG_ENOMEM && !m)) && i < 100000 &&
                in_cache(".tmp", false, NULL) == 0;
        n_failed += rc != PSEG_OK;
        n_opened = rc == PSEG_OK ? n_opened + 1 : 0;
        pseg_model_close(m);
    }
    pseg_cl_close(cl);
    check(good && n_failed > 20, "failing allocations");
}

int main(int argc, char **argv)
{
    static worker fp32, bf16, bf16x3;

    if (argc == 4)
        return work(argv + 1);
    copy_model();
    test_precision("fp32", &fp32);
    test_precision("bf16", &bf16);
    test_precision("bf16x3", &bf16x3);
    check(memcmp(fp32.numbers + 1, bf16.numbers + 1, (fp32.n - 1) * 4) != 0 &&
              memcmp(fp32.numbers + 1, bf16x3.numbers + 1, (fp32.n - 1) * 4) != 0,
          "precisions differ");
    test_many(&fp32);
    test_no_room(&fp32);
    test_other_weights(&fp32);
    test_failing_allocations();
    empty_cache();
    worker_deinit(&fp32);
    worker_deinit(&bf16);
    worker_deinit(&bf16x3);
    return all_good ? 0 : 1;
}
