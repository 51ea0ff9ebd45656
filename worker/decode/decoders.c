#include "worker/decode/decoders.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "worker/decode/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_MS   20000             /* for a decoder to be ready, on a machine with much to do */
#define KEEP_BYTES ((size_t)8 << 20) /* of an image's room that stay resident */
#define LEAVE_MS   2000              /* for a process to end that is asked to */
#define HIGH_FD    64                /* above those that the program is given */

typedef struct slot {
    pid_t pid; /* 0: none */
    int data, control, memory_fd;
    uint8_t *memory;
    bool waits;    /* a process waits for a request */
    bool has_seen; /* an image of `owner` */
    char owner[PSEG_DECODERS_MAX_OWNER + 1];
    size_t used;      /* bytes of the last image */
    bool has_numbers; /* of the last image, in its room */
    bool busy;
    uint64_t turn; /* when it was taken last */
} slot;

struct pseg_decoders {
    pseg_decoders_options opt;
    char *program;
    size_t input_bytes, output_bytes;
    pthread_mutex_t mu;
    pthread_cond_t free_again;
    slot *slots;
    uint64_t turn;
    pseg_decoders_stats stats;
};

/* ---- starting and stopping the program ---- */

static size_t whole_pages(size_t n)
{
    return (n + 4095) & ~(size_t)4095;
}

static pseg_status find_program(char **out, const char *given, pseg_err *err)
{
    static const char *const places[] = {"%spseg-decode", "%s../libexec/pseg/pseg-decode"};
    pseg_status rc = PSEG_OK;
    char self[4096] = "", path[4160];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);

    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    if (slash)
        slash[1] = '\0';
    snprintf(path, sizeof path, "%s", given ? given : "");
    for (size_t i = 0; i < 2 && !given; i++) {
        snprintf(path, sizeof path, i == 0 ? places[0] : places[1], self);
        if (access(path, X_OK) == 0)
            break;
    }
    if (access(path, X_OK))
        PSEG_FAIL(PSEG_R_FILE_NOT_FOUND, errno,
                  "cannot start %s: %s; it belongs beside this program or in ../libexec/pseg", path,
                  strerror(errno));
    *out = pseg_strdup(path);
    if (!*out)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the decoders");
out:
    return rc;
}

static void slot_stop(const pseg_decoders *d, slot *s)
{
    if (s->pid > 0) {
        kill(-s->pid, SIGKILL);
        while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    if (s->memory)
        munmap(s->memory, d->input_bytes + d->output_bytes);
    int *fds[] = {&s->data, &s->control, &s->memory_fd};
    for (size_t i = 0; i < 3; i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
    s->pid = 0;
    s->memory = NULL;
    s->waits = s->has_numbers = s->has_seen = false;
    s->used = 0;
}

/* Its size is sealed, so that a decoder cannot take the memory away under the worker's hands. */
static pseg_status make_memory(const pseg_decoders *d, slot *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = d->input_bytes + d->output_bytes;

    s->memory_fd = memfd_create("pseg-decode", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (s->memory_fd < 0 || ftruncate(s->memory_fd, (off_t)n) ||
        fcntl(s->memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, errno, "no memory for a decoder: %s", strerror(errno));
    void *m = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, s->memory_fd, 0);
    if (m == MAP_FAILED)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, errno, "no memory for a decoder: %s", strerror(errno));
    s->memory = m;
out:
    return rc;
}

/* The program sees no variable of the worker's, which may hold the password of Redis. */
static void few_variables(char **out, size_t most)
{
    static const char *const kept[] = {
        "LD_LIBRARY_PATH=", "ASAN_OPTIONS=", "UBSAN_OPTIONS=", "TSAN_OPTIONS="};
    size_t n = 0;

    for (char **e = environ; *e; e++)
        for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
            if (n + 1 < most && strncmp(*e, kept[i], strlen(kept[i])) == 0)
                out[n++] = *e;
    out[n] = NULL;
}

/* fds: what the program gets as DECODE_FD_DATA and on. */
static int spawn(const pseg_decoders *d, pid_t *pid, const int fds[DECODE_N_FDS])
{
    char n[4][24], name[] = "pseg-decode", *argv[] = {name, n[0], n[1], n[2], n[3], NULL},
                   *variables[8];
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none;

    snprintf(n[0], sizeof n[0], "%zu", d->input_bytes);
    snprintf(n[1], sizeof n[1], "%zu", d->output_bytes);
    snprintf(n[2], sizeof n[2], "%lld", (long long)d->opt.cpu_s);
    snprintf(n[3], sizeof n[3], "%llu", (unsigned long long)d->opt.memory_bytes);
    few_variables(variables, sizeof variables / sizeof *variables);
    posix_spawn_file_actions_init(&files);
    for (int i = 0; i < DECODE_N_FDS; i++)
        posix_spawn_file_actions_adddup2(&files, fds[i], DECODE_FD_DATA + i);
    posix_spawnattr_init(&attributes);
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    int failure = posix_spawn(pid, d->program, &files, &attributes, argv, variables);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    return failure;
}

static pseg_status slot_start(const pseg_decoders *d, slot *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int data[2] = {-1, -1}, control[2] = {-1, -1}, high[DECODE_N_FDS] = {-1, -1, -1};

    PSEG_TRY(make_memory(d, s, err));
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, data) ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, errno, "no socket for a decoder: %s", strerror(errno));
    s->data = data[0];
    s->control = control[0];
    const int low[DECODE_N_FDS] = {data[1], control[1], s->memory_fd};
    for (int i = 0; i < DECODE_N_FDS; i++) {
        high[i] = fcntl(low[i], F_DUPFD_CLOEXEC, HIGH_FD);
        if (high[i] < 0)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, errno, "no file descriptor for a decoder: %s",
                      strerror(errno));
    }
    int failure = spawn(d, &s->pid, high);
    if (failure) {
        s->pid = 0;
        PSEG_FAIL(failure == ENOENT ? PSEG_R_FILE_NOT_FOUND : PSEG_R_OUT_OF_MEMORY, failure,
                  "cannot start %s: %s", d->program, strerror(failure));
    }
out:
    for (int i = 0; i < DECODE_N_FDS; i++)
        if (high[i] >= 0)
            close(high[i]);
    if (data[1] >= 0)
        close(data[1]);
    if (control[1] >= 0)
        close(control[1]);
    if (rc != PSEG_OK)
        slot_stop(d, s);
    return rc;
}

/* ---- talking to it ---- */

/* What the program itself tells of its processes. False: it is gone, or silent until then. */
static bool next_event(const slot *s, decode_event *out, int64_t until_ms)
{
    struct pollfd p = {.fd = s->control, .events = POLLIN};

    for (;;) {
        int64_t left = until_ms - pseg_clock_mono_ms();
        int n = poll(&p, 1, left > 0 ? (int)left : 0);
        if (n < 0 && errno == EINTR)
            continue;
        return n > 0 && recv(s->control, out, sizeof *out, MSG_DONTWAIT) == (ssize_t)sizeof *out;
    }
}

static void take_event(slot *s, const decode_event *v)
{
    s->waits = v->is_ready != 0;
    if (!v->is_ready)
        s->has_seen = false;
}

/* The process that has seen an image ends before another owner's is in its reach. */
static void send_away(const pseg_decoders *d, slot *s)
{
    const decode_request leave = {.output_at = d->input_bytes};
    int64_t until = pseg_clock_mono_ms() + LEAVE_MS;
    decode_event v = {.is_ready = 1};
    bool ok = send(s->data, &leave, sizeof leave, MSG_NOSIGNAL) == (ssize_t)sizeof leave;

    /* One that has left by itself meanwhile leaves the word to its successor. */
    while (ok &&
           (v.is_ready || !WIFEXITED(v.wait_status) || WEXITSTATUS(v.wait_status) != DECODE_LEFT)) {
        ok = next_event(s, &v, until);
        if (ok)
            take_event(s, &v);
    }
    if (!ok)
        slot_stop(d, s);
}

/* Nothing stays of what the last process was shown, and nothing of what it wrote: it is gone, but
 * may have left more answers than it was asked for. */
static void clear(const pseg_decoders *d, slot *s)
{
    decode_reply left;

    while (recv(s->data, &left, sizeof left, MSG_DONTWAIT) > 0)
        ;
    if (s->used > KEEP_BYTES && fallocate(s->memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                          0, (off_t)d->input_bytes) == 0)
        s->used = 0;
    memset(s->memory, 0, s->used);
    if (s->has_numbers)
        memset(s->memory + d->input_bytes, 0, d->output_bytes);
    s->used = 0;
    s->has_numbers = false;
}

/* Until a process waits; fresh: one that has seen nothing. */
static pseg_status settle(const pseg_decoders *d, slot *s, bool fresh, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t until = pseg_clock_mono_ms() + START_MS;
    decode_event v;

    while (s->pid && next_event(s, &v, 0))
        take_event(s, &v);
    if (s->has_seen && fresh)
        send_away(d, s);
    if (!s->pid)
        PSEG_TRY(slot_start(d, s, err));
    while (!s->waits) {
        if (!next_event(s, &v, until)) {
            slot_stop(d, s);
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no decoder is ready: %s ended, or said nothing",
                      d->program);
        }
        take_event(s, &v);
    }
    if (!s->has_seen)
        clear(d, s);
out:
    return rc;
}

typedef enum outcome { ANSWERED, DIED, TOO_LATE, LOST } outcome;

/* A process that has seen images before may leave by itself just when one comes: its successor then
 * answers. */
static outcome await(slot *s, decode_reply *r, decode_event *v, int64_t until_ms)
{
    struct pollfd p[2] = {{.fd = s->data, .events = POLLIN}, {.fd = s->control, .events = POLLIN}};

    for (;;) {
        int64_t left = until_ms - pseg_clock_mono_ms();
        if (left <= 0)
            return TOO_LATE;
        int n = poll(p, 2, left < 1000 ? (int)left : 1000);
        if (n <= 0)
            continue;
        /* An answer comes before the news that its process has ended. */
        if (recv(s->data, r, sizeof *r, MSG_DONTWAIT) == (ssize_t)sizeof *r)
            return ANSWERED;
        if (p[1].revents == 0)
            continue;
        if (recv(s->control, v, sizeof *v, MSG_DONTWAIT) != (ssize_t)sizeof *v)
            return LOST;
        if (v->is_ready)
            continue;
        if (recv(s->data, r, sizeof *r, MSG_DONTWAIT) == (ssize_t)sizeof *r)
            return ANSWERED;
        bool has_left =
            s->has_seen && WIFEXITED(v->wait_status) && WEXITSTATUS(v->wait_status) == 0;
        s->has_seen = false;
        if (!has_left)
            return DIED;
    }
}

/* ---- judging what came ---- */

static bool is_plausible(const pseg_decoders *d, const pseg_image_prepared *p)
{
    const pseg_image_limits *l = &d->opt.limits;
    float most = 4.0f * (float)l->max_side;
    bool ok = p->width && p->height && p->width <= l->max_side && p->height <= l->max_side &&
              (uint64_t)p->width * p->height <= l->max_pixels &&
              (p->shrink == 1 || p->shrink == 2 || p->shrink == 4 || p->shrink == 8) &&
              p->decode_us >= 0 && p->resize_us >= 0;

    for (int i = 0; i < 4; i++)
        ok = ok && fabsf(p->rect[i]) <= most; /* false for NaN */
    return ok;
}

static bool are_numbers(const float *x, size_t n)
{
    int odd = 0;

    for (size_t i = 0; i < n; i++)
        odd |= !(fabsf(x[i]) < 1e6f);
    return !odd;
}

static pseg_status take_answer(pseg_decoders *d, const slot *s, decode_reply *r,
                               pseg_image_prepared *out, float *chw, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_preprocess *how = &d->opt.how;
    size_t n = 3 * (size_t)how->width * how->height;

    r->msg[sizeof r->msg - 1] = r->value[sizeof r->value - 1] = r->limit[sizeof r->limit - 1] =
        '\0';
    if (r->reason == PSEG_R_OUT_OF_MEMORY)
        PSEG_FAIL(PSEG_R_IMAGE_DECODER_MEMORY, 0,
                  "decoding the image takes more memory than the limit of %llu MiB; shrink it or "
                  "save it anew",
                  (unsigned long long)(d->opt.memory_bytes >> 20));
    if (r->reason != PSEG_R_NONE) {
        rc = pseg_err_set(err, (pseg_reason)r->reason, 0, PSEG_HERE, "%s", r->msg);
        pseg_err_value(err, "%s", r->value);
        pseg_err_limit(err, "%s", r->limit);
        goto out;
    }
    memcpy(chw, s->memory + d->input_bytes, n * sizeof *chw);
    if (!is_plausible(d, &r->prepared) || !are_numbers(chw, n))
        PSEG_FAIL(PSEG_R_IMAGE_DECODER_CRASHED, 0,
                  "the decoder answered nonsense for the image; save it anew");
    *out = r->prepared;
out:
    return rc;
}

static pseg_status too_slow(const pseg_decoders *d, pseg_err *err)
{
    return pseg_err_set(err, PSEG_R_IMAGE_DECODER_TIMEOUT, 0, PSEG_HERE,
                        "decoding the image took longer than the limit of %lld s; save it anew",
                        (long long)d->opt.cpu_s);
}

/* PSEG_OK: nobody's fault that is seen here; try again. */
static pseg_status judge(const pseg_decoders *d, const decode_event *v, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int sig = WIFSIGNALED(v->wait_status) ? WTERMSIG(v->wait_status) : 0;

    if (sig == SIGXCPU || (sig == SIGKILL && v->cpu_us >= d->opt.cpu_s * 1000000))
        PSEG_TRY(too_slow(d, err));
    if (sig == SIGKILL || sig == SIGTERM)
        goto out;
    if (!sig && WEXITSTATUS(v->wait_status) == DECODE_LEFT)
        goto out; /* at a word that was for the one before, which may have left with its status */
    if (sig && (uint64_t)v->resident_bytes > d->opt.memory_bytes / 2)
        PSEG_FAIL(PSEG_R_IMAGE_DECODER_MEMORY, sig,
                  "decoding the image took %lld MiB and ended at the limit of %llu; shrink it or "
                  "save it anew",
                  (long long)(v->resident_bytes >> 20),
                  (unsigned long long)(d->opt.memory_bytes >> 20));
    if (sig == SIGSYS)
        PSEG_FAIL(PSEG_R_IMAGE_DECODER_CRASHED, sig,
                  "the decoder was stopped at a system call that no image needs; the image may be "
                  "an attack");
    PSEG_FAIL(PSEG_R_IMAGE_DECODER_CRASHED, sig,
              "the image crashed its decoder (%s %d); save it anew", sig ? "signal" : "exit status",
              sig ? sig : WEXITSTATUS(v->wait_status));
out:
    return rc;
}

/* ---- a pool of them ---- */

/* Whom a free slot suits: 2: its process has images of the same owner behind it; 1: of none. */
static int suits(const slot *s, const char *owner)
{
    if (!s->has_seen)
        return 1;
    return owner && strcmp(owner, s->owner) == 0 ? 2 : 0;
}

static slot *take_slot(pseg_decoders *d, const char *owner)
{
    slot *found = NULL;

    pthread_mutex_lock(&d->mu);
    while (!found) {
        int best = 0;
        /* Of those that suit as well, the one that has been idle for longest: its next process is
         * ready by now. */
        for (size_t i = 0; i < d->opt.n; i++) {
            slot *s = &d->slots[i];
            if (s->busy)
                continue;
            int how = suits(s, owner);
            if (!found || how > best || (how == best && s->turn < found->turn)) {
                found = s;
                best = how;
            }
        }
        if (!found)
            pthread_cond_wait(&d->free_again, &d->mu);
    }
    found->busy = true;
    found->turn = ++d->turn;
    pthread_mutex_unlock(&d->mu);
    return found;
}

static void give_slot(pseg_decoders *d, slot *s)
{
    pthread_mutex_lock(&d->mu);
    s->busy = false;
    pthread_cond_signal(&d->free_again);
    pthread_mutex_unlock(&d->mu);
}

static void count(pseg_decoders *d, uint64_t *what)
{
    pthread_mutex_lock(&d->mu);
    ++*what;
    pthread_mutex_unlock(&d->mu);
}

/* The process has answered and may stay for its owner's next image; owner: NULL: it ends. If one is
 * seen to have ended, it may have been the one before that which answered: its end is told before
 * its successor begins, so that without such news it was no other. Either way the one that lives
 * now is taken for one that has seen the image. */
static void stay_with(slot *s, const char *owner)
{
    decode_event v;

    s->has_seen = owner != NULL;
    if (!owner)
        return;
    s->waits = true;
    while (next_event(s, &v, 0))
        s->waits = v.is_ready != 0;
    snprintf(s->owner, sizeof s->owner, "%s", owner);
}

/* fresh: by a process that has seen nothing; else the one that waits has seen images of this owner
 * alone. *again: the decoder was taken away, and the image is not to blame as far as is known. */
static pseg_status prepare_once(pseg_decoders *d, slot *s, pseg_image_prepared *out, float *chw,
                                const char *owner, bool fresh, pseg_image_file file, bool *again,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    decode_request q;
    decode_reply r;
    decode_event v = {0};
    bool is_shared = false;

    *again = false;
    PSEG_TRY(settle(d, s, fresh, err));
    memset(&q, 0, sizeof q);
    q.len = file.len;
    q.output_at = d->input_bytes;
    q.images = owner ? d->opt.images : 1;
    q.limits = d->opt.limits;
    q.how = d->opt.how;
    memcpy(s->memory, file.data, file.len);
    s->used = file.len > s->used ? file.len : s->used;
    s->has_numbers = true;
    s->waits = false;
    bool was_shared = s->has_seen;
    outcome o = send(s->data, &q, sizeof q, MSG_NOSIGNAL) == (ssize_t)sizeof q
                    ? await(s, &r, &v, pseg_clock_mono_ms() + d->opt.wall_ms)
                    : LOST;
    switch (o) {
    case ANSWERED:
        is_shared = was_shared && s->has_seen;
        stay_with(s, q.images > 1 ? owner : NULL);
        PSEG_TRY(take_answer(d, s, &r, out, chw, err));
        if (is_shared)
            count(d, &d->stats.shared);
        break;
    case TOO_LATE:
        slot_stop(d, s);
        PSEG_TRY(too_slow(d, err));
        break;
    case DIED:
        PSEG_TRY(judge(d, &v, err));
        *again = true;
        break;
    case LOST:
        slot_stop(d, s);
        *again = true;
        break;
    }
out:
    return rc;
}

/* By a process that has decoded images of the same owner, if there is one. False: there is none, or
 * it came to nothing, and what that says of the image is for a fresh one to tell. */
static bool prepare_shared(pseg_decoders *d, slot *s, pseg_image_prepared *out, float *chw,
                           const char *owner, pseg_image_file file)
{
    bool again = false;

    if (!owner || suits(s, owner) != 2)
        return false;
    return prepare_once(d, s, out, chw, owner, false, file, &again, NULL) == PSEG_OK && !again;
}

pseg_status pseg_decoders_prepare(pseg_decoders *d, pseg_image_prepared *out, float *chw,
                                  const char *owner, pseg_image_file file, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    slot *s = NULL;
    bool again = true;

    if (owner && strlen(owner) > PSEG_DECODERS_MAX_OWNER)
        owner = NULL;
    if (file.len > d->opt.limits.max_bytes || file.len == 0) {
        /* Refused before a decoder is bothered, with the words of the image module. */
        pseg_image_info info;
        PSEG_TRY(pseg_image_probe(&info, file.data, file.len, &d->opt.limits, err));
    }
    s = take_slot(d, owner);
    count(d, &d->stats.images);
    if (prepare_shared(d, s, out, chw, owner, file))
        goto out;
    for (int i = 0; i < 2 && again; i++) {
        if (i)
            count(d, &d->stats.restarts);
        PSEG_TRY(prepare_once(d, s, out, chw, owner, true, file, &again, err));
    }
    if (again)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0,
                  "the decoder was killed from outside twice; is the machine short of memory?");
out:
    if (rc != PSEG_OK && err && err->reason == PSEG_R_IMAGE_DECODER_TIMEOUT)
        count(d, &d->stats.timed_out);
    if (rc != PSEG_OK && err && err->reason == PSEG_R_IMAGE_DECODER_CRASHED) {
        count(d, &d->stats.crashed);
        PSEG_WARN(d->opt.log, "decode", "%s", err->msg);
    }
    if (s)
        give_slot(d, s);
    return rc;
}

void pseg_decoders_get_stats(pseg_decoders *d, pseg_decoders_stats *out)
{
    pthread_mutex_lock(&d->mu);
    *out = d->stats;
    pthread_mutex_unlock(&d->mu);
}

pseg_status pseg_decoders_open(pseg_decoders **out, const pseg_decoders_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_decoders *d = pseg_calloc(1, sizeof *d);

    *out = NULL;
    if (!d)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the decoders");
    d->opt = *o;
    pthread_mutex_init(&d->mu, NULL);
    pthread_cond_init(&d->free_again, NULL);
    PSEG_REQUIRE(o->n >= 1 && o->n <= 256, "1 to 256 decoders");
    PSEG_REQUIRE(o->images >= 1, "an image or more for a process");
    PSEG_REQUIRE(o->cpu_s >= 1 && o->wall_ms >= 1 && o->memory_bytes >= 1 << 20, "limits");
    d->input_bytes = whole_pages(o->limits.max_bytes);
    d->output_bytes = whole_pages(3 * sizeof(float) * o->how.width * o->how.height);
    PSEG_REQUIRE(d->input_bytes && d->output_bytes, "sizes");
    PSEG_TRY(find_program(&d->program, o->program, err));
    d->slots = pseg_calloc(o->n, sizeof *d->slots);
    if (!d->slots)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the decoders");
    for (size_t i = 0; i < o->n; i++)
        d->slots[i].data = d->slots[i].control = d->slots[i].memory_fd = -1;
    for (size_t i = 0; i < o->n; i++)
        PSEG_TRY(slot_start(d, &d->slots[i], err));
    for (size_t i = 0; i < o->n; i++)
        PSEG_TRY(settle(d, &d->slots[i], true, err));
    *out = d;
    d = NULL;
out:
    pseg_decoders_close(d);
    return rc;
}

void pseg_decoders_close(pseg_decoders *d)
{
    if (!d)
        return;
    for (size_t i = 0; d->slots && i < d->opt.n; i++)
        slot_stop(d, &d->slots[i]);
    pthread_cond_destroy(&d->free_again);
    pthread_mutex_destroy(&d->mu);
    pseg_free(d->slots);
    pseg_free(d->program);
    pseg_free(d);
}
