#include "common/base/err.h"
#include "common/base/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    pseg_status status;
    int grpc;
    bool retryable;
} reasons[PSEG_R_COUNT] = {[PSEG_R_NONE] = {"INTERNAL", PSEG_EINTERNAL, 13, false},
#define PSEG_REASON_ROW(n, s, g, r) [PSEG_R_##n] = {#n, s, g, r},
                           PSEG_REASONS(PSEG_REASON_ROW)
#undef PSEG_REASON_ROW
};

static pseg_reason known(pseg_reason r)
{
    return r > PSEG_R_NONE && r < PSEG_R_COUNT ? r : PSEG_R_INTERNAL;
}

const char *pseg_reason_name(pseg_reason reason)
{
    return reasons[known(reason)].name;
}

pseg_status pseg_reason_status(pseg_reason reason)
{
    return reasons[known(reason)].status;
}

int pseg_reason_grpc(pseg_reason reason)
{
    return reasons[known(reason)].grpc;
}

bool pseg_reason_is_retryable(pseg_reason reason)
{
    return reasons[known(reason)].retryable;
}

pseg_reason pseg_reason_from_name(const char *name)
{
    for (int i = 1; i < PSEG_R_COUNT; i++)
        if (strcmp(reasons[i].name, name) == 0)
            return (pseg_reason)i;
    return PSEG_R_NONE;
}

int pseg_reason_exit_status(pseg_reason reason)
{
    switch (reason) {
    case PSEG_R_NONE:
        return 0;
    case PSEG_R_JOB_FAILED:
    case PSEG_R_JOB_CANCELLED:
    case PSEG_R_JOB_EXPIRED:
    case PSEG_R_ATTEMPTS_EXHAUSTED:
        return 5;
    default:
        break;
    }
    switch (reasons[known(reason)].grpc) {
    case 3:
    case 9:
        return 2;
    case 5:
        return 3;
    case 4:
    case 8:
    case 10:
    case 14:
        return 4;
    default:
        return 1;
    }
}

/* Cuts s (of n bytes, truncated at the end) so that no UTF-8 sequence is left incomplete. */
static void trim_utf8(char *s)
{
    size_t n = strlen(s), i = n;

    while (i > 0 && ((unsigned char)s[i - 1] & 0xC0) == 0x80)
        i--;
    if (i == 0)
        return;
    unsigned char lead = (unsigned char)s[i - 1];
    size_t need = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (n - (i - 1) < need)
        s[i - 1] = '\0';
}

/* Control characters would make more lines of it, and a message with bytes that are no UTF-8 could
 * be sent neither as JSON nor as a protobuf string. */
static void one_line(char *s)
{
    pseg_utf8_repair(s);
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7F)
            *s = '?';
}

pseg_status pseg_err_setv(pseg_err *err, pseg_reason reason, int detail, const char *where,
                          const char *fmt, va_list ap)
{
    pseg_status code = reasons[known(reason)].status;

    if (!err)
        return code;
    err->code = code;
    err->reason = known(reason);
    err->detail = detail;
    err->where = where;
    err->field[0] = err->value[0] = err->limit[0] = '\0';
    err->resource = NULL;
    int n = vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    if (n < 0)
        err->msg[0] = '\0';
    else if ((size_t)n >= sizeof err->msg)
        trim_utf8(err->msg);
    one_line(err->msg);
    return code;
}

pseg_status pseg_err_set(pseg_err *err, pseg_reason reason, int detail, const char *where,
                         const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    pseg_status code = pseg_err_setv(err, reason, detail, where, fmt, ap);
    va_end(ap);
    return code;
}

void pseg_err_prefix(pseg_err *err, const char *fmt, ...)
{
    char old[sizeof err->msg], prefix[160];
    va_list ap;

    if (!err || err->code == PSEG_OK)
        return;
    memcpy(old, err->msg, sizeof old);
    va_start(ap, fmt);
    vsnprintf(prefix, sizeof prefix, fmt, ap);
    va_end(ap);
    trim_utf8(prefix);
    int n = snprintf(err->msg, sizeof err->msg, "%s: %s", prefix, old);
    if ((size_t)n >= sizeof err->msg)
        trim_utf8(err->msg);
    one_line(err->msg);
}

void pseg_err_field(pseg_err *err, const char *fmt, ...)
{
    va_list ap;

    if (!err || err->code == PSEG_OK || err->field[0])
        return;
    va_start(ap, fmt);
    vsnprintf(err->field, sizeof err->field, fmt, ap);
    va_end(ap);
    trim_utf8(err->field);
    one_line(err->field);
}

/* Fills one of the record's texts, of n bytes. */
static void put(char *out, size_t n, const char *fmt, va_list ap)
{
    vsnprintf(out, n, fmt, ap);
    trim_utf8(out);
    one_line(out);
}

void pseg_err_value(pseg_err *err, const char *fmt, ...)
{
    va_list ap;

    if (!err || err->code == PSEG_OK)
        return;
    va_start(ap, fmt);
    put(err->value, sizeof err->value, fmt, ap);
    va_end(ap);
}

void pseg_err_limit(pseg_err *err, const char *fmt, ...)
{
    va_list ap;

    if (!err || err->code == PSEG_OK)
        return;
    va_start(ap, fmt);
    put(err->limit, sizeof err->limit, fmt, ap);
    va_end(ap);
}

void pseg_err_resource(pseg_err *err, const char *type, const char *name)
{
    if (!err || err->code == PSEG_OK)
        return;
    err->resource = type;
    pseg_err_value(err, "%s", name);
}

void pseg_err_clear(pseg_err *err)
{
    if (err)
        *err = (pseg_err)PSEG_ERR_INIT;
}

#if PSEG_DEBUG
void pseg_assert_failed(const char *expr, const char *where)
{
    fprintf(stderr, "assertion failed at %s: %s\n", where, expr);
    abort();
}
#endif
