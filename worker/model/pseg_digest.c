#include "common/base/file.h"
#include "common/base/alloc.h"
#include "common/base/clock.h"
#include "worker/model/packed_cache.h"
#include "worker/model/pseg_parts.h"

#include <stdio.h>
#include <string.h>

/* Name, size and bytes of a file, if it is there. False when it cannot be read: a digest that
 * leaves something out would be the digest of another model. */
static bool feed_file(pseg_sha256 *h, const char *folder, const char *name)
{
    char *path = pseg_path_join(folder, name);
    pseg_map map = {NULL, 0};
    char head[96];
    bool good = path && (!pseg_file_exists(path) || pseg_map_open(&map, path, NULL) == PSEG_OK);

    if (good && pseg_file_exists(path)) {
        int n = snprintf(head, sizeof head, "%s %zu\n", name, map.size);
        pseg_sha256_update(h, head, (size_t)n);
        if (map.size)
            pseg_sha256_update(h, map.data, map.size);
    }
    pseg_map_close(&map);
    pseg_free(path);
    return good;
}

static const char *const vision_names[] = {"config.json", "preprocessor_config.json"};
static const char *const text_names[] = {
    "config.json", "tokenizer.json", "merges.txt", "vocab.json", "bpe_simple_vocab_16e6.txt.gz",
    "names.json"};
enum {
    N_VISION = sizeof vision_names / sizeof *vision_names,
    N_TEXT = sizeof text_names / sizeof *text_names
};

pseg_status pseg_digest_part(char hex[PSEG_SHA256_HEX + 1], const char *folder, bool is_text,
                             const pseg_tensors *t, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_sha256 *h = pseg_sha256_new();
    uint8_t sum[PSEG_SHA256_BYTES];
    bool good = h != NULL;

    for (size_t i = 0; good && i < (is_text ? N_TEXT : N_VISION); i++)
        good = feed_file(h, folder, is_text ? text_names[i] : vision_names[i]);
    if (!good)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory or no access for the digest of %s", folder);
    pseg_tensors_digest(t, h);
    pseg_sha256_finish(h, sum);
    pseg_hex(hex, sum, sizeof sum);
out:
    pseg_sha256_free(h);
    return rc;
}

/* Of every file that decides what the model answers, in a fixed order: part, name, size, bytes. Of
 * tensors, with changed_ns, what tells their files apart without reading them. */
static bool feed_all(const pseg_digest_job *j, pseg_sha256 *h, int64_t *changed_ns)
{
    const pseg_tensors *const tensors[] = {j->m->vision_file, j->m->text_file, j->m->head_file,
                                           j->m->sam ? pseg_sam_tensors(j->m->sam) : NULL};
    static const char *const titles[] = {"vision\n", "text\n", "decoder\n", ""};
    bool good = true;

    if (j->folder)
        good &= feed_file(h, j->folder, "pseg.json");
    for (size_t k = 0; k < sizeof tensors / sizeof *tensors; k++) {
        pseg_sha256_update(h, titles[k], strlen(titles[k]));
        for (size_t i = 0; k == 0 && i < N_VISION; i++)
            good &= feed_file(h, j->vision, vision_names[i]);
        for (size_t i = 0; k == 1 && i < N_TEXT; i++)
            good &= feed_file(h, j->text, text_names[i]);
        if (tensors[k] && changed_ns)
            pseg_tensors_identify(tensors[k], h, changed_ns);
        else if (tensors[k])
            pseg_tensors_digest(tensors[k], h);
    }
    return good;
}

/* False if a file could not be read or memory was short. */
static bool sum_all(uint8_t sum[PSEG_SHA256_BYTES], const pseg_digest_job *j, int64_t *changed_ns)
{
    pseg_sha256 *h = pseg_sha256_new();
    bool good = h && feed_all(j, h, changed_ns);

    if (good)
        pseg_sha256_finish(h, sum);
    pseg_sha256_free(h);
    return good;
}

void *pseg_digest_run(void *ud)
{
    pseg_digest_job *j = ud;
    uint8_t sum[PSEG_SHA256_BYTES];

    if (sum_all(sum, j, NULL))
        pseg_hex(j->hex, sum, sizeof sum);
    return NULL;
}

void pseg_digest_find(pseg_digest_job *j, const char *dir)
{
    int64_t now_ns = pseg_clock_unix_us() * 1000, changed_ns = 0;
    uint8_t id[PSEG_SHA256_BYTES], sum[PSEG_SHA256_BYTES];
    bool has_id = sum_all(id, j, &changed_ns);

    if (has_id && pseg_sum_recall(sum, dir, id, changed_ns)) {
        pseg_hex(j->hex, sum, sizeof sum);
    } else if (sum_all(sum, j, NULL)) {
        pseg_hex(j->hex, sum, sizeof sum);
        /* A folder that cannot be written to is told of when the packed weights meet it. */
        if (has_id)
            pseg_sum_remember(dir, id, sum, now_ns, NULL);
    }
}
