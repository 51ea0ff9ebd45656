/* Runs a fuzz target (LLVMFuzzerTestOneInput) without libFuzzer, so that every compiler's CTest
 * does: each file of the corpus as it is, then seeded mutations of each.
 *
 *     fuzz_x [--mutations N] [--seed S] [--seconds T] [--max-bytes M] [--crash FILE] FILE|FOLDER...
 *
 * A file NAME.base64 holds an input a line (corpus.py).
 *
 * Mutation k of file f depends on the seed, on f's bytes and on its place among the names alone,
 * and the files take turns, so that a time limit cuts the number of mutations of all, not the list
 * of files. On a crash, or where one input takes over 20 s, the input is written to FILE; running
 * the program on FILE with --mutations 0 repeats it. Exit 0: all ran; 2: bad usage, no input.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* A target may have one for what is done once. */
__attribute__((weak)) int LLVMFuzzerInitialize(int *argc, char ***argv);

enum { MAX_FILES = 8192, INPUT_SECONDS = 20 };

typedef struct input {
    char *name;
    uint8_t *data;
    size_t size;
} input;

static struct {
    input files[MAX_FILES];
    size_t n;
    uint64_t mutations, seed, max_bytes;
    double seconds;
    const char *crash;
} all = {.mutations = 400, .seed = 1, .max_bytes = 1 << 20, .seconds = 4, .crash = "fuzz.crash"};

/* What runs now, for the signal handler. */
static const uint8_t *volatile now_data;
static volatile size_t now_size;

static void on_fatal(int sig)
{
    static const char text[] = "\nfuzz: a signal; the input is written down (see --crash)\n";
    int fd = open(all.crash, O_WRONLY | O_CREAT | O_TRUNC, 0644);

    for (size_t done = 0; fd >= 0 && done < now_size;) {
        ssize_t k = write(fd, now_data + done, now_size - done);
        if (k <= 0)
            break;
        done += (size_t)k;
    }
    if (write(2, text, sizeof text - 1) < 0)
        _exit(1);
    signal(sig, SIG_DFL);
    raise(sig);
}

static double seconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* splitmix64: every seed is as good as another. */
static uint64_t next(uint64_t *s)
{
    uint64_t z = *s += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t below(uint64_t *s, size_t n)
{
    return n ? (size_t)(next(s) % n) : 0;
}

static void *must(void *p)
{
    if (p)
        return p;
    fprintf(stderr, "fuzz: no memory\n");
    exit(2);
}

static void add_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    input *in = &all.files[all.n];
    long size;

    if (!f || fseek(f, 0, SEEK_END) || (size = ftell(f)) < 0 || fseek(f, 0, SEEK_SET)) {
        fprintf(stderr, "fuzz: %s: cannot be read\n", path);
        exit(2);
    }
    if (all.n == MAX_FILES) {
        fprintf(stderr, "fuzz: over %d files\n", MAX_FILES);
        exit(2);
    }
    in->name = must(strdup(path));
    in->data = must(malloc((size_t)size + 1));
    in->size = fread(in->data, 1, (size_t)size, f);
    fclose(f);
    all.n++;
}

/* What a character of base64 stands for; -1: it is none. */
static int sextet(char c)
{
    static const char all64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(all64, c) : NULL;

    return at ? (int)(at - all64) : -1;
}

/* Decodes a line in place; SIZE_MAX: it is not base64. */
static size_t decode_line(uint8_t *line, size_t n)
{
    uint32_t bits = 0;
    size_t out = 0, have = 0;

    while (n > 0 && line[n - 1] == '=')
        n--;
    for (size_t i = 0; i < n; i++) {
        int v = sextet((char)line[i]);
        if (v < 0)
            return SIZE_MAX;
        bits = bits << 6 | (uint32_t)v;
        have += 6;
        if (have >= 8) {
            have -= 8;
            line[out++] = (uint8_t)(bits >> have);
        }
    }
    return out;
}

/* The last file is one of lines: an input each takes its place. */
static void split_last(void)
{
    input whole = all.files[--all.n];
    uint8_t *at = whole.data, *end = whole.data + whole.size;

    while (at < end) {
        uint8_t *stop = memchr(at, '\n', (size_t)(end - at));
        input *in = &all.files[all.n];
        stop = stop ? stop : end;
        in->size = decode_line(at, (size_t)(stop - at));
        if (in->size == SIZE_MAX || all.n == MAX_FILES - 1) {
            fprintf(stderr, "fuzz: %s: a line that is not base64, or over %d inputs\n", whole.name,
                    MAX_FILES - 1);
            exit(2);
        }
        in->name = must(strdup(whole.name));
        in->data = must(malloc(in->size + 1));
        memcpy(in->data, at, in->size);
        all.n++;
        at = stop + 1;
    }
    free(whole.name);
    free(whole.data);
}

static int is_entry(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

static void add(const char *path)
{
    struct dirent **entries = NULL;
    struct stat st;
    char name[4096];

    if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode)) {
        const char *dot = strrchr(path, '.');
        add_file(path);
        if (dot && strcmp(dot, ".base64") == 0)
            split_last();
        return;
    }
    int n = scandir(path, &entries, is_entry, alphasort);
    if (n < 0) {
        fprintf(stderr, "fuzz: %s: no such file or folder\n", path);
        exit(2);
    }
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "%s/%s", path, entries[i]->d_name);
        add(name);
        free(entries[i]);
    }
    free(entries);
}

static void put(uint8_t *at, size_t room, uint64_t value, size_t width, bool big)
{
    for (size_t i = 0; i < width && i < room; i++)
        at[i] = (uint8_t)(value >> 8 * (big ? width - 1 - i : i));
}

/* One change to b[size], which has room for `room`; the new size. */
static size_t mutate_once(uint8_t *b, size_t size, size_t room, uint64_t *s)
{
    static const uint64_t odd[] = {0,      1,      0x7f,       0x80,       0xff,       0x100,
                                   0x7fff, 0x8000, 0xffff,     0x10000,    0x7fffffff, 0x80000000,
                                   0xffff, 100000, 0xfffffffe, 0xffffffff, UINT64_MAX, INT64_MAX};
    /* Headers are where formats are decided, so half of the changes fall into the first bytes. */
    size_t head = size < 64 ? size : 64, at = below(s, next(s) & 1 ? head : size);
    size_t left = size - at, n = 1 + below(s, left < 64 ? left : 64);

    switch (next(s) % 8) {
    case 0: /* a bit */
        if (size)
            b[at] ^= (uint8_t)(1u << next(s) % 8);
        return size;
    case 1: /* a byte */
        if (size)
            b[at] = (uint8_t)next(s);
        return size;
    case 2: /* a number at the edge of its range */
        put(b + at, left, odd[next(s) % (sizeof odd / sizeof *odd)], (size_t)1 << next(s) % 4,
            next(s) & 1);
        return size;
    case 3: /* bytes taken out */
        if (n > left)
            return size;
        memmove(b + at, b + at + n, left - n);
        return size - n;
    case 4: /* bytes put in: repeated from elsewhere in the input */
        if (n > left || size + n > room)
            return size;
        memmove(b + at + n, b + at, left);
        return size + n;
    case 5: /* the end cut off */
        return below(s, size + 1);
    case 6: { /* a piece of another file of the corpus */
        const input *o = &all.files[below(s, all.n)];
        size_t from = below(s, o->size), m = 1 + below(s, 256);
        m = m > o->size - from ? o->size - from : m;
        m = m > left ? left : m;
        if (m)
            memcpy(b + at, o->data + from, m);
        return size;
    }
    default: /* a run of one byte */
        if (n <= left)
            memset(b + at, (int)(next(s) & 0xff), n);
        return size;
    }
}

static void run_one(const uint8_t *data, size_t size)
{
    /* Its own block, so that ASan sees a read behind the input. */
    uint8_t *copy = must(malloc(size ? size : 1));

    if (size)
        memcpy(copy, data, size);
    now_data = copy;
    now_size = size;
    alarm(INPUT_SECONDS);
    LLVMFuzzerTestOneInput(copy, size);
    alarm(0);
    now_size = 0;
    free(copy);
}

static void run_mutation(size_t file, uint64_t k)
{
    const input *in = &all.files[file];
    size_t size = in->size < all.max_bytes ? in->size : all.max_bytes, room = size + 1024;
    uint64_t s = all.seed * 1000003u + k * 4099u + file;
    uint8_t *b = must(malloc(room));

    if (size)
        memcpy(b, in->data, size);
    for (size_t changes = 1 + below(&s, 4); changes--;)
        size = mutate_once(b, size, room, &s);
    run_one(b, size);
    free(b);
}

static void usage(void)
{
    fprintf(stderr, "usage: fuzz_x [--mutations N] [--seed S] [--seconds T] [--max-bytes M] "
                    "[--crash FILE] FILE|FOLDER...\n");
    exit(2);
}

static void read_options(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) != 0) {
            add(argv[i]);
            continue;
        }
        if (i + 1 == argc)
            usage();
        const char *name = argv[i++] + 2;
        if (strcmp(name, "mutations") == 0)
            all.mutations = strtoull(argv[i], NULL, 10);
        else if (strcmp(name, "seed") == 0)
            all.seed = strtoull(argv[i], NULL, 10);
        else if (strcmp(name, "max-bytes") == 0)
            all.max_bytes = strtoull(argv[i], NULL, 10);
        else if (strcmp(name, "seconds") == 0)
            all.seconds = strtod(argv[i], NULL);
        else if (strcmp(name, "crash") == 0)
            all.crash = argv[i];
        else
            usage();
    }
}

int main(int argc, char **argv)
{
    static const int fatal[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM};
    uint64_t done = 0, k = 0;

    read_options(argc, argv);
    if (all.n == 0)
        usage();
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++)
        signal(fatal[i], on_fatal);
    if (LLVMFuzzerInitialize)
        LLVMFuzzerInitialize(&argc, &argv);
    /* The whole corpus runs however long it takes: those files are regression tests. */
    for (size_t i = 0; i < all.n; i++)
        run_one(all.files[i].data, all.files[i].size);
    double end = seconds_now() + all.seconds;
    for (k = 0; k < all.mutations && seconds_now() < end; k++)
        for (size_t i = 0; i < all.n && seconds_now() < end; i++, done++)
            run_mutation(i, k);
    printf("%zu files and %llu mutations ran; seed %llu\n", all.n, (unsigned long long)done,
           (unsigned long long)all.seed);
    for (size_t i = 0; i < all.n; i++) {
        free(all.files[i].name);
        free(all.files[i].data);
    }
    return 0;
}
