#include "scheduler/service/upload_share.h"
#include "common/base/alloc.h"

#include <string.h>

struct upload_holder {
    upload_holder *next;
    int64_t bytes;
    char tenant[];
};

void upload_shares_init(upload_shares *s, int64_t max, bool is_shared)
{
    *s = (upload_shares){.max = max, .is_shared = is_shared};
    pthread_mutex_init(&s->mu, NULL);
}

void upload_shares_deinit(upload_shares *s)
{
    while (s->first) {
        upload_holder *h = s->first;
        s->first = h->next;
        pseg_free(h);
    }
    pthread_mutex_destroy(&s->mu);
}

/* What points to the tenant's holder, or to the end of the list. */
static upload_holder **find(upload_shares *s, const char *tenant)
{
    upload_holder **at = &s->first;

    while (*at && strcmp((*at)->tenant, tenant) != 0)
        at = &(*at)->next;
    return at;
}

/* Of max, where the others hold so much: x <= 2 * (max - others - x). */
static int64_t share(const upload_shares *s, int64_t others)
{
    return s->is_shared ? (s->max - others) / 3 * 2 : s->max - others;
}

static bool add(upload_shares *s, upload_holder **at, const char *tenant, int64_t n)
{
    if (!*at) {
        size_t len = strlen(tenant) + 1;
        upload_holder *h = pseg_malloc(sizeof *h + len);
        if (!h)
            return false;
        *h = (upload_holder){0};
        memcpy(h->tenant, tenant, len);
        *at = h;
    }
    (*at)->bytes += n;
    s->total += n;
    return true;
}

upload_answer upload_take(upload_shares *s, const char *tenant, int64_t n, int64_t *allowed)
{
    upload_answer answer = UPLOAD_TAKEN;

    pthread_mutex_lock(&s->mu);
    upload_holder **at = find(s, tenant);
    int64_t holds = *at ? (*at)->bytes : 0, may = share(s, s->total - holds);
    if (n > s->max - s->total)
        answer = UPLOAD_FULL;
    else if (holds > 0 && n > may - holds)
        answer = UPLOAD_OVER_SHARE;
    else if (!add(s, at, tenant, n))
        answer = UPLOAD_NO_MEMORY;
    pthread_mutex_unlock(&s->mu);
    if (allowed)
        *allowed = answer == UPLOAD_OVER_SHARE ? may : s->max;
    return answer;
}

bool upload_count(upload_shares *s, const char *tenant, int64_t n)
{
    pthread_mutex_lock(&s->mu);
    bool is_counted = add(s, find(s, tenant), tenant, n);
    pthread_mutex_unlock(&s->mu);
    return is_counted;
}

void upload_give(upload_shares *s, const char *tenant, int64_t n)
{
    pthread_mutex_lock(&s->mu);
    upload_holder **at = find(s, tenant), *h = *at;
    if (h) {
        s->total -= n;
        h->bytes -= n;
        if (h->bytes <= 0) {
            *at = h->next;
            pseg_free(h);
        }
    }
    pthread_mutex_unlock(&s->mu);
}

bool upload_has_room(upload_shares *s, const char *tenant)
{
    pthread_mutex_lock(&s->mu);
    const upload_holder *h = *find(s, tenant);
    int64_t holds = h ? h->bytes : 0;
    bool has_room = s->total <= s->max && (holds == 0 || holds <= share(s, s->total - holds));
    pthread_mutex_unlock(&s->mu);
    return has_room;
}
