/* What passes between a worker and its decoders. Private to worker/decode.
 *
 * A decoder program (`pseg-decode`) is started with the descriptors below and never touches an
 * image: it forks a process, which locks itself in (jail.h), answers requests for images of one
 * owner and ends; then the next. The bytes of the image and the numbers made of it lie in one
 * sealed memfd: the file's bytes first, the numbers from `output_at` on. Everything that a decoding
 * process writes is foreign to the worker, which checks it; it cannot write to the control socket,
 * by which the program tells of its children. */
#ifndef PSEG_DECODE_WIRE_H
#define PSEG_DECODE_WIRE_H

#include "common/image/image.h"

#include <stdint.h>

enum {
    DECODE_FD_DATA = 3,    /* SOCK_SEQPACKET: decode_request in, decode_reply out */
    DECODE_FD_CONTROL = 4, /* SOCK_SEQPACKET: decode_event out */
    DECODE_FD_MEMORY = 5,
    DECODE_N_FDS = 3
};

enum {
    DECODE_LEFT = 6,        /* exit status of a process that was asked to end */
    DECODE_LINGER_MS = 250, /* that one waits for another image of the same owner */
};

typedef struct decode_request {
    uint64_t len; /* 0: no image; the process that waits shall end */
    uint64_t output_at;
    uint64_t images; /* that a process may decode in all */
    pseg_image_limits limits;
    pseg_preprocess how;
} decode_request;

typedef struct decode_reply {
    int32_t reason; /* PSEG_R_NONE: done, and `prepared` holds */
    char msg[320], value[80], limit[64];
    pseg_image_prepared prepared;
} decode_reply;

typedef struct decode_event {
    int32_t is_ready;    /* a new process waits for a request; else the last one has ended: */
    int32_t wait_status; /* as of waitpid */
    int64_t cpu_us, resident_bytes;
} decode_event;

#endif
