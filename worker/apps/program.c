#include "worker/apps/program.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/utf8.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Errors of parsing come before --json is known. */
static bool asks_for_json(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--json") == 0)
            return true;
    return false;
}

static bool begin(pseg_conf **conf, void *target, const pseg_conf_option *table,
                  const pseg_conf_about *about, int argc, char **argv, bool takes_args, int *status)
{
    pseg_status rc = PSEG_OK;
    pseg_err error = PSEG_ERR_INIT, *err = &error;

    signal(SIGPIPE,
           SIG_DFL); /* pseg ignores it; here a reader that has gone (`head`) ends the work */
    PSEG_TRY(pseg_conf_parse(conf, target, table, argc, argv, err));
    if (pseg_conf_answer(*conf, stdout, about)) {
        *status = program_end(PSEG_OK, err, false);
        pseg_conf_free(*conf);
        *conf = NULL;
        return false;
    }
    if (!takes_args && pseg_conf_n_args(*conf) > 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "unexpected argument \"%s\" (--help shows the use)",
                  pseg_conf_arg(*conf, 0));
out:
    if (rc != PSEG_OK) {
        *status = program_end(rc, err, asks_for_json(argc, argv));
        pseg_conf_free(*conf);
        *conf = NULL;
    }
    return rc == PSEG_OK;
}

bool program_begin(pseg_conf **conf, void *target, const pseg_conf_option *table,
                   const pseg_conf_about *about, int argc, char **argv, int *status)
{
    return begin(conf, target, table, about, argc, argv, false, status);
}

bool program_begin_with(pseg_conf **conf, void *target, const pseg_conf_option *table,
                        const pseg_conf_about *about, int argc, char **argv, int *status)
{
    return begin(conf, target, table, about, argc, argv, true, status);
}

json_t *program_text(const char *s)
{
    json_t *j = json_string(s);
    char *copy = j ? NULL : pseg_strdup(s);

    if (copy) {
        pseg_utf8_repair(copy);
        j = json_string(copy);
        pseg_free(copy);
    }
    return j;
}

void program_print(json_t *j)
{
    json_dumpf(j, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(7));
    putchar('\n');
    json_decref(j);
}

int program_fail(const pseg_err *err, bool json)
{
    if (json) {
        json_t *e = json_pack("{s:s, s:o, s:b}", "reason", pseg_reason_name(err->reason), "message",
                              program_text(err->msg), "retryable",
                              (int)pseg_reason_is_retryable(err->reason));
        if (err->field[0])
            json_object_set_new(e, "field", program_text(err->field));
        program_print(json_pack("{s:o}", "error", e));
    }
    fprintf(stderr, "error: %s%s%s (%s)\n", err->field, err->field[0] ? ": " : "", err->msg,
            pseg_reason_name(err->reason));
    return pseg_reason_exit_status(err->reason);
}

int program_end(pseg_status rc, const pseg_err *err, bool json)
{
    pseg_err lost = PSEG_ERR_INIT;
    int status = rc == PSEG_OK ? 0 : program_fail(err, json);

    if (pseg_file_flush(stdout, "standard output", &lost) != PSEG_OK && status == 0)
        status = program_fail(&lost, false);
    return status;
}

struct program_progress {
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t ended;
    const char *stage;
    bool is_over;
};

static void *show_progress(void *arg)
{
    program_progress *p = arg;
    int64_t begin = pseg_clock_mono_ms();
    bool shown = false;
    struct timespec next;

    clock_gettime(CLOCK_MONOTONIC, &next);
    pthread_mutex_lock(&p->mu);
    while (!p->is_over) {
        next.tv_sec++;
        while (!p->is_over && pthread_cond_timedwait(&p->ended, &p->mu, &next) != ETIMEDOUT)
            ;
        if (p->is_over)
            break;
        shown = true;
        fprintf(stderr, "\r\033[K%s, %lld s ", p->stage,
                (long long)(pseg_clock_mono_ms() - begin) / 1000);
    }
    if (shown)
        fputs("\r\033[K", stderr);
    pthread_mutex_unlock(&p->mu);
    return NULL;
}

program_progress *program_progress_begin(const char *stage)
{
    program_progress *p = isatty(STDERR_FILENO) ? pseg_calloc(1, sizeof *p) : NULL;
    pthread_condattr_t a;

    if (!p)
        return NULL;
    p->stage = stage;
    pthread_mutex_init(&p->mu, NULL);
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&p->ended, &a);
    pthread_condattr_destroy(&a);
    if (pthread_create(&p->thread, NULL, show_progress, p)) {
        pthread_cond_destroy(&p->ended);
        pthread_mutex_destroy(&p->mu);
        pseg_free(p);
        p = NULL;
    }
    return p;
}

void program_progress_stage(program_progress *p, const char *stage)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->mu);
    p->stage = stage;
    pthread_mutex_unlock(&p->mu);
}

void program_progress_end(program_progress *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->mu);
    p->is_over = true;
    pthread_cond_signal(&p->ended);
    pthread_mutex_unlock(&p->mu);
    pthread_join(p->thread, NULL);
    pthread_cond_destroy(&p->ended);
    pthread_mutex_destroy(&p->mu);
    pseg_free(p);
}
