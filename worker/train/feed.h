/* Batches of a source into a training graph's inputs, and its figures back. An object of one
 * thread. */
#ifndef PSEG_TRAIN_FEED_H
#define PSEG_TRAIN_FEED_H

#include "worker/train/encoders.h"
#include "worker/train/head.h"
#include "worker/train/source.h"

typedef struct pseg_feed pseg_feed;

/* Everything is borrowed until free. */
pseg_status pseg_feed_new(pseg_feed **out, pseg_train_head *head, pseg_encoders *e, pseg_stream *s,
                          const pseg_head_config *c, const pseg_train_shape *shape, pseg_err *err);
void pseg_feed_free(pseg_feed *f); /* NULL: nothing happens */

/* Encodes what is not encoded and fills all inputs. Each sample's weight is 1 / (n_samples *
 * group); places without a sample have weight 0. Waits. */
pseg_status pseg_feed_put(pseg_feed *f, const pseg_train_batch *b, uint32_t group, pseg_err *err);

/* After a forward pass. Waits; pseg_feed_stats is then [batch, PSEG_LOSS_STATS]. */
pseg_status pseg_feed_read_stats(pseg_feed *f, pseg_err *err);
const float *pseg_feed_stats(const pseg_feed *f);
uint64_t pseg_feed_cut(const pseg_feed *f); /* phrases that were longer than the prompt, so far */

#endif
