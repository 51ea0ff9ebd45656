#include "worker/data/builder.h"
#include "common/base/alloc.h"
#include "common/base/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

#define MAX_SIDE   (1u << 20)
#define MAX_PIXELS ((uint64_t)1 << 30)

void builder_fault(pseg_dataset *d, pseg_data_fault fault, const char *where, const char *fmt, ...)
{
    pseg_err text = PSEG_ERR_INIT; /* makes one line of UTF-8 of whatever it is given */
    va_list ap;

    d->faults[fault]++;
    if (!d->o.report)
        return;
    va_start(ap, fmt);
    pseg_err_setv(&text, PSEG_R_DATA_CORRUPT, 0, NULL, fmt, ap);
    va_end(ap);
    d->o.report(d->o.report_ud, fault, where, text.msg);
}

/* ---- images ---------------------------------------------------------------------------------- */

/* COCO's number in "COCO_train2014_000000000009.jpg" or "000000000009.jpg"; -1: neither. */
static int64_t coco_number(const char *base)
{
    int64_t n = 0;
    size_t digits = 0;

    if (strncmp(base, "COCO_", 5) == 0) {
        base = strchr(base + 5, '_');
        if (!base)
            return -1;
        base++;
    }
    for (; base[digits] >= '0' && base[digits] <= '9' && digits < 13; digits++)
        n = n * 10 + (base[digits] - '0');
    return digits == 12 && (base[12] == '.' || !base[12]) ? n : -1;
}

static void make_key(char *out, size_t size, const char *file_name, int64_t image_id)
{
    const char *base = strrchr(file_name, '/') ? strrchr(file_name, '/') + 1 : file_name;
    const char *dot = strrchr(base, '.');
    int64_t coco = coco_number(base);

    if (coco >= 0)
        snprintf(out, size, "coco:%" PRId64, coco);
    else if (image_id >= 0)
        snprintf(out, size, "id:%" PRId64, image_id);
    else
        snprintf(out, size, "name:%.*s", dot && dot != base ? (int)(dot - base) : (int)strlen(base),
                 base);
}

/* Room for one more of `size` bytes. */
static pseg_status reserve(void **list, size_t *cap, size_t n, size_t size, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t bigger = *cap ? *cap * 2 : 64, bytes;
    void *p;

    if (n < *cap)
        return rc;
    if (n >= UINT32_MAX - 1 || !pseg_mul_size(&bytes, bigger, size))
        PSEG_FAIL(PSEG_R_REQUEST_TOO_LARGE, 0, "a data set of more than 2^32 images or masks");
    p = pseg_realloc(*list, bytes);
    if (!p)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for an index of %zu records", bigger);
    *list = p;
    *cap = bigger;
out:
    return rc;
}

pseg_status builder_image(uint32_t *index, pseg_dataset *d, const builder_image_in *in,
                          pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    image_entry e = {.place = in->place, .of = {.width = in->width, .height = in->height}};
    char key[512];
    uint32_t first;
    bool is_new;

    *index = UINT32_MAX;
    make_key(key, sizeof key, in->file_name, in->image_id);
    if (!pseg_utf8_is_valid(key, strlen(key)))
        pseg_utf8_repair(key);
    e.of.key = idmap_mix(idmap_hash(key, strlen(key)));
    e.of.key += e.of.key == 0;
    PSEG_TRY(idmap_put(&first, &d->keys, e.of.key, (uint32_t)d->n_images, &is_new, err));
    if (!is_new) {
        builder_fault(d, PSEG_DATA_IMAGE_REPEATED, in->where,
                      "image %s is there already; give an image one record with all its masks",
                      key);
        return rc;
    }
    PSEG_TRY(reserve((void **)&d->image, &d->cap_images, d->n_images, sizeof e, err));
    PSEG_TRY(record_write_image(&e.at, &e.len, &d->spool, in, key, err));
    *index = (uint32_t)d->n_images;
    d->image[d->n_images++] = e;
out:
    return rc;
}

/* ---- masks ----------------------------------------------------------------------------------- */

/* The runs of compressed counts, as in common/mask/rle.c, without their pixels. */
static const char *walk_rle(int64_t *area, const char *s, int64_t all)
{
    int64_t previous[2] = {0, 0}, at = 0;

    *area = 0;
    for (size_t n = 0; *s; n++) {
        int64_t x = 0;
        for (int shift = 0;;) {
            int c = (unsigned char)*s - 48;
            if (c < 0 || c > 63 || shift > 40)
                return "its counts are malformed";
            s++;
            x |= (int64_t)(c & 0x1F) << shift;
            shift += 5;
            if (!(c & 0x20)) {
                x |= c & 0x10 ? -((int64_t)1 << shift) : 0;
                break;
            }
        }
        x += n > 2 ? previous[n & 1] : 0;
        if (x < 0 || x > all - at)
            return "its counts leave the picture";
        previous[n & 1] = x;
        at += x;
        *area += n & 1 ? x : 0;
    }
    return at == all ? NULL : "its counts do not cover the picture";
}

static const char *walk_runs(int64_t *area, const pseg_data_mask *m, int64_t all)
{
    int64_t at = 0;

    *area = 0;
    for (size_t i = 0; i < m->n_runs; i++) {
        if (m->runs[i] > all - at)
            return "its counts leave the picture";
        at += m->runs[i];
        *area += i & 1 ? m->runs[i] : 0;
    }
    return at == all ? NULL : "its counts do not cover the picture";
}

static const char *walk_rings(const pseg_data_mask *m)
{
    double far = 2.0 * (m->width > m->height ? m->width : m->height) + 64;
    size_t at = 0;

    if (!m->n_rings)
        return "it has no polygon";
    for (uint32_t i = 0; i < m->n_rings; i++) {
        if (m->ring_len[i] < 6 || m->ring_len[i] % 2)
            return "a polygon needs three points or more, two numbers each";
        for (uint32_t k = 0; k < m->ring_len[i]; k++, at++)
            if (!(m->points[at] >= -far && m->points[at] <= far))
                return "a polygon's point lies far outside of the picture";
    }
    return NULL;
}

pseg_data_fault record_check_mask(char *why, size_t size, int64_t *area, const pseg_data_mask *m)
{
    const char *fault = NULL;
    int64_t all = (int64_t)m->width * m->height;

    *area = -1;
    if (!m->width || !m->height || m->width > MAX_SIDE || m->height > MAX_SIDE ||
        (uint64_t)all > MAX_PIXELS) {
        snprintf(why, size, "its size, %u x %u, is none that a mask may have", m->width, m->height);
        return PSEG_DATA_MASK_BROKEN;
    }
    if (m->form == PSEG_DATA_MASK_RLE)
        fault = walk_rle(area, m->rle, all);
    else if (m->form == PSEG_DATA_MASK_RUNS)
        fault = walk_runs(area, m, all);
    else
        fault = walk_rings(m);
    if (fault)
        snprintf(why, size, "%s (%u x %u)", fault, m->width, m->height);
    else if (*area == 0)
        snprintf(why, size, "it has no pixel");
    return fault ? PSEG_DATA_MASK_BROKEN : *area == 0 ? PSEG_DATA_MASK_EMPTY : PSEG_DATA_N_FAULTS;
}

/* ---- samples --------------------------------------------------------------------------------- */

static bool is_blank(const char *s)
{
    size_t n = strlen(s), step;
    uint32_t cp;

    for (; n; s += step, n -= step) {
        step = pseg_utf8_decode(&cp, s, n);
        if (!pseg_utf8_is_space(cp))
            return false;
    }
    return true;
}

static pseg_data_fault check_phrase(const char *s, const pseg_data_options *o)
{
    size_t n = strlen(s);

    return !pseg_utf8_is_valid(s, n) ? PSEG_DATA_PHRASE_NOT_TEXT
           : is_blank(s)             ? PSEG_DATA_PHRASE_EMPTY
           : n > o->max_phrase_bytes ? PSEG_DATA_PHRASE_LONG
                                     : PSEG_DATA_N_FAULTS;
}

/* Copies those phrases of s that can be used to kept; returns how many. */
static uint32_t choose_phrases(const char **kept, pseg_dataset *d, const pseg_data_sample *s,
                               const char *where)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->n_sentences; i++) {
        pseg_data_fault f = check_phrase(s->sentences[i], &d->o);
        if (f == PSEG_DATA_N_FAULTS || (d->o.keeps_faults && f != PSEG_DATA_PHRASE_NOT_TEXT))
            kept[n++] = s->sentences[i];
        if (f == PSEG_DATA_PHRASE_EMPTY)
            builder_fault(d, f, where, "phrase %u is empty", i);
        else if (f == PSEG_DATA_PHRASE_NOT_TEXT)
            builder_fault(d, f, where, "phrase %u, \"%.40s\", is not UTF-8", i, s->sentences[i]);
        else if (f == PSEG_DATA_PHRASE_LONG)
            builder_fault(d, f, where, "phrase %u, \"%.40s...\", has %zu bytes; the limit is %u", i,
                          s->sentences[i], strlen(s->sentences[i]), d->o.max_phrase_bytes);
    }
    if (!s->n_sentences)
        builder_fault(d, PSEG_DATA_PHRASE_MISSING, where, "a mask without a phrase");
    return n;
}

static bool is_other_size(const image_entry *e, const pseg_data_mask *m)
{
    return e->of.width && e->of.height && (e->of.width != m->width || e->of.height != m->height);
}

pseg_status builder_sample(pseg_dataset *d, uint32_t index, const pseg_data_sample *s,
                           const char *where, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_data_sample kept = *s;
    sample_entry e = {.image = index};
    const char **sentences = NULL;
    pseg_data_fault fault;
    pseg_data_image *of;
    int64_t area;
    char why[160];

    if (index == UINT32_MAX) /* of an image that was left out, which has been told */
        return rc;
    fault = record_check_mask(why, sizeof why, &area, &s->mask);
    if (fault != PSEG_DATA_N_FAULTS) {
        builder_fault(d, fault, where, "the mask cannot be used: %s", why);
        return rc;
    }
    of = &d->image[index].of;
    if (is_other_size(&d->image[index], &s->mask)) {
        builder_fault(d, PSEG_DATA_MASK_SIZE, where,
                      "the mask has %u x %u pixels, its image %u x %u", s->mask.width,
                      s->mask.height, of->width, of->height);
        return rc;
    }
    sentences = pseg_calloc(s->n_sentences + 1, sizeof *sentences);
    if (!sentences)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for %u phrases", s->n_sentences);
    kept.sentences = sentences;
    kept.n_sentences = choose_phrases(sentences, d, s, where);
    if (!kept.n_sentences)
        goto out;
    if (kept.category && !pseg_utf8_is_valid(kept.category, strlen(kept.category)))
        kept.category = "";
    PSEG_TRY(reserve((void **)&d->sample, &d->cap_samples, d->n_samples, sizeof e, err));
    PSEG_TRY(record_write_sample(&e.at, &e.len, &d->spool, &kept, err));
    e.n_sentences = kept.n_sentences;
    d->sample[d->n_samples++] = e;
    of->width = s->mask.width;
    of->height = s->mask.height;
out:
    pseg_free(sentences);
    return rc;
}
