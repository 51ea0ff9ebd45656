/* Writing .safetensors files: float32 or float16 tensors and strings of metadata, one tensor in
 * memory at a time.
 *
 * The file has a temporary name, PATH.new, until it is whole and on the disk; then it takes PATH's
 * place in one step, so that whoever opens PATH sees the old file or the new one, whatever happens
 * to the machine. A file that a killed process left behind is written over by the next.
 *
 *     pseg_tensors_writer_new(&w, "out/last.safetensors", &err);
 *     pseg_tensors_writer_meta(w, "format", "pseg-1", &err);
 *     pseg_tensors_writer_declare(w, "neck.fuse.norm.bias", 1, dims, &err);     // all of them
 *     pseg_tensors_writer_data(w, values, 256, &err);                           // in that order
 *     pseg_tensors_writer_finish(w, &err);
 *     pseg_tensors_writer_free(w); */
#ifndef PSEG_MODEL_SAFETENSORS_WRITE_H
#define PSEG_MODEL_SAFETENSORS_WRITE_H

#include "common/base/err.h"
#include "worker/ops/ops.h"

#include <stdint.h>

typedef struct pseg_tensors_writer pseg_tensors_writer;

/* Nothing is on the disk before the first data. Errors: PSEG_R_OUT_OF_MEMORY. */
pseg_status pseg_tensors_writer_new(pseg_tensors_writer **out, const char *path, pseg_err *err);
/* Without finish before it, the temporary file is removed. NULL: nothing happens. */
void pseg_tensors_writer_free(pseg_tensors_writer *w);

pseg_status pseg_tensors_writer_meta(pseg_tensors_writer *w, const char *key, const char *value,
                                     pseg_err *err);
/* The type of tensors that are declared from now on: PSEG_F32, as it is at first, or PSEG_F16, to
 * which data are rounded. */
void pseg_tensors_writer_set_type(pseg_tensors_writer *w, pseg_dtype type);
pseg_status pseg_tensors_writer_declare(pseg_tensors_writer *w, const char *name, uint32_t rank,
                                        const uint64_t *dims, pseg_err *err);
/* The next tensor's n numbers. Errors: PSEG_R_FILE_IO (a full disk among them),
 * PSEG_R_FILE_NOT_FOUND (the folder), PSEG_R_MODEL_UNSUPPORTED (a number that float16 cannot
 * hold). */
pseg_status pseg_tensors_writer_data(pseg_tensors_writer *w, const float *values, size_t n,
                                     pseg_err *err);
/* Errors: as data, and PSEG_R_INVALID_ARGUMENT if tensors are missing. */
pseg_status pseg_tensors_writer_finish(pseg_tensors_writer *w, pseg_err *err);

#endif
