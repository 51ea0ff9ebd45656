#include "scheduler/service/result_place.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* FNV-1a, 64 bits: chance is what it guards against, and the token is its reader's own. */
static void mix(uint64_t *sum, const void *data, size_t n)
{
    const uint8_t *p = data;

    for (size_t i = 0; i < n; i++)
        *sum = (*sum ^ p[i]) * UINT64_C(0x100000001b3);
}

/* Of all that tells one end of an item from another: a job that runs once more ends at another
 * time. */
static uint64_t sum_of(const pseg_queue_item *it)
{
    uint64_t sum = UINT64_C(0xcbf29ce484222325);
    const int64_t what[] = {it->seq, it->at_unix_us, (int64_t)it->state, (int64_t)it->refusal};

    mix(&sum, what, sizeof what);
    mix(&sum, it->job_id, strlen(it->job_id));
    return sum;
}

static pseg_status fail_token(const char *token, pseg_err *err)
{
    pseg_err_set(err, PSEG_R_PAGE_TOKEN_INVALID, 0, PSEG_HERE,
                 "resume_token of %zu bytes is not one that this server gave; start with an empty "
                 "one",
                 strlen(token));
    pseg_err_field(err, "resume_token");
    return PSEG_EINVAL;
}

/* "N-SUM", N in 18 digits at most, SUM in 16 of hexadecimal. NULL, or behind it. */
static const char *place_of(result_place *p, const char *s)
{
    size_t n = strspn(s, "0123456789");
    int used = 0;

    if (n == 0 || n > 18 || s[n] != '-' || strspn(s + n + 1, "0123456789abcdef") != 16 ||
        sscanf(s, "%" SCNd64 "-%" SCNx64 "%n", &p->n, &p->sum, &used) != 2)
        return NULL;
    return s + used;
}

pseg_status result_trail_parse(result_trail *t, const char *token, pseg_err *err)
{
    result_place *const places[] = {&t->now, &t->mark, &t->back};
    const char *rest = token;

    *t = (result_trail){0};
    for (size_t i = 0; rest && *rest && i < 3; i++) {
        rest = place_of(places[i], rest);
        if (rest && *rest == '.' && rest[1] && i < 2)
            rest++;
        else if (rest && *rest)
            rest = NULL;
    }
    if (!rest || t->mark.n > t->now.n || t->back.n > t->mark.n)
        return fail_token(token, err);
    return PSEG_OK;
}

void result_trail_write(char out[RESULT_TOKEN_BYTES], const result_trail *t)
{
    const result_place places[] = {t->now, t->mark, t->back};
    size_t n = 0;

    out[0] = '\0';
    for (size_t i = 0; i < 3 && places[i].n; i++)
        n += (size_t)snprintf(out + n, RESULT_TOKEN_BYTES - n, "%s%" PRId64 "-%016" PRIx64,
                              i ? "." : "", places[i].n, places[i].sum);
}

int64_t result_trail_first(const result_trail *t)
{
    return t->now.n ? t->now.n - 1 : 0;
}

bool result_trail_holds(const result_trail *t, const pseg_queue_item *items, size_t n)
{
    return t->now.n == 0 || (n > 0 && sum_of(&items[0]) == t->now.sum);
}

void result_trail_go_back(result_trail *t)
{
    const result_place to = t->mark.n < t->now.n   ? t->mark
                            : t->back.n < t->now.n ? t->back
                                                   : (result_place){0};

    *t = (result_trail){
        .now = to, .mark = to, .back = t->back.n < to.n ? t->back : (result_place){0}};
}

void result_trail_step(result_trail *t, const pseg_queue_item *it)
{
    t->now.n++;
    t->now.sum = sum_of(it);
    if (t->now.n - t->mark.n < RESULT_BACK_STEP)
        return;
    t->back = t->mark;
    t->mark = t->now;
}
