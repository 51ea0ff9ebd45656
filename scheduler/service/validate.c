#include "scheduler/service/validate.h"
#include "common/base/utf8.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* VALUE and LIMIT tell programs what the message tells people. */
#define VALUE(...) pseg_err_value(err, __VA_ARGS__)
#define LIMIT(...) pseg_err_limit(err, __VA_ARGS__)
#define FAIL_FIELD(field, reason, value, limit, ...)                 \
    do {                                                             \
        rc = pseg_err_set(err, (reason), 0, PSEG_HERE, __VA_ARGS__); \
        pseg_err_field(err, "%s", (field));                          \
        value;                                                       \
        limit;                                                       \
        goto out;                                                    \
    } while (0)

static bool is_of(const char *s, size_t min, size_t max, const char *extra, bool upper)
{
    size_t n = strlen(s);

    if (n < min || n > max)
        return false;
    for (; *s; s++) {
        bool ok = (*s >= 'a' && *s <= 'z') || (*s >= '0' && *s <= '9') ||
                  (upper && *s >= 'A' && *s <= 'Z') || strchr(extra, *s);
        if (!ok)
            return false;
    }
    return true;
}

static bool is_hex(const char *s, size_t n)
{
    return strlen(s) == n && strspn(s, "0123456789abcdef") == n;
}

/* What may be shown of a client's string in a message: short and printable. */
static const char *shown(char out[48], const char *s)
{
    size_t n = strlen(s);

    if (!pseg_utf8_is_valid(s, n))
        return "(not UTF-8)";
    if (n < 40) {
        memcpy(out, s, n + 1);
        return out;
    }
    n = 36;
    while (n > 0 && ((unsigned char)s[n] & 0xC0) == 0x80)
        n--;
    memcpy(out, s, n);
    memcpy(out + n, "...", 4);
    return out;
}

pseg_status pseg_check_request_id(const char *id, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char text[48];

    if (*id && !is_of(id, 1, 64, "._-", true))
        FAIL_FIELD("request_id", PSEG_R_NAME_INVALID, VALUE("%s", shown(text, id)),
                   LIMIT("[A-Za-z0-9._-]{1,64}"),
                   "request_id \"%s\" of %zu bytes must be 1 to 64 of A-Z a-z 0-9 . _ - (a UUID, "
                   "for instance)",
                   shown(text, id), strlen(id));
out:
    return rc;
}

pseg_status pseg_check_job_name(const char **id, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char text[48];

    *id = NULL;
    if (strncmp(name, "jobs/", 5) != 0 || !is_hex(name + 5, 32))
        FAIL_FIELD("name", PSEG_R_NAME_INVALID, VALUE("%s", shown(text, name)),
                   LIMIT("jobs/[0-9a-f]{32}"),
                   "name \"%s\" must be \"jobs/\" and 32 lower-case hexadecimal digits",
                   shown(text, name));
    *id = name + 5;
out:
    return rc;
}

pseg_status pseg_check_page(int32_t size, int32_t max, const char *token, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = strlen(token);

    if (size < 1 || size > max)
        FAIL_FIELD("page_size", PSEG_R_INVALID_ARGUMENT, VALUE("%d", (int)size),
                   LIMIT("1..%d", (int)max), "page_size %d is not between 1 and %d", (int)size,
                   (int)max);
    if (n && !is_hex(token, 32))
        FAIL_FIELD("page_token", PSEG_R_PAGE_TOKEN_INVALID, VALUE("%s", token),
                   LIMIT("next_page_token of an earlier reply"),
                   "page_token of %zu bytes is not one that this server gave; start with an empty "
                   "one",
                   n);
out:
    return rc;
}

pseg_status pseg_check_sha256(const char *sha256, const char *field, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char text[48];

    if (!is_hex(sha256, 64))
        FAIL_FIELD(field, PSEG_R_NAME_INVALID, VALUE("%s", shown(text, sha256)),
                   LIMIT("[0-9a-f]{64}"), "sha256 \"%s\" must be 64 lower-case hexadecimal digits",
                   shown(text, sha256));
out:
    return rc;
}

pseg_status pseg_check_threshold(float threshold, const char *field, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (threshold != 0 && !(threshold > 0 && threshold < 1))
        FAIL_FIELD(field, PSEG_R_THRESHOLD_OUT_OF_RANGE, VALUE("%g", threshold), LIMIT("(0, 1)"),
                   "threshold %g is not between 0 and 1; leave it out for 0.5", threshold);
out:
    return rc;
}

pseg_status pseg_check_format(const Pseg__V1__MaskFormat *format, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    if (!format)
        goto out;
    if (format->encoding < PSEG__V1__MASK_ENCODING__MASK_ENCODING_UNSPECIFIED ||
        format->encoding > PSEG__V1__MASK_ENCODING__MASK_ENCODING_FLOAT16)
        FAIL_FIELD(
            "format.encoding", PSEG_R_MASK_ENCODING_UNSUPPORTED, VALUE("%d", (int)format->encoding),
            LIMIT("0..%d", PSEG__V1__MASK_ENCODING__MASK_ENCODING_FLOAT16),
            "mask encoding %d is unknown; take PNG, COCO_RLE, PACKED_BITS, POLYGON or FLOAT16",
            (int)format->encoding);
    PSEG_TRY(pseg_check_threshold(format->threshold, "format.threshold", err));
out:
    return rc;
}

pseg_status pseg_check_states(const Pseg__V1__State *states, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char field[32];

    for (size_t i = 0; i < n; i++) {
        snprintf(field, sizeof field, "states[%zu]", i);
        if ((int)states[i] < PSEG__V1__STATE__STATE_QUEUED ||
            (int)states[i] > PSEG__V1__STATE__STATE_EXPIRED)
            FAIL_FIELD(
                field, PSEG_R_INVALID_ARGUMENT, VALUE("%d", (int)states[i]),
                LIMIT("%d..%d", PSEG__V1__STATE__STATE_QUEUED, PSEG__V1__STATE__STATE_EXPIRED),
                "state %d is unknown; leave states out for all", (int)states[i]);
    }
out:
    return rc;
}

pseg_status pseg_check_image_magic(const uint8_t *d, size_t n, const char *field, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    bool jpeg = n >= 3 && memcmp(d, "\xff\xd8\xff", 3) == 0;
    bool png = n >= 8 && memcmp(d, "\x89PNG\r\n\x1a\n", 8) == 0;
    bool webp = n >= 12 && memcmp(d, "RIFF", 4) == 0 && memcmp(d + 8, "WEBP", 4) == 0;
    bool tiff = n >= 4 && (memcmp(d, "II*\0", 4) == 0 || memcmp(d, "MM\0*", 4) == 0);
    bool heif = n >= 12 && memcmp(d + 4, "ftyp", 4) == 0;
    if (!(jpeg || png || webp || tiff || heif))
        FAIL_FIELD(field, PSEG_R_IMAGE_FORMAT_UNSUPPORTED,
                   VALUE("%02x%02x%02x%02x", n > 0 ? d[0] : 0, n > 1 ? d[1] : 0, n > 2 ? d[2] : 0,
                         n > 3 ? d[3] : 0),
                   LIMIT("JPEG, PNG, WebP, TIFF, HEIC"),
                   "image begins with %02x %02x %02x %02x: not JPEG, PNG, WebP, TIFF or HEIC",
                   n > 0 ? d[0] : 0, n > 1 ? d[1] : 0, n > 2 ? d[2] : 0, n > 3 ? d[3] : 0);
out:
    return rc;
}

static pseg_status check_image(const Pseg__V1__JobSpec *s, const char *prefix, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char field[64];

    switch (s->image_case) {
    case PSEG__V1__JOB_SPEC__IMAGE_CONTENT:
        snprintf(field, sizeof field, "%s.content", prefix);
        if (s->content.len == 0)
            FAIL_FIELD(field, PSEG_R_IMAGE_MISSING, VALUE("0"),
                       LIMIT("1..%d", PSEG_MAX_INLINE_IMAGE_BYTES), "the image is empty");
        if (s->content.len > PSEG_MAX_INLINE_IMAGE_BYTES)
            FAIL_FIELD(
                field, PSEG_R_IMAGE_TOO_LARGE, VALUE("%zu", s->content.len),
                LIMIT("%d", PSEG_MAX_INLINE_IMAGE_BYTES),
                "inline image of %zu bytes is over the limit of %d; send it with UploadImage",
                s->content.len, PSEG_MAX_INLINE_IMAGE_BYTES);
        PSEG_TRY(pseg_check_image_magic(s->content.data, s->content.len, field, err));
        break;
    case PSEG__V1__JOB_SPEC__IMAGE_SHA256:
        snprintf(field, sizeof field, "%s.sha256", prefix);
        PSEG_TRY(pseg_check_sha256(s->sha256, field, err));
        break;
    default:
        snprintf(field, sizeof field, "%s.content", prefix);
        FAIL_FIELD(field, PSEG_R_IMAGE_MISSING, VALUE("none"), LIMIT("content or sha256"),
                   "the job has no image: set content or the sha256 of an uploaded one");
    }
out:
    return rc;
}

static pseg_status check_prompt(const char *text, const char *field, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n = strlen(text);
    bool blank = true;

    if (n == 0)
        FAIL_FIELD(field, PSEG_R_PROMPT_EMPTY, VALUE("0"), LIMIT("1..%d", PSEG_MAX_PROMPT_BYTES),
                   "the prompt is empty");
    if (n > PSEG_MAX_PROMPT_BYTES)
        FAIL_FIELD(field, PSEG_R_PROMPT_TOO_LONG, VALUE("%zu", n),
                   LIMIT("%d", PSEG_MAX_PROMPT_BYTES),
                   "prompt of %zu bytes is over the limit of %d; say it in fewer words", n,
                   PSEG_MAX_PROMPT_BYTES);
    if (!pseg_utf8_is_valid(text, n))
        FAIL_FIELD(field, PSEG_R_PROMPT_NOT_TEXT, VALUE("%zu bytes", n), LIMIT("UTF-8"),
                   "prompt of %zu bytes is not valid UTF-8", n);
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        i += pseg_utf8_decode(&cp, text + i, n - i);
        bool space = pseg_utf8_is_space(cp);
        if ((cp < 0x20 || (cp >= 0x7F && cp < 0xA0)) && !space)
            FAIL_FIELD(field, PSEG_R_PROMPT_NOT_TEXT, VALUE("U+%04X", (unsigned)cp),
                       LIMIT("no control characters"),
                       "prompt holds the control character U+%04X; remove it", (unsigned)cp);
        blank = blank && space;
    }
    if (blank)
        FAIL_FIELD(field, PSEG_R_PROMPT_EMPTY, VALUE("%zu blanks", n),
                   LIMIT("1..%d", PSEG_MAX_PROMPT_BYTES), "the prompt is blank");
out:
    return rc;
}

static pseg_status check_prompts(const Pseg__V1__JobSpec *s, const char *prefix, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char field[64];

    snprintf(field, sizeof field, "%s.prompts", prefix);
    if (s->n_prompts == 0)
        FAIL_FIELD(field, PSEG_R_PROMPT_MISSING, VALUE("0"), LIMIT("1..%d", PSEG_MAX_PROMPTS),
                   "the job has no prompts; give at least one phrase");
    if (s->n_prompts > PSEG_MAX_PROMPTS)
        FAIL_FIELD(field, PSEG_R_TOO_MANY_PROMPTS, VALUE("%zu", s->n_prompts),
                   LIMIT("%d", PSEG_MAX_PROMPTS),
                   "%zu prompts are over the limit of %d; split the job, its image is stored once",
                   s->n_prompts, PSEG_MAX_PROMPTS);
    for (size_t i = 0; i < s->n_prompts; i++) {
        snprintf(field, sizeof field, "%s.prompts[%zu].text", prefix, i);
        PSEG_TRY(check_prompt(s->prompts[i]->text, field, err));
    }
out:
    return rc;
}

pseg_status pseg_check_labels(const Pseg__V1__JobSpec *s, const char *prefix, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char field[64], text[48];

    snprintf(field, sizeof field, "%s%slabels", prefix, *prefix ? "." : "");
    if (s->n_labels > PSEG_MAX_LABELS)
        FAIL_FIELD(field, PSEG_R_INVALID_ARGUMENT, VALUE("%zu", s->n_labels),
                   LIMIT("%d", PSEG_MAX_LABELS), "%zu labels are over the limit of %d", s->n_labels,
                   PSEG_MAX_LABELS);
    for (size_t i = 0; i < s->n_labels; i++) {
        const Pseg__V1__JobSpec__LabelsEntry *l = s->labels[i];
        if (!is_of(l->key, 1, 63, "._-", false))
            FAIL_FIELD(field, PSEG_R_NAME_INVALID, VALUE("%s", shown(text, l->key)),
                       LIMIT("[a-z0-9._-]{1,63}"),
                       "label key \"%s\" must be 1 to 63 of a-z 0-9 . _ -", shown(text, l->key));
        if (strlen(l->value) > 255 || !pseg_utf8_is_valid(l->value, strlen(l->value)))
            FAIL_FIELD(field, PSEG_R_INVALID_ARGUMENT, VALUE("%zu", strlen(l->value)), LIMIT("255"),
                       "value of label \"%s\" must be UTF-8 of at most 255 bytes",
                       shown(text, l->key));
    }
out:
    return rc;
}

static pseg_status check_times(const Pseg__V1__JobSpec *s, const char *prefix, int64_t now_unix_us,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char field[64];

    if (s->deadline) {
        snprintf(field, sizeof field, "%s.deadline", prefix);
        if (s->deadline->nanos < 0 || s->deadline->nanos > 999999999 ||
            s->deadline->seconds > 253402300799 || s->deadline->seconds < 0)
            FAIL_FIELD(
                field, PSEG_R_INVALID_ARGUMENT,
                VALUE("%lld s %d ns", (long long)s->deadline->seconds, (int)s->deadline->nanos),
                LIMIT("0..253402300799 s, 0..999999999 ns"),
                "the deadline is not a valid timestamp");
        if (s->deadline->seconds * 1000000 + s->deadline->nanos / 1000 <= now_unix_us)
            FAIL_FIELD(field, PSEG_R_INVALID_ARGUMENT,
                       VALUE("%lld", (long long)s->deadline->seconds),
                       LIMIT(">%lld", (long long)(now_unix_us / 1000000)),
                       "the deadline lies %lld s in the past; check the clock or leave it out",
                       (long long)(now_unix_us / 1000000 - s->deadline->seconds));
    }
    if (s->result_ttl) {
        snprintf(field, sizeof field, "%s.result_ttl", prefix);
        if (s->result_ttl->seconds < 60 || s->result_ttl->seconds > 7 * 86400 ||
            s->result_ttl->nanos < 0 || s->result_ttl->nanos > 999999999)
            FAIL_FIELD(field, PSEG_R_INVALID_ARGUMENT,
                       VALUE("%lld", (long long)s->result_ttl->seconds), LIMIT("60..604800"),
                       "result_ttl of %lld s is not between 60 s and 604800 s (7 days)",
                       (long long)s->result_ttl->seconds);
    }
out:
    return rc;
}

pseg_status pseg_check_model(const char *model, const char *field, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char text[48];

    if (!is_of(model, 1, 63, "._-", true))
        FAIL_FIELD(
            field, PSEG_R_NAME_INVALID, VALUE("%s", shown(text, model)),
            LIMIT("[A-Za-z0-9._-]{1,63}"),
            "model \"%s\" must be 1 to 63 of A-Z a-z 0-9 . _ -; ListModels lists those served",
            shown(text, model));
out:
    return rc;
}

pseg_status pseg_check_spec(const Pseg__V1__JobSpec *s, const char *prefix, int64_t now_unix_us,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char field[64];

    if (!s)
        FAIL_FIELD(prefix, PSEG_R_INVALID_ARGUMENT, VALUE("none"), LIMIT("required"),
                   "the request has no %s", prefix);
    PSEG_TRY(check_image(s, prefix, err));
    PSEG_TRY(check_prompts(s, prefix, err));
    snprintf(field, sizeof field, "%s.model", prefix);
    if (*s->model)
        PSEG_TRY(pseg_check_model(s->model, field, err));
    snprintf(field, sizeof field, "%s.mask_threshold", prefix);
    PSEG_TRY(pseg_check_threshold(s->mask_threshold, field, err));
    snprintf(field, sizeof field, "%s.priority", prefix);
    if (s->priority < -10 || s->priority > 10)
        FAIL_FIELD(field, PSEG_R_INVALID_ARGUMENT, VALUE("%d", (int)s->priority), LIMIT("-10..10"),
                   "priority %d is not between -10 and 10", (int)s->priority);
    PSEG_TRY(pseg_check_labels(s, prefix, err));
    PSEG_TRY(check_times(s, prefix, now_unix_us, err));
out:
    return rc;
}
