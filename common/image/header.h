/* A file's header, its limits and its errors. Private to common/image. */
#ifndef PSEG_IMAGE_HEADER_H
#define PSEG_IMAGE_HEADER_H

#include "common/image/image.h"

typedef struct _VipsImage VipsImage;

/* One decoding, in one thread. */
typedef struct attempt {
    const void *data;
    size_t len;
    const pseg_image_limits *limits;
    pseg_image_info info; /* after attempt_open */
    bool was_alone;       /* no other decoding ran when this one began */
    bool unexplained;     /* libvips failed, and others ran beside whose messages these may be */
    uint64_t number;
} attempt;

/* Runs what(ud, a, err). Decodings run side by side. One at which libvips failed while another ran
 * is repeated alone, so that the message, and whether memory was short, are its own and not those
 * of a neighbour: what must free what it made. Any thread. */
pseg_status attempt_run(pseg_status (*what)(void *ud, attempt *a, pseg_err *err), void *ud,
                        attempt *a, pseg_err *err);
/* So often has the process begun to decode. */
uint64_t attempts_begun(void);

/* Opens the header and holds it against the limits. Caller frees with g_object_unref. */
pseg_status attempt_open(VipsImage **out, attempt *a, pseg_err *err);
/* JPEG only: opens it anew, to be decoded to a picture of sides divided by 2, 4 or 8. *v is NULL on
 * failure. */
pseg_status attempt_reopen_shrunk(VipsImage **v, attempt *a, uint32_t shrink, pseg_err *err);

/* After a call of libvips that failed: its message in one line. Never PSEG_OK. */
pseg_status attempt_failed(attempt *a, pseg_err *err);

#endif
