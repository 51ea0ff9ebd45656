/* A process that watches over another like itself: what kills one worker must not leave the machine
 * idle until a person comes. Where a supervisor does that already (systemd, Kubernetes), this is
 * not needed. */
#ifndef PSEG_APPS_RESPAWN_H
#define PSEG_APPS_RESPAWN_H

#include "common/base/err.h"
#include "common/base/log.h"

#include <signal.h>

/* To be called before any thread is started. Returns in each child with *status = -1, and in the
 * parent once no further one is to be started, with the exit status that it should end with: that
 * of a child that was asked to stop, or that ended by itself for a reason that a new one would meet
 * as well. A child that is killed, or ends because of its device, is started anew after 0.1 s, and
 * twice as long each time up to 10 s until one lives for a minute. `signals` (blocked) are passed
 * on. A child is asked to stop when its parent dies. Errors: PSEG_R_INTERNAL. */
pseg_status pseg_respawn(int *status, const sigset_t *signals, const pseg_log *log, pseg_err *err);

#endif
