#include "worker/data/check.h"
#include "common/base/alloc.h"
#include "common/base/hash.h"
#include "common/base/utf8.h"
#include "common/image/image.h"
#include "worker/data/idmap.h"
#include "worker/model/text_table.h"
#include "worker/text/tokenizer.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_SETS = 16, MAX_TOKENS = 77, BOX_SLACK = 2 };

struct pseg_check {
    pseg_check_options o;
    pseg_tokenizer *tokenizer;
    pseg_text_table *table;
    pseg_check_set sets[MAX_SETS];
    size_t n;
    idmap keys, bytes; /* of images: to a place in `places` */
    char **places;     /* where each image was met first */
    uint32_t *set_of;  /* in which set */
    uint32_t n_places, cap_places;
    int32_t ids[MAX_TOKENS + 1];
};

static void tell(pseg_check *c, pseg_data_fault fault, const char *where, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static void tell(pseg_check *c, pseg_data_fault fault, const char *where, const char *fmt, ...)
{
    pseg_err text = PSEG_ERR_INIT; /* makes one line of UTF-8 of whatever it is given */
    va_list ap;

    c->sets[c->n].faults[fault]++;
    if (!c->o.report)
        return;
    va_start(ap, fmt);
    pseg_err_setv(&text, PSEG_R_DATA_CORRUPT, 0, NULL, fmt, ap);
    va_end(ap);
    c->o.report(c->o.report_ud, fault, where, text.msg);
}

static void tell_opening(void *ud, pseg_data_fault fault, const char *where, const char *what)
{
    pseg_check *c = ud;

    c->sets[c->n].faults[fault]++;
    if (c->o.report)
        c->o.report(c->o.report_ud, fault, where, what);
}

pseg_status pseg_check_new(pseg_check **out, const pseg_check_options *o, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_check *c = NULL;

    *out = NULL;
    c = pseg_calloc(1, sizeof *c);
    if (!c)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to check a data set");
    c->o = *o;
    if (o->text && pseg_text_table_is(o->text))
        PSEG_TRY(pseg_text_table_open(&c->table, o->text, err));
    else if (o->text)
        PSEG_TRY(pseg_tokenizer_open(&c->tokenizer, o->text, err));
    *out = c;
    c = NULL;
out:
    pseg_check_free(c);
    return rc;
}

void pseg_check_free(pseg_check *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < MAX_SETS; i++) {
        pseg_free(c->sets[i].path);
        pseg_free(c->sets[i].split);
    }
    for (uint32_t i = 0; i < c->n_places; i++)
        pseg_free(c->places[i]);
    pseg_free(c->places);
    pseg_free(c->set_of);
    idmap_deinit(&c->keys);
    idmap_deinit(&c->bytes);
    pseg_tokenizer_free(c->tokenizer);
    pseg_text_table_close(c->table);
    pseg_free(c);
}

/* ---- the same image twice -------------------------------------------------------------------- */

static pseg_status add_place(uint32_t *out, pseg_check *c, const char *where, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t cap = c->cap_places ? 2 * c->cap_places : 256;

    if (c->n_places == c->cap_places) {
        char **places = pseg_realloc(c->places, cap * sizeof *places);
        c->places = places ? places : c->places;
        uint32_t *sets = places ? pseg_realloc(c->set_of, cap * sizeof *sets) : NULL;
        c->set_of = sets ? sets : c->set_of;
        if (!places || !sets)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to check a data set");
        c->cap_places = cap;
    }
    c->places[c->n_places] = pseg_strdup(where);
    if (!c->places[c->n_places])
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to check a data set");
    c->set_of[c->n_places] = (uint32_t)c->n;
    *out = c->n_places++;
out:
    return rc;
}

/* Was it met before? By key, else by bytes (0: they could not be read). */
static pseg_status look_for_twins(pseg_check *c, const pseg_data_record *r, uint64_t key,
                                  uint64_t bytes, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t place = 0, by_key = 0, by_bytes = 0;
    bool is_new_key, is_new_bytes = true;

    PSEG_TRY(add_place(&place, c, r->where, err));
    PSEG_TRY(idmap_put(&by_key, &c->keys, key, place, &is_new_key, err));
    if (bytes)
        PSEG_TRY(idmap_put(&by_bytes, &c->bytes, bytes, place, &is_new_bytes, err));
    if (!is_new_key)
        tell(c, PSEG_DATA_SHARED, r->where, "image %s (%s) is in %s too: %s", r->key, r->file_name,
             c->sets[c->set_of[by_key]].path, c->places[by_key]);
    else if (!is_new_bytes && c->set_of[by_bytes] != c->n)
        tell(c, PSEG_DATA_SHARED, r->where, "image %s (%s) has the same bytes as one in %s: %s",
             r->key, r->file_name, c->sets[c->set_of[by_bytes]].path, c->places[by_bytes]);
    else if (!is_new_bytes)
        tell(c, PSEG_DATA_IMAGE_REPEATED, r->where, "image %s (%s) has the same bytes as %s",
             r->key, r->file_name, c->places[by_bytes]);
out:
    return rc;
}

/* ---- image files ----------------------------------------------------------------------------- */

static bool is_of_data(pseg_status rc)
{
    return rc == PSEG_EINVAL || rc == PSEG_ECORRUPT || rc == PSEG_ENOTFOUND ||
           rc == PSEG_EUNSUPPORTED;
}

static pseg_status look_at_file(pseg_check *c, const pseg_data_bytes *file, uint32_t *width,
                                uint32_t *height, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
    pseg_image_info info;
    pseg_image *i = NULL;

    if (c->o.headers_only) {
        PSEG_TRY(pseg_image_probe(&info, file->data, file->len, &limits, err));
        *width = info.width;
        *height = info.height;
    } else {
        PSEG_TRY(pseg_image_decode(&i, file->data, file->len, &limits, err));
        *width = i->width;
        *height = i->height;
    }
out:
    pseg_image_free(i);
    return rc;
}

static pseg_status check_file(pseg_check *c, pseg_dataset *d, size_t image,
                              const pseg_data_record *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_check_set *s = &c->sets[c->n];
    pseg_data_image of = pseg_dataset_at(d, image);
    pseg_data_bytes file = {0};
    pseg_err e = PSEG_ERR_INIT;
    uint8_t sum[PSEG_SHA256_BYTES];
    uint64_t bytes = 0;
    uint32_t w, h;

    rc = pseg_dataset_image(&file, d, image, &e);
    if (rc == PSEG_OK) {
        pseg_sha256_of(sum, file.data, file.len);
        memcpy(&bytes, sum, sizeof bytes);
        rc = look_at_file(c, &file, &w, &h, &e);
    }
    if (rc != PSEG_OK && !is_of_data(rc)) {
        if (err)
            *err = e;
        goto out;
    }
    if (rc != PSEG_OK)
        tell(c, rc == PSEG_ENOTFOUND ? PSEG_DATA_IMAGE_MISSING : PSEG_DATA_IMAGE_BROKEN, r->where,
             "%s: %s", r->file_name, e.msg);
    else if (w != of.width || h != of.height)
        tell(c, PSEG_DATA_MASK_SIZE, r->where, "%s has %u x %u pixels, its masks %u x %u",
             r->file_name, w, h, of.width, of.height);
    else
        s->n_usable_images++;
    rc = look_for_twins(c, r, of.key, bytes, err);
out:
    pseg_data_bytes_free(&file);
    return rc;
}

/* ---- masks ----------------------------------------------------------------------------------- */

static bool is_far(double told, double found)
{
    return fabs(told - found) > BOX_SLACK;
}

static void check_box(pseg_check *c, const pseg_data_sample *s, const pseg_mask *m,
                      const char *where)
{
    bool is_polygon = s->mask.form == PSEG_DATA_MASK_POLYGON;

    /* A polygon's area is not that of its pixels, and COCO's objects of one category have no box.
     */
    if (s->area >= 0 && !is_polygon && fabs(s->area - (double)m->area) > 1)
        tell(c, PSEG_DATA_MASK_AREA, where, "the area is told as %g, the mask has %llu pixels",
             s->area, (unsigned long long)m->area);
    if (s->bbox[2] >= 0 && (is_far(s->bbox[0], m->box_x) || is_far(s->bbox[1], m->box_y) ||
                            is_far(s->bbox[2], m->box_width) || is_far(s->bbox[3], m->box_height)))
        tell(c, PSEG_DATA_MASK_AREA, where,
             "the bbox is told as %g %g %g %g, the mask's is %u %u %u %u", s->bbox[0], s->bbox[1],
             s->bbox[2], s->bbox[3], m->box_x, m->box_y, m->box_width, m->box_height);
}

static pseg_status check_mask(pseg_check *c, const pseg_data_sample *s, const char *where,
                              double *area, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_mask *m = NULL;
    pseg_err e = PSEG_ERR_INIT;

    rc = pseg_data_mask_decode(&m, &s->mask, &e);
    if (rc == PSEG_ENOMEM) {
        if (err)
            *err = e;
        goto out;
    }
    if (rc != PSEG_OK) {
        tell(c, PSEG_DATA_MASK_BROKEN, where, "%s", e.msg);
    } else if (m->area == 0) {
        tell(c, PSEG_DATA_MASK_EMPTY, where, "the mask has no pixel inside");
    } else {
        *area += (double)m->area / ((double)m->width * m->height);
        check_box(c, s, m, where);
    }
    rc = PSEG_OK;
out:
    pseg_mask_free(m);
    return rc;
}

/* ---- phrases --------------------------------------------------------------------------------- */

static size_t count_words(const char *s)
{
    size_t n = 0, left = strlen(s), step;
    bool is_in = false;
    uint32_t cp;

    for (; left; s += step, left -= step) {
        step = pseg_utf8_decode(&cp, s, left);
        bool is_space = pseg_utf8_is_space(cp);
        n += !is_space && !is_in;
        is_in = !is_space;
    }
    return n;
}

/* A word is a token at least: without a tokenizer, phrases that are cut for certain. */
static void check_length(pseg_check *c, const char *phrase, size_t words, const char *where)
{
    bool is_cut = words > MAX_TOKENS - 2;
    size_t n;

    if (c->tokenizer && pseg_tokenizer_encode(c->ids, MAX_TOKENS, &n, &is_cut, c->tokenizer, phrase,
                                              strlen(phrase), NULL) != PSEG_OK)
        return;
    if (is_cut)
        tell(c, PSEG_DATA_PHRASE_LONG, where,
             "\"%.40s...\", %zu words, is cut: a text encoder reads %d tokens", phrase, words,
             MAX_TOKENS);
}

static pseg_status check_phrases(pseg_check *c, const pseg_data_sample *s, uint32_t number,
                                 idmap *seen, const char *where, size_t *words, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (uint32_t i = 0; i < s->n_sentences; i++) {
        const char *phrase = s->sentences[i];
        size_t n = count_words(phrase);
        pseg_err e = PSEG_ERR_INIT;
        uint32_t found, row;
        bool is_new;
        *words += n;
        if (n == 0) /* told when the set was opened */
            continue;
        check_length(c, phrase, n, where);
        if (c->table && pseg_text_table_find(&row, c->table, phrase, &e) != PSEG_OK)
            tell(c, PSEG_DATA_PHRASE_UNKNOWN, where, "%s", e.msg);
        PSEG_TRY(idmap_put(&found, seen, idmap_hash(phrase, strlen(phrase)), number, &is_new, err));
        if (!is_new && found != number)
            tell(c, PSEG_DATA_PHRASE_REPEATED, where,
                 "\"%.60s\" also means sample %u of this image: which one is meant?", phrase,
                 found);
        else if (!is_new)
            tell(c, PSEG_DATA_PHRASE_REPEATED, where, "\"%.60s\" twice for one mask", phrase);
    }
out:
    return rc;
}

/* ---- sets ------------------------------------------------------------------------------------ */

typedef struct sums {
    double area;
    size_t words;
} sums;

static pseg_status check_image(pseg_check *c, pseg_dataset *d, size_t image, sums *sum,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_check_set *s = &c->sets[c->n];
    pseg_data_record *r = NULL;
    idmap seen = {0};
    char where[320];

    PSEG_TRY(pseg_dataset_read(&r, d, image, err));
    PSEG_TRY(check_file(c, d, image, r, err));
    pseg_data_image of = pseg_dataset_at(d, image);
    uint32_t small = of.width < of.height ? of.width : of.height;
    uint32_t large = of.width > of.height ? of.width : of.height;
    s->min_side = !s->min_side || small < s->min_side ? small : s->min_side;
    s->max_side = large > s->max_side ? large : s->max_side;
    for (uint32_t i = 0; i < r->n_samples; i++) {
        snprintf(where, sizeof where, "%.200s sample %u", r->where, i);
        PSEG_TRY(check_mask(c, &r->samples[i], where, &sum->area, err));
        PSEG_TRY(check_phrases(c, &r->samples[i], i, &seen, where, &sum->words, err));
    }
out:
    idmap_deinit(&seen);
    pseg_data_record_free(r);
    return rc;
}

pseg_status pseg_check_add(pseg_check *c, const char *path, const pseg_data_options *o,
                           pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_data_options checked = *o;
    pseg_dataset *d = NULL;
    pseg_check_set *s = &c->sets[c->n];
    sums sum = {0};

    PSEG_REQUIRE(c->n < MAX_SETS, "sets");
    s->path = pseg_strdup(path);
    s->split = pseg_strdup(o->split ? o->split : "");
    if (!s->path || !s->split)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to check a data set");
    checked.keeps_faults = true;
    checked.report = tell_opening;
    checked.report_ud = c;
    PSEG_TRY(pseg_dataset_open(&d, path, &checked, err));
    s->format = pseg_dataset_format(d);
    s->n_images = pseg_dataset_n_images(d);
    s->n_samples = pseg_dataset_n_samples(d);
    s->n_phrases = pseg_dataset_n_phrases(d);
    for (size_t i = 0; i < s->n_images; i++) {
        PSEG_TRY(check_image(c, d, i, &sum, err));
        if (c->o.progress && !c->o.progress(c->o.progress_ud, i + 1, s->n_images))
            PSEG_FAIL(PSEG_R_CANCELLED, 0, "stopped after %zu of %zu images", i + 1, s->n_images);
    }
    s->mean_area = s->n_samples ? sum.area / (double)s->n_samples : 0;
    s->mean_words = s->n_phrases ? (double)sum.words / (double)s->n_phrases : 0;
    c->n++;
out:
    if (rc != PSEG_OK && c->n < MAX_SETS) {
        pseg_free(s->path);
        pseg_free(s->split);
        *s = (pseg_check_set){0};
    }
    pseg_dataset_close(d);
    return rc;
}

size_t pseg_check_n_sets(const pseg_check *c)
{
    return c->n;
}

const pseg_check_set *pseg_check_set_of(const pseg_check *c, size_t i)
{
    return i < c->n ? &c->sets[i] : NULL;
}

size_t pseg_check_n_faults(const pseg_check *c)
{
    size_t n = 0;

    for (size_t i = 0; i < c->n; i++)
        for (int k = 0; k < PSEG_DATA_N_FAULTS; k++)
            n += c->sets[i].faults[k];
    return n;
}
