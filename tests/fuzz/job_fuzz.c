/* Any bytes as the stored record of a job: first its specification, then its result (their lengths
 * are the input's first two bytes in 1/255 of the rest). What parses has a public form, which
 * survives the wire. */
#include "common/base/arena.h"
#include "scheduler/service/internal.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(pseg_arena *a, const pseg_job *j)
{
    pseg_err e = PSEG_ERR_INIT;
    Pseg__V1__Job *v = job_view(a, j, &e);

    if (!v) {
        if (e.reason != PSEG_R_JOB_CORRUPT && e.reason != PSEG_R_OUT_OF_MEMORY)
            abort();
        return;
    }
    size_t n = protobuf_c_message_get_packed_size(&v->base);
    uint8_t *packed = pseg_arena_alloc(a, n + 1);
    if (!packed)
        return;
    if (protobuf_c_message_pack(&v->base, packed) != n)
        abort();
    ProtobufCAllocator alloc = arena_allocator(a);
    Pseg__V1__Job *back = pseg__v1__job__unpack(&alloc, n, packed);
    if (back && (back->n_prompts != v->n_prompts || back->n_results != v->n_results ||
                 back->state != v->state || strcmp(back->name, v->name) != 0))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    size_t rest = size - 2, n = rest * data[0] / 255, m = (rest - n) * data[1] / 255;
    pseg_job j = {.id = "0123456789abcdef0123456789abcdef",
                  .tenant = "",
                  .request_id = "r",
                  .model = "scenes",
                  .worker = "w",
                  .message = "it broke",
                  .spec = {data + 2, n},
                  .result = {data + 2 + n, m},
                  .attempts = 1,
                  .created_unix_us = 1700000000000000};

    for (int state = PSEG_JOB_QUEUED; state <= PSEG_JOB_EXPIRED; state++) {
        pseg_arena *a = pseg_arena_new((size_t)64 << 20);
        j.state = (pseg_job_state)state;
        j.reason = state == PSEG_JOB_FAILED ? PSEG_R_IMAGE_UNDECODABLE : PSEG_R_NONE;
        if (a)
            check(a, &j);
        pseg_arena_free(a);
    }
    return 0;
}
