/* Locks a process in before it reads foreign bytes: it may compute, take memory up to a limit,
 * start threads, and use the descriptors it holds; it may not open, make, connect to, start or
 * signal anything. The only file that includes <seccomp.h> lies beside this. */
#ifndef PSEG_DECODE_JAIL_H
#define PSEG_DECODE_JAIL_H

#include "common/base/err.h"

#include <stdint.h>

typedef struct pseg_jail pseg_jail;

/* The filter, made once; entering is then two system calls. Caller frees with pseg_jail_free.
 * Errors: PSEG_R_UNSUPPORTED (a kernel without seccomp), PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_jail_new(pseg_jail **out, pseg_err *err);
void pseg_jail_free(pseg_jail *j);

/* From here on for this process and for good. cpu_s: seconds of processor time, after which SIGXCPU
 * ends it. memory_bytes: of address space (not under sanitizers, whose shadow is larger). */
pseg_status pseg_jail_enter(const pseg_jail *j, int64_t cpu_s, uint64_t memory_bytes,
                            pseg_err *err);

#endif
