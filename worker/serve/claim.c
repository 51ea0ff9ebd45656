#include "worker/serve/internal.h"
#include "common/base/clock.h"

enum { MAX_CLAIMS = 64 };
/* A worker whose jobs are short holds as many as end in this time: by then it has told of some and
 * been given others, however busy Redis is. */
#define TURN_US 25000

/* How many jobs end in a turn. With the lock held. */
static size_t ends_in_a_turn(pseg_worker *w)
{
    enum { WHILE_US = 200000 };
    int64_t now = pseg_clock_mono_us(), us = now - w->rate_mono_us;

    if (us >= WHILE_US) {
        w->rate = (double)(w->n_freed - w->n_freed_before) / (double)us;
        w->n_freed_before = w->n_freed;
        w->rate_mono_us = now;
    }
    return (size_t)(w->rate * TURN_US);
}

/* Among several workers the jobs of a short line should not all go to the first to ask. So a worker
 * holds `ahead` besides one on each device, and more, up to a batch on each, while it gets all that
 * it asks for. */
static void set_window(pseg_worker *w, bool got_all)
{
    pthread_mutex_lock(&w->mu);
    size_t n = pseg_engine_n_devices(w->opt.engine) - w->n_out;
    size_t least = w->opt.ahead + n, most = n;
    if (w->opt.ahead > 0)
        most = w->opt.ahead + n * w->opt.batch + ends_in_a_turn(w);
    w->window = got_all ? 2 * w->window : least;
    if (w->window > most)
        w->window = most;
    if (w->window < least)
        w->window = least;
    pthread_mutex_unlock(&w->mu);
}

/* How many jobs may be held at once, given those that are. With the lock held. */
static size_t may_hold(const pseg_worker *w)
{
    size_t most = w->window;

    for (const pseg_task *t = w->held; t; t = t->next_held)
        if (t->group && t->group < most)
            most = t->group;
    return most;
}

/* A call for several jobs, not one for each: once those at hand are being prepared, and a quarter
 * of what may be held has ended or no more stand ready. With the lock held. */
static bool is_worth_a_call(const pseg_worker *w, size_t room, size_t most)
{
    return w->claimed.n == 0 && (room >= most / 4 || w->ready.n == 0);
}

/* Which jobs it gets first if it keeps images. */
static int64_t near_ms(const pseg_worker *w)
{
    return pseg_engine_keeps_images(w->opt.engine) ? w->opt.near_ms : 0;
}

/* Is a claim to be made now, by the caller? With the lock held. */
static bool begins_claim(pseg_worker *w)
{
    size_t most = may_hold(w), room = w->n_held < most ? most - w->n_held : 0;

    if (w->stopping || w->is_claiming || !w->may_claim || !room || !is_worth_a_call(w, room, most))
        return false;
    w->is_claiming = true;
    w->may_claim = false;
    w->n_asked = room < MAX_CLAIMS ? room : MAX_CLAIMS;
    return true;
}

/* On the queue's thread, from which a job whose image is at hand goes straight to the device. */
static void on_claimed(void *ud, pseg_queue_reply *r)
{
    pseg_worker *w = ud;
    pseg_task *at_hand = NULL, **at_hand_end = &at_hand, *others = NULL, **others_end = &others;
    size_t n = r->n_claims < w->n_asked ? r->n_claims : w->n_asked;

    /* All of them are held from now on, so that the heartbeat renews those that wait here. */
    for (size_t i = 0; i < n; i++) {
        pseg_task *t = pseg_task_new(w, &r->claims[i]);
        if (!t)
            continue; /* no memory: its lease ends by itself */
        pseg_task ***end = pseg_prepare_at_hand(w, t) ? &at_hand_end : &others_end;
        **end = t;
        *end = &t->next;
    }
    set_window(w, n == w->n_asked);
    pseg_line_push(w, &w->ready, at_hand);
    pseg_line_push(w, &w->claimed, others);
    pthread_mutex_lock(&w->mu);
    w->is_claiming = false;
    w->may_claim = w->may_claim || n == w->n_asked;
    w->is_withheld = r->again_ms > 0;
    w->again_mono_us = w->is_withheld ? pseg_clock_mono_us() + 1000 * r->again_ms : 0;
    if (w->again_mono_us || w->stopping)
        pthread_cond_signal(&w->timer);
    pthread_mutex_unlock(&w->mu);
    pseg_queue_reply_free(r);
    pseg_claim_if_due(w);
}

void pseg_claim_if_due(pseg_worker *w)
{
    pthread_mutex_lock(&w->mu);
    bool begins = begins_claim(w);
    size_t n = w->n_asked, held = w->n_held;
    pthread_mutex_unlock(&w->mu);
    if (begins)
        pseg_queue_claim_jobs(w->queue, w->opt.id, pseg_engine_name(w->opt.engine), n, held,
                              near_ms(w), on_claimed, w);
}

/* With the lock held; calls pseg_claim_if_due without it. */
static void may_claim(pseg_worker *w)
{
    w->may_claim = true;
    pthread_mutex_unlock(&w->mu);
    pseg_claim_if_due(w);
    pthread_mutex_lock(&w->mu);
}

void pseg_claim_on_ready(void *ud)
{
    pseg_worker *w = ud;

    pthread_mutex_lock(&w->mu);
    may_claim(w);
    pthread_mutex_unlock(&w->mu);
}

void *pseg_claim_main(void *arg)
{
    enum { MISSED_US = 1000000 }; /* a wake-up that was missed costs no more */
    pseg_worker *w = arg;

    pthread_mutex_lock(&w->mu);
    w->is_claiming = false;
    may_claim(w);
    while (!w->stopping || w->is_claiming) {
        int64_t until = pseg_clock_mono_us() + MISSED_US;
        if (w->again_mono_us && w->again_mono_us < until)
            until = w->again_mono_us;
        if (!pseg_cond_wait_until_us(&w->timer, &w->mu, until) && !w->stopping) {
            w->again_mono_us = 0;
            may_claim(w);
        }
    }
    pthread_mutex_unlock(&w->mu);
    return NULL;
}
