/* Tokenizers from files, and the ids of their symbols. */
#include "common/base/alloc.h"
#include "common/base/arena.h"
#include "common/base/buf.h"
#include "common/base/file.h"
#include "common/base/utf8.h"
#include "worker/text/bpe.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

#define MAX_FILE_BYTES ((size_t)64 << 20)
#define MAX_MERGES     (1u << 22)
#define OPENAI_FILE    "bpe_simple_vocab_16e6.txt.gz"
#define OPENAI_MERGES  (49152 - 256 - 2)

/* Symbols by their text, while a tokenizer is being built. */
typedef struct builder {
    pseg_tokenizer *t;
    pseg_arena *arena;
    const char *name;   /* of the file, for messages */
    const char **texts; /* of symbols */
    uint32_t cap;
    uint32_t *slots; /* open addressing: symbol + 1, or 0 */
    uint32_t mask;
    uint32_t n_merges;
} builder;

static uint32_t hash_text(const char *s, size_t n)
{
    uint64_t h = 0xCBF29CE484222325u;

    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 0x100000001B3u;
    return (uint32_t)(h ^ h >> 32);
}

/* The slot where s is, or where it would go. */
static uint32_t *slot_of(const builder *b, const char *s, size_t n)
{
    uint32_t i = hash_text(s, n) & b->mask;

    while (b->slots[i] &&
           (strncmp(b->texts[b->slots[i] - 1], s, n) != 0 || b->texts[b->slots[i] - 1][n] != '\0'))
        i = (i + 1) & b->mask;
    return &b->slots[i];
}

/* A symbol of text s with id; a text that is there already takes the new id, as in a dictionary. */
static pseg_status add_symbol(uint32_t *out, builder *b, const char *s, size_t n, int32_t id,
                              pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t *slot = slot_of(b, s, n);

    if (!*slot) {
        PSEG_ASSERT(b->t->n_symbols < b->cap);
        char *text = pseg_arena_strndup(b->arena, s, n);
        if (!text)
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the tokenizer %s", b->name);
        b->texts[b->t->n_symbols] = text;
        *slot = ++b->t->n_symbols;
    }
    *out = *slot - 1;
    b->t->ids[*out] = id;
out:
    return rc;
}

/* CLIP's order of bytes: those that are printable by themselves, then the others, which stand as
 * U+0100 and following. */
static pseg_status add_bytes(builder *b, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t n = 0, made;
    char text[16];

    for (int printable = 1; printable >= 0; printable--) {
        uint32_t stand_in = 256;
        for (uint32_t c = 0; c < 256; c++) {
            bool is_printable =
                (c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255);
            if (is_printable != printable)
                continue;
            size_t len = pseg_utf8_encode(text, is_printable ? c : stand_in++);
            b->t->of_byte[c] = (uint16_t)n;
            PSEG_TRY(add_symbol(&made, b, text, len, (int32_t)n, err));
            n++;
        }
    }
    for (uint32_t i = 0; i < 256; i++) {
        int len = snprintf(text, sizeof text, "%s</w>", b->texts[i]);
        PSEG_TRY(add_symbol(&made, b, text, (size_t)len, (int32_t)(256 + i), err));
    }
out:
    return rc;
}

static void builder_deinit(builder *b)
{
    pseg_tokenizer_free(b->t);
    pseg_arena_free(b->arena);
    pseg_free(b->texts);
    pseg_free(b->slots);
    *b = (builder){0};
}

/* Room for max_merges merges, and the symbols of bytes. */
static pseg_status builder_init(builder *b, size_t max_merges, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t slots = 4096;

    *b = (builder){.name = name};
    if (max_merges > MAX_MERGES)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: %zu merges, the limit is %u", name, max_merges,
                  MAX_MERGES);
    b->cap = PSEG_BPE_BASE + (uint32_t)max_merges;
    while (slots < 2 * (size_t)b->cap)
        slots *= 2;
    b->mask = (uint32_t)slots - 1;
    b->t = pseg_calloc(1, sizeof *b->t);
    b->arena = pseg_arena_new(MAX_FILE_BYTES * 4);
    b->texts = pseg_calloc(b->cap, sizeof *b->texts);
    b->slots = pseg_calloc(slots, sizeof *b->slots);
    if (!b->t || !b->arena || !b->texts || !b->slots ||
        !(b->t->ids = pseg_calloc(b->cap, sizeof *b->t->ids)) ||
        !(b->t->merges = pseg_malloc(slots * sizeof *b->t->merges)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the tokenizer %s", name);
    memset(b->t->merges, 0xFF, slots * sizeof *b->t->merges);
    b->t->mask = b->mask;
    PSEG_TRY(add_bytes(b, err));
out:
    return rc;
}

static pseg_status add_merge(builder *b, const char *left, size_t n_left, const char *right,
                             size_t n_right, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint32_t l = *slot_of(b, left, n_left), r = *slot_of(b, right, n_right), made, i;
    char *text = NULL;

    if (!l || !r)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: merge %u: \"%.*s\" is made by no earlier merge",
                  b->name, b->n_merges + 1, (int)(l ? n_right : n_left), l ? right : left);
    text = pseg_malloc(n_left + n_right);
    if (!text)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for the tokenizer %s", b->name);
    memcpy(text, left, n_left);
    memcpy(text + n_left, right, n_right);
    PSEG_TRY(
        add_symbol(&made, b, text, n_left + n_right, (int32_t)(PSEG_BPE_BASE + b->n_merges), err));
    i = pseg_bpe_hash(l - 1, r - 1) & b->t->mask;
    while (b->t->merges[i].rank != UINT32_MAX &&
           (b->t->merges[i].left != l - 1 || b->t->merges[i].right != r - 1))
        i = (i + 1) & b->t->mask;
    b->t->merges[i] = (pseg_merge){l - 1, r - 1, b->n_merges, made};
    b->n_merges++;
out:
    pseg_free(text);
    return rc;
}

static pseg_status vocab_id(int32_t *out, const builder *b, const json_t *vocab, const char *text,
                            pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const json_t *v = json_object_get(vocab, text);

    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX / 2)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: its vocabulary has no id for \"%.60s\"", b->name,
                  text);
    *out = (int32_t)json_integer_value(v);
out:
    return rc;
}

/* Hands the tokenizer over. vocab: ids by text, or NULL. */
static pseg_status builder_finish(pseg_tokenizer **out, builder *b, const json_t *vocab,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_tokenizer *t = b->t;
    int32_t largest = 0;

    t->bos = (int32_t)(PSEG_BPE_BASE + b->n_merges);
    t->eos = t->bos + 1;
    if (vocab) {
        PSEG_TRY(vocab_id(&t->bos, b, vocab, PSEG_BPE_BOS, err));
        PSEG_TRY(vocab_id(&t->eos, b, vocab, PSEG_BPE_EOS, err));
        for (uint32_t i = 0; i < t->n_symbols; i++)
            PSEG_TRY(vocab_id(&t->ids[i], b, vocab, b->texts[i], err));
    }
    for (uint32_t i = 0; i < t->n_symbols; i++)
        largest = t->ids[i] > largest ? t->ids[i] : largest;
    largest = t->bos > largest ? t->bos : largest;
    largest = t->eos > largest ? t->eos : largest;
    t->vocab = (uint32_t)largest + 1;
    *out = t;
    b->t = NULL;
out:
    return rc;
}

/* ---- merges as text -------------------------------------------------------------------------- */

static pseg_status add_line(builder *b, const char *s, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char *space = memchr(s, ' ', n);

    if (!space || space == s || space + 1 == s + n ||
        memchr(space + 1, ' ', n - (size_t)(space + 1 - s)))
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0,
                  "%s: merge %u: \"%.*s\" is not two symbols with a space between", b->name,
                  b->n_merges + 1, (int)(n < 60 ? n : 60), s);
    PSEG_TRY(add_merge(b, s, (size_t)(space - s), space + 1, n - (size_t)(space + 1 - s), err));
out:
    return rc;
}

static pseg_status add_lines(builder *b, const char *text, size_t n, size_t max_merges,
                             pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    for (size_t at = 0; at < n && b->n_merges < max_merges;) {
        const char *line = text + at, *end = memchr(line, '\n', n - at);
        size_t len = end ? (size_t)(end - line) : n - at;
        bool is_header = at == 0 && memmem(line, len, "#version", 8);
        at += len + 1;
        if (len && line[len - 1] == '\r')
            len--;
        if (len && !is_header)
            PSEG_TRY(add_line(b, line, len, err));
    }
out:
    return rc;
}

static size_t count_lines(const char *text, size_t n)
{
    size_t lines = 1;

    for (size_t i = 0; i < n; i++)
        lines += text[i] == '\n';
    return lines;
}

static pseg_status from_merges(pseg_tokenizer **out, const char *text, size_t n, size_t max_merges,
                               const json_t *vocab, const char *name, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    builder b = {0};
    size_t lines = count_lines(text, n);

    *out = NULL;
    if (!pseg_utf8_is_valid(text, n) || memchr(text, '\0', n))
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: not text in UTF-8", name);
    PSEG_TRY(builder_init(&b, lines < max_merges ? lines : max_merges, name, err));
    PSEG_TRY(add_lines(&b, text, n, max_merges, err));
    PSEG_TRY(builder_finish(out, &b, vocab, err));
out:
    builder_deinit(&b);
    return rc;
}

pseg_status pseg_tokenizer_from_merges(pseg_tokenizer **out, const char *text, size_t n,
                                       size_t max_merges, const char *name, pseg_err *err)
{
    return from_merges(out, text, n, max_merges, NULL, name, err);
}

pseg_status pseg_tokenizer_bytes(pseg_tokenizer **out, pseg_err *err)
{
    return from_merges(out, "", 0, 0, NULL, "bytes", err);
}

/* ---- files ----------------------------------------------------------------------------------- */

static pseg_status read_file(uint8_t **out, size_t *n, const char *path, pseg_err *err)
{
    pseg_status rc = pseg_file_read(out, n, path, MAX_FILE_BYTES, err);

    if (rc == PSEG_EINVAL)
        rc = pseg_err_set(err, PSEG_R_MODEL_CORRUPT, 0, PSEG_HERE,
                          "%s: larger than the limit of %zu bytes", path, MAX_FILE_BYTES);
    return rc;
}

static pseg_status read_json(json_t **out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *text = NULL;
    size_t n;
    json_error_t why;

    PSEG_TRY(read_file(&text, &n, path, err));
    *out = json_loadb((const char *)text, n, 0, &why);
    if (!json_is_object(*out))
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: not a JSON object: %.80s", path,
                  *out ? "another value" : why.text);
out:
    pseg_free(text);
    return rc;
}

static pseg_status open_merges(pseg_tokenizer **out, const char *path, const char *vocab_path,
                               pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    uint8_t *text = NULL;
    size_t n;
    json_t *vocab = NULL;

    PSEG_TRY(read_file(&text, &n, path, err));
    if (pseg_file_exists(vocab_path))
        PSEG_TRY(read_json(&vocab, vocab_path, err));
    PSEG_TRY(from_merges(out, (const char *)text, n, MAX_MERGES, vocab, path, err));
out:
    json_decref(vocab);
    pseg_free(text);
    return rc;
}

/* Unpacks a gzip file of at most MAX_FILE_BYTES into b. */
static pseg_status gunzip(pseg_buf *b, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    gzFile f = gzopen(path, "rbe");
    char part[16384];
    int n, code;

    if (!f)
        PSEG_FAIL(PSEG_R_FILE_IO, 0, "cannot open %s", path);
    while ((n = gzread(f, part, sizeof part)) > 0)
        if (pseg_buf_append(b, part, (size_t)n, err) != PSEG_OK)
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: unpacks to more than %zu bytes", path,
                      MAX_FILE_BYTES);
    gzerror(f, &code);
    if (n < 0 || code != Z_OK)
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, code, "%s: not a whole gzip file", path);
out:
    if (f)
        gzclose(f);
    return rc;
}

static pseg_status open_openai(pseg_tokenizer **out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    pseg_buf b;

    pseg_buf_init(&b, MAX_FILE_BYTES);
    PSEG_TRY(gunzip(&b, path, err));
    if (b.len == 0) /* zlib takes a file of no bytes for plain text */
        PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: not a whole gzip file", path);
    PSEG_TRY(from_merges(out, (const char *)b.data, b.len, OPENAI_MERGES, NULL, path, err));
out:
    pseg_buf_deinit(&b);
    return rc;
}

/* Each merge is "left right" or ["left", "right"]. */
static pseg_status add_json_merges(builder *b, const json_t *merges, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t i;
    json_t *m;

    json_array_foreach(merges, i, m)
    {
        const char *l = json_string_value(json_array_get(m, 0));
        const char *r = json_string_value(json_array_get(m, 1));
        if (json_is_string(m))
            PSEG_TRY(add_line(b, json_string_value(m), json_string_length(m), err));
        else if (l && r)
            PSEG_TRY(add_merge(b, l, strlen(l), r, strlen(r), err));
        else
            PSEG_FAIL(PSEG_R_MODEL_CORRUPT, 0, "%s: merge %zu is not two symbols", b->name, i + 1);
    }
out:
    return rc;
}

static pseg_status open_json(pseg_tokenizer **out, const char *path, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    json_t *root = NULL, *model, *merges, *vocab, *added;
    const char *suffix, *type;
    builder b = {0};
    size_t i;

    PSEG_TRY(read_json(&root, path, err));
    model = json_object_get(root, "model");
    merges = json_object_get(model, "merges");
    vocab = json_object_get(model, "vocab");
    suffix = json_string_value(json_object_get(model, "end_of_word_suffix"));
    type = json_string_value(json_object_get(model, "type"));
    if ((type && strcmp(type, "BPE") != 0) || !json_is_array(merges) || !json_is_object(vocab) ||
        !suffix || strcmp(suffix, "</w>") != 0)
        PSEG_FAIL(PSEG_R_MODEL_UNSUPPORTED, 0,
                  "%s: not CLIP's tokenizer: expected a BPE model with merges, vocab and "
                  "end_of_word_suffix \"</w>\"",
                  path);
    PSEG_TRY(builder_init(&b, json_array_size(merges), path, err));
    PSEG_TRY(add_json_merges(&b, merges, err));
    json_array_foreach(json_object_get(root, "added_tokens"), i, added)
    {
        if (json_is_true(json_object_get(added, "normalized")))
            b.t->finds_specials_late = true;
    }
    PSEG_TRY(builder_finish(out, &b, vocab, err));
out:
    builder_deinit(&b);
    json_decref(root);
    return rc;
}

pseg_status pseg_tokenizer_open(pseg_tokenizer **out, const char *folder, pseg_err *err)
{
    static const char *const names[] = {"tokenizer.json", "merges.txt", OPENAI_FILE, "vocab.json"};
    pseg_status rc = PSEG_OK;
    char *paths[4] = {NULL};

    *out = NULL;
    for (size_t i = 0; i < 4; i++)
        if (!(paths[i] = pseg_path_join(folder, names[i])))
            PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory to open %s", folder);
    if (pseg_file_exists(paths[0]))
        PSEG_TRY(open_json(out, paths[0], err));
    else if (pseg_file_exists(paths[1]))
        PSEG_TRY(open_merges(out, paths[1], paths[3], err));
    else if (pseg_file_exists(paths[2]))
        PSEG_TRY(open_openai(out, paths[2], err));
    else
        PSEG_FAIL(PSEG_R_MODEL_MISSING, 0,
                  "%s: no tokenizer there: put its tokenizer.json, merges.txt or " OPENAI_FILE
                  " beside the weights",
                  folder);
out:
    for (size_t i = 0; i < 4; i++)
        pseg_free(paths[i]);
    return rc;
}
