#include "tests/unit/rpc_demo.h"

#include "common/base/clock.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct demo_job {
    struct demo_job *next;
    pseg_rpc_ticket *ticket;
} demo_job;

#define REPLY_INIT PSEG__TEST__V1__ECHO_REPLY__INIT
typedef Pseg__Test__V1__EchoRequest echo_request;
typedef Pseg__Test__V1__EchoReply echo_reply;

static void echo(pseg_rpc_call *c, const void *msg)
{
    const echo_request *q = msg;
    echo_reply r = REPLY_INIT;
    r.text = q->text;
    r.tenant = (char *)pseg_rpc_tenant(c);
    r.size = q->data.len;
    if (q->reply_bytes) {
        r.data.len = q->reply_bytes;
        r.data.data = pseg_arena_calloc(pseg_rpc_arena(c), 1, q->reply_bytes);
        if (!r.data.data)
            abort();
    }
    pseg_rpc_reply(c, &r.base);
}

static void upload(pseg_rpc_call *c, const void *msg)
{
    const echo_request *q = msg;
    uint64_t *sum = pseg_rpc_state(c);
    echo_reply r = REPLY_INIT;

    if (!sum) {
        sum = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *sum);
        if (!sum)
            abort();
        pseg_rpc_set_state(c, sum);
    }
    if (q)
        *sum += q->data.len;
    if (!q || strcmp(q->text, "enough") == 0) {
        r.size = *sum;
        pseg_rpc_reply(c, &r.base);
    } else {
        pseg_rpc_read(c);
    }
}

typedef struct counting {
    uint32_t next, n;
} counting;

static void count_more(pseg_rpc_call *c)
{
    counting *s = pseg_rpc_state(c);
    echo_reply r = REPLY_INIT;

    if (s->next == s->n) {
        pseg_rpc_finish(c);
        return;
    }
    r.size = s->next++;
    pseg_rpc_send(c, &r.base);
}

static void count(pseg_rpc_call *c, const void *msg)
{
    const Pseg__Test__V1__CountRequest *q = msg;
    counting *s = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *s);
    if (!s)
        abort();
    s->n = q->n;
    pseg_rpc_set_state(c, s);
    count_more(c);
}

static void chat(pseg_rpc_call *c, const void *msg)
{
    const echo_request *q = msg;
    echo_reply r = REPLY_INIT;

    if (!q) {
        pseg_rpc_finish(c);
        return;
    }
    r.text = q->text;
    pseg_rpc_send(c, &r.base); /* the next message is read when this one is out */
}

static void fail(pseg_rpc_call *c, const void *msg)
{
    const Pseg__Test__V1__FailRequest *q = msg;
    pseg_err err = PSEG_ERR_INIT;

    pseg_err_set(&err, pseg_reason_from_name(q->reason), 0, PSEG_HERE, "%.*s", (int)q->message.len,
                 (const char *)q->message.data);
    pseg_err_field(&err, "%s", q->field);
    if (q->retry_after_ms)
        pseg_rpc_fail_after(c, &err, q->retry_after_ms);
    else
        pseg_rpc_fail(c, &err);
}

static void end_counted(pseg_rpc_call *c)
{
    demo *d = pseg_rpc_ud(c);

    pthread_mutex_lock(&d->mu);
    if (pseg_rpc_is_cancelled(c))
        atomic_fetch_add(&d->cancelled, 1);
    atomic_fetch_add(&d->ended, 1);
    pthread_cond_broadcast(&d->cv);
    pthread_mutex_unlock(&d->mu);
}

/* ---- Wait ---- */

enum { MAX_TIMERS = 300 };

typedef struct waiting {
    pseg_rpc_call *call;
    pseg_rpc_timer timer;
    pseg_rpc_timer timers[MAX_TIMERS];
    int64_t ms[MAX_TIMERS], last_ms;
    int n, left;
    bool stubborn, in_order;
} waiting;

static void answer(pseg_rpc_call *c, void *arg)
{
    echo_reply r = REPLY_INIT;
    r.text = arg;
    pseg_rpc_reply(c, &r.base);
}

static void on_timer(pseg_rpc_timer *t, void *ud)
{
    (void)t;
    answer(((waiting *)ud)->call, (char *)"timer");
}

static void on_one_of_many(pseg_rpc_timer *t, void *ud)
{
    waiting *w = ud;
    int64_t ms = w->ms[t - w->timers];

    if (ms < w->last_ms || (t - w->timers) % 3 == 0)
        w->in_order = false;
    w->last_ms = ms;
    if (--w->left == 0)
        answer(w->call, (char *)(w->in_order ? "in order" : "out of order"));
}

static void set_many(waiting *w, int n)
{
    pseg_rpc_loop *l = pseg_rpc_loop_of(w->call);

    w->n = w->left = n;
    w->in_order = true;
    for (int i = 0; i < n; i++) { /* the same time for several, and some set twice */
        w->ms[i] = (i * 37) % 101 / 2;
        pseg_rpc_timer_set(l, &w->timers[i], i % 5 == 0 ? 1000 : w->ms[i], on_one_of_many, w);
        if (i % 5 == 0)
            pseg_rpc_timer_set(l, &w->timers[i], w->ms[i], on_one_of_many, w);
    }
    for (int i = 0; i < n; i += 3) {
        pseg_rpc_timer_cancel(l, &w->timers[i]);
        pseg_rpc_timer_cancel(l, &w->timers[i]);
        w->left--;
    }
}

static void enqueue(demo *d, pseg_rpc_call *c)
{
    demo_job *j = calloc(1, sizeof *j);
    j->ticket = pseg_rpc_hold(c);
    pthread_mutex_lock(&d->mu);
    j->next = d->jobs;
    d->jobs = j;
    pthread_cond_signal(&d->cv);
    pthread_mutex_unlock(&d->mu);
}

static void wait_call(pseg_rpc_call *c, const void *msg)
{
    const Pseg__Test__V1__WaitRequest *q = msg;
    demo *d = pseg_rpc_ud(c);
    waiting *w = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *w);

    if (!w)
        abort();
    w->call = c;
    pseg_rpc_set_state(c, w);
    atomic_fetch_add(&d->begun, 1);
    switch (q->how) {
    case PSEG__TEST__V1__WAIT_REQUEST__HOW__STUBBORN:
        w->stubborn = true;
        break;
    case PSEG__TEST__V1__WAIT_REQUEST__HOW__TIMER:
        pseg_rpc_timer_set(pseg_rpc_loop_of(c), &w->timer, q->ms, on_timer, w);
        break;
    case PSEG__TEST__V1__WAIT_REQUEST__HOW__THREAD:
        enqueue(d, c);
        break;
    case PSEG__TEST__V1__WAIT_REQUEST__HOW__TIMERS:
        set_many(w, (int)q->ms);
        break;
    default:
        break;
    }
}

static void wait_drain(pseg_rpc_call *c)
{
    waiting *w = pseg_rpc_state(c);
    demo *d = pseg_rpc_ud(c);
    pseg_err err = PSEG_ERR_INIT;

    if (w && w->stubborn)
        return;
    atomic_fetch_add(&d->drained, 1);
    pseg_err_set(&err, PSEG_R_DRAINING, 0, PSEG_HERE, "the server is stopping");
    pseg_rpc_fail(c, &err);
}

static void wait_end(pseg_rpc_call *c)
{
    waiting *w = pseg_rpc_state(c);

    if (!w)
        return;
    pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &w->timer);
    for (int i = 0; i < w->n; i++)
        pseg_rpc_timer_cancel(pseg_rpc_loop_of(c), &w->timers[i]);
    end_counted(c);
}

/* ---- Talk ---- */

typedef struct talking {
    uint64_t sum, told;
    bool is_sending, is_eof;
} talking;

static void talk_on(pseg_rpc_call *c, talking *t)
{
    echo_reply r = REPLY_INIT;

    if (t->is_sending)
        return;
    if (t->told < t->sum) {
        r.size = t->told = t->sum;
        t->is_sending = true;
        pseg_rpc_send(c, &r.base);
    } else if (t->is_eof) {
        pseg_rpc_finish(c);
    }
}

static talking *talking_of(pseg_rpc_call *c)
{
    demo *d = pseg_rpc_ud(c);
    talking *t = pseg_rpc_state(c);

    if (t)
        return t;
    t = pseg_arena_calloc(pseg_rpc_arena(c), 1, sizeof *t);
    if (!t)
        abort();
    pseg_rpc_set_state(c, t);
    atomic_fetch_add(&d->begun, 1);
    return t;
}

static void talk(pseg_rpc_call *c, const void *msg)
{
    const echo_request *q = msg;
    talking *t = talking_of(c);

    if (q) {
        t->sum += q->data.len;
        pseg_rpc_read(c);
    } else {
        t->is_eof = true;
    }
    talk_on(c, t);
}

static void talk_writable(pseg_rpc_call *c)
{
    talking *t = pseg_rpc_state(c);

    t->is_sending = false;
    talk_on(c, t);
}

static void talk_drain(pseg_rpc_call *c)
{
    demo *d = pseg_rpc_ud(c);
    pseg_err err = PSEG_ERR_INIT;

    atomic_fetch_add(&d->drained, 1);
    pseg_err_set(&err, PSEG_R_DRAINING, 0, PSEG_HERE, "the server is stopping");
    pseg_rpc_fail(c, &err);
}

static void talk_end(pseg_rpc_call *c)
{
    if (pseg_rpc_state(c))
        end_counted(c);
}

static void *answer_thread(void *arg)
{
    demo *d = arg;

    pthread_mutex_lock(&d->mu);
    for (;;) {
        while (!d->jobs || d->hold) {
            if (d->stop && !d->jobs) {
                pthread_mutex_unlock(&d->mu);
                return NULL;
            }
            pthread_cond_wait(&d->cv, &d->mu);
        }
        demo_job *j = d->jobs;
        d->jobs = j->next;
        pthread_mutex_unlock(&d->mu);
        if (j->ticket)
            pseg_rpc_post(j->ticket, answer, (char *)"thread");
        free(j);
        pthread_mutex_lock(&d->mu);
    }
}

void demo_start(demo *d)
{
    *d = (demo){.mu = PTHREAD_MUTEX_INITIALIZER, .cv = PTHREAD_COND_INITIALIZER};
    if (pthread_create(&d->thread, NULL, answer_thread, d) != 0)
        abort();
}

void demo_hold(demo *d, bool hold)
{
    pthread_mutex_lock(&d->mu);
    d->hold = hold;
    pthread_cond_broadcast(&d->cv);
    pthread_mutex_unlock(&d->mu);
}

void demo_stop(demo *d)
{
    pthread_mutex_lock(&d->mu);
    d->stop = true;
    pthread_cond_broadcast(&d->cv);
    pthread_mutex_unlock(&d->mu);
    pthread_join(d->thread, NULL);
}

#define REQUEST &pseg__test__v1__echo_request__descriptor
const pseg_rpc_method demo_methods[] = {
    {"/pseg.test.v1.Demo/Echo", PSEG_RPC_UNARY, REQUEST, .on_message = echo},
    {"/pseg.test.v1.Demo/Upload", PSEG_RPC_CLIENT_STREAM, REQUEST, .on_message = upload},
    {"/pseg.test.v1.Demo/Count", PSEG_RPC_SERVER_STREAM, &pseg__test__v1__count_request__descriptor,
     .on_message = count, .on_writable = count_more},
    {"/pseg.test.v1.Demo/Chat", PSEG_RPC_CLIENT_STREAM | PSEG_RPC_SERVER_STREAM, REQUEST,
     .on_message = chat, .on_writable = pseg_rpc_read},
    {"/pseg.test.v1.Demo/Talk", PSEG_RPC_CLIENT_STREAM | PSEG_RPC_SERVER_STREAM, REQUEST,
     .on_message = talk, .on_writable = talk_writable, .on_drain = talk_drain, .on_end = talk_end},
    {"/pseg.test.v1.Demo/Fail", PSEG_RPC_UNARY, &pseg__test__v1__fail_request__descriptor,
     .on_message = fail},
    {"/pseg.test.v1.Demo/Wait", PSEG_RPC_UNARY, &pseg__test__v1__wait_request__descriptor,
     .on_message = wait_call, .on_drain = wait_drain, .on_end = wait_end},
    {0}};

void demo_until_ended(demo *d, int n)
{
    struct timespec ts;
    int failure = 0;

    clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_sec += 20;
    pthread_mutex_lock(&d->mu);
    while (atomic_load(&d->ended) < n && failure == 0)
        failure = pthread_cond_timedwait(&d->cv, &d->mu, &ts);
    pthread_mutex_unlock(&d->mu);
    if (failure)
        abort();
}

/* ---- a server ---- */

const pseg_log demo_log = {PSEG_LOG_ERROR, STDERR_FILENO};

pseg_rpc_server_options demo_options(void)
{
    pseg_rpc_server_options o = PSEG_RPC_SERVER_OPTIONS_DEFAULT;

    o.log = &demo_log;
    o.descriptors = demo_descriptors_begin;
    o.descriptors_len = (size_t)(demo_descriptors_end - demo_descriptors_begin);
    return o;
}

static void must(pseg_status rc, const pseg_err *err)
{
    if (rc == PSEG_OK)
        return;
    fprintf(stderr, "rpc demo: %s\n", err->msg);
    abort();
}

void demo_up(demo_server *f, const pseg_rpc_server_options *options,
             const pseg_rpc_channel_options *channel_options)
{
    pseg_rpc_server_options o = options ? *options : demo_options();
    pseg_rpc_channel_options co = PSEG_RPC_CHANNEL_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;

    demo_start(&f->d);
    must(pseg_rpc_server_new(&f->s, &o, &err), &err);
    must(pseg_rpc_server_add(f->s, demo_methods, &f->d, &err), &err);
    must(pseg_rpc_server_listen(f->s, "127.0.0.1:0", &f->port, &err), &err);
    must(pseg_rpc_server_start(f->s, &err), &err);
    snprintf(f->target, sizeof f->target, "127.0.0.1:%d", f->port);
    if (channel_options)
        co = *channel_options;
    co.target = f->target;
    must(pseg_rpc_dial(&f->ch, &co, &err), &err);
}

void demo_down(demo_server *f)
{
    pseg_rpc_hangup(f->ch);
    pseg_rpc_server_stop(f->s, 5000);
    pseg_rpc_server_free(f->s);
    demo_stop(&f->d);
}
