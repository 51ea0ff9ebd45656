/* pseg: the command. What needs the engine is a program of its own, pseg-NAME, so that a client's
 * machine needs no OpenCL. */
#include "client/client.h"
#include "common/base/file.h"
#include "common/base/version.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const command *const commands[] = {&segment_command, &batch_command,  &submit_command,
                                          &get_command,     &wait_command,   &cancel_command,
                                          &list_command,    &models_command, &quarantine_command,
                                          &key_command,     &watch_command,  &top_command};
static const struct {
    const char *name, *help;
} programs[] = {{"run", "The same as segment in one process, without a server."},
                {"devices", "Lists the OpenCL devices."},
                {"eval", "Scores a model on a data set, with controls and intervals."},
                {"scenes", "Draws scenes with masks and phrases by seed."},
                {"data", "Tells what is wrong in data sets for training and evaluation."},
                {"train", "Trains neck and decoder on frozen encoders."},
                {"bench", "Measures engine, queue and service."}};

#define N_COMMANDS (sizeof commands / sizeof *commands)
#define N_PROGRAMS (sizeof programs / sizeof *programs)

static void usage(FILE *f)
{
    fprintf(f, "pseg " PSEG_VERSION
               ": prompt-guided image segmentation\n\nusage: pseg COMMAND [options]\n\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(f, "  %-10s %.*s\n", commands[i]->word, (int)strcspn(commands[i]->about.what, "\n"),
                commands[i]->about.what);
    for (size_t i = 0; i < N_PROGRAMS; i++)
        fprintf(f, "  %-10s %s\n", programs[i].name, programs[i].help);
    fprintf(
        f,
        "\n`pseg COMMAND --help` tells more. A first try, beside a running scheduler and worker:\n"
        "  pseg segment --image scene.png --prompt \"the small red circle\" --out result\n");
}

/* Beside this program, as in the build tree, or in ../libexec/pseg, as installed. */
static int run_program(const char *name, char **argv)
{
    static const char *const places[] = {"", "../libexec/pseg/"};
    char self[PATH_MAX], path[PATH_MAX + 64];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);

    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    if (slash)
        slash[1] = '\0';
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s%spseg-%s", self, places[i], name);
        execv(path, argv);
        if (errno != ENOENT)
            break;
    }
    fprintf(stderr,
            "error: cannot start pseg-%s: %s; it belongs beside pseg or in ../libexec/pseg "
            "(FILE_NOT_FOUND)\n",
            name, strerror(errno));
    return 3;
}

/* The command that `word` is a slip of, or NULL. */
static const char *nearest_to(const char *word)
{
    const char *nearest = NULL;
    size_t best = SIZE_MAX;

    for (size_t i = 0; i < N_COMMANDS + N_PROGRAMS; i++) {
        const char *name = i < N_COMMANDS ? commands[i]->word : programs[i - N_COMMANDS].name;
        size_t d = pseg_conf_slip(word, strlen(word), name);
        if (d < best) {
            best = d;
            nearest = name;
        }
    }
    return nearest;
}

static int run_command(const char *name, int argc, char **argv)
{
    pseg_err err = PSEG_ERR_INIT;
    const char *nearest;

    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i]->word, name) == 0)
            return commands[i]->run(commands[i], argc, argv);
    for (size_t i = 0; i < N_PROGRAMS; i++)
        if (strcmp(programs[i].name, name) == 0)
            return run_program(name, argv);
    nearest = nearest_to(name);
    pseg_err_set(&err, PSEG_R_CONFIG_INVALID, 0, PSEG_HERE,
                 "unknown command \"%s\"%s%s%s (`pseg --help` lists all)", name,
                 nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "");
    return cli_fail(&(cli){0}, &err);
}

int main(int argc, char **argv)
{
    pseg_err err = PSEG_ERR_INIT;
    char ask[] = "--help";
    int status = 0;

    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        usage(stderr);
        return 2;
    }
    if (strcmp(argv[1], "help") == 0 && argc > 2) { /* pseg help COMMAND */
        argv[1] = argv[2];
        argv[2] = ask;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0)
        usage(stdout);
    else if (strcmp(argv[1], "--version") == 0)
        puts("pseg " PSEG_VERSION);
    else
        status = run_command(argv[1], argc - 1, argv + 1);
    if (pseg_file_flush(stdout, "standard output", &err) != PSEG_OK && status == 0)
        status = cli_fail(&(cli){0}, &err);
    return status;
}
