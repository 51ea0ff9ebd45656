/* The linker puts this before the engine's own function: --wrap=pseg_op_run. */
#include "tests/golden/fidelity_reference.h"

#include "common/base/alloc.h"
#include "tests/ops/reference.h"
#include "worker/ops/table.h"

static bool uses_references;

void fidelity_use_references(bool yes)
{
    uses_references = yes;
}

pseg_status __real_pseg_op_run(pseg_stream *s, const pseg_op *op, const pseg_op_args *a,
                               pseg_err *err);
pseg_status __wrap_pseg_op_run(pseg_stream *s, const pseg_op *op, const pseg_op_args *a,
                               pseg_err *err);

static pseg_status read_slot(pseg_tensor *to, size_t *bytes, pseg_stream *s, const pseg_op *op,
                             const pseg_op_args *a, size_t slot, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_tensor *from = &a->t[slot];

    _Static_assert(sizeof(float) == sizeof(int32_t), "the types of slots");
    PSEG_REQUIRE(from->type == PSEG_F32 || op->slots[slot].type == PSEG_I32, "float32");
    *bytes = op->extent(a, slot) * sizeof(float);
    to->host = pseg_malloc(*bytes);
    if (!to->host)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %s", op->name);
    PSEG_TRY(pseg_mem_read(to->host, s, from->mem, from->off * sizeof(float), *bytes, err));
out:
    return rc;
}

pseg_status __wrap_pseg_op_run(pseg_stream *s, const pseg_op *op, const pseg_op_args *a,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_op_args host = *a;
    size_t bytes[PSEG_OP_MAX_SLOTS] = {0};

    if (!uses_references)
        return __real_pseg_op_run(s, op, a, err);
    for (size_t i = 0; i < op->n_slots; i++)
        host.t[i] = (pseg_tensor){.type = a->t[i].type};
    PSEG_TRY(pseg_op_check(op, a, err));
    for (size_t i = 0; i < op->n_slots; i++)
        if (a->t[i].mem)
            PSEG_TRY(read_slot(&host.t[i], &bytes[i], s, op, a, i, err));
    PSEG_TRY(pseg_stream_finish(s, err));
    if (!reference_run(op, &host))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %s", op->name);
    PSEG_TRY(
        pseg_mem_write(s, a->t[0].mem, a->t[0].off * sizeof(float), host.t[0].host, bytes[0], err));
    PSEG_TRY(pseg_stream_finish(s, err));
out:
    for (size_t i = 0; i < op->n_slots; i++)
        pseg_free(host.t[i].host);
    return rc;
}
