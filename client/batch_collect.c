/* Takes the results of a batch, from the last one that is written on, until all are told. */
#include "client/batch_run.h"

#include "client/batch/json.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "common/job/job.h"
#include "common/rpc/status.h"

#include <stdio.h>
#include <string.h>

#define KEEP_MS \
    1000 /* the state is kept so often: what came since is asked for again after a cut */

static const char method[] = "/pseg.v1.BatchService/StreamBatchResults";

typedef struct collector {
    batch_run *run;
    batch_patience patience;
    int64_t kept_ms;
} collector;

static char *unconst(const char *s)
{
    return (char *)(uintptr_t)s;
}

/* ---- one result ---- */

static pseg_status put_failure(batch_run *r, const json_t *item, const char *state,
                               const char *reason, const char *message, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_TRY(batch_output_failure(r->output, item, state, reason, message, err));
    batch_state_count_failure(r->state, reason);
out:
    return rc;
}

static pseg_status put_refused(batch_run *r, const json_t *item, const Pseg__V1__BatchResult *m,
                               pseg_err *err)
{
    const Google__Rpc__Status *status = m->error ? m->error : m->job ? m->job->error : NULL;
    pseg_err why = PSEG_ERR_INIT;
    char reason[64], message[BATCH_CUSTOM_ID_BYTES];

    if (!m->job && batch_bad_id_read(reason, message, m->custom_id))
        return put_failure(r, item, "FAILED", reason, message, err);
    if (m->state == PSEG__V1__STATE__STATE_CANCELLED)
        pseg_err_set(&why, PSEG_R_JOB_CANCELLED, 0, PSEG_HERE, "it was cancelled");
    else if (m->state == PSEG__V1__STATE__STATE_EXPIRED)
        pseg_err_set(&why, PSEG_R_JOB_EXPIRED, 0, PSEG_HERE, "it was not done by its deadline");
    else if (!status || pseg_rpc_status_read(&why, NULL, status) == PSEG_OK)
        pseg_err_set(&why, PSEG_R_INTERNAL, 0, PSEG_HERE, "the server gave no reason");
    return put_failure(r, item, pseg_job_state_name((pseg_job_state)m->state),
                       pseg_reason_name(why.reason), why.msg, err);
}

/* Masks that were too large for the stream, one call for each. */
static pseg_status fetch_masks(Pseg__V1__Mask **masks, size_t n, batch_run *r, const char *job,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_patience patience;

    batch_patience_begin(&patience, r);
    for (size_t i = 0; i < n;) {
        Pseg__V1__Mask *m = masks[i];
        rc = cli_fetch_mask(&m->data.data, &m->data.len, m, r->cli, job, (uint32_t)i,
                            batch_format_encoding(r->format), 0, err);
        if (rc == PSEG_OK)
            i++;
        else
            PSEG_TRY(batch_patience_wait(&patience, -1, err));
    }
    batch_patience_reset(&patience);
out:
    return rc;
}

static pseg_status put_omitted(batch_run *r, uint64_t seq, const json_t *item,
                               const Pseg__V1__Job *job, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_err why = PSEG_ERR_INIT;
    size_t n = job->n_results;
    Pseg__V1__Mask *masks = pseg_calloc(n, sizeof *masks), **list = pseg_calloc(n, sizeof *list);

    if (!masks || !list)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    for (size_t i = 0; i < n; i++) {
        pseg__v1__mask__init(&masks[i]);
        list[i] = &masks[i];
    }
    rc = fetch_masks(list, n, r, job->name, &why);
    if (rc == PSEG_ENOTFOUND) { /* their time to live is over: another line's result is not worse */
        rc = put_failure(r, item, "SUCCEEDED", pseg_reason_name(why.reason), why.msg, err);
        goto out;
    }
    if (rc != PSEG_OK) {
        *err = why;
        goto out;
    }
    PSEG_TRY(batch_output_result(r->output, seq, item, job, list, n, err));
    r->state->succeeded++;
out:
    for (size_t i = 0; masks && i < n; i++)
        pseg_free(masks[i].data.data);
    pseg_free(masks);
    pseg_free(list);
    return rc;
}

static pseg_status put_result(batch_run *r, const Pseg__V1__BatchResult *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint64_t seq = (uint64_t)m->seq;
    json_t *item = NULL;

    if (seq < 1 || seq > r->n_items)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "the server tells of item %lld, and there are %llu",
                  (long long)m->seq, (unsigned long long)r->n_items);
    if (batch_told_has(r->told, seq)) /* it comes again: Redis has failed over */
        goto out;
    PSEG_TRY(batch_plan_get(&item, r->plan, seq, err));
    if (m->state != PSEG__V1__STATE__STATE_SUCCEEDED)
        PSEG_TRY(put_refused(r, item, m, err));
    else if (!m->job)
        PSEG_TRY(put_failure(r, item, "SUCCEEDED", pseg_reason_name(PSEG_R_RESULT_EXPIRED),
                             "its time to live was over before it was fetched", err));
    else if (m->masks_omitted)
        PSEG_TRY(put_omitted(r, seq, item, m->job, err));
    else {
        PSEG_TRY(batch_output_result(r->output, seq, item, m->job, m->masks, m->n_masks, err));
        r->state->succeeded++;
    }
    PSEG_TRY(batch_told_add(r->told, seq, err));
out:
    json_decref(item);
    return rc;
}

/* ---- the stream ---- */

static pseg_status keep(collector *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_run *r = c->run;

    PSEG_TRY(batch_told_sync(r->told, err));
    PSEG_TRY(batch_output_sync(&r->state->at, r->output, err));
    PSEG_TRY(batch_state_save(r->state, err));
    c->kept_ms = pseg_clock_mono_ms();
out:
    return rc;
}

static pseg_status take(collector *c, const Pseg__V1__StreamBatchResultsResponse *m, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_run *r = c->run;

    batch_patience_reset(&c->patience);
    if (m->what_case == PSEG__V1__STREAM_BATCH_RESULTS_RESPONSE__WHAT_RESULT)
        PSEG_TRY(put_result(r, m->result, err));
    if (*m->resume_token)
        PSEG_TRY(batch_state_set_token(r->state, m->resume_token, err));
    pthread_mutex_lock(&r->mu);
    r->succeeded = r->state->succeeded;
    r->failed = r->state->failed;
    pthread_mutex_unlock(&r->mu);
    if (pseg_clock_mono_ms() - c->kept_ms >= KEEP_MS)
        PSEG_TRY(keep(c, err));
out:
    return rc;
}

/* From its opening to its end. *is_ours: the failure is not the server's, and trying again is no
 * use. */
static pseg_status attempt(collector *c, int64_t *retry_after_ms, bool *is_ours, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_run *r = c->run;
    Pseg__V1__StreamBatchResultsRequest q = PSEG__V1__STREAM_BATCH_RESULTS_REQUEST__INIT;
    Pseg__V1__MaskFormat format = PSEG__V1__MASK_FORMAT__INIT;
    Pseg__V1__StreamBatchResultsResponse *m;
    pseg_rpc_stream *s = NULL;

    q.name = unconst(r->name);
    q.resume_token = r->state->token;
    q.format = &format;
    format.encoding = batch_format_encoding(r->format);
    *retry_after_ms = -1;
    PSEG_TRY(pseg_rpc_open(&s, r->cli->channel, method,
                           &pseg__v1__stream_batch_results_response__descriptor, -1, err));
    pseg_rpc_stream_send(s, &q.base);
    pseg_rpc_stream_half_close(s);
    while (rc == PSEG_OK && !batch_run_is_stopped(r) &&
           (m = (Pseg__V1__StreamBatchResultsResponse *)pseg_rpc_stream_recv(s))) {
        rc = take(c, m, err);
        pseg_rpc_message_free(&m->base);
    }
    *is_ours = rc != PSEG_OK;
    if (*is_ours || batch_run_is_stopped(r))
        pseg_rpc_stream_cancel(s);
    pseg_status closed = pseg_rpc_close(s, retry_after_ms, *is_ours ? NULL : err);
    rc = *is_ours ? rc : closed;
out:
    return rc;
}

void batch_collect(batch_run *r)
{
    pseg_status rc = PSEG_OK;
    pseg_err error = PSEG_ERR_INIT, *err = &error, ignored = PSEG_ERR_INIT;
    collector c = {.run = r, .kept_ms = pseg_clock_mono_ms()};
    int64_t retry_after_ms;
    bool is_ours = false;

    batch_patience_begin(&c.patience, r);
    for (;;) {
        rc = attempt(&c, &retry_after_ms, &is_ours, err);
        if (rc == PSEG_OK)
            break;
        if (is_ours)
            goto out;
        PSEG_TRY(batch_patience_wait(&c.patience, retry_after_ms, err));
    }
out:
    /* Also after a failure of the server: what has come is kept. After one of our own, what is kept
     * already is all that is known to be whole. */
    if (!is_ours && keep(&c, rc == PSEG_OK ? err : &ignored) != PSEG_OK && rc == PSEG_OK)
        rc = err->code;
    if (rc != PSEG_OK)
        batch_run_fail(r, rc, err);
}
