/* The main function of a program that serves until a signal asks it to stop: options, help, log,
 * signals, exit status. It writes to standard output and standard error, as no other part of this
 * folder does, and knows nothing of what the program serves.
 *
 *     static config c;
 *     static const pseg_daemon daemon = {"scheduler", &about, options, &c, &c.log_level, run};
 *     int main(int argc, char **argv) { return pseg_daemon_main(&daemon, argc, argv); }
 */
#ifndef PSEG_BASE_DAEMON_H
#define PSEG_BASE_DAEMON_H

#include "common/base/conf.h"
#include "common/base/err.h"
#include "common/base/log.h"

#include <signal.h>

typedef struct pseg_daemon {
    const char *name; /* of the log's lines about the program as a whole */
    const pseg_conf_about *about;
    const pseg_conf_option *options;
    void *config;                 /* their target */
    const char *const *log_level; /* where in it the text of --log-level lies */
    /* Serves until one of `signals` (SIGTERM, SIGINT; blocked in every thread) comes, for
     * sigtimedwait. */
    pseg_status (*run)(const void *config, const sigset_t *signals, const pseg_log *log,
                       pseg_err *err);
} pseg_daemon;

/* Blocks the signals, reads the options, logs them once (secrets as "***") and runs. An error is
 * one line on standard error: "error: MESSAGE (REASON)". Returns the exit status; see
 * pseg_reason_exit_status. */
int pseg_daemon_main(const pseg_daemon *d, int argc, char **argv);

#endif
