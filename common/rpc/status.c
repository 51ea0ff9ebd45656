#include "common/rpc/status.h"

#include "common/base/utf8.h"
#include "google/rpc/error_details.pb-c.h"

#include <string.h>

#define TYPE_PREFIX            "type.googleapis.com/"
#define DEFAULT_RETRY_AFTER_MS 1000
#define MAX_DETAILS            4

/* What goes on the wire must be UTF-8, or clients in other languages refuse the whole status. */
static char *clean_copy(pseg_arena *a, const char *s, size_t n)
{
    char *copy = pseg_arena_strndup(a, s, n);

    for (char *p = copy; p && *p;) {
        unsigned char lead = (unsigned char)*p;
        size_t left = strlen(p), need = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
        if (need <= left && pseg_utf8_is_valid(p, need))
            p += need;
        else
            *p++ = '?';
    }
    return copy;
}

static bool add_detail(pseg_arena *a, Google__Rpc__Status *st, const ProtobufCMessage *m)
{
    Google__Protobuf__Any *any = pseg_arena_alloc(a, sizeof *any);
    size_t prefix = sizeof TYPE_PREFIX - 1, name = strlen(m->descriptor->name);
    size_t n = protobuf_c_message_get_packed_size(m);
    char *url = pseg_arena_alloc(a, prefix + name + 1);
    uint8_t *bytes = pseg_arena_alloc(a, n ? n : 1);

    if (!any || !url || !bytes)
        return false;
    google__protobuf__any__init(any);
    memcpy(url, TYPE_PREFIX, prefix);
    memcpy(url + prefix, m->descriptor->name, name + 1);
    any->type_url = url;
    any->value.data = bytes;
    any->value.len = protobuf_c_message_pack(m, bytes);
    st->details[st->n_details++] = any;
    return true;
}

/* ErrorInfo, with what the message names as metadata: "value" and "limit". */
static bool add_info(pseg_arena *a, Google__Rpc__Status *st, const pseg_err *err)
{
    typedef Google__Rpc__ErrorInfo__MetadataEntry entry;
    Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;
    entry entries[2], *list[2];
    const char *const keys[] = {"limit", "value"}, *const values[] = {err->limit, err->value};

    info.reason = (char *)pseg_reason_name(err->reason);
    info.domain = (char *)PSEG_RPC_ERROR_DOMAIN;
    info.metadata = list;
    for (size_t i = 0; i < 2; i++) {
        if (!values[i][0])
            continue;
        entry *e = list[info.n_metadata] = &entries[info.n_metadata];
        google__rpc__error_info__metadata_entry__init(e);
        e->key = (char *)(uintptr_t)keys[i];
        e->value = clean_copy(a, values[i], strlen(values[i]));
        if (!e->value)
            return false;
        info.n_metadata++;
    }
    return add_detail(a, st, &info.base);
}

static bool add_resource(pseg_arena *a, Google__Rpc__Status *st, const pseg_err *err)
{
    Google__Rpc__ResourceInfo resource = GOOGLE__RPC__RESOURCE_INFO__INIT;

    resource.resource_type = (char *)(uintptr_t)err->resource;
    resource.resource_name = clean_copy(a, err->value, strlen(err->value));
    resource.description = st->message;
    return resource.resource_name && add_detail(a, st, &resource.base);
}

static bool add_field_violation(pseg_arena *a, Google__Rpc__Status *st, const pseg_err *err)
{
    Google__Rpc__BadRequest bad = GOOGLE__RPC__BAD_REQUEST__INIT;
    Google__Rpc__BadRequest__FieldViolation violation =
        GOOGLE__RPC__BAD_REQUEST__FIELD_VIOLATION__INIT;
    Google__Rpc__BadRequest__FieldViolation *list[] = {&violation};

    violation.field = clean_copy(a, err->field, sizeof err->field);
    violation.description = st->message;
    bad.n_field_violations = 1;
    bad.field_violations = list;
    return violation.field && add_detail(a, st, &bad.base);
}

static bool add_retry(pseg_arena *a, Google__Rpc__Status *st, int64_t after_ms)
{
    Google__Rpc__RetryInfo retry = GOOGLE__RPC__RETRY_INFO__INIT;
    Google__Protobuf__Duration delay = GOOGLE__PROTOBUF__DURATION__INIT;

    delay.seconds = after_ms / 1000;
    delay.nanos = (int32_t)(after_ms % 1000) * 1000000;
    retry.retry_delay = &delay;
    return add_detail(a, st, &retry.base);
}

Google__Rpc__Status *pseg_rpc_status_of(pseg_arena *a, const pseg_err *err, int64_t retry_after_ms)
{
    Google__Rpc__Status *st = pseg_arena_alloc(a, sizeof *st);

    if (!st)
        return NULL;
    google__rpc__status__init(st);
    st->code = pseg_reason_grpc(err->reason);
    st->message = clean_copy(a, err->msg, sizeof err->msg);
    st->details = pseg_arena_calloc(a, MAX_DETAILS, sizeof *st->details);
    if (!st->message || !st->details || !add_info(a, st, err))
        return NULL;
    if (err->field[0] && !add_field_violation(a, st, err))
        return NULL;
    if (err->resource && !add_resource(a, st, err))
        return NULL;
    if (retry_after_ms < 0 && pseg_reason_is_retryable(err->reason))
        retry_after_ms = DEFAULT_RETRY_AFTER_MS;
    if (retry_after_ms >= 0 && !add_retry(a, st, retry_after_ms))
        return NULL;
    return st;
}

/* For a status without our ErrorInfo: what the gRPC code alone says. */
static pseg_reason reason_of_code(int code)
{
    static const pseg_reason reasons[] = {
        [1] = PSEG_R_CANCELLED,    [3] = PSEG_R_INVALID_ARGUMENT,    [4] = PSEG_R_DEADLINE_EXCEEDED,
        [5] = PSEG_R_NOT_FOUND,    [6] = PSEG_R_REQUEST_ID_REUSED,   [7] = PSEG_R_PERMISSION_DENIED,
        [8] = PSEG_R_SERVER_BUSY,  [9] = PSEG_R_INVALID_ARGUMENT,    [11] = PSEG_R_INVALID_ARGUMENT,
        [12] = PSEG_R_UNSUPPORTED, [14] = PSEG_R_SERVER_UNAVAILABLE, [16] = PSEG_R_UNAUTHENTICATED,
    };

    if (code <= 0 || (size_t)code >= sizeof reasons / sizeof *reasons || !reasons[code])
        return PSEG_R_INTERNAL;
    return reasons[code];
}

/* Details are unpacked with malloc, one after the other; a detail that does not parse is skipped.
 */
static ProtobufCMessage *unpack_detail(const Google__Protobuf__Any *any,
                                       const ProtobufCMessageDescriptor *type)
{
    const char *slash = strrchr(any->type_url, '/');

    if (strcmp(slash ? slash + 1 : any->type_url, type->name) != 0)
        return NULL;
    return protobuf_c_message_unpack(type, NULL, any->value.len, any->value.data);
}

static pseg_reason read_reason(const Google__Rpc__Status *status)
{
    pseg_reason reason = PSEG_R_NONE;

    for (size_t i = 0; i < status->n_details && !reason; i++) {
        Google__Rpc__ErrorInfo *info = (Google__Rpc__ErrorInfo *)unpack_detail(
            status->details[i], &google__rpc__error_info__descriptor);
        if (info && strcmp(info->domain, PSEG_RPC_ERROR_DOMAIN) == 0)
            reason = pseg_reason_from_name(info->reason);
        if (info)
            google__rpc__error_info__free_unpacked(info, NULL);
    }
    return reason ? reason : reason_of_code(status->code);
}

static void read_field(pseg_err *err, const Google__Protobuf__Any *any)
{
    Google__Rpc__BadRequest *bad =
        (Google__Rpc__BadRequest *)unpack_detail(any, &google__rpc__bad_request__descriptor);

    if (bad && bad->n_field_violations > 0)
        pseg_err_field(err, "%s", bad->field_violations[0]->field);
    if (bad)
        google__rpc__bad_request__free_unpacked(bad, NULL);
}

static int64_t read_retry(const Google__Protobuf__Any *any)
{
    Google__Rpc__RetryInfo *retry =
        (Google__Rpc__RetryInfo *)unpack_detail(any, &google__rpc__retry_info__descriptor);
    const int64_t longest_s = 24 * 3600;
    int64_t ms = -1;

    if (retry && retry->retry_delay) {
        int64_t s = retry->retry_delay->seconds;
        ms = s < 0 ? 0
                   : (s > longest_s ? longest_s : s) * 1000 + retry->retry_delay->nanos / 1000000;
    }
    if (retry)
        google__rpc__retry_info__free_unpacked(retry, NULL);
    return ms;
}

pseg_status pseg_rpc_status_read(pseg_err *err, int64_t *retry_after_ms,
                                 const Google__Rpc__Status *status)
{
    int64_t retry = -1;

    pseg_err_clear(err);
    if (retry_after_ms)
        *retry_after_ms = -1;
    if (status->code == 0)
        return PSEG_OK;
    pseg_status rc =
        pseg_err_set(err, read_reason(status), status->code, PSEG_HERE, "%s", status->message);
    for (size_t i = 0; i < status->n_details; i++) {
        int64_t ms = read_retry(status->details[i]);
        retry = ms >= 0 ? ms : retry;
        if (err)
            read_field(err, status->details[i]);
    }
    if (retry_after_ms)
        *retry_after_ms = retry;
    return rc;
}

const char *pseg_rpc_code_name(int code)
{
    static const char *const names[] = {"OK",
                                        "CANCELLED",
                                        "UNKNOWN",
                                        "INVALID_ARGUMENT",
                                        "DEADLINE_EXCEEDED",
                                        "NOT_FOUND",
                                        "ALREADY_EXISTS",
                                        "PERMISSION_DENIED",
                                        "RESOURCE_EXHAUSTED",
                                        "FAILED_PRECONDITION",
                                        "ABORTED",
                                        "OUT_OF_RANGE",
                                        "UNIMPLEMENTED",
                                        "INTERNAL",
                                        "UNAVAILABLE",
                                        "DATA_LOSS",
                                        "UNAUTHENTICATED"};

    return code >= 0 && (size_t)code < sizeof names / sizeof *names ? names[code] : "UNKNOWN";
}
