#include "common/rpc/wire.h"

#include "common/base/utf8.h"

#include <stdio.h>
#include <string.h>

typedef struct cursor {
    const uint8_t *p, *end;
} cursor;

/* Where the walk is: a chain from the innermost field to the request, on the stack. */
typedef struct place {
    const struct place *outer;
    const ProtobufCFieldDescriptor *field;
    cursor message;       /* that the field stands in */
    const uint8_t *start; /* of the field */
} place;

static bool read_varint(cursor *c, uint64_t *out)
{
    *out = 0;
    for (int shift = 0; shift < 70 && c->p < c->end; shift += 7) {
        uint8_t b = *c->p++;
        if (shift < 64)
            *out |= (uint64_t)(b & 0x7F) << shift;
        if (!(b & 0x80))
            return true;
    }
    return false;
}

/* The next field: its number, and the bytes of a length-delimited one (else body->p is NULL). */
static bool read_field(cursor *c, uint64_t *number, cursor *body)
{
    uint64_t key, n;

    *body = (cursor){NULL, NULL};
    if (!read_varint(c, &key))
        return false;
    *number = key >> 3;
    switch (key & 7) {
    case 0:
        return read_varint(c, &n);
    case 1:
        n = 8;
        break;
    case 5:
        n = 4;
        break;
    case 2:
        if (!read_varint(c, &n) || n > (uint64_t)(c->end - c->p))
            return false;
        *body = (cursor){c->p, c->p + n};
        break;
    default: /* groups are no part of proto3 */
        return false;
    }
    if (n > (uint64_t)(c->end - c->p))
        return false;
    c->p += n;
    return true;
}

/* How many fields of this number stand before the place. */
static size_t index_of(const place *at)
{
    cursor c = at->message, body;
    uint64_t number;
    size_t index = 0;

    while (c.p < at->start && read_field(&c, &number, &body))
        index += number == at->field->id;
    return index;
}

static void write_path(pseg_err *err, const place *at)
{
    const place *chain[PSEG_RPC_MAX_DEPTH + 2];
    size_t depth = 0, used = 0;
    char path[sizeof err->field];

    for (; at; at = at->outer)
        chain[depth++] = at;
    path[0] = '\0';
    while (depth-- > 0 && used < sizeof path) {
        const place *p = chain[depth];
        used += (size_t)snprintf(path + used, sizeof path - used, "%s%s", used ? "." : "",
                                 p->field->name);
        if (p->field->label == PROTOBUF_C_LABEL_REPEATED && used < sizeof path)
            used += (size_t)snprintf(path + used, sizeof path - used, "[%zu]", index_of(p));
    }
    pseg_err_field(err, "%s", path);
}

static pseg_status check_string(const ProtobufCMessageDescriptor *type, const place *at,
                                cursor text, pseg_rpc_text_reason_fn text_reason, pseg_err *err)
{
    size_t len = (size_t)(text.end - text.p);
    const char *fault = NULL;

    if (!pseg_utf8_is_valid((const char *)text.p, len))
        fault = "is not UTF-8; encode text as UTF-8";
    else if (memchr(text.p, '\0', len))
        fault = "holds a NUL character; remove it";
    if (!fault)
        return PSEG_OK;
    pseg_reason reason = text_reason ? text_reason(type, at->field) : PSEG_R_REQUEST_MALFORMED;
    pseg_status rc =
        pseg_err_set(err, reason, 0, PSEG_HERE, "a string of %zu bytes %s", len, fault);
    pseg_err_value(err, "%zu bytes", len);
    pseg_err_limit(err, "UTF-8 without NUL");
    write_path(err, at);
    return rc;
}

/* Recursion is bounded by PSEG_RPC_MAX_DEPTH. */
static pseg_status walk(const ProtobufCMessageDescriptor *type, cursor message, const place *outer,
                        int depth, pseg_rpc_text_reason_fn text_reason, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    cursor c = message, body;
    uint64_t number;

    if (depth > PSEG_RPC_MAX_DEPTH)
        PSEG_FAIL(PSEG_R_REQUEST_MALFORMED, 0, "messages are nested deeper than %d levels",
                  PSEG_RPC_MAX_DEPTH);
    while (c.p < c.end) {
        const uint8_t *start = c.p;
        if (!read_field(&c, &number, &body))
            PSEG_FAIL(PSEG_R_REQUEST_MALFORMED, 0, "the bytes are no valid %s", type->name);
        if (!body.p || number > UINT32_MAX)
            continue;
        const ProtobufCFieldDescriptor *f =
            protobuf_c_message_descriptor_get_field(type, (unsigned)number);
        if (!f || (f->type != PROTOBUF_C_TYPE_STRING && f->type != PROTOBUF_C_TYPE_MESSAGE))
            continue;
        place at = {outer, f, message, start};
        if (f->type == PROTOBUF_C_TYPE_MESSAGE)
            PSEG_TRY(walk(f->descriptor, body, &at, depth + 1, text_reason, err));
        else
            PSEG_TRY(check_string(type, &at, body, text_reason, err));
    }
out:
    return rc;
}

pseg_status pseg_rpc_check_strings(const ProtobufCMessageDescriptor *type, const uint8_t *data,
                                   size_t len, pseg_rpc_text_reason_fn text_reason, pseg_err *err)
{
    return walk(type, (cursor){data, data + len}, NULL, 0, text_reason, err);
}
