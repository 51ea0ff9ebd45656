/* How a reader makes a data set: images, their samples, and what was wrong. Private to worker/data.
 *
 * A reader calls builder_image for each image and builder_sample for each of its masks, in any
 * order among images. Records are checked here, the same for every format, and written to the
 * spool, a temporary file without a name; pseg_dataset_open then sorts samples by image. */
#ifndef PSEG_DATA_BUILDER_H
#define PSEG_DATA_BUILDER_H

#include "worker/data/dataset.h"
#include "worker/data/idmap.h"

#include <stdio.h>

typedef struct parquet_images parquet_images; /* where a parquet set's images lie */

typedef struct spool {
    FILE *f;
    uint64_t size;
} spool;
/* Errors: PSEG_R_FILE_IO, which says so if the disk is full. */
pseg_status spool_open(spool *s, pseg_err *err);
pseg_status spool_append(uint64_t *at, spool *s, const void *data, size_t n, pseg_err *err);
/* Before the first read. */
pseg_status spool_flush(spool *s, pseg_err *err);
pseg_status spool_read(void *out, const spool *s, uint64_t at, size_t n, pseg_err *err);
void spool_close(spool *s);

typedef struct image_entry {
    pseg_data_image of;
    uint64_t at, place; /* in the spool; place: of the file's bytes, the format's own number */
    uint32_t len, first_sample;
} image_entry;

typedef struct sample_entry {
    uint64_t at;
    uint32_t len, image, n_sentences;
} sample_entry;

struct pseg_dataset {
    char *path, *dir, *images; /* images: as of the options, or NULL */
    pseg_data_options o;
    pseg_data_format format;
    image_entry *image;
    sample_entry *sample;
    size_t n_images, cap_images, n_samples, cap_samples, n_phrases;
    size_t faults[PSEG_DATA_N_FAULTS];
    idmap keys;
    spool spool;
    size_t image_dir; /* which of the places to look for images held the last one */
    parquet_images *parquet;
};

/* Tells of something that is left out. where: "file:12" and so on. */
void builder_fault(pseg_dataset *d, pseg_data_fault fault, const char *where, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

typedef struct builder_image_in {
    const char *file_name;
    int64_t image_id; /* -1: none */
    uint32_t width, height;
    const char *where;
    uint64_t place;
} builder_image_in;
/* *index: for builder_sample; UINT32_MAX if the image was met before and is left out. */
pseg_status builder_image(uint32_t *index, pseg_dataset *d, const builder_image_in *in,
                          pseg_err *err);
/* Leaves out what cannot be used and says so. */
pseg_status builder_sample(pseg_dataset *d, uint32_t index, const pseg_data_sample *s,
                           const char *where, pseg_err *err);

/* The readers. */
pseg_status jsonl_read(pseg_dataset *d, const char *path, pseg_err *err);
pseg_status parquet_read(pseg_dataset *d, char *const *paths, size_t n, pseg_err *err);
pseg_status coco_read(pseg_dataset *d, const char *path, pseg_err *err);
pseg_status refcoco_read(pseg_dataset *d, const char *refs, const char *instances, pseg_err *err);

pseg_status parquet_image(pseg_data_bytes *out, parquet_images *p, uint64_t place, pseg_err *err);
/* Tells the file apart in which an image lies. */
uint64_t parquet_image_file(const parquet_images *p, uint64_t place);
void parquet_images_free(parquet_images *p);

/* record.c: how records lie in the spool. */
pseg_status record_write_image(uint64_t *at, uint32_t *len, spool *s, const builder_image_in *in,
                               const char *key, pseg_err *err);
pseg_status record_write_sample(uint64_t *at, uint32_t *len, spool *s, const pseg_data_sample *in,
                                pseg_err *err);

/* Checks a mask as far as it goes without its pixels. PSEG_DATA_N_FAULTS: nothing found; else what,
 * and why. area: pixels inside, or -1 for polygons. */
pseg_data_fault record_check_mask(char *why, size_t size, int64_t *area, const pseg_data_mask *m);

#endif
