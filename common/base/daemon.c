#include "common/base/daemon.h"

#include "common/base/alloc.h"
#include "common/base/file.h"

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static pseg_status start(const pseg_daemon *d, const pseg_conf *conf, const sigset_t *signals,
                         pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_log log = {PSEG_LOG_INFO, STDERR_FILENO};

    if (pseg_conf_n_args(conf) > 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "unexpected argument \"%s\"", pseg_conf_arg(conf, 0));
    if (!pseg_log_level_parse(&log.level, *d->log_level))
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "--log-level \"%s\" is not error, warn, info or debug",
                  *d->log_level);
    char *text = pseg_conf_describe(conf);
    PSEG_INFO(&log, d->name, "config %s", text ? text : "");
    pseg_free(text);
    PSEG_TRY(d->run(d->config, signals, &log, err));
out:
    return rc;
}

int pseg_daemon_main(const pseg_daemon *d, int argc, char **argv)
{
    pseg_status rc = PSEG_OK;
    pseg_err e = PSEG_ERR_INIT, *err = &e;
    pseg_conf *conf = NULL;
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);

    PSEG_TRY(pseg_conf_parse(&conf, d->config, d->options, argc, argv, err));
    if (pseg_conf_answer(conf, stdout, d->about))
        PSEG_TRY(pseg_file_flush(stdout, "standard output", err));
    else
        PSEG_TRY(start(d, conf, &signals, err));
out:
    if (rc != PSEG_OK)
        fprintf(stderr, "error: %s (%s)\n", e.msg, pseg_reason_name(e.reason));
    pseg_conf_free(conf);
    return rc == PSEG_OK ? 0 : pseg_reason_exit_status(e.reason);
}
