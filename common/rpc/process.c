/* The core's life in this process, and its log. */
#include "common/base/clock.h"
#include "common/rpc/internal.h"

#include <grpc/support/log.h>

#include <string.h>
#include <sys/resource.h>

#define LINES_PER_WINDOW 20
#define WINDOW_US        ((int64_t)10 * 1000000)

/* The core's log function has no user data, so this is the one global of the module. */
static struct {
    pthread_mutex_t mu;
    const pseg_log *log;
    void (*on_listener_lost)(void *ud);
    void *ud;
    int64_t window_us;
    int n_lines, n_dropped;
} core = {.mu = PTHREAD_MUTEX_INITIALIZER};

/* Hostile clients make the core write a line per frame, so lines are counted. */
static bool may_log(int *dropped_before)
{
    int64_t now = pseg_clock_mono_us();

    *dropped_before = 0;
    if (now - core.window_us >= WINDOW_US) {
        *dropped_before = core.n_dropped;
        core.window_us = now;
        core.n_lines = core.n_dropped = 0;
    }
    if (core.n_lines < LINES_PER_WINDOW) {
        core.n_lines++;
        return true;
    }
    core.n_dropped++;
    return false;
}

static void on_core_log(gpr_log_func_args *a)
{
    /* After one failed accept the listener never accepts again (CVE-2023-4785, unfixed here). */
    bool lost = strstr(a->message, "Failed accept4") != NULL;
    const char *file = strrchr(a->file, '/');
    int dropped;

    pthread_mutex_lock(&core.mu);
    bool may = may_log(&dropped);
    const pseg_log *log = core.log;
    void (*on_lost)(void *) = core.on_listener_lost;
    void *ud = core.ud;
    pthread_mutex_unlock(&core.mu);

    if (dropped)
        PSEG_WARN(log, "grpc", "%d lines of the core were left out", dropped);
    if (lost)
        PSEG_ERROR(log, "grpc", "the listener is lost and accepts no more connections: %s",
                   a->message);
    else if (may && a->severity == GPR_LOG_SEVERITY_ERROR)
        PSEG_WARN(log, "grpc", "%s at=%s:%d", a->message, file ? file + 1 : a->file, a->line);
    else if (may)
        PSEG_DBG(log, "grpc", "%s at=%s:%d", a->message, file ? file + 1 : a->file, a->line);
    if (lost && on_lost)
        on_lost(ud);
}

void pseg_rpc_init(const pseg_log *log, void (*on_listener_lost)(void *ud), void *ud)
{
    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    pthread_mutex_lock(&core.mu);
    core.log = log;
    core.on_listener_lost = on_listener_lost;
    core.ud = ud;
    core.window_us = pseg_clock_mono_us();
    core.n_lines = core.n_dropped = 0;
    pthread_mutex_unlock(&core.mu);
    gpr_set_log_function(on_core_log);
    grpc_init();
    /* GRPC_VERBOSITY=NONE must not hide that the listener is lost. */
    if (!gpr_should_log(GPR_LOG_SEVERITY_ERROR))
        gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
}

void pseg_rpc_shutdown(void)
{
    grpc_shutdown_blocking();
    pthread_mutex_lock(&core.mu);
    core.log = NULL;
    core.on_listener_lost = NULL;
    pthread_mutex_unlock(&core.mu);
}
