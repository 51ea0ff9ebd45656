/* Decodes images where a crash, a loop or a greedy file costs that image and nothing else.
 *
 * A decoder is a program of its own, which forks a process for images of one owner: under seccomp,
 * with limits on time and memory, without files, network or the worker's secrets, and gone before
 * an image of another owner is shown to its successor. docs/modules/decode.md tells what it may do.
 * Knows nothing of queues and models.
 *
 *     pseg_decoders_options o = PSEG_DECODERS_OPTIONS_DEFAULT;
 *     o.limits = limits;
 *     o.how = how;
 *     pseg_decoders_open(&d, &o, &err);
 *     pseg_decoders_prepare(d, &prepared, chw, owner, (pseg_image_file){data, len}, &err);
 *     pseg_decoders_close(d);
 */
#ifndef PSEG_DECODE_DECODERS_H
#define PSEG_DECODE_DECODERS_H

#include "common/base/log.h"
#include "common/image/image.h"

enum { PSEG_DECODERS_MAX_OWNER = 127 };

typedef struct pseg_decoders pseg_decoders;

typedef struct pseg_decoders_options {
    size_t n;            /* decoders, and so images at once */
    const char *program; /* NULL: pseg-decode beside this program or in ../libexec/pseg */
    pseg_image_limits limits;
    pseg_preprocess how;
    size_t images;   /* of one owner that a process decodes at most; 1: one process an image */
    int64_t cpu_s;   /* processor time for an image */
    int64_t wall_ms; /* and time in all, after which the decoder is killed */
    uint64_t memory_bytes; /* address space of the decoding process */
    const pseg_log *log;   /* borrowed; NULL is silent */
} pseg_decoders_options;
#define PSEG_DECODERS_OPTIONS_DEFAULT                                                              \
    {                                                                                              \
        .n = 2, .limits = PSEG_IMAGE_LIMITS_DEFAULT, .images = 64, .cpu_s = 30, .wall_ms = 120000, \
        .memory_bytes = (uint64_t)4 << 30                                                          \
    }

/* Starts them and waits until they are ready. May be called in a process with threads. Errors:
 * PSEG_R_FILE_NOT_FOUND (the program), PSEG_R_UNSUPPORTED (no seccomp), PSEG_R_OUT_OF_MEMORY,
 * PSEG_R_INVALID_ARGUMENT. */
pseg_status pseg_decoders_open(pseg_decoders **out, const pseg_decoders_options *o, pseg_err *err);
/* After the last call; kills what still runs. NULL is accepted. */
void pseg_decoders_close(pseg_decoders *d);

/* As pseg_image_prepare with the limits and the `how` given at opening, same numbers, same errors,
 * and: PSEG_R_IMAGE_DECODER_CRASHED, _TIMEOUT, _MEMORY, each of which the same image would meet
 * again. owner: whose images may share a process, up to PSEG_DECODERS_MAX_OWNER bytes; NULL or
 * longer: with none. What goes wrong in a process that has seen other images is tried anew in a
 * fresh one, which alone gives a verdict. A decoder that is killed from outside is replaced and the
 * image tried once more, before it is PSEG_R_OUT_OF_MEMORY. Any thread; waits for a free decoder.
 */
pseg_status pseg_decoders_prepare(pseg_decoders *d, pseg_image_prepared *out, float *chw,
                                  const char *owner, pseg_image_file file, pseg_err *err);

typedef struct pseg_decoders_stats {
    uint64_t images, crashed, timed_out, restarts;
    uint64_t shared; /* images whose process had decoded others; not exact where one left just when
                        the image came */
} pseg_decoders_stats;
void pseg_decoders_get_stats(pseg_decoders *d, pseg_decoders_stats *out);

#endif
