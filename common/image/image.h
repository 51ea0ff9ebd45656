/* Photos: checked, decoded and made ready for a model; pictures of results.
 *
 * Every decoder runs behind limits that are read from the file's header before a pixel is decoded.
 * It knows nothing of models beyond the numbers in pseg_preprocess.
 *
 *     pseg_image_init();                                   // once, before any other thread
 *     pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
 *     pseg_image_decode(&photo, data, len, &limits, &err);
 *     pseg_image_preprocess(chw, rect, photo, &how, &err);
 *     pseg_image_free(photo);
 */
#ifndef PSEG_IMAGE_IMAGE_H
#define PSEG_IMAGE_IMAGE_H

#include "common/base/buf.h"
#include "common/base/err.h"

#include <stdbool.h>
#include <stdint.h>

/* Once per process and before it has threads that use this module; pseg_image_shutdown at its end.
 * Only the decoders of JPEG, PNG, WebP, TIFF and HEIF are let in. */
pseg_status pseg_image_init(pseg_err *err);
void pseg_image_shutdown(void);

typedef struct pseg_image_limits {
    size_t max_bytes;    /* of the file */
    uint64_t max_pixels; /* width * height */
    uint32_t max_side;   /* pixels */
    uint32_t max_frames; /* pages of a TIFF, pictures of an animation */
} pseg_image_limits;
#define PSEG_IMAGE_LIMITS_DEFAULT                                                                  \
    {                                                                                              \
        .max_bytes = (size_t)64 << 20, .max_pixels = 200000000, .max_side = 32768, .max_frames = 1 \
    }

/* 8-bit sRGB, row-major [height, width, 3], upright. */
typedef struct pseg_image {
    uint8_t *rgb;
    uint32_t width, height;
} pseg_image;

typedef struct pseg_image_info {
    const char *format;     /* "JPEG", "PNG", "WebP", "TIFF", "HEIF"; static */
    uint32_t width, height; /* upright */
    uint32_t frames;
} pseg_image_info;

/* From the header alone. Errors: PSEG_R_IMAGE_TOO_LARGE, _FORMAT_UNSUPPORTED, _UNDECODABLE,
 * _TOO_MANY_PIXELS, _TOO_MANY_FRAMES, PSEG_R_IMAGE_MISSING (len 0). Any thread. */
pseg_status pseg_image_probe(pseg_image_info *out, const void *data, size_t len,
                             const pseg_image_limits *limits, pseg_err *err);

/* Orientation applied, colours to sRGB by the embedded profile, CMYK and grey converted, 16 bit to
 * 8, transparency laid on white. A truncated file is an error, not half a picture. Caller frees
 * with pseg_image_free. Takes 3 bytes a pixel and what the format's decoder needs: a few rows, or
 * for interlaced PNG, progressive JPEG, WebP and HEIF the whole picture once more. Errors: those of
 * pseg_image_probe, PSEG_R_OUT_OF_MEMORY. Any thread; a damaged file beside which
 * another was decoded is decoded a second time alone, because libvips' messages are the process's.
 */
pseg_status pseg_image_decode(pseg_image **out, const void *data, size_t len,
                              const pseg_image_limits *limits, pseg_err *err);
void pseg_image_free(pseg_image *i);

/* ---- for the model ---- */

typedef enum pseg_image_fit {
    PSEG_IMAGE_SQUASH,
    PSEG_IMAGE_LETTERBOX,   /* longest side fits, centred; outside is 0 after normalisation */
    PSEG_IMAGE_CENTRE_CROP, /* shortest side to resize_edge, then the middle */
} pseg_image_fit;

typedef struct pseg_preprocess {
    pseg_image_fit fit;
    uint32_t width, height; /* of the model's input */
    uint32_t resize_edge;   /* CENTRE_CROP only */
    float mean[3], std[3];  /* a channel's number is (value / 255 - mean) / std */
    bool may_shrink;        /* pseg_image_prepare: see there */
} pseg_preprocess;

/* chw: 3 * height * width floats, planar. rect: x0, y0, x1, y1 of the photo's part that the input
 * covers, in photo pixels (for pseg_mask_grid). Resampling is Pillow's BICUBIC, bit for bit, so
 * that the numbers are those of Hugging Face's processors. Memory grows with the input and the
 * photo's sides, whatever the photo's shape. Errors: PSEG_R_INVALID_ARGUMENT (a side or the edge is
 * 0), PSEG_R_OUT_OF_MEMORY. Any thread. */
pseg_status pseg_image_preprocess(float *chw, float rect[4], const pseg_image *photo,
                                  const pseg_preprocess *how, pseg_err *err);

/* The rect of pseg_image_preprocess for a photo of width x height px, without the photo. Errors:
 * PSEG_R_INVALID_ARGUMENT. */
pseg_status pseg_image_rect(float rect[4], uint32_t width, uint32_t height,
                            const pseg_preprocess *how, pseg_err *err);

typedef struct pseg_image_file {
    const void *data; /* borrowed for the call */
    size_t len;
} pseg_image_file;

typedef struct pseg_image_prepared {
    uint32_t width, height;       /* of the photo, upright */
    float rect[4];                /* as of pseg_image_preprocess */
    uint32_t shrink;              /* 1; 2, 4 or 8 if the decoder shrank the photo */
    int64_t decode_us, resize_us; /* what the two took */
} pseg_image_prepared;

/* pseg_image_decode and pseg_image_preprocess in one: the same numbers, but rows are resampled as
 * they are decoded, so that the photo is never whole in memory (unless its EXIF orientation makes
 * columns of its rows, or its format's decoder holds it whole).
 * With how->may_shrink, a JPEG that is much larger than the input is decoded to 1/2, 1/4 or 1/8 of
 * its sides, still at least twice what it is resized to: several times as fast, and the numbers are
 * near those of the exact way but not the same (docs/modules/image.md has figures). Limits are held
 * against the header all the same. Errors: those of pseg_image_decode and pseg_image_preprocess.
 * Any thread. */
pseg_status pseg_image_prepare(pseg_image_prepared *out, float *chw, pseg_image_file file,
                               const pseg_image_limits *limits, const pseg_preprocess *how,
                               pseg_err *err);

/* Pillow's resize(BICUBIC) of [h, w, 3] bytes (Pillow, Resample.c: coefficients in 22-bit fixed
 * point, across first, rounded to bytes between the passes). Pillow 13 goes down first where the
 * height shrinks much more than the width, and is a few levels off there. out: [out_h, out_w, 3].
 * Errors: PSEG_R_INVALID_ARGUMENT (a side of 0), PSEG_R_OUT_OF_MEMORY. Any thread. */
pseg_status pseg_image_resize(uint8_t *out, uint32_t out_w, uint32_t out_h, const uint8_t *in,
                              uint32_t w, uint32_t h, pseg_err *err);

/* ---- pictures of results ---- */

/* The photo with the mask (1 inside, of the photo's size) tinted and outlined in white, and the
 * rest dimmed. Time grows with the pixels alone. Caller frees. Errors: PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_image_overlay(pseg_image **out, const pseg_image *photo, const uint8_t *mask,
                               pseg_err *err);
/* Pictures of one size beside each other, with a gap. NULL entries are not allowed. */
pseg_status pseg_image_beside(pseg_image **out, const pseg_image *const *images, size_t n,
                              pseg_err *err);
/* As a JPEG file, appended to out. quality: 1 to 100. Errors: PSEG_R_OUT_OF_MEMORY,
 * PSEG_R_REQUEST_TOO_LARGE (past out's maximum), PSEG_R_INTERNAL (libvips was built without). Any
 * thread. */
pseg_status pseg_image_jpeg(pseg_buf *out, const pseg_image *i, int quality, pseg_err *err);
/* A mask as a picture, 255 inside. */
pseg_status pseg_image_of_mask(pseg_image **out, const uint8_t *mask, uint32_t width,
                               uint32_t height, pseg_err *err);

#endif
