#include "common/rpc/internal.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define HOST_MAX 256

static pseg_status split(char *host, char *port, const char *address, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *colon = strrchr(address, ':'), *start = address, *end = colon;
    char *rest = NULL;

    if (address[0] == '[') {
        start = address + 1;
        end = strchr(address, ']');
        if (!end || end[1] != ':')
            end = NULL;
    } else if (end && memchr(address, ':', (size_t)(end - address))) {
        end = NULL; /* IPv6 without brackets */
    }
    long n = end ? strtol(colon + 1, &rest, 10) : -1;
    if (!end || end == start || end - start >= HOST_MAX || rest == colon + 1 || *rest || n < 0 ||
        n > 65535)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "address '%s' is not HOST:PORT; write for example 127.0.0.1:7433, [::1]:7433 or "
                  "unix:/run/pseg.sock",
                  address);
    memcpy(host, start, (size_t)(end - start));
    host[end - start] = '\0';
    snprintf(port, 8, "%ld", n);
out:
    return rc;
}

static pseg_status address_error(const char *address, int error, pseg_err *err)
{
    switch (error) {
    case EADDRINUSE:
        return pseg_err_set(err, PSEG_R_ADDRESS_IN_USE, error, PSEG_HERE,
                            "cannot listen on %s: another program listens there; stop it or choose "
                            "another port (port 0 takes a free one)",
                            address);
    case EACCES:
    case EPERM:
        return pseg_err_set(err, PSEG_R_PERMISSION_DENIED, error, PSEG_HERE,
                            "cannot listen on %s: permission denied; ports below 1024 need "
                            "privileges, choose one above",
                            address);
    default:
        return pseg_err_set(err, PSEG_R_INVALID_ARGUMENT, error, PSEG_HERE,
                            "cannot listen on %s: %s; give an address of this machine, or "
                            "0.0.0.0 for all",
                            address, strerror(error));
    }
}

/* The core removes a socket file before it binds, whether or not somebody listens on it. */
static pseg_status probe_unix(const char *address, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    const char *path = address + strlen("unix:");
    struct stat st;
    int fd = -1;

    if (strncmp(path, "//", 2) == 0)
        path += 2;
    if (!*path || strlen(path) >= sizeof un.sun_path)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, 0,
                  "socket path of '%s' has %zu bytes; the limit is %zu, use a shorter path",
                  address, strlen(path), sizeof un.sun_path - 1);
    memcpy(un.sun_path, path, strlen(path) + 1);
    if (lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
        PSEG_FAIL(PSEG_R_ADDRESS_IN_USE, EEXIST,
                  "cannot listen on %s: a file that is no socket lies there; remove it or choose "
                  "another path",
                  address);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&un, sizeof un) == 0)
        PSEG_FAIL(PSEG_R_ADDRESS_IN_USE, EADDRINUSE,
                  "cannot listen on %s: another program listens there; stop it or choose another "
                  "path",
                  address);
out:
    if (fd >= 0)
        close(fd);
    return rc;
}

/* 0, or the errno of binding. */
static int try_bind(const struct addrinfo *a)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, off = 0, error = 0;

    if (fd < 0)
        return errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, a->ai_addr, a->ai_addrlen) != 0)
        error = errno;
    close(fd);
    return error;
}

pseg_status pseg_rpc_probe_address(const char *address, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    char host[HOST_MAX], port[8];
    int error = 0;
    bool some = false;

    if (strncmp(address, "unix:", 5) == 0)
        return probe_unix(address, err);
    PSEG_TRY(split(host, port, address, err));
    int found = getaddrinfo(host, port, &hints, &list);
    if (found != 0)
        PSEG_FAIL(PSEG_R_INVALID_ARGUMENT, found,
                  "cannot listen on %s: %s; give an address of this "
                  "machine, or 0.0.0.0 for all",
                  address, gai_strerror(found));
    for (const struct addrinfo *a = list; a; a = a->ai_next) {
        int e = try_bind(a);
        some = some || e == 0;
        /* One address in use is one too many: its clients would reach somebody else. */
        if (e == EADDRINUSE || !error)
            error = e;
        if (e == EADDRINUSE)
            break;
    }
    if (error == EADDRINUSE || !some) {
        rc = address_error(address, error, err);
        goto out;
    }
out:
    if (list)
        freeaddrinfo(list);
    return rc;
}
