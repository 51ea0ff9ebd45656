/* A data set on disk as images, each with masks and the phrases that mean them.
 *
 * Five forms are read behind one interface: JSON lines (ours, and what `pseg scenes` writes),
 * RefCOCO-m's parquet files, a COCO instances file with its category names as phrases, RefCOCO/+/g
 * with COCO's file beside it, and any of them in a folder. docs/data.md describes each.
 *
 * Opening goes through the annotations once, checks every record and writes what it says, in one
 * form, to a temporary file without a name; memory holds some 40 bytes an image and 24 a mask. What
 * cannot be used is skipped, counted by reason and told to options.report; only a set of which
 * nothing is left is an error. Image files are not touched before pseg_dataset_image.
 *
 *     pseg_dataset *d;
 *     pseg_data_options o = PSEG_DATA_OPTIONS_DEFAULT;
 *     PSEG_TRY(pseg_dataset_open(&d, "photos/annotations.jsonl", &o, err));
 *     for (size_t i = 0; i < pseg_dataset_n_images(d); i++) {
 *         pseg_data_record *r;
 *         PSEG_TRY(pseg_dataset_read(&r, d, i, err));           // masks and phrases
 *         PSEG_TRY(pseg_data_mask_decode(&mask, &r->samples[0].mask, err));
 *         PSEG_TRY(pseg_dataset_image(&bytes, d, i, err));      // the file
 *         ...
 *         pseg_data_record_free(r);
 *         pseg_data_bytes_free(&bytes);
 *     }
 *     pseg_dataset_close(d);
 *
 * Threads: after open, all calls but close may come from any thread at a time. It knows nothing of
 * models and devices. */
#ifndef PSEG_DATA_DATASET_H
#define PSEG_DATA_DATASET_H

#include "common/base/err.h"
#include "common/mask/mask.h"

#include <stdint.h>

typedef struct pseg_dataset pseg_dataset;

typedef enum pseg_data_format {
    PSEG_DATA_AUTO, /* by the file's name, or by what lies in the folder */
    PSEG_DATA_JSONL,
    PSEG_DATA_PARQUET, /* RefCOCO-m */
    PSEG_DATA_COCO,    /* instances JSON */
    PSEG_DATA_REFCOCO, /* refs(...).p with instances.json beside it */
    PSEG_DATA_N_FORMATS
} pseg_data_format;
/* Static: "auto", "jsonl", "parquet", "coco", "refcoco". */
const char *pseg_data_format_name(pseg_data_format f);
/* false: no such format. */
bool pseg_data_format_parse(pseg_data_format *out, const char *name);

/* What can be wrong with a piece of a data set. */
typedef enum pseg_data_fault {
    PSEG_DATA_BAD_RECORD,      /* no JSON, a field missing or of another type */
    PSEG_DATA_IMAGE_MISSING,   /* no such file */
    PSEG_DATA_IMAGE_BROKEN,    /* the file is not a picture that can be decoded */
    PSEG_DATA_IMAGE_REPEATED,  /* a second record of the same image */
    PSEG_DATA_NO_SAMPLES,      /* an image without a mask */
    PSEG_DATA_MASK_BROKEN,     /* counts or polygon do not decode */
    PSEG_DATA_MASK_SIZE,       /* of another size than its image, or than the masks before it */
    PSEG_DATA_MASK_EMPTY,      /* no pixel inside */
    PSEG_DATA_MASK_AREA,       /* area or bbox as told differ from the mask's */
    PSEG_DATA_PHRASE_MISSING,  /* a mask without a phrase */
    PSEG_DATA_PHRASE_EMPTY,    /* nothing but white space */
    PSEG_DATA_PHRASE_LONG,     /* past the limit: cut by the text encoder, or refused */
    PSEG_DATA_PHRASE_NOT_TEXT, /* not UTF-8, or with NUL */
    PSEG_DATA_PHRASE_REPEATED, /* the same phrase for two masks of one image, or twice for one */
    PSEG_DATA_PHRASE_UNKNOWN,  /* a table of phrases lacks it */
    PSEG_DATA_SHARED,          /* an image that another set holds too */
    PSEG_DATA_N_FAULTS
} pseg_data_fault;
/* Static: "image_missing". */
const char *pseg_data_fault_name(pseg_data_fault f);

/* Told of each thing that is skipped: where ("annotations.jsonl:12", "refcoco-m.parquet:row 7") and
 * what, one line. On the thread that opens. */
typedef void pseg_data_report_fn(void *ud, pseg_data_fault fault, const char *where,
                                 const char *what);

typedef struct pseg_data_options {
    pseg_data_format format;
    const char *images; /* folder of the image files; NULL: beside the annotations, or in images/ */
    const char *split;  /* REFCOCO, and records with a field "split": those alone; NULL: all */
    uint32_t max_phrase_bytes; /* longer phrases are left out, as PHRASE_LONG */
    bool objects;      /* COCO: each object a sample of its own; else all of a category are one */
    bool keeps_crowds; /* with objects: iscrowd annotations too, one mask for many */
    bool keeps_faults; /* also phrases that are empty, long or no text: for who checks a set */
    pseg_data_report_fn *report; /* or NULL */
    void *report_ud;
} pseg_data_options;
#define PSEG_DATA_OPTIONS_DEFAULT \
    {                             \
        .max_phrase_bytes = 4096, \
    }

/* path: a file, or a folder that holds one data set. *out is freed with pseg_dataset_close.
 * Errors: PSEG_R_FILE_NOT_FOUND, PSEG_R_FILE_IO (also a full disk under TMPDIR),
 * PSEG_R_CONFIG_INVALID (the format cannot be told; no such split), PSEG_R_DATA_CORRUPT (the file
 * as a whole cannot be read, or nothing of it is left), PSEG_R_UNSUPPORTED (a codec or encoding,
 * named), PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_dataset_open(pseg_dataset **out, const char *path, const pseg_data_options *o,
                              pseg_err *err);
void pseg_dataset_close(pseg_dataset *d); /* NULL: nothing happens */

pseg_data_format pseg_dataset_format(const pseg_dataset *d);
const char *pseg_dataset_path(const pseg_dataset *d); /* as given; borrowed until close */
size_t pseg_dataset_n_images(const pseg_dataset *d);  /* with one sample or more */
size_t pseg_dataset_n_samples(const pseg_dataset *d); /* masks */
size_t pseg_dataset_n_phrases(const pseg_dataset *d); /* sentences of all samples */
/* How often a fault was met while opening. */
size_t pseg_dataset_n_faults(const pseg_dataset *d, pseg_data_fault fault);

/* ---- images ---- */

/* Two records of the same photo have the same key, in whatever data set: COCO's number where the
 * file's name has COCO's form (COCO_train2014_000000000009.jpg, 000000000009.jpg), else the
 * image_id of the record, else the file's name without folders and ending. */
typedef struct pseg_data_image {
    uint64_t key;           /* a hash of it; 0 never */
    uint32_t width, height; /* px, of all its masks; the file's, if the set is right */
    uint32_t n_samples;     /* 1 or more */
    uint32_t n_phrases;     /* of all its samples */
} pseg_data_image;
pseg_data_image pseg_dataset_at(const pseg_dataset *d, size_t image);

/* How a mask is written. */
typedef enum pseg_data_mask_form {
    PSEG_DATA_MASK_RLE,     /* COCO's compressed counts */
    PSEG_DATA_MASK_RUNS,    /* counts as numbers */
    PSEG_DATA_MASK_POLYGON, /* rings of x, y */
} pseg_data_mask_form;

typedef struct pseg_data_mask {
    pseg_data_mask_form form;
    uint32_t width, height; /* px, as the record says */
    const char *rle;        /* RLE */
    const uint32_t *runs;   /* RUNS: n_runs of them, down the columns, outside first */
    size_t n_runs;
    const double *points;     /* POLYGON: x, y in px of all rings one behind the other */
    const uint32_t *ring_len; /* POLYGON: numbers (two a point) of each of n_rings */
    uint32_t n_rings;
} pseg_data_mask;

typedef struct pseg_data_sample {
    int64_t id;                  /* -1: none */
    const char *category, *kind; /* "" where there is none */
    const char *const *sentences;
    uint32_t n_sentences;
    double bbox[4],
        area; /* x, y, w, h and pixels as told; area -1: not told, bbox[2] -1 likewise */
    bool is_crowd;
    pseg_data_mask mask;
} pseg_data_sample;

typedef struct pseg_data_record {
    const char *key;        /* "coco:9", "id:7", "name:000007" */
    int64_t image_id;       /* -1: none */
    const char *file_name;  /* as the record says */
    const char *where;      /* "annotations.jsonl:12" */
    uint32_t width, height; /* px, as told; 0: not told */
    const pseg_data_sample *samples;
    uint32_t n_samples;
} pseg_data_record;

/* Everything in *out lives until pseg_data_record_free. Errors: PSEG_R_FILE_IO,
 * PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_dataset_read(pseg_data_record **out, const pseg_dataset *d, size_t image,
                              pseg_err *err);
void pseg_data_record_free(pseg_data_record *r); /* NULL: nothing happens */

/* The mask's pixels; caller frees with pseg_mask_free. Polygons are filled as COCO's own tool does
 * it, pixel for pixel, and joined. Errors: PSEG_R_DATA_CORRUPT. Any thread. */
pseg_status pseg_data_mask_decode(pseg_mask **out, const pseg_data_mask *m, pseg_err *err);

typedef struct pseg_data_bytes {
    const uint8_t *data;
    size_t len;
    void *owned; /* private */
} pseg_data_bytes;
/* The image file's bytes, for pseg_image_prepare. Errors: PSEG_R_FILE_NOT_FOUND (the paths that
 * were tried are in the message), PSEG_R_REQUEST_TOO_LARGE (more than 64 MiB), PSEG_R_FILE_IO,
 * PSEG_R_DATA_CORRUPT (a page of a parquet file). Cheapest in the set's own order. */
pseg_status pseg_dataset_image(pseg_data_bytes *out, pseg_dataset *d, size_t image, pseg_err *err);
void pseg_data_bytes_free(pseg_data_bytes *b); /* twice is as good as once */
/* Tells image files apart without reading them: name, size, time of the last change. Errors: those
 * of pseg_dataset_image. */
pseg_status pseg_dataset_source(uint8_t out[24], const pseg_dataset *d, size_t image,
                                pseg_err *err);

#endif
