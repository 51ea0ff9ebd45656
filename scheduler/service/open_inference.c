/* inference.GRPCInferenceService, the Open Inference Protocol: what the server and its models are.
 */
#include "scheduler/service/open_inference.h"
#include "common/base/version.h"
#include "scheduler/service/internal.h"
#include "scheduler/service/open_inference_calls.h"

#include <string.h>

/* After so long a silence of Redis nothing is taken. */
enum { SILENCE_MS = 5000 };

static char *unconst(const char *s)
{
    return (char *)(uintptr_t)s;
}

/* ---- the server ---- */

static void server_live(pseg_rpc_call *c, const void *msg)
{
    Inference__ServerLiveResponse out = INFERENCE__SERVER_LIVE_RESPONSE__INIT;

    (void)msg;
    out.live = true;
    pseg_rpc_reply(c, &out.base);
}

static void server_ready(pseg_rpc_call *c, const void *msg)
{
    Inference__ServerReadyResponse out = INFERENCE__SERVER_READY_RESPONSE__INIT;

    (void)msg;
    out.ready = pseg_queue_silence_ms(service_of(c)->queue) < SILENCE_MS;
    pseg_rpc_reply(c, &out.base);
}

static void server_metadata(pseg_rpc_call *c, const void *msg)
{
    Inference__ServerMetadataResponse out = INFERENCE__SERVER_METADATA_RESPONSE__INIT;

    (void)msg;
    out.name = unconst("pseg");
    out.version = unconst(PSEG_VERSION);
    pseg_rpc_reply(c, &out.base);
}

/* ---- models ---- */

static bool is_served(const pseg_queue_reply *r, const char *model)
{
    for (size_t i = 0; i < r->n_workers; i++)
        if (strcmp(r->workers[i].model, model) == 0)
            return true;
    return false;
}

/* Asks who works; the model's name is kept in the call's state. */
static void ask_workers(pseg_rpc_call *c, const char *name, const char *version,
                        void (*then)(pseg_rpc_call *, pseg_queue_reply *))
{
    pseg_err e = PSEG_ERR_INIT;

    if (oip_check_version(version, "version", &e) != PSEG_OK) {
        pseg_rpc_fail(c, &e);
        return;
    }
    call_state *state = state_of(c);
    op *o = state ? op_new(c, then) : NULL;
    if (!o) {
        fail_no_memory(c);
        return;
    }
    state->own = *name ? name : service_of(c)->opt.default_model;
    pseg_queue_workers(service_of(c)->queue, op_done, o);
}

static void ready_known(pseg_rpc_call *c, pseg_queue_reply *r)
{
    Inference__ModelReadyResponse out = INFERENCE__MODEL_READY_RESPONSE__INIT;

    if (r->err.code != PSEG_OK) {
        pseg_rpc_fail(c, &r->err);
        return;
    }
    out.ready = is_served(r, state_of(c)->own);
    pseg_rpc_reply(c, &out.base);
}

static void model_ready(pseg_rpc_call *c, const void *msg)
{
    const Inference__ModelReadyRequest *q = msg;

    ask_workers(c, q->name, q->version, ready_known);
}

/* What every model takes and gives; -1: any size. */
static const struct {
    const char *name, *datatype;
    Inference__DataType type;
    size_t n_shape;
    int64_t shape[3];
} tensors[] = {{"IMAGE", "BYTES", INFERENCE__DATA_TYPE__TYPE_STRING, 1, {1}},
               {"PROMPTS", "BYTES", INFERENCE__DATA_TYPE__TYPE_STRING, 1, {-1}},
               {"MASKS", "UINT8", INFERENCE__DATA_TYPE__TYPE_UINT8, 3, {-1, -1, -1}},
               {"IOU", "FP32", INFERENCE__DATA_TYPE__TYPE_FP32, 1, {-1}},
               {"BOXES", "INT32", INFERENCE__DATA_TYPE__TYPE_INT32, 2, {-1, 4}}};
enum { N_INPUTS = 2, N_TENSORS = sizeof tensors / sizeof *tensors };

static int64_t *shape_of(size_t i)
{
    return (int64_t *)(uintptr_t)tensors[i].shape;
}

/* The model that was asked for; NULL, with the call failed, if nobody serves it. */
static const char *served_or_fail(pseg_rpc_call *c, const pseg_queue_reply *r)
{
    const char *model = state_of(c)->own;
    pseg_err e = r->err;

    if (e.code == PSEG_OK && !is_served(r, model)) {
        pseg_err_set(&e, PSEG_R_MODEL_UNKNOWN, 0, PSEG_HERE,
                     "no live worker serves the model \"%.63s\"; ListModels lists those served",
                     model);
        pseg_err_field(&e, "name");
        pseg_err_resource(&e, "pseg.v1.Model", model);
    }
    if (e.code == PSEG_OK)
        return model;
    pseg_rpc_fail(c, &e);
    return NULL;
}

static void metadata_known(pseg_rpc_call *c, pseg_queue_reply *r)
{
    const char *model = served_or_fail(c, r);
    Inference__ModelMetadataResponse out = INFERENCE__MODEL_METADATA_RESPONSE__INIT;
    Inference__ModelMetadataResponse__TensorMetadata all[N_TENSORS], *refs[N_TENSORS];
    char *versions[] = {unconst(OIP_VERSION)};

    if (!model)
        return;
    for (size_t i = 0; i < N_TENSORS; i++) {
        inference__model_metadata_response__tensor_metadata__init(&all[i]);
        all[i].name = unconst(tensors[i].name);
        all[i].datatype = unconst(tensors[i].datatype);
        all[i].n_shape = tensors[i].n_shape;
        all[i].shape = shape_of(i);
        refs[i] = &all[i];
    }
    out.name = unconst(model);
    out.platform = unconst("pseg");
    out.n_versions = 1;
    out.versions = versions;
    out.n_inputs = N_INPUTS;
    out.inputs = refs;
    out.n_outputs = N_TENSORS - N_INPUTS;
    out.outputs = refs + N_INPUTS;
    pseg_rpc_reply(c, &out.base);
}

static void config_known(pseg_rpc_call *c, pseg_queue_reply *r)
{
    const char *model = served_or_fail(c, r);
    Inference__ModelConfigResponse out = INFERENCE__MODEL_CONFIG_RESPONSE__INIT;
    Inference__ModelConfig config = INFERENCE__MODEL_CONFIG__INIT;
    Inference__ModelInput in[N_INPUTS], *in_refs[N_INPUTS];
    Inference__ModelOutput to[N_TENSORS - N_INPUTS], *to_refs[N_TENSORS - N_INPUTS];

    if (!model)
        return;
    for (size_t i = 0; i < N_INPUTS; i++) {
        inference__model_input__init(&in[i]);
        in[i].name = unconst(tensors[i].name);
        in[i].data_type = tensors[i].type;
        in[i].n_dims = tensors[i].n_shape;
        in[i].dims = shape_of(i);
        in_refs[i] = &in[i];
    }
    for (size_t i = 0; i < N_TENSORS - N_INPUTS; i++) {
        inference__model_output__init(&to[i]);
        to[i].name = unconst(tensors[N_INPUTS + i].name);
        to[i].data_type = tensors[N_INPUTS + i].type;
        to[i].n_dims = tensors[N_INPUTS + i].n_shape;
        to[i].dims = shape_of(N_INPUTS + i);
        to_refs[i] = &to[i];
    }
    config.name = unconst(model);
    config.platform = unconst("pseg");
    config.n_input = N_INPUTS;
    config.input = in_refs;
    config.n_output = N_TENSORS - N_INPUTS;
    config.output = to_refs;
    out.config = &config;
    pseg_rpc_reply(c, &out.base);
}

static void model_config(pseg_rpc_call *c, const void *msg)
{
    const Inference__ModelConfigRequest *q = msg;

    ask_workers(c, q->name, q->version, config_known);
}

static void model_metadata(pseg_rpc_call *c, const void *msg)
{
    const Inference__ModelMetadataRequest *q = msg;

    ask_workers(c, q->name, q->version, metadata_known);
}

#define METHOD(name, kind, type, ...)                                    \
    {                                                                    \
        .path = "/inference.GRPCInferenceService/" name, .flags = kind,  \
        .request = &inference__##type##_request__descriptor, __VA_ARGS__ \
    }

const pseg_rpc_method pseg_open_inference_methods[] = {
    METHOD("ServerLive", PSEG_RPC_UNARY | PSEG_RPC_PUBLIC, server_live, .on_message = server_live),
    METHOD("ServerReady", PSEG_RPC_UNARY | PSEG_RPC_PUBLIC, server_ready,
           .on_message = server_ready),
    METHOD("ModelReady", PSEG_RPC_UNARY, model_ready, .on_message = model_ready),
    METHOD("ServerMetadata", PSEG_RPC_UNARY, server_metadata, .on_message = server_metadata),
    METHOD("ModelMetadata", PSEG_RPC_UNARY, model_metadata, .on_message = model_metadata),
    METHOD("ModelConfig", PSEG_RPC_UNARY, model_config, .on_message = model_config),
    METHOD("ModelInfer", PSEG_RPC_UNARY, model_infer, .on_message = oip_infer,
           .on_drain = oip_infer_drain, .on_end = oip_infer_end),
    {0}};
