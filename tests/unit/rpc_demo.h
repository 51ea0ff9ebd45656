/* The demo service of rpc_demo.proto, and a server with it, for the tests of common/rpc. */
#ifndef PSEG_TESTS_RPC_DEMO_H
#define PSEG_TESTS_RPC_DEMO_H

#include "common/rpc/rpc.h"
#include "rpc_demo.pb-c.h"

#include <pthread.h>

typedef struct demo {
    _Atomic int begun, ended, cancelled, drained; /* Wait calls */
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

#endif
