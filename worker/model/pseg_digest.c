#include "common/base/file.h"
#include "common/base/alloc.h"
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

/* Of every file that decides what the model answers, in a fixed order: part, name, size, bytes. */
void *pseg_digest_run(void *ud)
{
    pseg_digest_job *j = ud;
    static const char *const vision[] = {"config.json", "preprocessor_config.json"};
    static const char *const text[] = {"config.json", "tokenizer.json", "merges.txt", "vocab.json",
                                       "bpe_simple_vocab_16e6.txt.gz"};
    uint8_t sum[PSEG_SHA256_BYTES];
    pseg_sha256 *h = pseg_sha256_new();

    bool good = h;

    if (!h)
        return NULL;
    if (j->folder)
        good &= feed_file(h, j->folder, "pseg.json");
    pseg_sha256_update(h, "vision\n", 7);
    for (size_t i = 0; i < sizeof vision / sizeof *vision; i++)
        good &= feed_file(h, j->vision, vision[i]);
    pseg_tensors_digest(j->m->vision_file, h);
    pseg_sha256_update(h, "text\n", 5);
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        good &= feed_file(h, j->text, text[i]);
    pseg_tensors_digest(j->m->text_file, h);
    pseg_sha256_update(h, "decoder\n", 8);
    pseg_tensors_digest(j->m->head_file, h);
    if (j->m->sam)
        pseg_tensors_digest(pseg_sam_tensors(j->m->sam), h);
    pseg_sha256_finish(h, sum);
    if (good)
        pseg_hex(j->hex, sum, sizeof sum);
    pseg_sha256_free(h);
    return NULL;
}
