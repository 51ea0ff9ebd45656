#include "worker/train/loader.h"
#include "common/base/alloc.h"

#include <pthread.h>
#include <string.h>

#define N_SLOTS    2
#define TEXT_BYTES ((size_t)64 << 20)

typedef struct slot {
    pseg_train_batch b;
    pseg_loader_place place;
    pseg_status rc;
    pseg_err err;
    bool is_last; /* no batch: the run is over */
} slot;

struct pseg_loader {
    const pseg_train_source *source;
    uint64_t n_epochs;
    pseg_loader_place next; /* the thread's */
    slot slots[N_SLOTS];
    uint64_t made, taken; /* slots that were filled, and that are free again */
    bool given;           /* slot number `taken` is with the owner */
    bool is_stopped, has_thread;
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t changed;
};

/* ---- memory ---------------------------------------------------------------------------------- */

static pseg_status slot_init(pseg_train_batch *b, const pseg_train_source *source,
                             const pseg_head_config *h, const pseg_train_sizes *sizes,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t tap = (size_t)h->gh * h->gw * h->vision_dim, images = sizes->images;
    uint32_t mh, mw;
    bool good = true;

    pseg_train_mask_size(&mh, &mw, h, sizes);
    b->max_images = sizes->images;
    b->max_samples = sizes->batch;
    if (source->has_taps)
        for (uint32_t i = 0; i < h->n_taps; i++)
            good = good && (b->taps[i] = pseg_malloc(images * tap * sizeof(float)));
    else
        good = (b->pixels = pseg_malloc(images * 3 * h->height * h->width * sizeof(float)));
    b->image_of = pseg_calloc(sizes->batch, sizeof *b->image_of);
    b->phrases = pseg_calloc(sizes->batch, sizeof *b->phrases);
    b->target = pseg_malloc((size_t)sizes->batch * mh * mw * sizeof *b->target);
    b->id = pseg_calloc(sizes->batch, sizeof *b->id);
    if (!good || !b->image_of || !b->phrases || !b->target || !b->id)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a batch of %u images", sizes->images);
out:
    return rc;
}

static void slot_deinit(pseg_train_batch *b)
{
    for (uint32_t i = 0; i < PSEG_MAX_TAPS; i++)
        pseg_free(b->taps[i]);
    pseg_free(b->pixels);
    pseg_free(b->image_of);
    pseg_free(b->phrases);
    pseg_free(b->target);
    pseg_free(b->id);
    pseg_arena_free(b->arena);
}

/* ---- the thread ------------------------------------------------------------------------------ */

/* false: there is nothing after p. */
static bool settle(pseg_loader_place *p, const pseg_loader *l)
{
    for (;;) {
        if (p->epoch >= l->n_epochs)
            return false;
        if (p->batch < (p->is_train ? l->source->n_train : l->source->n_val))
            return true;
        p->batch = 0;
        p->epoch += !p->is_train;
        p->is_train = !p->is_train;
    }
}

static void fill(slot *s, pseg_loader *l)
{
    s->rc = PSEG_OK;
    s->err = (pseg_err)PSEG_ERR_INIT;
    s->is_last = !settle(&l->next, l);
    s->place = l->next;
    if (s->is_last)
        return;
    pseg_arena_free(s->b.arena);
    s->b.arena = pseg_arena_new(TEXT_BYTES);
    if (!s->b.arena) {
        s->rc = pseg_err_set(&s->err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory for phrases");
        return;
    }
    s->rc = l->source->load(l->source->ud, &s->b, s->place.is_train, s->place.epoch, s->place.batch,
                            &s->err);
    l->next.batch++;
}

static void *work(void *ud)
{
    pseg_loader *l = ud;
    bool goes_on = true;

    while (goes_on) {
        pthread_mutex_lock(&l->mu);
        while (!l->is_stopped && l->made - l->taken >= N_SLOTS)
            pthread_cond_wait(&l->changed, &l->mu);
        bool stop = l->is_stopped;
        slot *s = &l->slots[l->made % N_SLOTS];
        pthread_mutex_unlock(&l->mu);
        if (stop)
            break;
        fill(s, l);
        goes_on = !s->is_last && s->rc == PSEG_OK;
        pthread_mutex_lock(&l->mu);
        l->made++;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->mu);
    }
    return NULL;
}

/* ---- the owner ------------------------------------------------------------------------------- */

pseg_status pseg_loader_open(pseg_loader **out, const pseg_train_source *source,
                             const pseg_head_config *head, const pseg_train_sizes *sizes,
                             pseg_loader_place from, uint64_t n_epochs, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_loader *l = pseg_calloc(1, sizeof *l);

    *out = NULL;
    if (!l)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a loader");
    l->source = source;
    l->n_epochs = n_epochs;
    l->next = from;
    pthread_mutex_init(&l->mu, NULL);
    pthread_cond_init(&l->changed, NULL);
    for (int i = 0; i < N_SLOTS; i++)
        PSEG_TRY(slot_init(&l->slots[i].b, source, head, sizes, err));
    if (pthread_create(&l->thread, NULL, work, l) != 0)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "cannot start the loader's thread");
    l->has_thread = true;
    *out = l;
    l = NULL;
out:
    pseg_loader_close(l);
    return rc;
}

void pseg_loader_close(pseg_loader *l)
{
    if (!l)
        return;
    if (l->has_thread) {
        pthread_mutex_lock(&l->mu);
        l->is_stopped = true;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->mu);
        pthread_join(l->thread, NULL);
    }
    for (int i = 0; i < N_SLOTS; i++)
        slot_deinit(&l->slots[i].b);
    pthread_mutex_destroy(&l->mu);
    pthread_cond_destroy(&l->changed);
    pseg_free(l);
}

/* The slot that was given out is the thread's again when the next one is asked for. */
pseg_status pseg_loader_next(const pseg_train_batch **batch, pseg_loader_place *place,
                             pseg_loader *l, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    slot *s;

    *batch = NULL;
    pthread_mutex_lock(&l->mu);
    if (l->given)
        l->taken++;
    l->given = false;
    pthread_cond_broadcast(&l->changed);
    while (l->made == l->taken)
        pthread_cond_wait(&l->changed, &l->mu);
    s = &l->slots[l->taken % N_SLOTS];
    pthread_mutex_unlock(&l->mu);
    if (s->rc != PSEG_OK) {
        if (err)
            *err = s->err;
        return s->rc;
    }
    *place = s->place;
    if (s->is_last)
        goto out;
    l->given = true;
    *batch = &s->b;
out:
    return rc;
}
