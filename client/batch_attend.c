/* Begins the threads of a batch, shows how far they are, hands a signal on, and waits for their
 * end. */
#include "client/batch_run.h"

#include "client/batch/progress.h"
#include "common/base/clock.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define LOG_MS 10000 /* between lines of progress where there is no terminal */

static int wake_fds[2] = {-1, -1}; /* a byte: a signal came, or a thread has ended */
static volatile sig_atomic_t signal_seen;

int batch_signal(void)
{
    return signal_seen;
}

static void wake(void)
{
    ssize_t ignored = write(wake_fds[1], "", 1);

    (void)ignored;
}

static void on_signal(int sig)
{
    signal_seen = sig;
    wake();
}

static void watch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM};
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, old;

    for (size_t i = 0; i < 2; i++)
        if (sigaction(signals[i], &act, &old) == 0 && old.sa_handler == SIG_IGN)
            sigaction(signals[i], &old, NULL); /* a shell's background command is not interrupted */
}

/* ---- progress ---- */

typedef struct display {
    bool is_on, is_terminal, has_shown;
    int64_t begin_ms, shown_ms;
    batch_progress progress;
} display;

/* On a terminal four times a second in one line, once it has taken a second; else a line now and
 * then. */
static void show(display *d, const batch_run *r) /* mu is held */
{
    int64_t now = pseg_clock_mono_ms();
    char text[300];

    if (!d->is_on)
        return;
    batch_progress_text(text, sizeof text, &d->progress, now, r->succeeded + r->failed, r->failed,
                        r->trouble);
    if (now - d->begin_ms < 1000 || (!d->is_terminal && now - d->shown_ms < LOG_MS))
        return;
    d->shown_ms = now;
    d->has_shown = true;
    if (d->is_terminal)
        fprintf(stderr, "\r\033[K%s ", text);
    else
        fprintf(stderr, "%s\n", text);
}

static void hide(const display *d)
{
    if (d->has_shown && d->is_terminal)
        fprintf(stderr, "\r\033[K");
}

/* ---- threads ---- */

typedef struct worker {
    batch_run *run;
    void (*f)(batch_run *r);
    bool is_done; /* under the run's mu */
} worker;

static void *work(void *ud)
{
    worker *w = ud;

    w->f(w->run);
    pthread_mutex_lock(&w->run->mu);
    w->is_done = true;
    pthread_mutex_unlock(&w->run->mu);
    wake();
    return NULL;
}

static void wait_for(batch_run *r, const worker *workers, size_t n, display *d)
{
    struct pollfd p = {wake_fds[0], POLLIN, 0};
    char drain[64];

    for (;;) {
        bool is_done = true;
        pthread_mutex_lock(&r->mu);
        if (signal_seen && !r->stop)
            batch_run_stop(r);
        bool stop = r->stop;
        show(d, r);
        for (size_t i = 0; i < n; i++)
            is_done = is_done && workers[i].is_done;
        pthread_mutex_unlock(&r->mu);
        if (is_done)
            return;
        /* Again and again: a thread may have been about to open another call. */
        if (stop)
            pseg_rpc_cancel_all(r->cli->channel);
        if (poll(&p, 1, stop ? 50 : 250) == 1)
            while (read(wake_fds[0], drain, sizeof drain) > 0)
                ;
    }
}

static pseg_status begin(pthread_t *threads, size_t *n, worker *workers, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (; *n < 2; (*n)++)
        if (pthread_create(&threads[*n], NULL, work, &workers[*n])) {
            rc = pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "cannot start a thread");
            batch_run_fail(workers->run, rc, err);
            break;
        }
    return rc;
}

pseg_status batch_attend(batch_run *r, bool shows, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    worker workers[2] = {{r, batch_submit, false}, {r, batch_collect, false}};
    pthread_t threads[2];
    size_t n = 0;
    display d = {.is_terminal = isatty(STDERR_FILENO),
                 .begin_ms = pseg_clock_mono_ms(),
                 .progress = {.items = r->n_items}};

    d.is_on = shows || d.is_terminal;
    if (pipe2(wake_fds, O_NONBLOCK | O_CLOEXEC))
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "no pipe can be opened");
    watch_signals();
    rc = begin(threads, &n, workers, err);
    wait_for(r, workers, n, &d);
    for (size_t i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    hide(&d);
    if (rc == PSEG_OK && r->rc != PSEG_OK) {
        *err = r->error;
        rc = r->rc;
    }
out:
    return rc;
}
