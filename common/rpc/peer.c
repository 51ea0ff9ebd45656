/* What is known of a call: who calls, with what headers, until when. */
#include "common/rpc/internal.h"

#include <grpc/support/alloc.h>
#include <grpc/support/time.h>

#include <string.h>
#include <strings.h>

const char *pseg_rpc_peer_address(pseg_rpc_call *c)
{
    if (!c->peer_address) {
        char *peer = grpc_call_get_peer(c->call);
        c->peer_address = pseg_arena_strdup(c->arena, peer);
        gpr_free(peer);
    }
    return c->peer_address ? c->peer_address : "";
}

const pseg_trace_context *pseg_rpc_trace(pseg_rpc_call *c)
{
    double ratio = c->loop->server->options.trace_ratio;

    if (!c->looked_for_trace) {
        c->looked_for_trace = true;
        c->has_caller = pseg_trace_context_parse(&c->caller, pseg_rpc_header(c, "traceparent"));
        if (ratio >= 0)
            c->has_trace =
                pseg_trace_context_begin(&c->trace, c->has_caller ? &c->caller : NULL, ratio);
    }
    return c->has_trace ? &c->trace : c->has_caller ? &c->caller : NULL;
}

const char *pseg_rpc_header(pseg_rpc_call *c, const char *name)
{
    for (size_t i = 0; i < c->headers.count; i++) {
        const grpc_metadata *md = &c->headers.metadata[i];
        if (grpc_slice_str_cmp(md->key, name) == 0)
            return pseg_arena_strndup(c->arena, (const char *)GRPC_SLICE_START_PTR(md->value),
                                      GRPC_SLICE_LENGTH(md->value));
    }
    return NULL;
}

/* A name that holds a NUL is a forgery ("good.example\0.evil.example"): it counts as none. */
static const char *property(pseg_rpc_call *c, const grpc_auth_property *p)
{
    if (!p || memchr(p->value, '\0', p->value_length))
        return NULL;
    return pseg_arena_strndup(c->arena, p->value, p->value_length);
}

static pseg_status read_certificate(pseg_rpc_call *c, const grpc_auth_context *auth,
                                    pseg_rpc_peer *peer, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const grpc_auth_property *p;

    if (!grpc_auth_context_peer_is_authenticated(auth))
        goto out;
    peer->has_certificate = true;
    grpc_auth_property_iterator it =
        grpc_auth_context_find_properties_by_name(auth, GRPC_X509_CN_PROPERTY_NAME);
    const char *name = property(c, grpc_auth_property_iterator_next(&it));
    peer->common_name = name ? name : "";

    size_t n = 0;
    it = grpc_auth_context_find_properties_by_name(auth, GRPC_X509_SAN_PROPERTY_NAME);
    while (grpc_auth_property_iterator_next(&it))
        n++;
    const char **names = pseg_arena_calloc(c->arena, n ? n : 1, sizeof *names);
    if (!names)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "out of memory");
    it = grpc_auth_context_find_properties_by_name(auth, GRPC_X509_SAN_PROPERTY_NAME);
    while ((p = grpc_auth_property_iterator_next(&it)) != NULL) {
        names[peer->n_alt_names] = property(c, p);
        if (names[peer->n_alt_names])
            peer->n_alt_names++;
    }
    peer->alt_names = names;
out:
    return rc;
}

pseg_status pseg_rpc_authorize(pseg_rpc_call *c, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_rpc_server_options *o = &c->loop->server->options;
    pseg_rpc_peer peer = {.common_name = ""};
    grpc_auth_context *auth = NULL;

    if (!o->authorize)
        goto out;
    peer.address = pseg_rpc_peer_address(c);
    auth = grpc_call_auth_context(c->call);
    if (auth)
        PSEG_TRY(read_certificate(c, auth, &peer, err));
    const char *value = pseg_rpc_header(c, "authorization");
    if (value && strncasecmp(value, "Bearer ", 7) == 0)
        peer.bearer = value + 7 + strspn(value + 7, " ");
    PSEG_TRY(o->authorize(o->authorize_ud, c->tenant, &peer, c->row->method->path, err));
    if (!c->tenant[0])
        PSEG_FAIL(PSEG_R_PERMISSION_DENIED, 0, "the identity has no tenant");
out:
    if (auth)
        grpc_auth_context_release(auth);
    return rc;
}

int64_t pseg_rpc_ms_left(const pseg_rpc_call *c)
{
    gpr_timespec at = c->details.deadline;

    if (gpr_time_cmp(at, gpr_inf_future(at.clock_type)) == 0)
        return INT64_MAX;
    gpr_timespec left = gpr_time_sub(at, gpr_now(at.clock_type));
    return left.tv_sec * 1000 + left.tv_nsec / 1000000;
}

void *pseg_rpc_ud(const pseg_rpc_call *c)
{
    return c->row->ud;
}

const char *pseg_rpc_tenant(const pseg_rpc_call *c)
{
    return c->tenant;
}

pseg_rpc_loop *pseg_rpc_loop_of(const pseg_rpc_call *c)
{
    return c->loop;
}

void pseg_rpc_set_state(pseg_rpc_call *c, void *state)
{
    c->state = state;
}

void *pseg_rpc_state(const pseg_rpc_call *c)
{
    return c->state;
}

pseg_arena *pseg_rpc_arena(pseg_rpc_call *c)
{
    return c->arena;
}
