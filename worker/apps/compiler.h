/* A second process that compiles kernels while the worker starts with nothing compiled: PoCL uses
 * one core for it in a process. It is forked before there are threads or OpenCL, waits until the
 * first program is to be compiled, and is killed once the worker needs it no more: what it has
 * compiled by then lies in the driver's cache. A start at which all is found ends it unused; a
 * second process that dies costs time and nothing else. */
#ifndef PSEG_APPS_COMPILER_H
#define PSEG_APPS_COMPILER_H

#include "common/base/err.h"
#include "common/base/log.h"
#include "worker/cl/device.h"

#include <stdatomic.h>
#include <sys/types.h>

typedef struct compiler {
    pid_t pid; /* 0: there is none */
    int go;    /* gets the device's id; the other end waits for it */
    atomic_bool is_used;
    const pseg_log *log;
} compiler;

#define COMPILER_NONE \
    {                 \
        .go = -1      \
    }

/* c: COMPILER_NONE. To be called before any thread is started. In the second process, work(ud,
 * device, err) is called when it is its turn; it never returns there, and dies with its parent.
 * Without one the log says why. log: borrowed until compiler_end. */
void compiler_begin(compiler *c, pseg_status (*work)(void *ud, const char *device, pseg_err *err),
                    void *ud, const pseg_log *log);
/* As pseg_cl_options.on_compile, ud a compiler: the second process begins, if it has not. Any
 * thread. */
void compiler_go(void *ud, const char *device);
/* Ends it; the log says what became of it, if it was used. Again: nothing happens. */
void compiler_end(compiler *c);

#endif
