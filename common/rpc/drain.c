/* A server that stops, as a loop sees it. */
#include "common/rpc/internal.h"

#include "common/base/clock.h"

#include <grpc/support/alloc.h>

enum {
    UNREAD_MS = 5000, /* for a client to take the last message, or half of the grace */
    UNREAD_LOOK_MS = 100,
};

/* The status of a call waits for the message before it, and that one for a client who may never
 * read. That of a cancelled call does not; a client that has half a message may see the end of the
 * connection instead, which is UNAVAILABLE, too. */
static void cut_off(pseg_rpc_call *c)
{
    char *text = c->code ? grpc_slice_to_c_string(c->text) : NULL;

    grpc_call_cancel_with_status(
        c->call, c->code ? (grpc_status_code)c->code : GRPC_STATUS_UNAVAILABLE,
        text ? text : "the server is stopping, and its last message was not read", NULL);
    gpr_free(text);
}

/* Only of methods that end themselves when the server stops; others may use the grace. */
static void cut_off_unread(pseg_rpc_timer *t, void *ud)
{
    pseg_rpc_loop *l = ud;
    int64_t half_ms = l->server->grace_ms / 2, now = pseg_clock_mono_us(),
            patience_us = (half_ms < UNREAD_MS ? half_ms : UNREAD_MS) * 1000;

    for (pseg_rpc_call *c = l->calls; c; c = c->next) {
        int64_t since_us = c->sent_us > l->drain_us ? c->sent_us : l->drain_us;
        if (c->dispatched && !c->closed && c->sending && c->row->method->on_drain &&
            now - since_us >= patience_us)
            cut_off(c);
    }
    pseg_rpc_timer_set(l, t, UNREAD_LOOK_MS, cut_off_unread, l);
}

/* The requests that are open when the server stops come back not ok, at least one on every loop:
 * that is the loop's sign to let its long calls end themselves. */
void pseg_rpc_drain(pseg_rpc_loop *l)
{
    if (l->draining)
        return;
    l->draining = true;
    l->drain_us = pseg_clock_mono_us();
    pseg_rpc_timer_set(l, &l->unread, UNREAD_LOOK_MS, cut_off_unread, l);
    for (pseg_rpc_call *c = l->calls, *next; c; c = next) {
        next = c->next; /* c itself cannot go before its close, which is an event of its own */
        if (c->dispatched && !pseg_rpc_is_over(c) && c->row->method->on_drain)
            c->row->method->on_drain(c);
    }
    pseg_rpc_loop_unref(l);
}
