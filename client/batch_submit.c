/* Sends the items of a batch: one stream, which a second thread listens to, and another one where
 * it breaks, from the number on that the server asks for. */
#include "client/batch_run.h"

#include "client/batch/json.h"

static const char method[] = "/pseg.v1.BatchService/SubmitJobs";

typedef struct submitter {
    batch_run *run;
    batch_reader *reader;
    batch_patience patience; /* the listener's while a stream is open */
    pseg_rpc_stream *stream;
    uint64_t next; /* item to send */
    /* Under the run's mu. */
    uint64_t asked; /* the server's first answer: where to go on; 0: none yet */
    bool is_answered, is_ended, is_sealed;
} submitter;

static char *unconst(const char *s)
{
    return (char *)(uintptr_t)s;
}

/* ---- listening ---- */

static void *listen_to(void *ud)
{
    submitter *s = ud;
    batch_run *r = s->run;
    Pseg__V1__SubmitJobsResponse *m;

    while ((m = (Pseg__V1__SubmitJobsResponse *)pseg_rpc_stream_recv(s->stream))) {
        batch_patience_reset(&s->patience);
        pthread_mutex_lock(&r->mu);
        if (!s->is_answered)
            s->asked = m->next_seq > 0 ? (uint64_t)m->next_seq : 1;
        s->is_answered = true;
        s->is_sealed = s->is_sealed || m->sealed;
        if (m->next_seq > 0 && (uint64_t)m->next_seq > r->sent_end)
            r->sent_end = (uint64_t)m->next_seq;
        pthread_cond_broadcast(&r->cv);
        pthread_mutex_unlock(&r->mu);
        if (m->window_end > 0)
            batch_reader_allow(s->reader, (uint64_t)m->window_end);
        pseg_rpc_message_free(&m->base);
    }
    pthread_mutex_lock(&r->mu);
    s->is_ended = true;
    pthread_cond_broadcast(&r->cv);
    pthread_mutex_unlock(&r->mu);
    return NULL;
}

static bool is_over(void *ud)
{
    const submitter *s = ud;

    return s->is_ended;
}

/* ---- sending ---- */

static bool send_item(submitter *s, const batch_ready *k)
{
    const batch_run *r = s->run;
    const json_t *list = json_object_get(k->item, "prompts"), *of;
    Pseg__V1__SubmitJobsRequest q = PSEG__V1__SUBMIT_JOBS_REQUEST__INIT;
    Pseg__V1__BatchItem item = PSEG__V1__BATCH_ITEM__INIT;
    Pseg__V1__JobSpec job = PSEG__V1__JOB_SPEC__INIT;
    Google__Protobuf__Duration ttl = GOOGLE__PROTOBUF__DURATION__INIT;
    Pseg__V1__Prompt prompts[BATCH_MAX_PROMPTS], *prompt_list[BATCH_MAX_PROMPTS];
    const char *model = batch_json_get(k->item, "model");

    q.part_case = PSEG__V1__SUBMIT_JOBS_REQUEST__PART_ITEM;
    q.item = &item;
    item.seq = (int64_t)s->next;
    item.custom_id = unconst(k->custom_id);
    item.job = &job;
    if (k->content) {
        job.image_case = PSEG__V1__JOB_SPEC__IMAGE_CONTENT;
        job.content.data = k->content;
        job.content.len = k->len;
    } else if (k->sha256[0]) {
        job.image_case = PSEG__V1__JOB_SPEC__IMAGE_SHA256;
        job.sha256 = unconst(k->sha256);
    }
    /* A bad item goes without an image and without prompts: it is refused and told, in its place.
     */
    if (job.image_case != PSEG__V1__JOB_SPEC__IMAGE__NOT_SET)
        for (; job.n_prompts < json_array_size(list); job.n_prompts++) {
            Pseg__V1__Prompt *p = &prompts[job.n_prompts];
            pseg__v1__prompt__init(p);
            p->text = unconst(json_string_value(json_array_get(list, job.n_prompts)));
            prompt_list[job.n_prompts] = p;
        }
    job.prompts = prompt_list;
    job.model = unconst(*model ? model : r->model);
    of = json_object_get(k->item, "threshold");
    job.mask_threshold = (float)(of ? json_number_value(of) : r->threshold);
    job.priority = (int32_t)r->priority;
    ttl.seconds = r->ttl_ms / 1000;
    if (r->ttl_ms)
        job.result_ttl = &ttl;
    return pseg_rpc_stream_send(s->stream, &q.base);
}

/* false: the stream has ended, or the run. */
static bool send_items(submitter *s)
{
    const batch_run *r = s->run;

    while (s->next <= r->n_items) {
        const batch_ready *k = batch_reader_next(s->reader, is_over, s);
        bool sent = k && send_item(s, k);
        if (k)
            batch_reader_drop(s->reader);
        if (!sent)
            return false;
        s->next++;
    }
    return true;
}

/* Waits for the answer to the header. */
static bool is_asked_for_items(submitter *s)
{
    batch_run *r = s->run;

    pthread_mutex_lock(&r->mu);
    while (!r->stop && !s->is_ended && !s->is_answered)
        pthread_cond_wait(&r->cv, &r->mu);
    bool yes = !r->stop && s->is_answered && !s->is_sealed;
    s->next = s->asked;
    pthread_mutex_unlock(&r->mu);
    return yes;
}

static void talk(submitter *s)
{
    Pseg__V1__SubmitJobsRequest q = PSEG__V1__SUBMIT_JOBS_REQUEST__INIT;
    Pseg__V1__SubmitHeader header = PSEG__V1__SUBMIT_HEADER__INIT;
    Pseg__V1__SubmitSeal seal = PSEG__V1__SUBMIT_SEAL__INIT;

    q.part_case = PSEG__V1__SUBMIT_JOBS_REQUEST__PART_HEADER;
    q.header = &header;
    header.batch = unconst(s->run->name);
    if (!pseg_rpc_stream_send(s->stream, &q.base) || !is_asked_for_items(s))
        return;
    batch_reader_start(s->reader, s->next);
    if (!send_items(s))
        return;
    q.part_case = PSEG__V1__SUBMIT_JOBS_REQUEST__PART_SEAL;
    q.seal = &seal;
    pseg_rpc_stream_send(s->stream, &q.base);
}

/* One stream, from its opening to its end. */
static pseg_status attempt(submitter *s, int64_t *retry_after_ms, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    batch_run *r = s->run;
    pthread_t listener;

    *retry_after_ms = -1;
    s->asked = 0;
    s->is_answered = s->is_ended = false;
    batch_reader_halt(s->reader);
    PSEG_TRY(pseg_rpc_open(&s->stream, r->cli->channel, method,
                           &pseg__v1__submit_jobs_response__descriptor, -1, err));
    if (pthread_create(&listener, NULL, listen_to, s)) {
        pseg_rpc_stream_cancel(s->stream);
        pseg_rpc_close(s->stream, NULL, NULL);
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "cannot start a thread");
    }
    talk(s);
    if (batch_run_is_stopped(r))
        pseg_rpc_stream_cancel(s->stream);
    pseg_rpc_stream_half_close(s->stream);
    pthread_join(listener, NULL);
    rc = pseg_rpc_close(s->stream, retry_after_ms, err);
    if (rc == PSEG_OK && !s->is_sealed)
        PSEG_FAIL(PSEG_R_SERVER_UNAVAILABLE, 0, "the server ended the stream of items too early");
out:
    s->stream = NULL;
    return rc;
}

void batch_submit(batch_run *r)
{
    pseg_status rc = PSEG_OK;
    pseg_err error = PSEG_ERR_INIT, *err = &error;
    submitter s = {.run = r};
    int64_t retry_after_ms;

    batch_patience_begin(&s.patience, r);
    PSEG_TRY(batch_reader_new(&s.reader, r, err));
    while (!s.is_sealed) {
        rc = attempt(&s, &retry_after_ms, err);
        if (rc != PSEG_OK)
            PSEG_TRY(batch_patience_wait(&s.patience, retry_after_ms, err));
    }
out:
    batch_reader_free(s.reader);
    if (rc != PSEG_OK)
        batch_run_fail(r, rc, err);
    pthread_mutex_lock(&r->mu);
    r->sending_is_over = true;
    pthread_cond_broadcast(&r->cv);
    pthread_mutex_unlock(&r->mu);
}
