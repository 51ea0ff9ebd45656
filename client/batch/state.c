#include "client/batch/state.h"

#include "client/batch/json.h"
#include "common/base/alloc.h"
#include "common/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define VERSION       1
#define STATE_BYTES   ((size_t)4 << 20)
#define MAX_REASONS   256 /* a server's names are not ours to bound */
#define OTHER_REASONS "OTHER"

static pseg_status take_lock(batch_state *s, const char *dir, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = pseg_path_join(s->folder, "lock");

    if (!path)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    s->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (s->lock < 0)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot write %s: %s", path, strerror(errno));
    if (flock(s->lock, LOCK_EX | LOCK_NB))
        PSEG_FAIL(errno == EWOULDBLOCK ? PSEG_R_CONFIG_INVALID : PSEG_R_FILE_IO, errno,
                  "another `pseg batch` is at work in %s; wait for its end, or name another --out",
                  dir);
out:
    pseg_free(path);
    return rc;
}

static uint64_t number(const json_t *j, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(j, key));
}

static pseg_status read_state(batch_state *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *text = NULL;
    size_t len;
    json_t *j = NULL;

    PSEG_TRY(pseg_file_read(&text, &len, s->path, STATE_BYTES, err));
    j = json_loadb((const char *)text, len, 0, NULL);
    if (number(j, "version") != VERSION || !*batch_json_get(j, "batch") ||
        !json_is_object(json_object_get(j, "of")) || !json_is_object(json_object_get(j, "reasons")))
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                  "%s is damaged or of another version; begin in another folder", s->path);
    pseg_free(s->batch);
    json_decref(s->reasons);
    s->reasons = json_incref(json_object_get(j, "reasons"));
    s->of = json_incref(json_object_get(j, "of"));
    s->batch = pseg_strdup(batch_json_get(j, "batch"));
    s->at.results_bytes = number(j, "results_bytes");
    s->at.failures_bytes = number(j, "failures_bytes");
    s->items = number(j, "items");
    s->succeeded = number(j, "succeeded");
    s->failed = number(j, "failed");
    s->begun_unix_us = (int64_t)number(j, "begun_unix_us");
    s->is_made = json_is_true(json_object_get(j, "made"));
    s->is_finished = json_is_true(json_object_get(j, "finished"));
    s->exists = true;
    if (!s->batch)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    PSEG_TRY(batch_state_set_token(s, batch_json_get(j, "token"), err));
out:
    json_decref(j);
    pseg_free(text);
    return rc;
}

pseg_status batch_state_open(batch_state **out, const char *dir, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_state *s = pseg_calloc(1, sizeof *s);

    *out = NULL;
    if (!s)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    s->lock = -1;
    s->reasons = json_object();
    s->folder = pseg_path_join(dir, ".pseg-batch");
    s->path = pseg_path_join(s->folder ? s->folder : dir, "state.json");
    s->token = pseg_strdup("");
    s->batch = pseg_strdup("");
    if (!s->folder || !s->path || !s->token || !s->batch || !s->reasons)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    PSEG_TRY(pseg_dir_make(s->folder, err));
    PSEG_TRY(take_lock(s, dir, err));
    if (pseg_file_exists(s->path))
        PSEG_TRY(read_state(s, err));
    *out = s;
    s = NULL;
out:
    batch_state_close(s);
    return rc;
}

void batch_state_close(batch_state *s)
{
    if (!s)
        return;
    if (s->lock >= 0)
        close(s->lock);
    json_decref(s->of);
    json_decref(s->reasons);
    pseg_free(s->folder);
    pseg_free(s->path);
    pseg_free(s->token);
    pseg_free(s->batch);
    pseg_free(s);
}

const char *batch_state_folder(const batch_state *s)
{
    return s->folder;
}

/* What was given, as text for a message. */
static void describe(char out[120], const json_t *value)
{
    pseg_buf text;

    pseg_buf_init(&text, STATE_BYTES);
    bool ok = value && batch_json_put(&text, value, NULL) == PSEG_OK;
    snprintf(out, 120, "%s", ok ? (const char *)text.data : "none");
    pseg_buf_deinit(&text);
}

pseg_status batch_state_check(const batch_state *s, const json_t *facts, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *key;
    json_t *value;
    char was[120], is[120];

    json_object_foreach((json_t *)(uintptr_t)facts, key, value)
    {
        const json_t *before = json_object_get(s->of, key);
        if (json_equal(before, value))
            continue;
        describe(was, before);
        describe(is, value);
        PSEG_FAIL(
            PSEG_R_CONFIG_INVALID, 0,
            "%s holds a batch with another %s: %s, now %s; give the same command to go on, or "
            "another --out to begin",
            s->folder, key, was, is);
    }
out:
    return rc;
}

pseg_status batch_state_save(batch_state *s, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_buf text;
    json_t *j = json_pack("{s:i, s:O, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:O, s:I, s:b, s:b}",
                          "version", VERSION, "of", s->of, "batch", s->batch, "token", s->token,
                          "results_bytes", (json_int_t)s->at.results_bytes, "failures_bytes",
                          (json_int_t)s->at.failures_bytes, "items", (json_int_t)s->items,
                          "succeeded", (json_int_t)s->succeeded, "failed", (json_int_t)s->failed,
                          "reasons", s->reasons, "begun_unix_us", (json_int_t)s->begun_unix_us,
                          "made", (int)s->is_made, "finished", (int)s->is_finished);

    pseg_buf_init(&text, STATE_BYTES);
    if (!j)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "the state of the batch cannot be written as JSON");
    PSEG_TRY(batch_json_put(&text, j, err));
    PSEG_TRY(pseg_buf_puts(&text, "\n", err));
    PSEG_TRY(pseg_file_write(s->path, text.data, text.len, err));
    s->exists = true;
out:
    pseg_buf_deinit(&text);
    json_decref(j);
    return rc;
}

pseg_status batch_state_set_token(batch_state *s, const char *token, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *copy = pseg_strdup(token);

    if (!copy)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    pseg_free(s->token);
    s->token = copy;
out:
    return rc;
}

void batch_state_count_failure(batch_state *s, const char *reason)
{
    json_t *n = json_object_get(s->reasons, reason);

    s->failed++;
    if (!n && json_object_size(s->reasons) >= MAX_REASONS) {
        reason = OTHER_REASONS;
        n = json_object_get(s->reasons, reason);
    }
    json_object_set_new(s->reasons, reason, json_integer(json_integer_value(n) + 1));
}
