/* Checks of what a client sent, before anything is stored. Every fault is one line that names the
 * field, the value, the limit and the remedy; err->field holds the field's path for BadRequest.
 * Pure functions, any thread; they know neither gRPC nor Redis. */
#ifndef PSEG_SERVICE_VALIDATE_H
#define PSEG_SERVICE_VALIDATE_H

#include "common/base/err.h"
#include "common/queue/queue.h"
#include "pseg/v1/batch.pb-c.h"
#include "pseg/v1/pseg.pb-c.h"

#include <stdint.h>

enum {
    PSEG_MAX_PROMPTS = 64,
    PSEG_MAX_PROMPT_BYTES = 1024,
    PSEG_MAX_LABELS = 16,
    PSEG_MAX_INLINE_IMAGE_BYTES = 3 << 20,
    PSEG_MAX_CHUNK_BYTES = 1 << 20,
    PSEG_MAX_CHECK_IMAGES = 1000,
    PSEG_MAX_PAGE_SIZE = 1000,
    PSEG_DEFAULT_PAGE_SIZE = 50,
    PSEG_MAX_WATCH_NAMES = 1000,
    PSEG_MAX_BATCH_PAGE_SIZE = 100,
    PSEG_MAX_CUSTOM_ID_BYTES = 255,
    PSEG_IMAGE_MAGIC_BYTES = 12,
};

/* The whole job: exactly one image source, prompts, threshold, labels, deadline, time to live.
 * `prefix` is the path of the spec in the request ("job"). now_unix_us: the present.
 * Errors: PSEG_R_IMAGE_*, PSEG_R_PROMPT_*, PSEG_R_TOO_MANY_PROMPTS, PSEG_R_THRESHOLD_OUT_OF_RANGE,
 * PSEG_R_NAME_INVALID, PSEG_R_INVALID_ARGUMENT. */
pseg_status pseg_check_spec(const Pseg__V1__JobSpec *spec, const char *prefix, int64_t now_unix_us,
                            pseg_err *err);

/* 1 to 63 of [A-Za-z0-9._-]. */
pseg_status pseg_check_model(const char *model, const char *field, pseg_err *err);

/* The labels alone; prefix: "" if they are the request's own. */
pseg_status pseg_check_labels(const Pseg__V1__JobSpec *spec, const char *prefix, pseg_err *err);

/* Empty, or 1 to 64 of [A-Za-z0-9._-]. */
pseg_status pseg_check_request_id(const char *id, pseg_err *err);

/* The id, empty or 1 to 64 of [A-Za-z0-9._-], and the time to live, 1 minute to 7 days or NULL. */
pseg_status pseg_check_new_batch(const Pseg__V1__CreateBatchRequest *q, pseg_err *err);

/* A page of batches: its token is empty, or a number. */
pseg_status pseg_check_batch_page(int32_t size, const char *token, pseg_err *err);

/* As the same fields of a job. Errors: PSEG_R_NAME_INVALID, PSEG_R_TOO_MANY_PROMPTS,
 * PSEG_R_INVALID_ARGUMENT. */
pseg_status pseg_check_estimate(const Pseg__V1__EstimateJobRequest *q, pseg_err *err);

/* A page's size, 1 to max, and its token: empty, or a job's id. */
pseg_status pseg_check_page(int32_t size, int32_t max, const char *token, pseg_err *err);

/* "jobs/" and 32 hexadecimal digits; *id points at the digits inside name. */
pseg_status pseg_check_job_name(const char **id, const char *name, pseg_err *err);

/* "batches/" and 1 to 64 of [A-Za-z0-9._-]; *id points at these inside name. */
pseg_status pseg_check_batch_name(const char **id, const char *name, const char *field,
                                  pseg_err *err);

/* *batch: the id inside q, or ""; *from is set if there is a token. Errors: PSEG_R_NAME_INVALID,
 * PSEG_R_PAGE_TOKEN_INVALID, PSEG_R_INVALID_ARGUMENT (too many names; names and a batch). */
pseg_status pseg_check_watch(pseg_queue_place *from, const char **batch,
                             const Pseg__V1__WatchJobsRequest *q, pseg_err *err);

/* 64 lower-case hexadecimal digits. */
pseg_status pseg_check_sha256(const char *sha256, const char *field, pseg_err *err);

/* 0 (the default) or in (0, 1). */
pseg_status pseg_check_threshold(float threshold, const char *field, pseg_err *err);

/* A known encoding, or UNSPECIFIED; format may be NULL. */
pseg_status pseg_check_format(const Pseg__V1__MaskFormat *format, pseg_err *err);

/* Known states, and not UNSPECIFIED. */
pseg_status pseg_check_states(const Pseg__V1__State *states, size_t n, pseg_err *err);

/* The first bytes of an image of a format that workers may decode (JPEG, PNG, WebP, TIFF, HEIC and
 * AVIF; PSEG_IMAGE_MAGIC_BYTES of them are enough). The worker's decoder decides in the end; this
 * catches mistakes before they are stored. Errors: PSEG_R_IMAGE_FORMAT_UNSUPPORTED. */
pseg_status pseg_check_image_magic(const uint8_t *data, size_t n, const char *field, pseg_err *err);

#endif
