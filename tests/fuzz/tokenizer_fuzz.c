/* The input's first byte says what the rest is: merges, a vocabulary, a tokenizer.json, OpenAI's
 * gzipped list, or (most often) text for a tokenizer that is whole. Ids stay inside the vocabulary.
 */
#include "common/base/file.h"
#include "common/base/utf8.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/fuzz_folder.h"
#include "worker/text/tokenizer.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static pseg_tokenizer *scenes;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_folder_make();
    if (pseg_tokenizer_open(&scenes, "deploy/models/scenes/text", NULL) != PSEG_OK)
        abort();
    return 0;
}

static void encode(const pseg_tokenizer *t, const void *text, size_t n, size_t max)
{
    static int32_t ids[4096];
    size_t k = 0;
    bool is_cut = false;
    pseg_err e = PSEG_ERR_INIT;
    pseg_status rc = pseg_tokenizer_encode(ids, max, &k, &is_cut, t, text, n, &e);

    if (rc != PSEG_OK) {
        if (rc > 0 || e.code != rc || !e.msg[0] ||
            (rc != PSEG_ENOMEM && pseg_utf8_is_valid(text, n)))
            abort();
        return;
    }
    if (!pseg_utf8_is_valid(text, n) || k < 2 || k > max || (is_cut && k != max) ||
        ids[0] != pseg_tokenizer_bos(t) || ids[k - 1] != pseg_tokenizer_eos(t))
        abort();
    for (size_t i = 0; i < k; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= pseg_tokenizer_vocab(t))
            abort();
}

static void open_with(const char *name, const uint8_t *data, size_t size)
{
    static const char merges[] = "#version: 0.2\nt h\nth e</w>\na r\n";
    const bool is_packed = strstr(name, ".gz") != NULL;
    static const char text[] = "the car, the th\xc3\xa9 12";
    pseg_tokenizer *t = NULL;
    pseg_err e = PSEG_ERR_INIT;

    fuzz_files_clear();
    if (strcmp(name, "vocab.json") == 0)
        fuzz_files_set("merges.txt", merges, sizeof merges - 1);
    if (is_packed) /* zlib opens it */
        fuzz_folder_write(name, data, size);
    else
        fuzz_files_set(name, data, size);
    pseg_status rc = pseg_tokenizer_open(&t, is_packed ? fuzz_folder : FUZZ_FILES, &e);
    if (rc != PSEG_OK && (rc > 0 || e.code != rc || !e.msg[0] || strchr(e.msg, '\n')))
        abort();
    if (rc == PSEG_OK) {
        encode(t, text, sizeof text - 1, 77);
        encode(t, text, sizeof text - 1, 2);
    }
    pseg_tokenizer_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    switch (data[0]) {
    case 'm':
        open_with("merges.txt", data + 1, size - 1);
        break;
    case 'v':
        open_with("vocab.json", data + 1, size - 1);
        break;
    case 't':
        open_with("tokenizer.json", data + 1, size - 1);
        break;
    case 'g':
        open_with("bpe_simple_vocab_16e6.txt.gz", data + 1, size - 1);
        break;
    default:
        encode(scenes, data + 1, size - 1, 2 + data[0] % 128);
        encode(scenes, data + 1, size - 1, 4096);
    }
    return 0;
}
