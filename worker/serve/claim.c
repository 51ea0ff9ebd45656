#include "worker/serve/internal.h"
#include "common/base/clock.h"

void pseg_claim_on_ready(void *ud)
{
    pseg_worker *w = ud;

    pseg_worker_tell(w, &w->may_claim);
}

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

/* How many more jobs may be held; waits while there is no room or nothing to claim. 0: stop.
 * again_ms: when there may be something to claim though nobody tells; 0: not known. */
static size_t wait_for_room(pseg_worker *w, int64_t again_ms)
{
    size_t room = 0;

    pthread_mutex_lock(&w->mu);
    /* A missed wake-up costs a second at most. */
    int64_t until = pseg_clock_mono_us() + 1000 * (again_ms && again_ms < 1000 ? again_ms : 1000);
    for (;;) {
        if (w->stopping) {
            room = 0;
            break;
        }
        size_t most = may_hold(w);
        room = w->n_held < most ? most - w->n_held : 0;
        if (room && w->may_claim && is_worth_a_call(w, room, most))
            break;
        if (!pseg_cond_wait_until_us(&w->room, &w->mu, until)) {
            w->may_claim = true;
            until = pseg_clock_mono_us() + 1000000;
        }
    }
    w->may_claim = false;
    pthread_mutex_unlock(&w->mu);
    return room;
}

/* Which jobs it gets first if it keeps images. */
static int64_t near_ms(const pseg_worker *w)
{
    return pseg_engine_keeps_images(w->opt.engine) ? w->opt.near_ms : 0;
}

/* Milliseconds after which jobs that are left to other workers for now may be claimed; 0: there are
 * none. */
static int64_t claim_some(pseg_worker *w, size_t room)
{
    pseg_queue_sync sync;

    pthread_mutex_lock(&w->mu);
    size_t held = w->n_held;
    pthread_mutex_unlock(&w->mu);
    pseg_queue_sync_init(&sync);
    pseg_queue_claim_jobs(w->queue, w->opt.id, pseg_engine_name(w->opt.engine), room, held,
                          near_ms(w), pseg_queue_sync_done, &sync);
    pseg_queue_reply *r = pseg_queue_sync_take(&sync);
    pseg_task *first = NULL, **end = &first;
    size_t n = r->n_claims < MAX_CLAIMS ? r->n_claims : MAX_CLAIMS;
    /* All of them are held from now on, so that the heartbeat renews those that wait here. */
    for (size_t i = 0; i < n; i++) {
        *end = pseg_task_new(w, &r->claims[i]);
        if (*end) /* else no memory: its lease ends by itself */
            end = &(*end)->next;
    }
    set_window(w, n == room);
    if (n == room)
        pseg_worker_tell(w, &w->may_claim);
    pseg_line_push(w, &w->claimed, first);
    int64_t again_ms = r->again_ms;
    pseg_queue_reply_free(r);
    return again_ms;
}

void *pseg_claim_main(void *arg)
{
    pseg_worker *w = arg;
    int64_t again_ms = 0;
    size_t room;

    while ((room = wait_for_room(w, again_ms)) > 0)
        again_ms = claim_some(w, room < MAX_CLAIMS ? room : MAX_CLAIMS);
    return NULL;
}
