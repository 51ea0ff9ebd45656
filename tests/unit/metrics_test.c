#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/base/alloc.h"
#include "common/metrics/http.h"
#include "common/metrics/metrics.h"

#include <arpa/inet.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static const double bounds[] = {0.5, 1, 2.5};
static const pseg_metric_desc count = {
    "pseg_things_total", "Things.", PSEG_METRIC_COUNTER, {"kind", "name"}};
static const pseg_metric_desc level = {"pseg_level", "Level.", PSEG_METRIC_GAUGE};
static const pseg_metric_desc times = {"pseg_seconds", "Times.", PSEG_METRIC_HISTOGRAM,
                                       {"what"},       bounds,   3};

static char *rendered(pseg_metrics *m)
{
    static pseg_buf text;
    pseg_err err = PSEG_ERR_INIT;

    pseg_buf_deinit(&text);
    pseg_buf_init(&text, 1 << 20);
    assert_int_equal(pseg_metrics_render(&text, m, &err), PSEG_OK);
    return (char *)text.data;
}

static pseg_metrics *fresh(void)
{
    pseg_metrics *m;

    assert_int_equal(pseg_metrics_new(&m, NULL), PSEG_OK);
    return m;
}

static void the_text_is_as_prometheus_wants_it(void **state)
{
    pseg_metrics *m = fresh();
    pseg_metric *c = pseg_metrics_add(m, &count), *g = pseg_metrics_add(m, &level),
                *h = pseg_metrics_add(m, &times);

    (void)state;
    pseg_series_add(pseg_metric_with(c, (const char *[]){"a", "plain"}), 2);
    pseg_series_add(pseg_metric_with(c, (const char *[]){"a", "q\"b\\n\nx\xff"}), 0.5);
    pseg_series_add(pseg_metric_with(c, (const char *[]){"a", "plain"}), 1);
    pseg_series_set(pseg_metric_with(g, NULL), -3e20);
    pseg_series *s = pseg_metric_with(h, (const char *[]){"w"});
    const double values[] = {0.5, 0.6, 2.5, 100, NAN};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        pseg_series_observe(s, values[i]);
    assert_string_equal(rendered(m), "# HELP pseg_things_total Things.\n"
                                     "# TYPE pseg_things_total counter\n"
                                     "pseg_things_total{kind=\"a\",name=\"plain\"} 3\n"
                                     "pseg_things_total{kind=\"a\",name=\"q\\\"b\\\\n\\nx?\"} 0.5\n"
                                     "# HELP pseg_level Level.\n"
                                     "# TYPE pseg_level gauge\n"
                                     "pseg_level -3e+20\n"
                                     "# HELP pseg_seconds Times.\n"
                                     "# TYPE pseg_seconds histogram\n"
                                     "pseg_seconds_bucket{what=\"w\",le=\"0.5\"} 1\n"
                                     "pseg_seconds_bucket{what=\"w\",le=\"1\"} 2\n"
                                     "pseg_seconds_bucket{what=\"w\",le=\"2.5\"} 3\n"
                                     "pseg_seconds_bucket{what=\"w\",le=\"+Inf\"} 4\n"
                                     "pseg_seconds_sum{what=\"w\"} 103.6\n"
                                     "pseg_seconds_count{what=\"w\"} 4\n");
    pseg_metrics_free(m);
}

/* A label that clients choose must not fill the memory. */
static void too_many_series_become_one(void **state)
{
    pseg_metrics *m = fresh();
    pseg_metric *c = pseg_metrics_add(m, &count);
    char name[16];

    (void)state;
    for (int i = 0; i < PSEG_METRIC_MAX_SERIES + 500; i++) {
        snprintf(name, sizeof name, "%d", i);
        pseg_series_add(pseg_metric_with(c, (const char *[]){"k", name}), 1);
    }
    assert_non_null(strstr(rendered(m), "pseg_things_total{kind=\"other\",name=\"other\"} 500\n"));
    pseg_metrics_free(m);
}

static void *count_many(void *family)
{
    for (int i = 0; i < 20000; i++) {
        const char *values[] = {"k", i % 2 ? "odd" : "even"};
        pseg_series_add(pseg_metric_with(family, values), 1);
    }
    return NULL;
}

static void threads_lose_nothing(void **state)
{
    pseg_metrics *m = fresh();
    pseg_metric *c = pseg_metrics_add(m, &count);
    pthread_t threads[4];

    (void)state;
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, count_many, c), 0);
    for (int i = 0; i < 20; i++)
        (void)rendered(m);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_non_null(strstr(rendered(m), "{kind=\"k\",name=\"odd\"} 40000\n"));
    assert_non_null(strstr(rendered(m), "{kind=\"k\",name=\"even\"} 40000\n"));
    pseg_metrics_free(m);
}

static void without_memory_nothing_is_counted_and_nothing_breaks(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 12; n++) {
        pseg_metrics *m = fresh();
        pseg_alloc_fail_nth(n);
        pseg_metric *c = pseg_metrics_add(m, &count);
        pseg_series_add(pseg_metric_with(c, (const char *[]){"a", "b"}), 1);
        pseg_alloc_fail_nth(0);
        pseg_series_add(pseg_metric_with(c, (const char *[]){"a", "b"}), 1);
        (void)rendered(m);
        pseg_metrics_free(m);
    }
    pseg_series_add(NULL, 1);
    pseg_series_observe(NULL, 1);
    assert_null(pseg_metric_with(NULL, NULL));
}

/* ---- over HTTP ---- */

static int dial(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct timeval limit = {20, 0};

    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

/* The whole answer to one request. */
static const char *ask(int port, const char *request)
{
    static char text[65536];
    size_t n = 0;
    ssize_t got;
    int fd = dial(port);

    assert_int_equal(write(fd, request, strlen(request)), (ssize_t)strlen(request));
    while ((got = read(fd, text + n, sizeof text - 1 - n)) > 0)
        n += (size_t)got;
    text[n] = '\0';
    close(fd);
    return text;
}

static const char *get(int port, const char *path)
{
    char request[128];

    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
             path);
    return ask(port, request);
}

static bool is_set(void *ud)
{
    return atomic_load((_Atomic bool *)ud);
}

static void it_is_served(void **state)
{
    pseg_metrics *m = fresh();
    pseg_metrics_http *s, *second;
    _Atomic bool ready = false;
    pseg_err err = PSEG_ERR_INIT;
    int port = 0;
    char taken[32];

    (void)state;
    pseg_metrics_add_process(m, "test");
    const pseg_metrics_probes probes = {.is_ready = is_set, .ud = &ready};
    assert_int_equal(pseg_metrics_http_start(&s, "127.0.0.1:0", m, &probes, &port, &err), PSEG_OK);
    assert_true(port > 0);
    const char *text = get(port, "/metrics");
    assert_int_equal(strncmp(text, "HTTP/1.1 200 ", 13), 0);
    assert_non_null(strstr(text, "text/plain; version=0.0.4"));
    assert_non_null(strstr(text, "pseg_build_info{program=\"test\",version=\""));
    assert_non_null(strstr(text, "\nprocess_resident_memory_bytes "));
    assert_non_null(strstr(get(port, "/livez"), "200 "));
    assert_non_null(strstr(get(port, "/readyz"), "503 "));
    atomic_store(&ready, true);
    assert_non_null(strstr(get(port, "/readyz"), "200 "));
    assert_non_null(strstr(get(port, "/../etc/passwd"), "404 "));
    text = ask(port, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
                     "Connection: close\r\n\r\nabc");
    assert_non_null(strstr(text, "405 "));
    assert_non_null(strstr(text, "Allow: GET, HEAD"));
    (void)ask(port, "nonsense\r\n\r\n");
    assert_non_null(strstr(get(port, "/livez"), "200 "));

    snprintf(taken, sizeof taken, "127.0.0.1:%d", port);
    assert_true(pseg_metrics_http_start(&second, taken, m, NULL, NULL, &err) != PSEG_OK);
    assert_int_equal(err.reason, PSEG_R_ADDRESS_IN_USE);
    assert_null(second);
    pseg_metrics_http_stop(s);
    pseg_metrics_free(m);
}

/* One that opens connections and says nothing does not keep the others out for ever, nor the stop.
 */
static void silent_clients_do_no_harm(void **state)
{
    pseg_metrics *m = fresh();
    pseg_metrics_http *s;
    int port = 0, fds[16];

    (void)state;
    assert_int_equal(pseg_metrics_http_start(&s, "127.0.0.1:0", m, NULL, &port, NULL), PSEG_OK);
    for (int i = 0; i < 16; i++)
        fds[i] = dial(port);
    assert_non_null(strstr(get(port, "/readyz"), "200 "));
    pseg_metrics_http_stop(s);
    for (int i = 0; i < 16; i++)
        close(fds[i]);
    pseg_metrics_free(m);
}

static void addresses_that_are_none_are_named(void **state)
{
    static const char *const bad[] = {"",
                                      "127.0.0.1",
                                      "127.0.0.1:",
                                      "nowhere.example:1",
                                      "127.0.0.1:99999",
                                      "127.0.0.1:x",
                                      "300.1.1.1:80"};
    pseg_metrics *m = fresh();

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pseg_err err = PSEG_ERR_INIT;
        pseg_metrics_http *s;
        assert_true(pseg_metrics_http_start(&s, bad[i], m, NULL, NULL, &err) != PSEG_OK);
        assert_int_equal(err.reason, PSEG_R_CONFIG_INVALID);
        assert_non_null(strstr(err.msg, bad[i]));
        assert_null(s);
    }
    pseg_metrics_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_text_is_as_prometheus_wants_it),
        cmocka_unit_test(too_many_series_become_one),
        cmocka_unit_test(threads_lose_nothing),
        cmocka_unit_test(without_memory_nothing_is_counted_and_nothing_breaks),
        cmocka_unit_test(it_is_served),
        cmocka_unit_test(silent_clients_do_no_harm),
        cmocka_unit_test(addresses_that_are_none_are_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
