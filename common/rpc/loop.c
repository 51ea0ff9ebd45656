/* The thread of a completion queue, its timers, and tickets. */
#include "common/rpc/internal.h"

#include "common/base/alloc.h"
#include "common/base/clock.h"

#include <grpc/support/time.h>

/* ---- timers: a pairing heap, so that setting one needs no memory ---- */

static pseg_rpc_timer *merge(pseg_rpc_timer *a, pseg_rpc_timer *b)
{
    if (!a || !b)
        return a ? a : b;
    if (b->at_us < a->at_us) {
        pseg_rpc_timer *t = a;
        a = b;
        b = t;
    }
    b->sibling = a->child;
    if (b->sibling)
        b->sibling->slot = &b->sibling;
    a->child = b;
    b->slot = &a->child;
    return a;
}

/* Pairs from left to right, then all pairs from right to left: O(log n) amortised. */
static pseg_rpc_timer *merge_siblings(pseg_rpc_timer *list)
{
    pseg_rpc_timer *pairs = NULL, *root = NULL;

    while (list) {
        pseg_rpc_timer *a = list, *b = a->sibling;
        list = b ? b->sibling : NULL;
        a->sibling = NULL;
        if (b)
            b->sibling = NULL;
        a = merge(a, b);
        a->sibling = pairs;
        pairs = a;
    }
    while (pairs) {
        pseg_rpc_timer *next = pairs->sibling;
        pairs->sibling = NULL;
        root = merge(root, pairs);
        pairs = next;
    }
    return root;
}

static void set_root(pseg_rpc_loop *l, pseg_rpc_timer *root)
{
    l->timers = root;
    if (root) {
        root->slot = &l->timers;
        root->sibling = NULL;
    }
}

void pseg_rpc_timer_cancel(pseg_rpc_loop *l, pseg_rpc_timer *t)
{
    if (!t->armed)
        return;
    t->armed = false;
    *t->slot = t->sibling;
    if (t->sibling)
        t->sibling->slot = t->slot;
    pseg_rpc_timer *rest = merge_siblings(t->child);
    t->child = t->sibling = NULL;
    set_root(l, merge(l->timers, rest));
}

void pseg_rpc_timer_set(pseg_rpc_loop *l, pseg_rpc_timer *t, int64_t ms,
                        void (*fn)(pseg_rpc_timer *t, void *ud), void *ud)
{
    const int64_t longest = (int64_t)365 * 24 * 3600 * 1000;

    pseg_rpc_timer_cancel(l, t);
    ms = ms < 0 ? 0 : ms > longest ? longest : ms;
    *t = (pseg_rpc_timer){
        .fn = fn, .ud = ud, .at_us = pseg_clock_mono_us() + ms * 1000, .armed = true};
    set_root(l, merge(l->timers, t));
}

bool pseg_rpc_run_timers(pseg_rpc_loop *l)
{
    if (!l->timers)
        return false;
    int64_t now = pseg_clock_mono_us(); /* once, so that a timer that sets itself anew ends */
    while (l->timers && l->timers->at_us <= now) {
        pseg_rpc_timer *t = l->timers;
        pseg_rpc_timer_cancel(l, t);
        t->fn(t, t->ud);
    }
    return l->timers != NULL;
}

/* ---- the thread ---- */

/* The core's clock may differ from ours in its origin, so only the difference is used. */
static gpr_timespec core_time(int64_t at_us)
{
    int64_t left = at_us - pseg_clock_mono_us();

    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_micros(left > 0 ? left : 0, GPR_TIMESPAN));
}

void *pseg_rpc_loop_main(void *loop)
{
    pseg_rpc_loop *l = loop;

    for (;;) {
        gpr_timespec until = gpr_inf_future(GPR_CLOCK_MONOTONIC);
        /* Once nothing is open the queue is shut down, and a timer must not start anything on it.
         */
        if (l->n_open > 0 && pseg_rpc_run_timers(l))
            until = core_time(l->timers->at_us);
        grpc_event e = grpc_completion_queue_next(l->cq, until, NULL);
        if (e.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (e.type == GRPC_OP_COMPLETE)
            ((pseg_rpc_tag *)e.tag)->fn(e.tag, e.success);
    }
}

void pseg_rpc_loop_unref(pseg_rpc_loop *l)
{
    if (--l->n_open == 0)
        grpc_completion_queue_shutdown(l->cq);
}
