#include "worker/serve/pictures.h"
#include "common/base/alloc.h"

#include <string.h>

void pseg_pictures_init(pseg_pictures *s, size_t max_kept)
{
    memset(s, 0, sizeof *s);
    pthread_mutex_init(&s->mu, NULL);
    s->max_kept = max_kept;
    s->n_devices = 1;
}

static void picture_free(pseg_picture *p)
{
    for (size_t i = 0; i < PSEG_MAX_DEVICES; i++)
        pseg_features_free(p->features[i]);
    pseg_free(p->chw);
    pseg_free(p->numbers);
    pseg_free(p->key);
    pseg_free(p);
}

static void free_all(pseg_picture *p)
{
    while (p) {
        pseg_picture *next = p->next;
        picture_free(p);
        p = next;
    }
}

void pseg_pictures_deinit(pseg_pictures *s)
{
    free_all(s->list);
    free_all(s->doomed);
    pthread_mutex_destroy(&s->mu);
}

/* With the lock held, as are all below. */
static void unlink_picture(pseg_pictures *s, pseg_picture *p)
{
    for (pseg_picture **at = &s->list; *at; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            break;
        }
}

static void put_first(pseg_pictures *s, pseg_picture *p)
{
    p->next = s->list;
    s->list = p;
}

static bool has_features(const pseg_picture *p)
{
    for (size_t i = 0; i < PSEG_MAX_DEVICES; i++)
        if (p->features[i])
            return true;
    return false;
}

/* To be freed by the owners of the models. */
static void doom(pseg_pictures *s, pseg_picture *p)
{
    pseg_free(p->numbers);
    p->numbers = NULL;
    p->next = s->doomed;
    s->doomed = p;
}

static pseg_picture *find(pseg_pictures *s, const char *key)
{
    for (pseg_picture *p = s->list; p; p = p->next)
        if (strcmp(p->key, key) == 0)
            return p;
    return NULL;
}

static pseg_picture *picture_new(const char *key)
{
    pseg_picture *p = pseg_calloc(1, sizeof *p);

    if (!p)
        return NULL;
    p->n_refs = 1;
    p->at_work = PSEG_NO_DEVICE;
    p->key = key ? pseg_strdup(key) : NULL;
    if (key && !p->key) {
        pseg_free(p);
        return NULL;
    }
    return p;
}

static void append(pseg_waiter **at, pseg_waiter *w)
{
    while (*at)
        at = &(*at)->next;
    w->next = NULL;
    *at = w;
}

static void use(pseg_pictures *s, pseg_picture *p)
{
    s->n_kept -= p->n_refs++ == 0;
    unlink_picture(s, p);
    put_first(s, p);
}

static pseg_picture_state take_found(pseg_pictures *s, pseg_picture *p, pseg_waiter *w)
{
    if (!p->is_filled) {
        append(&p->wait, w);
        return PSEG_PICTURE_AWAITED;
    }
    use(s, p);
    return PSEG_PICTURE_READY;
}

pseg_picture *pseg_pictures_find(pseg_pictures *s, const char *key)
{
    pthread_mutex_lock(&s->mu);
    pseg_picture *p = find(s, key);
    if (p && !p->is_filled)
        p = NULL;
    if (p)
        use(s, p);
    pthread_mutex_unlock(&s->mu);
    return p;
}

pseg_picture_state pseg_pictures_take(pseg_picture **out, pseg_pictures *s, const char *key,
                                      pseg_waiter *w)
{
    pseg_picture_state state = PSEG_PICTURE_MINE;

    pthread_mutex_lock(&s->mu);
    pseg_picture *p = key ? find(s, key) : NULL;
    if (p) {
        state = take_found(s, p, w);
    } else {
        p = picture_new(key);
        if (!p)
            state = PSEG_PICTURE_NO_MEMORY;
        else if (key)
            put_first(s, p);
    }
    *out = state == PSEG_PICTURE_AWAITED ? NULL : p;
    pthread_mutex_unlock(&s->mu);
    return state;
}

pseg_waiter *pseg_pictures_filled(pseg_pictures *s, pseg_picture *p, bool is_good)
{
    pthread_mutex_lock(&s->mu);
    pseg_waiter *all = p->wait;
    p->wait = NULL;
    p->is_filled = is_good;
    p->is_encoded = is_good && p->numbers;
    for (pseg_waiter *w = all; w; w = w->next) {
        w->picture = is_good ? p : NULL;
        p->n_refs += is_good;
    }
    if (!is_good && p->key) {
        unlink_picture(s, p);
        pseg_free(p->key);
        p->key = NULL;
    }
    pthread_mutex_unlock(&s->mu);
    return all;
}

/* The kept ones that were used longest ago go, until so many are left. */
static void keep_at_most(pseg_pictures *s, size_t n)
{
    while (s->n_kept > n) {
        pseg_picture *last = NULL;
        for (pseg_picture *p = s->list; p; p = p->next)
            if (p->n_refs == 0)
                last = p;
        unlink_picture(s, last);
        doom(s, last);
        s->n_kept--;
    }
}

void pseg_pictures_drop(pseg_pictures *s, pseg_picture *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&s->mu);
    bool is_last = --p->n_refs == 0;
    if (is_last && p->key && p->is_filled && has_features(p)) {
        s->n_kept++;
        keep_at_most(s, s->max_kept);
        is_last = false;
    } else if (is_last && p->key) {
        unlink_picture(s, p);
    }
    if (is_last && has_features(p)) {
        doom(s, p);
        is_last = false;
    }
    pthread_mutex_unlock(&s->mu);
    if (is_last)
        picture_free(p);
}

void pseg_pictures_reap(pseg_pictures *s, size_t device)
{
    pseg_picture *empty = NULL;

    pthread_mutex_lock(&s->mu);
    for (pseg_picture **at = &s->doomed; *at;) {
        pseg_picture *p = *at;
        pseg_features_free(p->features[device]);
        p->features[device] = NULL;
        if (has_features(p)) {
            at = &p->next;
        } else {
            *at = p->next;
            p->next = empty;
            empty = p;
        }
    }
    pthread_mutex_unlock(&s->mu);
    free_all(empty);
}

bool pseg_pictures_claim(pseg_pictures *s, pseg_picture *p, size_t device)
{
    pthread_mutex_lock(&s->mu);
    bool may = p->is_encoded || p->at_work == PSEG_NO_DEVICE || p->at_work == (int)device;
    if (may && !p->is_encoded)
        p->at_work = (int)device;
    pthread_mutex_unlock(&s->mu);
    return may;
}

void pseg_pictures_unclaim(pseg_pictures *s, pseg_picture *p, size_t device)
{
    pthread_mutex_lock(&s->mu);
    if (p->at_work == (int)device || s->n_devices == 1) {
        p->at_work = PSEG_NO_DEVICE;
        p->is_encoded = p->numbers || (s->n_devices == 1 && p->features[device]);
    }
    pthread_mutex_unlock(&s->mu);
}

bool pseg_picture_is_encoded(pseg_pictures *s, const pseg_picture *p)
{
    pthread_mutex_lock(&s->mu);
    bool is = p->is_encoded;
    pthread_mutex_unlock(&s->mu);
    return is;
}

void pseg_picture_forget_numbers(pseg_pictures *s, pseg_picture *p)
{
    pthread_mutex_lock(&s->mu);
    pseg_free(p->numbers);
    p->numbers = NULL;
    pthread_mutex_unlock(&s->mu);
}
