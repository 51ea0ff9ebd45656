/* Between the files of the Open Inference Protocol's door.
 *   open_inference.c         what the server and its models are; the table of methods
 *   open_inference_infer.c   ModelInfer: submit, wait, answer
 *   open_inference_request.c what a request's tensors and parameters say
 *   open_inference_reply.c   tensors of the answer */
#ifndef PSEG_SERVICE_OPEN_INFERENCE_H
#define PSEG_SERVICE_OPEN_INFERENCE_H

#include "common/base/arena.h"
#include "common/base/err.h"
#include "inference/open_inference.pb-c.h"
#include "pseg/v1/pseg.pb-c.h"

#define OIP_VERSION "1" /* of every model */

typedef enum oip_output { OIP_MASKS, OIP_IOU, OIP_BOXES, OIP_N_OUTPUTS } oip_output;
extern const char *const oip_output_names[OIP_N_OUTPUTS];

/* What is to be done, and which answer is wanted. */
typedef struct oip_request {
    Pseg__V1__JobSpec *spec;
    oip_output outputs[OIP_N_OUTPUTS]; /* in the order asked for */
    size_t n_outputs;
    Pseg__V1__MaskFormat format; /* of the masks */
    size_t masks_at;             /* their place among the request's outputs */
} oip_request;

/* Checked as CreateJob's would be; err->field names the tensor or the parameter. The spec lies in
 * the arena and points into q. now_unix_us: the present.
 * Errors: those of pseg_check_spec, PSEG_R_MODEL_UNKNOWN (version), PSEG_R_INVALID_ARGUMENT,
 * PSEG_R_OUT_OF_MEMORY. */
pseg_status oip_read_request(oip_request *out, pseg_arena *a, const Inference__ModelInferRequest *q,
                             int64_t now_unix_us, pseg_err *err);

/* The version must be "1" or empty. Errors: PSEG_R_MODEL_UNKNOWN. */
pseg_status oip_check_version(const char *version, const char *field, pseg_err *err);

/* Elements of a BYTES tensor in its raw form: each with its length before it, 4 bytes
 * little-endian. They point into raw; *out lies in the arena.
 * Errors: PSEG_R_INVALID_ARGUMENT (cut short, more than max), PSEG_R_OUT_OF_MEMORY. */
pseg_status oip_split_bytes(ProtobufCBinaryData **out, size_t *n, pseg_arena *a,
                            const ProtobufCBinaryData *raw, size_t max, pseg_err *err);

/* The response to a job that has succeeded, in the arena. masks: one per prompt, borrowed, unless
 * no masks are wanted. NULL: memory is short. */
Inference__ModelInferResponse *oip_reply(pseg_arena *a, const Inference__ModelInferRequest *asked,
                                         const oip_request *q, const Pseg__V1__Job *job,
                                         const Pseg__V1__Mask *masks);

#endif
