#include "tests/support/redis.h"
#include "common/base/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { START_MS = 20000, ASK_MS = 10000 };

static void die(const char *what)
{
    fprintf(stderr, "redis of the test: %s: %s\n", what, strerror(errno));
    exit(1);
}

static bool is_installed(void)
{
    const char *path = getenv("PATH");
    char file[512];

    for (const char *p = path ? path : ""; *p;) {
        size_t n = strcspn(p, ":");
        snprintf(file, sizeof file, "%.*s/redis-server", (int)n, p);
        if (access(file, X_OK) == 0)
            return true;
        p += n + (p[n] == ':');
    }
    return false;
}

/* Below 45536, so that the bus of a cluster has its port 10000 above. */
static int free_port(void)
{
    for (int tries = 0; tries < 200; tries++) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t n = sizeof a;
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        bool good = fd >= 0 && bind(fd, (struct sockaddr *)&a, n) == 0 &&
                    getsockname(fd, (struct sockaddr *)&a, &n) == 0;
        if (fd >= 0)
            close(fd);
        if (good && ntohs(a.sin_port) < 45536)
            return ntohs(a.sin_port);
    }
    die("no free port");
    return 0;
}

/* Once: a Sentinel keeps what it learns in it. */
static void write_config(const test_redis *r)
{
    char path[96];

    if (!r->config)
        return;
    snprintf(path, sizeof path, "%s/redis.conf", r->dir);
    FILE *f = fopen(path, "w");
    if (!f || fputs(r->config, f) < 0 || fclose(f))
        die(path);
}

static void exec_server(const test_redis *r)
{
    char port[16], socket_path[96], log[96], config[96];
    const char *const fixed[] = {"--port",    port,    "--bind",      "127.0.0.1", "--unixsocket",
                                 socket_path, "--dir", r->dir,        "--save",    "",
                                 "--logfile", log,     "--daemonize", "no"};
    const char *argv[64] = {"redis-server"};
    int n = 1;

    snprintf(config, sizeof config, "%s/redis.conf", r->dir);
    if (r->config)
        argv[n++] = config;
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        argv[n++] = fixed[i];
    snprintf(port, sizeof port, "%d", r->port);
    snprintf(socket_path, sizeof socket_path, "%s/redis.sock", r->dir);
    snprintf(log, sizeof log, "%s/log", r->dir);
    for (const char *const *a = r->args; a && *a && n < 62; a++)
        argv[n++] = *a;
    argv[n] = NULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == 1)
        _exit(1);
    execvp(argv[0], (char *const *)(uintptr_t)argv);
    _exit(127);
}

static void pause_ms(int ms)
{
    poll(NULL, 0, ms);
}

bool test_redis_start(test_redis *r)
{
    char answer[64];

    if (!is_installed())
        return false;
    if (!*r->dir) {
        snprintf(r->dir, sizeof r->dir, "/tmp/pseg-test-redis-XXXXXX");
        if (!mkdtemp(r->dir))
            die("mkdtemp");
        r->port = free_port();
        write_config(r);
    }
    snprintf(r->socket_url, sizeof r->socket_url, "unix:%s/redis.sock", r->dir);
    snprintf(r->tcp_url, sizeof r->tcp_url, "redis://127.0.0.1:%d", r->port);
    r->pid = fork();
    if (r->pid < 0)
        die("fork");
    if (r->pid == 0)
        exec_server(r);
    for (int64_t until = pseg_clock_mono_ms() + START_MS; pseg_clock_mono_ms() < until;) {
        int status;
        if (waitpid(r->pid, &status, WNOHANG) == r->pid) {
            r->pid = 0;
            fprintf(stderr, "redis-server ended at its start; see %s/log\n", r->dir);
            exit(1);
        }
        if (test_redis_ask(r, answer, sizeof answer, "PING") && strncmp(answer, "+PONG", 5) == 0)
            return true;
        pause_ms(5);
    }
    die("does not answer");
    return false;
}

void test_redis_kill(test_redis *r)
{
    if (r->pid > 0) {
        kill(r->pid, SIGKILL);
        waitpid(r->pid, NULL, 0);
    }
    r->pid = 0;
}

void test_redis_freeze(test_redis *r)
{
    kill(r->pid, SIGSTOP);
}

void test_redis_thaw(test_redis *r)
{
    kill(r->pid, SIGCONT);
}

void test_redis_stop(test_redis *r)
{
    test_redis_kill(r);
    if (!*r->dir)
        return;
    pid_t pid = fork();
    if (pid == 0) {
        execlp("rm", "rm", "-rf", r->dir, (char *)NULL);
        _exit(127);
    }
    if (pid > 0)
        waitpid(pid, NULL, 0);
    r->dir[0] = '\0';
}

/* ---- asking ---- */

/* Where the answer that begins at s ends, or NULL if it is not whole. */
static const char *end_of(const char *s, const char *end)
{
    const char *line = memchr(s, '\n', (size_t)(end - s));

    if (!line)
        return NULL;
    long n = strtol(s + 1, NULL, 10);
    line++;
    if (*s == '$')
        return n < 0 ? line : end - line >= n + 2 ? line + n + 2 : NULL;
    for (long i = 0; *s == '*' && i < n && line; i++)
        line = end_of(line, end);
    return line;
}

bool test_redis_ask_words(const test_redis *r, char *out, size_t out_size, int n_words,
                          const char *const *words)
{
    static char buf[1 << 20];
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int64_t until = pseg_clock_mono_ms() + ASK_MS;
    size_t used = (size_t)snprintf(buf, sizeof buf, "*%d\r\n", n_words);
    bool good = false;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    for (int i = 0; i < n_words; i++)
        used += (size_t)snprintf(buf + used, sizeof buf - used, "$%zu\r\n%s\r\n", strlen(words[i]),
                                 words[i]);
    snprintf(a.sun_path, sizeof a.sun_path, "%s/redis.sock", r->dir);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) ||
        send(fd, buf, used, MSG_NOSIGNAL) != (ssize_t)used)
        goto out;
    used = 0;
    while (!good && used < sizeof buf - 1) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int64_t left = until - pseg_clock_mono_ms();
        if (left <= 0 || poll(&p, 1, (int)left) <= 0)
            break;
        ssize_t n = read(fd, buf + used, sizeof buf - 1 - used);
        if (n <= 0)
            break;
        used += (size_t)n;
        buf[used] = '\0';
        good = end_of(buf, buf + used) != NULL;
    }
    if (good)
        snprintf(out, out_size, "%s", buf);
out:
    if (fd >= 0)
        close(fd);
    return good;
}

static bool ask_text(const test_redis *r, char *out, size_t out_size, char *text)
{
    const char *words[64];
    int n = 0;

    for (char *save, *w = strtok_r(text, " ", &save); w && n < 64; w = strtok_r(NULL, " ", &save))
        words[n++] = w;
    return test_redis_ask_words(r, out, out_size, n, words);
}

bool test_redis_ask(const test_redis *r, char *out, size_t out_size, const char *fmt, ...)
{
    char text[1024];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return ask_text(r, out, out_size, text);
}

long long test_redis_number(const test_redis *r, const char *fmt, ...)
{
    char text[1024], answer[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (!ask_text(r, answer, sizeof answer, text))
        return -1;
    if (*answer == ':')
        return strtoll(answer + 1, NULL, 10);
    const char *line = strchr(answer, '\n');
    return *answer == '$' && line ? strtoll(line + 1, NULL, 10) : -1;
}
