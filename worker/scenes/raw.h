/* A scene as one binary record, for trainers that read scenes from a pipe. Little-endian:
 *
 *     char magic[4] "PSCN"; u32 version 1; u64 seed; u16 width, height, n_objects, n_phrases;
 *     u8 rgb[height][width][3]; u8 id[height][width];
 *     n_phrases times { u8 target, other (ids, 1-based), kind (pseg_phrase_kind), 0;
 *                       u16 n; u8 text[n]; }
 *
 * With describe, n_phrases also counts one text an object after the phrases, of kind
 * PSEG_SCENE_RAW_LOOKS and other 0: its size, texture, colour and kind in four words. It says what
 * the target looks like and may fit other objects too: for teaching, not a phrase to be answered.
 */
#ifndef PSEG_SCENES_RAW_H
#define PSEG_SCENES_RAW_H

#include "common/base/buf.h"
#include "worker/scenes/scenes.h"

enum { PSEG_SCENE_RAW_LOOKS = 3 };

/* Appends the record. Errors: those of pseg_buf_append. */
pseg_status pseg_scene_write_raw(pseg_buf *out, const pseg_scene *s, bool describe, pseg_err *err);

#endif
