#include "worker/decode/child.h"
#include "common/image/image.h"
#include "worker/decode/jail.h"
#include "worker/decode/warm.h"
#include "worker/decode/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct nursery {
    uint64_t input_bytes, output_bytes, memory_bytes;
    int64_t cpu_s;
    uint8_t *memory;
    pseg_jail *jail;
    void (*before)(const uint8_t *data, size_t len);
} nursery;

static bool parse(nursery *n, int argc, char **argv)
{
    uint64_t v[4];

    if (argc != 5)
        return false;
    for (int i = 0; i < 4; i++) {
        char *end;
        v[i] = strtoull(argv[i + 1], &end, 10);
        if (*end || v[i] == 0)
            return false;
    }
    n->input_bytes = v[0];
    n->output_bytes = v[1];
    n->cpu_s = (int64_t)v[2];
    n->memory_bytes = v[3];
    return true;
}

static void answer(const nursery *n, const decode_request *q, decode_reply *r)
{
    pseg_err e = PSEG_ERR_INIT;
    pseg_image_file file = {n->memory, q->len};

    if (n->before)
        n->before(n->memory, q->len);
    if (pseg_image_prepare(&r->prepared, (float *)(void *)(n->memory + q->output_at), file,
                           &q->limits, &q->how, &e) == PSEG_OK)
        return;
    r->reason = (int32_t)e.reason;
    memcpy(r->msg, e.msg, sizeof r->msg);
    memcpy(r->value, e.value, sizeof r->value);
    memcpy(r->limit, e.limit, sizeof r->limit);
}

/* Whether this process stays for another image of the same owner. Its limit of processor time is
 * for all that it does, so it leaves while there is enough for whatever may come. */
static bool stays(const nursery *n, uint64_t done, uint64_t images)
{
    struct pollfd next = {.fd = DECODE_FD_DATA, .events = POLLIN};
    struct timespec used;

    return done < images && clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used) == 0 &&
           used.tv_sec < n->cpu_s / 4 && poll(&next, 1, DECODE_LINGER_MS) > 0;
}

/* Images of one owner, then the end. The worker writes a request only when this process waits for
 * it, so nothing foreign has been seen before the jail is shut. */
static void live(const nursery *n)
{
    pseg_err e = PSEG_ERR_INIT;
    decode_request q;
    decode_reply r;

    close(DECODE_FD_CONTROL);
    if (pseg_jail_enter(n->jail, n->cpu_s, n->memory_bytes, &e) != PSEG_OK) {
        fprintf(stderr, "error: pseg-decode: %s\n", e.msg);
        _exit(3);
    }
    for (uint64_t done = 0; done == 0 || stays(n, done, q.images); done++) {
        ssize_t got = recv(DECODE_FD_DATA, &q, sizeof q, 0);
        if (got <= 0)
            _exit(0); /* the worker has gone */
        if (got != (ssize_t)sizeof q || q.len > n->input_bytes || q.output_at != n->input_bytes ||
            (uint64_t)q.how.width * q.how.height * 3 * sizeof(float) > n->output_bytes)
            _exit(4);
        if (q.len == 0)
            _exit(DECODE_LEFT);
        memset(&r, 0, sizeof r);
        answer(n, &q, &r);
        if (send(DECODE_FD_DATA, &r, sizeof r, MSG_NOSIGNAL) != (ssize_t)sizeof r)
            _exit(5);
    }
    _exit(0);
}

static bool tell(const decode_event *v)
{
    return send(DECODE_FD_CONTROL, v, sizeof *v, MSG_NOSIGNAL) == (ssize_t)sizeof *v;
}

static int64_t us_of(struct timeval t)
{
    return (int64_t)t.tv_sec * 1000000 + t.tv_usec;
}

/* A process at a time, each seen off before the next. Ends when the worker does not listen. */
static int nurse(const nursery *n)
{
    decode_event ready = {.is_ready = 1};

    for (;;) {
        struct rusage use;
        int status;
        pid_t pid = fork();

        if (pid < 0)
            return 1;
        if (pid == 0)
            live(n);
        if (!tell(&ready))
            kill(pid, SIGKILL);
        while (wait4(pid, &status, 0, &use) < 0)
            if (errno != EINTR)
                return 1;
        decode_event ended = {0, status, us_of(use.ru_utime) + us_of(use.ru_stime),
                              (int64_t)use.ru_maxrss * 1024};
        if (!tell(&ended))
            return 0;
        if (WIFEXITED(status) && WEXITSTATUS(status) == 3)
            return 3; /* the jail cannot be shut: the next one could not either */
    }
}

/* Nothing of the worker's is left here but the three descriptors and standard error. */
static void leave_all_behind(void)
{
    sigset_t none;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    close_range(DECODE_FD_DATA + DECODE_N_FDS, ~0U, 0);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
}

int pseg_decode_main(int argc, char **argv, void (*before)(const uint8_t *data, size_t len))
{
    nursery n = {.before = before};
    pseg_err e = PSEG_ERR_INIT;

    if (!parse(&n, argc, argv) || fcntl(DECODE_FD_MEMORY, F_GETFD) < 0) {
        fprintf(stderr, "error: pseg-decode is started by pseg-worker, not by hand\n");
        return 2;
    }
    leave_all_behind();
    n.memory = mmap(NULL, n.input_bytes + n.output_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                    DECODE_FD_MEMORY, 0);
    if (n.memory == MAP_FAILED || pseg_image_init(&e) != PSEG_OK ||
        pseg_jail_new(&n.jail, &e) != PSEG_OK) {
        fprintf(stderr, "error: pseg-decode: %s\n", e.msg[0] ? e.msg : strerror(errno));
        return 1;
    }
    pseg_decode_warm();
    int status = nurse(&n);
    pseg_jail_free(n.jail);
    return status;
}
