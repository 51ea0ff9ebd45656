#include "worker/apps/compiler.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* If memory is short while both compile, this process is the one to go. */
static void offer_to_the_oom_killer(void)
{
    int f = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (f < 0)
        return;
    if (write(f, "1000", 4) != 4) {
        /* It is as likely to go as the worker, then. */
    }
    close(f);
}

static _Noreturn void second_process(int go, pid_t parent,
                                     pseg_status (*work)(void *, const char *, pseg_err *),
                                     void *ud, const pseg_log *log)
{
    char device[PSEG_DEVICE_ID + 1] = "";
    pseg_err err = PSEG_ERR_INIT;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(0);
    if (read(go, device, sizeof device - 1) <= 0)
        _exit(0); /* nothing is to be compiled */
    offer_to_the_oom_killer();
    if (work(ud, device, &err) != PSEG_OK) {
        PSEG_WARN(log, "worker", "compiling in a second process failed: %s", err.msg);
        _exit(1);
    }
    _exit(0);
}

void compiler_begin(compiler *c, pseg_status (*work)(void *, const char *, pseg_err *), void *ud,
                    const pseg_log *log)
{
    pid_t parent = getpid();
    int ends[2];

    c->log = log;
    if (pipe2(ends, O_CLOEXEC) != 0) {
        PSEG_WARN(log, "worker", "no second process will compile: no pipe: %s", strerror(errno));
        return;
    }
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[1]);
        second_process(ends[0], parent, work, ud, log);
    }
    close(ends[0]);
    if (pid < 0) {
        PSEG_WARN(log, "worker", "no second process will compile: %s", strerror(errno));
        close(ends[1]);
        return;
    }
    c->pid = pid;
    c->go = ends[1];
}

void compiler_go(void *ud, const char *device)
{
    compiler *c = ud;
    size_t n = strlen(device);

    if (!c->pid || atomic_exchange(&c->is_used, true))
        return;
    if (write(c->go, device, n) == (ssize_t)n)
        PSEG_INFO(c->log, "worker", "kernels are compiled in a second process, too pid=%ld",
                  (long)c->pid);
}

static void tell_end(const compiler *c, bool is_over, int status)
{
    if (is_over && WIFSIGNALED(status))
        PSEG_WARN(c->log, "worker",
                  "the second process that compiled was ended by signal %d; the start took longer",
                  WTERMSIG(status));
    else
        PSEG_INFO(c->log, "worker", "the second process that compiled %s",
                  !is_over                   ? "is stopped"
                  : WEXITSTATUS(status) != 0 ? "failed"
                                             : "is done");
}

void compiler_end(compiler *c)
{
    int status = 0;

    if (!c->pid)
        return;
    close(c->go);
    /* Before it is stopped: whether it ended by itself is told. */
    bool is_over = waitpid(c->pid, &status, WNOHANG) == c->pid;
    if (!is_over) {
        kill(c->pid, SIGKILL);
        waitpid(c->pid, &status, 0);
    }
    if (atomic_load(&c->is_used))
        tell_end(c, is_over, status);
    c->pid = 0;
}
