#include "common/base/utf8.h"
#include "scheduler/service/internal.h"
#include "scheduler/service/open_inference.h"
#include "scheduler/service/validate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef Inference__ModelInferRequest request;
typedef Inference__ModelInferRequest__InferInputTensor input;

const char *const oip_output_names[] = {"MASKS", "IOU", "BOXES"};

/* More elements than any input may have, so that the job's own limit says what is wrong. */
enum { MAX_ELEMENTS = 4096, NONE = 1 << 20 };

/* Where an error that has no field yet is to be sought. */
#define FAIL_AT(reason, field, ...)                                  \
    do {                                                             \
        rc = pseg_err_set(err, (reason), 0, PSEG_HERE, __VA_ARGS__); \
        pseg_err_field field;                                        \
        goto out;                                                    \
    } while (0)

/* ---- elements of a tensor ---- */

static size_t length_at(const uint8_t *p)
{
    return p[0] | (size_t)p[1] << 8 | (size_t)p[2] << 16 | (size_t)p[3] << 24;
}

pseg_status oip_split_bytes(ProtobufCBinaryData **out, size_t *n, pseg_arena *a,
                            const ProtobufCBinaryData *raw, size_t max, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t count = 0;

    *out = NULL;
    *n = 0;
    for (size_t at = 0; at < raw->len; count++) {
        size_t left = raw->len - at;
        if (left < 4 || length_at(raw->data + at) > left - 4)
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                      "element %zu is cut short: %zu bytes are left of it; each has its length "
                      "before it, 4 bytes little-endian",
                      count, left);
        if (count == max)
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "the tensor has more than %zu elements", max);
        at += 4 + length_at(raw->data + at);
    }
    *out = pseg_arena_calloc(a, count, sizeof **out);
    if (!*out)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the tensor's %zu elements", count);
    uint8_t *p = raw->data;
    for (*n = 0; *n < count; (*n)++) {
        (*out)[*n] = (ProtobufCBinaryData){length_at(p), p + 4};
        p += 4 + (*out)[*n].len;
    }
out:
    return rc;
}

/* How many elements its shape says; NONE if it is no shape of few. */
static size_t count_of(const input *in)
{
    uint64_t n = 1;

    for (size_t i = 0; i < in->n_shape; i++) {
        if (in->shape[i] < 0 || in->shape[i] > MAX_ELEMENTS)
            return NONE;
        n *= (uint64_t)in->shape[i];
        if (n > MAX_ELEMENTS)
            return NONE;
    }
    return (size_t)n;
}

static pseg_status elements_of(ProtobufCBinaryData **out, size_t *n, pseg_arena *a,
                               const request *q, size_t k, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const input *in = q->inputs[k];

    if (strcmp(in->datatype, "BYTES") != 0)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s is of datatype \"%.20s\"; it must be BYTES",
                  in->name, in->datatype);
    if (in->n_parameters)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s has a parameter \"%.40s\"; inputs have none",
                  in->name, in->parameters[0]->key);
    if (q->n_raw_input_contents && in->contents && in->contents->n_bytes_contents)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "%s has contents, and raw_input_contents besides; give one of them", in->name);
    if (q->n_raw_input_contents) {
        PSEG_TRY(oip_split_bytes(out, n, a, &q->raw_input_contents[k], MAX_ELEMENTS, err));
    } else if (in->contents) {
        *out = in->contents->bytes_contents;
        *n = in->contents->n_bytes_contents;
    }
    if (count_of(in) != *n)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "%s has %zu elements, which is not what its shape says", in->name, *n);
out:
    return rc;
}

/* ---- inputs ---- */

/* Among the inputs; NONE: not there. */
typedef struct places {
    size_t image, prompts;
} places;

static pseg_status take_prompts(Pseg__V1__JobSpec *spec, pseg_arena *a,
                                const ProtobufCBinaryData *texts, size_t n, size_t at,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    Pseg__V1__Prompt *prompts = pseg_arena_calloc(a, n, sizeof *prompts);

    spec->prompts = pseg_arena_calloc(a, n, sizeof *spec->prompts);
    if (!prompts || !spec->prompts)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the prompts");
    for (size_t i = 0; i < n; i++) {
        const char *text = texts[i].len ? (const char *)texts[i].data : "";
        if (memchr(text, '\0', texts[i].len) || !pseg_utf8_is_valid(text, texts[i].len))
            FAIL_AT(PSEG_R_PROMPT_NOT_TEXT, (err, "inputs[%zu].contents[%zu]", at, i),
                    "prompt %zu is not text: it must be UTF-8 without NUL", i);
        pseg__v1__prompt__init(&prompts[i]);
        prompts[i].text = pseg_arena_strndup(a, text, texts[i].len);
        if (!prompts[i].text)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the prompts");
        spec->prompts[spec->n_prompts++] = &prompts[i];
    }
out:
    return rc;
}

static pseg_status take_input(oip_request *out, places *at, pseg_arena *a, const request *q,
                              size_t k, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *name = q->inputs[k]->name;
    bool is_image = strcmp(name, "IMAGE") == 0;
    size_t *place = is_image ? &at->image : &at->prompts, n = 0;
    ProtobufCBinaryData *elements = NULL;

    if (!is_image && strcmp(name, "PROMPTS") != 0)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "there is no input \"%.60s\"; there are IMAGE and PROMPTS", name);
    if (*place != NONE)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s is there twice", name);
    *place = k;
    PSEG_TRY(elements_of(&elements, &n, a, q, k, err));
    if (!is_image) {
        PSEG_TRY(take_prompts(out->spec, a, elements, n, k, err));
        goto out;
    }
    if (n != 1)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "IMAGE has %zu elements; it is one encoded image, and each further one a request "
                  "of its own",
                  n);
    if (out->spec->image_case != PSEG__V1__JOB_SPEC__IMAGE__NOT_SET)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "there are both IMAGE and the parameter image_sha256; leave one out");
    out->spec->image_case = PSEG__V1__JOB_SPEC__IMAGE_CONTENT;
    out->spec->content = elements[0];
out:
    return rc;
}

/* ---- parameters ---- */

typedef Inference__InferParameter parameter;

/* p: NULL where a map's entry has no value. */
static bool is_text(const parameter *p)
{
    return p &&
           p->parameter_choice_case == INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM;
}

static bool number_of(double *out, const parameter *p)
{
    char *end;

    switch (p ? p->parameter_choice_case : 0) {
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM:
        *out = (double)p->int64_param;
        return true;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_UINT64_PARAM:
        *out = (double)p->uint64_param;
        return true;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_DOUBLE_PARAM:
        *out = p->double_param;
        return true;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM: /* clients without doubles */
        *out = strtod(p->string_param, &end);
        return end != p->string_param && !*end;
    default:
        return false;
    }
}

static pseg_status take_timeout(Pseg__V1__JobSpec *spec, pseg_arena *a, const parameter *p,
                                int64_t now_unix_us, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const double most = 7 * 86400e6;
    double us;

    if (!number_of(&us, p) || !(us >= 1 && us <= most)) {
        pseg_err_set(err, PSEG_R_INVALID_ARGUMENT, 0, PSEG_HERE,
                     "timeout must be a number of microseconds, 1 to %.0f", most);
        pseg_err_limit(err, "1..%.0f", most);
        PSEG_TRY(PSEG_EINVAL);
    }
    spec->deadline = timestamp_of(a, now_unix_us + (int64_t)us);
    if (!spec->deadline)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the job");
out:
    return rc;
}

static pseg_status take_encoding(oip_request *out, const parameter *p, pseg_err *err)
{
    static const struct {
        const char *name;
        int encoding;
    } known[] = {{"raw", MASK_ENCODING_RAW},
                 {"png", PSEG__V1__MASK_ENCODING__MASK_ENCODING_PNG},
                 {"rle", PSEG__V1__MASK_ENCODING__MASK_ENCODING_COCO_RLE}};
    const char *name = is_text(p) ? p->string_param : "(no text)";

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            out->format.encoding = (Pseg__V1__MaskEncoding)known[i].encoding;
            return PSEG_OK;
        }
    pseg_err_set(err, PSEG_R_MASK_ENCODING_UNSUPPORTED, 0, PSEG_HERE,
                 "mask_encoding \"%.40s\" is not raw, png or rle", name);
    pseg_err_value(err, "%.40s", name);
    pseg_err_limit(err, "raw, png, rle");
    return PSEG_EINVAL;
}

static pseg_status take_parameter(oip_request *out, pseg_arena *a, const char *key,
                                  const parameter *p, int64_t now_unix_us, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    double x;

    if (strcmp(key, "timeout") == 0) {
        PSEG_TRY(take_timeout(out->spec, a, p, now_unix_us, err));
    } else if (strcmp(key, "mask_threshold") == 0) {
        /* 0 is the default in a JobSpec, and a mistake where somebody says it. */
        out->spec->mask_threshold = number_of(&x, p) && x != 0 ? (float)x : -1;
        PSEG_TRY(pseg_check_threshold(out->spec->mask_threshold, "parameters.mask_threshold", err));
    } else if (strcmp(key, "mask_encoding") == 0) {
        PSEG_TRY(take_encoding(out, p, err));
    } else if (strcmp(key, "image_sha256") == 0 && is_text(p)) {
        out->spec->image_case = PSEG__V1__JOB_SPEC__IMAGE_SHA256;
        out->spec->sha256 = p->string_param;
    } else if (strcmp(key, "triton_enable_empty_final_response") == 0 &&
               p->parameter_choice_case ==
                   INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_BOOL_PARAM) {
        /* Triton's clients say with each call whether a stream of answers is to end with an empty
         * one. There is one answer here. */
    } else {
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "there is no parameter \"%.40s\" of this type; there are mask_encoding, "
                  "mask_threshold, timeout and, as text, image_sha256",
                  key);
    }
out:
    return rc;
}

/* ---- outputs ---- */

static pseg_status take_output(oip_request *out, const request *q, size_t k, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const Inference__ModelInferRequest__InferRequestedOutputTensor *t = q->outputs[k];
    int which = 0;

    while (which < OIP_N_OUTPUTS && strcmp(t->name, oip_output_names[which]) != 0)
        which++;
    if (which == OIP_N_OUTPUTS)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "there is no output \"%.60s\"; there are MASKS, IOU and BOXES", t->name);
    for (size_t i = 0; i < out->n_outputs; i++)
        if ((int)out->outputs[i] == which)
            PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0, "%s is asked for twice", t->name);
    if (t->n_parameters)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "%s has a parameter \"%.40s\"; outputs have none, the request has mask_encoding",
                  t->name, t->parameters[0]->key);
    if (which == OIP_MASKS)
        out->masks_at = k;
    out->outputs[out->n_outputs++] = (oip_output)which;
out:
    return rc;
}

/* ---- the request ---- */

pseg_status oip_check_version(const char *version, const char *field, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (*version && strcmp(version, OIP_VERSION) != 0) {
        rc = pseg_err_set(err, PSEG_R_MODEL_UNKNOWN, 0, PSEG_HERE,
                          "no model has a version \"%.40s\"; leave it out, or say " OIP_VERSION,
                          version);
        pseg_err_field(err, "%s", field);
        pseg_err_value(err, "%.40s", version);
        pseg_err_limit(err, OIP_VERSION);
    }
    return rc;
}

/* Whoever sent tensors knows no JobSpec: its fields by the names of what they came from. */
static void rename_field(pseg_err *err, const places *at)
{
    char path[sizeof err->field];
    size_t i;

    snprintf(path, sizeof path, "%s", err->field);
    err->field[0] = '\0';
    if (sscanf(path, "job.prompts[%zu]", &i) == 1)
        pseg_err_field(err, "inputs[%zu].contents[%zu]", at->prompts, i);
    else if (strcmp(path, "job.prompts") == 0)
        pseg_err_field(err, "inputs[%zu]", at->prompts);
    else if (strcmp(path, "job.content") == 0)
        pseg_err_field(err, "inputs[%zu]", at->image);
    else if (strcmp(path, "job.sha256") == 0)
        pseg_err_field(err, "parameters.image_sha256");
    else if (strcmp(path, "job.model") == 0)
        pseg_err_field(err, "model_name");
}

static pseg_status check(const Pseg__V1__JobSpec *spec, const places *at, int64_t now_unix_us,
                         pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (spec->image_case == PSEG__V1__JOB_SPEC__IMAGE__NOT_SET)
        FAIL_AT(PSEG_R_IMAGE_MISSING, (err, "inputs"),
                "there is no input IMAGE, and no parameter image_sha256 of an uploaded one");
    if (at->prompts == NONE)
        FAIL_AT(PSEG_R_PROMPT_MISSING, (err, "inputs"),
                "there is no input PROMPTS; give at least one phrase");
    rc = pseg_check_spec(spec, "job", now_unix_us, err);
    if (rc != PSEG_OK)
        rename_field(err, at);
out:
    return rc;
}

pseg_status oip_read_request(oip_request *out, pseg_arena *a, const request *q, int64_t now_unix_us,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    places at = {NONE, NONE};

    *out = (oip_request){.spec = pseg_arena_calloc(a, 1, sizeof *out->spec)};
    pseg__v1__mask_format__init(&out->format);
    out->format.encoding = (Pseg__V1__MaskEncoding)MASK_ENCODING_RAW;
    if (!out->spec)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the job");
    pseg__v1__job_spec__init(out->spec);
    out->spec->model = q->model_name;
    PSEG_TRY(oip_check_version(q->model_version, "model_version", err));
    if (q->n_raw_input_contents && q->n_raw_input_contents != q->n_inputs)
        FAIL_AT(PSEG_R_INVALID_ARGUMENT, (err, "raw_input_contents"),
                "there are %zu raw_input_contents and %zu inputs; give one for each, or none",
                q->n_raw_input_contents, q->n_inputs);
    for (size_t i = 0; i < q->n_parameters && rc == PSEG_OK; i++) {
        rc = take_parameter(out, a, q->parameters[i]->key, q->parameters[i]->value, now_unix_us,
                            err);
        if (rc != PSEG_OK)
            pseg_err_field(err, "parameters.%.40s", q->parameters[i]->key);
    }
    for (size_t i = 0; i < q->n_inputs && rc == PSEG_OK; i++) {
        rc = take_input(out, &at, a, q, i, err);
        if (rc != PSEG_OK)
            pseg_err_field(err, "inputs[%zu]", i);
    }
    for (size_t i = 0; i < q->n_outputs && rc == PSEG_OK; i++) {
        rc = take_output(out, q, i, err);
        if (rc != PSEG_OK)
            pseg_err_field(err, "outputs[%zu]", i);
    }
    PSEG_TRY(rc);
    for (; !q->n_outputs && out->n_outputs < OIP_N_OUTPUTS; out->n_outputs++)
        out->outputs[out->n_outputs] = (oip_output)out->n_outputs;
    PSEG_TRY(check(out->spec, &at, now_unix_us, err));
out:
    return rc;
}
