#include "scheduler/service/internal.h"
#include "scheduler/service/open_inference.h"

#include <stdio.h>
#include <string.h>

typedef Inference__ModelInferResponse response;
typedef Inference__ModelInferResponse__InferOutputTensor tensor;

static char *unconst(const char *s)
{
    return (char *)(uintptr_t)s;
}

/* Little-endian, as all raw contents. */
static void put32(uint8_t *p, uint32_t x)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(x >> 8 * i);
}

/* The masks' bytes joined, each with its length before it if they are BYTES. */
static bool put_masks(ProtobufCBinaryData *out, pseg_arena *a, const Pseg__V1__Mask *masks,
                      size_t n, bool is_raw)
{
    size_t head = is_raw ? 0 : 4, len = 0;

    for (size_t i = 0; i < n; i++)
        len += head + masks[i].data.len;
    uint8_t *p = pseg_arena_alloc(a, len);
    if (!p)
        return false;
    *out = (ProtobufCBinaryData){len, p};
    for (size_t i = 0; i < n; i++) {
        if (head)
            put32(p, (uint32_t)masks[i].data.len);
        memcpy(p + head, masks[i].data.data, masks[i].data.len);
        p += head + masks[i].data.len;
    }
    return true;
}

static bool put_numbers(ProtobufCBinaryData *out, pseg_arena *a, const Pseg__V1__Job *job,
                        oip_output which)
{
    size_t each = which == OIP_IOU ? 4 : 16, len = job->n_results * each;
    uint8_t *p = pseg_arena_alloc(a, len);

    if (!p)
        return false;
    *out = (ProtobufCBinaryData){len, p};
    for (size_t i = 0; i < job->n_results; i++, p += each) {
        const Pseg__V1__PromptResult *r = job->results[i];
        const Pseg__V1__BoundingBox *b = r->box;
        uint32_t numbers[4] = {b ? b->x : 0, b ? b->y : 0, b ? b->width : 0, b ? b->height : 0};
        if (which == OIP_IOU)
            memcpy(numbers, &r->predicted_iou, 4);
        for (size_t k = 0; k < each / 4; k++)
            put32(p + 4 * k, numbers[k]);
    }
    return true;
}

static tensor *tensor_of(pseg_arena *a, const oip_request *q, oip_output which,
                         const Pseg__V1__Job *job)
{
    tensor *t = pseg_arena_calloc(a, 1, sizeof *t);
    int64_t *shape = pseg_arena_calloc(a, 3, sizeof *shape);
    bool is_raw = q->format.encoding == (Pseg__V1__MaskEncoding)MASK_ENCODING_RAW;

    if (!t || !shape)
        return NULL;
    inference__model_infer_response__infer_output_tensor__init(t);
    t->name = unconst(oip_output_names[which]);
    t->datatype = unconst(which == OIP_IOU ? "FP32" : which == OIP_BOXES ? "INT32" : "BYTES");
    t->shape = shape;
    t->n_shape = 1;
    shape[0] = (int64_t)job->n_results;
    if (which == OIP_BOXES) {
        t->n_shape = 2;
        shape[1] = 4;
    } else if (which == OIP_MASKS && is_raw) {
        t->datatype = unconst("UINT8");
        t->n_shape = 3;
        shape[1] = job->image_height;
        shape[2] = job->image_width;
    }
    return t;
}

/* The one parameter: which job it was. */
static bool name_job(response *out, pseg_arena *a, const Pseg__V1__Job *job)
{
    Inference__ModelInferResponse__ParametersEntry *entry = pseg_arena_calloc(a, 1, sizeof *entry);
    Inference__InferParameter *value = pseg_arena_calloc(a, 1, sizeof *value);

    out->parameters = pseg_arena_calloc(a, 1, sizeof *out->parameters);
    if (!entry || !value || !out->parameters)
        return false;
    inference__model_infer_response__parameters_entry__init(entry);
    inference__infer_parameter__init(value);
    value->parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM;
    value->string_param = job->name;
    entry->key = unconst("job");
    entry->value = value;
    out->parameters[out->n_parameters++] = entry;
    return true;
}

response *oip_reply(pseg_arena *a, const Inference__ModelInferRequest *asked, const oip_request *q,
                    const Pseg__V1__Job *job, const Pseg__V1__Mask *masks)
{
    response *out = pseg_arena_calloc(a, 1, sizeof *out);

    if (!out)
        return NULL;
    inference__model_infer_response__init(out);
    out->model_name = job->model;
    out->model_version = unconst(OIP_VERSION);
    out->id = asked->id;
    out->outputs = pseg_arena_calloc(a, q->n_outputs, sizeof *out->outputs);
    out->raw_output_contents = pseg_arena_calloc(a, q->n_outputs, sizeof *out->raw_output_contents);
    if (!out->outputs || !out->raw_output_contents || !name_job(out, a, job))
        return NULL;
    for (size_t i = 0; i < q->n_outputs; i++) {
        ProtobufCBinaryData *raw = &out->raw_output_contents[out->n_raw_output_contents++];
        tensor *t = tensor_of(a, q, q->outputs[i], job);
        bool is_put =
            q->outputs[i] == OIP_MASKS
                ? put_masks(raw, a, masks, job->n_results,
                            q->format.encoding == (Pseg__V1__MaskEncoding)MASK_ENCODING_RAW)
                : put_numbers(raw, a, job, q->outputs[i]);
        if (!t || !is_put)
            return NULL;
        out->outputs[out->n_outputs++] = t;
    }
    return out;
}
