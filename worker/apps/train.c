/* pseg-train: trains neck and decoder, and encoders too; docs/training.md tells the way. */
#include "worker/apps/train.h"
#include "common/image/image.h"

#include <signal.h>
#include <unistd.h>

static volatile sig_atomic_t stop;

static void on_signal(int number)
{
    (void)number;
    stop = 1;
}

static pseg_status run(const train_args *a, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_log log = {a->verbose ? PSEG_LOG_DEBUG : PSEG_LOG_WARN, STDERR_FILENO};
    pseg_cl_options co = PSEG_CL_OPTIONS_DEFAULT;
    pseg_trainer_options o;
    pseg_train_source source = {0};
    train_begin begin = {0};
    pseg_head_config head;
    pseg_cl *cl = NULL;
    pseg_encoders *e = NULL;
    pseg_trainer *t = NULL;
    bool is_terminal = isatty(STDERR_FILENO);
    train_left_out left = {0};

    PSEG_TRY(train_options_of(&o, a, &log, &stop, err));
    o.on_event = train_print_event;
    o.event_ud = &is_terminal;
    PSEG_TRY(pseg_device_set_threads((unsigned)a->threads, err));
    co.device = a->device;
    co.cache_dir = a->cache;
    co.log = &log;
    co.profile = a->profile;
    PSEG_TRY(pseg_image_init(err));
    PSEG_TRY(pseg_cl_open(&cl, &co, err));
    PSEG_TRY(pseg_encoders_open(&e, cl, a->vision, a->text, err));
    PSEG_TRY(pseg_trainer_check(&o, e, err));
    PSEG_TRY(train_begin_open(&begin, &head, a, e, err));
    PSEG_TRY(train_source_open(&source, cl, a, &head, &o, &left, err));
    PSEG_TRY(pseg_trainer_new(&t, cl, e, &source, &head, begin.weights, &o, err));
    PSEG_TRY(pseg_trainer_run(t, err));
    train_left_out_tell(&left);
    train_print_summary(a, t);
    if (a->profile)
        train_print_profile(t);
out:
    pseg_trainer_free(t);
    train_begin_deinit(&begin);
    pseg_train_source_close(&source);
    pseg_encoders_close(e);
    pseg_cl_close(cl);
    return rc;
}

int main(int argc, char **argv)
{
    static const pseg_conf_about about = {
        .name = "pseg train",
        .usage = "--data SET --vision DIR --text DIR --out DIR",
        .what =
            "Trains neck and decoder on frozen encoders, and leaves a model that `pseg run` and\n"
            "`pseg-worker` open. Interrupted at any moment, it goes on with --resume.",
        .example = "pseg train --data scenes:2000 --vision scenes/vision --text scenes/text "
                   "--text-mode tokens --out run1\n"
                   "pseg run --model run1 --image scene.png --prompt \"the red circle\""};
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND};
    train_args a = {0};
    pseg_conf *conf = NULL;
    pseg_err err = PSEG_ERR_INIT;
    int status = 0;

    /* The first asks for an orderly end; the second ends at once. */
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    if (program_begin(&conf, &a, train_options, &about, argc, argv, &status))
        status = program_end(run(&a, &err), &err, a.json);
    pseg_conf_free(conf);
    return status;
}
