/* A server that answers anything at all: every request is answered in time and nothing breaks (the
 * sanitizers look on). */
#include "tests/support/queue_cases_impl.h"
#include "common/base/clock.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { TIMEOUT_MS = 200 };

/* How many answers; another number may be given on the command line. */
static int wanted = 1500;

static char path[64];
static int listener = -1;
static _Atomic bool over;
static _Atomic int n_answers;
static uint64_t random_state = 88172645463325252u;

static unsigned rnd(unsigned n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 33) % n;
}

/* ---- the server ---- */

typedef struct out {
    char data[1 << 16];
    size_t n;
} out;

static void put(out *o, const char *s, size_t n)
{
    if (n > sizeof o->data - o->n)
        n = sizeof o->data - o->n;
    memcpy(o->data + o->n, s, n);
    o->n += n;
}

static void put_text(out *o, char kind, const char *s)
{
    char line[300];

    put(o, line, (size_t)snprintf(line, sizeof line, "%c%s\r\n", kind, s));
}

static void put_bulk(out *o, const char *s, size_t n)
{
    char head[32];

    put(o, head, (size_t)snprintf(head, sizeof head, "$%zu\r\n", n));
    put(o, s, n);
    put(o, "\r\n", 2);
}

static void put_anything(out *o, int depth)
{
    static const char *const words[] = {
        "",         "0",         "1",       "-1",   "99999999999999999999",
        "QUEUED",   "SUCCEEDED", "EXPIRED", "lost", "default",
        "a\0b\xff", "events",    "1-1",     "id",   "state",
        "ok"};
    static const char *const errors[] = {"ERR no",
                                         "PSEG",
                                         "PSEG QUEUE_FULL",
                                         "PSEG QUEUE_FULL full",
                                         "PSEG NO_SUCH_REASON x",
                                         "OOM command not allowed",
                                         "LOADING it",
                                         "MOVED",
                                         "MOVED 1 nowhere",
                                         "MOVED 1 :99999999999",
                                         "ERR Function not found",
                                         "NOGROUP"};
    char text[32];

    switch (rnd(depth > 3 ? 5 : 8)) {
    case 0:
        put_text(o, '-', errors[rnd(sizeof errors / sizeof *errors)]);
        break;
    case 1:
        put_text(o, '+', words[rnd(16)]);
        break;
    case 2:
        snprintf(text, sizeof text, "%lld", (long long)random_state);
        put_text(o, ':', text);
        break;
    case 3:
        put_text(o, rnd(2) ? '$' : '*', "-1");
        break;
    case 4: {
        const char *w = words[rnd(16)];
        put_bulk(o, w, *w == 'a' ? 4 : strlen(w));
        break;
    }
    default: {
        /* Often of a length that some request expects. */
        static const unsigned lengths[] = {0, 1, 2, 3, 5, 8, 9, 19, 20, 20};
        unsigned n = lengths[rnd(10)];
        snprintf(text, sizeof text, "%u", n);
        put_text(o, '*', text);
        for (unsigned i = 0; i < n; i++)
            put_anything(o, depth + 1);
    }
    }
}

static int count_commands(const char *s, size_t n)
{
    int count = n && s[0] == '*';

    for (size_t i = 0; i + 2 < n; i++)
        count += s[i] == '\r' && s[i + 1] == '\n' && s[i + 2] == '*';
    return count;
}

/* False: the connection is to be closed. */
static bool serve(int fd)
{
    static char in[1 << 16];
    static out o;
    ssize_t n = read(fd, in, sizeof in);

    if (n <= 0)
        return false;
    o.n = 0;
    bool is_greeting =
        memmem(in, (size_t)n, "pseg1_revision", 14) || memmem(in, (size_t)n, "XREVR", 5);
    for (int i = count_commands(in, (size_t)n); i > 0; i--) {
        if (memmem(in, (size_t)n, "pseg1_layout", 12) && rnd(30))
            put(&o, ":1\r\n", 4);
        else if (memmem(in, (size_t)n, "INFO", 4) && rnd(30))
            put(&o, "$29\r\nmaxmemory_policy:noeviction\r\n\r\n", 36);
        else if (is_greeting && rnd(30))
            put(&o, memmem(in, (size_t)n, "XREVR", 5) ? "*0\r\n" : ":999999\r\n",
                4 + 5 * !memmem(in, (size_t)n, "XREVR", 5));
        else
            put_anything(&o, 0);
        atomic_fetch_add(&n_answers, 1);
    }
    if (rnd(150) == 0) /* no protocol at all */
        for (int i = 0; i < 40; i++)
            put(&o, (char[]){(char)rnd(256)}, 1);
    if (rnd(150) == 0)
        o.n /= 2;
    return send(fd, o.data, o.n, MSG_NOSIGNAL) == (ssize_t)o.n;
}

static void *server(void *arg)
{
    struct pollfd p[16] = {{.fd = listener, .events = POLLIN}};
    int n = 1;

    (void)arg;
    while (!atomic_load(&over)) {
        poll(p, (nfds_t)n, 20);
        for (int i = n - 1; i > 0; i--)
            if (p[i].revents && !serve(p[i].fd)) {
                close(p[i].fd);
                p[i] = p[--n];
            }
        if (p[0].revents) {
            int fd = accept(listener, NULL, NULL);
            if (fd >= 0 && n < 16)
                p[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
            else if (fd >= 0)
                close(fd);
        }
    }
    while (n > 1)
        close(p[--n].fd);
    return NULL;
}

/* ---- the client ---- */

static _Atomic int n_events;

static void on_event(void *ud, const pseg_queue_event *e)
{
    (void)ud;
    atomic_fetch_add(
        &n_events,
        e ? (int)(strlen(e->id) + strlen(e->tenant) + strlen(e->batch) + strlen(e->worker)) + 1
          : 1);
}

static void on_ready(void *ud)
{
    (void)ud;
}

/* Reads all that an answer offers. */
static size_t look_at(const pseg_queue_reply *r)
{
    size_t n = strlen(r->err.msg) + (r->next_id ? strlen(r->next_id) : 0);

    for (size_t i = 0; i < r->n_jobs; i++) {
        const pseg_job *j = &r->jobs[i];
        if (j->id)
            n += strlen(j->id) + strlen(j->tenant) + strlen(j->message) + strlen(j->worker) +
                 strlen(j->model) + strlen(j->request_id) + j->spec.len + j->result.len;
    }
    for (size_t i = 0; i < r->n_blobs; i++)
        n += r->blobs[i].data ? r->blobs[i].data[r->blobs[i].len] + r->blobs[i].len : 0;
    for (size_t i = 0; i < r->n_images; i++)
        n += r->images[i].size_bytes;
    for (size_t i = 0; i < r->n_workers; i++)
        n += strlen(r->workers[i].id) + strlen(r->workers[i].version);
    for (size_t i = 0; i < r->n_claims; i++)
        n += strlen(r->claims[i].id) + strlen(r->claims[i].image) + r->claims[i].spec.len;
    for (size_t i = 0; i < r->n_batches; i++)
        n += strlen(r->batches[i].id) + r->batches[i].labels.len;
    for (size_t i = 0; i < r->n_items; i++)
        n += strlen(r->items[i].custom_id) + strlen(r->items[i].message) +
             strlen(r->items[i].job_id);
    for (size_t i = 0; i < r->n_leases; i++)
        n += (size_t)r->leases[i];
    for (size_t i = 0; i < r->n_events; i++)
        n += r->events[i].id ? strlen(r->events[i].id) + strlen(r->events[i].worker) : 1;
    return n;
}

#define ASK(...)                                        \
    do {                                                \
        pseg_queue_reply *r;                            \
        CALL(r, __VA_ARGS__);                           \
        seen += look_at(r);                             \
        good += r->err.code == PSEG_OK;                 \
        n++;                                            \
        if (r->err.reason == PSEG_R_BROKER_UNAVAILABLE) \
            queue_pause_ms(2);                          \
        pseg_queue_reply_free(r);                       \
    } while (0)

static void any_answer_is_survived(void **state)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    pseg_queue_options o = PSEG_QUEUE_OPTIONS_DEFAULT;
    pthread_t thread;
    pseg_queue *q;
    char url[80];
    int n = 0, good = 0;
    size_t seen = 0;
    id_text id;

    (void)state;
    snprintf(path, sizeof path, "/tmp/pseg-test-replies-%d", (int)getpid());
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    unlink(path);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(listener, 16), 0);
    assert_int_equal(pthread_create(&thread, NULL, server, NULL), 0);
    snprintf(url, sizeof url, "unix:%s", path);
    o.url = url;
    o.timeout_ms = TIMEOUT_MS;
    o.on_event = on_event;
    o.on_ready = on_ready;
    o.watch_model = "m";
    assert_int_equal(pseg_queue_open(&q, &o, NULL), PSEG_OK);
    const char *slower = getenv("TEST_SLOWER"); /* a number, of tests/support/under.py */
    int64_t until = pseg_clock_mono_ms() +
                    (30 + 10 * (int64_t)wanted) * (slower ? strtol(slower, NULL, 10) : 1);
    while (atomic_load(&n_answers) < wanted && pseg_clock_mono_ms() < until) {
        pseg_queue_submit_args args = case_args(&id);
        const char *ids[3] = {id.s, id.s, id.s};
        pseg_queue_lease l[2] = {{id.s, 1}, {id.s, 2}};
        pseg_bytes masks[2] = {case_bytes("a"), case_bytes("b")};
        pseg_queue_worker w = {"w", "m", "", "", "", ""};
        pseg_err e = PSEG_ERR_INIT;
        ASK(pseg_queue_submit, q, &args);
        ASK(pseg_queue_put_image, q, T, SHA, case_bytes("x"), 0);
        ASK(pseg_queue_has_images, q, T, ids, 3);
        ASK(pseg_queue_get, q, T, ids, 3);
        ASK(pseg_queue_list, q, T, "", 5);
        ASK(pseg_queue_masks, q, T, id.s, ((uint32_t[]){0, 1}), 2);
        ASK(pseg_queue_cancel, q, T, id.s);
        ASK(pseg_queue_events, q, T, "", ((pseg_queue_place){1, 1, 1}), 3);
        ASK(pseg_queue_states, q, T, ids, 3);
        ASK(pseg_queue_get_estimate, q,
            (&(pseg_queue_estimate_args){
                .tenant = T, .model = "m", .request_id = "r", .phrases = 1, .weight = 1}));
        ASK(pseg_queue_workers, q);
        ASK(pseg_queue_get_stats, q);
        ASK(pseg_queue_get_uses, q);
        ASK(pseg_queue_sweep, q);
        ASK(pseg_queue_register, q, &w);
        ASK(pseg_queue_unregister, q, "w");
        ASK(pseg_queue_claim_jobs, q, "w", "m", 3, 0, 0);
        ASK(pseg_queue_fetch_image, q, "x");
        ASK(pseg_queue_renew, q, "w", l, 2);
        ASK(pseg_queue_publish, q, "w", l[0], case_bytes("r"), masks, 2, 0);
        pseg_err_set(&e, PSEG_R_INTERNAL, 0, PSEG_HERE, "why");
        ASK(pseg_queue_fail, q, "w", l[0], &e, 0);
        ASK(pseg_queue_release, q, "w", l[0]);
        pseg_queue_item_args item = {.job = args, .batch = "b", .seq = 1, .custom_id = ""};
        ASK(pseg_queue_create_batch, q, T, "b", 1000, case_bytes(""));
        ASK(pseg_queue_get_batch, q, T, "b");
        ASK(pseg_queue_list_batches, q, T, "", 5);
        ASK(pseg_queue_batch_ends, q, T, "b", 0, 5, true, 0);
        ASK(pseg_queue_submit_item, q, &item);
    }
    pseg_queue_close(q);
    atomic_store(&over, true);
    pthread_join(thread, NULL);
    close(listener);
    unlink(path);
    print_message("%d requests, %d of them answered with something good, %d answers, %zu bytes\n",
                  n, good, atomic_load(&n_answers), seen);
    assert_true(good > 100);
    assert_true(atomic_load(&n_events) > 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {CASE(any_answer_is_survived)};

    if (argc > 1)
        wanted = (int)strtol(argv[1], NULL, 10);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
