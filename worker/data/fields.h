/* Fields of a JSON record, as annotations.jsonl and COCO's files have them. Private to worker/data.
 * What is absent or of another type is told in one line; nothing here keeps what it is given. */
#ifndef PSEG_DATA_FIELDS_H
#define PSEG_DATA_FIELDS_H

#include "worker/data/dataset.h"

#include <jansson.h>

/* Memory that a sample's arrays lie in, used again for the next. */
typedef struct fields_room {
    uint32_t *runs, *ring_len;
    double *points;
    const char **sentences;
    size_t cap_runs, cap_rings, cap_points, cap_sentences;
} fields_room;
void fields_room_deinit(fields_room *r);

/* A whole number, or `absent`; false if there is something else. */
bool fields_int(int64_t *out, const json_t *o, const char *name, int64_t absent);
/* A string, or `absent`; false if there is something else. Borrowed from o. */
bool fields_text(const char **out, const json_t *o, const char *name, const char *absent);

/* {"mask" or "segmentation": {"counts", "size"} or polygons; "bbox", "area", "category", "kind",
 * "id", "iscrowd"} into *out, which borrows from o and room. width, height: of the image, for
 * polygons, which do not say it. *why: static, what is wrong, if false is returned. */
bool fields_sample(pseg_data_sample *out, const char **why, const json_t *o, fields_room *room,
                   uint32_t width, uint32_t height);
/* "sentences": ["..."], or a single "sentence" or "phrase". */
bool fields_sentences(pseg_data_sample *out, const char **why, const json_t *o, fields_room *room);

#endif
