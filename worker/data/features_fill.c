/* Computes what a feature cache lacks: a thread reads and decodes images into one batch while the
 * encoder works on the other. */
#include "common/base/alloc.h"
#include "worker/data/arrays.h"
#include "worker/data/features.h"
#include "worker/data/features_impl.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

enum { N_BATCHES = 2, BATCH = 16 };

typedef struct batch_item {
    size_t at; /* in entries */
    pseg_feature_key key;
    uint32_t width, height;
} batch_item;

typedef struct batch {
    float *chw;
    batch_item items[BATCH];
    size_t n;
    size_t n_done; /* images that were looked at, up to this batch's end */
    bool is_ready; /* else it belongs to the thread that reads */
} batch;

typedef struct filler {
    const pseg_feature_job *job;
    pseg_feature_cache *c;
    pseg_preprocess how;
    uint32_t *entries;
    size_t n_variants, n_skipped;
    size_t pixels; /* numbers of an input */
    batch batches[N_BATCHES];
    pthread_mutex_t mu; /* guards all that follows, the batches' is_ready, and the cache */
    pthread_cond_t changed;
    bool is_over, is_stopped; /* the reader has ended; it is to end */
    pseg_status rc;           /* the reader's */
    pseg_err err;
} filler;

/* ---- reading --------------------------------------------------------------------------------- */

static void leave_out(filler *f, size_t i, pseg_data_fault fault, const char *what)
{
    pseg_data_record *r = NULL;

    for (size_t v = 0; v < f->n_variants; v++)
        f->entries[i * f->n_variants + v] = PSEG_NO_FEATURE;
    pthread_mutex_lock(&f->mu);
    f->n_skipped++;
    pthread_mutex_unlock(&f->mu);
    if (!f->job->report)
        return;
    pseg_dataset_read(&r, f->job->d, f->job->images->images[i], NULL);
    f->job->report(f->job->report_ud, fault, r ? r->where : pseg_dataset_path(f->job->d), what);
    pseg_data_record_free(r);
}

/* Is it a fault of the image, which is left out, or one that ends the work? */
static bool is_of_image(const pseg_err *e)
{
    return e->code == PSEG_EINVAL || e->code == PSEG_ECORRUPT || e->code == PSEG_ENOTFOUND;
}

static pseg_data_fault fault_of(const pseg_err *e)
{
    return e->code == PSEG_ENOTFOUND ? PSEG_DATA_IMAGE_MISSING : PSEG_DATA_IMAGE_BROKEN;
}

/* Entries of image i that are there already. Returns how many are missing. */
static size_t look_up(filler *f, size_t i, const uint8_t of_bytes[24])
{
    size_t missing = 0;

    for (size_t v = 0; v < f->n_variants; v++) {
        pseg_feature_key key = {.is_mirrored = v == 1};
        uint32_t *entry = &f->entries[i * f->n_variants + v];
        memcpy(key.of_bytes, of_bytes, sizeof key.of_bytes);
        pthread_mutex_lock(&f->mu);
        if (!pseg_feature_cache_find(entry, f->c, &key)) {
            *entry = PSEG_NO_FEATURE;
            missing++;
        }
        pthread_mutex_unlock(&f->mu);
    }
    return missing;
}

/* Waits until batch b is the reader's. False: it is to end. */
static bool wait_for_batch(filler *f, const batch *b)
{
    pthread_mutex_lock(&f->mu);
    while (b->is_ready && !f->is_stopped)
        pthread_cond_wait(&f->changed, &f->mu);
    bool go_on = !f->is_stopped;
    pthread_mutex_unlock(&f->mu);
    return go_on;
}

static void hand_over(filler *f, batch *b, size_t n_done)
{
    pthread_mutex_lock(&f->mu);
    b->n_done = n_done;
    b->is_ready = true;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mu);
}

typedef struct reader {
    filler *f;
    size_t which; /* the batch that is being filled */
} reader;

/* Decodes image i, as it is or mirrored, into the batch; hands that over when it is full. */
static pseg_status add_input(reader *r, size_t i, size_t variant, const pseg_data_bytes *file,
                             const uint8_t of_bytes[24], pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    filler *f = r->f;
    batch *b = &f->batches[r->which];
    batch_item *item;

    if (!wait_for_batch(f, b))
        PSEG_FAIL(PSEG_R_CANCELLED, 0, "stopped");
    item = &b->items[b->n];
    *item = (batch_item){.at = i * f->n_variants + variant, .key = {.is_mirrored = variant == 1}};
    memcpy(item->key.of_bytes, of_bytes, sizeof item->key.of_bytes);
    PSEG_TRY(pseg_data_make_input(b->chw + b->n * f->pixels, &item->width, &item->height, file,
                                  &f->how, variant == 1, err));
    b->n++;
    if (b->n == BATCH) {
        hand_over(f, b, i + 1);
        r->which = (r->which + 1) % N_BATCHES;
    }
out:
    return rc;
}

static pseg_status learn_source(filler *f, const uint8_t source[24], const uint8_t of_bytes[24],
                                pseg_err *err)
{
    pthread_mutex_lock(&f->mu);
    pseg_status rc = features_add_source(f->c, source, of_bytes, err);
    pthread_mutex_unlock(&f->mu);
    return rc;
}

static pseg_status read_file(reader *r, size_t i, const uint8_t source[24], pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    filler *f = r->f;
    pseg_data_bytes file = {0};

    PSEG_TRY(pseg_dataset_image(&file, f->job->d, f->job->images->images[i], err));
    pseg_feature_key key = pseg_feature_key_of(&file, false);
    PSEG_TRY(learn_source(f, source, key.of_bytes, err));
    if (look_up(f, i, key.of_bytes))
        for (size_t v = 0; v < f->n_variants; v++)
            if (f->entries[i * f->n_variants + v] == PSEG_NO_FEATURE)
                PSEG_TRY(add_input(r, i, v, &file, key.of_bytes, err));
out:
    pseg_data_bytes_free(&file);
    return rc;
}

static pseg_status read_image(reader *r, size_t i, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    filler *f = r->f;
    uint8_t source[24], of_bytes[24];
    pseg_err e = PSEG_ERR_INIT;

    rc = pseg_dataset_source(source, f->job->d, f->job->images->images[i], &e);
    if (rc == PSEG_OK) {
        pthread_mutex_lock(&f->mu);
        bool is_known = features_known_source(of_bytes, f->c, source);
        pthread_mutex_unlock(&f->mu);
        if (is_known && look_up(f, i, of_bytes) == 0)
            return rc;
        rc = read_file(r, i, source, &e);
    }
    if (rc != PSEG_OK && is_of_image(&e)) {
        leave_out(f, i, fault_of(&e), e.msg);
        rc = PSEG_OK;
    } else if (rc != PSEG_OK && err) {
        *err = e;
    }
    return rc;
}

static void *read_images(void *ud)
{
    reader *r = ud;
    filler *f = r->f;
    pseg_status rc = PSEG_OK;
    pseg_err err = PSEG_ERR_INIT;

    for (size_t i = 0; rc == PSEG_OK && i < f->job->images->n; i++) {
        pthread_mutex_lock(&f->mu);
        bool is_stopped = f->is_stopped;
        pthread_mutex_unlock(&f->mu);
        if (is_stopped)
            break;
        rc = read_image(r, i, &err);
    }
    batch *last = &f->batches[r->which];
    pthread_mutex_lock(&f->mu);
    bool has_more = last->n && !last->is_ready;
    pthread_mutex_unlock(&f->mu);
    if (has_more)
        hand_over(f, last, f->job->images->n);
    pthread_mutex_lock(&f->mu);
    f->rc = rc;
    f->err = err;
    f->is_over = true;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mu);
    return NULL;
}

/* ---- computing ------------------------------------------------------------------------------- */

/* The batch, when it is ready; false: there are no more. */
static bool next_batch(filler *f, const batch *b)
{
    pthread_mutex_lock(&f->mu);
    while (!b->is_ready && !f->is_over)
        pthread_cond_wait(&f->changed, &f->mu);
    bool is_ready = b->is_ready;
    pthread_mutex_unlock(&f->mu);
    return is_ready;
}

static pseg_status keep(filler *f, const batch *b, const uint16_t *taps, size_t each, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    pthread_mutex_lock(&f->mu);
    for (size_t i = 0; rc == PSEG_OK && i < b->n; i++) {
        pseg_feature x = {taps + i * each, b->items[i].width, b->items[i].height};
        rc = pseg_feature_cache_put(&f->entries[b->items[i].at], f->c, &b->items[i].key, &x, err);
    }
    pthread_mutex_unlock(&f->mu);
    return rc;
}

static pseg_status tell(filler *f, size_t n_done, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_feature_job *job = f->job;

    if (!job->progress)
        return rc;
    pthread_mutex_lock(&f->mu);
    size_t n_skipped = f->n_skipped;
    pthread_mutex_unlock(&f->mu);
    if (!job->progress(job->progress_ud, n_done, n_skipped, job->images->n))
        PSEG_FAIL(PSEG_R_CANCELLED, 0, "stopped after %zu of %zu images; what is done is kept",
                  n_done, job->images->n);
out:
    return rc;
}

static pseg_status compute(filler *f, pseg_vision *v, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t each = pseg_vision_numbers(v);
    uint16_t *taps = pseg_malloc(BATCH * each * sizeof *taps);

    if (!taps)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the features of %d images", BATCH);
    for (size_t k = 0; next_batch(f, &f->batches[k]); k = (k + 1) % N_BATCHES) {
        batch *b = &f->batches[k];
        PSEG_TRY(pseg_vision_run(taps, v, b->chw, b->n, err));
        PSEG_TRY(keep(f, b, taps, each, err));
        PSEG_TRY(tell(f, b->n_done, err));
        pthread_mutex_lock(&f->mu);
        b->n = 0;
        b->is_ready = false;
        pthread_cond_broadcast(&f->changed);
        pthread_mutex_unlock(&f->mu);
    }
out:
    pseg_free(taps);
    return rc;
}

/* ---- before and after ------------------------------------------------------------------------ */

/* At most so many entries are missing; told before hours are spent on a disk that is too small. */
static pseg_status check_room(filler *f, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_feature_job *job = f->job;
    uint8_t source[24], of_bytes[24];
    uint64_t missing = 0, free_bytes;
    struct statvfs disk;

    for (size_t i = 0; i < job->images->n; i++)
        if (pseg_dataset_source(source, job->d, job->images->images[i], NULL) == PSEG_OK)
            missing += features_known_source(of_bytes, f->c, source) ? look_up(f, i, of_bytes)
                                                                     : f->n_variants;
    if (statvfs(f->c->folder, &disk) != 0)
        return rc;
    free_bytes = (uint64_t)disk.f_bavail * disk.f_frsize;
    if (missing * f->c->slot_bytes > free_bytes)
        PSEG_FAIL(PSEG_R_FILE_IO, 0,
                  "%llu features take up to %.1f GiB and the disk of %s has %.1f GiB free; make "
                  "room or name another cache folder",
                  (unsigned long long)missing,
                  (double)(missing * f->c->slot_bytes) / ((uint64_t)1 << 30), f->c->folder,
                  (double)free_bytes / ((uint64_t)1 << 30));
out:
    return rc;
}

/* Images whose file has another size than their masks. */
static void check_sizes(filler *f)
{
    char what[160];

    for (size_t i = 0; i < f->job->images->n; i++) {
        uint32_t entry = f->entries[i * f->n_variants];
        if (f->entries[i * f->n_variants + f->n_variants - 1] == PSEG_NO_FEATURE)
            f->entries[i * f->n_variants] = entry = PSEG_NO_FEATURE; /* counted already */
        pseg_data_image of = pseg_dataset_at(f->job->d, f->job->images->images[i]);
        if (entry == PSEG_NO_FEATURE ||
            (f->c->lines[entry].width == of.width && f->c->lines[entry].height == of.height))
            continue;
        snprintf(what, sizeof what, "the image has %u x %u pixels, its masks %u x %u",
                 f->c->lines[entry].width, f->c->lines[entry].height, of.width, of.height);
        leave_out(f, i, PSEG_DATA_MASK_SIZE, what);
    }
}

static pseg_status run(filler *f, pseg_vision *v, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    reader r = {.f = f};
    pthread_t thread;

    if (pthread_create(&thread, NULL, read_images, &r) != 0)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "cannot start a thread to read images");
    rc = compute(f, v, err);
    pthread_mutex_lock(&f->mu);
    f->is_stopped = true;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mu);
    pthread_join(thread, NULL);
    if (rc == PSEG_OK && f->rc != PSEG_OK) {
        rc = f->rc;
        if (err)
            *err = f->err;
    }
out:
    return rc;
}

pseg_status pseg_feature_fill(uint32_t *entries, size_t *n_skipped, pseg_feature_cache *c,
                              pseg_vision *v, const pseg_feature_job *job, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const pseg_vision_info *info = pseg_vision_get_info(v);
    filler f = {.job = job,
                .c = c,
                .how = c->how,
                .entries = entries,
                .n_variants = job->has_mirrored ? 2 : 1,
                .pixels = 3 * (size_t)info->height * info->width};

    *n_skipped = 0;
    pthread_mutex_init(&f.mu, NULL);
    pthread_cond_init(&f.changed, NULL);
    for (size_t i = 0; i < job->images->n * f.n_variants; i++)
        entries[i] = PSEG_NO_FEATURE;
    PSEG_TRY(pseg_feature_cache_lock(c, err));
    PSEG_REQUIRE(2 * pseg_vision_numbers(v) == c->bytes && c->how.width == info->width &&
                     c->how.height == info->height,
                 "image encoder");
    for (int i = 0; i < N_BATCHES; i++)
        if (!(f.batches[i].chw = pseg_malloc(BATCH * f.pixels * sizeof(float))))
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a batch of images");
    PSEG_TRY(check_room(&f, err));
    PSEG_TRY(run(&f, v, err));
    check_sizes(&f);
    *n_skipped = f.n_skipped;
    if (f.n_skipped == job->images->n)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "%s: none of %zu images can be used",
                  pseg_dataset_path(job->d), job->images->n);
out:
    pseg_feature_cache_unlock(c);
    for (int i = 0; i < N_BATCHES; i++)
        pseg_free(f.batches[i].chw);
    pthread_cond_destroy(&f.changed);
    pthread_mutex_destroy(&f.mu);
    return rc;
}
