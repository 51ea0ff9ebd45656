/* Messages to bytes and back. */
#include "common/rpc/internal.h"

#include "common/rpc/wire.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>

grpc_slice pseg_rpc_pack(const ProtobufCMessage *m)
{
    grpc_slice s = grpc_slice_malloc(protobuf_c_message_get_packed_size(m));

    protobuf_c_message_pack(m, GRPC_SLICE_START_PTR(s));
    return s;
}

grpc_byte_buffer *pseg_rpc_buffer(grpc_slice s)
{
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(&s, 1);

    grpc_slice_unref(s);
    return b;
}

bool pseg_rpc_flatten(grpc_byte_buffer *b, grpc_slice *out)
{
    grpc_byte_buffer_reader r;

    if (b->type == GRPC_BB_RAW && b->data.raw.slice_buffer.count == 1) { /* no copy */
        *out = grpc_slice_ref(b->data.raw.slice_buffer.slices[0]);
        return true;
    }
    if (!grpc_byte_buffer_reader_init(&r, b))
        return false;
    *out = grpc_byte_buffer_reader_readall(&r);
    grpc_byte_buffer_reader_destroy(&r);
    return true;
}

/* protobuf-c allocates up to sixty times what hostile input holds; this bounds it. */
typedef struct budget {
    pseg_arena *arena;
    size_t left;
} budget;

static void *budget_alloc(void *ud, size_t n)
{
    budget *b = ud;

    if (n > b->left)
        return NULL;
    b->left -= n;
    return pseg_arena_alloc(b->arena, n ? n : 1);
}

static void budget_free(void *ud, void *p)
{
    (void)ud;
    (void)p;
}

pseg_status pseg_rpc_unpack(ProtobufCMessage **out, const pseg_rpc_call *c, pseg_arena *arena,
                            const uint8_t *data, size_t len, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_rpc_server_options *o = &c->loop->server->options;
    const ProtobufCMessageDescriptor *type = c->row->method->request;
    budget b = {arena, len * PSEG_RPC_MEMORY_PER_BYTE + PSEG_RPC_MEMORY_PER_REQUEST};
    ProtobufCAllocator allocator = {budget_alloc, budget_free, &b};

    if (len > o->max_message_bytes) {
        rc = pseg_err_set(
            err, PSEG_R_REQUEST_TOO_LARGE, 0, PSEG_HERE,
            "a message of %zu bytes is over the limit of %zu; send large data in chunks", len,
            o->max_message_bytes);
        pseg_err_value(err, "%zu", len);
        pseg_err_limit(err, "%zu", o->max_message_bytes);
        goto out;
    }
    PSEG_TRY(pseg_rpc_check_strings(type, data, len, o->text_reason, err));
    *out = protobuf_c_message_unpack(type, &allocator, len, data);
    if (!*out)
        PSEG_FAIL(PSEG_R_REQUEST_MALFORMED, 0,
                  "the message is no %s, or would need over %zu bytes of memory", type->name,
                  len * PSEG_RPC_MEMORY_PER_BYTE + PSEG_RPC_MEMORY_PER_REQUEST);
out:
    return rc;
}
