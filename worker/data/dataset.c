#include "worker/data/dataset.h"
#include "common/base/alloc.h"
#include "common/base/file.h"
#include "common/base/hash.h"
#include "worker/data/builder.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_IMAGE_BYTES = 64 << 20 };

static const char *const format_names[PSEG_DATA_N_FORMATS] = {"auto", "jsonl", "parquet", "coco",
                                                              "refcoco"};
static const char *const fault_names[PSEG_DATA_N_FAULTS] = {
    "bad_record",      "image_missing",   "image_broken",   "image_repeated",
    "no_samples",      "mask_broken",     "mask_size",      "mask_empty",
    "mask_area",       "phrase_missing",  "phrase_empty",   "phrase_long",
    "phrase_not_text", "phrase_repeated", "phrase_unknown", "shared"};

const char *pseg_data_format_name(pseg_data_format f)
{
    return (unsigned)f < PSEG_DATA_N_FORMATS ? format_names[f] : "?";
}

bool pseg_data_format_parse(pseg_data_format *out, const char *name)
{
    for (unsigned i = 0; i < PSEG_DATA_N_FORMATS; i++)
        if (strcmp(name, format_names[i]) == 0) {
            *out = (pseg_data_format)i;
            return true;
        }
    return false;
}

const char *pseg_data_fault_name(pseg_data_fault f)
{
    return (unsigned)f < PSEG_DATA_N_FAULTS ? fault_names[f] : "?";
}

/* ---- which files ----------------------------------------------------------------------------- */

/* The files that a set consists of. */
typedef struct files {
    char **path; /* n of them, sorted */
    size_t n;
    char *instances;
} files;

static void files_deinit(files *f)
{
    for (size_t i = 0; i < f->n; i++)
        pseg_free(f->path[i]);
    pseg_free(f->path);
    pseg_free(f->instances);
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);

    return n >= k && strcmp(s + n - k, end) == 0;
}

static bool is_refs(const char *name)
{
    return strncmp(name, "refs", 4) == 0 && (ends_with(name, ".p") || ends_with(name, ".pkl"));
}

static pseg_data_format format_of(const char *path)
{
    const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;

    return ends_with(base, ".jsonl") || ends_with(base, ".ndjson") ? PSEG_DATA_JSONL
           : ends_with(base, ".parquet")                           ? PSEG_DATA_PARQUET
           : ends_with(base, ".json")                              ? PSEG_DATA_COCO
           : is_refs(base)                                         ? PSEG_DATA_REFCOCO
                                                                   : PSEG_DATA_AUTO;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Takes ownership of path, also on failure. */
static pseg_status files_add(files *f, char *path, pseg_err *err)
{
    char **more = path ? pseg_realloc(f->path, (f->n + 1) * sizeof *more) : NULL;

    if (!more) {
        pseg_free(path);
        return pseg_err_set(err, PSEG_R_OUT_OF_MEMORY, 0, PSEG_HERE, "no memory for file names");
    }
    f->path = more;
    f->path[f->n++] = path;
    return PSEG_OK;
}

/* Files of dir that may be of format f, AUTO: of any. */
static pseg_status list_folder(files *out, const char *dir, pseg_data_format f, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    DIR *d = opendir(dir);
    struct dirent *e;

    if (!d)
        PSEG_FAIL(PSEG_R_FILE_IO, errno, "cannot list %s: %s", dir, strerror(errno));
    while ((e = readdir(d))) {
        pseg_data_format of = format_of(e->d_name);
        if (of == PSEG_DATA_AUTO || (f != PSEG_DATA_AUTO && of != f))
            continue;
        PSEG_TRY(files_add(out, pseg_path_join(dir, e->d_name), err));
    }
    if (out->n > 1)
        qsort(out->path, out->n, sizeof *out->path, by_name);
out:
    if (d)
        closedir(d);
    return rc;
}

static size_t count_format(const files *f, pseg_data_format of)
{
    size_t n = 0;

    for (size_t i = 0; i < f->n; i++)
        n += format_of(f->path[i]) == of;
    return n;
}

/* Leaves those of format `of`. */
static void keep_format(files *f, pseg_data_format of)
{
    size_t n = 0;

    for (size_t i = 0; i < f->n; i++) {
        if (format_of(f->path[i]) == of)
            f->path[n++] = f->path[i];
        else
            pseg_free(f->path[i]);
    }
    f->n = n;
}

/* What a folder holds: refs(...).p before instances.json before parquet before JSON lines. */
static pseg_status choose_format(files *f, pseg_dataset *d, pseg_err *err)
{
    static const pseg_data_format order[] = {PSEG_DATA_REFCOCO, PSEG_DATA_PARQUET, PSEG_DATA_JSONL,
                                             PSEG_DATA_COCO};
    pseg_status rc = PSEG_OK;

    for (size_t i = 0; d->format == PSEG_DATA_AUTO && i < sizeof order / sizeof *order; i++)
        if (count_format(f, order[i]))
            d->format = order[i];
    if (d->format == PSEG_DATA_AUTO)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%s holds no data set: expected .jsonl, .parquet, COCO's .json or refs(...).p",
                  d->path);
    keep_format(f, d->format);
    if (f->n > 1 && d->format != PSEG_DATA_PARQUET)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0, "%s holds %zu data sets; name one: %s or %s", d->path,
                  f->n, f->path[0], f->path[1]);
out:
    return rc;
}

static pseg_status find_files(files *f, pseg_dataset *d, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    struct stat st;

    if (stat(d->path, &st) != 0)
        PSEG_FAIL(errno == ENOENT || errno == ENOTDIR ? PSEG_R_FILE_NOT_FOUND : PSEG_R_FILE_IO,
                  errno, "cannot open the data set %s: %s", d->path, strerror(errno));
    d->format = d->o.format;
    if (S_ISDIR(st.st_mode)) {
        d->dir = pseg_strdup(d->path);
        PSEG_TRY(list_folder(f, d->path, d->format, err));
        PSEG_TRY(choose_format(f, d, err));
    } else {
        const char *slash = strrchr(d->path, '/');
        d->dir = slash ? pseg_strndup(d->path, (size_t)(slash - d->path) + 1) : pseg_strdup(".");
        if (d->format == PSEG_DATA_AUTO)
            d->format = format_of(d->path);
        if (d->format == PSEG_DATA_AUTO)
            PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                      "%s: its name does not tell what it is; say the format (jsonl, parquet, coco "
                      "or refcoco)",
                      d->path);
        PSEG_TRY(files_add(f, pseg_strdup(d->path), err));
    }
    if (!d->dir)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
out:
    return rc;
}

/* ---- opening --------------------------------------------------------------------------------- */

static pseg_status read_files(pseg_dataset *d, files *f, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    switch (d->format) {
    case PSEG_DATA_JSONL:
        return jsonl_read(d, f->path[0], err);
    case PSEG_DATA_PARQUET:
        return parquet_read(d, f->path, f->n, err);
    case PSEG_DATA_COCO:
        return coco_read(d, f->path[0], err);
    default:
        f->instances = pseg_path_join(d->dir, "instances.json");
        if (!f->instances)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
        PSEG_TRY(refcoco_read(d, f->path[0], f->instances, err));
    }
out:
    return rc;
}

/* Sorts samples by image, keeping their order, and leaves out images without. */
static pseg_status sort_samples(pseg_dataset *d, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    sample_entry *sorted = pseg_calloc(d->n_samples + 1, sizeof *sorted);
    uint32_t at = 0;
    size_t kept = 0;

    if (!sorted)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to sort %zu masks", d->n_samples);
    for (size_t i = 0; i < d->n_samples; i++)
        d->image[d->sample[i].image].of.n_samples++;
    for (size_t i = 0; i < d->n_images; i++) {
        d->image[i].first_sample = at;
        at += d->image[i].of.n_samples;
    }
    for (size_t i = 0; i < d->n_samples; i++)
        sorted[d->image[d->sample[i].image].first_sample++] = d->sample[i];
    for (size_t i = 0; i < d->n_images; i++) {
        image_entry e = d->image[i];
        if (!e.of.n_samples) {
            builder_fault(d, PSEG_DATA_NO_SAMPLES, d->path,
                          "image record %zu has no mask that can be used", i);
            continue;
        }
        e.first_sample -= e.of.n_samples;
        for (uint32_t k = 0; k < e.of.n_samples; k++) {
            sorted[e.first_sample + k].image = (uint32_t)kept;
            e.of.n_phrases += sorted[e.first_sample + k].n_sentences;
        }
        d->n_phrases += e.of.n_phrases;
        d->image[kept++] = e;
    }
    d->n_images = kept;
    pseg_free(d->sample);
    d->sample = sorted;
out:
    return rc;
}

static pseg_status check_any(const pseg_dataset *d, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char text[200] = "";
    size_t n = 0;

    for (size_t i = 0; i < PSEG_DATA_N_FAULTS && n + 40 < sizeof text; i++)
        if (d->faults[i])
            n += (size_t)snprintf(text + n, sizeof text - n, "%s%zu %s", n ? ", " : "",
                                  d->faults[i], fault_names[i]);
    if (d->n_images == 0)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0,
                  "%s: no image with a mask and a phrase is left%s%s%s%s (pseg data check tells "
                  "more)",
                  d->path, d->o.split ? " of split " : "", d->o.split ? d->o.split : "",
                  n ? ": " : "", text);
out:
    return rc;
}

pseg_status pseg_dataset_open(pseg_dataset **out, const char *path, const pseg_data_options *o,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_dataset *d = NULL;
    files f = {0};

    *out = NULL;
    d = pseg_calloc(1, sizeof *d);
    if (!d)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
    d->o = *o;
    d->path = pseg_strdup(path);
    d->images = o->images ? pseg_strdup(o->images) : NULL;
    if (!d->path || (o->images && !d->images))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a data set");
    PSEG_TRY(find_files(&f, d, err));
    PSEG_TRY(spool_open(&d->spool, err));
    PSEG_TRY(read_files(d, &f, err));
    PSEG_TRY(spool_flush(&d->spool, err));
    PSEG_TRY(sort_samples(d, err));
    PSEG_TRY(check_any(d, err));
    idmap_deinit(&d->keys);
    d->o.split = NULL; /* borrowed from the caller for the call only */
    *out = d;
    d = NULL;
out:
    files_deinit(&f);
    pseg_dataset_close(d);
    return rc;
}

void pseg_dataset_close(pseg_dataset *d)
{
    if (!d)
        return;
    parquet_images_free(d->parquet);
    spool_close(&d->spool);
    idmap_deinit(&d->keys);
    pseg_free(d->image);
    pseg_free(d->sample);
    pseg_free(d->path);
    pseg_free(d->dir);
    pseg_free(d->images);
    pseg_free(d);
}

/* ---- asking ---------------------------------------------------------------------------------- */

pseg_data_format pseg_dataset_format(const pseg_dataset *d)
{
    return d->format;
}

const char *pseg_dataset_path(const pseg_dataset *d)
{
    return d->path;
}

size_t pseg_dataset_n_images(const pseg_dataset *d)
{
    return d->n_images;
}

size_t pseg_dataset_n_samples(const pseg_dataset *d)
{
    return d->n_samples;
}

size_t pseg_dataset_n_phrases(const pseg_dataset *d)
{
    return d->n_phrases;
}

size_t pseg_dataset_n_faults(const pseg_dataset *d, pseg_data_fault fault)
{
    return (unsigned)fault < PSEG_DATA_N_FAULTS ? d->faults[fault] : 0;
}

pseg_data_image pseg_dataset_at(const pseg_dataset *d, size_t image)
{
    return image < d->n_images ? d->image[image].of : (pseg_data_image){0};
}

/* ---- the image file -------------------------------------------------------------------------- */

/* Place number `i` where a file may lie; NULL: there is no such place, or no memory. */
static char *place(const pseg_dataset *d, const char *name, size_t i)
{
    char *sub, *path;

    if (name[0] == '/')
        return i == 0 ? pseg_strdup(name) : NULL;
    if (d->images)
        return i == 0 ? pseg_path_join(d->images, name) : NULL;
    if (i > 1)
        return NULL;
    if (i == 0)
        return pseg_path_join(d->dir, name);
    sub = pseg_path_join(d->dir, "images");
    path = sub ? pseg_path_join(sub, name) : NULL;
    pseg_free(sub);
    return path;
}

enum { N_PLACES = 2 };

static pseg_status find_image(char **out, const pseg_dataset *d, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *path = NULL;

    *out = NULL;
    for (size_t i = 0; i < N_PLACES; i++) {
        path = place(d, name, i);
        if (path && pseg_file_exists(path)) {
            *out = path;
            return rc;
        }
        pseg_free(path);
    }
    PSEG_FAIL(PSEG_R_FILE_NOT_FOUND, 0, "no image %s in %s%s%s", name,
              d->images ? d->images : d->dir, d->images ? "" : " or its folder images",
              d->images ? "" : "; name the folder of the images");
out:
    return rc;
}

pseg_status pseg_dataset_image(pseg_data_bytes *out, pseg_dataset *d, size_t image, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_data_record *r = NULL;
    uint8_t *data = NULL;
    char *path = NULL;

    *out = (pseg_data_bytes){0};
    PSEG_TRY(pseg_dataset_read(&r, d, image, err));
    if (d->parquet) {
        rc = parquet_image(out, d->parquet, d->image[image].place, err);
        goto out;
    }
    PSEG_TRY(find_image(&path, d, r->file_name, err));
    PSEG_TRY(pseg_file_read(&data, &out->len, path, MAX_IMAGE_BYTES, err));
    out->data = out->owned = data;
out:
    pseg_data_record_free(r);
    pseg_free(path);
    return rc;
}

pseg_status pseg_dataset_source(uint8_t out[24], const pseg_dataset *d, size_t image, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t sum[PSEG_SHA256_BYTES];
    pseg_data_record *r = NULL;
    pseg_file_id id = {0};
    pseg_sha256 *h = NULL;
    char *path = NULL;

    PSEG_TRY(pseg_dataset_read(&r, d, image, err));
    if (d->parquet) { /* the file it lies in, and where */
        id.size = d->image[image].place;
        id.written_ns = (int64_t)parquet_image_file(d->parquet, id.size);
    } else {
        PSEG_TRY(find_image(&path, d, r->file_name, err));
        PSEG_TRY(pseg_file_identify(&id, path, err));
    }
    h = pseg_sha256_new();
    if (!h)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a digest");
    if (path)
        pseg_sha256_update(h, path, strlen(path) + 1);
    pseg_sha256_update(h, &id.size, sizeof id.size);
    pseg_sha256_update(h, &id.written_ns, sizeof id.written_ns);
    pseg_sha256_finish(h, sum);
    memcpy(out, sum, 24);
out:
    pseg_sha256_free(h);
    pseg_data_record_free(r);
    pseg_free(path);
    return rc;
}

void pseg_data_bytes_free(pseg_data_bytes *b)
{
    pseg_free(b->owned);
    *b = (pseg_data_bytes){0};
}
