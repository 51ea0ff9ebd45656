/* The inside of a feature cache, shared by features.c and features_fill.c only. */
#ifndef PSEG_DATA_FEATURES_IMPL_H
#define PSEG_DATA_FEATURES_IMPL_H

#include "worker/data/features.h"
#include "worker/data/idmap.h"

/* A line of the index, as it lies in the file, little-endian as all our machines are. */
typedef struct index_line {
    uint32_t magic;
    uint32_t slot;
    uint8_t of_bytes[24];
    uint32_t width, height;
    uint64_t numbers_sum; /* of the slot's bytes */
    uint32_t is_mirrored, unused;
    uint64_t line_sum; /* of all before it */
} index_line;

/* A line of the list of sources. */
typedef struct source_line {
    uint32_t magic, unused;
    uint8_t source[24], of_bytes[24];
    uint64_t line_sum;
} source_line;

typedef struct shard {
    const uint8_t *data; /* mapped, or NULL */
    size_t size;
    int fd; /* for writing, or -1 */
} shard;

struct pseg_feature_cache {
    char *folder;
    pseg_preprocess how;
    size_t bytes, slot_bytes, per_shard; /* of an entry's numbers; with padding; slots of a file */
    index_line *lines;                   /* n of them: entries */
    size_t n, cap;
    uint32_t n_slots; /* taken: the next one's number */
    idmap by_key;     /* to the latest entry */
    uint8_t *state;   /* of each entry: 0 not looked at, 1 good, 2 bad */
    shard *shards;
    size_t n_shards, n_damaged;
    uint64_t index_read, sources_read; /* bytes of whole lines that were read */
    source_line *sources;
    size_t n_sources, cap_sources;
    idmap by_source;
    int lock, index, source_fd; /* while locked; else -1 */
    void *mutex;                /* guards shards' maps and state: a pthread_mutex_t */
};

/* What was read of an image file before; false: nothing. */
bool features_known_source(uint8_t of_bytes[24], const pseg_feature_cache *c,
                           const uint8_t source[24]);
/* While locked. */
pseg_status features_add_source(pseg_feature_cache *c, const uint8_t source[24],
                                const uint8_t of_bytes[24], pseg_err *err);

#endif
