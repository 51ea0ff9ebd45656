/* A scene as one binary record, for trainers that read scenes from a pipe. Little-endian:
 *
 *     char magic[4] "PSCN"; u32 version 1; u64 seed; u16 width, height, n_objects, n_phrases;
 *     u8 rgb[height][width][3]; u8 id[height][width];
 *     n_phrases times { u8 target, other (ids, 1-based), kind (pseg_phrase_kind), 0;
 *                       u16 n; u8 text[n]; }
 */
#ifndef PSEG_SCENES_RAW_H
#define PSEG_SCENES_RAW_H

#include "common/base/buf.h"
#include "worker/scenes/scenes.h"

/* Appends the record. Errors: those of pseg_buf_append. */
pseg_status pseg_scene_write_raw(pseg_buf *out, const pseg_scene *s, pseg_err *err);

#endif
