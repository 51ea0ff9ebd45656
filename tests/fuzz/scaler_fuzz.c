/* Any bytes as KEDA's description of what it scales: what passes is a model's name and times within
 * their limits, what does not is one line. */
#include "common/base/arena.h"
#include "common/base/utf8.h"
#include "common/rpc/wire.h"
#include "scheduler/service/scale_aim.h"
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

static bool is_within(double x, double min)
{
    return x >= min && x <= 86400;
}

static void check(const Externalscaler__ScaledObjectRef *q)
{
    pseg_err e = PSEG_ERR_INIT, none = PSEG_ERR_INIT;
    scale_aim a;

    if (scale_aim_of(&a, q, "usual", &e) != PSEG_OK) {
        if (!*e.msg || strchr(e.msg, '\n') || !pseg_utf8_is_valid(e.msg, strlen(e.msg)))
            abort();
        return;
    }
    if (pseg_check_model(a.model, "m", &none) != PSEG_OK || !is_within(a.target.target_s, 0.1) ||
        !is_within(a.target.startup_s, 0) || !is_within(a.target.assumed_s, 0.001))
        abort();
    const pseg_queue_due due = {3, 1};
    pseg_queue_backlog b = {.live = 7, .workers = 1, .cost_us = 1000, .due = &due, .n_due = 1};
    double s = pseg_scale_backlog_s(&b, &a.target);
    if (!(s > 0) || !(s <= 7 * a.target.target_s * (1 + 1e-9)))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const ProtobufCMessageDescriptor *d = &externalscaler__scaled_object_ref__descriptor;
    pseg_arena *arena = pseg_arena_new(1 << 20);
    ProtobufCAllocator from = {allocate, leave, arena};
    pseg_err e = PSEG_ERR_INIT;

    if (arena && pseg_rpc_check_strings(d, data, size, NULL, &e) == PSEG_OK) {
        ProtobufCMessage *m = protobuf_c_message_unpack(d, &from, size, data);
        if (m)
            check((const void *)m);
    }
    check(NULL);
    pseg_arena_free(arena);
    return 0;
}
