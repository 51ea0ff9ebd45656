/* The line that tells how far a batch is. */
#ifndef PSEG_CLIENT_BATCH_PROGRESS_H
#define PSEG_CLIENT_BATCH_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BATCH_PROGRESS_SAMPLES 32

/* Rate and remaining time are those of the last quarter of a minute or so. */
typedef struct batch_progress {
    uint64_t items;
    struct {
        int64_t ms;
        uint64_t done;
    } samples[BATCH_PROGRESS_SAMPLES]; /* the oldest at `first` */
    size_t first, n;
} batch_progress;

/* One line without its end, such as
 * "1,234 of 1,000,000 (0.1 %), 310.5/s, 53 min left, 12 failed; trying again: cannot reach ...".
 * To be called from time to time; now_ms never goes back. trouble: "" for none. */
void batch_progress_text(char *out, size_t size, batch_progress *p, int64_t now_ms, uint64_t done,
                         uint64_t failed, const char *trouble);

#endif
