/* Tensors in .safetensors files, read in place.
 *
 * The format (https://huggingface.co/docs/safetensors): 8 bytes, the header's length N as a
 * little-endian u64; N bytes of JSON, {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets":
 * [begin, end]}, ..., "__metadata__": {"key": "value"}}; then the data, to which the offsets refer,
 * without gaps or overlaps. A folder holds model.safetensors, or shards that
 * model.safetensors.index.json lists.
 *
 * Everything is checked when opened: afterwards every tensor lies inside its file, and its shape
 * fits its bytes. Values are not looked at. Nothing is copied: the data may be unaligned.
 *
 *     pseg_tensors *t;
 *     pseg_tensors_open_folder(&t, "deploy/models/scenes/vision", &err);
 *     const pseg_tensor *w = pseg_tensors_find(t, "layernorm.weight");     // NULL: not there */
#ifndef PSEG_MODEL_SAFETENSORS_H
#define PSEG_MODEL_SAFETENSORS_H

#include "common/base/err.h"
#include "common/base/hash.h"

#include <stdint.h>

typedef struct pseg_tensors pseg_tensors; /* one file, or the shards of a folder */

typedef enum pseg_tensor_type {
    PSEG_TENSOR_F32,
    PSEG_TENSOR_F16,
    PSEG_TENSOR_BF16,
    PSEG_TENSOR_I64,
    PSEG_TENSOR_OTHER, /* present in the file, of no use here */
} pseg_tensor_type;

#define PSEG_TENSOR_MAX_RANK 8

typedef struct pseg_tensor {
    const char *name;
    pseg_tensor_type type;
    uint32_t rank;                       /* 0: one number */
    uint64_t dims[PSEG_TENSOR_MAX_RANK]; /* rank of them */
    uint64_t n;                          /* product of dims */
    const uint8_t *data;                 /* borrowed until close, any alignment */
    uint64_t bytes;
    const char *path; /* of its file */
} pseg_tensor;

/* Errors: PSEG_R_MODEL_MISSING, PSEG_R_MODEL_CORRUPT (file and tensor named), PSEG_R_FILE_IO. */
pseg_status pseg_tensors_open_file(pseg_tensors **out, const char *path, pseg_err *err);
pseg_status pseg_tensors_open_folder(pseg_tensors **out, const char *folder, pseg_err *err);
void pseg_tensors_close(pseg_tensors *t); /* NULL: nothing happens */

size_t pseg_tensors_count(const pseg_tensors *t);
const pseg_tensor *pseg_tensors_at(const pseg_tensors *t, size_t i); /* in order of names */
const pseg_tensor *pseg_tensors_find(const pseg_tensors *t, const char *name);
/* The value of a key in __metadata__, or NULL. Borrowed until close. */
const char *pseg_tensors_metadata(const pseg_tensors *t, const char *key);
/* The file, or the folder, for messages. Borrowed until close. */
const char *pseg_tensors_path(const pseg_tensors *t);

/* Feeds names' last parts, sizes and contents of all its files, in order of names. */
void pseg_tensors_digest(const pseg_tensors *t, pseg_sha256 *h);

/* Feeds names' last parts and what is known of the files without reading them, and raises
 * *changed_ns to the latest change of one. */
void pseg_tensors_identify(const pseg_tensors *t, pseg_sha256 *h, int64_t *changed_ns);
/* Are the files at their paths still those that were opened, and unchanged since? */
bool pseg_tensors_are_current(const pseg_tensors *t);
/* Lets go of the memory that their bytes take: they are read again when touched. */
void pseg_tensors_drop(const pseg_tensors *t);

const char *pseg_tensor_type_name(pseg_tensor_type type); /* static */
/* "[768, 3, 14, 14]", cut to size bytes. */
void pseg_tensor_shape(char *out, size_t size, const uint64_t *dims, uint32_t rank);

#endif
