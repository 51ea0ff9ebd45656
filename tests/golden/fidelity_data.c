#include "tests/golden/fidelity_data.h"

#include "common/base/alloc.h"
#include "tests/golden/golden.h"
#include "worker/data/dataset.h"
#include "worker/data/arrays.h"
#include "worker/scenes/scenes.h"

#include <string.h>

enum { SIZE = 224, FIRST_SEED = 3000000 };

struct fidelity_data {
    pseg_dataset *photos; /* NULL: scenes */
    size_t *which;        /* images of it */
    size_t n;
    pseg_preprocess how;
};

static void must(pseg_status rc, const char *what, const pseg_err *err)
{
    gold_must(rc == PSEG_OK, what, err);
}

static void add_phrase(fidelity_image *m, const char *text)
{
    if (m->n_phrases == FIDELITY_MAX_PHRASES)
        return;
    m->phrases[m->n_phrases] = pseg_strdup(text);
    gold_must(m->phrases[m->n_phrases++] != NULL, "memory", NULL);
}

/* ---- photos ---- */

static bool is_class(const pseg_data_sample *s)
{
    return strcmp(s->kind, "class") == 0 && s->n_sentences > 0;
}

static bool has_class(const fidelity_data *d, size_t image)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_data_record *r;
    bool has = false;

    must(pseg_dataset_read(&r, d->photos, image, &err), "record", &err);
    for (uint32_t i = 0; i < r->n_samples; i++)
        has = has || is_class(&r->samples[i]);
    pseg_data_record_free(r);
    return has;
}

static void read_photo(fidelity_image *m, fidelity_data *d, size_t image)
{
    static const pseg_image_limits limits = PSEG_IMAGE_LIMITS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;
    pseg_image_prepared p;
    pseg_data_bytes bytes;
    pseg_data_record *r;

    must(pseg_dataset_image(&bytes, d->photos, image, &err), "photo", &err);
    must(pseg_image_prepare(&p, m->chw, (pseg_image_file){bytes.data, bytes.len}, &limits, &d->how,
                            &err),
         "photo", &err);
    pseg_data_bytes_free(&bytes);
    m->width = p.width;
    m->height = p.height;
    memcpy(m->rect, p.rect, sizeof m->rect);
    must(pseg_dataset_read(&r, d->photos, image, &err), "record", &err);
    for (uint32_t i = 0; i < r->n_samples; i++)
        if (is_class(&r->samples[i]))
            add_phrase(m, r->samples[i].sentences[0]);
    pseg_data_record_free(r);
}

/* ---- scenes ---- */

static void read_scene(fidelity_image *m, const fidelity_data *d, uint64_t seed)
{
    pseg_err err = PSEG_ERR_INIT;
    pseg_scene *s;

    must(pseg_scene_make(&s, seed, SIZE, &err), "scene", &err);
    pseg_image photo = {.width = SIZE, .height = SIZE, .rgb = s->rgb};
    must(pseg_image_preprocess(m->chw, m->rect, &photo, &d->how, &err), "scene", &err);
    m->width = m->height = SIZE;
    for (int32_t i = 0; i < (int32_t)s->n_phrases; i++)
        add_phrase(m, s->phrases[i].text);
    pseg_scene_free(s);
}

/* ---- either ---- */

fidelity_data *fidelity_data_open(const char *path, size_t n, const pseg_model_info *info)
{
    fidelity_data *d = pseg_calloc(1, sizeof *d);
    pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
    pseg_err err = PSEG_ERR_INIT;

    gold_must(d != NULL, "memory", NULL);
    d->which = pseg_calloc(n, sizeof *d->which);
    gold_must(d->which != NULL, "memory", NULL);
    pseg_data_preprocess_of(&d->how, info);
    d->n = path ? 0 : n;
    if (!path)
        return d;
    must(pseg_dataset_open(&d->photos, path, &o, &err), "photos", &err);
    for (size_t i = pseg_dataset_n_images(d->photos); i-- > 0 && d->n < n;)
        if (has_class(d, i))
            d->which[d->n++] = i;
    return d;
}

void fidelity_data_read(fidelity_image *out, fidelity_data *d, size_t i)
{
    memset(out, 0, sizeof *out);
    out->chw = pseg_calloc(3 * (size_t)d->how.width * d->how.height, sizeof *out->chw);
    gold_must(out->chw != NULL, "memory", NULL);
    if (d->photos)
        read_photo(out, d, d->which[i]);
    else
        read_scene(out, d, FIRST_SEED + i);
}

void fidelity_image_free(fidelity_image *m)
{
    for (size_t i = 0; i < m->n_phrases; i++)
        pseg_free(m->phrases[i]);
    pseg_free(m->chw);
}

size_t fidelity_data_n(const fidelity_data *d)
{
    return d->n;
}

void fidelity_data_close(fidelity_data *d)
{
    pseg_dataset_close(d->photos);
    pseg_free(d->which);
    pseg_free(d);
}
