#include "common/metrics/http.h"
#include "common/base/alloc.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 64, MAX_TEXT = 64 << 20, TIMEOUT_S = 10 };

struct pseg_metrics_http {
    struct MHD_Daemon *daemon;
    pseg_metrics *metrics;
    pseg_metrics_probes probes;
};

static enum MHD_Result answer(struct MHD_Connection *c, unsigned code, const char *type,
                              struct MHD_Response *r)
{
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    if (code == MHD_HTTP_METHOD_NOT_ALLOWED)
        MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    enum MHD_Result result = MHD_queue_response(c, code, r);
    MHD_destroy_response(r);
    return result;
}

static enum MHD_Result say(struct MHD_Connection *c, unsigned code, const char *text)
{
    return answer(c, code, "text/plain; charset=utf-8",
                  MHD_create_response_from_buffer(strlen(text), (void *)(uintptr_t)text,
                                                  MHD_RESPMEM_MUST_COPY));
}

static enum MHD_Result probe(struct MHD_Connection *c, bool (*is_well)(void *), void *ud)
{
    bool well = !is_well || is_well(ud);

    return say(c, well ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE, well ? "ok\n" : "no\n");
}

static enum MHD_Result metrics(struct MHD_Connection *c, pseg_metrics_http *s)
{
    pseg_buf text;
    pseg_err err = PSEG_ERR_INIT;
    enum MHD_Result result;

    pseg_buf_init(&text, MAX_TEXT);
    if (pseg_metrics_render(&text, s->metrics, &err) == PSEG_OK)
        result =
            answer(c, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8",
                   MHD_create_response_from_buffer(text.len, text.data, MHD_RESPMEM_MUST_COPY));
    else
        result = say(c, MHD_HTTP_INTERNAL_SERVER_ERROR, err.msg);
    pseg_buf_deinit(&text);
    return result;
}

static enum MHD_Result on_request(void *ud, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *n_data, void **state)
{
    static int begun;
    pseg_metrics_http *s = ud;

    (void)version;
    (void)data;
    if (!*state) { /* the headers; what follows is the body, which nobody reads */
        *state = &begun;
        return MHD_YES;
    }
    if (*n_data) {
        *n_data = 0;
        return MHD_YES;
    }
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return say(c, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    if (strcmp(url, "/metrics") == 0)
        return metrics(c, s);
    if (strcmp(url, "/livez") == 0)
        return probe(c, s->probes.is_live, s->probes.ud);
    if (strcmp(url, "/readyz") == 0)
        return probe(c, s->probes.is_ready, s->probes.ud);
    return say(c, MHD_HTTP_NOT_FOUND, "there are /metrics, /livez and /readyz\n");
}

static pseg_status parse(struct addrinfo **out, const char *listen, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const struct addrinfo hints = {.ai_family = AF_UNSPEC,
                                   .ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV};
    const char *colon = strrchr(listen, ':');
    char host[64] = "";
    size_t n = colon ? (size_t)(colon - listen) : 0;

    /* getaddrinfo takes the low 16 bits of a larger number. */
    if (!colon || !colon[1] || n >= sizeof host || strspn(colon + 1, "0123456789") > 5 ||
        strtol(colon + 1, NULL, 10) > 65535)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "\"%.60s\" is not an address: give one as 127.0.0.1:9464, [::1]:9464 or :9464",
                  listen);
    memcpy(host, listen, n);
    if (n >= 2 && host[0] == '[' && host[n - 1] == ']') {
        memmove(host, host + 1, n - 2);
        host[n - 2] = '\0';
    }
    if (getaddrinfo(n ? (strcmp(host, "localhost") == 0 ? "127.0.0.1" : host) : NULL, colon + 1,
                    &hints, out) != 0)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "\"%.60s\" is not an address: give one as 127.0.0.1:9464, [::1]:9464 or :9464",
                  listen);
out:
    return rc;
}

/* A socket of our own, because microhttpd tells no reason when it cannot bind. */
static pseg_status bind_to(int *out, const struct addrinfo *a, const char *listen_at, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    int one = 1, fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        PSEG_FAIL(PSEG_R_INTERNAL, errno, "no socket for metrics: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, MAX_CONNECTIONS) != 0) {
        int e = errno;
        if (e == EADDRINUSE)
            PSEG_FAIL(PSEG_R_ADDRESS_IN_USE, e, "%s is taken; choose another address for metrics",
                      listen_at);
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, e, "cannot listen on %s for metrics: %s", listen_at,
                  strerror(e));
    }
    *out = fd;
    fd = -1;
out:
    if (fd >= 0)
        close(fd);
    return rc;
}

static int port_of(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } a = {0};
    socklen_t n = sizeof a;

    if (getsockname(fd, &a.any, &n) != 0)
        return 0;
    return ntohs(a.any.sa_family == AF_INET6 ? a.v6.sin6_port : a.v4.sin_port);
}

pseg_status pseg_metrics_http_start(pseg_metrics_http **out, const char *listen, pseg_metrics *m,
                                    const pseg_metrics_probes *probes, int *port, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_metrics_http *s = NULL;
    struct addrinfo *a = NULL;
    int fd = -1;

    *out = NULL;
    PSEG_TRY(parse(&a, listen, err));
    if (!(s = pseg_calloc(1, sizeof *s)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the metrics server");
    s->metrics = m;
    if (probes)
        s->probes = *probes;
    PSEG_TRY(bind_to(&fd, a, listen, err));
    if (port)
        *port = port_of(fd);
    s->daemon = MHD_start_daemon(
        MHD_USE_AUTO | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_ITC, 0, NULL, NULL, on_request, s,
        MHD_OPTION_LISTEN_SOCKET, (MHD_socket)fd, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)MAX_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)TIMEOUT_S,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)16384, MHD_OPTION_END);
    if (!s->daemon)
        PSEG_FAIL(PSEG_R_INTERNAL, 0, "the metrics server does not start on %s", listen);
    fd = -1; /* the daemon's */
    *out = s;
    s = NULL;
out:
    if (fd >= 0)
        close(fd);
    if (a)
        freeaddrinfo(a);
    pseg_free(s);
    return rc;
}

void pseg_metrics_http_stop(pseg_metrics_http *s)
{
    if (!s)
        return;
    MHD_stop_daemon(s->daemon);
    pseg_free(s);
}
