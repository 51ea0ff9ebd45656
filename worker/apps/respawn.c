#include "worker/apps/respawn.h"
#include "common/base/clock.h"

#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FIRST_PAUSE_MS = 100, LAST_PAUSE_MS = 10000, LONG_LIFE_MS = 60000 };

/* Waits for the child's end, or (child = 0) for `ms`, and passes signals on. True: asked to stop.
 */
static bool wait_child(pid_t child, int64_t ms, const sigset_t *signals, int *status)
{
    const struct timespec tick = {0, 50000000};
    int64_t until = pseg_clock_mono_ms() + ms;
    bool stops = false;

    for (;;) {
        if (child && waitpid(child, status, WNOHANG) == child)
            return stops;
        if (!child && (stops || pseg_clock_mono_ms() >= until))
            return stops;
        int sig = sigtimedwait(signals, NULL, &tick);
        if (sig == SIGTERM || sig == SIGINT) {
            stops = true;
            if (child)
                kill(child, SIGTERM);
        }
    }
}

static bool is_worth_another(int status)
{
    return WIFSIGNALED(status) ||
           (WIFEXITED(status) &&
            WEXITSTATUS(status) == pseg_reason_exit_status(PSEG_R_DEVICE_FAILED));
}

pseg_status pseg_respawn(int *out, const sigset_t *signals, const pseg_log *log, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int64_t pause_ms = FIRST_PAUSE_MS;
    pid_t parent = getpid();

    for (;;) {
        int64_t begin = pseg_clock_mono_ms();
        int status = 0;
        pid_t child = fork();
        if (child < 0)
            PSEG_FAIL(PSEG_R_INTERNAL, errno, "cannot start a worker process: %s", strerror(errno));
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGTERM);
            *out = getppid() == parent ? -1 : 0;
            goto out;
        }
        bool stops = wait_child(child, 0, signals, &status);
        *out = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (stops || !is_worth_another(status))
            goto out;
        if (pseg_clock_mono_ms() - begin > LONG_LIFE_MS)
            pause_ms = FIRST_PAUSE_MS;
        PSEG_WARN(log, "worker", "process %ld ended with %s %d, a new one starts in %lld ms",
                  (long)child, WIFSIGNALED(status) ? "signal" : "status",
                  WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
                  (long long)pause_ms);
        if (wait_child(0, pause_ms, signals, &status)) {
            *out = 0;
            goto out;
        }
        pause_ms = 2 * pause_ms < LAST_PAUSE_MS ? 2 * pause_ms : LAST_PAUSE_MS;
    }
out:
    return rc;
}
