#include "worker/data/thrift.h"

#include <string.h>

enum { MAX_DEPTH = 32 };

static uint8_t take_byte(thrift *t)
{
    if (t->failed || t->at == t->end) {
        t->failed = true;
        return 0;
    }
    return *t->at++;
}

static uint64_t take_varint(thrift *t)
{
    uint64_t x = 0;

    for (int shift = 0; shift < 64; shift += 7) {
        uint8_t b = take_byte(t);
        x |= (uint64_t)(b & 0x7F) << shift;
        if (!(b & 0x80))
            return t->failed ? 0 : x;
    }
    t->failed = true;
    return 0;
}

static int64_t take_zigzag(thrift *t)
{
    uint64_t x = take_varint(t);

    return (int64_t)(x >> 1) ^ -(int64_t)(x & 1);
}

static void skip_bytes(thrift *t, uint64_t n)
{
    if (t->failed || n > (uint64_t)(t->end - t->at))
        t->failed = true;
    else
        t->at += n;
}

bool thrift_field(int16_t *id, thrift_type *type, thrift *t)
{
    uint8_t b = take_byte(t);
    int64_t next;

    if (t->failed || b == 0)
        return false;
    next = b >> 4 ? *id + (b >> 4) : take_zigzag(t);
    if (t->failed || next < 1 || next > INT16_MAX || (b & 15) > THRIFT_STRUCT) {
        t->failed = true;
        return false;
    }
    *id = (int16_t)next;
    *type = (thrift_type)(b & 15);
    return true;
}

int64_t thrift_int(thrift *t, thrift_type type)
{
    if (type == THRIFT_I8)
        return (int8_t)take_byte(t);
    if (type < THRIFT_I16 || type > THRIFT_I64) {
        t->failed = true;
        return 0;
    }
    return take_zigzag(t);
}

bool thrift_bool(thrift *t, thrift_type type)
{
    t->failed |= type != THRIFT_TRUE && type != THRIFT_FALSE;
    return type == THRIFT_TRUE;
}

const char *thrift_text(uint32_t *len, thrift *t, thrift_type type)
{
    const char *s;
    uint64_t n;

    *len = 0;
    t->failed |= type != THRIFT_BINARY;
    n = take_varint(t);
    s = (const char *)t->at;
    skip_bytes(t, n);
    if (t->failed || n > UINT32_MAX)
        return "";
    *len = (uint32_t)n;
    return s;
}

/* Head of a list or set. Each element takes a byte at least. */
static uint64_t take_head(thrift *t, thrift_type *of)
{
    uint8_t b = take_byte(t);
    uint64_t n = b >> 4 == 15 ? take_varint(t) : b >> 4;

    *of = (thrift_type)(b & 15);
    t->failed |= n > (uint64_t)(t->end - t->at);
    return t->failed ? 0 : n;
}

uint32_t thrift_list(thrift *t, thrift_type type, thrift_type of)
{
    thrift_type found;
    uint64_t n;

    t->failed |= type != THRIFT_LIST;
    n = take_head(t, &found);
    t->failed |= n && found != of;
    return t->failed || n > UINT32_MAX ? 0 : (uint32_t)n;
}

static void skip_map(thrift *t)
{
    uint64_t n = take_varint(t);
    uint8_t types = n ? take_byte(t) : 0;

    t->failed |= n > (uint64_t)(t->end - t->at);
    for (uint64_t i = 0; i < n && !t->failed; i++) {
        thrift_skip(t, (thrift_type)(types >> 4));
        thrift_skip(t, (thrift_type)(types & 15));
    }
}

/* Elements of a list: a bool takes a byte there, where as a field its type says it. */
static void skip_list(thrift *t)
{
    thrift_type of;
    uint64_t n = take_head(t, &of);

    for (uint64_t i = 0; i < n && !t->failed; i++)
        if (of == THRIFT_TRUE || of == THRIFT_FALSE)
            take_byte(t);
        else
            thrift_skip(t, of);
}

void thrift_skip(thrift *t, thrift_type type)
{
    thrift_type of;
    int16_t id = 0;
    uint32_t len;

    if (t->failed || ++t->depth > MAX_DEPTH) {
        t->failed = true;
        return;
    }
    switch (type) {
    case THRIFT_TRUE:
    case THRIFT_FALSE:
        break;
    case THRIFT_I8:
        take_byte(t);
        break;
    case THRIFT_I16:
    case THRIFT_I32:
    case THRIFT_I64:
        take_varint(t);
        break;
    case THRIFT_DOUBLE:
        skip_bytes(t, 8);
        break;
    case THRIFT_BINARY:
        thrift_text(&len, t, type);
        break;
    case THRIFT_LIST:
    case THRIFT_SET:
        skip_list(t);
        break;
    case THRIFT_MAP:
        skip_map(t);
        break;
    case THRIFT_STRUCT:
        while (thrift_field(&id, &of, t))
            thrift_skip(t, of);
        break;
    default:
        t->failed = true;
    }
    t->depth--;
}
