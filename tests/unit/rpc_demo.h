/* The demo service of rpc_demo.proto, and a server with it, for the tests of common/rpc. */
#ifndef PSEG_TESTS_RPC_DEMO_H
#define PSEG_TESTS_RPC_DEMO_H

#include "common/rpc/rpc.h"
#include "common/rpc/rpc_client.h"
#include "rpc_demo.pb-c.h"

#include <pthread.h>

typedef struct demo {
    _Atomic int begun, ended, cancelled, drained; /* Wait and Talk calls */
    /* The thread that answers Wait{THREAD}: takes tickets in order. */
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t cv;
    struct demo_job *jobs;
    bool stop, hold; /* hold: tickets stay until it is cleared */
} demo;

extern const pseg_rpc_method demo_methods[];
extern const uint8_t demo_descriptors_begin[], demo_descriptors_end[];

void demo_start(demo *d);
void demo_hold(demo *d, bool hold);
void demo_stop(demo *d);
/* Waits until at least n Wait and Talk calls have ended at the server; aborts after 20 s. */
void demo_until_ended(demo *d, int n);

/* A server with the demo service on a free loopback port, and a channel to it. */
typedef struct demo_server {
    demo d;
    pseg_rpc_server *s;
    pseg_rpc_channel *ch;
    int port;
    char target[64];
} demo_server;

extern const pseg_log demo_log; /* errors, to stderr */
pseg_rpc_server_options demo_options(void);
/* NULL: the default ones. Options of the channel get the target. Aborts on failure. */
void demo_up(demo_server *f, const pseg_rpc_server_options *o, const pseg_rpc_channel_options *co);
void demo_down(demo_server *f);

#endif
