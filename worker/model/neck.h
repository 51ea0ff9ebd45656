/* PSEG-1's neck: the taps of the image encoder become one feature map.
 *
 *   lateral_i = GELU(GN(conv1x1(tap_i)))          each tap
 *   top-down  : L2 += L3; L1 += L2; L0 += L1      all at one resolution
 *   smooth_i  = GELU(GN(conv3x3(L_i)))
 *   F         = GELU(GN(conv3x3(sum smooth_i)))   [gh*gw, D] */
#ifndef PSEG_MODEL_NECK_H
#define PSEG_MODEL_NECK_H

#include "worker/model/config.h"
#include "worker/model/stage.h"
#include "worker/model/weights.h"

pseg_status pseg_neck_specs(pseg_specs *out, const pseg_head_config *c, pseg_err *err);

typedef struct pseg_neck pseg_neck;

/* Everything on the device belongs to store; w is used during the call only. */
pseg_status pseg_neck_new(pseg_neck **out, pseg_store *store, pseg_weights *w,
                          const pseg_head_config *c, uint32_t gh, uint32_t gw, uint32_t max_batch,
                          pseg_err *err);
void pseg_neck_free(pseg_neck *n); /* NULL: nothing happens */

/* taps: c->n_taps views, each [batch, gh*gw, vision_dim]. Enqueues; pseg_neck_out is then
 * [batch, gh*gw, D], valid until the next run. */
pseg_status pseg_neck_run(pseg_neck *n, pseg_stage *st, const pseg_view *taps, uint32_t batch,
                          pseg_err *err);
pseg_view pseg_neck_out(const pseg_neck *n);

#endif
