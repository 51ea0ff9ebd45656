/* RefCOCO, RefCOCO+ and RefCOCOg as they are published: refs(unc).p, a pickle of phrases, beside
 * instances.json, which has the masks and is COCO's file. */
#include "common/base/arena.h"
#include "worker/data/coco.h"
#include "worker/data/pickle.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { MAX_REFS_BYTES = 1 << 30, MAX_SENTENCES = 1000 };

typedef struct refs {
    pseg_dataset *d;
    coco *c;
    const pickle *p;
    const char *base;  /* of the file's name */
    pseg_arena *arena; /* of one ref */
} refs;

static char *text_of(refs *r, pickle_value v)
{
    size_t len;
    const char *s = pickle_text(&len, r->p, v);
    char *copy = s ? pseg_arena_strndup(r->arena, s, len) : NULL;

    if (copy && memchr(copy, 0, len)) /* told as no text, not as what stands before the NUL */
        memcpy(copy, "\xff", len < 2 ? len : 2);
    return copy;
}

/* The phrases of a ref: each is {"sent": cleaned, "raw": as it was said}. */
static uint32_t take_sentences(const char **out, refs *r, pickle_value ref)
{
    pickle_value list = pickle_get(r->p, ref, "sentences");
    uint32_t n = 0, count = pickle_count(r->p, list);

    for (uint32_t i = 0; i < count && i < MAX_SENTENCES; i++) {
        pickle_value one = pickle_at(r->p, list, i);
        const char *s = text_of(r, pickle_get(r->p, one, "sent"));
        if (!s)
            s = text_of(r, pickle_get(r->p, one, "raw"));
        if (s)
            out[n++] = s;
    }
    return n;
}

static pseg_status give(refs *r, const coco_object *o, int64_t ref_id, pickle_value ref,
                        const char *where, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *sentences[MAX_SENTENCES];
    pseg_data_sample s;
    uint32_t index;
    json_t *json;

    if (!coco_sample(&s, &json, r->c, o))
        return rc;
    s.id = ref_id;
    s.kind = "";
    s.sentences = sentences;
    s.n_sentences = take_sentences(sentences, r, ref);
    PSEG_TRY(coco_give_image(&index, r->c, o->image, err));
    PSEG_TRY(builder_sample(r->d, index, &s, where, err));
out:
    json_decref(json);
    return rc;
}

static bool is_of_split(refs *r, pickle_value ref, idmap *seen_splits)
{
    size_t len;
    const char *s = pickle_text(&len, r->p, pickle_get(r->p, ref, "split"));
    uint32_t found;
    bool is_new;

    if (s)
        idmap_put(&found, seen_splits, idmap_hash(s, len), 1, &is_new, NULL);
    return !r->d->o.split ||
           (s && len == strlen(r->d->o.split) && memcmp(s, r->d->o.split, len) == 0);
}

static pseg_status read_ref(refs *r, uint32_t i, idmap *splits, size_t *n_of_split, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pickle_value ref = pickle_at(r->p, pickle_root(r->p), i);
    int64_t ann_id, ref_id = -1;
    uint32_t object;
    char where[256];

    snprintf(where, sizeof where, "%.200s:ref %u", r->base, i);
    if (!is_of_split(r, ref, splits))
        return rc;
    ++*n_of_split;
    pickle_int(&ref_id, r->p, pickle_get(r->p, ref, "ref_id"));
    if (!pickle_int(&ann_id, r->p, pickle_get(r->p, ref, "ann_id"))) {
        builder_fault(r->d, PSEG_DATA_BAD_RECORD, where, "the ref has no ann_id");
        return rc;
    }
    if (!idmap_get(&object, &r->c->object_of, (uint64_t)ann_id)) {
        builder_fault(r->d, PSEG_DATA_BAD_RECORD, where, "its annotation %" PRId64 " is not in %s",
                      ann_id, r->c->base);
        return rc;
    }
    r->arena = pseg_arena_new(64 << 20);
    if (!r->arena)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a ref");
    rc = give(r, &r->c->objects[object], ref_id, ref, where, err);
    pseg_arena_free(r->arena);
    r->arena = NULL;
out:
    return rc;
}

static pseg_status read_all(refs *r, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t n_of_split = 0;
    idmap splits = {0};

    if (pickle_type_of(r->p, pickle_root(r->p)) != PICKLE_LIST)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "%s holds no list of refs", r->base);
    for (uint32_t i = 0; i < pickle_count(r->p, pickle_root(r->p)); i++)
        PSEG_TRY(read_ref(r, i, &splits, &n_of_split, err));
    if (r->d->o.split && !n_of_split && splits.n)
        PSEG_FAIL(PSEG_R_CONFIG_INVALID, 0,
                  "%s has no split \"%s\": usual are train, val, testA, testB and test", r->base,
                  r->d->o.split);
out:
    idmap_deinit(&splits);
    return rc;
}

pseg_status refcoco_read(pseg_dataset *d, const char *path, const char *instances, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *slash = strrchr(path, '/');
    refs r = {.d = d, .base = slash ? slash + 1 : path};
    pseg_map map = {0};
    pickle *p = NULL;
    coco c = {0};

    r.c = &c;
    PSEG_TRY(pseg_map_open(&map, path, err));
    if (map.size > MAX_REFS_BYTES)
        PSEG_FAIL(PSEG_R_DATA_CORRUPT, 0, "%s has %zu bytes; the limit is %d", r.base, map.size,
                  MAX_REFS_BYTES);
    PSEG_TRY(pickle_read(&p, map.data, map.size, r.base, err));
    r.p = p;
    PSEG_TRY(coco_init(&c, d, instances, err));
    PSEG_TRY(read_all(&r, err));
out:
    coco_deinit(&c);
    pickle_close(p);
    pseg_map_close(&map);
    return rc;
}
