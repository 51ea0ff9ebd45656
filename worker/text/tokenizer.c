#include "worker/text/tokenizer.h"
#include "common/base/alloc.h"
#include "common/base/utf8.h"
#include "worker/text/bpe.h"

#include <string.h>

uint32_t pseg_tokenizer_vocab(const pseg_tokenizer *t)
{
    return t->vocab;
}

int32_t pseg_tokenizer_bos(const pseg_tokenizer *t)
{
    return t->bos;
}

int32_t pseg_tokenizer_eos(const pseg_tokenizer *t)
{
    return t->eos;
}

void pseg_tokenizer_free(pseg_tokenizer *t)
{
    if (!t)
        return;
    pseg_free(t->merges);
    pseg_free(t->ids);
    pseg_free(t);
}

uint32_t pseg_bpe_hash(uint32_t left, uint32_t right)
{
    uint64_t x = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u;

    return (uint32_t)(x >> 32) ^ (uint32_t)(x >> 11);
}

const pseg_merge *pseg_bpe_find(const pseg_tokenizer *t, uint32_t left, uint32_t right)
{
    uint32_t i = pseg_bpe_hash(left, right) & t->mask;

    for (;; i = (i + 1) & t->mask) {
        const pseg_merge *m = &t->merges[i];
        if (m->rank == UINT32_MAX)
            return NULL;
        if (m->left == left && m->right == right)
            return m;
    }
}

/* ---- one word -------------------------------------------------------------------------------- */

/* A pair that may be merged: the symbol at `at` with the one behind it. */
typedef struct pair {
    uint32_t rank, at, made;
} pair;

/* Room for the longest word: symbols in a list, and a heap of pairs (each merge adds two). */
typedef struct bench {
    uint32_t *symbol;
    int32_t *prev, *next;
    pair *heap;
    size_t n_heap;
} bench;

typedef struct output {
    int32_t *ids;
    size_t n, max; /* max leaves room for EOS */
    bool is_cut;
} output;

static void put(output *o, int32_t id)
{
    if (o->n < o->max)
        o->ids[o->n++] = id;
    else
        o->is_cut = true;
}

static bool is_before(const pair *a, const pair *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void push(bench *b, const pseg_tokenizer *t, int32_t at)
{
    const pseg_merge *m;
    size_t i = b->n_heap;

    if (at < 0 || b->next[at] < 0 || !(m = pseg_bpe_find(t, b->symbol[at], b->symbol[b->next[at]])))
        return;
    pair p = {m->rank, (uint32_t)at, m->made};
    b->n_heap++;
    for (; i > 0 && is_before(&p, &b->heap[(i - 1) / 2]); i = (i - 1) / 2)
        b->heap[i] = b->heap[(i - 1) / 2];
    b->heap[i] = p;
}

static pair pop(bench *b)
{
    pair top = b->heap[0], last = b->heap[--b->n_heap];
    size_t i = 0;

    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= b->n_heap)
            break;
        if (k + 1 < b->n_heap && is_before(&b->heap[k + 1], &b->heap[k]))
            k++;
        if (!is_before(&b->heap[k], &last))
            break;
        b->heap[i] = b->heap[k];
        i = k;
    }
    b->heap[i] = last;
    return top;
}

/* Merges the pair of lowest rank, the leftmost of equals, until none is left. A heap, because a
 * word may be a whole page without spaces. */
static void encode_word(output *o, bench *b, const pseg_tokenizer *t, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        b->symbol[i] = t->of_byte[(unsigned char)s[i]];
        b->prev[i] = (int32_t)i - 1;
        b->next[i] = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    b->symbol[n - 1] += 256;
    b->n_heap = 0;
    for (size_t i = 0; i + 1 < n; i++)
        push(b, t, (int32_t)i);
    while (b->n_heap) {
        pair p = pop(b);
        int32_t next = b->next[p.at];
        const pseg_merge *m;
        /* The pair may be stale: its left symbol gone, or one of the two replaced. */
        if (b->symbol[p.at] == UINT32_MAX || next < 0 ||
            !(m = pseg_bpe_find(t, b->symbol[p.at], b->symbol[next])) || m->made != p.made)
            continue;
        b->symbol[p.at] = p.made;
        b->symbol[next] = UINT32_MAX;
        b->next[p.at] = b->next[next];
        if (b->next[next] >= 0)
            b->prev[b->next[next]] = (int32_t)p.at;
        push(b, t, b->prev[p.at]);
        push(b, t, (int32_t)p.at);
    }
    for (int32_t i = 0; i >= 0 && !o->is_cut; i = b->next[i])
        put(o, t->ids[b->symbol[i]]);
}

/* ---- text to words --------------------------------------------------------------------------- */

typedef enum kind { SPACE, LETTER, NUMBER, OTHER } kind;

static kind kind_at(size_t *step, const char *s, size_t n)
{
    uint32_t cp;

    *step = pseg_utf8_decode(&cp, s, n);
    return pseg_utf8_is_space(cp)    ? SPACE
           : pseg_utf8_is_letter(cp) ? LETTER
           : pseg_utf8_is_number(cp) ? NUMBER
                                     : OTHER;
}

static bool has_start(const char *s, size_t n, const char *start)
{
    size_t k = strlen(start);

    return n >= k && memcmp(s, start, k) == 0;
}

/* Bytes of the contraction that s begins with, or 0. */
static size_t contraction(const char *s, size_t n)
{
    static const char *const all[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (has_start(s, n, all[i]))
            return strlen(all[i]);
    return 0;
}

/* Bytes of the run of `what` that s begins with. */
static size_t run_of(kind what, const char *s, size_t n)
{
    size_t at = 0, step;

    while (at < n && kind_at(&step, s + at, n - at) == what)
        at += step;
    return at;
}

/* Normalised text to ids: the alternatives of CLIP's regular expression, in its order. */
static void encode_words(output *o, bench *b, const pseg_tokenizer *t, const char *s, size_t n)
{
    size_t step, at = 0;

    while (at < n && !o->is_cut) {
        const char *p = s + at;
        size_t left = n - at, len = contraction(p, left);
        kind k = kind_at(&step, p, left);
        if (k == SPACE) {
            at += step;
            continue;
        }
        /* The expression takes a special token as one word, which the byte-level step then parts
         * again; unlike a run of signs it does not go on behind "|>". */
        if (has_start(p, left, PSEG_BPE_BOS) || has_start(p, left, PSEG_BPE_EOS)) {
            size_t inner = run_of(LETTER, p + 2, left - 2);
            encode_word(o, b, t, p, 2);
            encode_word(o, b, t, p + 2, inner);
            encode_word(o, b, t, p + 2 + inner, 2);
            at += inner + 4;
            continue;
        }
        if (!len)
            len = k == NUMBER ? step : run_of(k, p, left);
        encode_word(o, b, t, p, len);
        at += len;
    }
}

/* ---- text to normalised text ----------------------------------------------------------------- */

/* NFC and lower case, each character on its own. Caller frees *out with pseg_free. */
static pseg_status normalise(char **out, size_t *out_len, const char *s, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *nfc = NULL, *lower = NULL;
    size_t n_nfc, at = 0, to = 0, bytes;

    *out = NULL;
    PSEG_TRY(pseg_utf8_nfc(&nfc, &n_nfc, s, n, err));
    /* A lower-case letter has at most one byte more than its capital (U+023A to U+2C65), and U+0130
     * becomes three bytes from two. */
    if (!pseg_mul_size(&bytes, n_nfc + 2, 2) || !(lower = pseg_malloc(bytes)))
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a phrase of %zu bytes", n);
    while (at < n_nfc) {
        uint32_t cp;
        at += pseg_utf8_decode(&cp, nfc + at, n_nfc - at);
        if (cp == 0x130) { /* the only letter whose lower case is two characters */
            lower[to++] = 'i';
            cp = 0x307;
        } else
            cp = pseg_utf8_lower(cp);
        to += pseg_utf8_encode(lower + to, cp);
    }
    *out = lower;
    lower = NULL;
    *out_len = to;
out:
    pseg_free(nfc);
    pseg_free(lower);
    return rc;
}

/* The first special token in s: its place, or n; its id and length. */
static size_t find_special(int32_t *id, size_t *len, const pseg_tokenizer *t, const char *s,
                           size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const char *p = memchr(s + i, '<', n - i);
        if (!p)
            break;
        i = (size_t)(p - s);
        bool is_bos = has_start(p, n - i, PSEG_BPE_BOS);
        if (!is_bos && !has_start(p, n - i, PSEG_BPE_EOS))
            continue;
        *id = is_bos ? t->bos : t->eos;
        *len = is_bos ? sizeof PSEG_BPE_BOS - 1 : sizeof PSEG_BPE_EOS - 1;
        return i;
    }
    *id = -1;
    *len = 0;
    return n;
}

static pseg_status bench_new(bench *b, size_t n, pseg_err *err)
{
    pseg_status rc = PSEG_OK;

    b->symbol = pseg_calloc(n + 1, sizeof *b->symbol);
    b->prev = pseg_calloc(n + 1, sizeof *b->prev);
    b->next = pseg_calloc(n + 1, sizeof *b->next);
    b->heap = pseg_calloc(n + 1, 3 * sizeof *b->heap);
    if (!b->symbol || !b->prev || !b->next || !b->heap)
        PSEG_FAIL(PSEG_R_OUT_OF_MEMORY, 0, "no memory for a phrase of %zu bytes", n);
out:
    return rc;
}

static void bench_free(bench *b)
{
    pseg_free(b->symbol);
    pseg_free(b->prev);
    pseg_free(b->next);
    pseg_free(b->heap);
    *b = (bench){0};
}

/* Text without special tokens, or, finds_specials_late, with them. */
static pseg_status encode_piece(output *o, const pseg_tokenizer *t, const char *s, size_t n,
                                pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    char *norm = NULL;
    bench b = {0};
    size_t n_norm = 0, at = 0;

    if (n == 0)
        goto out;
    PSEG_TRY(normalise(&norm, &n_norm, s, n, err));
    PSEG_TRY(bench_new(&b, n_norm, err));
    while (t->finds_specials_late && at < n_norm && !o->is_cut) {
        int32_t id;
        size_t len, k = find_special(&id, &len, t, norm + at, n_norm - at);
        encode_words(o, &b, t, norm + at, k);
        if (id >= 0)
            put(o, id);
        at += k + len;
    }
    encode_words(o, &b, t, norm + at, n_norm - at);
out:
    bench_free(&b);
    pseg_free(norm);
    return rc;
}

pseg_status pseg_tokenizer_encode(int32_t *ids, size_t max, size_t *n, bool *is_cut,
                                  const pseg_tokenizer *t, const char *text, size_t len,
                                  pseg_err *err)
{
    pseg_status rc = PSEG_OK;
    output o = {.ids = ids, .max = max - 1};

    *n = 0;
    PSEG_REQUIRE(max >= 2, "max");
    PSEG_REQUIRE(len < INT32_MAX / 8, "len");
    if (!pseg_utf8_is_valid(text, len))
        PSEG_FAIL(PSEG_R_PROMPT_NOT_TEXT, 0, "phrase of %zu bytes is not UTF-8", len);
    put(&o, t->bos);
    for (size_t at = 0; at < len && !o.is_cut;) {
        int32_t id = -1;
        size_t width = 0, k = len - at;
        if (!t->finds_specials_late)
            k = find_special(&id, &width, t, text + at, len - at);
        PSEG_TRY(encode_piece(&o, t, text + at, k, err));
        if (id >= 0)
            put(&o, id);
        at += k + width;
    }
    ids[o.n++] = t->eos;
    *n = o.n;
    if (is_cut)
        *is_cut = o.is_cut;
out:
    return rc;
}
