/* Phrases of a frozen text encoder, each encoded once. */
#include "common/base/alloc.h"
#include "worker/train/encoders_parts.h"

#include <string.h>

#define KEEP_BYTES ((size_t)512 << 20) /* of phrases; past it all are forgotten */

void encoders_forget(pseg_encoders *e)
{
    for (size_t i = 0; i < e->cap; i++) {
        pseg_free(e->table[i].phrase);
        pseg_free(e->table[i].numbers);
        e->table[i] = (encoders_kept){0};
    }
    e->n_kept = e->bytes = 0;
}

static uint64_t hash_of(const char *s)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * UINT64_C(0x100000001b3);
    return h ^ h >> 32;
}

/* The phrase's place, or the free one where it belongs. */
static encoders_kept *find(encoders_kept *table, size_t cap, const char *phrase)
{
    size_t i = (size_t)hash_of(phrase) & (cap - 1);

    while (table[i].phrase && strcmp(table[i].phrase, phrase) != 0)
        i = (i + 1) & (cap - 1);
    return &table[i];
}

/* Room for n more without a table that is over half full. */
static pseg_status grow(pseg_encoders *e, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t cap = e->cap;
    encoders_kept *table;

    while (2 * (e->n_kept + n) > cap)
        cap *= 2;
    if (cap == e->cap)
        goto out;
    table = pseg_calloc(cap, sizeof *table);
    if (!table)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for phrases");
    for (size_t i = 0; i < e->cap; i++)
        if (e->table[i].phrase)
            *find(table, cap, e->table[i].phrase) = e->table[i];
    pseg_free(e->table);
    e->table = table;
    e->cap = cap;
out:
    return rc;
}

/* One phrase of a pass. words: [n_tokens - 1, hidden], or NULL. */
static pseg_status keep(pseg_encoders *e, const char *phrase, encoders_kept as, const float *embed,
                        const float *words, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    size_t dim = e->head.text_dim, n_words = words ? (size_t)as.n_tokens - 1 : 0;
    size_t n = dim + n_words * e->head.text_hidden;

    as.numbers = pseg_malloc(n * sizeof *as.numbers);
    as.phrase = pseg_strdup(phrase);
    if (!as.numbers || !as.phrase) {
        pseg_free(as.numbers);
        pseg_free(as.phrase);
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for phrases");
    }
    memcpy(as.numbers, embed, dim * sizeof *embed);
    if (words)
        memcpy(as.numbers + dim, words, (n - dim) * sizeof *words);
    *find(e->table, e->cap, phrase) = as;
    e->n_kept++;
    e->bytes += n * sizeof *as.numbers + strlen(phrase) + sizeof as;
out:
    return rc;
}

/* n phrases that are not kept yet, all different. */
static pseg_status encode(pseg_encoders *e, const char *const *phrases, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    bool has_words = e->head.has_word_tokens;
    size_t dim = e->head.text_dim, width = e->head.text_hidden;
    size_t row = has_words ? pseg_phrases_get_info(e->phrases)->max_tokens - 1 : 0;
    float *pooled = pseg_malloc(n * dim * sizeof *pooled);
    float *words = has_words ? pseg_malloc(n * row * width * sizeof *words) : NULL;
    uint32_t *n_tokens = pseg_calloc(n, sizeof *n_tokens);
    bool *is_cut = pseg_calloc(n, sizeof *is_cut);
    pseg_phrases_out out = {pooled, words, row, n_tokens, is_cut};

    if (!pooled || (has_words && !words) || !n_tokens || !is_cut)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for phrases");
    PSEG_TRY(pseg_phrases_run(&out, e->phrases, phrases, n, err));
    PSEG_TRY(grow(e, n, err));
    for (size_t i = 0; i < n; i++)
        PSEG_TRY(keep(e, phrases[i], (encoders_kept){.n_tokens = n_tokens[i], .is_cut = is_cut[i]},
                      pooled + i * dim, has_words ? words + i * row * width : NULL, err));
out:
    pseg_free(pooled);
    pseg_free(words);
    pseg_free(n_tokens);
    pseg_free(is_cut);
    return rc;
}

/* Encodes what is missing among phrases[0..n). */
static pseg_status fill(pseg_encoders *e, const char *const *phrases, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    const char **missing = pseg_calloc(n, sizeof *missing);
    size_t k = 0;

    if (!missing)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for phrases");
    for (size_t i = 0; i < n; i++) {
        bool is_known = find(e->table, e->cap, phrases[i])->phrase;

        for (size_t j = 0; j < k && !is_known; j++)
            is_known = strcmp(missing[j], phrases[i]) == 0;
        if (!is_known)
            missing[k++] = phrases[i];
    }
    if (k)
        PSEG_TRY(encode(e, missing, k, err));
out:
    pseg_free(missing);
    return rc;
}

pseg_status pseg_encoders_phrases(pseg_encoded_text *out, pseg_encoders *e,
                                  const char *const *phrases, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    PSEG_REQUIRE(e->phrases, "encoders that are loaded");
    if (e->bytes > KEEP_BYTES)
        encoders_forget(e);
    for (size_t at = 0; at < n; at += e->max_phrases) {
        size_t k = n - at < e->max_phrases ? n - at : e->max_phrases;
        PSEG_TRY(fill(e, phrases + at, k, err));
    }
    for (size_t i = 0; i < n; i++) {
        const encoders_kept *k = find(e->table, e->cap, phrases[i]);

        out[i] = (pseg_encoded_text){
            .embed = k->numbers,
            .words = e->head.has_word_tokens ? k->numbers + e->head.text_dim : NULL,
            .n_tokens = k->n_tokens,
            .is_cut = k->is_cut};
    }
out:
    return rc;
}

pseg_status pseg_encoders_tokens(int32_t *ids, uint32_t *lens, bool *is_cut, const pseg_encoders *e,
                                 uint32_t row, const char *const *phrases, size_t n, pseg_err *err)
{
    return pseg_phrases_tokens(ids, lens, is_cut, e->phrases, row, phrases, n, err);
}
