/* Failing and trying again, for the threads of `pseg batch`. */
#include "client/batch_run.h"

#include "client/batch/json.h"
#include "common/base/clock.h"

#include <stdio.h>
#include <string.h>

#define FIRST_PAUSE_MS 100
#define MAX_PAUSE_MS   5000

void batch_run_init(batch_run *r)
{
    pthread_mutex_init(&r->mu, NULL);
    pseg_cond_init(&r->cv);
    pseg_cond_init(&r->room);
}

void batch_run_deinit(batch_run *r)
{
    pthread_cond_destroy(&r->room);
    pthread_cond_destroy(&r->cv);
    pthread_mutex_destroy(&r->mu);
}

void batch_run_stop(batch_run *r)
{
    r->stop = true;
    pthread_cond_broadcast(&r->cv);
    pthread_cond_broadcast(&r->room);
}

void batch_run_fail(batch_run *r, pseg_status rc, const pseg_err *err)
{
    pthread_mutex_lock(&r->mu);
    if (r->rc == PSEG_OK && !r->stop) {
        r->rc = rc;
        r->error = *err;
    }
    batch_run_stop(r);
    pthread_mutex_unlock(&r->mu);
}

bool batch_run_is_stopped(batch_run *r)
{
    pthread_mutex_lock(&r->mu);
    bool stop = r->stop;
    pthread_mutex_unlock(&r->mu);
    return stop;
}

/* ---- patience ---- */

void batch_patience_begin(batch_patience *p, batch_run *r)
{
    *p = (batch_patience){.run = r};
}

void batch_patience_reset(batch_patience *p)
{
    if (p->attempt == 0)
        return;
    p->attempt = 0;
    pthread_mutex_lock(&p->run->mu);
    p->run->trouble[0] = '\0';
    pthread_mutex_unlock(&p->run->mu);
}

pseg_status batch_patience_wait(batch_patience *p, int64_t retry_after_ms, pseg_err *err)
{
    batch_run *r = p->run;
    int64_t now = pseg_clock_mono_ms(), pause = FIRST_PAUSE_MS << (p->attempt < 6 ? p->attempt : 6);

    pause = pause < MAX_PAUSE_MS ? pause : MAX_PAUSE_MS;
    if (retry_after_ms > pause)
        pause = retry_after_ms < 60000 ? retry_after_ms : 60000;
    /* A server that is full says so: that is no outage, and waiting is right however long. */
    bool is_busy = pseg_reason_status(err->reason) == PSEG_EBUSY && err->reason != PSEG_R_DRAINING;
    if (!pseg_reason_is_retryable(err->reason))
        return err->code;
    if (p->attempt == 0)
        p->since_ms = now;
    if (!is_busy && now - p->since_ms >= r->patience_ms)
        return pseg_err_set(err, err->reason, err->detail, PSEG_HERE,
                            "%.200s (for %lld s; the same command goes on from here)", err->msg,
                            (long long)((now - p->since_ms) / 1000));
    p->attempt++;
    pthread_mutex_lock(&r->mu);
    snprintf(r->trouble, sizeof r->trouble, "%.150s", err->msg);
    while (!r->stop && pseg_cond_wait_until_us(&r->cv, &r->mu, (now + pause) * 1000))
        ;
    bool stop = r->stop;
    pthread_mutex_unlock(&r->mu);
    return stop ? pseg_err_set(err, PSEG_R_CANCELLED, 0, PSEG_HERE, "stopped") : PSEG_OK;
}

/* ---- custom ids ---- */

/* At most `room` bytes with the NUL, cut between characters, control characters as '?'. */
static void put_text(char *out, size_t room, const char *s)
{
    size_t n = strlen(s);

    if (n >= room) {
        n = room - 1;
        while (n && ((unsigned char)s[n] & 0xC0) == 0x80)
            n--;
    }
    for (size_t i = 0; i < n; i++)
        out[i] = (unsigned char)s[i] < 0x20 || s[i] == 0x7F ? '?' : s[i];
    out[n] = '\0';
}

void batch_bad_id(char out[BATCH_CUSTOM_ID_BYTES], const char *reason, const char *message)
{
    int n = snprintf(out, BATCH_CUSTOM_ID_BYTES, "!%.60s ", reason);

    put_text(out + n, BATCH_CUSTOM_ID_BYTES - (size_t)n, message);
}

bool batch_bad_id_read(char reason[64], char message[BATCH_CUSTOM_ID_BYTES], const char *custom_id)
{
    const char *space = strchr(custom_id, ' ');

    if (custom_id[0] != '!' || !space || space - custom_id > 63)
        return false;
    snprintf(reason, 64, "%.*s", (int)(space - custom_id - 1), custom_id + 1);
    snprintf(message, BATCH_CUSTOM_ID_BYTES, "%s", space + 1);
    return true;
}

void batch_good_id(char out[BATCH_CUSTOM_ID_BYTES], const json_t *item)
{
    const char *id = batch_json_get(item, "id");

    if (!*id)
        id = batch_json_get(item, "image");
    /* What begins with a mark of exclamation would be taken for a bad one. */
    put_text(out, BATCH_CUSTOM_ID_BYTES, id + strspn(id, "!"));
}
