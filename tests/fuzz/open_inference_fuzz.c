/* Any bytes as a ModelInferRequest: what is taken is a job as CreateJob would take it, of text. */
#include "common/base/arena.h"
#include "common/base/utf8.h"
#include "scheduler/service/internal.h"
#include "scheduler/service/open_inference.h"
#include "scheduler/service/validate.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const oip_request *r)
{
    if (r->spec->n_prompts < 1 || r->spec->n_prompts > PSEG_MAX_PROMPTS || r->n_outputs < 1 ||
        r->n_outputs > OIP_N_OUTPUTS)
        abort();
    for (size_t i = 0; i < r->spec->n_prompts; i++)
        if (!pseg_utf8_is_valid(r->spec->prompts[i]->text, strlen(r->spec->prompts[i]->text)))
            abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    pseg_arena *a = pseg_arena_new((size_t)64 << 20);
    pseg_err e = PSEG_ERR_INIT;
    oip_request r;

    if (!a)
        return 0;
    ProtobufCAllocator alloc = arena_allocator(a);
    Inference__ModelInferRequest *q = inference__model_infer_request__unpack(&alloc, size, data);
    if (q && oip_read_request(&r, a, q, 1700000000000000, &e) == PSEG_OK)
        check(&r);
    else if (q && (e.code == PSEG_OK || !*e.msg))
        abort();
    pseg_arena_free(a);
    return 0;
}
