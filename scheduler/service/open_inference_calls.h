/* The handlers of ModelInfer, for the table of methods. */
#ifndef PSEG_SERVICE_OPEN_INFERENCE_CALLS_H
#define PSEG_SERVICE_OPEN_INFERENCE_CALLS_H

#include "common/rpc/rpc.h"

void oip_infer(pseg_rpc_call *c, const void *msg);
void oip_infer_drain(pseg_rpc_call *c);
void oip_infer_end(pseg_rpc_call *c);

#endif
