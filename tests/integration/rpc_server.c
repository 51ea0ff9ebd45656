/* The demo service as a program, for clients in other languages: prints "PORT n", serves until its
 * standard input ends, stops and prints "STOPPED". Exit 3: the listener was lost. */
#include "common/rpc/rpc.h"
#include "tests/unit/rpc_demo.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void on_listener_lost(void *ud)
{
    (void)ud;
    static const char text[] = "LOST\n";
    if (write(STDOUT_FILENO, text, sizeof text - 1) < 0)
        _exit(4);
    _exit(3);
}

int main(int argc, char **argv)
{
    static demo d;
    pseg_rpc_server_options o = demo_options();
    pseg_rpc_server *s = NULL;
    pseg_err err = PSEG_ERR_INIT;
    sigset_t signals;
    int port = 0, exit_status = 1;
    char byte;

    /* The core writes a line per hostile frame; only what someone must act on is of interest. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    if (argc > 1)
        o.max_message_bytes = (size_t)strtoul(argv[1], NULL, 10);
    pseg_rpc_init(&demo_log, on_listener_lost, NULL);
    demo_start(&d);
    if (pseg_rpc_server_new(&s, &o, &err) == PSEG_OK &&
        pseg_rpc_server_add(s, demo_methods, &d, &err) == PSEG_OK &&
        pseg_rpc_server_listen(s, "127.0.0.1:0", &port, &err) == PSEG_OK &&
        pseg_rpc_server_start(s, &err) == PSEG_OK) {
        pseg_rpc_server_set_serving(s, "", true);
        printf("PORT %d\n", port);
        fflush(stdout);
        while (read(STDIN_FILENO, &byte, 1) > 0)
            ;
        pseg_rpc_server_stop(s, 5000);
        printf("STOPPED\n");
        exit_status = 0;
    } else {
        fprintf(stderr, "%s\n", err.msg);
    }
    pseg_rpc_server_free(s);
    demo_stop(&d);
    pseg_rpc_shutdown();
    return exit_status;
}
