/* pseg: the command. What needs the engine is a program of its own, pseg-NAME, so that a client's
 * machine needs no OpenCL. */
#include "client/client.h"
#include "common/base/version.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const command *const commands[] = {&segment_command, &submit_command, &get_command,
                                          &wait_command,    &cancel_command, &list_command,
                                          &models_command};
static const struct {
    const char *name, *help;
} programs[] = {{"run", "The same as segment in one process, without a server."},
                {"devices", "Lists the OpenCL devices."},
                {"scenes", "Draws scenes with masks and phrases by seed."},
                {"bench", "Measures engine, queue and service."}};

static void usage(FILE *f)
{
    fprintf(f, "pseg " PSEG_VERSION
               ": prompt-guided image segmentation\n\nusage: pseg COMMAND [options]\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(f, "  %-9s %.*s\n", commands[i]->name, (int)strcspn(commands[i]->help, "\n"),
                commands[i]->help);
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        fprintf(f, "  %-9s %s\n", programs[i].name, programs[i].help);
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

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "--help";

    signal(SIGPIPE, SIG_IGN);
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        usage(stdout);
        return argc > 1 ? 0 : 2;
    }
    if (strcmp(name, "--version") == 0) {
        puts("pseg " PSEG_VERSION);
        return 0;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i]->run(commands[i], argc - 1, argv + 1);
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        if (strcmp(programs[i].name, name) == 0)
            return run_program(name, argv + 1);
    fprintf(stderr, "error: unknown command \"%s\"; `pseg --help` lists all (CONFIG_INVALID)\n",
            name);
    return 2;
}
