/* Checks of what BatchService is asked for. */
#include "scheduler/service/validate.h"

#include <stdio.h>
#include <string.h>

#define ID_CHARS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

static bool is_id(const char *s)
{
    size_t n = strlen(s);

    return n >= 1 && n <= 64 && strspn(s, ID_CHARS) == n;
}

pseg_status pseg_check_new_batch(const Pseg__V1__CreateBatchRequest *q, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (*q->batch_id && !is_id(q->batch_id)) {
        rc = pseg_err_set(err, PSEG_R_NAME_INVALID, 0, PSEG_HERE,
                          "batch_id of %zu bytes must be 1 to 64 of A-Z a-z 0-9 . _ -",
                          strlen(q->batch_id));
        pseg_err_field(err, "batch_id");
        pseg_err_limit(err, "[A-Za-z0-9._-]{1,64}");
        goto out;
    }
    if (q->ttl && (q->ttl->seconds < 60 || q->ttl->seconds > 7 * 86400 || q->ttl->nanos < 0 ||
                   q->ttl->nanos > 999999999)) {
        rc = pseg_err_set(err, PSEG_R_INVALID_ARGUMENT, 0, PSEG_HERE,
                          "ttl of %lld s is not between 60 s and 604800 s (7 days)",
                          (long long)q->ttl->seconds);
        pseg_err_field(err, "ttl");
        pseg_err_value(err, "%lld", (long long)q->ttl->seconds);
        pseg_err_limit(err, "60..604800");
        goto out;
    }
out:
    return rc;
}

pseg_status pseg_check_batch_page(int32_t size, const char *token, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = strlen(token);

    PSEG_TRY(pseg_check_page(size, PSEG_MAX_BATCH_PAGE_SIZE, "", err));
    if (n > 18 || strspn(token, "0123456789") != n) {
        rc = pseg_err_set(err, PSEG_R_PAGE_TOKEN_INVALID, 0, PSEG_HERE,
                          "page_token of %zu bytes is not one that this server gave; start with an "
                          "empty one",
                          n);
        pseg_err_field(err, "page_token");
        goto out;
    }
out:
    return rc;
}
