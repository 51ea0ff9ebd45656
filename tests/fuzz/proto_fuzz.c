/* Any bytes as each request of the API: the look before decoding, the decoding, the checks. What
 * passes the look holds no string that is not UTF-8, wherever it hides. */
#include "common/base/arena.h"
#include "common/base/utf8.h"
#include "common/rpc/wire.h"
#include "pseg/v1/admin.pb-c.h"
#include "pseg/v1/pseg.pb-c.h"
#include "scheduler/service/service.h"
#include "scheduler/service/validate.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void *allocate(void *arena, size_t n)
{
    return pseg_arena_alloc(arena, n);
}

static void leave(void *arena, void *p)
{
    (void)arena;
    (void)p;
}

static void check_text(const char *s)
{
    if (!s || !pseg_utf8_is_valid(s, strlen(s)))
        abort();
}

/* Every string of a message, and of the messages in it. */
static void check_message(const ProtobufCMessage *m)
{
    for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        const char *at = (const char *)m + f->offset,
                   *count = (const char *)m + f->quantifier_offset;
        bool is_repeated = f->label == PROTOBUF_C_LABEL_REPEATED;
        size_t n = is_repeated ? *(const size_t *)(const void *)count : 1;

        if (f->type != PROTOBUF_C_TYPE_STRING && f->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        if ((f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) &&
            *(const uint32_t *)(const void *)count != f->id)
            continue;
        void *const *items =
            is_repeated ? *(void *const *const *)(const void *)at : (void *const *)(const void *)at;
        for (size_t k = 0; k < n; k++)
            if (f->type == PROTOBUF_C_TYPE_STRING)
                check_text(items[k]);
            else if (items[k])
                check_message(items[k]);
    }
}

static void check(pseg_status rc, const pseg_err *e)
{
    if (rc == PSEG_OK)
        return;
    if (rc > 0 || e->code != rc || !e->msg[0] || strchr(e->msg, '\n'))
        abort();
    check_text(e->msg);
    check_text(e->field);
    check_text(e->value);
    check_text(e->limit);
}

#define CHECK(call)                 \
    do {                            \
        pseg_err e = PSEG_ERR_INIT; \
        pseg_status rc_ = (call);   \
        check(rc_, &e);             \
    } while (0)

static void check_job(const Pseg__V1__JobSpec *spec)
{
    pseg_err e = PSEG_ERR_INIT;

    if (!spec)
        return;
    pseg_status rc = pseg_check_spec(spec, "job", INT64_C(1700000000000000), &e);
    check(rc, &e);
    if (rc == PSEG_OK && (spec->n_prompts == 0 || spec->n_prompts > PSEG_MAX_PROMPTS ||
                          !(spec->mask_threshold >= 0 && spec->mask_threshold < 1)))
        abort();
}

static void check_name(const char *name)
{
    const char *id = NULL;
    pseg_err e = PSEG_ERR_INIT;
    pseg_status rc = pseg_check_job_name(&id, name, &e);

    check(rc, &e);
    if (rc == PSEG_OK && strlen(id) != PSEG_JOB_ID_LEN)
        abort();
}

static void use(const ProtobufCMessage *m)
{
    const ProtobufCMessageDescriptor *d = m->descriptor;

    if (d == &pseg__v1__create_job_request__descriptor) {
        const Pseg__V1__CreateJobRequest *q = (const void *)m;
        check_job(q->job);
        CHECK(pseg_check_request_id(q->request_id, &e));
    } else if (d == &pseg__v1__segment_request__descriptor) {
        const Pseg__V1__SegmentRequest *q = (const void *)m;
        check_job(q->job);
        CHECK(pseg_check_format(q->format, &e));
    } else if (d == &pseg__v1__upload_image_request__descriptor) {
        const Pseg__V1__UploadImageRequest *q = (const void *)m;
        if (q->part_case == PSEG__V1__UPLOAD_IMAGE_REQUEST__PART_HEADER && q->header)
            CHECK(pseg_check_sha256(q->header->sha256, "header.sha256", &e));
        if (q->part_case == PSEG__V1__UPLOAD_IMAGE_REQUEST__PART_CHUNK)
            CHECK(pseg_check_image_magic(q->chunk.data, q->chunk.len, "chunk", &e));
    } else if (d == &pseg__v1__get_job_request__descriptor) {
        check_name(((const Pseg__V1__GetJobRequest *)(const void *)m)->name);
    } else if (d == &pseg__v1__list_jobs_request__descriptor) {
        const Pseg__V1__ListJobsRequest *q = (const void *)m;
        CHECK(pseg_check_states(q->states, q->n_states, &e));
        CHECK(pseg_check_page(q->page_size, PSEG_MAX_PAGE_SIZE, q->page_token, &e));
    } else if (d == &pseg__v1__fetch_masks_request__descriptor) {
        const Pseg__V1__FetchMasksRequest *q = (const void *)m;
        check_name(q->name);
        CHECK(pseg_check_format(q->format, &e));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ProtobufCMessageDescriptor *const types[] = {
        &pseg__v1__create_job_request__descriptor,
        &pseg__v1__segment_request__descriptor,
        &pseg__v1__upload_image_request__descriptor,
        &pseg__v1__batch_check_images_request__descriptor,
        &pseg__v1__get_job_request__descriptor,
        &pseg__v1__wait_job_request__descriptor,
        &pseg__v1__cancel_job_request__descriptor,
        &pseg__v1__list_jobs_request__descriptor,
        &pseg__v1__fetch_masks_request__descriptor,
        &pseg__v1__list_models_request__descriptor,
        &pseg__v1__list_quarantined_jobs_request__descriptor,
        &pseg__v1__get_quarantined_job_request__descriptor};

    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        pseg_err e = PSEG_ERR_INIT;
        pseg_status rc = pseg_rpc_check_strings(types[i], data, size, pseg_service_text_reason, &e);
        check(rc, &e);
        if (rc != PSEG_OK)
            continue;
        pseg_arena *a = pseg_arena_new((size_t)64 << 20);
        ProtobufCAllocator alloc = {allocate, leave, a};
        ProtobufCMessage *m = a ? protobuf_c_message_unpack(types[i], &alloc, size, data) : NULL;
        if (m) {
            check_message(m);
            use(m);
        }
        pseg_arena_free(a);
    }
    return 0;
}
